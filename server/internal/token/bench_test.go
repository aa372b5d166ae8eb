package token

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"math/big"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
)

func BenchmarkVerifyOwn(b *testing.B) {
	for _, algorithm := range []string{"ES256", "EdDSA", "RS256"} {
		b.Run(algorithm, func(b *testing.B) {
			w := newWorld(b, func(c *TrustConfig) { c.Keys = newKeyset(b, algorithm) })
			w.keys = w.config.Keys
			token := w.own(b, nil)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.Own(token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerifyForeign(b *testing.B) {
	w := newWorld(b)
	token := w.idp.sign(b, "at+jwt", w.rootClaims())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.Subject(b.Context(), token, accessType); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCaller(b *testing.B) {
	w := newWorld(b)
	assertion := w.agent.sign(b, "JWT", w.assertionClaims())
	unknown := w.agent.sign(b, "JWT", w.assertionClaims().with(object{"iss": "agent:nobody"}))
	forged := newTestKey(b, "ES256", "agent-1").sign(b, "JWT", w.assertionClaims())
	for name, raw := range map[string]string{"known": assertion, "unknown": unknown, "forged": forged} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.Caller(b.Context(), raw); (err == nil) != (name == "known") {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkMint(b *testing.B) {
	for _, algorithm := range []string{"ES256", "EdDSA", "RS256"} {
		b.Run(algorithm, func(b *testing.B) {
			w := newWorld(b)
			keys := newKeyset(b, algorithm)
			claims, err := w.ownClaim.MarshalJSON()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := keys.Sign(claims); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkBareVerify is the cost that cannot be saved: the arithmetic of one ES256 signature.
func BenchmarkBareVerify(b *testing.B) {
	w := newWorld(b)
	u, err := delegation.Parse(w.own(b, nil))
	if err != nil {
		b.Fatal(err)
	}
	public := w.ownKey().private.Public().(*ecdsa.PublicKey)
	r, s := new(big.Int).SetBytes(u.Signature[:32]), new(big.Int).SetBytes(u.Signature[32:])
	b.ReportAllocs()
	for b.Loop() {
		digest := sha256.Sum256([]byte(u.SigningInput))
		if !ecdsa.Verify(public, digest[:], r, s) {
			b.Fatal("not valid")
		}
	}
}

// BenchmarkGate is the strict parse alone, at both ends of what is accepted.
func BenchmarkGate(b *testing.B) {
	w := newWorld(b)
	long := w.idp.sign(b, "at+jwt", w.rootClaims().with(object{"pad": strings.Repeat("x", 5500), "exp": w.seconds(time.Minute)}))
	for name, token := range map[string]string{"usual": w.own(b, nil), "longest": long} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := delegation.Parse(token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
