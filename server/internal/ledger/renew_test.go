package ledger_test

import (
	"context"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
)

// backends are the server processes of the connections with a name.
func backends(t *testing.T, conn *pgx.Conn, application string) map[int]bool {
	t.Helper()
	rows, err := conn.Query(t.Context(), `SELECT pid FROM pg_stat_activity WHERE application_name = $1`, application)
	if err != nil {
		t.Fatal(err)
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		t.Fatal(err)
	}
	list := make(map[int]bool)
	for _, pid := range pids {
		list[pid] = true
	}
	return list
}

// A recovery that another process made ends the connections of before, so that nothing goes on over
// a server that was given up.
func TestRecoveryRenewsConnections(t *testing.T) {
	dsn := databases["postgres"](t)
	l := opened(t, dsn+"&application_name=first", patient)
	appended(t, l, 3)
	observer, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer observer.Close(context.WithoutCancel(t.Context()))
	before := backends(t, observer, "first")
	if len(before) == 0 {
		t.Fatal("no connection has the name")
	}
	l.Doubt(t.Context(), io.ErrUnexpectedEOF)
	recovered(t, dsn, ledger.Decision{Reason: "a test", CutOff: true})
	if err := l.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(15 * time.Second); ; { // a backend takes a moment to end
		left := 0
		for pid := range backends(t, observer, "first") {
			if before[pid] {
				left++
			}
		}
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d connections go on", left, len(before))
		}
	}
	appended(t, l, 1)
}

// switchboard is the address of a database that moves from one server to another. Connections that
// are open stay where they are, as with a name or a balancer that only leads new ones elsewhere.
type switchboard struct {
	net.Listener

	mu   sync.Mutex
	to   string
	open map[net.Conn]string // accepted connections, and where they lead
	all  sync.WaitGroup
}

func newSwitchboard(t *testing.T, to string) *switchboard {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &switchboard{Listener: l, to: to, open: make(map[net.Conn]string)}
	b.all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b.all.Go(func() { b.carry(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		b.cut("")
		b.all.Wait()
	})
	return b
}

func (b *switchboard) carry(conn net.Conn) {
	b.mu.Lock()
	to := b.to
	b.open[conn] = to
	b.mu.Unlock()
	defer func() {
		_ = conn.Close()
		b.mu.Lock()
		delete(b.open, conn)
		b.mu.Unlock()
	}()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() { _, _ = io.Copy(conn, server); _ = conn.Close() })
	_, _ = io.Copy(server, conn)
	_ = server.Close()
	back.Wait()
}

// cut ends the connections to a server; "": all.
func (b *switchboard) cut(to string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for conn, leads := range b.open {
		if to == "" || leads == to {
			_ = conn.Close()
		}
	}
}

func (b *switchboard) lead(to string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.to = to
}

func (b *switchboard) count(to string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, leads := range b.open {
		if leads == to {
			n++
		}
	}
	return n
}

func hostOf(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// reads holds several connections at once.
func reads(ctx context.Context, l *ledger.Ledger) {
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5 {
				_, _, _ = l.Search(ctx, tenant, ledger.Query{Limit: 10}) // may fail on the way
			}
		})
	}
	all.Wait()
}

// After a failover, the first new connection meets another server. It ends the connections to the
// former primary, which lives on and would answer with the past.
func TestFailoverRenewsConnections(t *testing.T) {
	primary := testservers.NewPostgres(t)
	ledgertest.Migrate(t, primary.DSN)
	former := hostOf(t, primary.DSN)
	board := newSwitchboard(t, former)
	moved, err := url.Parse(primary.DSN)
	if err != nil {
		t.Fatal(err)
	}
	moved.Host = board.Addr().String()
	l := opened(t, moved.String(), patient)
	appended(t, l, 3)
	standby := primary.Standby(t, "fast", true)
	if err := l.Probe(t.Context()); err != nil { // which writes down that commits wait
		t.Fatal(err)
	}
	appended(t, l, 1)
	for deadline := time.Now().Add(15 * time.Second); board.count(former) < 2; {
		if reads(t.Context(), l); time.Now().After(deadline) {
			t.Fatal("there is one connection only")
		}
	}
	standby.Promote(t)
	board.lead(hostOf(t, standby.DSN))
	if err := l.Meet(t.Context()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(15 * time.Second); board.count(former) > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections to the former primary go on", board.count(former))
		}
	}
	if err := l.Probe(t.Context()); err != nil { // as Beat does
		t.Fatal(err)
	}
	recovers(t, l)
	next := opened(t, standby.DSN, patient)
	if e, err := next.EntryAt(t.Context(), tenant, 5); err != nil || e.Seq != 5 {
		t.Errorf("what was appended after the failover is not on the new primary: %v", err)
	}
}
