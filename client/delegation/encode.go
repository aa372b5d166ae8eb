package delegation

import (
	"errors"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// MarshalJSON writes the canonical form that the ledger digests and the token carries. Names and
// order are fixed, so equal claims have equal bytes.
func (c Claims) MarshalJSON() ([]byte, error) {
	if len(c.Act) == 0 {
		return nil, errNoActor
	}
	const usual = 1 << 10
	e := encoder{json: make([]byte, 0, usual)}
	e.raw(`{"iss":`).text(c.Issuer).raw(`,"sub":`).text(string(c.Subject)).raw(`,"client_id":`).text(string(c.ClientID))
	e.raw(`,"aud":[`)
	for i, audience := range c.Audience {
		e.next(i).text(audience)
	}
	e.raw(`]`)
	if scope := c.Scope.String(); scope != "" {
		e.raw(`,"scope":`).text(scope)
	}
	if len(c.Details) > 0 {
		e.raw(`,"authorization_details":[`)
		for i, detail := range c.Details {
			e.next(i).detail(detail)
		}
		e.raw(`]`)
	}
	e.raw(`,"iat":`).number(c.IssuedAt).raw(`,"nbf":`).number(c.NotBefore).raw(`,"exp":`).number(c.ExpiresAt)
	e.raw(`,"jti":`).text(c.ID).raw(`,"txn":`).text(c.Txn)
	e.raw(`,"act":`)
	for i, actor := range slices.Backward(c.Act) {
		e.raw(`{"sub":`).text(string(actor))
		if i > 0 {
			e.raw(`,"act":`)
		}
	}
	for range c.Act {
		e.raw(`}`)
	}
	e.raw(`,"delegation":{"root":`).text(c.Delegation.Root).raw(`,"hops":[`)
	for i, hop := range c.Delegation.Hops {
		e.next(i).raw(`[`).text(hop.ID).raw(`,`).count(hop.Seq).raw(`,`).number(int64(hop.Actor)).raw(`,`).text(hop.Key).raw(`]`)
	}
	e.raw(`],"depth_left":`).number(int64(c.Delegation.DepthLeft))
	if c.Delegation.Uses != 0 {
		e.raw(`,"uses":`).number(int64(c.Delegation.Uses))
	}
	e.raw(`}`)
	if c.Confirmation != nil {
		e.raw(`,"cnf":{`).confirmation(*c.Confirmation).raw(`}`)
	}
	if c.MayAct != nil {
		e.raw(`,"may_act":{"sub":`).text(string(c.MayAct.Sub)).raw(`}`)
	}
	if c.Status != nil {
		e.raw(`,"status":{"status_list":{"idx":`).count(c.Status.Index).raw(`,"uri":`).text(c.Status.URI).raw(`}}`)
	}
	return e.raw(`}`).json, e.err
}

var errNoActor = errors.New("delegation: an empty actor chain has no JSON form")

// encoder appends to a JSON text. It keeps its first error.
type encoder struct {
	json []byte
	err  error
}

func (e *encoder) raw(text string) *encoder { e.json = append(e.json, text...); return e }

func (e *encoder) number(n int64) *encoder { e.json = strconv.AppendInt(e.json, n, 10); return e }

func (e *encoder) count(n uint64) *encoder { e.json = strconv.AppendUint(e.json, n, 10); return e }

// next writes the comma between elements.
func (e *encoder) next(i int) *encoder {
	if i > 0 {
		e.raw(`,`)
	}
	return e
}

// text writes a string. A string that is not UTF-8 has no JSON form.
func (e *encoder) text(s string) *encoder {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == '"' || s[i] == '\\' || s[i] >= 0x7f {
			quoted, err := jsontext.AppendQuote(e.json, s)
			if e.json = quoted; e.err == nil {
				e.err = err
			}
			return e
		}
	}
	return e.raw(`"`).raw(s).raw(`"`)
}

func (e *encoder) detail(d Detail) *encoder {
	if d.canonical == "" && e.err == nil {
		e.err = errNoDetail
	}
	return e.raw(d.canonical)
}

func (e *encoder) confirmation(c Confirmation) *encoder {
	if c.JKT != "" {
		e.raw(`"jkt":`).text(c.JKT)
	}
	if c.X5T != "" {
		if c.JKT != "" {
			e.raw(`,`)
		}
		e.raw(`"x5t#S256":`).text(c.X5T)
	}
	return e
}
