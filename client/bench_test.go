package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
)

// BenchmarkVerify is one request at a resource server that has the keys and the revocations, with a
// transport that fails: for a new token, and for a token that came before.
func BenchmarkVerify(b *testing.B) {
	s := startDeputy(b)
	revocations := make([]delegation.Revocation, 10_000)
	for i := range revocations {
		revocations[i] = ban(uint64(100+i), fmt.Sprint("gone-", i))
	}
	v, err := NewVerifier(VerifierConfig{Issuer: s.Issuer, Audience: calendar, IgnoreRevocations: true})
	if err != nil {
		b.Fatal(err)
	}
	token := s.Token(s.Claims(time.Now()))
	if _, err := v.Verify(b.Context(), token); err != nil {
		b.Fatal(err)
	}
	v.keys.client.Transport = noNetwork{b}
	v.feed = knowing(b, s, time.Now, revocations...).feed
	v.feed.bound, v.keys.maxAge, v.ignoreRevocations = time.Hour, time.Hour, false
	verify := func(b *testing.B) {
		if _, err := v.Verify(b.Context(), token); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("uncached", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			v.verdicts.drop(token)
			verify(b)
		}
	})
	b.Run("cached", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			verify(b)
		}
	})
	b.Run("cached, after a revocation", func(b *testing.B) {
		set := v.feed.known.Load().set
		b.ReportAllocs()
		for b.Loop() {
			set.Apply(ban(set.Last()+1, "gone-1"))
			verify(b)
		}
	})
	b.Run("cached, in parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := v.Verify(b.Context(), token); err != nil {
					b.Error(err)
				}
			}
		})
	})
}

// BenchmarkVerifyPresented is one request with a token that is bound to a key, whose verdict is
// remembered: a proof is verified each time.
func BenchmarkVerifyPresented(b *testing.B) {
	s := startDeputy(b)
	key := newProofKey(b)
	v := provingVerifier(b, s, asIs)
	v.spendNothing()
	token := boundTo(s, time.Now(), delegation.Confirmation{JKT: key.Thumbprint()})
	proof, err := key.Prove(dpop.Request{Method: "GET", URI: events, AccessToken: token}, time.Now().Add(proofSkew), nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.VerifyPresented(b.Context(), Presentation{Token: token, Scheme: "DPoP", Proofs: []string{proof}, Method: "GET", URI: events}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkECDSA is the one operation that every verifier of ES256 needs.
func BenchmarkECDSA(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	input := make([]byte, 800)
	digest := sha256.Sum256(input)
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		digest := sha256.Sum256(input)
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) {
			b.Fatal("wrong")
		}
	}
}
