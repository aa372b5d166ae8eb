package dpop

import (
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
)

// FuzzVerify applies every rule but that of the signature, so that inputs get further than
// forgeries do, and finds what form and claims alone accept.
func FuzzVerify(f *testing.F) {
	k := newTestKey(f, "P-256")
	for _, seed := range []string{
		rfcTokenProof, rfcResourceProof, "", "..", rfcHeader + ".e30.AA",
		forge(f, k, nil, nil), forge(f, k, map[string]any{"typ": "JWT"}, nil), forge(f, k, nil, map[string]any{"nonce": "n", "htu": "https://CALENDAR.example:443/%65vents"}),
		forge(f, newTestKey(f, "Ed25519"), nil, nil), forge(f, newTestKey(f, "RSA"), nil, map[string]any{"jti": strings.Repeat("x", 256)}),
	} {
		f.Add(seed)
	}
	unsigned := slices.DeleteFunc(rules(), func(r rule) bool { return r.clause == "6" })
	want := Expectation{Method: "GET", URI: tool, Now: at, Skew: 10 * time.Second}
	f.Fuzz(func(t *testing.T, proof string) {
		c, err := read(proof)
		for _, r := range unsigned {
			if err == nil && !r.holds(c, want) {
				err = r.broken
			}
		}
		p := c.accepted(want)
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

// FuzzAddress compares the comparison of addresses with net/url: equal addresses have the same
// scheme, host, port and path, however they are written.
func FuzzAddress(f *testing.F) {
	for _, seed := range [][2]string{
		{"https://calendar.example/events", "HTTPS://Calendar.Example:443/%65vents?q#f"}, {"https://h.example", "https://h.example/"},
		{"https://[::1]:443/a", "https://[::1]/a"}, {"http://h.example:80", "http://h.example:/"}, {"https://h.example/a/../b", "https://h.example/b"},
		{"https://h.example/a%2fb", "https://h.example/a/b"}, {"https://u@h.example/", "https://h.example/"}, {"https://h.example:80/", "http://h.example/"},
		{"https://h.example./", "https://h.example/"}, {"https:h.example", "//h.example"}, {"https://h%2Eexample/", "https://h.example/"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, htu, address string) {
		if sameAddress(htu, address) != sameAddress(address, htu) {
			t.Fatalf("%q and %q: it matters which comes first", htu, address)
		}
		if own, is := normalized(htu); is != sameAddress(htu, htu) || is && !sameAddress(own, htu) {
			t.Fatalf("%q is not the address %q that it becomes", htu, own)
		}
		if !sameAddress(htu, address) {
			return
		}
		a, errA := url.Parse(htu)
		b, errB := url.Parse(address)
		if errA != nil || errB != nil || !strings.EqualFold(a.Scheme, b.Scheme) || !strings.EqualFold(a.Hostname(), b.Hostname()) ||
			portOf(a) != portOf(b) || strings.TrimSuffix(a.Path, "/") != strings.TrimSuffix(b.Path, "/") || a.User != nil || b.User != nil {
			t.Errorf("%q is taken for %q", htu, address)
		}
	})
}

func portOf(u *url.URL) string {
	if port := u.Port(); port != "" {
		return port
	}
	return map[string]string{"https": "443", "http": "80"}[strings.ToLower(u.Scheme)]
}
