package delegation_test

import (
	"bytes"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"deputy.example/deputy/client/delegation"
)

// claimsWire is the JSON form of claims as a Go type.
type claimsWire struct {
	Iss        string                   `json:"iss"`
	Sub        delegation.Principal     `json:"sub"`
	ClientID   delegation.Principal     `json:"client_id"`
	Aud        []string                 `json:"aud"`
	Scope      string                   `json:"scope,omitzero"`
	Details    jsontext.Value           `json:"authorization_details,omitzero"`
	Iat        int64                    `json:"iat"`
	Nbf        int64                    `json:"nbf"`
	Exp        int64                    `json:"exp"`
	Jti        string                   `json:"jti"`
	Txn        string                   `json:"txn"`
	Act        jsontext.Value           `json:"act"`
	Delegation *delegationWire          `json:"delegation"`
	Cnf        *delegation.Confirmation `json:"cnf,omitzero"`
	MayAct     *delegation.MayAct       `json:"may_act,omitzero"`
	Status     *statusWire              `json:"status,omitzero"`
}

type statusWire struct {
	List *statusListWire `json:"status_list"`
}

type statusListWire struct {
	Idx uint64 `json:"idx"`
	URI string `json:"uri"`
}

type delegationWire struct {
	Root      string           `json:"root"`
	Hops      []jsontext.Value `json:"hops"`
	DepthLeft int              `json:"depth_left"`
	Uses      int              `json:"uses,omitzero"`
}

// encoded returns claims as a general encoder writes them.
func encoded(c delegation.Claims) ([]byte, error) {
	act, err := c.Act.MarshalJSON()
	if err != nil {
		return nil, err
	}
	wire := claimsWire{
		Iss: c.Issuer, Sub: c.Subject, ClientID: c.ClientID, Aud: c.Audience, Scope: c.Scope.String(),
		Iat: c.IssuedAt, Nbf: c.NotBefore, Exp: c.ExpiresAt, Jti: c.ID, Txn: c.Txn, Act: act,
		Delegation: &delegationWire{Root: c.Delegation.Root, DepthLeft: c.Delegation.DepthLeft, Uses: c.Delegation.Uses},
		Cnf:        c.Confirmation, MayAct: c.MayAct,
	}
	for _, hop := range c.Delegation.Hops {
		raw, err := hop.MarshalJSON()
		if err != nil {
			return nil, err
		}
		wire.Delegation.Hops = append(wire.Delegation.Hops, raw)
	}
	if len(c.Details) > 0 {
		if wire.Details, err = json.Marshal(c.Details); err != nil {
			return nil, err
		}
	}
	if c.Status != nil {
		wire.Status = &statusWire{List: &statusListWire{Idx: c.Status.Index, URI: c.Status.URI}}
	}
	return json.Marshal(wire)
}

// Digests in ledgers and signatures of tokens cover these bytes: they never change.
func TestClaimsAreEncodedByteForByte(t *testing.T) {
	same := func(t rapid.TB, c delegation.Claims) {
		got, err := c.MarshalJSON()
		want, wantErr := encoded(c)
		if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%v\n%s\nwant %v\n%s", err, got, wantErr, want)
		}
	}
	odd := rapid.SampledFrom([]string{"", "plain", `"`, `\`, "/", "<&>", "\x00", "\t\n\x1f", "\x7f", "é", "\u2028", "\U0001f511", "\xff", "\xed\xa0\x80", "a\xc3"})
	rapid.Check(t, func(t *rapid.T) {
		c := claims().Draw(t, "claims")
		same(t, c)
		// Fields with arbitrary text.
		c.Issuer, c.ID, c.Txn, c.Delegation.Root = odd.Draw(t, "iss"), odd.Draw(t, "jti"), odd.Draw(t, "txn"), odd.Draw(t, "root")
		c.Audience = rapid.SliceOfN(odd, 0, 3).Draw(t, "aud")
		c.IssuedAt, c.Delegation.DepthLeft, c.Delegation.Uses = rapid.Int64().Draw(t, "iat"), rapid.Int().Draw(t, "depth"), rapid.Int().Draw(t, "uses")
		if rapid.Bool().Draw(t, "bound") {
			c.Confirmation = &delegation.Confirmation{JKT: odd.Draw(t, "jkt"), X5T: odd.Draw(t, "x5t")}
		}
		if rapid.Bool().Draw(t, "listed") {
			c.Status = &delegation.Status{Index: rapid.Uint64().Draw(t, "idx"), URI: odd.Draw(t, "uri")}
		}
		same(t, c)
		c.Details = append(c.Details, delegation.Detail{})
		same(t, c)
		c.Details, c.Act = nil, nil
		same(t, c)
	})
	same(t, delegation.Claims{})
}

func BenchmarkMarshalClaims(b *testing.B) {
	c := claims().Example(5)
	for _, way := range []struct {
		name   string
		encode func(delegation.Claims) ([]byte, error)
	}{{"MarshalJSON", delegation.Claims.MarshalJSON}, {"by reflection", encoded}} {
		b.Run(way.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := way.encode(c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
