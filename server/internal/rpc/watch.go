package rpc

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
)

const (
	// snapshotPart is how many revocations one message holds: about 300 KB if all names are long.
	snapshotPart = 1000
	// helloPatience is how long a stream may take to send hello.
	helloPatience = 5 * time.Second
)

// Feed is what a stream needs of exchange.Watch.
type Feed interface {
	Close()
	Until() time.Time
	Standing() error
	Events(after uint64) (events []delegation.Revocation, complete bool, changed <-chan struct{})
	Snapshot(context.Context) (live []delegation.Revocation, last uint64, forgotten time.Time, err error)
	Last(context.Context) (last uint64, at time.Time, err error)
	Skew() time.Duration
	Incarnation() uint64
	Seen(id string, applied uint64)
}

// watchers are the streams of all verifiers of this instance.
type watchers struct {
	open     func(context.Context, exchange.Inquiry) (Feed, error)
	patience time.Duration // until hello
	now      func() time.Time
	draining chan struct{} // closed when every stream must end
	drain    sync.Once
	guard    func(ctx context.Context, method string, call func() error) error // catches panics
}

func newWatchers(c Config, i interceptor) *watchers {
	return &watchers{open: c.Engine.Watch, patience: helloPatience, now: c.Now, draining: make(chan struct{}), guard: i.guard}
}

// end ends all streams, and each stream that begins later.
func (w *watchers) end() { w.drain.Do(func() { close(w.draining) }) }

// watcher is one stream. Its goroutine writes. A second goroutine reads, and ends with the stream.
// A third reads the ledger's newest number while a mark waits for it, so that a slow ledger delays
// no event. None of them waits for another stream.
type watcher struct {
	*watchers
	feed   Feed
	stream grpc.BidiStreamingServer[deputyv1.WatchRevocationsRequest, deputyv1.WatchRevocationsResponse]
	after  uint64 // number up to which everything was sent

	marks  chan *deputyv1.WatchMark // holds one: the newest that has not been read
	echoes chan *deputyv1.WatchEcho // holds one: at most one request is in flight
	broken chan error               // why reading ended
}

// WatchRevocations serves one verifier. Its credential comes in the metadata.
func (s *revocationService) WatchRevocations(stream grpc.BidiStreamingServer[deputyv1.WatchRevocationsRequest, deputyv1.WatchRevocationsResponse]) error {
	ctx := stream.Context()
	who, err := s.credentialsOf(ctx, nil)
	if err != nil {
		return err
	}
	opened, err := s.watchers.open(ctx, exchange.Inquiry{Credentials: who, Peer: peerOf(ctx)})
	if err != nil {
		return err
	}
	defer opened.Close()
	w := &watcher{
		watchers: s.watchers, feed: opened, stream: stream,
		marks: make(chan *deputyv1.WatchMark, 1), echoes: make(chan *deputyv1.WatchEcho, 1), broken: make(chan error, 1),
	}
	if err := w.serve(); !errors.Is(err, errHungUp) {
		return err
	}
	return nil
}

// serve waits for hello, and writes until the stream ends.
func (w *watcher) serve() error {
	life := time.NewTimer(w.feed.Until().Sub(w.now()))
	defer life.Stop()
	greeted := make(chan *deputyv1.WatchHello, 1)
	go w.read(greeted) // ends with this stream, because Recv fails then
	silence := time.NewTimer(w.patience)
	defer silence.Stop()
	select {
	case hello := <-greeted:
		// Otherwise its numbers are those of an abandoned ledger.
		if hello.GetIncarnation() == w.feed.Incarnation() {
			w.after = hello.GetResumeAfter()
		}
	case <-silence.C:
		return delegation.Refuse(delegation.ParameterMissing, "hello", "the first message must come within %s", w.patience)
	case err := <-w.broken:
		return err
	case <-w.draining:
		return leaving()
	}
	if w.after == 0 {
		if err := w.snapshot(); err != nil {
			return err
		}
	}
	return w.write(life.C)
}

// write sends new events whenever there are any, and echoes.
func (w *watcher) write(over <-chan time.Time) error {
	marks := w.marks
	for {
		changed, err := w.catchUp()
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case mark := <-marks:
			marks = nil // marks wait meanwhile, and only the newest is answered
			go w.ask(mark)
		case echo := <-w.echoes:
			marks = w.marks
			if echo == nil {
				continue // the ledger did not answer, so this instance sends no echo
			}
			// The ledger's answer has brought the memory up to date: the events that it counts are
			// sent first.
			if _, err := w.catchUp(); err != nil {
				return err
			}
			if err := w.send(&deputyv1.WatchRevocationsResponse{Message: &deputyv1.WatchRevocationsResponse_Echo{Echo: echo}}); err != nil {
				return err
			}
		case err := <-w.broken:
			return err
		case <-over:
			return delegation.Refuse(delegation.ClientUnauthenticated, "", "the credential has been used for as long as one may be: come back with a fresh one")
		case <-w.draining:
			return leaving()
		}
	}
}

// catchUp sends everything after w.after to a verifier that is still permitted, and returns the
// channel that closes at the next change.
func (w *watcher) catchUp() (<-chan struct{}, error) {
	for {
		events, complete, changed := w.feed.Events(w.after)
		if err := w.feed.Standing(); err != nil { // asked after Events: a later change wakes it
			return nil, err
		}
		if changed == nil {
			return nil, delegation.Unavailable("ledger", errors.New("it is closed"))
		}
		if complete {
			sent, err := w.events(events)
			if err != nil || sent {
				return changed, err
			}
		}
		if err := w.snapshot(); err != nil {
			return nil, err
		}
	}
}

// events sends revocations one by one, in the order of their numbers. It returns false where one is
// missing.
func (w *watcher) events(events []delegation.Revocation) (bool, error) {
	for i := range events {
		r := &events[i]
		if r.Prev != w.after {
			return false, nil
		}
		if err := w.send(&deputyv1.WatchRevocationsResponse{Message: &deputyv1.WatchRevocationsResponse_Event{Event: newRevocation(r)}}); err != nil {
			return false, err
		}
		w.after = r.Seq
	}
	return true, nil
}

// snapshot sends everything that is revoked, in parts.
func (w *watcher) snapshot() error {
	live, last, forgotten, err := w.feed.Snapshot(w.stream.Context())
	if err != nil {
		return err
	}
	for {
		part := &deputyv1.WatchSnapshot{}
		n := min(len(live), snapshotPart)
		for i := range live[:n] {
			part.Revocations = append(part.Revocations, newRevocation(&live[i]))
		}
		if live = live[n:]; len(live) == 0 {
			part.Complete, part.Last, part.SkewSeconds = true, last, int64((w.feed.Skew()+time.Second-1)/time.Second)
			part.Incarnation = w.feed.Incarnation()
			if !forgotten.IsZero() {
				part.ForgottenThrough = timestamppb.New(forgotten)
			}
		}
		if err := w.send(&deputyv1.WatchRevocationsResponse{Message: &deputyv1.WatchRevocationsResponse_Snapshot{Snapshot: part}}); err != nil {
			return err
		}
		if part.Complete {
			w.after = last
			return nil
		}
	}
}

// send waits only for its own peer to read. A connection whose peer does not read any more ends by
// its keepalive or its age. A long backlog ends early when the instance drains.
func (w *watcher) send(m *deputyv1.WatchRevocationsResponse) error {
	select {
	case <-w.draining:
		return leaving()
	default:
	}
	if err := w.stream.Send(m); err != nil {
		return w.gone(err)
	}
	return nil
}

// ask reads the ledger's newest number for a mark. It sends nil if the read fails.
func (w *watcher) ask(mark *deputyv1.WatchMark) {
	ctx := w.stream.Context()
	err := w.guard(ctx, "asking for a mark", func() error {
		last, at, err := w.feed.Last(ctx)
		if err == nil {
			// The channel has room, because at most one request is in flight.
			w.echoes <- &deputyv1.WatchEcho{Nonce: mark.GetNonce(), Last: last, LedgerTime: timestamppb.New(at)}
		}
		return err
	})
	if err != nil {
		w.echoes <- nil
	}
}

// read receives hello and then marks, until the stream ends or breaks its rules, and returns why it
// ended.
func (w *watcher) read(greeted chan<- *deputyv1.WatchHello) {
	w.broken <- w.guard(w.stream.Context(), "reading a watcher", func() error {
		first, err := w.next()
		if err == nil {
			err = checkHello(first)
		}
		if err != nil {
			return err
		}
		hello := first.GetHello()
		greeted <- hello
		for {
			m, err := w.next()
			if err != nil {
				return err
			}
			mark := m.GetMark()
			if mark == nil {
				return delegation.Refuse(delegation.ParameterInvalid, "mark", "after hello, send nothing but marks")
			}
			w.feed.Seen(hello.GetId(), mark.GetApplied())
			replace(w.marks, mark)
		}
	})
}

// replace keeps only the newest value in a channel that holds one value and has no other writer.
func replace[T any](slot chan T, newest T) {
	select {
	case <-slot:
	default:
	}
	slot <- newest
}

func (w *watcher) next() (*deputyv1.WatchRevocationsRequest, error) {
	m, err := w.stream.Recv()
	refusal, refused := errors.AsType[*delegation.Error](err) // by the rules of methods
	switch {
	case refused:
		return nil, refusal
	case errors.Is(err, io.EOF):
		return nil, errHungUp
	case err != nil:
		return nil, w.gone(delegation.Refuse(delegation.ParameterInvalid, "", "the message could not be read").WithCause(err))
	}
	return m, refuseUnknown(m, m.GetHello(), m.GetMark())
}

// errHungUp is the normal end of a stream: the peer has left.
var errHungUp = errors.New("the verifier hung up")

// gone returns err, or a normal end if the peer has left.
func (w *watcher) gone(err error) error {
	if w.stream.Context().Err() != nil {
		return errHungUp
	}
	return err
}

// checkHello accepts an id that a log and a receipt can hold unchanged.
func checkHello(m *deputyv1.WatchRevocationsRequest) error {
	hello := m.GetHello()
	if hello == nil {
		return delegation.Refuse(delegation.ParameterMissing, "hello", "the first message must be hello")
	}
	id := hello.GetId()
	if id == "" || len(id) > 128 || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return delegation.Refuse(delegation.ParameterInvalid, "hello.id", "must be 1 to 128 visible ASCII characters")
	}
	return nil
}

func leaving() error { return delegation.Unavailable("this instance", errors.New("draining")) }
