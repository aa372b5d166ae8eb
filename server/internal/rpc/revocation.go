package rpc

import (
	"context"
	"math"

	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

type revocationService struct {
	deputyv1.UnimplementedRevocationServiceServer
	credentialReader
	engine   Engine
	watchers *watchers
}

// Revoke revokes what the request names, by ban or cut-off. Suspensions have methods of their own.
func (s *revocationService) Revoke(ctx context.Context, r *deputyv1.RevokeRequest) (*deputyv1.RevokeResponse, error) {
	if err := refuseUnknown(r, r.GetTarget(), r.GetClient()); err != nil {
		return nil, err
	}
	target, err := revocationTarget(r)
	if err != nil {
		return nil, err
	}
	done, err := s.revoke(ctx, r.GetClient(), exchange.RevokeCall{
		Target: target, Token: r.GetToken(), RootToken: r.GetRootToken(), Reason: r.GetReason(), DryRun: r.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &deputyv1.RevokeResponse{
		Revocation: newRevocation(done.Revocation), Grants: newAffected(done.Grants),
		Tokens: count(done.Tokens), Chains: count(done.Chains), Counted: done.Counted,
	}, nil
}

// Suspend refuses every token in which an agent is an actor.
func (s *revocationService) Suspend(ctx context.Context, r *deputyv1.SuspendRequest) (*deputyv1.SuspendResponse, error) {
	if err := refuseUnknown(r, r.GetClient()); err != nil {
		return nil, err
	}
	target := delegation.Target{Kind: delegation.BanSuspend, ID: r.GetAgent()}
	done, err := s.revoke(ctx, r.GetClient(), exchange.RevokeCall{Target: target, Reason: r.GetReason(), DryRun: r.GetDryRun()})
	if err != nil {
		return nil, err
	}
	return &deputyv1.SuspendResponse{
		Revocation: newRevocation(done.Revocation), Grants: newAffected(done.Grants),
		Tokens: count(done.Tokens), Chains: count(done.Chains), Counted: done.Counted,
	}, nil
}

// Resume lifts a suspension.
func (s *revocationService) Resume(ctx context.Context, r *deputyv1.ResumeRequest) (*deputyv1.ResumeResponse, error) {
	if err := refuseUnknown(r, r.GetClient()); err != nil {
		return nil, err
	}
	target := delegation.Target{Kind: delegation.Resume, ID: r.GetAgent()}
	done, err := s.revoke(ctx, r.GetClient(), exchange.RevokeCall{Target: target, Reason: r.GetReason()})
	if err != nil {
		return nil, err
	}
	return &deputyv1.ResumeResponse{Revocation: newRevocation(done.Revocation)}, nil
}

// GetReceipts returns the receipts of the verifiers.
func (s *revocationService) GetReceipts(ctx context.Context, r *deputyv1.GetReceiptsRequest) (*deputyv1.GetReceiptsResponse, error) {
	if err := refuseUnknown(r, r.GetClient()); err != nil {
		return nil, err
	}
	who, err := s.credentialsOf(ctx, r.GetClient())
	if err != nil {
		return nil, err
	}
	receipts, err := s.engine.Receipts(ctx, exchange.Inquiry{Credentials: who, Peer: peerOf(ctx)}, r.GetEntry())
	if err != nil {
		return nil, err
	}
	response := &deputyv1.GetReceiptsResponse{Partial: receipts.Partial}
	for _, receipt := range receipts.List {
		response.Receipts = append(response.Receipts, &deputyv1.Receipt{
			Id: receipt.ID, Verifier: string(receipt.Verifier), Applied: receipt.Applied, SeenAt: timestamppb.New(receipt.SeenAt),
		})
	}
	return response, nil
}

// revoke calls the engine. A success that has not been recorded is an internal error.
func (s *revocationService) revoke(ctx context.Context, client *deputyv1.ClientAuthentication, call exchange.RevokeCall) (exchange.Revoked, error) {
	var err error
	if call.Credentials, err = s.credentialsOf(ctx, client); err != nil {
		return exchange.Revoked{}, err
	}
	call.Peer = peerOf(ctx)
	done, err := s.engine.Revoke(ctx, call)
	if err != nil {
		return exchange.Revoked{}, err
	}
	if (done.Revocation == nil) != call.DryRun {
		return exchange.Revoked{}, broken("a revocation that is not recorded, or a dry run that is")
	}
	return done, nil
}

// kinds are the names of the targets in this API.
var kinds = map[deputyv1.RevocationKind]delegation.TargetKind{
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

// wireKind is the inverse of kinds. A kind without a name here is unspecified, which no reader
// accepts.
func wireKind(kind delegation.TargetKind) deputyv1.RevocationKind {
	for wire, ours := range kinds {
		if ours == kind {
			return wire
		}
	}
	return deputyv1.RevocationKind_REVOCATION_KIND_UNSPECIFIED
}

// revocationTarget returns the target that the request names; zero where it sends a token instead.
func revocationTarget(r *deputyv1.RevokeRequest) (delegation.Target, error) {
	given := 0
	for _, is := range []bool{r.GetTarget() != nil, r.GetToken() != "", r.GetRootToken() != ""} {
		if is {
			given++
		}
	}
	if given != 1 {
		return delegation.Target{}, delegation.Refuse(delegation.ParameterInvalid, "target", "name exactly one of target, token and root_token")
	}
	if r.GetTarget() == nil {
		return delegation.Target{}, nil
	}
	kind, known := kinds[r.GetTarget().GetKind()]
	switch {
	case !known:
		return delegation.Target{}, delegation.Refuse(delegation.ParameterInvalid, "target.kind", "is not one that can be revoked")
	case kind == delegation.BanSuspend, kind == delegation.Resume:
		return delegation.Target{}, delegation.Refuse(delegation.ParameterInvalid, "target.kind", "suspend and resume are methods of their own")
	}
	target := delegation.Target{Kind: kind, ID: r.GetTarget().GetId(), Subject: delegation.Principal(r.GetTarget().GetSubject())}
	return target, target.Check()
}

func newRevocation(r *delegation.Revocation) *deputyv1.Revocation {
	if r == nil {
		return nil
	}
	message := &deputyv1.Revocation{
		Seq: r.Seq, Prev: r.Prev, Time: timestamppb.New(r.At),
		Target: &deputyv1.RevocationTarget{Kind: wireKind(r.Target.Kind), Id: r.Target.ID, Subject: string(r.Target.Subject)},
	}
	if !r.Until.IsZero() {
		message.Until = timestamppb.New(r.Until)
	}
	return message
}

func newAffected(entries []*ledger.Entry) []*deputyv1.AffectedGrant {
	var grants []*deputyv1.AffectedGrant
	for _, e := range entries {
		grants = append(grants, &deputyv1.AffectedGrant{
			Jti: e.ID, Parent: e.Parent, Txn: e.Txn, Entry: e.Seq, Subject: string(e.Subject), Actor: string(e.Actor),
			Scope: e.Scopes, Audience: e.Audiences, ExpiresAt: timestamppb.New(e.Expiry),
		})
	}
	return grants
}

func count(n int) uint32 { return uint32(min(max(n, 0), math.MaxUint32)) }
