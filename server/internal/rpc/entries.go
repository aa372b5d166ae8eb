package rpc

import (
	"context"
	"errors"
	"math"

	"google.golang.org/grpc"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
)

// Tail is what a stream needs of exchange.Tail.
type Tail interface {
	Close()
	Head() uint64
	Dropped(context.Context) (audit.Dropped, bool, error)
	Next(ctx context.Context, after uint64) ([]exchange.Recorded, error)
}

// StreamEntries sends all entries after a number and, with follow, each new entry.
func (s *auditService) StreamEntries(r *deputyv1.StreamEntriesRequest, stream grpc.ServerStreamingServer[deputyv1.StreamEntriesResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	q, err := s.inquiry(ctx, r)
	if err != nil {
		return err
	}
	if r.GetAfter() > math.MaxInt64 {
		return delegation.Refuse(delegation.ParameterInvalid, "after", "is not a number that an entry can have")
	}
	opened, err := s.engine.Tail(ctx, q)
	if err != nil {
		return err
	}
	defer opened.Close()
	go func() { // a stream that waits for news must not delay the end
		select {
		case <-s.streams.draining:
			cancel()
		case <-ctx.Done():
		}
	}()
	err = s.streams.send(ctx, opened, r, stream)
	select {
	case <-s.streams.draining:
		return leaving()
	default:
		return err
	}
}

func (s *streams) send(ctx context.Context, t Tail, r *deputyv1.StreamEntriesRequest, stream grpc.ServerStreamingServer[deputyv1.StreamEntriesResponse]) error {
	last, err := s.begin(ctx, t, r, stream)
	if err != nil {
		return err
	}
	for r.GetFollow() || last < t.Head() {
		page, err := t.Next(ctx, last)
		if err != nil {
			return err
		}
		if err := complete(ctx, t, r, last, page); err != nil {
			return err
		}
		if len(page) == 0 && !r.GetFollow() { // the entries were dropped
			return nil
		}
		message := &deputyv1.StreamEntriesResponse{Last: last}
		var room room
		for _, recorded := range page {
			if !r.GetFollow() && recorded.Seq > t.Head() {
				break
			}
			entry := newEntry(recorded)
			if r.GetRecords() {
				if entry, err = withRecord(recorded); err != nil {
					return err
				}
			}
			if !room.takes(entry) {
				break // the next page begins with this entry
			}
			message.Entries, message.Last = append(message.Entries, entry), recorded.Seq
		}
		if err := stream.Send(message); err != nil {
			return err
		}
		last = message.Last
	}
	return nil
}

// complete returns why entries are missing between the last sent entry and the page, or before the
// head. Entries that were dropped for their age meanwhile can be left out, but not of an export,
// whose reader would take them for a gap. All others were removed, and another try does not bring
// them back.
func complete(ctx context.Context, t Tail, r *deputyv1.StreamEntriesRequest, last uint64, page []exchange.Recorded) error {
	next := t.Head() + 1
	if len(page) > 0 {
		next = page[0].Seq
	}
	if next == last+1 || len(page) == 0 && r.GetFollow() {
		return nil
	}
	dropped, _, err := t.Dropped(ctx)
	switch {
	case err != nil:
		return err
	case dropped.Through+1 < next:
		return delegation.Refuse(delegation.LedgerDamaged, "", "entries %d to %d are missing from the ledger: it was tampered with, or truncated",
			max(last, dropped.Through)+1, next-1)
	case r.GetRecords():
		return delegation.Unavailable("ledger", errors.New("entries were dropped for their age while they were read"))
	}
	return nil
}

// begin returns the number after which the entries begin. The first message of an export describes
// the entries before it that were dropped for their age.
func (s *streams) begin(ctx context.Context, t Tail, r *deputyv1.StreamEntriesRequest, stream grpc.ServerStreamingServer[deputyv1.StreamEntriesResponse]) (uint64, error) {
	dropped, some, err := t.Dropped(ctx)
	if err != nil || !some || r.GetAfter() >= dropped.Through {
		return r.GetAfter(), err
	}
	if !r.GetRecords() {
		return dropped.Through, nil
	}
	line, err := dropped.MarshalJSON()
	if err != nil {
		return 0, broken("what was dropped: %w", err)
	}
	return dropped.Through, stream.Send(&deputyv1.StreamEntriesResponse{Dropped: string(line), Last: dropped.Through})
}
