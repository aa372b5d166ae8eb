package deputytest

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// SnapshotPart is how many revocations a part of a snapshot holds.
const SnapshotPart = 2

// feed is the revocations, and what a test does to their way to the verifiers.
type feed struct {
	mu       sync.Mutex
	log      []*deputyv1.Revocation
	changed  chan struct{}
	base     uint64 // events up to here can be had by snapshot only
	refuse   error
	cut      chan struct{} // closed to end all streams
	cutWith  error
	delay    time.Duration
	tamper   func(*deputyv1.WatchRevocationsResponse) []*deputyv1.WatchRevocationsResponse
	hellos   []*deputyv1.WatchHello
	receipts map[string]*deputyv1.Receipt
	partial  bool

	forgotten time.Time                 // snapshots lack what ended by then
	clock     func(time.Time) time.Time // the ledger's time at a moment
}

func newFeed() feed {
	return feed{
		changed: make(chan struct{}), cut: make(chan struct{}), receipts: make(map[string]*deputyv1.Receipt),
		clock: func(now time.Time) time.Time { return now },
	}
}

// RevokeNow records a revocation that ends in an hour, or never if it is of a key or an agent's
// suspension.
func (s *Server) RevokeNow(kind deputyv1.RevocationKind, id, subject string) *deputyv1.Revocation {
	return s.RevokeUntil(time.Now().Add(time.Hour), kind, id, subject)
}

// RevokeUntil records a revocation with an end of its own.
func (s *Server) RevokeUntil(until time.Time, kind deputyv1.RevocationKind, id, subject string) *deputyv1.Revocation {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastEntry++
	seq := s.lastEntry
	f := &s.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	r := &deputyv1.Revocation{
		Seq: seq, Prev: f.last(), Time: timestamppb.Now(), Until: timestamppb.New(until),
		Target: &deputyv1.RevocationTarget{Kind: kind, Id: id, Subject: subject},
	}
	if kind == deputyv1.RevocationKind_REVOCATION_KIND_KEY || kind == deputyv1.RevocationKind_REVOCATION_KIND_SUSPEND {
		r.Until = nil
	}
	f.log = append(f.log, r)
	close(f.changed)
	f.changed = make(chan struct{})
	s.append(&deputyv1.Entry{
		Kind: deputyv1.EntryKind_ENTRY_KIND_REVOCATION, Outcome: deputyv1.EntryOutcome_ENTRY_OUTCOME_DONE, Caller: "user:responder", Revocation: r,
	})
	return r
}

// LastRevocation is the number of the newest revocation.
func (s *Server) LastRevocation() uint64 {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	return s.feed.last()
}

// Revoked reports whether a token is revoked.
func (s *Server) Revoked(c delegation.Claims) bool {
	_, hit := s.revocations().Hit(c.Lineage())
	return hit
}

func (s *Server) revocations() *delegation.RevocationSet {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	set := delegation.NewRevocationSet(0)
	for _, r := range s.feed.log {
		set.Apply(revocation(r))
	}
	return set
}

// Forget drops the events so far: who wants them takes a snapshot.
func (s *Server) Forget() {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.feed.base = s.feed.last()
}

// ForgetEnded makes snapshots lack the revocations that ended by the given time, and tell so.
func (s *Server) ForgetEnded(through time.Time) {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.feed.forgotten = through
}

// SetLedgerClock makes echoes carry what f makes of the time; the zero time: no time.
func (s *Server) SetLedgerClock(f func(now time.Time) time.Time) {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.feed.clock = f
}

// Lose takes the newest revocation back, as a ledger restored from an old backup would.
func (s *Server) Lose() {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.feed.log = s.feed.log[:len(s.feed.log)-1]
}

// CutFeeds ends all streams with an error.
func (s *Server) CutFeeds(err error) {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.feed.cutWith = err
	close(s.feed.cut)
	s.feed.cut = make(chan struct{})
}

// RefuseFeeds ends all streams and refuses new ones with an error, until it is nil.
func (s *Server) RefuseFeeds(err error) {
	s.feed.mu.Lock()
	s.feed.refuse = err
	s.feed.mu.Unlock()
	if err != nil {
		s.CutFeeds(err)
	}
}

// DelayFeeds delivers what is sent from now on late, in order.
func (s *Server) DelayFeeds(d time.Duration) {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.feed.delay = d
}

// Tamper has every message of every stream pass through f, which returns what is sent in its place;
// nil ends that. It runs under a lock.
func (s *Server) Tamper(f func(*deputyv1.WatchRevocationsResponse) []*deputyv1.WatchRevocationsResponse) {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.feed.tamper = f
}

// Hellos are the first messages of all streams so far.
func (s *Server) Hellos() []*deputyv1.WatchHello {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	return slices.Clone(s.feed.hellos)
}

// AddReceipt pretends that a verifier sent a mark.
func (s *Server) AddReceipt(id, verifier string, applied uint64, at time.Time) {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.feed.receipts[id] = &deputyv1.Receipt{Id: id, Verifier: verifier, Applied: applied, SeenAt: timestamppb.New(at)}
}

func (f *feed) last() uint64 {
	if len(f.log) == 0 {
		return 0
	}
	return f.log[len(f.log)-1].GetSeq()
}

// watcher is one stream. Its messages pass a queue, so that each can be late.
type watcher struct {
	feed   *feed
	stream deputyv1.RevocationService_WatchRevocationsServer
	queue  chan delivery
}

type delivery struct {
	at      time.Time
	message *deputyv1.WatchRevocationsResponse
}

// WatchRevocations implements deputyv1.RevocationServiceServer.
func (s *Server) WatchRevocations(stream deputyv1.RevocationService_WatchRevocationsServer) error {
	if err := s.enter(stream.Context()); err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	f := &s.feed
	f.mu.Lock()
	f.hellos = append(f.hellos, hello)
	refuse, cut := f.refuse, f.cut
	f.mu.Unlock()
	switch {
	case refuse != nil:
		return refuse
	case hello == nil:
		return status.Error(codes.InvalidArgument, "the first message must be hello")
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	w := &watcher{feed: f, stream: stream, queue: make(chan delivery, 1<<16)}
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel(nil)
	tasks.Go(func() { cancel(w.deliver(ctx)) })
	tasks.Go(func() { w.events(ctx, hello.GetResumeAfter()) })
	// Recv ends with the handler, so this goroutine is not awaited.
	go func() { cancel(w.echoes(hello.GetId())) }()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-cut:
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.cutWith
	}
}

func (w *watcher) send(messages ...*deputyv1.WatchRevocationsResponse) {
	w.feed.mu.Lock()
	defer w.feed.mu.Unlock()
	at := time.Now().Add(w.feed.delay)
	for _, m := range messages {
		sent := []*deputyv1.WatchRevocationsResponse{m}
		if w.feed.tamper != nil {
			sent = w.feed.tamper(m)
		}
		for _, m := range sent {
			w.queue <- delivery{at, m}
		}
	}
}

func (w *watcher) deliver(ctx context.Context) error {
	for {
		select {
		case d := <-w.queue:
			timer := time.NewTimer(time.Until(d.at))
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			}
			if err := w.stream.Send(d.message); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// events sends what the verifier lacks, as it comes.
func (w *watcher) events(ctx context.Context, after uint64) {
	for first := true; ; first = false {
		w.feed.mu.Lock()
		log, changed, base, forgotten := slices.Clone(w.feed.log), w.feed.changed, w.feed.base, w.feed.forgotten
		w.feed.mu.Unlock()
		if first && (after == 0 || after < base) {
			after = w.snapshot(log, forgotten)
		}
		for _, r := range log {
			if r.GetSeq() > after {
				w.send(&deputyv1.WatchRevocationsResponse{Message: &deputyv1.WatchRevocationsResponse_Event{Event: r}})
				after = r.GetSeq()
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (w *watcher) snapshot(log []*deputyv1.Revocation, forgotten time.Time) (last uint64) {
	if len(log) > 0 {
		last = log[len(log)-1].GetSeq()
	}
	complete := &deputyv1.WatchSnapshot{Complete: true, Last: last, SkewSeconds: 60}
	if !forgotten.IsZero() {
		complete.ForgottenThrough = timestamppb.New(forgotten)
		log = slices.DeleteFunc(log, func(r *deputyv1.Revocation) bool {
			return r.GetUntil() != nil && !r.GetUntil().AsTime().After(forgotten)
		})
	}
	for part := range slices.Chunk(log, SnapshotPart) {
		w.send(&deputyv1.WatchRevocationsResponse{Message: &deputyv1.WatchRevocationsResponse_Snapshot{
			Snapshot: &deputyv1.WatchSnapshot{Revocations: part},
		}})
	}
	w.send(&deputyv1.WatchRevocationsResponse{Message: &deputyv1.WatchRevocationsResponse_Snapshot{Snapshot: complete}})
	return last
}

// echoes answers marks, after reading what the ledger has.
func (w *watcher) echoes(id string) error {
	for {
		m, err := w.stream.Recv()
		if err != nil {
			return err
		}
		w.feed.mu.Lock()
		echo := &deputyv1.WatchEcho{Nonce: m.GetMark().GetNonce(), Last: w.feed.last()}
		if at := w.feed.clock(time.Now()); !at.IsZero() {
			echo.LedgerTime = timestamppb.New(at)
		}
		w.feed.receipts[id] = &deputyv1.Receipt{Id: id, Verifier: "service:verifier", Applied: m.GetMark().GetApplied(), SeenAt: timestamppb.Now()}
		w.feed.mu.Unlock()
		w.send(&deputyv1.WatchRevocationsResponse{Message: &deputyv1.WatchRevocationsResponse_Echo{Echo: echo}})
	}
}

// Revoke implements deputyv1.RevocationServiceServer.
func (s *Server) Revoke(ctx context.Context, r *deputyv1.RevokeRequest) (*deputyv1.RevokeResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	target := r.GetTarget()
	if r.GetToken() != "" || r.GetRootToken() != "" {
		u, err := delegation.Parse(cmp.Or(r.GetToken(), r.GetRootToken()))
		if err != nil {
			return nil, delegation.Refuse(delegation.SubjectTokenInvalid, "token", "the token is malformed")
		}
		registered, err := u.Registered()
		if err != nil {
			return nil, delegation.Refuse(delegation.SubjectTokenInvalid, "token", "the token is malformed")
		}
		target = &deputyv1.RevocationTarget{Kind: deputyv1.RevocationKind_REVOCATION_KIND_TOKEN, Id: registered.ID}
		if r.GetRootToken() != "" {
			target = &deputyv1.RevocationTarget{Kind: deputyv1.RevocationKind_REVOCATION_KIND_ROOT, Id: "9f2c"}
		}
	}
	return s.revoke(target, r.GetDryRun())
}

// Suspend implements deputyv1.RevocationServiceServer.
func (s *Server) Suspend(ctx context.Context, r *deputyv1.SuspendRequest) (*deputyv1.SuspendResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	response, err := s.revoke(&deputyv1.RevocationTarget{Kind: deputyv1.RevocationKind_REVOCATION_KIND_SUSPEND, Id: r.GetAgent()}, r.GetDryRun())
	return &deputyv1.SuspendResponse{
		Revocation: response.GetRevocation(), Tokens: response.GetTokens(), Chains: response.GetChains(), Counted: response.GetCounted(), Grants: response.GetGrants(),
	}, err
}

// Resume implements deputyv1.RevocationServiceServer.
func (s *Server) Resume(ctx context.Context, r *deputyv1.ResumeRequest) (*deputyv1.ResumeResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	response, err := s.revoke(&deputyv1.RevocationTarget{Kind: deputyv1.RevocationKind_REVOCATION_KIND_RESUME, Id: r.GetAgent()}, false)
	return &deputyv1.ResumeResponse{Revocation: response.GetRevocation()}, err
}

// GetReceipts implements deputyv1.RevocationServiceServer.
func (s *Server) GetReceipts(ctx context.Context, _ *deputyv1.GetReceiptsRequest) (*deputyv1.GetReceiptsResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	response := &deputyv1.GetReceiptsResponse{Partial: s.feed.partial}
	for _, id := range slices.Sorted(maps.Keys(s.feed.receipts)) {
		response.Receipts = append(response.Receipts, s.feed.receipts[id])
	}
	return response, nil
}

// SetPartial sets whether GetReceipts answers without the verifiers of other instances.
func (s *Server) SetPartial(partial bool) {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.feed.partial = partial
}

// revoke counts what dies, and records the revocation unless it is a dry run.
func (s *Server) revoke(target *deputyv1.RevocationTarget, dryRun bool) (*deputyv1.RevokeResponse, error) {
	if target.GetId() == "agent:unknown" {
		return nil, delegation.Refuse(delegation.AccessDenied, "target", "the caller may not revoke this")
	}
	next := s.LastRevocation() + 1<<32 // later than every grant
	set := delegation.NewRevocationSet(0)
	set.Apply(revocation(&deputyv1.Revocation{Seq: next, Target: target, Time: timestamppb.Now()}))
	response, chains := &deputyv1.RevokeResponse{}, make(map[string]bool)
	s.mu.Lock()
	for _, c := range s.lineages {
		if _, hit := set.Hit(c.Lineage()); !hit || target.GetKind() == deputyv1.RevocationKind_REVOCATION_KIND_RESUME || s.Revoked(c) {
			continue
		}
		response.Tokens++
		chains[c.Txn] = true
		response.Grants = append(response.Grants, affected(c))
	}
	s.mu.Unlock()
	response.Chains, response.Counted = uint32(len(chains)), true
	if target.GetId() == "agent:crowded" { // as with more live tokens than can be counted in time
		response.Tokens, response.Chains, response.Counted = 0, 0, false
	}
	slices.SortFunc(response.Grants, func(a, b *deputyv1.AffectedGrant) int { return cmp.Compare(a.GetEntry(), b.GetEntry()) })
	if !dryRun {
		response.Grants = nil
		response.Revocation = s.RevokeNow(target.GetKind(), target.GetId(), target.GetSubject())
	}
	return response, nil
}

func affected(c delegation.Claims) *deputyv1.AffectedGrant {
	hops := c.Delegation.Hops
	g := &deputyv1.AffectedGrant{
		Jti: c.ID, Txn: c.Txn, Entry: hops[len(hops)-1].Seq, Subject: string(c.Subject), Actor: string(c.ClientID),
		Scope: c.Scope, Audience: c.Audience, ExpiresAt: timestamppb.New(time.Unix(c.ExpiresAt, 0)),
	}
	if len(hops) > 1 {
		g.Parent = hops[len(hops)-2].ID
	}
	return g
}

// revocation reads the wire form for the server's own set.
func revocation(r *deputyv1.Revocation) delegation.Revocation {
	kinds := map[deputyv1.RevocationKind]delegation.TargetKind{
		1: delegation.BanToken, 2: delegation.BanChain, 3: delegation.BanRoot, 4: delegation.BanKey, 5: delegation.BanSuspend,
		6: delegation.CutSubject, 7: delegation.CutAgent, 8: delegation.CutAgentSubject, 9: delegation.CutTenant, 10: delegation.Resume, 11: delegation.CutFork,
	}
	return delegation.Revocation{
		Seq: r.GetSeq(), Prev: r.GetPrev(), At: r.GetTime().AsTime(),
		Target: delegation.Target{
			Kind: kinds[r.GetTarget().GetKind()], ID: r.GetTarget().GetId(), Subject: delegation.Principal(r.GetTarget().GetSubject()),
		},
	}
}
