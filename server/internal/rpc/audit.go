package rpc

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

type auditService struct {
	deputyv1.UnimplementedAuditServiceServer
	engine Engine
}

// GetChain returns the grants that lead to one, root to leaf.
func (s *auditService) GetChain(ctx context.Context, r *deputyv1.GetChainRequest) (*deputyv1.GetChainResponse, error) {
	if err := refuseUnknown(r, r.GetClient()); err != nil {
		return nil, err
	}
	who, err := credentialsOf(ctx, r.GetClient())
	if err != nil {
		return nil, err
	}
	entries, err := s.engine.Chain(ctx, exchange.Inquiry{Credentials: who, ID: r.GetJti(), Peer: peerOf(ctx)})
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

func newEntry(e *ledger.Entry) *deputyv1.Entry {
	return &deputyv1.Entry{
		Jti:        e.ID,
		Entry:      e.Seq,
		Time:       timestamppb.New(e.Time),
		Actor:      string(e.Actor),
		Caller:     string(e.Caller),
		Scope:      e.Scopes,
		Audience:   e.Audiences,
		ExpiresAt:  timestamppb.New(e.Expiry),
		ActorProof: e.ActorProof,
		ModelId:    e.ModelID,
		TraceId:    e.TraceID,
		Key:        e.HolderKey,
	}
}
