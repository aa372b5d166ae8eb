package ledger_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
)

// evidence is a ledger with what an auditor has of it.
type evidence struct {
	*testing.T
	dsn    string
	tenant string // whose log it is: the database has others
	l      *ledger.Ledger
	signer note.Signer
	key    note.Verifier
	kept   []string // checkpoints, the newest last
}

const origin = "deputy.example/t/acme"

func gather(t *testing.T, dsn, tenant string) *evidence {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	ev := &evidence{T: t, dsn: dsn, tenant: tenant, l: opened(t, dsn, patient)}
	if ev.signer, err = note.NewSigner(private); err != nil {
		t.Fatal(err)
	}
	if ev.key, err = note.NewVerifier(public); err != nil {
		t.Fatal(err)
	}
	return ev
}

// live appends a chain, a refusal, a void and a revocation, n times: six entries each.
func (ev *evidence) live(n int) {
	ev.Helper()
	now := time.Now()
	for i := range n {
		user := delegation.Principal(fmt.Sprintf("user:u%d", i))
		parent := ev.append(ledgertest.Grant(now, user, "agent:planner"))
		ev.append(ledgertest.Child(now, parent.Claims, "agent:researcher"))
		ev.append(&ledger.Draft{Kind: ledger.KindRefusal, Caller: "agent:planner", Reason: delegation.ScopeExceedsParent, Detail: "a scope"})
		taken := ev.append(ledgertest.Child(now, parent.Claims, "agent:writer"))
		ev.append(&ledger.Draft{Kind: ledger.KindVoid, Caller: "agent:planner", Voids: taken.Seq})
		ev.append(ledgertest.Revocation(delegation.BanChain, ledgertest.Decode(parent.Claims).Txn))
	}
}

func (ev *evidence) append(d *ledger.Draft) ledger.Receipt {
	ev.Helper()
	r, err := ev.l.Append(ev.Context(), ev.tenant, d)
	if err != nil {
		ev.Fatal(err)
	}
	return r
}

// sign is what the server does: it signs what the head holds.
func (ev *evidence) sign() string {
	ev.Helper()
	size, root, err := ev.l.Tree(ev.Context(), ev.tenant)
	if err != nil {
		ev.Fatal(err)
	}
	text, err := audit.Checkpoint{Origin: origin, Size: size, Root: root, Time: time.Now()}.Sign(ev.signer)
	if err != nil {
		ev.Fatal(err)
	}
	return text
}

func (ev *evidence) keep() { ev.Helper(); ev.kept = append(ev.kept, ev.sign()) }

// export is the ledger as the auditor gets it, after the tampering.
func (ev *evidence) export() []byte {
	ev.Helper()
	var lines bytes.Buffer
	for after := uint64(0); ; {
		page, err := ev.l.Entries(ev.Context(), ev.tenant, after, 500)
		if err != nil {
			ev.Fatal(err)
		}
		if len(page) == 0 {
			return lines.Bytes()
		}
		for _, e := range page {
			r := e.Record()
			line, err := r.MarshalJSON()
			if err != nil {
				ev.Fatal(err)
			}
			lines.Write(append(line, '\n'))
			after = e.Seq
		}
	}
}

func (ev *evidence) verify(newest string, kept ...string) (audit.Report, error) {
	ev.Helper()
	return audit.VerifyLog(context.Background(), bytes.NewReader(ev.export()), audit.Options{Key: ev.key, Checkpoint: newest, Kept: kept})
}

// seq is the number of entries; entry loads one.
func (ev *evidence) entry(seq uint64) *ledger.Entry {
	ev.Helper()
	e, err := ev.l.EntryAt(ev.Context(), ev.tenant, seq)
	if err != nil {
		ev.Fatal(err)
	}
	return e
}

// execute runs statements of an attacker who can write to the database, in which @ is the
// tenant's rows.
func (ev *evidence) execute(statements ...string) {
	ev.Helper()
	execute(ev.T, ev.dsn, strings.ReplaceAll(strings.Join(statements, ";"), "@", "tenant = '"+ev.tenant+"'"))
}

func (ev *evidence) blob(b []byte) string {
	if strings.HasPrefix(ev.dsn, "sqlite") {
		return "x'" + hex.EncodeToString(b) + "'"
	}
	return `'\x` + hex.EncodeToString(b) + "'"
}

// rehash gives entries that were edited the leaves that their fields have now.
func (ev *evidence) rehash(first, last uint64) {
	ev.Helper()
	var statements []string
	for seq := first; seq <= last; seq++ {
		r := ev.entry(seq).Record()
		leaf := r.Leaf()
		statements = append(statements, fmt.Sprintf(`UPDATE entries SET leaf = %s WHERE @ AND seq = %d`, ev.blob(leaf[:]), seq))
	}
	ev.execute(statements...)
}

// truncate takes the database back to the state that it had when it was of this size: what an old
// backup has too.
func (ev *evidence) truncate(size uint64) {
	ev.Helper()
	var edge audit.Edge
	var revocation uint64
	for seq := uint64(1); seq <= size; seq++ {
		e := ev.entry(seq)
		edge.Add(e.Leaf, nil)
		if e.Revocation != nil {
			revocation = seq
		}
	}
	var tree []byte
	for _, h := range edge.Hashes {
		tree = append(tree, h[:]...)
	}
	ev.execute(
		fmt.Sprintf(`DELETE FROM entries WHERE @ AND seq > %d`, size), fmt.Sprintf(`DELETE FROM claims WHERE @ AND seq > %d`, size),
		fmt.Sprintf(`DELETE FROM tree_nodes WHERE @ AND n >= %d`, size/256),
		fmt.Sprintf(`UPDATE heads SET seq = %d, tree_size = %d, tree = %s, revocation = %d WHERE @`, size, size, ev.blob(tree), revocation),
	)
	ev.l = opened(ev.T, ev.dsn, patient) // the attacker restarts the server
	if err := ev.l.Verify(ev.Context(), ev.tenant); err != nil {
		ev.Fatalf("the backup is not one: %v", err)
	}
}

// TestTamperingIsFound changes the database behind the server's back. Checkpoints were kept at 12,
// 23, 24 and 36 entries. Without tampering the log verifies: that is the control of every case.
func TestTamperingIsFound(t *testing.T) {
	type tampering struct {
		tamper         func(*evidence)
		entry, through uint64
		rule           string
	}
	cases := map[string]tampering{
		"edit":                  {func(ev *evidence) { ev.execute(`UPDATE entries SET scopes = 'admin' WHERE @ AND seq = 14`) }, 14, 14, "leaf"},
		"edit a personal field": {func(ev *evidence) { ev.execute(`UPDATE entries SET subject = 'user:mallory' WHERE @ AND seq = 14`) }, 14, 14, "digest"},
		"edit a stored leaf": {func(ev *evidence) {
			ev.execute(`UPDATE entries SET leaf = (SELECT leaf FROM entries WHERE @ AND seq = 2) WHERE @ AND seq = 14`)
		}, 14, 14, "leaf"},
		"edit and re-hash": {func(ev *evidence) {
			ev.execute(`UPDATE entries SET model_id = 'another' WHERE @ AND seq = 15`)
			ev.rehash(15, 15)
		}, 13, 23, "root"},
		"edit and re-hash between close checkpoints": {func(ev *evidence) {
			ev.execute(`UPDATE entries SET model_id = 'another' WHERE @ AND seq = 24`)
			ev.rehash(24, 24)
		}, 24, 24, "root"},
		"widen and re-hash": {func(ev *evidence) {
			ev.execute(`UPDATE entries SET scopes = 'admin' WHERE @ AND seq = 14`)
			ev.rehash(14, 14)
		}, 14, 14, "I1"},
		"delete": {func(ev *evidence) { ev.execute(`DELETE FROM entries WHERE @ AND seq = 14`) }, 14, 14, "order"},
		"delete and renumber": {func(ev *evidence) {
			renumber := []string{`DELETE FROM claims WHERE @ AND seq >= 15`, `DELETE FROM entries WHERE @ AND seq = 15`}
			for seq := 16; seq <= 40; seq++ {
				renumber = append(renumber, fmt.Sprintf(`UPDATE entries SET seq = %d WHERE @ AND seq = %d`, seq-1, seq))
			}
			ev.execute(renumber...)
		}, 15, 15, "leaf"},
		"swap": {func(ev *evidence) {
			ev.execute(`UPDATE entries SET seq = 1000 WHERE @ AND seq = 14`, `UPDATE entries SET seq = 14 WHERE @ AND seq = 15`, `UPDATE entries SET seq = 15 WHERE @ AND seq = 1000`)
		}, 14, 14, "leaf"},
		"swap and re-hash": {func(ev *evidence) {
			ev.execute(`DELETE FROM claims WHERE @`, `UPDATE entries SET time = (SELECT max(time) FROM entries WHERE @) WHERE @ AND seq >= 3`,
				`UPDATE entries SET seq = 1000 WHERE @ AND seq = 14`, `UPDATE entries SET seq = 14 WHERE @ AND seq = 15`, `UPDATE entries SET seq = 15 WHERE @ AND seq = 1000`)
			ev.rehash(3, 40)
		}, 1, 12, "root"},
		"truncate the tail": {func(ev *evidence) { ev.truncate(30) }, 31, 40, "missing"},
		"re-hash a suffix": {func(ev *evidence) {
			ev.truncate(30)
			ev.live(2) // other entries, with leaves and tree as they should be
		}, 25, 36, "root"},
		"restore an old backup": {func(ev *evidence) {
			ev.truncate(12)
			ev.live(1)
		}, 19, 40, "missing"},
		"restore an old backup and go on": {func(ev *evidence) {
			ev.truncate(12)
			ev.live(5)
		}, 13, 23, "root"},
		"empty the database": {func(ev *evidence) { ev.truncate(0) }, 1, 40, "missing"},
	}
	onBoth(t, func(t *testing.T, dsn string) {
		for name, test := range cases {
			t.Run(name, func(t *testing.T) {
				ev := gather(t, dsn, name)
				ev.live(2)
				ev.keep() // 12
				ev.live(1)
				for range 5 {
					ev.append(&ledger.Draft{Kind: ledger.KindRefusal, Caller: "agent:planner", Reason: delegation.ScopeExceedsParent})
				}
				ev.keep() // 23
				ev.append(ledgertest.Grant(time.Now(), "user:bob", "agent:planner"))
				ev.keep() // 24
				ev.live(2)
				ev.keep() // 36
				for range 4 {
					ev.append(&ledger.Draft{Kind: ledger.KindRefusal, Caller: "agent:planner", Reason: delegation.ScopeExceedsParent})
				}
				newest := ev.sign() // 40
				if r, err := ev.verify(newest, ev.kept...); err != nil || r.Last != 40 || r.Kept != 4 || r.Uncovered != 0 {
					t.Fatalf("before the tampering: %+v, %v", r, err)
				}

				test.tamper(ev)
				_, err := ev.verify(newest, ev.kept...)
				var bad *audit.BadEntry
				if !errors.As(err, &bad) || bad.Entry != test.entry || bad.Through != test.through || bad.Rule != test.rule {
					t.Errorf("found %v, want entry %d to %d: %s", err, test.entry, test.through, test.rule)
				}
			})
		}
	})
}

// TestOnlyWhatWasKeptProvesTheSuffix is the control of the kept checkpoints: an attacker who can
// make the server sign a rewritten log is found by nothing else.
func TestOnlyWhatWasKeptProvesTheSuffix(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		ev := gather(t, dsn, tenant)
		ev.live(3)
		ev.keep()
		ev.truncate(12)
		ev.live(2)
		resigned := ev.sign()
		if _, err := ev.verify(resigned); err != nil {
			t.Errorf("a rewritten log, with leaves and tree as they should be, is inconsistent: %v", err)
		}
		if _, err := ev.verify(resigned, ev.kept...); err == nil {
			t.Error("the kept checkpoint found nothing")
		}
	})
}
