package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// maxEntrySilence is how long a stream of entries may send nothing before it is given up. Deputy
// sends a message at least every ten seconds.
const maxEntrySilence = 25 * time.Second

// EntriesRequest selects the entries to stream.
type EntriesRequest struct {
	// After is the number after which the stream begins. 0: with the first entry.
	After uint64
	// Follow continues with entries that are recorded later, until the context ends. Otherwise the
	// stream ends with the newest entry.
	Follow bool
	// Records adds to each entry its Record.
	Records bool
	// Dropped, where it is not nil, is called once before the first entry if retention dropped the
	// beginning of the log. line is the first line of an export, which replaces the dropped
	// entries. Needs Records.
	Dropped func(line string)
}

// Entries iterates over all entries in the order of their numbers. Each entry comes once. A stream
// that breaks is opened again where it broke. With Follow, once a message came, it is opened again
// without a limit. An error that another stream would repeat ends the loop. Entries is for auditors
// and responders.
func (c *Client) Entries(ctx context.Context, request EntriesRequest) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		r := &entryReader{client: c, request: request, last: request.After, yield: yield}
		if err := r.run(ctx); err != nil {
			yield(nil, err)
		}
	}
}

// errEnough ends a stream because the loop over the entries has ended.
var errEnough = errors.New("no more entries are wanted")

// entryReader reads stream after stream.
type entryReader struct {
	client  *Client
	request EntriesRequest
	yield   func(*Entry, error) bool
	last    uint64 // resume after this number
	heard   bool   // a message came, on this stream or on an earlier one
	// began: an entry or the line of dropped entries was delivered, so no later entry may be
	// missing.
	began bool
}

func (r *entryReader) run(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		before, began := r.last, r.client.clock.now()
		opened, err := r.read(ctx)
		switch {
		case errors.Is(err, errEnough), errors.Is(err, io.EOF) && !r.request.Follow:
			return nil
		case ctx.Err() != nil:
			return givenUp(ctx)
		}
		if r.last > before || r.client.clock.now().ran(began) > maxEntrySilence {
			attempt = 1
		}
		refusal := streamRefusal(err)
		if !r.mayResume(refusal, opened, attempt) {
			return refusal
		}
		if !pause(ctx, retryDelay(attempt, refusal.RetryAfter)) {
			return givenUp(ctx)
		}
	}
}

// mayResume reports whether another stream may succeed. Deputy also ends a stream because the
// credential that opened it has expired: the next stream has a new one.
func (r *entryReader) mayResume(refusal *delegation.Error, opened bool, attempt int) bool {
	patient := attempt < r.client.attempts || r.request.Follow && r.heard
	return patient && (refusal.Reason == delegation.DependencyDown || opened && (refusal.Temporary() || refusal.Reason == delegation.ClientUnauthenticated))
}

// streamRefusal distinguishes refusals, of Deputy or of this package, from faults of the stream.
func streamRefusal(err error) *delegation.Error {
	var ours *delegation.Error
	switch {
	case errors.As(err, &ours):
		return ours
	case errors.Is(err, errSilent), errors.Is(err, io.EOF):
		return delegation.Refuse(delegation.DependencyDown, "", "the stream of entries ended: %v", err)
	}
	return delegation.FromStatus(err)
}

// read follows one stream to its end, and reports whether a message came through it.
func (r *entryReader) read(ctx context.Context) (opened bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(maxEntrySilence, func() { cancel(errSilent) })
	defer silence.Stop()
	stream, err := r.client.audit.StreamEntries(ctx, &deputyv1.StreamEntriesRequest{
		After: r.last, Follow: r.request.Follow, Records: r.request.Records,
	})
	if err != nil {
		return false, silenced(ctx, err)
	}
	for ; ; opened = true {
		message, err := receiveEntries(stream, silence)
		if err != nil {
			return opened, silenced(ctx, err)
		}
		r.heard = true
		if err := r.take(message); err != nil {
			return true, err
		}
	}
}

// receiveEntries measures the silence of the server, not the time that the reader takes.
func receiveEntries(stream grpc.ServerStreamingClient[deputyv1.StreamEntriesResponse], silence *time.Timer) (*deputyv1.StreamEntriesResponse, error) {
	silence.Reset(maxEntrySilence)
	defer silence.Stop()
	return stream.Recv()
}

func silenced(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errSilent) {
		return errSilent
	}
	return err
}

// take delivers the entries of one message. Numbers must grow: with a repeated or a lower number,
// resuming by number would lose entries.
func (r *entryReader) take(message *deputyv1.StreamEntriesResponse) error {
	line := message.GetDropped()
	if line != "" && r.began && message.GetLast() > r.last {
		return delegation.Refuse(delegation.NotFound, "after", "entries from %d on were dropped for their age while they were read: begin again", r.last+1)
	}
	if line != "" && !r.began {
		r.began = true
		if r.request.Dropped != nil {
			r.request.Dropped(line)
		}
	}
	for _, m := range message.GetEntries() {
		e, err := readEntry(m)
		if err != nil {
			return err
		}
		if e.Seq <= r.last {
			return malformed("entry %d after entry %d", e.Seq, r.last)
		}
		r.last, r.began = e.Seq, true
		if !r.yield(e, nil) {
			return errEnough
		}
	}
	if message.GetLast() < r.last {
		return malformed("a stream at entry %d names %d as its last", r.last, message.GetLast())
	}
	r.last = message.GetLast()
	return nil
}
