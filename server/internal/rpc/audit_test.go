package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

func audits(t *testing.T, c Config) deputyv1.AuditServiceClient {
	t.Helper()
	_, conn := dial(t, c)
	return deputyv1.NewAuditServiceClient(conn)
}

// streamed reads a stream to its end. The end itself is no error.
func streamed(stream grpc.ServerStreamingClient[deputyv1.StreamEntriesResponse], err error) error {
	for err == nil {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// tailing follows a script: the entries 1 to head and then, with follow, the entries from more.
type tailing struct {
	head uint64
	size int // bytes of detail of each entry
	more chan uint64

	closed        atomic.Int32
	dropped, lost uint64 // dropped before, and missing while it is read
	retained      bool   // what was lost was dropped for its age
	asked         int
}

func (t *tailing) Dropped(context.Context) (audit.Dropped, bool, error) {
	if t.asked++; t.asked > 1 && t.retained {
		return audit.Dropped{Through: t.lost, Hashes: []tlog.Hash{{1}}}, true, nil
	}
	return audit.Dropped{Through: t.dropped, Hashes: []tlog.Hash{{1}}}, t.dropped > 0, nil
}

func (s *script) tails(_ context.Context, q exchange.Inquiry) (Tail, error) {
	s.inquired(q)
	return &tailing{}, nil
}

// streaming returns an engine whose streams of entries follow a script.
func streaming(t Tail, refusal *error) *script {
	engine := granting()
	engine.tail = func(context.Context, exchange.Inquiry) (Tail, error) { return t, *refusal }
	return engine
}

func (t *tailing) Close()       { t.closed.Add(1) }
func (t *tailing) Head() uint64 { return t.head }

func (t *tailing) Next(ctx context.Context, after uint64) ([]exchange.Recorded, error) {
	var page []exchange.Recorded
	// One entry more than at the beginning.
	for seq := max(after, t.dropped, t.lost) + 1; seq <= t.head+1 && len(page) < 10; seq++ {
		page = append(page, t.entry(seq))
	}
	if len(page) > 0 {
		return page, nil
	}
	select {
	case seq, more := <-t.more:
		if !more {
			return nil, nil
		}
		return []exchange.Recorded{t.entry(seq)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (t *tailing) entry(seq uint64) exchange.Recorded {
	return exchange.Recorded{Entry: &ledger.Entry{Seq: seq, Kind: ledger.KindRefusal, Detail: strings.Repeat("x", t.size)}}
}

func numbers(entries []*deputyv1.Entry) (list []uint64) {
	for _, e := range entries {
		list = append(list, e.GetEntry())
	}
	return list
}

// TestPageTokens: a page token is valid only for the request that it was issued for.
func TestPageTokens(t *testing.T) {
	engine := granting()
	engine.next = 42
	a := audits(t, Config{Engine: engine})
	at := timestamppb.New(time.Unix(1795305600, 0))
	first := &deputyv1.SearchEntriesRequest{Subject: "user:alice", Scope: "calendar.read", From: at}
	page, err := a.SearchEntries(t.Context(), first)
	if err != nil || page.GetNextPageToken() == "" {
		t.Fatalf("%v %v", page, err)
	}
	again := proto.Clone(first).(*deputyv1.SearchEntriesRequest)
	again.PageToken, again.PageSize = page.GetNextPageToken(), 7
	again.Client = &deputyv1.ClientAuthentication{ClientAssertion: "another"}
	if _, err := a.SearchEntries(t.Context(), again); err != nil {
		t.Fatalf("the next page, of another size and with a fresh credential: %v", err)
	}
	if q := engine.queries[1]; q.Before != 42 || q.Limit != 7 || q.Subject != "user:alice" || q.From.IsZero() {
		t.Errorf("asked for %+v", q)
	}
	for name, change := range map[string]func(*deputyv1.SearchEntriesRequest){
		"another subject":   func(r *deputyv1.SearchEntriesRequest) { r.Subject = "user:bob" },
		"the subject moved": func(r *deputyv1.SearchEntriesRequest) { r.Subject, r.Caller = "", r.Subject },
		"one filter more":   func(r *deputyv1.SearchEntriesRequest) { r.Kind = deputyv1.EntryKind_ENTRY_KIND_GRANT },
		"a jti more":        func(r *deputyv1.SearchEntriesRequest) { r.Jti = "01JID" },
		"a chain more":      func(r *deputyv1.SearchEntriesRequest) { r.Txn = "01JTXN" },
		"a key more":        func(r *deputyv1.SearchEntriesRequest) { r.Key = "thumb" },
		"a peer more":       func(r *deputyv1.SearchEntriesRequest) { r.Peer = "192.0.2.7" },
		"one filter less":   func(r *deputyv1.SearchEntriesRequest) { r.Scope = "" },
		"another time":      func(r *deputyv1.SearchEntriesRequest) { r.From = timestamppb.New(at.AsTime().Add(1)) },
		"the zero time":     func(r *deputyv1.SearchEntriesRequest) { r.Until = &timestamppb.Timestamp{} },
		"a damaged token":   func(r *deputyv1.SearchEntriesRequest) { r.PageToken = r.GetPageToken()[1:] },
		"no token at all":   func(r *deputyv1.SearchEntriesRequest) { r.PageToken = "?" },
		"a descendants' token": func(r *deputyv1.SearchEntriesRequest) {
			r.PageToken = pagesOf("ListDescendants", "").token(42)
		},
		"a position that there is not": func(r *deputyv1.SearchEntriesRequest) { r.PageToken = pagesOfSearch(r).token(1 << 63) },
	} {
		r := proto.Clone(again).(*deputyv1.SearchEntriesRequest)
		change(r)
		_, err := a.SearchEntries(t.Context(), r)
		if e := delegation.FromStatus(err); e == nil || e.Reason != delegation.ParameterInvalid || e.Field != "page_token" {
			t.Errorf("%s: %v", name, err)
		}
	}

	tree, err := a.ListDescendants(t.Context(), &deputyv1.ListDescendantsRequest{Jti: "01JID"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.ListDescendants(t.Context(), &deputyv1.ListDescendantsRequest{Jti: "01JID", PageToken: tree.GetNextPageToken()}); err != nil {
		t.Error(err)
	}
	_, err = a.ListDescendants(t.Context(), &deputyv1.ListDescendantsRequest{Jti: "01JIE", PageToken: tree.GetNextPageToken()})
	if e := delegation.FromStatus(err); e == nil || e.Field != "page_token" {
		t.Errorf("another grant's page: %v", err)
	}
	engine.next = 0
	if last, err := a.SearchEntries(t.Context(), first); err != nil || last.GetNextPageToken() != "" {
		t.Errorf("the last page: %v %v", last, err)
	}
}

// TestSearchFilters: a filter that no entry can match is refused. It does not give an empty answer.
func TestSearchFilters(t *testing.T) {
	engine := granting()
	a := audits(t, Config{Engine: engine})
	for field, r := range map[string]*deputyv1.SearchEntriesRequest{
		"subject":   {Subject: "alice"},
		"actor":     {Actor: "agent:a b"},
		"caller":    {Caller: "*"},
		"kind":      {Kind: 99},
		"outcome":   {Outcome: 99},
		"reason":    {Reason: "because"},
		"from":      {From: &timestamppb.Timestamp{Nanos: -1}},
		"until":     {Until: &timestamppb.Timestamp{Seconds: 1 << 60}},
		"page_size": {PageSize: 501},
		"txn":       {Txn: strings.Repeat("a", 129)},
		"key":       {Key: strings.Repeat("a", 129)},
		"peer":      {Peer: strings.Repeat("a", 129)},
	} {
		_, err := a.SearchEntries(t.Context(), r)
		if e := delegation.FromStatus(err); e == nil || e.Reason != delegation.ParameterInvalid || e.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	if len(engine.queries) > 0 {
		t.Errorf("asked for %+v", engine.queries)
	}
	all := &deputyv1.SearchEntriesRequest{
		Subject: "user:alice", Actor: "agent:planner", Caller: "agent:researcher", Audience: "https://a", Scope: "s", Kind: deputyv1.EntryKind_ENTRY_KIND_REFUSAL,
		Outcome: deputyv1.EntryOutcome_ENTRY_OUTCOME_REFUSED, Reason: "token_revoked", TraceId: "trace",
		Jti: "01JID", Txn: "01JTXN", Key: "thumb", Peer: "192.0.2.7",
		From: timestamppb.New(time.Unix(1, 0)), Until: timestamppb.New(time.Unix(2, 0)),
	}
	if _, err := a.SearchEntries(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	want := ledger.Query{
		Subject: "user:alice", Actor: "agent:planner", Caller: "agent:researcher", Audience: "https://a", Scope: "s", Kind: ledger.KindRefusal,
		Outcome: ledger.Refused, Reason: delegation.TokenRevoked, TraceID: "trace",
		ID: "01JID", Txn: "01JTXN", Key: "thumb", Peer: "192.0.2.7", From: time.Unix(1, 0).UTC(), Until: time.Unix(2, 0).UTC(), Limit: 50,
	}
	if got := engine.queries[0]; !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
}

// TestPagesAreCut: a page that would be too large for a client is cut. The next page begins at the
// cut.
func TestPagesAreCut(t *testing.T) {
	engine := granting()
	engine.found, engine.next = nil, 3
	for seq := uint64(10); seq > 0; seq-- {
		engine.found = append(engine.found, (&tailing{size: 600 << 10}).entry(seq))
	}
	a := audits(t, Config{Engine: engine})
	r := &deputyv1.SearchEntriesRequest{}
	page, err := a.SearchEntries(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if got := numbers(page.GetEntries()); fmt.Sprint(got) != "[10 9 8]" {
		t.Errorf("the first page holds %v", got)
	}
	if at, err := pagesOfSearch(r).position(page.GetNextPageToken()); err != nil || at != 8 {
		t.Errorf("it goes on at %d, %v", at, err)
	}
	tree, err := a.ListDescendants(t.Context(), &deputyv1.ListDescendantsRequest{Jti: "01JID"})
	if err != nil || len(tree.GetDescendants()) != 3 {
		t.Fatalf("%d descendants, %v", len(tree.GetDescendants()), err)
	}
	if at, err := pagesOf("ListDescendants", "01JID").position(tree.GetNextPageToken()); err != nil || at != 8 {
		t.Errorf("the descendants go on at %d, %v", at, err)
	}
	reach, err := a.Reach(t.Context(), &deputyv1.ReachRequest{Agent: "agent:planner"})
	if err != nil || len(reach.GetTokens()) != 3 || reach.GetLiveTokens() != 3 || !reach.GetObtainableTruncated() && len(reach.GetObtainable()) == 0 {
		t.Errorf("reach: %d tokens of %d, %v", len(reach.GetTokens()), reach.GetLiveTokens(), err)
	}
}

func TestReachProofsAndCheckpoint(t *testing.T) {
	a := audits(t, Config{Engine: granting()})
	at := timestamppb.New(time.Unix(1795305600, 0))
	reach, err := a.Reach(t.Context(), &deputyv1.ReachRequest{Agent: "agent:planner"})
	if err != nil {
		t.Fatal(err)
	}
	entry := &deputyv1.Entry{Entry: 57, Kind: deputyv1.EntryKind_ENTRY_KIND_GRANT, State: deputyv1.GrantState_GRANT_STATE_LIVE, LeafHash: make([]byte, 32), Time: timestamppb.New(time.Time{})}
	want := &deputyv1.ReachResponse{
		Time: at, Entry: 57, Suspended: true, Tokens: []*deputyv1.Entry{entry}, LiveTokens: 3, LiveBelow: 4, Truncated: true,
		Obtainable: []*deputyv1.Obtainable{{Subject: "user:alice", Path: []string{"user:alice", "agent:planner"}, Scope: []string{"calendar.read"}, Audience: []string{"https://calendar.example"}}},
	}
	if !proto.Equal(reach, want) {
		t.Errorf("%v\nwant %v", reach, want)
	}
	checkpoint, err := a.GetCheckpoint(t.Context(), &deputyv1.GetCheckpointRequest{})
	if err != nil || checkpoint.GetCheckpoint() != "note" || checkpoint.GetVerifierKey() != "key" || checkpoint.GetSize() != 57 || checkpoint.GetRootHash()[0] != 1 || !proto.Equal(checkpoint.GetTime(), at) {
		t.Errorf("%v %v", checkpoint, err)
	}
	proofs, err := a.GetProofs(t.Context(), &deputyv1.GetProofsRequest{Entry: 57})
	if err != nil || proofs.GetCheckpoint() != "note" || proofs.GetEntry().GetRecord() == "" || proofs.GetInclusion()[0][0] != 2 || proofs.GetConsistency()[0][0] != 3 {
		t.Errorf("%v %v", proofs, err)
	}
	if _, err := audit.ParseRecord([]byte(proofs.GetEntry().GetRecord())); err != nil {
		t.Errorf("the record is none: %v", err)
	}
}

// TestStreamEntries: without follow a stream ends with the entry that was the newest when it began.
// With follow it continues, also over empty pages that only show that the stream lives, and ends
// with the instance.
func TestStreamEntries(t *testing.T) {
	script := &tailing{head: 25, size: 600 << 10, more: make(chan uint64)}
	server, conn := dial(t, Config{Engine: streaming(script, new(error))})
	a := deputyv1.NewAuditServiceClient(conn)
	read := func(r *deputyv1.StreamEntriesRequest) (seen []uint64, stream grpc.ServerStreamingClient[deputyv1.StreamEntriesResponse]) {
		t.Helper()
		stream, err := a.StreamEntries(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return seen, stream
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range m.GetEntries() {
				seen = append(seen, e.GetEntry())
				if (e.GetRecord() != "") != r.GetRecords() {
					t.Errorf("entry %d has the record %q", e.GetEntry(), e.GetRecord())
				}
			}
			if n := len(seen); n > 0 && m.GetLast() != seen[n-1] {
				t.Errorf("after entry %d it says to resume after %d", seen[n-1], m.GetLast())
			}
			if r.GetFollow() && len(seen) > 0 && seen[len(seen)-1] == 26 {
				return seen, stream
			}
		}
	}
	if seen, _ := read(&deputyv1.StreamEntriesRequest{After: 20, Records: true}); fmt.Sprint(seen) != "[21 22 23 24 25]" {
		t.Errorf("to the end: %v", seen)
	}
	if seen, _ := read(&deputyv1.StreamEntriesRequest{After: 25}); seen != nil {
		t.Errorf("after the end: %v", seen)
	}
	seen, stream := read(&deputyv1.StreamEntriesRequest{After: 24, Follow: true})
	if fmt.Sprint(seen) != "[25 26]" {
		t.Errorf("following: %v", seen)
	}
	script.more <- 27
	if m, err := stream.Recv(); err != nil || numbers(m.GetEntries())[0] != 27 || m.GetLast() != 27 {
		t.Fatalf("%v %v", m, err)
	}
	drained := make(chan struct{})
	go func() { server.Drain(t.Context()); close(drained) }()
	if _, err := stream.Recv(); delegation.FromStatus(err) == nil || delegation.FromStatus(err).Reason != delegation.DependencyDown {
		t.Errorf("when the instance leaves: %v", err)
	}
	<-drained
}

// TestStreamsGiveTheirPlacesBack: a stream frees its place when it ends. A stream that gets no
// place is refused with a time for the next try.
func TestStreamsGiveTheirPlacesBack(t *testing.T) {
	script, full := &tailing{head: 3, more: make(chan uint64)}, error(nil)
	a := audits(t, Config{Engine: streaming(script, &full)})
	if err := streamed(a.StreamEntries(t.Context(), &deputyv1.StreamEntriesRequest{})); err != nil {
		t.Fatal(err)
	}
	if n := script.closed.Load(); n != 1 {
		t.Errorf("%d places were given back, want 1", n)
	}
	busy := delegation.Refuse(delegation.RateLimited, "", "no place")
	busy.RetryAfter = 5 * time.Second
	full = busy
	err := streamed(a.StreamEntries(t.Context(), &deputyv1.StreamEntriesRequest{}))
	if e := delegation.FromStatus(err); e == nil || e.Reason != delegation.RateLimited || e.RetryAfter != 5*time.Second {
		t.Errorf("without a place: %v", err)
	}
	if n := script.closed.Load(); n != 1 {
		t.Errorf("a stream without a place gave one back: %d", n)
	}
}

// TestStreamOfWhatIsLeft: an export of a log whose beginning was dropped reports the drop first,
// and no export has a gap.
func TestStreamOfWhatIsLeft(t *testing.T) {
	script := &tailing{head: 10, dropped: 8}
	a := audits(t, Config{Engine: streaming(script, new(error))})
	stream, err := a.StreamEntries(t.Context(), &deputyv1.StreamEntriesRequest{Records: true})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil || first.GetLast() != 8 || len(first.GetEntries()) > 0 {
		t.Fatalf("%v %v", first, err)
	}
	if d, err := audit.ParseDropped([]byte(first.GetDropped())); err != nil || d.Through != 8 {
		t.Errorf("%q: %v", first.GetDropped(), err)
	}
	if rest, err := stream.Recv(); err != nil || fmt.Sprint(numbers(rest.GetEntries())) != "[9 10]" || rest.GetDropped() != "" {
		t.Errorf("%v %v", rest, err)
	}
	for _, r := range []*deputyv1.StreamEntriesRequest{{Records: true, After: 8}, {}} {
		stream, err := a.StreamEntries(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if first, err := stream.Recv(); err != nil || first.GetDropped() != "" || numbers(first.GetEntries())[0] != 9 {
			t.Errorf("%v: %v %v", r, first, err)
		}
	}
	script.lost = 9 // now entry 9 is missing too, after the stream reported that 8 are dropped
	for retained, reason := range map[bool]delegation.Reason{true: delegation.DependencyDown, false: delegation.LedgerDamaged} {
		script.retained, script.asked = retained, 0
		err = streamed(a.StreamEntries(t.Context(), &deputyv1.StreamEntriesRequest{Records: true}))
		if e := delegation.FromStatus(err); e == nil || e.Reason != reason {
			t.Errorf("an export with a hole, dropped for its age %v: %v", retained, err)
		}
	}
}

// TestStreamOfWhatIsGone: all entries that were there when a stream began may be dropped for their
// age by now. An export then ends with an error, and another stream ends normally. Where the
// entries were removed otherwise, the stream names what is missing.
func TestStreamOfWhatIsGone(t *testing.T) {
	for name, script := range map[string]*tailing{
		"before": {head: 10, dropped: 10}, "meanwhile": {head: 10, lost: 11, retained: true}, "removed": {head: 10, lost: 11},
	} {
		script.more = make(chan uint64)
		close(script.more) // no entry follows
		a := audits(t, Config{Engine: streaming(script, new(error))})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := streamed(a.StreamEntries(ctx, &deputyv1.StreamEntriesRequest{}))
		if name == "removed" {
			if e := delegation.FromStatus(err); e == nil || e.Reason != delegation.LedgerDamaged || !strings.Contains(e.Description, "entries 1 to 10") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		script.asked = 0
		err = streamed(a.StreamEntries(ctx, &deputyv1.StreamEntriesRequest{Records: true}))
		if e := delegation.FromStatus(err); (e == nil) != (name == "before") || e != nil && e.Reason != delegation.DependencyDown || ctx.Err() != nil {
			t.Errorf("%s, with records: %v", name, err)
		}
	}
}
