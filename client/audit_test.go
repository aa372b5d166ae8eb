package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/internal/deputytest"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

func TestEntry(t *testing.T) {
	s := startDeputy(t)
	c := connect(t, s, plannerAssertion(t, s.Issuer))
	at := time.Date(2026, 11, 3, 12, 0, 0, 7000, time.UTC)
	seq := s.Record(&deputyv1.Entry{
		Kind: deputyv1.EntryKind_ENTRY_KIND_REFUSAL, Outcome: deputyv1.EntryOutcome_ENTRY_OUTCOME_REFUSED, Reason: "scope_exceeds_parent",
		Time: timestamppb.New(at), ExpiresAt: timestamppb.New(at.Add(time.Hour)), Jti: "jti-9", Parent: "jti-8", Txn: "txn-9", Root: "9f2c", Key: "thumb",
		Subject: "user:alice", Actor: "agent:reader", Caller: "agent:planner", Actors: []string{"agent:planner", "agent:reader"},
		Scope: []string{"mail.read", "calendar.read"}, Audience: []string{calendar}, AuthorizationDetails: `[{"type":"calendar"}]`,
		ActorProof: "registered_key", Detail: "mail.read is too much", Peer: "192.0.2.7", ModelId: "model-1", TraceId: "trace-1",
		Erased: []string{"peer"}, Record: `{"seq":41}`,
	})
	e, err := c.Entry(t.Context(), seq)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%+v", *e)
	for _, want := range []string{
		"Seq:41 Kind:refusal", "Outcome:refused Reason:scope_exceeds_parent State: ", "JTI:jti-9 Parent:jti-8 Txn:txn-9 Root:9f2c",
		"Subject:user:alice Actor:agent:reader Caller:agent:planner Actors:[agent:planner agent:reader]", "Scope:calendar.read mail.read",
		"Key:thumb ActorProof:registered_key Detail:mail.read is too much Peer:192.0.2.7 ModelID:model-1 TraceID:trace-1", "Erased:[peer]",
		`Record:{"seq":41}`, `Details:[{"type":"calendar"}]`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if !e.Time.Equal(at) || !e.Expiry.Equal(at.Add(time.Hour)) || e.Leaf == (tlog.Hash{}) || e.Revocation != nil {
		t.Errorf("%+v", e)
	}
	if _, err := c.Entry(t.Context(), 9999); reason(t, err) != delegation.NotFound {
		t.Errorf("unknown: %v", err)
	}
	if _, err := c.GrantEntry(t.Context(), "jti-9"); reason(t, err) != delegation.NotFound {
		t.Errorf("a refusal's jti names no grant: %v", err)
	}
}

// TestEntryIsReadStrictly: a value that an Entry cannot hold is refused, a new value is shown as it
// is, and a revocation whose target was erased is still a revocation.
func TestEntryIsReadStrictly(t *testing.T) {
	for name, m := range map[string]*deputyv1.Entry{
		"scope":   {Scope: []string{"two words"}},
		"details": {AuthorizationDetails: "{}"},
		"leaf":    {LeafHash: []byte{1}},
		"revoked": {Revocation: &deputyv1.Revocation{Target: &deputyv1.RevocationTarget{Kind: 99}}},
	} {
		if _, err := readEntry(m); err == nil || reason(t, err) != delegation.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
	e, err := readEntry(&deputyv1.Entry{
		Kind: 77, Outcome: 78, State: 79, Erased: []string{"target"},
		Revocation: &deputyv1.Revocation{Seq: 9, Target: &deputyv1.RevocationTarget{Kind: deputyv1.RevocationKind_REVOCATION_KIND_SUBJECT}},
	})
	if err != nil || e.Kind != "77" || e.Outcome != "78" || e.State != "79" || e.Revocation.Target.Kind != delegation.CutSubject || !e.Time.IsZero() {
		t.Errorf("%+v, %v", e, err)
	}
}

// lineage grants tokens to alice's planner, below it to a reader and a writer, and below the reader
// to a helper.
func lineage(t *testing.T, s *deputytest.Server, c *Client) (planner, reader *Token) {
	t.Helper()
	hand := func(parent *Token, actor delegation.Principal) *Token {
		request := toCalendar(s.RootToken("alice"))
		if parent != nil {
			request.SubjectToken = parent.AccessToken
		}
		request.Child.RequestedActor = actor
		token, err := c.Exchange(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	planner = hand(nil, "agent:planner")
	reader = hand(planner, "agent:reader")
	hand(planner, "agent:writer")
	hand(reader, "agent:helper")
	return planner, reader
}

func TestDescendants(t *testing.T) {
	s := startDeputy(t)
	c := connect(t, s, plannerAssertion(t, s.Issuer))
	planner, reader := lineage(t, s, c)
	below := func(jti string) string {
		var got []string
		for d, err := range c.Descendants(t.Context(), jti) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprintf("%d %s %d", d.Seq, d.Actor, d.Depth))
		}
		return strings.Join(got, ", ")
	}
	if got, want := below(planner.JTI), "42 agent:reader 1, 43 agent:writer 1, 44 agent:helper 2"; got != want {
		t.Errorf("below the planner: %s, want %s", got, want)
	}
	if got, want := below(reader.JTI), "44 agent:helper 1"; got != want {
		t.Errorf("below the reader: %s, want %s", got, want)
	}
	if calls := len(s.Bearers()); calls != 4+2+1 {
		t.Errorf("%d calls: three descendants are two pages", calls)
	}
	for _, err := range c.Descendants(t.Context(), "jti-none") {
		if reason(t, err) != delegation.NotFound {
			t.Errorf("of an unknown grant: %v", err)
		}
	}
	s.RevokeNow(kindToken, reader.JTI, "")
	chain, err := c.Chain(t.Context(), "jti-44")
	if err != nil || len(chain.Grants) != 3 {
		t.Fatalf("%+v, %v", chain, err)
	}
	if states := []GrantState{chain.Grants[0].State, chain.Grants[1].State, chain.Grants[2].State}; !slices.Equal(states, []GrantState{StateLive, StateRevoked, StateRevoked}) {
		t.Errorf("states %v", states)
	}
	if by := chain.Grants[2].RevokedBy; by != 45 || chain.Grants[0].RevokedBy != 0 {
		t.Errorf("revoked by %d", by)
	}
}

func TestSearch(t *testing.T) {
	s := startDeputy(t)
	c := connect(t, s, plannerAssertion(t, s.Issuer))
	lineage(t, s, c)                                                      // 41 to 44
	s.RevokeNow(deputyv1.RevocationKind_REVOCATION_KIND_KEY, "thumb", "") // 45
	day := time.Date(2026, 11, 3, 0, 0, 0, 0, time.UTC)
	for i := range 6 { // 46 to 51
		s.Record(&deputyv1.Entry{Kind: deputyv1.EntryKind_ENTRY_KIND_CHECK, Time: timestamppb.New(day.Add(time.Duration(i) * time.Hour))})
	}
	s.Record(&deputyv1.Entry{ // 52
		Kind: deputyv1.EntryKind_ENTRY_KIND_REFUSAL, Outcome: deputyv1.EntryOutcome_ENTRY_OUTCOME_REFUSED, Reason: "rate_limited",
		Subject: "user:bob", Actor: "agent:mailer", Caller: "agent:mailer", Audience: []string{"mail"}, Scope: []string{"mail.read"}, TraceId: "trace-7", Peer: "192.0.2.7",
	})
	first, err := c.Entry(t.Context(), 41)
	if err != nil || first.Txn == "" {
		t.Fatal(first, err)
	}
	chain := first.Txn
	search := func(q SearchQuery) (got []uint64, err error) {
		for e, err := range c.Search(t.Context(), q) {
			if err != nil {
				return got, err
			}
			got = append(got, e.Seq)
		}
		return got, nil
	}
	for name, test := range map[string]struct {
		query SearchQuery
		want  []uint64
	}{
		"subject":  {SearchQuery{Subject: "user:alice"}, []uint64{44, 43, 42, 41}},
		"actor":    {SearchQuery{Actor: "agent:reader"}, []uint64{44, 42}},
		"caller":   {SearchQuery{Caller: "agent:mailer"}, []uint64{52}},
		"audience": {SearchQuery{Audience: "mail"}, []uint64{52}},
		"scope":    {SearchQuery{Scope: "mail.read"}, []uint64{52}},
		"kind":     {SearchQuery{Kind: KindRevocation}, []uint64{45}},
		"outcome":  {SearchQuery{Outcome: OutcomeRefused}, []uint64{52}},
		"reason":   {SearchQuery{Reason: delegation.RateLimited}, []uint64{52}},
		"trace":    {SearchQuery{TraceID: "trace-7"}, []uint64{52}},
		"jti":      {SearchQuery{JTI: "jti-43"}, []uint64{43}},
		"chain":    {SearchQuery{Txn: chain, Kind: KindGrant}, []uint64{44, 43, 42, 41}},
		"no chain": {SearchQuery{Txn: chain + "x"}, nil},
		"key":      {SearchQuery{Key: "no such key"}, nil},
		"peer":     {SearchQuery{Peer: "192.0.2.7"}, []uint64{52}},
		"time":     {SearchQuery{From: day.Add(time.Hour), Until: day.Add(3 * time.Hour)}, []uint64{48, 47}},
		"several":  {SearchQuery{Subject: "user:alice", Actor: "agent:writer", Kind: KindGrant}, []uint64{43}},
		"one page": {SearchQuery{Subject: "user:alice", PageSize: 1}, []uint64{44, 43, 42, 41}},
		"nothing":  {SearchQuery{Subject: "user:nobody"}, nil},
		"all":      {SearchQuery{}, []uint64{52, 51, 50, 49, 48, 47, 46, 45, 44, 43, 42, 41}},
	} {
		if got, err := search(test.query); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, %v, want %v", name, got, err, test.want)
		}
	}
	before := len(s.Bearers())
	for _, q := range []SearchQuery{{Kind: "grnt"}, {Kind: "unspecified"}, {Outcome: "unspecified"}, {PageSize: 501}, {PageSize: -1}} {
		if _, err := search(q); reason(t, err) != delegation.ParameterInvalid {
			t.Errorf("%+v: %v", q, err)
		}
	}
	for range c.Search(t.Context(), SearchQuery{PageSize: 1}) {
		break
	}
	if calls := len(s.Bearers()) - before; calls != 1 {
		t.Errorf("%d calls, want the one of the search that was left at its first entry", calls)
	}
}

func TestPagesEnd(t *testing.T) {
	calls := 0
	var last error
	for _, err := range pages(func(string) ([]int, string, error) { calls++; return nil, "same", nil }) {
		last = err
	}
	if calls != 2 || reason(t, last) != delegation.Internal {
		t.Errorf("a page that leads to itself: %d calls, %v", calls, last)
	}
}

func TestReach(t *testing.T) {
	s := startDeputy(t)
	c := connect(t, s, plannerAssertion(t, s.Issuer))
	lineage(t, s, c)
	s.SetObtainable(&deputyv1.Obtainable{
		Subject: "user:bob", Path: []string{"user:bob", "agent:reader"}, Scope: []string{"mail.read"}, Audience: []string{"mail"},
	})
	reach, err := c.Reach(t.Context(), "agent:reader", 0)
	if err != nil {
		t.Fatal(err)
	}
	if reach.Suspended || reach.Entry != 44 || reach.LiveTokens != 1 || reach.LiveBelow != 1 || len(reach.Tokens) != 1 || reach.Tokens[0].JTI != "jti-42" {
		t.Errorf("%+v", reach)
	}
	if o := reach.Obtainable; len(o) != 1 || o[0].Subject != "user:bob" || !slices.Equal(o[0].Path, delegation.Chain{"user:bob", "agent:reader"}) || !o[0].Scope.Contains("mail.read") || o[0].Audience[0] != "mail" {
		t.Errorf("obtainable: %+v", o)
	}
	s.RevokeNow(kindSuspend, "agent:reader", "")
	if reach, err = c.Reach(t.Context(), "agent:reader", 8); err != nil || !reach.Suspended || reach.LiveTokens != 0 {
		t.Errorf("suspended: %+v, %v", reach, err)
	}
	if _, err := c.Reach(t.Context(), "agent:unknown", 0); reason(t, err) != delegation.NotFound {
		t.Errorf("unknown: %v", err)
	}
	for _, depth := range []int{-1, 9} {
		if _, err := c.Reach(t.Context(), "agent:reader", depth); reason(t, err) != delegation.ParameterInvalid {
			t.Errorf("depth %d: %v", depth, err)
		}
	}
}

// reading streams entries into a list, in a bubble where the test controls the time.
type reading struct {
	deputy *deputytest.Server
	got    []uint64
	err    error // how the stream ended
	slow   time.Duration
}

func read(t *testing.T, request EntriesRequest, before func(*deputytest.Server), test func(*testing.T, *reading)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := deputytest.StartInMemory()
		defer s.Close()
		c := inMemoryClient(t, s, &network{server: s})
		defer c.Close()
		before(s)
		r := &reading{deputy: s}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for e, err := range c.Entries(ctx, request) {
				if err != nil {
					r.err = err
					return
				}
				r.got = append(r.got, e.Seq)
				pass(r.slow)
			}
		}()
		test(t, r)
		cancel()
		<-done
	})
}

func record(n int) func(*deputytest.Server) {
	return func(s *deputytest.Server) {
		for range n {
			s.Record(&deputyv1.Entry{Kind: deputyv1.EntryKind_ENTRY_KIND_CHECK})
		}
	}
}

func (r *reading) want(t *testing.T, through uint64) {
	t.Helper()
	pass(3 * time.Second)
	synctest.Wait()
	var want []uint64
	for n := uint64(41); n <= through; n++ {
		want = append(want, n)
	}
	if r.err != nil || !slices.Equal(r.got, want) {
		t.Fatalf("%v, %v, want all up to %d", r.got, r.err, through)
	}
}

// TestEntriesResume: whatever ends a followed stream, the next one continues where it ended, and
// every entry comes once and in order.
func TestEntriesResume(t *testing.T) {
	read(t, EntriesRequest{Follow: true}, record(5), func(t *testing.T, r *reading) {
		r.want(t, 45)
		for i, end := range []error{
			nil,
			delegation.Unavailable("ledger", nil),
			delegation.Refuse(delegation.ClientUnauthenticated, "", "the credential is ten minutes old"),
			delegation.Refuse(delegation.RateLimited, "", "too many streams"),
		} {
			r.deputy.CutStreams(end)
			record(1)(r.deputy)
			r.want(t, 46+uint64(i))
		}
		if want := []uint64{0, 45, 46, 47, 48}; !slices.Equal(r.deputy.Streams(), want) {
			t.Errorf("streams began after %v, want %v", r.deputy.Streams(), want)
		}
		// An outage of hours, and a server that accepts streams and sends nothing.
		for range 300 {
			r.deputy.FailNext(delegation.Unavailable("ledger", nil))
		}
		r.deputy.HushStreams(true)
		r.deputy.CutStreams(nil)
		record(1)(r.deputy)
		pass(30 * time.Minute)
		if opened := len(r.deputy.Streams()); opened < 20 || opened > 100 {
			t.Errorf("%d streams in half an hour", opened)
		}
		r.deputy.HushStreams(false)
		pass(time.Minute)
		r.want(t, 50)
	})
}

// TestEntriesSilence: an idle stream sends signs of life and is kept. The time that the reader
// takes for an entry is not silence.
func TestEntriesSilence(t *testing.T) {
	read(t, EntriesRequest{Follow: true}, record(1), func(t *testing.T, r *reading) {
		pass(time.Hour)
		r.want(t, 41)
		r.slow = 10 * maxEntrySilence
		record(3)(r.deputy)
		pass(time.Hour)
		r.want(t, 44)
		if n := len(r.deputy.Streams()); n != 1 {
			t.Errorf("%d streams for one that was never broken", n)
		}
	})
}

// TestEntriesEnd: without Follow the stream ends with the newest entry, also after a break. A
// failure that a retry would repeat, or before the first message, ends with an error.
func TestEntriesEnd(t *testing.T) {
	t.Run("what is there", func(t *testing.T) {
		broken := func(s *deputytest.Server) {
			record(3)(s)
			s.FailNext(delegation.Unavailable("ledger", nil))
		}
		read(t, EntriesRequest{After: 41}, broken, func(t *testing.T, r *reading) {
			pass(time.Minute)
			synctest.Wait()
			if r.err != nil || !slices.Equal(r.got, []uint64{42, 43}) {
				t.Errorf("%v, %v", r.got, r.err)
			}
		})
	})
	for name, test := range map[string]struct {
		err   error
		calls int
		want  delegation.Reason
	}{
		"not permitted":   {delegation.Refuse(delegation.NotFound, "", "no"), 1, delegation.NotFound},
		"unauthenticated": {delegation.Refuse(delegation.ClientUnauthenticated, "", "no"), 1, delegation.ClientUnauthenticated},
		"never there":     {delegation.Unavailable("ledger", nil), 4, delegation.DependencyDown},
	} {
		t.Run(name, func(t *testing.T) {
			fail := func(s *deputytest.Server) {
				for range 10 {
					s.FailNext(test.err)
				}
			}
			read(t, EntriesRequest{Follow: true}, fail, func(t *testing.T, r *reading) {
				pass(time.Minute)
				synctest.Wait()
				if reason(t, r.err) != test.want || len(r.deputy.Bearers()) != test.calls {
					t.Errorf("%v after %d calls", r.err, len(r.deputy.Bearers()))
				}
			})
		})
	}
	t.Run("given up", func(t *testing.T) {
		s := startDeputy(t)
		record(3)(s)
		c := connect(t, s, plannerAssertion(t, s.Issuer))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var last error
		for e, err := range c.Entries(ctx, EntriesRequest{Follow: true}) {
			if last = err; e != nil && e.Seq == 43 {
				cancel()
			}
		}
		if !errors.Is(last, context.Canceled) {
			t.Errorf("%v", last)
		}
	})
}

// TestEntriesOnlyGrow: an order in which resuming by number would lose or repeat an entry is
// refused.
func TestEntriesOnlyGrow(t *testing.T) {
	numbers := func(last uint64, seqs ...uint64) *deputyv1.StreamEntriesResponse {
		m := &deputyv1.StreamEntriesResponse{Last: last}
		for _, n := range seqs {
			m.Entries = append(m.Entries, &deputyv1.Entry{Entry: n})
		}
		return m
	}
	for name, test := range map[string]struct {
		messages []*deputyv1.StreamEntriesResponse
		good     bool
	}{
		"in order": {[]*deputyv1.StreamEntriesResponse{numbers(2, 1, 2), numbers(2), numbers(3, 3)}, true},
		// verification finds it
		"after a gap":    {[]*deputyv1.StreamEntriesResponse{numbers(2, 1, 2), numbers(9, 9)}, true},
		"twice":          {[]*deputyv1.StreamEntriesResponse{numbers(2, 1, 2), numbers(2, 2)}, false},
		"turned around":  {[]*deputyv1.StreamEntriesResponse{numbers(2, 2, 1)}, false},
		"from zero":      {[]*deputyv1.StreamEntriesResponse{numbers(0, 0)}, false},
		"last goes back": {[]*deputyv1.StreamEntriesResponse{numbers(2, 1, 2), numbers(1)}, false},
		"last forgotten": {[]*deputyv1.StreamEntriesResponse{numbers(0, 1, 2)}, false},
	} {
		r := &entryReader{yield: func(*Entry, error) bool { return true }}
		var err error
		for _, m := range test.messages {
			if err == nil {
				err = r.take(m)
			}
		}
		if (err == nil) != test.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEntriesDropped(t *testing.T) {
	var lines []string
	r := &entryReader{yield: func(*Entry, error) bool { return true }, request: EntriesRequest{Dropped: func(l string) { lines = append(lines, l) }}}
	for range 2 { // the second stream sends it again
		if err := r.take(&deputyv1.StreamEntriesResponse{Dropped: `{"dropped":{}}`, Last: 256}); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(lines, []string{`{"dropped":{}}`}) || r.last != 256 {
		t.Errorf("%q, %d", lines, r.last)
	}
	// After the beginning of an export no entry may be missing: a gap is not a second beginning.
	err := r.take(&deputyv1.StreamEntriesResponse{Dropped: `{"dropped":{"more":1}}`, Last: 512})
	if reason(t, err) != delegation.NotFound || len(lines) != 1 || r.last != 256 {
		t.Errorf("%v, %q, %d", err, lines, r.last)
	}
}

// TestCheckpointAndProofs: proofs of a server are verified with its key, and are read strictly.
func TestCheckpointAndProofs(t *testing.T) {
	s := startDeputy(t)
	c := connect(t, s, plannerAssertion(t, s.Issuer))
	planner, _ := lineage(t, s, c)
	old, err := c.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	record(3)(s)
	proofs, err := c.Proofs(t.Context(), ProofsRequest{JTI: planner.JTI, OldSize: old.Size})
	if err != nil {
		t.Fatal(err)
	}
	key, err := note.NewVerifier(old.VerifierKey)
	if err != nil {
		t.Fatal(err)
	}
	head, err := audit.ParseCheckpoint(proofs.Checkpoint, key)
	if err != nil || head.Size != 47 || old.Size != 44 {
		t.Fatalf("%+v, %v", head, err)
	}
	leaf, err := audit.ParseRecord([]byte(proofs.Entry.Record))
	if err != nil || leaf.Verify() != nil || leaf.LeafHash != proofs.Entry.Leaf {
		t.Errorf("%+v, %v", leaf, err)
	}
	if err := tlog.CheckRecord(proofs.Inclusion, int64(head.Size), head.Root, int64(leaf.Seq)-1, proofs.Entry.Leaf); err != nil {
		t.Error(err)
	}
	if err := tlog.CheckTree(proofs.Consistency, int64(head.Size), head.Root, int64(old.Size), old.Root); err != nil {
		t.Error(err)
	}
	if only, err := c.Proofs(t.Context(), ProofsRequest{OldSize: old.Size}); err != nil || only.Entry != nil || len(only.Inclusion) != 0 {
		t.Errorf("%+v, %v", only, err)
	}
	if _, err := c.Proofs(t.Context(), ProofsRequest{JTI: "none"}); reason(t, err) != delegation.NotFound {
		t.Errorf("unknown: %v", err)
	}
	if _, err := readHashes([][]byte{make([]byte, 32), make([]byte, 31)}); reason(t, err) != delegation.Internal {
		t.Errorf("a short hash: %v", err)
	}
}
