package console

import (
	"strings"
	"testing"

	"deputy.example/deputy/client/delegation"
)

func TestNamesAreReadable(t *testing.T) {
	for raw, want := range map[string]string{
		"alice": "alice", "system:serviceaccount:agents:summarizer": "system:serviceaccount:agents:summarizer", "Ana María": "Ana María", "日本": "日本", "שלום": "שלום",
		"auth0|5f7c8ec7c33c6c004bbafe82": "auth0|5f7c8ec7c33c6c004bbafe82", "हिन्दी": "हिन्दी", "e\u0301": "e\u0301",
		// A character that is not visible as itself stays encoded.
		"a\u202etxt.exe": "a%E2%80%AEtxt.exe", "a\u2066b": "a%E2%81%A6b", "a\x00b": "a%00b", "a\x1b[31mb": "a%1B[31mb", "a\u00adb": "a%C2%ADb", "a\u200bb": "a%E2%80%8Bb",
		"a\u3164b": "a%E3%85%A4b", "a\u2800b": "a%E2%A0%80b", "a\ufe0fb": "a%EF%B8%8Fb", "a\u00a0b": "a%C2%A0b", "a\ufffdb": "a%EF%BF%BDb", "\xff\xfe": "%FF%FE", "a\xc3": "a%C3",
		"%41": "%2541", "100%": "100%25", " a": "%20a", "a ": "a%20", "a  b": "a%20%20b", "a b": "a b", "\u0301a": "%CC%81a", "a\nb": "a%0Ab", "\U000e0041": "%F3%A0%81%81",
	} {
		p, err := delegation.NewPrincipal("user", raw)
		if err != nil {
			t.Fatal(err)
		}
		if got := nameOf(p); got != "user:"+want {
			t.Errorf("%s reads %q, want %q", p, got, want)
		}
	}
	for in, want := range map[string]delegation.Principal{
		"user:alice": "user:alice", "agent:k8s/system:serviceaccount:a:b": "agent:k8s/system%3Aserviceaccount%3Aa%3Ab", "user:a%3Ab": "user:a%3Ab", "user:Ana María": "user:Ana%20Mar%C3%ADa",
		"alice": "", "": "", "User:a": "", "user:": "", "user:a%3ab": "", "user:%": "", ":x": "",
	} {
		got, err := readPrincipal("subject", in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q is read as %q, %v", in, got, err)
		}
	}
}

// FuzzNames: no two names look the same, and no name holds an invisible character.
func FuzzNames(f *testing.F) {
	f.Add("a", "a\u202eb")
	f.Add("a b", "a%20b")
	f.Add("\xc3", "\u00c3")
	f.Fuzz(func(t *testing.T, a, b string) {
		p, err := delegation.NewPrincipal("user", a)
		if err != nil {
			return
		}
		read := nameOf(p)
		if shown := string(visible([]byte(read))); shown != read || strings.ContainsAny(read, "\n\t") {
			t.Errorf("%q reads %q and hides something", p, read)
		}
		if q, err := delegation.NewPrincipal("user", b); err == nil && p != q && nameOf(q) == read {
			t.Errorf("%q and %q both read %q", p, q, read)
		}
		if back, err := readPrincipal("subject", read); err == nil && back != p && !strings.Contains(read, "%") {
			t.Errorf("%q reads %q, which is taken for %q", p, read, back)
		}
	})
}
