package fill_test

import (
	"bytes"
	"crypto/rand"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/server/fill"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
)

// TestTrafficVerifies has an auditor go over what fill wrote, of every kind.
func TestTrafficVerifies(t *testing.T) {
	const tenant, entries = "acme", 3000
	dsn := ledgertest.SQLite(t)
	if _, err := fill.Run(t.Context(), dsn, fill.Options{Tenant: tenant, Entries: entries, Seed: 7}); err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), dsn, ledger.Config{Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var lines bytes.Buffer
	for after := uint64(0); after < entries; {
		page, err := l.Entries(t.Context(), tenant, after, 500)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page {
			r := e.Record()
			line, err := r.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			lines.Write(append(line, '\n'))
			after = e.Seq
		}
	}
	private, public, err := note.GenerateKey(rand.Reader, "deputy.example")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	size, root, err := l.Tree(t.Context(), tenant)
	if err != nil {
		t.Fatal(err)
	}
	text, err := audit.Checkpoint{Origin: "deputy.example", Size: size, Root: root, Time: time.Now()}.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	r, err := audit.VerifyLog(t.Context(), &lines, audit.Options{Key: key, Checkpoint: text})
	if err != nil || r.Last != entries || r.Grants == 0 {
		t.Errorf("%+v, %v", r, err)
	}
}
