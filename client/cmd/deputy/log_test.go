package main

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/internal/deputytest"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// auditor is a client of a server whose log has three grants in it, and the key of its checkpoints.
func auditor(t *testing.T) (*deputytest.Server, *client.Client, note.Verifier, ledgerFlags) {
	t.Helper()
	s := deputytest.Start()
	t.Cleanup(s.Close)
	dir := t.TempDir()
	if err := writeFiles(dir, s, s); err != nil {
		t.Fatal(err)
	}
	for _, jti := range []string{"a", "b", "c"} {
		s.Record(&deputyv1.Entry{Kind: deputyv1.EntryKind_ENTRY_KIND_GRANT, Jti: jti})
	}
	flags := ledgerFlags{Issuer: s.Issuer, serverFlags: serverFlags{
		Addr: s.Address, Plaintext: true, ClientID: "planner", ClientKey: filepath.Join(dir, "planner.pem"), Timeout: 10 * time.Second,
	}}
	c, err := flags.open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	key, _, err := keyFlag(s.CheckpointKey())
	if err != nil {
		t.Fatal(err)
	}
	return s, c, key, flags
}

// TestProofIsChecked: the proof of the server is accepted, and a change of any part is refused.
func TestProofIsChecked(t *testing.T) {
	s, c, key, _ := auditor(t)
	other, err := c.GrantEntry(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*client.Proofs){
		"nothing":        func(*client.Proofs) {},
		"a hash":         func(p *client.Proofs) { p.Inclusion[0][0] ^= 1 },
		"a hash too few": func(p *client.Proofs) { p.Inclusion = p.Inclusion[1:] },
		"a field": func(p *client.Proofs) {
			p.Entry.Record = strings.Replace(p.Entry.Record, `"kind":"grant"`, `"kind":"check"`, 1)
		},
		"the number":          func(p *client.Proofs) { p.Entry.Record = strings.Replace(p.Entry.Record, `"seq":42`, `"seq":41`, 1) },
		"another grant":       func(p *client.Proofs) { p.Entry = other },
		"no record":           func(p *client.Proofs) { p.Entry.Record = "" },
		"another root":        func(p *client.Proofs) { p.Checkpoint = s.SignCheckpoint(43, tlog.Hash{7}) },
		"an older checkpoint": func(p *client.Proofs) { p.Checkpoint = s.SignCheckpoint(41, tlog.Hash{7}) },
		"no signature":        func(p *client.Proofs) { p.Checkpoint, _, _ = strings.Cut(p.Checkpoint, "— ") },
	} {
		proofs, err := c.Proofs(t.Context(), client.ProofsRequest{JTI: "b"})
		if err != nil {
			t.Fatal(err)
		}
		spoil(proofs)
		if err := (&proveCommand{JTI: "b"}).check(proofs, key); (err == nil) != (name == "nothing") {
			t.Errorf("%s is spoiled: %v", name, err)
		}
	}
}

// TestGrownIsProven: only a log that continues the kept checkpoint is accepted.
func TestGrownIsProven(t *testing.T) {
	s, c, key, flags := auditor(t)
	head, err := c.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Record(&deputyv1.Entry{Kind: deputyv1.EntryKind_ENTRY_KIND_CHECK})
	for name, test := range map[string]struct {
		kept string
		good bool
	}{
		"continued":    {head.Note, true},
		"of nothing":   {s.SignCheckpoint(0, tlog.Hash{}), true},
		"another root": {s.SignCheckpoint(43, tlog.Hash{7}), false},
		"longer":       {s.SignCheckpoint(1000, tlog.Hash{7}), false},
		"not signed":   {strings.ReplaceAll(head.Note, "— ", "  "), false},
	} {
		file := filepath.Join(t.TempDir(), "kept")
		if err := os.WriteFile(file, []byte(test.kept), 0o600); err != nil {
			t.Fatal(err)
		}
		newest, err := (&checkpointCommand{Kept: file, ledgerFlags: flags}).grown(c, key, nil)
		if (err == nil) != test.good || test.good != strings.Contains(newest, "\n44\n") {
			t.Errorf("%s: %q, %v", name, newest, err)
		}
	}
}

func TestSplitNotes(t *testing.T) {
	one, two := "a\n1\nroot\n\n— a sig\n— witness sig\n", "a\n2\nroot\n\n— a sig\n"
	for text, want := range map[string][]string{
		one: {one}, one + two: {one, two}, one + "\n\n" + two: {one, two}, strings.TrimSuffix(one, "\n"): {one}, "": nil, "\n \n": nil,
		one + "a\n3\nunsigned\n": {one, "a\n3\nunsigned\n"}, // it must be refused, not ignored
	} {
		if got := splitNotes(text); strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// TestOCSFOfWhatIsNotKnown: entries of kinds that this version does not know are exported too.
func TestOCSFOfWhatIsNotKnown(t *testing.T) {
	for _, e := range []*client.Entry{
		{}, {Kind: "99"}, {Kind: client.KindRevocation}, {Kind: client.KindVoid},
		{Kind: client.KindRevocation, Revocation: &delegation.Revocation{Target: delegation.Target{Kind: delegation.Resume}}},
	} {
		event := ocsfEvent(e, time.Unix(1_800_000_000, 0))
		if event.TypeUID != 600300+event.ActivityID || event.Severity == "" || event.API.Operation == "" && e.Kind != "" || event.Actor.User.Name == "" || event.SrcEndpoint.Name == "" {
			t.Errorf("%+v: %+v", e, event)
		}
	}
}

// TestKeyFiles: the first key is the one in force, those below it are former ones.
func TestKeyFiles(t *testing.T) {
	s := deputytest.Start()
	defer s.Close()
	_, former, err := note.GenerateKey(rand.Reader, "deputy.example")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "keys")
	for text, want := range map[string]int{
		s.CheckpointKey(): 0, s.CheckpointKey() + "\n\n" + former + "\n": 1, "\n": -1, "": -1, s.CheckpointKey() + "\nnot a key\n": -1,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		key, rest, err := keyFlag(file)
		if (err == nil) != (want >= 0) || want >= 0 && (len(rest) != want || !strings.HasPrefix(s.CheckpointKey(), fmt.Sprintf("%s+%08x", key.Name(), key.KeyHash()))) {
			t.Errorf("%q: %d former keys, %v", text, len(rest), err)
		}
	}
}
