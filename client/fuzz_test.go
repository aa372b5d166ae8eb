package client

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
	"deputy.example/deputy/client/internal/deputytest"
)

// FuzzVerify switches the signature check off, so that inputs get further than forgeries can, and
// checks what form and claims alone admit.
func FuzzVerify(f *testing.F) {
	now := time.Unix(1_800_000_000, 0)
	v := &Verifier{
		issuer: "https://deputy.example", audience: calendar, clock: clockOf(func() time.Time { return now }),
		envelope: envelopeRules(), admission: admissionRules(), binding: bindingRules(), proven: proofRules(),
		verdicts: new(verdicts), ignoreRevocations: true,
		keys: fixedKeys(map[string]*verificationKey{
			deputytest.KeyID: {algorithm: algorithmES256, verifies: yes},
		}),
	}
	claims := (&deputytest.Server{Issuer: v.issuer}).Claims(now)
	signature := base64.RawURLEncoding.EncodeToString(make([]byte, 64))
	good := segment(deputytest.Header()) + "." + segment(claims) + "." + signature
	bound := claims
	bound.Confirmation = &delegation.Confirmation{JKT: "thumb"}
	for _, seed := range []string{
		good, good + "=", "..", algHeader("none") + "." + segment(claims) + ".",
		segment(deputytest.Header()) + "." + segment(bound) + "." + signature,
		segment(deputytest.Header()) + ".e30." + signature,
	} {
		f.Add(seed)
	}
	if _, err := v.Verify(f.Context(), good); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, token string) {
		d, err := v.Verify(t.Context(), token)
		if err != nil {
			if len(token) > 40 && strings.Contains(err.Error(), token) {
				t.Errorf("the error repeats the token: %v", err)
			}
			return
		}
		c := d.Claims()
		if c.Issuer != v.issuer || !slices.Contains(c.Audience, calendar) || c.ExpiresAt <= now.Unix() ||
			c.NotBefore > now.Unix()+10 || c.Confirmation != nil || c.Check() != nil || len(token) > delegation.MaxTokenBytes {
			t.Errorf("accepted: %+v", c)
		}
	})
}

// FuzzNonce: a nonce of a server that is kept comes back unchanged in a proof, and a Verifier
// accepts no nonce that it did not issue.
func FuzzNonce(f *testing.F) {
	now := time.Unix(1_800_000_000, 0)
	p, own := prover{now: func() time.Time { return now }, rand: strings.NewReader("")}, newNonces()
	then := instant{wall: now, run: 5 * noncePeriod}
	var err error
	if p.key, err = newTestKey(f).ProofKey(); err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"n-1", "", "a b", `a"b`, `a\b`, "a\r\nb", "\x7f", "ü", strings.Repeat("x", 257), own.at(then), own.at(then) + "=", strings.ToLower(own.at(then))} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, nonce string) {
		if own.gave(nonce, then) && nonce != own.at(then) && nonce != own.of(4) {
			t.Errorf("took %q, which it never gave", nonce)
		}
		if !p.remember(nonce) {
			return
		}
		const uri = "https://calendar.example/"
		p.rand = strings.NewReader(strings.Repeat("r", 16))
		proof, err := p.prove(t.Context(), "GET", uri, schemeBearer, "")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := dpop.Verify(proof, dpop.Expectation{Method: "GET", URI: uri, Now: now, Nonces: []string{nonce}}); err != nil || got.Nonce != nonce {
			t.Errorf("%q comes back as %q, %v", nonce, got.Nonce, err)
		}
	})
}
