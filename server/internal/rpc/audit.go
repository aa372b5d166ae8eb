package rpc

import (
	"context"
	"math"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

type auditService struct {
	deputyv1.UnimplementedAuditServiceServer
	credentialReader
	engine  Engine
	streams *streams
}

// streams are the entry streams of this instance.
type streams struct {
	draining <-chan struct{} // closed when every stream must end
}

// Default and greatest sizes of pages.
const (
	defaultFound, mostFound             = 50, 500
	defaultDescendants, mostDescendants = 100, 1000
)

// audited is implemented by every request of this service.
type audited interface {
	proto.Message
	GetClient() *deputyv1.ClientAuthentication
}

// inquiry refuses unknown fields and takes the caller's credentials from the request.
func (from credentialReader) inquiry(ctx context.Context, r audited) (exchange.Inquiry, error) {
	if err := refuseUnknown(r, r.GetClient()); err != nil {
		return exchange.Inquiry{}, err
	}
	who, err := from.credentialsOf(ctx, r.GetClient())
	if err != nil {
		return exchange.Inquiry{}, err
	}
	return exchange.Inquiry{Credentials: who, Peer: peerOf(ctx)}, nil
}

// GetEntry returns one entry with its record.
func (s *auditService) GetEntry(ctx context.Context, r *deputyv1.GetEntryRequest) (*deputyv1.GetEntryResponse, error) {
	q, err := s.inquiry(ctx, r)
	if err != nil {
		return nil, err
	}
	q.Entry, q.ID = r.GetEntry(), r.GetJti()
	recorded, err := s.engine.Entry(ctx, q)
	if err != nil {
		return nil, err
	}
	entry, err := withRecord(recorded)
	return &deputyv1.GetEntryResponse{Entry: entry}, err
}

// GetChain returns the grants that lead to one, root to leaf.
func (s *auditService) GetChain(ctx context.Context, r *deputyv1.GetChainRequest) (*deputyv1.GetChainResponse, error) {
	q, err := s.inquiry(ctx, r)
	if err != nil {
		return nil, err
	}
	q.ID = r.GetJti()
	entries, err := s.engine.Chain(ctx, q)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, broken("a chain without entries")
	}
	leaf := entries[len(entries)-1]
	response := &deputyv1.GetChainResponse{Root: leaf.Root, Txn: leaf.Txn, Subject: string(leaf.Subject)}
	for _, entry := range entries {
		response.Entries = append(response.Entries, newEntry(entry))
	}
	return response, nil
}

// ListDescendants returns a page of the grants that were derived from a grant.
func (s *auditService) ListDescendants(ctx context.Context, r *deputyv1.ListDescendantsRequest) (*deputyv1.ListDescendantsResponse, error) {
	q, err := s.inquiry(ctx, r)
	if err != nil {
		return nil, err
	}
	size, err := pageSize(r.GetPageSize(), defaultDescendants, mostDescendants)
	if err != nil {
		return nil, err
	}
	pages := pagesOf("ListDescendants", r.GetJti())
	after, err := pages.position(r.GetPageToken())
	if err != nil {
		return nil, err
	}
	q.ID = r.GetJti()
	found, next, err := s.engine.Descendants(ctx, q, after, size)
	if err != nil {
		return nil, err
	}
	response := &deputyv1.ListDescendantsResponse{}
	var room room
	for i, d := range found {
		entry := newEntry(d.Recorded)
		if !room.takes(entry) {
			next = found[i-1].Seq
			break
		}
		response.Descendants = append(response.Descendants, &deputyv1.Descendant{Entry: entry, Depth: count(d.Depth)})
	}
	response.NextPageToken = pages.token(next)
	return response, nil
}

// SearchEntries returns a page of the entries that match.
func (s *auditService) SearchEntries(ctx context.Context, r *deputyv1.SearchEntriesRequest) (*deputyv1.SearchEntriesResponse, error) {
	q, err := s.inquiry(ctx, r)
	if err != nil {
		return nil, err
	}
	query, err := searchQuery(r)
	if err != nil {
		return nil, err
	}
	pages := pagesOfSearch(r)
	if query.Before, err = pages.position(r.GetPageToken()); err != nil {
		return nil, err
	}
	found, before, err := s.engine.Search(ctx, q, query)
	if err != nil {
		return nil, err
	}
	response := &deputyv1.SearchEntriesResponse{}
	var room room
	for i, recorded := range found {
		entry := newEntry(recorded)
		if !room.takes(entry) {
			before = found[i-1].Seq
			break
		}
		response.Entries = append(response.Entries, entry)
	}
	response.NextPageToken = pages.token(before)
	return response, nil
}

// searchQuery reads the filters. A value that no entry can have is refused. It does not give an
// empty answer.
func searchQuery(r *deputyv1.SearchEntriesRequest) (q ledger.Query, err error) {
	if q.Limit, err = pageSize(r.GetPageSize(), defaultFound, mostFound); err != nil {
		return q, err
	}
	for _, p := range []struct {
		field, value string
		into         *delegation.Principal
	}{{"subject", r.GetSubject(), &q.Subject}, {"actor", r.GetActor(), &q.Actor}, {"caller", r.GetCaller(), &q.Caller}} {
		if p.value == "" {
			continue
		}
		if *p.into, err = delegation.ParsePrincipal(p.value); err != nil {
			return q, delegation.Refuse(delegation.ParameterInvalid, p.field, "%v", err)
		}
	}
	q.Audience, q.Scope, q.TraceID = r.GetAudience(), r.GetScope(), r.GetTraceId()
	q.ID, q.Txn, q.Key, q.Peer = r.GetJti(), r.GetTxn(), r.GetKey(), r.GetPeer()
	var known bool
	if q.Kind, known = entryKinds[r.GetKind()]; !known {
		return q, delegation.Refuse(delegation.ParameterInvalid, "kind", "is not one that entries have")
	}
	if q.Outcome, known = outcomes[r.GetOutcome()]; !known {
		return q, delegation.Refuse(delegation.ParameterInvalid, "outcome", "is not one that entries have")
	}
	if q.Reason = delegation.Reason(r.GetReason()); q.Reason != "" && !q.Reason.Known() {
		return q, delegation.Refuse(delegation.ParameterInvalid, "reason", "is not registered")
	}
	if from := r.GetFrom(); from != nil {
		if q.From = from.AsTime(); !from.IsValid() {
			return q, delegation.Refuse(delegation.ParameterInvalid, "from", "is not a time")
		}
	}
	if until := r.GetUntil(); until != nil {
		if q.Until = until.AsTime(); !until.IsValid() {
			return q, delegation.Refuse(delegation.ParameterInvalid, "until", "is not a time")
		}
	}
	return q, nil
}

// Reach returns what an agent can do now.
func (s *auditService) Reach(ctx context.Context, r *deputyv1.ReachRequest) (*deputyv1.ReachResponse, error) {
	q, err := s.inquiry(ctx, r)
	if err != nil {
		return nil, err
	}
	reach, err := s.engine.Reach(ctx, q, delegation.Principal(r.GetAgent()), int(min(r.GetDepth(), math.MaxInt32)))
	if err != nil {
		return nil, err
	}
	response := &deputyv1.ReachResponse{
		Time: timestamppb.New(reach.Time), Entry: reach.Entry, Suspended: reach.Suspended,
		LiveTokens: count(reach.Live), LiveBelow: count(reach.Below), Truncated: reach.Truncated, ObtainableTruncated: reach.ObtainableTruncated,
	}
	var room room
	for _, recorded := range reach.Tokens {
		entry := newEntry(recorded)
		if !room.takes(entry) {
			break // live_tokens shows that there are more
		}
		response.Tokens = append(response.Tokens, entry)
	}
	for _, o := range reach.Obtainable {
		message := &deputyv1.Obtainable{Subject: string(o.Path[0]), Scope: o.Scopes, Audience: o.Audiences}
		for _, p := range o.Path {
			message.Path = append(message.Path, string(p))
		}
		if !room.takes(message) {
			response.ObtainableTruncated = true
			break
		}
		response.Obtainable = append(response.Obtainable, message)
	}
	return response, nil
}

// GetCheckpoint returns the newest signed head.
func (s *auditService) GetCheckpoint(ctx context.Context, r *deputyv1.GetCheckpointRequest) (*deputyv1.GetCheckpointResponse, error) {
	q, err := s.inquiry(ctx, r)
	if err != nil {
		return nil, err
	}
	c, err := s.engine.Checkpoint(ctx, q)
	if err != nil {
		return nil, err
	}
	return &deputyv1.GetCheckpointResponse{
		Checkpoint: c.Note, Size: c.Size, RootHash: c.Root[:], Time: timestamppb.New(c.Time), VerifierKey: c.VerifierKey,
	}, nil
}

// GetProofs returns proofs that an entry is in the log, and that the log has only grown.
func (s *auditService) GetProofs(ctx context.Context, r *deputyv1.GetProofsRequest) (*deputyv1.GetProofsResponse, error) {
	q, err := s.inquiry(ctx, r)
	if err != nil {
		return nil, err
	}
	q.Entry, q.ID = r.GetEntry(), r.GetJti()
	proofs, err := s.engine.Proofs(ctx, q, r.GetOldSize())
	if err != nil {
		return nil, err
	}
	response := &deputyv1.GetProofsResponse{Checkpoint: proofs.Checkpoint.Note}
	if proofs.Entry != nil {
		if response.Entry, err = withRecord(*proofs.Entry); err != nil {
			return nil, err
		}
	}
	for _, h := range proofs.Inclusion {
		response.Inclusion = append(response.Inclusion, h[:])
	}
	for _, h := range proofs.Consistency {
		response.Consistency = append(response.Consistency, h[:])
	}
	return response, nil
}
