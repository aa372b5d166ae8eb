package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

const (
	markInterval = time.Second
	minPatience  = 5 * markInterval / 2
	// forgetInterval, of the ledger's time, is the interval at which expired revocations are
	// dropped.
	forgetInterval = 10 * time.Minute
	// maxFeedPause bounds the pause that a server may require before a stream is opened again.
	maxFeedPause = 2 * time.Second
	// maxMissing is the longest time between an echo and the events that its number covers.
	maxMissing = 2 * time.Second
	// reloadInterval is the shortest time between two snapshots while the horizon is ahead of the
	// ledger's time.
	reloadInterval = time.Minute
)

var (
	errClosed  = errors.New("the verifier is closed")
	errLoading = errors.New("the first snapshot has not come yet")
	errSilent  = errors.New("the stream is up, but nothing fresh comes through it")
	errGap     = errors.New("a revocation is missing in the stream")
	errMissing = errors.New("the server has revocations that it does not send")
	errBehind  = errors.New("the server knows fewer revocations than this verifier does")
	errEnded   = errors.New("the server ended the stream")
	errForgot  = errors.New("the ledger's time went back: revocations were forgotten too early, and are loaded again")
)

type watchStream = grpc.BidiStreamingClient[deputyv1.WatchRevocationsRequest, deputyv1.WatchRevocationsResponse]

// knowledge is the set of everything that was revoked as of a moment. The set grows in place. The
// other fields are replaced as a whole.
type knowledge struct {
	set        *delegation.RevocationSet
	generation uint64    // number of the set: each snapshot has a new one
	asOf       instant   // the set was complete at this moment; zero: unknown
	given      time.Time // the horizon of the snapshot; the horizon of the set may be later
	came       instant   // when the complete snapshot was received
}

// feed keeps the knowledge of one Verifier current over WatchRevocations, and opens the stream
// again for as long as it lives. Readers of the knowledge never wait.
//
// The age of the knowledge counts from the sending time of the newest mark that came back and whose
// number is applied. It does not count from the arrival of a message: an attacker that delays
// messages cannot make a mark come back that was not sent.
type feed struct {
	id       string
	open     func(context.Context) (stream watchStream, hangUp func(), err error)
	bound    time.Duration
	patience time.Duration // the connection is given up after this time without a fresh echo
	clock    clock
	began    instant
	life     context.Context
	end      context.CancelFunc
	done     chan struct{} // closed when run has returned
	ready    chan struct{} // closed when the knowledge is fresh for the first time

	// known is nil before the first snapshot. Only the goroutine of run writes it.
	known atomic.Pointer[knowledge]
	// time is nil before the first echo with a time. Only the goroutine of run writes it.
	time atomic.Pointer[feedTime]

	mu        sync.Mutex
	applied   uint64    // the set is complete up to this number
	recovered uint64    // incarnation of the ledger that the numbers belong to
	appliedAt time.Time // when the newest revocation came; zero: none came
	connected bool
	// fault is why the newest ended stream ended; nil after the knowledge became fresh.
	fault     error
	timeFault error         // why the time of the newest echo was refused; nil: it was accepted
	advanced  chan struct{} // closed, and replaced, when the knowledge grew or was replaced
}

func newFeed(id string, open func(context.Context) (watchStream, func(), error), bound time.Duration, c clock) *feed {
	f := &feed{
		id: id, open: open, bound: bound, patience: max(bound/2, minPatience), clock: c, began: c.now(), fault: errLoading,
		done: make(chan struct{}), ready: make(chan struct{}), advanced: make(chan struct{}),
	}
	f.life, f.end = context.WithCancel(context.Background())
	return f
}

func (f *feed) close() {
	f.end()
	<-f.done
}

// current returns the knowledge, and whether it is young enough to decide by.
func (f *feed) current() (*knowledge, bool) {
	k := f.known.Load()
	return k, k != nil && f.clock.now().since(k.asOf) <= f.bound
}

// staysFresh returns how long the knowledge stays fresh without further messages. If it is not
// fresh now, introspection decides, and its answer is used for the same time.
func (f *feed) staysFresh() time.Duration {
	k, fresh := f.current()
	if !fresh {
		return f.bound
	}
	return f.bound - f.clock.now().since(k.asOf) + 1
}

// changed returns a channel that is closed when the knowledge grows or is replaced.
func (f *feed) changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.advanced
}

func (f *feed) status() Status {
	k, fresh := f.current()
	f.mu.Lock()
	defer f.mu.Unlock()
	s := Status{Healthy: fresh, Connected: f.connected, Last: f.applied, At: f.appliedAt, Err: f.fault, Clock: f.timeFault}
	now := f.clock.now()
	if k == nil || k.asOf.isZero() {
		s.Staleness = now.since(f.began)
	} else {
		s.Staleness = now.since(k.asOf)
	}
	if t := f.time.Load(); t != nil {
		s.Offset = t.offset(now)
		s.Clock = cmp.Or(s.Clock, t.checkOffset(now), t.checkHorizon(k, now))
	}
	switch {
	case s.Healthy && s.Connected:
		s.Err = nil
	case s.Err == nil:
		s.Err = errSilent
	}
	return s
}

// run opens one stream after the other. After a stream that lasted longer than patience, the next
// pause is the shortest one. After a stream that lacked only a nonce, which the next stream has,
// there is no pause.
func (f *feed) run() {
	defer close(f.done)
	var resume uint64
	lackedNonce := false
	for attempt := 1; f.life.Err() == nil; attempt++ {
		began := f.clock.now()
		err := f.watch(resume)
		f.lost(err)
		if f.clock.now().ran(began) > f.patience {
			attempt = 1
		}
		resume = f.position()
		if errors.Is(err, errGap) || errors.Is(err, errForgot) {
			resume = 0 // what was missed is unknown: resume from a snapshot
		}
		if lackedNonce = needsNonce(err) && !lackedNonce; lackedNonce {
			continue
		}
		pause(f.life, retryDelay(attempt, min(delegation.FromStatus(err).RetryAfter, maxFeedPause)))
	}
}

func (f *feed) position() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied
}

func (f *feed) lost(err error) {
	if _, fromDeputy := status.FromError(err); fromDeputy {
		err = delegation.FromStatus(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.connected, f.fault = false, err
}

func (f *feed) up() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.connected = true
}

// incarnation returns the incarnation of the newest snapshot.
func (f *feed) incarnation() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.recovered
}

// begin restarts the count for a recovered ledger: the applied numbers belong to a ledger that was
// given up.
func (f *feed) begin(incarnation uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recovered, f.applied = incarnation, 0
}

// install replaces the knowledge.
func (f *feed) install(set *delegation.RevocationSet, last uint64) {
	next := &knowledge{set: set, generation: 1, given: set.Horizon(), came: f.clock.now()}
	if k := f.known.Load(); k != nil {
		next.generation, next.asOf = k.generation+1, k.asOf
	}
	f.known.Store(next)
	f.advance(last)
}

// advance records that the set is complete up to a number, and wakes all waiters for changed.
func (f *feed) advance(applied uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if applied > f.applied {
		f.applied, f.appliedAt = applied, f.clock.wall()
	}
	close(f.advanced)
	f.advanced = make(chan struct{})
}

// confirm records that the knowledge was complete at a moment. An earlier moment changes nothing.
func (f *feed) confirm(asOf instant) {
	k := f.known.Load()
	first := k.asOf.isZero()
	if !first && asOf.ran(k.asOf) <= 0 {
		return
	}
	next := *k
	next.asOf = asOf
	f.known.Store(&next)
	if first {
		close(f.ready)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = nil
}

// learnTime accepts the ledger's time from an echo, if it is credible. sent is when the mark was
// sent.
func (f *feed) learnTime(message *timestamppb.Timestamp, sent instant) {
	var next *feedTime
	err := errNoFeedTime
	if message.IsValid() {
		next, err = f.time.Load().next(message.AsTime(), sent, f.clock.now())
	}
	if err == nil {
		f.time.Store(next)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.timeFault = err
}

// forget drops the revocations that expired by the ledger's time in the newest credible echo. The
// clocks of this machine have no part in it: between two echoes nothing is forgotten.
func (f *feed) forget() {
	k, t := f.known.Load(), f.time.Load()
	if k == nil || t == nil {
		return
	}
	if through := t.ledger.Add(-forgetMargin); through.Sub(k.set.Horizon()) >= forgetInterval {
		k.set.Expire(through)
	}
}

// forgotTooMuch reports whether another snapshot is due because revocations were forgotten, here or
// by the server, that have not expired by the ledger's newest time. Until a snapshot has them,
// tokens that expire up to the set's horizon are refused.
func (f *feed) forgotTooMuch() bool {
	k, t := f.known.Load(), f.time.Load()
	if k == nil || t == nil {
		return false
	}
	now, horizon := f.clock.now(), k.set.Horizon()
	if horizon.After(k.given) && horizon.After(t.latest(now)) {
		return true // forgotten here: the server may still have them
	}
	return now.ran(k.came) >= reloadInterval && t.checkHorizon(k, now) != nil
}

// watch follows one stream to its end.
func (f *feed) watch(resume uint64) error {
	ctx, cancel := context.WithCancelCause(f.life)
	defer cancel(nil)
	silence := time.AfterFunc(f.patience, func() { cancel(errSilent) })
	defer silence.Stop()
	stream, hangUp, err := f.open(ctx)
	if err != nil {
		return cause(ctx, err)
	}
	defer hangUp()
	w := &watch{feed: f, stream: stream, silence: silence, awaiting: resume == 0}
	marking := make(chan struct{})
	go func() {
		defer close(marking)
		// io.EOF: Recv returns the reason.
		if err := w.mark(ctx, resume); err != nil && !errors.Is(err, io.EOF) {
			cancel(err)
		}
	}()
	err = cause(ctx, w.receive())
	cancel(nil)
	<-marking
	return err
}

// cause prefers the reason why this side ended the stream to the resulting error of the stream.
func cause(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF):
		return errEnded
	}
	return err
}

// watch is one stream. Its fields belong to the receiving goroutine, unless their comments differ.
type watch struct {
	feed    *feed
	stream  watchStream
	silence *time.Timer // ends the connection

	awaiting bool                      // a snapshot is expected
	building *delegation.RevocationSet // an incomplete snapshot, or nil
	highest  uint64                    // highest number in building
	// owed are marks that came back with a last that is not applied yet: older first, lower first.
	owed []sentMark
	// missing is since when owed is not empty and nothing was applied; zero: owed is empty.
	missing instant

	mu     sync.Mutex
	marks  []sentMark // shared with the marking goroutine: not echoed yet, oldest first
	nonces uint64
}

// sentMark is a mark that was sent. last is the number in its echo.
type sentMark struct {
	nonce   uint64
	at      instant // before it was sent
	applied uint64
	last    uint64
}

// mark sends hello, and then once a second a mark whose echo carries the newest number.
func (w *watch) mark(ctx context.Context, resume uint64) error {
	hello := &deputyv1.WatchHello{ResumeAfter: resume, Id: w.feed.id, Incarnation: w.feed.incarnation()}
	if err := w.stream.Send(&deputyv1.WatchRevocationsRequest{Message: &deputyv1.WatchRevocationsRequest_Hello{Hello: hello}}); err != nil {
		return err
	}
	tick := time.NewTicker(markInterval)
	defer tick.Stop()
	for {
		m := w.next()
		if err := w.stream.Send(&deputyv1.WatchRevocationsRequest{Message: &deputyv1.WatchRevocationsRequest_Mark{
			Mark: &deputyv1.WatchMark{Nonce: m.nonce, Applied: m.applied},
		}}); err != nil {
			return err
		}
		w.feed.forget()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (w *watch) next() sentMark {
	applied, now := w.feed.position(), w.feed.clock.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nonces++
	m := sentMark{nonce: w.nonces, at: now, applied: applied}
	w.marks = append(w.marks, m)
	return m
}

// echoed finds the mark of an echo. It forgets this mark and all earlier ones, whose echoes would
// be older.
func (w *watch) echoed(nonce uint64) (sentMark, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, m := range w.marks {
		if m.nonce == nonce {
			w.marks = w.marks[i+1:]
			return m, true
		}
	}
	return sentMark{}, false
}

// unmark forgets all marks: their applied numbers belong to a ledger that was given up.
func (w *watch) unmark() {
	w.owed = nil
	w.mu.Lock()
	defer w.mu.Unlock()
	w.marks = nil
}

func (w *watch) receive() error {
	for {
		message, err := w.stream.Recv()
		if err != nil {
			return err
		}
		w.feed.up()
		switch m := message.GetMessage().(type) {
		case *deputyv1.WatchRevocationsResponse_Snapshot:
			err = w.snapshot(m.Snapshot)
		case *deputyv1.WatchRevocationsResponse_Event:
			err = w.event(m.Event)
		case *deputyv1.WatchRevocationsResponse_Echo:
			err = w.echo(m.Echo)
		default:
			err = errors.New("the server sent a message that this version of the SDK does not know")
		}
		if err != nil {
			return err
		}
	}
}

// snapshot builds a new set beside the set in force, and replaces that when it is complete. Deputy
// may send a snapshot at any time. Its skew is not needed: it is for root tokens, which a verifier
// never checks.
func (w *watch) snapshot(part *deputyv1.WatchSnapshot) error {
	if w.building == nil {
		w.building, w.highest = delegation.NewRevocationSet(0), 0
	}
	w.awaiting = false
	for _, message := range part.GetRevocations() {
		r, err := readRevocation(message)
		if err != nil {
			return err
		}
		if r.Seq <= w.highest {
			return fmt.Errorf("a snapshot out of order: %d after %d", r.Seq, w.highest)
		}
		w.building.Apply(r)
		w.highest = r.Seq
	}
	if through := part.GetForgottenThrough(); through != nil {
		if err := through.CheckValid(); err != nil {
			return fmt.Errorf("a snapshot's forgotten_through: %w", err)
		}
		w.building.Forget(through.AsTime())
	}
	w.silence.Reset(w.feed.patience)
	switch {
	case !part.GetComplete():
		return nil
	case part.GetLast() < w.highest:
		return fmt.Errorf("a snapshot up to %d that holds %d", part.GetLast(), w.highest)
	case part.GetIncarnation() < w.feed.incarnation(),
		part.GetIncarnation() == w.feed.incarnation() && part.GetLast() < w.feed.position():
		// The snapshot is of an instance that lags, or of a ledger that lost entries. A revoked
		// token must not become valid again by it, unless an operator has recovered the ledger.
		return errBehind
	}
	if part.GetIncarnation() > w.feed.incarnation() {
		w.feed.begin(part.GetIncarnation())
		w.unmark()
	}
	w.feed.install(w.building, part.GetLast())
	w.building, w.missing = nil, instant{}
	w.settle()
	return nil
}

// event applies one revocation, if it is the next.
func (w *watch) event(message *deputyv1.Revocation) error {
	applied := w.feed.position()
	r, err := readRevocation(message)
	switch {
	case err != nil:
		return err
	case r.Seq <= applied:
		return nil // a repetition, or part of an earlier snapshot
	case r.Prev != applied, w.awaiting, w.building != nil:
		return errGap
	}
	k := w.feed.known.Load()
	if k == nil {
		return errGap
	}
	k.set.Apply(r)
	w.feed.advance(r.Seq)
	w.missing = instant{}
	w.settle()
	return nil
}

// echo handles a mark that came back. The knowledge is fresh once everything is applied that the
// ledger had when it answered.
func (w *watch) echo(e *deputyv1.WatchEcho) error {
	m, ours := w.echoed(e.GetNonce())
	switch {
	case !ours:
		return nil // a repetition, overtaken, or never sent
	case e.GetLast() < m.applied:
		return errBehind
	}
	w.feed.learnTime(e.GetLedgerTime(), m.at)
	m.last = e.GetLast()
	if n := len(w.owed); n > 0 && w.owed[n-1].last >= m.last {
		w.owed = w.owed[:n-1] // the newer mark is newer evidence and needs no higher number
	}
	w.owed = append(w.owed, m)
	w.settle()
	now := w.feed.clock.now()
	switch {
	case w.awaiting || w.building != nil:
		w.silence.Reset(w.feed.patience) // a large snapshot takes time
	case w.feed.forgotTooMuch():
		return errForgot
	case len(w.owed) == 0:
		w.missing = instant{}
	case w.missing.isZero():
		w.missing = now
	case now.ran(w.missing) >= maxMissing:
		return errMissing
	}
	return nil
}

// settle finds the newest returned mark whose number is applied now.
func (w *watch) settle() {
	if w.feed.known.Load() == nil {
		return
	}
	applied, settled := w.feed.position(), 0
	for settled < len(w.owed) && w.owed[settled].last <= applied {
		settled++
	}
	if settled == 0 {
		return
	}
	sent := w.owed[settled-1].at
	w.owed = w.owed[settled:]
	w.feed.confirm(sent)
	w.silence.Reset(max(w.feed.patience-w.feed.clock.now().ran(sent), 0))
}

var revocationKinds = map[deputyv1.RevocationKind]delegation.TargetKind{
	deputyv1.RevocationKind_REVOCATION_KIND_TOKEN:         delegation.BanToken,
	deputyv1.RevocationKind_REVOCATION_KIND_CHAIN:         delegation.BanChain,
	deputyv1.RevocationKind_REVOCATION_KIND_ROOT:          delegation.BanRoot,
	deputyv1.RevocationKind_REVOCATION_KIND_KEY:           delegation.BanKey,
	deputyv1.RevocationKind_REVOCATION_KIND_SUSPEND:       delegation.BanSuspend,
	deputyv1.RevocationKind_REVOCATION_KIND_SUBJECT:       delegation.CutSubject,
	deputyv1.RevocationKind_REVOCATION_KIND_AGENT:         delegation.CutAgent,
	deputyv1.RevocationKind_REVOCATION_KIND_AGENT_SUBJECT: delegation.CutAgentSubject,
	deputyv1.RevocationKind_REVOCATION_KIND_TENANT:        delegation.CutTenant,
	deputyv1.RevocationKind_REVOCATION_KIND_RESUME:        delegation.Resume,
	deputyv1.RevocationKind_REVOCATION_KIND_FORK:          delegation.CutFork,
}

// readRevocation refuses a revocation that it does not understand: an ignored revocation revokes
// nothing.
func readRevocation(m *deputyv1.Revocation) (delegation.Revocation, error) {
	r, err := revocationOf(m)
	if err != nil {
		return r, err
	}
	if err := r.Target.Check(); err != nil || r.Prev >= r.Seq {
		return delegation.Revocation{}, fmt.Errorf("revocation %d is malformed: %w", r.Seq, cmp.Or(err, errors.New("it follows itself")))
	}
	return r, nil
}

// revocationOf reads the wire form and checks only that the kind is known.
func revocationOf(m *deputyv1.Revocation) (delegation.Revocation, error) {
	kind, known := revocationKinds[m.GetTarget().GetKind()]
	if !known {
		return delegation.Revocation{}, fmt.Errorf("revocation %d is of a kind that this version of the SDK does not know", m.GetSeq())
	}
	return delegation.Revocation{
		Seq: m.GetSeq(), Prev: m.GetPrev(), At: moment(m.GetTime()), Until: moment(m.GetUntil()),
		Target: delegation.Target{Kind: kind, ID: m.GetTarget().GetId(), Subject: delegation.Principal(m.GetTarget().GetSubject())},
	}, nil
}
