package console

import (
	"encoding/hex"
	"net/http"
	"strconv"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

// entryPage shows everything that one entry recorded.
type entryPage struct {
	Entry    exchange.Recorded
	Facts    []fact
	Receipts *receipts // of a revocation, where the person may see them
}

// fact is one field of an entry, in the form that fits it.
type fact struct {
	Name   string
	Text   string
	Href   string
	Mono   bool
	Who    delegation.Chain
	Aim    *aim
	Chips  []string
	Time   time.Time
	Erased bool
}

func (f fact) empty() bool {
	return f.Text == "" && f.Aim == nil && len(f.Who) == 0 && len(f.Chips) == 0 && f.Time.IsZero() && !f.Erased
}

func (h *console) entry(c *call) error {
	q := c.inquiry()
	var err error
	if q.Entry, err = readNumber("entry", c.r.URL.Query().Get("entry")); err != nil {
		return err
	}
	if q.ID = c.r.URL.Query().Get("jti"); (q.Entry == 0) == (q.ID == "") {
		return delegation.Refuse(delegation.ParameterMissing, "entry", "name one entry by its number, or by the jti of its grant")
	}
	found, err := h.Engine.Entry(c.r.Context(), q)
	if err != nil {
		return err
	}
	p := entryPage{Entry: found, Facts: c.facts(found)}
	if found.Revocation != nil {
		if p.Receipts, err = h.receipts(c, found.Seq); err != nil {
			return err
		}
	}
	return c.show(http.StatusOK, "entry", page{
		Title: "Entry " + strconv.FormatUint(found.Seq, 10), Refresh: h.refresh(p.Receipts, found), Body: p,
	})
}

func (c *call) facts(r exchange.Recorded) []fact {
	chain := ""
	if hasChain(r) {
		chain = c.link("chain", "jti", r.ID)
	}
	one := func(p delegation.Principal) delegation.Chain {
		if p == "" {
			return nil
		}
		return delegation.Chain{p}
	}
	number := func(n uint64) (text, href string) {
		if n == 0 {
			return "", ""
		}
		text = strconv.FormatUint(n, 10)
		return text, c.link("entry", "entry", text)
	}
	voids, voidsLink := number(r.Voids)
	revoked, revokedLink := number(r.RevokedBy)
	var details []string
	for _, d := range r.Details {
		details = append(details, d.String())
	}
	all := []fact{
		{Name: "Recorded", Time: r.Time},
		{Name: "Outcome", Text: string(r.Outcome)},
		{Name: "Reason", Text: string(r.Reason), Mono: true},
		{Name: detailName(r), Text: r.Detail},
		{Name: "Subject", Who: one(r.Subject)},
		{Name: "Actors", Who: actorsOf(r)},
		{Name: "Caller", Who: one(r.Caller)},
		{Name: "Actor proven by", Text: r.ActorProof},
		{Name: "Scope", Chips: r.Scopes},
		{Name: "Audience", Chips: r.Audiences},
		{Name: "Authorization details", Chips: details},
		{Name: "Expires", Time: r.Expiry},
		{Name: "Revoked by entry", Text: revoked, Href: revokedLink},
		{Name: "Takes back entry", Text: voids, Href: voidsLink},
	}
	if v := r.Revocation; v != nil {
		target := aimAt(v.Target)
		all = append(all, fact{Name: "Target", Aim: &target}, fact{Name: "Target's id", Text: v.Target.ID, Mono: true},
			fact{Name: "Remembered until", Time: v.Until})
		if v.Until.IsZero() {
			all[len(all)-1] = fact{Name: "Remembered until", Text: "forever"}
		}
	}
	all = append(all,
		fact{Name: "jti", Text: r.ID, Href: chain, Mono: true},
		fact{Name: "Parent", Text: r.Parent, Href: parentLink(c, r), Mono: true},
		fact{Name: "Chain (txn)", Text: r.Txn, Href: c.found("txn", r.Txn), Mono: true},
		fact{Name: "Root token", Text: r.Root, Mono: true},
		fact{Name: "Bound to key", Text: r.HolderKey, Href: c.found("key", r.HolderKey), Mono: true},
		fact{Name: "Peer", Text: r.Peer, Mono: true},
		fact{Name: "Decided by model", Text: r.ModelID, Mono: true},
		fact{Name: "Trace id", Text: r.TraceID, Mono: true},
		fact{Name: "Leaf hash", Text: hex.EncodeToString(r.Leaf[:]), Mono: true},
	)
	for _, name := range r.Erased() {
		all = append(all, fact{Name: name, Erased: true})
	}
	var there []fact
	for _, f := range all {
		if !f.empty() {
			there = append(there, f)
		}
	}
	return there
}

// detailName returns the label of an entry's detail: the reason that a person gave, or a text of
// Deputy.
func detailName(r exchange.Recorded) string {
	if r.Revocation != nil {
		return "Why"
	}
	return "Detail"
}

// found returns the link to the entries that have a value.
func (c *call) found(filter, value string) string {
	if value == "" {
		return ""
	}
	return c.link("", filter, value)
}

func parentLink(c *call, r exchange.Recorded) string {
	if r.Parent == "" || r.Kind != ledger.KindGrant {
		return ""
	}
	return c.link("entry", "jti", r.Parent)
}
