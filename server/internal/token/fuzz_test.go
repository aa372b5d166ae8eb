package token

import (
	"errors"
	"slices"
	"testing"

	"deputy.example/deputy/client/delegation"
)

// FuzzPresented presents arbitrary text at every entry point: nothing panics, every refusal has a
// registered reason, and no token is accepted that the tenant's issuers did not sign.
func FuzzPresented(f *testing.F) {
	w := newWorld(f)
	signed := []string{
		w.own(f, nil),
		w.idp.sign(f, "at+jwt", w.rootClaims()),
		w.agent.sign(f, "JWT", w.assertionClaims()),
		w.spire.sign(f, "JWT", w.workloadClaims()),
	}
	for _, token := range append(signed, "", "..", "a.b.c", "e30.e30.e30") {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		for name, door := range w.doors(t) {
			if err := door(raw); err != nil {
				checkRefusal(t, err)
			} else if !slices.Contains(signed, raw) {
				t.Errorf("%s accepts what no issuer of this run signed", name)
			}
		}
	})
}

// FuzzClaims presents arbitrary claims with a valid signature. The results must keep the rules that
// the exchange depends on.
func FuzzClaims(f *testing.F) {
	w := newWorld(f, idpChange(func(c *TrustedIssuer) {
		c.RootGrants = RootGrants{ScopesClaim: "scope", AudiencesClaim: "aud", DetailsClaim: "authorization_details"}
		c.ImportAct = &Mapping{Type: "agent", Prefix: "corp/"}
	}))
	own, err := w.ownClaim.MarshalJSON()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte(toJSON(f, w.rootClaims())))
	f.Add([]byte(toJSON(f, w.rootClaims().with(object{
		"act": object{"sub": "svc", "act": object{"sub": "old"}}, "may_act": object{"sub": "agent:planner"},
		"authorization_details": []object{{"type": "payment", "actions": []string{"read"}}},
	}))))
	f.Fuzz(func(t *testing.T, claims []byte) {
		for _, key := range []testKey{w.ownKey(), w.idp} {
			header := []byte(`{"alg":"ES256","kid":"` + key.kid + `","typ":"at+jwt"}`)
			s, err := w.Subject(t.Context(), key.signRaw(t, header, claims), accessType)
			if err != nil {
				checkRefusal(t, err)
				continue
			}
			if (s.Derived == nil) == (s.Root == nil) {
				t.Fatalf("a subject is %+v", s)
			}
			if s.Derived != nil {
				if err := s.Derived.Check(); err != nil || s.Derived.Issuer != tenantIssuer {
					t.Errorf("%+v: %v", s.Derived, err)
				}
				continue
			}
			r := s.Root
			p, err := delegation.ParsePrincipal(string(r.Principal))
			if err != nil || p.Type() != "user" || r.Digest == "" || r.Issuer != idpIssuer || !r.ExpiresAt.After(w.clock.now()) || r.ExpiresAt.Sub(r.IssuedAt) > defaultMaxLifetime {
				t.Errorf("%+v: %v", r, err)
			}
			if again, err := delegation.NewScopes(r.Scopes...); err != nil || again.String() != r.Scopes.String() {
				t.Errorf("scopes %q: %v", r.Scopes, err)
			}
			for _, a := range r.Actors {
				if _, err := delegation.ParsePrincipal(string(a)); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

func checkRefusal(t *testing.T, err error) {
	t.Helper()
	refusal, ok := errors.AsType[*delegation.Error](err)
	if !ok || !refusal.Reason.Known() || refusal.Reason == delegation.Internal {
		t.Errorf("refused with %#v", err)
	}
}
