package audit_test

import (
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"deputy.example/deputy/client/audit"
)

// signer makes a key for checkpoints of a log with this origin.
func signer(t testing.TB, origin string) (note.Signer, note.Verifier) {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	return s, v
}

func TestCheckpointIsSignedAndStrict(t *testing.T) {
	const origin = "deputy.example/t/acme"
	key, verifier := signer(t, origin)
	stranger, _ := signer(t, origin)
	want := audit.Checkpoint{Origin: origin, Size: 41, Root: tlog.Hash{1}, Time: time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC)}
	text, err := want.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := audit.ParseCheckpoint(text, verifier); err != nil || got != want {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := tlog.ParseTree([]byte(strings.Replace(text, origin, "go.sum database tree", 1))); err != nil {
		t.Errorf("its lines are not where others look for size and root: %v", err)
	}
	if _, err := (audit.Checkpoint{Origin: "other.example", Size: 1}).Sign(key); err == nil {
		t.Error("signed for another log")
	}

	// A witness's signature beside ours does no harm.
	witnessed, err := note.Sign(&note.Note{Text: textOf(text)}, key, stranger)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.ParseCheckpoint(string(witnessed), verifier); err != nil {
		t.Errorf("with another signature: %v", err)
	}

	for name, body := range map[string]string{
		"no time":       "deputy.example/t/acme\n41\n" + want.Root.String() + "\n",
		"another line":  textOf(text) + "more\n",
		"size with 0":   strings.Replace(textOf(text), "\n41\n", "\n041\n", 1),
		"negative size": strings.Replace(textOf(text), "\n41\n", "\n-41\n", 1),
		"short root":    strings.Replace(textOf(text), want.Root.String(), "AAAA", 1),
		"local time":    strings.Replace(textOf(text), "Z\n", "+01:00\n", 1),
		"other origin":  strings.Replace(textOf(text), origin, "deputy.example/t/other", 1),
	} {
		signed, err := note.Sign(&note.Note{Text: body}, key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := audit.ParseCheckpoint(string(signed), verifier); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	foreign, err := want.Sign(stranger)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"another key": foreign, "changed": strings.Replace(text, "\n41\n", "\n42\n", 1), "unsigned": textOf(text), "empty": "",
	} {
		if _, err := audit.ParseCheckpoint(text, verifier); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// textOf is what a signed note signs.
func textOf(signed string) string {
	text, _, _ := strings.Cut(signed, "\n\n")
	return text + "\n"
}

// TestEdgeIsTheTree compares the running edge with the library's tree.
func TestEdgeIsTheTree(t *testing.T) {
	var all []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var list []tlog.Hash
		for _, index := range indexes {
			list = append(list, all[index])
		}
		return list, nil
	})
	var edge audit.Edge
	if root, err := tlog.TreeHash(0, reader); err != nil || root != edge.Root() {
		t.Errorf("the root of nothing is %v, want %v (%v)", edge.Root(), root, err)
	}
	for i := range int64(300) {
		leaf := tlog.RecordHash([]byte{byte(i), byte(i >> 8)})
		stored, err := tlog.StoredHashesForRecordHash(i, leaf, reader)
		if err != nil {
			t.Fatal(err)
		}
		first := len(all)
		all = append(all, stored...)
		nodes := 1
		edge.Add(leaf, func(n audit.Node) {
			if all[tlog.StoredHashIndex(n.Level, int64(n.N))] != n.Hash {
				t.Errorf("after %d leaves: node %+v", i+1, n)
			}
			nodes++
		})
		root, err := tlog.TreeHash(i+1, reader)
		if err != nil || edge.Root() != root || edge.Check() != nil || nodes != len(all)-first {
			t.Fatalf("after %d leaves: root %v, want %v (%v); %d nodes; %v", i+1, edge.Root(), root, err, nodes, edge.Check())
		}
	}
	edge.Size++
	if edge.Check() == nil && edge.Size&1 == 1 {
		t.Error("an edge of another size passes")
	}
}

// records draws any record, with any content; its digests and leaf match.
func records() *rapid.Generator[audit.Record] {
	text := rapid.StringN(0, 6, 12)
	moment := rapid.Custom(func(t *rapid.T) time.Time {
		if n := rapid.Int64Range(0, 4e15).Draw(t, "microseconds"); n > 0 {
			return time.UnixMicro(n).UTC()
		}
		return time.Time{}
	})
	return rapid.Custom(func(t *rapid.T) audit.Record {
		r := audit.Record{
			Tenant: text.Draw(t, "tenant"), Seq: rapid.Uint64().Draw(t, "seq"), Kind: text.Draw(t, "kind"), Time: moment.Draw(t, "time"),
			ID: text.Draw(t, "id"), Parent: text.Draw(t, "parent"), Txn: text.Draw(t, "txn"), Root: text.Draw(t, "root"),
			HolderKey: text.Draw(t, "key"), Outcome: text.Draw(t, "outcome"), Reason: text.Draw(t, "reason"),
			ModelID: text.Draw(t, "model"), TraceID: text.Draw(t, "trace"), Voids: rapid.Uint64().Draw(t, "voids"),
			Prev: rapid.Uint64().Draw(t, "prev"), TargetKind: text.Draw(t, "target kind"), TargetID: text.Draw(t, "target"),
			Expiry: moment.Draw(t, "expiry"), Until: moment.Draw(t, "until"),
			Scopes: rapid.SliceOfN(text, 0, 3).Draw(t, "scopes"), Audiences: rapid.SliceOfN(text, 0, 3).Draw(t, "audiences"),
		}
		for f := range audit.Fields {
			salt := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "salt")
			value := rapid.StringN(1, 6, 12).Draw(t, "value")
			digest := audit.Digest(salt, value)
			switch rapid.IntRange(0, 2).Draw(t, "there, erased or absent") {
			case 0:
				r.Personal[f] = audit.Personal{Value: value, Salt: salt, Digest: digest[:]}
			case 1:
				r.Personal[f] = audit.Personal{Digest: digest[:]}
			}
		}
		r.LeafHash = r.Leaf()
		return r
	})
}

// TestLinesAreTheRecord writes and reads lines: what comes back gives the same leaf.
func TestLinesAreTheRecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := records().Draw(t, "record")
		line, err := r.MarshalJSON()
		if err != nil || strings.ContainsAny(string(line), "\n\r") {
			t.Fatalf("%s, %v", line, err)
		}
		again, err := audit.ParseRecord(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if again.Leaf() != r.LeafHash || again.Verify() != nil {
			t.Fatalf("%s\nreads as %+v, not %+v: %v", line, again, r, again.Verify())
		}
		if second, err := again.MarshalJSON(); err != nil || string(second) != string(line) {
			t.Fatalf("%s\nis written again as %s (%v)", line, second, err)
		}
	})
}

// TestTamperedRecordsAreNoticed changes one thing at a time.
func TestTamperedRecordsAreNoticed(t *testing.T) {
	changes := map[string]func(*audit.Record) bool{
		"seq":      func(r *audit.Record) bool { r.Seq++; return true },
		"time":     func(r *audit.Record) bool { r.Time = r.Time.Add(time.Hour); return true },
		"scopes":   func(r *audit.Record) bool { r.Scopes = append(r.Scopes, "more"); return true },
		"audience": func(r *audit.Record) bool { r.Audiences = append(r.Audiences, ""); return true },
		"move":     func(r *audit.Record) bool { r.Txn, r.Root = r.Root, r.Txn; return r.Txn != r.Root },
		"leaf":     func(r *audit.Record) bool { r.LeafHash[31] ^= 1; return true },
		"value":    func(r *audit.Record) bool { r.Personal[0].Value += "x"; return true },
		"salt": func(r *audit.Record) bool {
			p := &r.Personal[1]
			if len(p.Salt) > 0 {
				p.Salt[0] ^= 1
			}
			return len(p.Salt) > 0
		},
		"digest": func(r *audit.Record) bool {
			p := &r.Personal[2]
			if len(p.Digest) > 0 {
				p.Digest[0] ^= 1
			}
			return len(p.Digest) > 0
		},
		"value without salt": func(r *audit.Record) bool {
			there := r.Personal[3].Value != ""
			r.Personal[3].Salt = nil
			return there
		},
		"salt without value": func(r *audit.Record) bool {
			there := r.Personal[4].Value != ""
			r.Personal[4].Value = ""
			return there
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				r := records().Draw(t, "record")
				if change(&r) && r.Verify() == nil {
					t.Fatalf("nothing was noticed: %+v", r)
				}
			})
		})
	}
}

func TestLinesAreReadStrictly(t *testing.T) {
	key := strings.Repeat("A", 43) + "="
	good := `{"version":"deputy-ledger-entry-v1","tenant":"acme","seq":1,"kind":"refusal","leaf":"` + key + `"}`
	if _, err := audit.ParseRecord([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, line := range map[string]string{
		"empty":           ``,
		"cut short":       good[:40],
		"more behind":     good + ` {}`,
		"unknown member":  strings.Replace(good, `"seq"`, `"sequel":1,"seq"`, 1),
		"repeated":        strings.Replace(good, `"seq":1`, `"seq":2,"seq":1`, 1),
		"other case":      strings.Replace(good, `"seq"`, `"Seq"`, 1),
		"other version":   strings.Replace(good, `v1`, `v2`, 1),
		"no leaf":         strings.Replace(good, key, ``, 1),
		"not UTF-8":       strings.Replace(good, `acme`, "\xff", 1),
		"nanoseconds":     strings.Replace(good, `"seq"`, `"time":"2026-11-22T01:02:03.456789001Z","seq"`, 1),
		"personal hobby":  strings.Replace(good, `"seq"`, `"personal":{"hobby":{"value":"x"}},"seq"`, 1),
		"dropped entries": `{"dropped":{"through":1,"hashes":["` + key + `"]}}`,
	} {
		if _, err := audit.ParseRecord([]byte(line)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	d := audit.Dropped{Through: 768, Hashes: []tlog.Hash{{1}, {2}}}
	line, err := d.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := audit.ParseDropped(line); err != nil || got.Through != d.Through || got.Hashes[1] != d.Hashes[1] {
		t.Errorf("%+v, %v", got, err)
	}
	for name, line := range map[string]string{
		"nothing":      `{"dropped":{"through":0,"hashes":[]}}`,
		"too few":      strings.Replace(string(line), `768`, `1792`, 1),
		"not a number": strings.Replace(string(line), `768`, `"768"`, 1),
		"short hash":   `{"dropped":{"through":1,"hashes":["AAAA"]}}`,
		"an entry":     good,
	} {
		if _, err := audit.ParseDropped([]byte(line)); err == nil {
			t.Errorf("dropped, %s: accepted", name)
		}
	}
}
