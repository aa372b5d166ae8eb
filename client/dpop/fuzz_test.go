package dpop

import (
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
)

// FuzzVerify switches the signature check off, so that inputs get as far as forgeries never do, and looks
// for what form and claims alone let through.
func FuzzVerify(f *testing.F) {
	k := newTestKey(f, "P-256")
	for _, seed := range []string{
		rfcTokenProof, rfcResourceProof, "", "..", rfcHeader + ".e30.AA",
		forge(f, k, nil, nil), forge(f, k, map[string]any{"typ": "JWT"}, nil), forge(f, k, nil, map[string]any{"nonce": "n", "htu": "https://CALENDAR.example:443/%65vents"}),
		forge(f, newTestKey(f, "Ed25519"), nil, nil), forge(f, newTestKey(f, "RSA"), nil, map[string]any{"jti": strings.Repeat("x", 256)}),
	} {
		f.Add(seed)
	}
	unsigned := rules()
	for i := range unsigned {
		if unsigned[i].clause == "6" {
			unsigned[i].holds = func(candidate, Expectation) bool { return true }
		}
	}
	want := Expectation{Method: "GET", URI: tool, Now: at, Skew: 10 * time.Second}
	f.Fuzz(func(t *testing.T, proof string) {
		p, err := verify(proof, want, unsigned)
		if err != nil {
			if len(proof) > 40 && strings.Contains(err.Error(), proof) {
				t.Errorf("the error repeats the proof: %v", err)
			}
			return
		}
		u, jwk, err := delegation.ParseProof(proof)
		if err != nil {
			t.Fatalf("accepted, and no proof: %v", err)
		}
		k, err := readKey(jwk)
		if err != nil || k.thumbprint != p.Thumbprint || len(p.Thumbprint) != 43 {
			t.Errorf("key: %v, %+v", err, p)
		}
		for _, secret := range secretMembers {
			if _, there := jwk[secret]; there {
				t.Errorf("accepted with %s", secret)
			}
		}
		if p.ID == "" || len(p.ID) > maxIDBytes || len(p.Nonce) > maxIDBytes || p.Until.Before(at) || p.IssuedAt.After(at.Add(want.Skew)) ||
			u.Header.Type != delegation.HeaderTypeProof || len(proof) > delegation.MaxTokenBytes {
			t.Errorf("accepted: %+v", p)
		}
		if _, err := delegation.Parse(proof); err == nil {
			t.Error("a proof passes for a token")
		}
	})
}
