package ledger_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
)

// records is a source of random drafts and queries over so few values that they often meet.
type records struct {
	*rand.Rand
	*ledgertest.Clock
	start time.Time
}

func newRecords(t testing.TB) *records {
	c := ledgertest.NewClock()
	return &records{rand.New(rand.NewPCG(testservers.Seed(t), 1)), c, c.Now()}
}

func (r *records) pick(name string, n int) string { return fmt.Sprintf("%s-%d", name, r.IntN(n)) }

func (r *records) agent() delegation.Principal {
	return delegation.Principal("agent:" + r.pick("a", 12))
}

// key is the thumbprint of one of a few keys.
func (r *records) key() string {
	sum := sha256.Sum256([]byte(r.pick("key", 9)))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// peer is one of a few addresses, of either family, with one of a few ports.
func (r *records) peer() string {
	return net.JoinHostPort([]string{"192.0.2.1", "192.0.2.11", "2001:db8::1"}[r.IntN(3)], strconv.Itoa(4000+r.IntN(3)))
}

func (r *records) reason() delegation.Reason {
	return []delegation.Reason{delegation.AccessDenied, delegation.ActorInChain, delegation.TokenRevoked}[r.IntN(3)]
}

func (r *records) draft() *ledger.Draft {
	d := ledgertest.Grant(r.Add(time.Duration(r.IntN(2000))*time.Millisecond), delegation.Principal("user:"+r.pick("u", 20)), r.agent())
	d.Caller = r.agent()
	d.TraceID = r.pick("trace", 300)
	d.HolderKey, d.Peer = r.key(), r.peer()
	if r.IntN(8) == 0 {
		d.Txn = "txn-" + r.pick("long", 4)
	}
	d.Scopes, _ = delegation.NewScopes(r.pick("scope", 6), r.pick("scope", 6))
	d.Audiences = []string{r.pick("https://aud", 5), `odd "aud|ience", ` + r.pick("x", 2)}
	for range r.IntN(3) {
		if a := r.agent(); a != d.Actor {
			d.Actors = append(delegation.Chain{a}, d.Actors...)
		}
	}
	switch r.IntN(6) {
	case 0:
		d = &ledger.Draft{Kind: ledger.KindRefusal, Reason: r.reason(), Subject: d.Subject, Actor: d.Actor, Caller: d.Caller, Scopes: d.Scopes, Peer: d.Peer, Txn: d.Txn}
	case 1:
		d = &ledger.Draft{Kind: ledger.KindCheck, Outcome: ledger.Granted, Subject: d.Subject, Caller: d.Caller, Audiences: d.Audiences}
	}
	return d
}

// append records n drafts.
func (r *records) append(t testing.TB, l *ledger.Ledger, n int) {
	t.Helper()
	for n > 0 {
		drafts := make([]*ledger.Draft, min(n, 1+r.IntN(256)))
		for i := range drafts {
			drafts[i] = r.draft()
		}
		for _, result := range l.AppendAll(t.Context(), tenant, drafts, nil) {
			if result.Err != nil {
				t.Fatal(result.Err)
			}
		}
		n -= len(drafts)
	}
}

func (r *records) query(known []*ledger.Entry) ledger.Query {
	head := uint64(len(known))
	q := ledger.Query{Limit: []int{1, 7, 100, 1000}[r.IntN(4)], Before: 1 + r.Uint64N(head+1)}
	if r.IntN(4) > 0 {
		q.Before = head + 1
	}
	for range min(r.IntN(20), 1+r.IntN(3)) { // rarely none
		switch r.IntN(15) {
		case 0:
			q.Subject = delegation.Principal("user:" + r.pick("u", 21))
		case 1:
			q.Actor = r.agent()
		case 2:
			q.Caller = r.agent()
		case 3:
			q.Audience = r.pick("https://aud", 5)
		case 4:
			q.Scope = r.pick("scope", 6)
		case 5:
			q.Kind = []ledger.Kind{ledger.KindGrant, ledger.KindRefusal, ledger.KindCheck, ledger.KindVoid}[r.IntN(4)]
		case 6:
			q.Outcome = []ledger.Outcome{ledger.Granted, ledger.Refused, ledger.Done}[r.IntN(3)]
		case 7:
			q.Reason = r.reason()
		case 8:
			q.TraceID = r.pick("trace", 301)
		case 9:
			q.From = r.moment()
		case 10:
			q.Until = r.moment()
		case 11:
			q.Key = r.key()
		case 12:
			q.Peer = []string{r.peer(), "192.0.2.1", "2001:db8::1", "192.0.2"}[r.IntN(4)]
		case 13:
			q.Txn = "txn-" + r.pick("long", 5)
		case 14:
			q.ID = known[r.IntN(len(known))].ID
		}
	}
	return q
}

// moment is at some time of the test, a little before or after too.
func (r *records) moment() time.Time {
	span := r.Now().Sub(r.start) + 2*time.Second
	return r.start.Add(time.Duration(r.Int64N(int64(span)))).Add(-time.Second)
}

// all reads the ledger entry by entry.
func all(t testing.TB, l *ledger.Ledger) (list []*ledger.Entry) {
	t.Helper()
	for {
		page, err := l.Entries(t.Context(), tenant, uint64(len(list)), 1000)
		if err != nil {
			t.Fatal(err)
		}
		if list = append(list, page...); len(page) == 0 {
			return list
		}
	}
}

// differs asks random queries until the answer is not what a filter over all entries gives.
func differs(t testing.TB, r *records, l *ledger.Ledger, entries []*ledger.Entry, n int) string {
	t.Helper()
	for range n {
		q := r.query(entries)
		var want []*ledger.Entry
		for _, e := range slices.Backward(entries) {
			if ledgertest.Matches(q, e) {
				want = append(want, e)
			}
		}
		q.Limit = max(q.Limit, len(want)/6) // not all day
		got := ledgertest.Search(t, func(q ledger.Query) ([]*ledger.Entry, uint64, error) { return l.Search(t.Context(), tenant, q) }, q)
		if ledgertest.Numbers(got) != ledgertest.Numbers(want) {
			return fmt.Sprintf("%+v found\n%s, want\n%s", q, ledgertest.Numbers(got), ledgertest.Numbers(want))
		}
	}
	return ""
}

func rounds() int { return testservers.Campaign(1000, 5) }

// damages are what may happen to an index of three blocks and more.
var damages = map[string]string{
	"rows of a block are gone":                 `DELETE FROM postings WHERE block = 1`,
	"rows are gone here and there":             `DELETE FROM postings WHERE (bucket + block) % 7 = 3`,
	"all rows are gone":                        `DELETE FROM postings`,
	"a row is cut short":                       `UPDATE postings SET terms = substr(terms, 1, length(terms) - 9) WHERE block = 1 AND length(terms) > 9`,
	"rows are empty":                           `UPDATE postings SET terms = substr(terms, 1, 0) WHERE block = 2`,
	"rows are another block's":                 `UPDATE postings SET terms = (SELECT terms FROM postings p WHERE p.tenant = postings.tenant AND p.bucket = postings.bucket AND p.block = 0) WHERE block = 1`,
	"rows are another bucket's":                `UPDATE postings SET terms = (SELECT terms FROM postings p WHERE p.tenant = postings.tenant AND p.bucket = (postings.bucket + 1) % 64 AND p.block = postings.block)`,
	"the index claims more blocks than it has": `UPDATE search_heads SET block = block + 1000`,
	"the end of the index is lost":             `DELETE FROM search_heads`,
}

// TestSearchEqualsFilter compares Search with a filter over all entries, whatever the index has and
// whatever became of it.
func TestSearchEqualsFilter(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		r := newRecords(t)
		config := patient
		config.Now = r.Now
		l := opened(t, dsn, config)
		r.append(t, l, 3*ledger.BlockSize+100)
		entries := all(t, l)
		check := func(state string) {
			t.Helper()
			if d := differs(t, r, l, entries, rounds()); d != "" {
				t.Errorf("%s: %s", state, d)
			}
		}
		check("nothing is indexed")
		l.BuildIndex(t, tenant, 1)
		check("one block is indexed")
		l.BuildIndex(t, tenant, 100)
		check("everything is indexed")
		if n := l.Lost(tenant); n > 0 {
			t.Fatalf("%d blocks of a new index are damaged", n)
		}
		for what, statement := range damages {
			execute(t, dsn, statement)
			check(what)
			// Each search finds some of the damage. What it finds is mended, until nothing is left
			// of it.
			for pass := 1; l.Lost(tenant) > 0; pass++ {
				if pass > 10 {
					t.Fatalf("%s: %d blocks are still damaged", what, l.Lost(tenant))
				}
				mended(t, l)
				check(what + ", and it was mended")
			}
			execute(t, dsn, `DELETE FROM search_heads`) // what no query asked for
			l.BuildIndex(t, tenant, 100)
		}
		r.append(t, l, ledger.BlockSize)
		entries = all(t, l)
		check("the index is behind")
	})
}

// TestIndexDoesNotRunAhead has the index claim to cover a block which is not full yet: what is
// appended to that block later must not be missed.
func TestIndexDoesNotRunAhead(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		r := newRecords(t)
		l := opened(t, dsn, patient)
		r.append(t, l, ledger.BlockSize+100)
		l.BuildIndex(t, tenant, 100)
		execute(t, dsn, damages["the index claims more blocks than it has"])
		for range 2 {
			if d := differs(t, r, l, all(t, l), 60); d != "" {
				t.Error(d)
			}
			if err := l.Reindex(t.Context(), tenant, 1); err != nil {
				t.Fatal(err)
			}
			r.append(t, l, 100)
		}
	})
}

// mended runs Maintain until no block is known to be damaged.
func mended(t *testing.T, l *ledger.Ledger) {
	t.Helper()
	keeping(t, l, func() bool { return l.Lost(tenant) == 0 })
}

// keeping runs Maintain until the condition holds.
func keeping(t *testing.T, l *ledger.Ledger, until func() bool) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Maintain(ctx, "empty", tenant) }()
	for deadline := time.Now().Add(30 * time.Second); !until(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("Maintain did not do it in time")
			break
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Maintain: %v", err)
	}
}

// TestLostPostingsAreNoticed loses the rows of one block.
func TestLostPostingsAreNoticed(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		r := newRecords(t)
		l := opened(t, dsn, patient)
		r.append(t, l, 3*ledger.BlockSize)
		l.BuildIndex(t, tenant, 100)
		execute(t, dsn, damages["rows of a block are gone"])
		if d := differs(t, r, l, all(t, l), 50); d != "" {
			t.Error(d)
		}
	})
}

// TestIndexOnlyProposes changes entries under an index that still has what they were.
func TestIndexOnlyProposes(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		r := newRecords(t)
		l := opened(t, dsn, patient)
		r.append(t, l, 2*ledger.BlockSize)
		l.BuildIndex(t, tenant, 100)
		execute(t, dsn, `UPDATE entries SET subject = '', caller = '' WHERE seq % 3 = 0`)
		execute(t, dsn, `DELETE FROM entries WHERE seq <= 100`) // as retention does
		q := ledger.Query{Subject: "user:u-1", Limit: 50}
		found := func() (n int) {
			for _, e := range ledgertest.Search(t, func(q ledger.Query) ([]*ledger.Entry, uint64, error) { return l.Search(t.Context(), tenant, q) }, q) {
				if e.Subject != q.Subject {
					n++
				}
			}
			return n
		}
		proposed := func() (n int) {
			for _, seq := range l.Proposed(t, tenant, q) {
				if e, err := l.EntryAt(t.Context(), tenant, seq); err == nil && e.Subject != q.Subject {
					n++
				}
			}
			return n
		}
		if n := found(); n > 0 {
			t.Errorf("%d entries were found that do not match", n)
		}
		if proposed() == 0 {
			t.Error("what is proposed always matches, so nothing was shown")
		}
		for block := range uint64(2) {
			if err := l.Reindex(t.Context(), tenant, block); err != nil {
				t.Fatal(err)
			}
		}
		if n := proposed(); n > 0 {
			t.Errorf("after the blocks were indexed again, %d of the old values are still in the index", n)
		}
	})
}

// TestErasedWhileIndexing has entries change after a builder has read them: it must not write what
// it read.
func TestErasedWhileIndexing(t *testing.T) {
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			dsn, r := database(t), newRecords(t)
			between := "before update search_heads set block = block where"
			if name == "sqlite" {
				between = "before begin" // later it has the lock
			}
			f := &faults{}
			l := openedWith(t, dsn, patient, f.at)
			r.append(t, l, ledger.BlockSize)
			l.BuildIndex(t, tenant, 100)
			q := ledger.Query{Subject: "user:u-1", Limit: 1}
			if len(l.Proposed(t, tenant, q)) == 0 {
				t.Fatal("the index proposes nothing, so nothing will be shown")
			}
			erase := once(between)
			f.set(func(point string) bool {
				if erase(point) {
					execute(t, dsn, strings.ReplaceAll(ledger.Unsettle, "$1", "'"+tenant+"'"))
					execute(t, dsn, `UPDATE entries SET subject = ''`)
				}
				return false
			})
			if err := l.Reindex(t.Context(), tenant, 0); err != nil {
				t.Fatal(err)
			}
			f.set(nil)
			if n := len(l.Proposed(t, tenant, q)); n > 0 {
				t.Errorf("the index proposes %d entries by what was erased", n)
			}
		})
	}
}

// TestIndexingFails makes each statement of the builder fail, before it was executed and after.
func TestIndexingFails(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		r, f := newRecords(t), &faults{}
		l := openedWith(t, dsn, patient, f.at)
		r.append(t, l, ledger.BlockSize)
		points := f.reached(func() { l.BuildIndex(t, tenant, 100) })
		// What the builder reads, the test asks for too: Indexed.
		points = slices.DeleteFunc(points, func(point string) bool { return strings.Contains(point, " select ") })
		const settle, postings = "update search_heads set block", "insert into postings"
		needed(t, points, "after insert into search_heads", "before "+settle, "after "+settle, "before "+postings, "after "+postings,
			"before begin", "after begin", "before commit", "after commit")
		for _, point := range points {
			execute(t, dsn, `DELETE FROM search_heads`)
			execute(t, dsn, `DELETE FROM postings`)
			f.set(once(point))
			keeping(t, l, func() bool { return l.Indexed(t, tenant) == 1 })
			f.set(nil)
			if d := differs(t, r, l, all(t, l), 10); d != "" {
				t.Errorf("after a fault %s: %s", point, d)
			}
			if n := l.Lost(tenant); n > 0 {
				t.Errorf("after a fault %s: %d damaged blocks", point, n)
			}
		}
	})
}

// TestSearchWhileBuilding searches while entries are appended and two instances build the index.
func TestSearchWhileBuilding(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		r := newRecords(t)
		config := patient
		config.Now = r.Now
		here, there := opened(t, dsn, config), opened(t, dsn, config)
		r.append(t, here, ledger.BlockSize+100)
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, l := range []*ledger.Ledger{here, there} {
			wg.Go(func() {
				if err := l.Maintain(ctx, tenant); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			writer := newRecords(t)
			writer.Clock = r.Clock
			for range testservers.Campaign(40, 8) {
				writer.append(t, there, 200)
			}
		})
		for range testservers.Campaign(100, 6) {
			if d := differs(t, r, here, all(t, here), 5); d != "" {
				t.Error(d)
				break
			}
		}
		stop()
		wg.Wait()
		if d := differs(t, r, there, all(t, there), rounds()); d != "" {
			t.Error(d)
		}
		if here.Lost(tenant)+there.Lost(tenant) > 0 {
			t.Error("blocks that were being built look damaged")
		}
		checked(t, here)
	})
}

// TestDescendantsOfALargeChain has more grants in one chain than one call looks at.
func TestDescendantsOfALargeChain(t *testing.T) {
	l := opened(t, databases["sqlite"](t), patient)
	now := time.Now()
	grant := func(drafts ...*ledger.Draft) (list []ledger.Receipt) {
		for _, r := range l.AppendAll(t.Context(), tenant, drafts, nil) {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			list = append(list, r.Receipt)
		}
		return list
	}
	root := grant(ledgertest.Grant(now, "user:alice", "agent:root"))[0]
	left, right := ledgertest.Child(now, root.Claims, "agent:left"), ledgertest.Child(now, root.Claims, "agent:right")
	halves := grant(left, right)
	want := map[uint64]int{}
	for range ledger.MostDescendants/100 + 1 {
		var drafts []*ledger.Draft
		for i := range 100 {
			drafts = append(drafts, ledgertest.Child(now, halves[i%2].Claims, "agent:leaf"))
		}
		for i, r := range grant(drafts...) {
			if i%2 == 1 {
				want[r.Seq] = 1
			}
		}
	}
	found, pages := map[uint64]int{}, 0
	for after := uint64(0); ; pages++ {
		page, next, err := l.Descendants(t.Context(), tenant, right.ID, after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range page {
			found[d.Seq] = d.Depth
		}
		if after = next; next == 0 {
			break
		}
	}
	if fmt.Sprint(found) != fmt.Sprint(want) || pages == 0 {
		t.Errorf("%d descendants on %d pages, want %d on more than one", len(found), pages+1, len(want))
	}
}

// TestSearchIsBounded has more entries without an index than one call reads.
func TestSearchIsBounded(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		stuff(t, dsn, ledger.MostRows+2*ledger.BlockSize)
		l := opened(t, dsn, patient)
		q := ledger.Query{Kind: ledger.KindGrant, Limit: 10}
		page, before, err := l.Search(t.Context(), tenant, q)
		if err != nil || len(page) > 0 || before == 0 || before > 3*ledger.BlockSize {
			t.Fatalf("the first page has %d entries and continues before %d, %v", len(page), before, err)
		}
		q.Before = before
		if page, before, err = l.Search(t.Context(), tenant, q); err != nil || len(page) > 0 || before != 0 {
			t.Errorf("the last page has %d entries and continues before %d, %v", len(page), before, err)
		}
		h, err := l.AgentView(t.Context(), tenant, "agent:a", 10)
		if err != nil || h.Truncated {
			t.Errorf("a tenant without claims has nothing to look for: %+v, %v", h, err)
		}
		execute(t, dsn, `INSERT INTO claims (tenant, seq, until, value) SELECT tenant, seq, 1, leaf FROM entries WHERE seq = 1`)
		if h, err = l.AgentView(t.Context(), tenant, "agent:a", 10); err != nil || !h.Truncated {
			t.Errorf("not everything was read, and the answer does not show it: %+v, %v", h, err)
		}
	})
}

// TestPruningReadsWhatItPrunes: an append must not walk through all that its tenant, or another,
// has used.
func TestPruningReadsWhatItPrunes(t *testing.T) {
	l := opened(t, databases["sqlite"](t), patient)
	for index, statement := range ledger.PruningStatements {
		if plan := l.Plan(t, statement); !strings.Contains(plan, index+" (tenant=? AND until>? AND until<?)") {
			t.Errorf("not by %s:\n%s", index, plan)
		}
	}
}

// TestPlansThatAreMadeEarly: PostgreSQL keeps a plan as long as the connection, and the first ones
// are made while there is as good as nothing in any table. They must be right for what comes.
func TestPlansThatAreMadeEarly(t *testing.T) {
	const appends, together = 40, 20
	dsn := databases["postgres"](t)
	execute(t, dsn, `ALTER TABLE idempotency_keys SET (autovacuum_enabled = off); ALTER TABLE single_uses SET (autovacuum_enabled = off);
		CREATE TABLE careless (LIKE idempotency_keys INCLUDING ALL) WITH (autovacuum_enabled = off)`)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	// The same without care: what the measuring must see.
	careless := func(i int) {
		_, err := conn.Exec(t.Context(), `INSERT INTO careless SELECT $1, sha256(($2::int * 1000 + n)::text::bytea), '', 1, 1 FROM generate_series(1, $3::int) n`, tenant, i, together)
		digests := make([][]byte, together)
		for j := range digests {
			digests[j] = bytes.Repeat([]byte{byte(j)}, 32)
		}
		if err == nil {
			_, err = conn.Exec(t.Context(), `SELECT fingerprint FROM careless WHERE tenant = $1 AND digest = ANY($2)`, tenant, digests)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	l, err := ledger.Open(t.Context(), dsn, patient)
	if err != nil {
		t.Fatal(err)
	}
	for i := range appends {
		drafts := make([]*ledger.Draft, together)
		for j := range drafts {
			drafts[j] = ledgertest.Grant(time.Now(), "user:alice", "agent:planner")
			drafts[j].Idempotency = &ledger.Idempotency{Key: fmt.Sprint(i, j), Until: time.Now().Add(time.Hour)}
		}
		use := ledger.SingleUse{Issuer: "https://idp.example", ID: strconv.Itoa(i), Until: time.Now().Add(time.Hour)}
		for _, r := range l.AppendAll(t.Context(), tenant, drafts, []ledger.SingleUse{use}) {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		}
		careless(i) // the sixth time makes the plan that is kept
	}
	if err := l.Close(); err != nil { // a connection reports its reads at the latest when it ends
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `SELECT pg_stat_force_next_flush()`); err != nil { // or when it is asked to
		t.Fatal(err)
	}
	read := func(tables ...string) (rows int) {
		err := conn.QueryRow(t.Context(), `SELECT sum(idx_tup_read) + (SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname = ANY($1))
			FROM pg_stat_user_indexes WHERE relname = ANY($1)`, tables).Scan(&rows)
		if err != nil {
			t.Fatal(err)
		}
		return rows
	}
	if rows := read("idempotency_keys", "single_uses"); rows > appends {
		t.Errorf("%d appends of %d drafts read %d rows of which they needed none", appends, together, rows)
	}
	if rows := read("careless"); rows < appends*together {
		t.Errorf("a statement that PostgreSQL planned badly read %d rows: this test sees nothing", rows)
	}
}

// A row from before the facet key lacks its terms, and must not look as if no entry had the key.
func TestRowsOfAnotherFormatAreNotBelieved(t *testing.T) {
	if !ledger.Believed(ledger.EmptyRow(tenant, 7, 3), tenant, 7, 3) {
		t.Error("the control: a row of today is not believed")
	}
	if ledger.Believed(ledger.RowBeforeFormats(tenant, 7, 3), tenant, 7, 3) {
		t.Error("a row from before is taken for whole")
	}
}
