package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
)

func TestWatch(t *testing.T) {
	f := newLedgerFeed()
	f.revoke(2)
	v := watch(t, revocations(t, serving(f)))
	v.hello("v1", 0)
	v.hears("snapshot 2 up to 2")
	v.mark(7, 2)
	v.hears("echo 7: 2")
	f.revoke(2)
	v.hears("event 3 after 2", "event 4 after 3")
	v.mark(8, 4)
	v.hears("echo 8: 4")
	if f.mu.Lock(); f.seen["v1"] != 4 {
		t.Errorf("receipts %v", f.seen)
	}
	f.mu.Unlock()
	if err := v.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := v.stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("hanging up: %v", err)
	}
}

func TestSnapshotComesInParts(t *testing.T) {
	f := newLedgerFeed()
	f.revoke(2*snapshotPart + 1)
	v := watch(t, revocations(t, serving(f)))
	v.hello("v1", 0)
	v.hears("part 1000", "part 1000", "snapshot 1 up to 2001")
}

// TestWatchEndsWithItsVerifier: the stream of a verifier that is revoked ends with that revocation.
// The verifier receives no later event.
func TestWatchEndsWithItsVerifier(t *testing.T) {
	f := newLedgerFeed()
	v := watch(t, revocations(t, serving(f)))
	v.hello("v1", 0)
	v.hears("snapshot 0 up to 0")
	f.mu.Lock()
	f.standing = delegation.Refuse(delegation.ClientUnauthenticated, "", "nobody")
	f.mu.Unlock()
	f.revoke(1)
	if _, err := v.stream.Recv(); delegation.FromStatus(err).Reason != delegation.ClientUnauthenticated {
		t.Errorf("the stream goes on: %v", err)
	}
}

// TestResume: a verifier that reconnects gets exactly what it missed. Where that is not in memory
// any more, or was never known here, it gets a snapshot.
func TestResume(t *testing.T) {
	f := newLedgerFeed()
	f.revoke(5)
	client := revocations(t, serving(f))
	v := watch(t, client)
	v.hello("v1", 3)
	v.hears("event 4 after 3", "event 5 after 4")
	v = watch(t, client)
	v.hello("v2", 5)
	v.mark(1, 5)
	v.hears("echo 1: 5")
	if snapshots, _ := f.asked(); snapshots != 0 {
		t.Errorf("%d snapshots for what is in memory", snapshots)
	}
	f.mu.Lock()
	f.forgotten = 4
	f.mu.Unlock()
	for _, unknown := range []uint64{3, 99} {
		v = watch(t, client)
		v.hello("v3", unknown)
		v.hears("snapshot 5 up to 5")
		v.mark(1, 5)
		v.hears("echo 1: 5")
	}
}

// TestGap: prev detects a log that leaves an event out. The verifier gets a snapshot instead.
func TestGap(t *testing.T) {
	f := newLedgerFeed()
	f.skip = 2
	v := watch(t, revocations(t, serving(f)))
	v.hello("v1", 0)
	v.hears("snapshot 0 up to 0")
	f.revoke(3)
	v.hears("event 1 after 0", "snapshot 3 up to 3")
}

// TestSlowReader: events that a slow reader has not read stay in its own stream. When it reads
// again and the log does not reach back far enough, it gets a snapshot. It never gets an event
// after a gap.
func TestSlowReader(t *testing.T) {
	f := newLedgerFeed()
	client := revocations(t, serving(f))
	slow, fast := watch(t, client), watch(t, client)
	for id, v := range map[string]*verifier{"slow": slow, "fast": fast} {
		v.hello(id, 0)
		v.hears("snapshot 0 up to 0")
	}
	const many = 20_000 // more than the windows and buffers of one stream hold
	for i := range many / 100 {
		f.revoke(100)
		for j := range 100 {
			n := 100*i + j
			fast.hears(fmt.Sprintf("event %d after %d", n+1, n))
		}
	}
	f.mu.Lock()
	f.forgotten = many
	f.mu.Unlock()
	f.revoke(1)
	fast.hears(fmt.Sprintf("event %d after %d", many+1, many))
	read, want := 0, uint64(0)
	for {
		m, err := slow.stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if part := m.GetSnapshot(); part != nil {
			if read == 0 || read >= many {
				t.Errorf("a snapshot after %d events", read)
			}
			if part.GetComplete() {
				return
			}
			continue
		}
		read++
		if m.GetEvent().GetPrev() != want {
			t.Fatalf("event %d after %d follows %d", m.GetEvent().GetSeq(), m.GetEvent().GetPrev(), want)
		}
		want = m.GetEvent().GetSeq()
	}
}

// TestNoEchoWithoutTheLedger: without an answer of the ledger no echo is sent, and no event is
// delayed.
func TestNoEchoWithoutTheLedger(t *testing.T) {
	f := newLedgerFeed()
	asked, hang := make(chan struct{}, 10), make(chan struct{})
	down := errors.New("down")
	f.last = func(ctx context.Context) error {
		asked <- struct{}{}
		select {
		case <-hang:
		case <-ctx.Done():
		}
		return down
	}
	v := watch(t, revocations(t, serving(f)))
	v.hello("v1", 0)
	v.hears("snapshot 0 up to 0")
	v.mark(1, 0)
	<-asked
	f.revoke(1)
	v.hears("event 1 after 0") // while the read hangs
	close(hang)                // and fails
	v.mark(2, 1)
	<-asked
	f.revoke(1)
	v.hears("event 2 after 1") // with no echo of 1 or 2 before it
	f.mu.Lock()
	f.last = func(context.Context) error { asked <- struct{}{}; panic("secret") }
	f.mu.Unlock()
	v.mark(3, 2)
	<-asked
	f.revoke(1)
	v.hears("event 3 after 2")
	f.mu.Lock()
	f.last = nil
	f.mu.Unlock()
	v.mark(4, 3)
	v.hears("echo 4: 3") // the ledger answers again
}

// TestEchoComesAfterWhatItCounts: the echo's number is read after the mark has arrived, and the
// events that it counts come before it.
func TestEchoComesAfterWhatItCounts(t *testing.T) {
	f := newLedgerFeed()
	v := watch(t, revocations(t, serving(f)))
	v.hello("v1", 0)
	v.hears("snapshot 0 up to 0")
	f.mu.Lock()
	// The read brings the memory up to date.
	f.last = func(context.Context) error { f.revoke(2); return nil }
	f.mu.Unlock()
	v.mark(1, 0)
	v.hears("event 1 after 0", "event 2 after 1", "echo 1: 2")
}

// TestMarkFlood: marks that arrive while the ledger is read cause one read and one echo, of the
// newest.
func TestMarkFlood(t *testing.T) {
	f := newLedgerFeed()
	asked, answer := make(chan struct{}), make(chan struct{})
	f.last = func(context.Context) error { asked <- struct{}{}; <-answer; return nil }
	v := watch(t, revocations(t, serving(f)))
	v.hello("v1", 0)
	v.hears("snapshot 0 up to 0")
	v.mark(1, 0)
	<-asked
	const flood = 5000
	for nonce := uint64(2); nonce <= flood; nonce++ {
		v.mark(nonce, nonce)
	}
	arrived := func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.seen["v1"] == flood }
	for began := time.Now(); !arrived(); <-time.After(time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatal("the marks do not arrive")
		}
	}
	answer <- struct{}{}
	v.hears("echo 1: 0")
	<-asked
	answer <- struct{}{}
	if got := v.heard(); got != fmt.Sprintf("echo %d: 0", flood) && got != fmt.Sprintf("echo %d: 0", flood-1) {
		t.Errorf("heard %q", got) // one less: the last event was counted and not in its place yet
	}
	if _, questions := f.asked(); questions > 3 {
		t.Errorf("%d questions for %d marks", questions, flood)
	}
}

func TestHello(t *testing.T) {
	hello := func(id string) *deputyv1.WatchRevocationsRequest {
		return &deputyv1.WatchRevocationsRequest{Message: &deputyv1.WatchRevocationsRequest_Hello{Hello: &deputyv1.WatchHello{Id: id}}}
	}
	mark := &deputyv1.WatchRevocationsRequest{Message: &deputyv1.WatchRevocationsRequest_Mark{Mark: &deputyv1.WatchMark{}}}
	unknown := hello("v1")
	unknown.GetHello().ProtoReflect().SetUnknown([]byte{0x80, 0x7d, 1})
	for name, c := range map[string]struct {
		send []*deputyv1.WatchRevocationsRequest
		want string
	}{
		"a mark first":          {[]*deputyv1.WatchRevocationsRequest{mark}, "end: parameter_missing"},
		"an empty message":      {[]*deputyv1.WatchRevocationsRequest{{}}, "end: parameter_missing"},
		"no id":                 {[]*deputyv1.WatchRevocationsRequest{hello("")}, "end: parameter_invalid"},
		"an id with a newline":  {[]*deputyv1.WatchRevocationsRequest{hello("a\nb")}, "end: parameter_invalid"},
		"a field without name":  {[]*deputyv1.WatchRevocationsRequest{unknown}, "end: parameter_unsupported"},
		"two hellos":            {[]*deputyv1.WatchRevocationsRequest{hello("v1"), hello("v1")}, "end: parameter_invalid"},
		"nothing after a hello": {[]*deputyv1.WatchRevocationsRequest{hello("v1"), {}}, "end: parameter_invalid"},
	} {
		v := watch(t, revocations(t, serving(newLedgerFeed())))
		for _, m := range c.send {
			if err := v.stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
				t.Error(err)
			}
		}
		got := v.heard()
		if got == "snapshot 0 up to 0" {
			got = v.heard()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestHelloIsMissing: the server does not wait for a silent client.
func TestHelloIsMissing(t *testing.T) {
	server, conn := dial(t, serving(newLedgerFeed()))
	server.watchers.patience = time.Millisecond
	watch(t, deputyv1.NewRevocationServiceClient(conn)).hears("end: parameter_missing")
}

// TestEndings checks how a stream ends, and that the verifier can tell how to react.
func TestEndings(t *testing.T) {
	old := newLedgerFeed()
	old.until = time.Now()
	v := watch(t, revocations(t, serving(old)))
	v.hello("v1", 0)
	if got := v.heard(); got == "snapshot 0 up to 0" {
		v.hears("end: client_unauthenticated")
	} else if got != "end: client_unauthenticated" {
		t.Errorf("an old credential: %q", got)
	}

	dark := newLedgerFeed()
	dark.snapshot = delegation.Unavailable("ledger", errors.New("cause-secret"))
	v = watch(t, revocations(t, serving(dark)))
	v.hello("v1", 0)
	v.hears("end: unavailable")

	closed := newLedgerFeed()
	closed.closed = true
	v = watch(t, revocations(t, serving(closed)))
	v.hello("v1", 0)
	v.hears("snapshot 0 up to 0", "end: unavailable")

	refusing := granting()
	refusing.watch = func(context.Context, exchange.Inquiry) (Feed, error) {
		return nil, delegation.Refuse(delegation.ClientUnauthenticated, "", "who?")
	}
	watch(t, revocations(t, Config{Engine: refusing})).hears("end: client_unauthenticated")
	// The engine here has no script for watches.
	watch(t, revocations(t, Config{Engine: granting()})).hears("end: internal")
}

// TestStreamsAreLogged: a stream that panics ends as an internal error without details, and every
// stream of deputy.v1 is one line in the log.
func TestStreamsAreLogged(t *testing.T) {
	var log bytes.Buffer
	f := newLedgerFeed()
	config := serving(f)
	config.Logger = slog.New(slog.NewJSONHandler(&log, nil))
	server, conn := dial(t, config)
	client := deputyv1.NewRevocationServiceClient(conn)
	v := watch(t, client)
	v.hello("v1", 0)
	v.hears("snapshot 0 up to 0")
	f.mu.Lock()
	f.skip = crashes
	f.mu.Unlock()
	f.revoke(1)
	v.hears("end: internal")
	v = watch(t, client)
	v.hello("a\nsecret", 0)
	v.hears("end: parameter_invalid")
	server.Drain(t.Context()) // the log is complete
	text := log.String()
	if strings.Count(text, `"grpc call"`) != 2 || !strings.Contains(text, `"reason":"internal"`) || !strings.Contains(text, `"stack"`) || strings.Contains(text, "secret") {
		t.Error(text)
	}
}

// TestWatchersGiveTheirPlacesBack: a stream frees its place once, however it ends. A stream that
// gets no place is refused with a time for the next try.
func TestWatchersGiveTheirPlacesBack(t *testing.T) {
	f := newLedgerFeed()
	var full error
	engine := granting()
	engine.watch = func(context.Context, exchange.Inquiry) (Feed, error) { return f, full }
	client := revocations(t, Config{Engine: engine})
	first := watch(t, client)
	first.hello("v1", 0)
	first.hears("snapshot 0 up to 0")
	if n := f.gone(); n != 0 {
		t.Fatalf("%d places were given back before their streams ended", n)
	}
	if err := first.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := first.stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	broken := watch(t, client)
	broken.hello("a\nsecret", 0)
	broken.hears("end: parameter_invalid")
	if n := f.gone(); n != 2 {
		t.Errorf("%d places were given back, want 2", n)
	}
	full = delegation.Refuse(delegation.RateLimited, "", "no place")
	watch(t, client).hears("end: rate_limited")
	if n := f.gone(); n != 2 {
		t.Errorf("a stream without a place gave one back: %d", n)
	}
}

// TestDrainEndsWatchers: a drain waits for no verifier, whatever the state of its stream.
func TestDrainEndsWatchers(t *testing.T) {
	f := newLedgerFeed()
	hang := make(chan struct{})
	f.last = func(ctx context.Context) error { close(hang); <-ctx.Done(); return ctx.Err() }
	engine := granting()
	var arrived atomic.Int32
	engine.watch = func(context.Context, exchange.Inquiry) (Feed, error) { arrived.Add(1); return f, nil }
	server, conn := dial(t, Config{Engine: engine})
	client := deputyv1.NewRevocationServiceClient(conn)
	silent, idle, asking := watch(t, client), watch(t, client), watch(t, client)
	for _, v := range []*verifier{idle, asking} {
		v.hello("v", 0)
		v.hears("snapshot 0 up to 0")
	}
	asking.mark(1, 0)
	<-hang
	for arrived.Load() < 3 { // the silent one has arrived
		<-time.After(time.Millisecond)
	}
	server.Drain(t.Context())
	for _, v := range []*verifier{silent, idle, asking} {
		v.hears("end: unavailable")
	}
	server.Drain(t.Context()) // a second time does nothing
}

// TestThousandWatchers: a thousand verifiers over ten connections receive a revocation together,
// and their echoes.
func TestThousandWatchers(t *testing.T) {
	const connections, each = 10, 100
	f := newLedgerFeed()
	f.revoke(10)
	config := serving(f)
	var ready, told, echoed sync.WaitGroup
	revoked := make(chan struct{})
	server, first := dial(t, config)
	conns := []*grpc.ClientConn{first}
	for len(conns) < connections {
		conns = append(conns, redial(t, server))
	}
	for c, conn := range conns {
		for i := range each {
			v := watch(t, deputyv1.NewRevocationServiceClient(conn))
			ready.Add(1)
			told.Add(1)
			echoed.Go(func() {
				v.hello(fmt.Sprint("v", c*each+i), 0)
				if got := v.heard(); got != "snapshot 10 up to 10" {
					t.Error(got)
				}
				ready.Done()
				<-revoked
				if got := v.heard(); got != "event 11 after 10" {
					t.Error(got)
				}
				told.Done()
				v.mark(1, 11)
				if got := v.heard(); got != "echo 1: 11" {
					t.Error(got)
				}
			})
		}
	}
	ready.Wait()
	began := time.Now()
	f.revoke(1)
	close(revoked)
	told.Wait()
	heard := time.Since(began)
	echoed.Wait()
	t.Logf("%d watchers heard of a revocation within %s, and of their marks within %s", connections*each, heard, time.Since(began))
	// The bound is for a busy machine under the race detector. The usual time is a tenth of a
	// second.
	if heard > 5*time.Second {
		t.Errorf("it took %s", heard)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.seen) != connections*each {
		t.Errorf("%d receipts", len(f.seen))
	}
}

// TestResumeOfAnotherIncarnation: a number of an abandoned ledger has no meaning in this one.
func TestResumeOfAnotherIncarnation(t *testing.T) {
	f := newLedgerFeed()
	f.revoke(5)
	v := watch(t, revocations(t, serving(f)))
	hello := &deputyv1.WatchHello{Id: "v1", ResumeAfter: 3, Incarnation: 9}
	if err := v.stream.Send(&deputyv1.WatchRevocationsRequest{Message: &deputyv1.WatchRevocationsRequest_Hello{Hello: hello}}); err != nil {
		t.Fatal(err)
	}
	v.hears("snapshot 5 up to 5")
}
