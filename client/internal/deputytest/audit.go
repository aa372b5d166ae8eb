package deputytest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

const (
	// AuditPage is how many entries a page or a message of a stream holds at most.
	AuditPage = 2
	// SearchWindow is how many entries a search looks at for one page: pages are short, and some empty.
	SearchWindow = 3
	// SignOfLife is the interval of messages of an idle stream of entries.
	SignOfLife = 10 * time.Second
)

// journal is the entries, and what a test does to the streams of them. The server's lock guards it.
type journal struct {
	entries    []*deputyv1.Entry
	changed    chan struct{}
	cut        chan struct{} // closed to end all streams
	cutWith    error
	hushed     bool // streams stay open and say nothing
	streams    []uint64
	obtainable []*deputyv1.Obtainable
}

func newJournal() journal {
	return journal{changed: make(chan struct{}), cut: make(chan struct{})}
}

// Record gives an entry the next number, and a time unless it has one, and appends it.
func (s *Server) Record(e *deputyv1.Entry) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastEntry++
	return s.append(e)
}

// append needs the lock, and the number to be taken.
func (s *Server) append(e *deputyv1.Entry) uint64 {
	e.Entry = s.lastEntry
	if e.Time == nil {
		e.Time = timestamppb.New(time.Now().Truncate(time.Microsecond))
	}
	s.seal(e)
	s.journal.entries = append(s.journal.entries, e)
	close(s.journal.changed)
	s.journal.changed = make(chan struct{})
	return e.GetEntry()
}

// SetObtainable sets what Reach answers besides tokens.
func (s *Server) SetObtainable(obtainable ...*deputyv1.Obtainable) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journal.obtainable = obtainable
}

// CutStreams ends all streams of entries with an error.
func (s *Server) CutStreams(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journal.cutWith = err
	close(s.journal.cut)
	s.journal.cut = make(chan struct{})
}

// HushStreams keeps streams of entries open and sends nothing through those that are opened from now
// on, until it is taken back.
func (s *Server) HushStreams(hushed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journal.hushed = hushed
}

// Streams are the numbers after which streams of entries began, in their order.
func (s *Server) Streams() []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.journal.streams)
}

// grant finds the entry of a grant, under the lock.
func (s *Server) grant(jti string) *deputyv1.Entry {
	for _, e := range s.journal.entries {
		if e.GetKind() == deputyv1.EntryKind_ENTRY_KIND_GRANT && e.GetJti() == jti && jti != "" {
			return e
		}
	}
	return nil
}

// find finds an entry by its number, or that of a grant, under the lock.
func (s *Server) find(number uint64, jti string) *deputyv1.Entry {
	if i := int(number) - DroppedThrough - 1; jti == "" && i >= 0 && i < len(s.journal.entries) {
		return s.journal.entries[i]
	}
	return s.grant(jti)
}

// shown is an entry with what has become of it, under the lock.
func (s *Server) shown(e *deputyv1.Entry) *deputyv1.Entry {
	e = proto.CloneOf(e)
	if e.GetKind() != deputyv1.EntryKind_ENTRY_KIND_GRANT || e.GetState() != 0 {
		return e
	}
	claims, signed := s.lineages[e.GetJti()]
	switch {
	case slices.ContainsFunc(s.journal.entries, func(v *deputyv1.Entry) bool { return v.GetVoids() == e.GetEntry() }):
		e.State = deputyv1.GrantState_GRANT_STATE_VOIDED
	case signed && s.Revoked(claims):
		by, _ := s.revocations().Hit(claims.Lineage())
		e.State, e.RevokedBy = deputyv1.GrantState_GRANT_STATE_REVOKED, by.Seq
	case e.GetExpiresAt().AsTime().Before(time.Now()):
		e.State = deputyv1.GrantState_GRANT_STATE_EXPIRED
	default:
		e.State = deputyv1.GrantState_GRANT_STATE_LIVE
	}
	return e
}

func notFound() error {
	return delegation.Refuse(delegation.NotFound, "jti", "no such entry, or none that you may see")
}

// GetEntry implements deputyv1.AuditServiceServer.
func (s *Server) GetEntry(ctx context.Context, r *deputyv1.GetEntryRequest) (*deputyv1.GetEntryResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(r.GetEntry(), r.GetJti())
	if e == nil {
		return nil, notFound()
	}
	return &deputyv1.GetEntryResponse{Entry: s.shown(e)}, nil
}

// GetChain implements deputyv1.AuditServiceServer.
func (s *Server) GetChain(ctx context.Context, r *deputyv1.GetChainRequest) (*deputyv1.GetChainResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	response := &deputyv1.GetChainResponse{}
	for e := s.grant(r.GetJti()); e != nil; e = s.grant(e.GetParent()) {
		response.Root, response.Txn, response.Subject = e.GetRoot(), e.GetTxn(), e.GetSubject()
		response.Entries = append(response.Entries, s.shown(e))
	}
	if len(response.Entries) == 0 {
		return nil, notFound()
	}
	slices.Reverse(response.Entries)
	return response, nil
}

// ListDescendants implements deputyv1.AuditServiceServer.
func (s *Server) ListDescendants(ctx context.Context, r *deputyv1.ListDescendantsRequest) (*deputyv1.ListDescendantsResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.grant(r.GetJti()) == nil {
		return nil, notFound()
	}
	after := uint64(0)
	if r.GetPageToken() != "" {
		after, _ = strconv.ParseUint(r.GetPageToken(), 10, 64)
	}
	depths := map[string]uint32{r.GetJti(): 0}
	response := &deputyv1.ListDescendantsResponse{}
	for _, e := range s.journal.entries {
		above, below := depths[e.GetParent()]
		if !below || e.GetKind() != deputyv1.EntryKind_ENTRY_KIND_GRANT {
			continue
		}
		depths[e.GetJti()] = above + 1
		switch {
		case e.GetEntry() <= after:
		case len(response.GetDescendants()) == AuditPage:
			response.NextPageToken = fmt.Sprint(response.GetDescendants()[AuditPage-1].GetEntry().GetEntry())
			return response, nil
		default:
			response.Descendants = append(response.Descendants, &deputyv1.Descendant{Entry: s.shown(e), Depth: above + 1})
		}
	}
	return response, nil
}

// SearchEntries implements deputyv1.AuditServiceServer.
func (s *Server) SearchEntries(ctx context.Context, r *deputyv1.SearchEntriesRequest) (*deputyv1.SearchEntriesResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	from := len(s.journal.entries)
	if r.GetPageToken() != "" {
		from, _ = strconv.Atoi(r.GetPageToken())
	}
	response := &deputyv1.SearchEntriesResponse{}
	for looked := 0; from > 0; looked++ {
		if looked == SearchWindow || len(response.GetEntries()) == int(r.GetPageSize()) && r.GetPageSize() > 0 {
			response.NextPageToken = strconv.Itoa(from)
			break
		}
		from--
		if e := s.journal.entries[from]; matches(r, e) {
			response.Entries = append(response.Entries, s.shown(e))
		}
	}
	return response, nil
}

func matches(r *deputyv1.SearchEntriesRequest, e *deputyv1.Entry) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	among := func(want string, got ...string) bool { return want == "" || slices.Contains(got, want) }
	at := e.GetTime().AsTime()
	return is(r.GetSubject(), e.GetSubject()) && among(r.GetActor(), append(slices.Clone(e.GetActors()), e.GetActor())...) &&
		is(r.GetCaller(), e.GetCaller()) && among(r.GetAudience(), e.GetAudience()...) && among(r.GetScope(), e.GetScope()...) &&
		(r.GetKind() == 0 || r.GetKind() == e.GetKind()) && (r.GetOutcome() == 0 || r.GetOutcome() == e.GetOutcome()) &&
		is(r.GetReason(), e.GetReason()) && is(r.GetTraceId(), e.GetTraceId()) &&
		is(r.GetJti(), e.GetJti()) && is(r.GetTxn(), e.GetTxn()) && is(r.GetKey(), e.GetKey()) && is(r.GetPeer(), e.GetPeer()) &&
		(r.GetFrom() == nil || !at.Before(r.GetFrom().AsTime())) && (r.GetUntil() == nil || at.Before(r.GetUntil().AsTime()))
}

// Reach implements deputyv1.AuditServiceServer.
func (s *Server) Reach(ctx context.Context, r *deputyv1.ReachRequest) (*deputyv1.ReachResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	if r.GetAgent() == "agent:unknown" {
		return nil, delegation.Refuse(delegation.NotFound, "agent", "no such agent, or none that you may see")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	response := &deputyv1.ReachResponse{
		Time: timestamppb.Now(), Entry: s.lastEntry, Obtainable: s.journal.obtainable,
	}
	_, response.Suspended = s.revocations().HitCaller(delegation.Principal(r.GetAgent()), "")
	for _, e := range slices.Backward(s.journal.entries) {
		e = s.shown(e)
		switch {
		case e.GetState() != deputyv1.GrantState_GRANT_STATE_LIVE:
		case e.GetActor() == r.GetAgent():
			response.Tokens = append(response.Tokens, e)
			response.LiveTokens++
		case slices.Contains(e.GetActors(), r.GetAgent()):
			response.LiveBelow++
		}
	}
	return response, nil
}

// StreamEntries implements deputyv1.AuditServiceServer.
func (s *Server) StreamEntries(r *deputyv1.StreamEntriesRequest, stream deputyv1.AuditService_StreamEntriesServer) error {
	if err := s.enter(stream.Context()); err != nil {
		return err
	}
	s.mu.Lock()
	s.journal.streams = append(s.journal.streams, r.GetAfter())
	cut := s.journal.cut
	s.mu.Unlock()
	for after := r.GetAfter(); ; {
		s.mu.Lock()
		message, changed, hushed := s.entriesAfter(after), s.journal.changed, s.journal.hushed
		s.mu.Unlock()
		if r.GetRecords() && after < DroppedThrough {
			message.Dropped = s.tree.dropped
		}
		if !hushed {
			if err := stream.Send(message); err != nil {
				return err
			}
			if after = message.GetLast(); len(message.GetEntries()) > 0 {
				continue
			}
			if !r.GetFollow() {
				return nil
			}
		}
		select {
		case <-changed:
		case <-time.After(SignOfLife):
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-cut:
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.journal.cutWith
		}
	}
}

func (s *Server) entriesAfter(after uint64) *deputyv1.StreamEntriesResponse {
	message := &deputyv1.StreamEntriesResponse{Last: max(after, DroppedThrough)}
	for _, e := range s.journal.entries {
		if e.GetEntry() > after && len(message.GetEntries()) < AuditPage {
			message.Entries = append(message.Entries, s.shown(e))
			message.Last = e.GetEntry()
		}
	}
	return message
}
