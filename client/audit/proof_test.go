package audit_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client/audit"
)

// TestProofPage runs the page of docs/proof, which shares no code with this package, on the proof of each
// entry of a log, and on proofs that prove nothing.
func TestProofPage(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page")
	if out, err := exec.Command("go", "build", "-o", page, "../../docs/proof/verify.go").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, parent, _ := chain(t)
	b.add(revocation(0, "chain", parent.Txn))
	b.add(refusal())
	b.records[1].Personal[audit.FieldClaims].Value = "" // expired
	b.records[2].Personal[audit.FieldSubject] = audit.Personal{Digest: b.records[2].Personal[audit.FieldSubject].Digest}

	key, ofAnother := verifierKey(t)
	signer, err := note.NewSigner(key.private)
	if err != nil {
		t.Fatal(err)
	}
	b.signer = signer
	run := func(document []byte, public string) (string, error) {
		command := exec.Command(page, public)
		command.Stdin = bytes.NewReader(document)
		out, err := command.CombinedOutput()
		return string(out), err
	}
	for n := range b.records {
		document := b.proof(t, n)
		if said, err := run(document, key.public); err != nil || !strings.HasPrefix(said, "entry ") {
			t.Errorf("entry %d: %v\n%s", n+1, err, said)
		}
	}
	document := string(b.proof(t, 2))
	for name, spoiled := range map[string]string{
		"another scope":      strings.Replace(document, "a.read", "c.read", 1),
		"another number":     strings.Replace(document, `"seq":3`, `"seq":4`, 1),
		"another actor":      strings.Replace(document, `"value":"agent:researcher"`, `"value":"agent:mallory"`, 1),
		"another checkpoint": strings.Replace(document, `\n6\n`, `\n7\n`, 1),
		"a member more":      strings.Replace(document, `"seq"`, `"sequel":1,"seq"`, 1),
		"no hashes":          document[:strings.Index(document, `"inclusion":[`)] + `"inclusion":[]` + document[strings.Index(document, `],"record"`)+1:],
		"nothing":            `{}`,
	} {
		if spoiled == document {
			t.Fatalf("%s: nothing was changed in %s", name, document)
		}
		if said, err := run([]byte(spoiled), key.public); err == nil || !strings.Contains(said, "NOT PROVEN") {
			t.Errorf("%s: %v\n%s", name, err, said)
		}
	}
	if said, err := run([]byte(document), ofAnother.public); err == nil {
		t.Errorf("another key: %s", said)
	}
}

type keyPair struct{ private, public string }

// verifierKey makes two keys of the same name.
func verifierKey(t *testing.T) (ours, another keyPair) {
	t.Helper()
	for _, k := range []*keyPair{&ours, &another} {
		var err error
		if k.private, k.public, err = note.GenerateKey(rand.Reader, "deputy.example"); err != nil {
			t.Fatal(err)
		}
	}
	return ours, another
}

// proof is what "deputy log prove" writes for the record with this index.
func (b *book) proof(t *testing.T, n int) []byte {
	t.Helper()
	var all []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var list []tlog.Hash
		for _, index := range indexes {
			list = append(list, all[index])
		}
		return list, nil
	})
	for i, r := range b.records {
		stored, err := tlog.StoredHashesForRecordHash(int64(i), r.LeafHash, reader)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, stored...)
	}
	path, err := tlog.ProveRecord(int64(len(b.records)), int64(n), reader)
	if err != nil {
		t.Fatal(err)
	}
	line, err := b.records[n].MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	inclusion := [][]byte{}
	for _, h := range path {
		inclusion = append(inclusion, h[:])
	}
	document, err := json.Marshal(map[string]any{"record": json.RawMessage(line), "inclusion": inclusion, "checkpoint": b.head(len(b.records))})
	if err != nil {
		t.Fatal(err)
	}
	return document
}
