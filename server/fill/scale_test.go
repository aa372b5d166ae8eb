package fill_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/server/fill"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/testservers"
)

// TestScale prints how long auditors wait, with a million entries in a campaign. It asserts what
// they get, not when: figures depend on the machine.
func TestScale(t *testing.T) {
	entries := testservers.Campaign(1_000_000, 5_000)
	rounds := testservers.Campaign(300, 3)
	for _, kind := range []string{"sqlite", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			dsn := database(t, kind)
			start := time.Now()
			summary, err := fill.Run(t.Context(), dsn, fill.Options{Tenant: "acme", Entries: entries, Seed: testservers.Seed(t)})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d entries in %s", summary.Entries, time.Since(start).Round(time.Millisecond))
			wantIndexed(t, dsn)
			figures, err := fill.Measure(t.Context(), dsn, fill.Measuring{Tenant: "acme", Summary: summary, Rounds: rounds, Seed: testservers.Seed(t)})
			if err != nil {
				t.Fatal(err)
			}
			var table strings.Builder
			if err := fill.Print(&table, figures); err != nil {
				t.Fatal(err)
			}
			t.Logf("\n%s", &table)
			if len(figures) < 20 {
				t.Errorf("%d questions", len(figures))
			}
			for _, f := range figures {
				want := map[string]int{"chain, deepest": summary.Depth, "descendants, all": 1000, "search all": 50, "search subject": 50, "search unknown": 0}
				if rows, fixed := want[f.Question]; fixed && f.Rows != rows || !fixed && f.Rows == 0 && f.Question != "search busy subject, other's trace" {
					t.Errorf("%s: %d rows", f.Question, f.Rows)
				}
				if f.P50 <= 0 || f.P99 < f.P50 || f.Max < f.P99 {
					t.Errorf("%s: p50 %s, p99 %s, max %s", f.Question, f.P50, f.P99, f.Max)
				}
			}
		})
	}
}

// wantIndexed wants a filled ledger to be what months of service leave: what is searched for is looked up.
func wantIndexed(t *testing.T, dsn string) {
	t.Helper()
	l, err := ledger.Open(t.Context(), dsn, ledger.Config{Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if whole, err := l.IndexBuilt(t.Context(), "acme"); err != nil || !whole {
		t.Errorf("the search index is built: %t, %v", whole, err)
	}
}

// auditor signs the log's checkpoints and verifies exports of it.
type auditor struct {
	*testing.T
	*ledger.Ledger
	signer note.Signer
	key    note.Verifier
}

func newAuditor(t *testing.T, l *ledger.Ledger) *auditor {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, "deputy.example")
	if err != nil {
		t.Fatal(err)
	}
	a := &auditor{T: t, Ledger: l}
	if a.signer, err = note.NewSigner(private); err != nil {
		t.Fatal(err)
	}
	if a.key, err = note.NewVerifier(public); err != nil {
		t.Fatal(err)
	}
	return a
}

// export is the log as `deputy log export` writes it.
func (a *auditor) export() []byte {
	a.Helper()
	var lines bytes.Buffer
	add := func(v json.Marshaler) {
		line, err := v.MarshalJSON()
		if err != nil {
			a.Fatal(err)
		}
		lines.Write(append(line, '\n'))
	}
	dropped, there, err := a.Dropped(a.Context(), "acme")
	if err != nil {
		a.Fatal(err)
	}
	if there {
		add(dropped)
	}
	for _, e := range entries(a.T, a.Ledger) {
		r := e.Record()
		add(&r)
	}
	return lines.Bytes()
}

func (a *auditor) verify(export []byte, checkpoint string) (audit.Report, error) {
	return audit.VerifyLog(a.Context(), bytes.NewReader(export), audit.Options{Key: a.key, Checkpoint: checkpoint})
}

// TestWhatIsLeftVerifies has an auditor verify the export of a busy ledger, of one in which a
// principal was erased, and of what is left when the older half was dropped: always against the
// checkpoint that was signed before all that.
func TestWhatIsLeftVerifies(t *testing.T) {
	for _, kind := range []string{"sqlite", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			l, summary, dsn := filled(t, kind, 3)
			a := newAuditor(t, l)
			size, root, err := l.Tree(t.Context(), "acme")
			if err != nil {
				t.Fatal(err)
			}
			checkpoint, err := audit.Checkpoint{Origin: "deputy.example", Size: size, Root: root, Time: until}.Sign(a.signer)
			if err != nil {
				t.Fatal(err)
			}
			if report, err := a.verify(a.export(), checkpoint); err != nil || report.Last != size || report.Erased != 0 {
				t.Fatalf("before: %+v, %v", report, err)
			}
			erased, err := l.Erase(t.Context(), "acme", ledger.Erasure{Principal: summary.Subject})
			if err != nil || erased.Entries == 0 || erased.Deferred == 0 {
				t.Errorf("erased %+v, %v", erased, err)
			}
			if report, err := a.verify(a.export(), checkpoint); err != nil || report.Erased != uint64(erased.Fields) {
				t.Errorf("after the erasure of %d fields: %+v, %v", erased.Fields, report, err)
			}

			// Tokens of the fill live for half a day, revocations for one: nothing of that age is
			// alive.
			old, through := ledger.Retention{Personal: 24 * time.Hour, Entries: 12 * 24 * time.Hour}, uint64(0)
			for _, e := range entries(t, l) {
				if e.Time.Before(until.Add(-old.Entries)) {
					through = e.Seq / 512 * 512
				}
			}
			forgetting, err := ledger.Open(t.Context(), dsn, ledger.Config{
				Now: func() time.Time { return until }, Timeout: 20 * time.Second, Retention: map[string]ledger.Retention{"acme": old},
			})
			if err != nil {
				t.Fatal(err)
			}
			keepUntilDropped(t, forgetting, through)
			export := a.export()
			report, err := a.verify(export, checkpoint)
			if err != nil || through == 0 || report.First != through+1 || report.Last != size {
				t.Errorf("after dropping: %+v, %v", report, err)
			}
			var bad *audit.BadEntry
			_, rest, _ := bytes.Cut(export, []byte("\n"))
			if _, err := a.verify(rest, checkpoint); !errors.As(err, &bad) {
				t.Errorf("without the line that says what was dropped: %v", err)
			}
			if _, err := a.verify(bytes.Replace(export, []byte(`"hashes":["`), []byte(`"hashes":["AAAA`), 1), checkpoint); err == nil {
				t.Error("a forged line passes")
			}
		})
	}
}

// keepUntilDropped runs what an instance runs in the background, until it has dropped so many
// entries.
func keepUntilDropped(t *testing.T, l *ledger.Ledger, through uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	kept := make(chan error, 1)
	go func() { kept <- l.Maintain(ctx, "acme") }()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for ; ; <-again.C {
		dropped, _, err := l.Dropped(ctx, "acme")
		if err != nil {
			t.Fatal(err)
		}
		if dropped.Through >= through {
			break
		}
	}
	cancel()
	if err := errors.Join(<-kept, l.Close()); err != nil {
		t.Error(err)
	}
}
