package token

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"deputy.example/deputy/client/delegation"
)

// canary marks the content of a token. It has the form of a principal's id, a scope token and a
// kid.
const canary = "canary-8d1f"

// Whatever is presented and however it is refused: neither the answer, nor its cause, nor the log
// holds any part of it.
func TestErrorsAndLogsHoldNoPartOfAToken(t *testing.T) {
	w := newWorld(t, idpChange(func(c *TrustedIssuer) {
		c.RootGrants = RootGrants{ScopesClaim: "scope", AudiencesClaim: "res", DetailsClaim: "ad"}
		c.ImportAct = &Mapping{Type: "agent", Prefix: "corp/"}
		c.UntypedAccessTokens = true
	}))
	presented := map[string]string{}

	// Every claim, wrong in many ways, in tokens with a valid signature.
	values := map[string]any{
		"text": canary, "bad scope": canary + " \"", "long": canary + strings.Repeat("x", 300), "list": []any{canary, 1},
		"object": object{canary: canary}, "number": 7.5, "null": explicitNull{}, "deep": object{"sub": object{"sub": canary}},
		"details": []object{{"type": canary, "actions": []any{canary, 1}}}, "actor": object{"sub": canary, canary: 1},
	}
	claims := []string{"iss", "sub", "aud", "jti", "exp", "nbf", "iat", "scope", "res", "ad", "act", "may_act", "cnf", "client_id", "txn", "delegation", "authorization_details"}
	own := object{}
	for name, raw := range w.ownMembers(t) {
		own[name] = raw
	}
	for _, claim := range claims {
		for kind, value := range values {
			change := object{claim: value}
			name := claim + " " + kind
			presented["root "+name] = w.idp.sign(t, "at+jwt", w.rootClaims().with(object{"sub": canary}).with(change))
			presented["workload "+name] = w.spire.sign(t, "JWT", w.workloadClaims().with(object{"sub": canary}).with(change))
			presented["assertion "+name] = w.agent.sign(t, "JWT", w.assertionClaims().with(object{"jti": canary}).with(change))
			presented["derived "+name] = w.ownKey().sign(t, "at+jwt", own.with(change))
		}
	}
	// Every header member, and the spelling.
	for _, member := range []string{"alg", "kid", "typ", "jku", "x5u", "cty", "crit", canary} {
		for kind, value := range values {
			presented["header "+member+" "+kind] = w.idp.sign(t, "at+jwt", w.rootClaims().with(object{"sub": canary}), object{member: value})
		}
	}
	maps.Copy(presented, malleable(t, w.idp.sign(t, "at+jwt", w.rootClaims().with(object{"sub": canary}))))
	presented["no token"] = canary
	presented["three parts that are none"] = canary + "." + canary + "." + canary

	refused := 0
	for name, token := range presented {
		for door, try := range w.doors(t) {
			err := try(token)
			if err == nil {
				continue
			}
			refused++
			for e := err; e != nil; e = errors.Unwrap(e) {
				if leak := partOf(e.Error(), token); leak != "" {
					t.Errorf("%s at %s: the error %q holds %q", name, door, e, leak)
				}
			}
			if refusal, ok := errors.AsType[*delegation.Error](err); !ok || partOf(fmt.Sprint(refusal.Field, refusal.Metadata), token) != "" {
				t.Errorf("%s at %s: %#v", name, door, err)
			}
		}
		if leak := partOf(w.log.String(), token); leak != "" {
			t.Errorf("%s: the log holds %q", name, leak)
		}
	}
	if refused < 1000 {
		t.Errorf("only %d refusals were looked at", refused)
	}

	// The control: the search does find the content that such an error would hold.
	token := w.idp.sign(t, "at+jwt", w.rootClaims())
	for _, leaky := range []string{"principal " + canary, token[10:30], "…" + token[len(token)-16:]} {
		if partOf(leaky, token) == "" {
			t.Errorf("the search misses %q", leaky)
		}
	}
}

// partOf finds the canary, or twelve characters of the token, in a text.
func partOf(text, token string) string {
	if strings.Contains(text, canary) {
		return canary
	}
	const window = 12
	for at := 0; at+window <= len(token); at++ {
		if strings.Contains(text, token[at:at+window]) {
			return token[at : at+window]
		}
	}
	return ""
}

// ownMembers are the claims of a derived token, for tests that change them.
func (w *world) ownMembers(t *testing.T) object {
	t.Helper()
	c := w.ownClaim
	return object{
		"iss": c.Issuer, "sub": "user:" + canary, "client_id": c.ClientID, "aud": c.Audience, "scope": canary,
		"iat": c.IssuedAt, "nbf": c.NotBefore, "exp": c.ExpiresAt, "jti": canary, "txn": canary,
		"act":        object{"sub": c.ClientID, "act": object{"sub": c.Act[0]}},
		"delegation": object{"root": canary, "hops": []any{[]any{canary, 1, 0, ""}, []any{canary, 2, 1, ""}}, "depth_left": 1},
	}
}
