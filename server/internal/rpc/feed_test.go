package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
)

// ledgerFeed is a feed whose ledger follows a script. All streams of a test share one.
type ledgerFeed struct {
	mu        sync.Mutex
	log       []delegation.Revocation
	forgotten uint64 // the log begins after this number
	changed   chan struct{}
	closed    bool
	snapshots int
	questions int
	seen      map[string]uint64

	left     int   // streams that freed their place
	standing error // of the verifier from now on
	until    time.Time
	last     func(context.Context) error // called before Last answers
	horizon  time.Time
	snapshot error
	skip     uint64 // the log leaves this number out, against its contract
}

const crashes = math.MaxUint64 // left out: the log itself

func newLedgerFeed() *ledgerFeed {
	return &ledgerFeed{changed: make(chan struct{}), seen: make(map[string]uint64), until: time.Now().Add(time.Hour)}
}

// revoke records n more revocations.
func (f *ledgerFeed) revoke(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range n {
		prev := uint64(len(f.log))
		f.log = append(f.log, delegation.Revocation{Seq: prev + 1, Prev: prev, Target: delegation.Target{Kind: delegation.BanToken, ID: fmt.Sprint("jti-", prev+1)}})
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *ledgerFeed) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left++
}

func (f *ledgerFeed) gone() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.left
}

func (f *ledgerFeed) Until() time.Time    { return f.until }
func (f *ledgerFeed) Skew() time.Duration { return 30 * time.Second }

func (f *ledgerFeed) Standing() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.standing
}

func (f *ledgerFeed) Events(after uint64) ([]delegation.Revocation, bool, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, false, nil
	}
	if after < f.forgotten || after > uint64(len(f.log)) {
		return nil, false, f.changed
	}
	if f.skip == crashes && len(f.log) > 0 {
		panic("secret")
	}
	events := slices.Clone(f.log[after:])
	return slices.DeleteFunc(events, func(r delegation.Revocation) bool { return r.Seq == f.skip }), true, f.changed
}

func (f *ledgerFeed) Snapshot(context.Context) ([]delegation.Revocation, uint64, time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.snapshots++
	return f.log, uint64(len(f.log)), f.horizon, f.snapshot
}

func (f *ledgerFeed) Last(ctx context.Context) (uint64, time.Time, error) {
	f.mu.Lock()
	f.questions++
	answer := f.last
	f.mu.Unlock()
	if answer != nil {
		if err := answer(ctx); err != nil {
			return 0, time.Time{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return uint64(len(f.log)), time.Unix(1_800_000_000, 0), nil
}

func (f *ledgerFeed) Seen(id string, applied uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[id] = applied
}

func (f *ledgerFeed) asked() (snapshots, questions int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.snapshots, f.questions
}

func serving(f Feed) Config {
	engine := granting()
	engine.watch = following(f)
	return Config{Engine: engine}
}

func following(f Feed) func(context.Context, exchange.Inquiry) (Feed, error) {
	return func(context.Context, exchange.Inquiry) (Feed, error) { return f, nil }
}

// verifier is the client of a stream.
type verifier struct {
	t      *testing.T
	stream deputyv1.RevocationService_WatchRevocationsClient
}

func watch(t *testing.T, client deputyv1.RevocationServiceClient, header ...string) *verifier {
	t.Helper()
	// No test takes long unless it hangs.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	stream, err := client.WatchRevocations(metadata.AppendToOutgoingContext(ctx, header...))
	if err != nil {
		t.Fatal(err)
	}
	return &verifier{t, stream}
}

func (v *verifier) hello(id string, after uint64) {
	v.t.Helper()
	hello := &deputyv1.WatchHello{Id: id, ResumeAfter: after}
	if err := v.stream.Send(&deputyv1.WatchRevocationsRequest{Message: &deputyv1.WatchRevocationsRequest_Hello{Hello: hello}}); err != nil {
		v.t.Error(err)
	}
}

func (v *verifier) mark(nonce, applied uint64) {
	v.t.Helper()
	mark := &deputyv1.WatchMark{Nonce: nonce, Applied: applied}
	if err := v.stream.Send(&deputyv1.WatchRevocationsRequest{Message: &deputyv1.WatchRevocationsRequest_Mark{Mark: mark}}); err != nil && !errors.Is(err, io.EOF) {
		v.t.Error(err)
	}
}

// heard returns what the verifier received, in few words: "snapshot 5 up to 5", "event 6 after 5",
// "echo 1: 6".
func (v *verifier) heard() string {
	v.t.Helper()
	m, err := v.stream.Recv()
	if err != nil {
		return "end: " + string(delegation.FromStatus(err).Reason)
	}
	switch m := m.GetMessage().(type) {
	case *deputyv1.WatchRevocationsResponse_Snapshot:
		if !m.Snapshot.GetComplete() {
			return fmt.Sprintf("part %d", len(m.Snapshot.GetRevocations()))
		}
		if m.Snapshot.GetSkewSeconds() != 30 {
			v.t.Errorf("skew %d", m.Snapshot.GetSkewSeconds())
		}
		return fmt.Sprintf("snapshot %d up to %d", len(m.Snapshot.GetRevocations()), m.Snapshot.GetLast())
	case *deputyv1.WatchRevocationsResponse_Event:
		return fmt.Sprintf("event %d after %d", m.Event.GetSeq(), m.Event.GetPrev())
	case *deputyv1.WatchRevocationsResponse_Echo:
		return fmt.Sprintf("echo %d: %d", m.Echo.GetNonce(), m.Echo.GetLast())
	}
	return "nothing known"
}

func (v *verifier) hears(want ...string) {
	v.t.Helper()
	for _, w := range want {
		if got := v.heard(); got != w {
			v.t.Fatalf("heard %q, want %q", got, w)
		}
	}
}

// Incarnation returns the number of a ledger that was never recovered.
func (*ledgerFeed) Incarnation() uint64 { return 0 }
