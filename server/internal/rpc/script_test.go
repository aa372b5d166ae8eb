package rpc

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/policy"
)

// script is an engine that records its calls and returns scripted answers.
type script struct {
	mu         sync.Mutex
	calls      []exchange.Call
	inquiries  []exchange.Inquiry
	exchange   func(context.Context, exchange.Call) ([]exchange.Outcome, error)
	introspect func(context.Context, exchange.Inquiry) (exchange.Introspection, error)
	chain      func(context.Context, exchange.Inquiry) ([]exchange.Recorded, error)
	found      []exchange.Recorded // the answer to every other question about entries
	next       uint64              // and its continuation
	queries    []ledger.Query
	revocation []exchange.RevokeCall
	revoke     func(context.Context, exchange.RevokeCall) (exchange.Revoked, error)
	receipts   func(context.Context, exchange.Inquiry, uint64) (exchange.Receipts, error)
	watch      func(context.Context, exchange.Inquiry) (Feed, error)
	tail       func(context.Context, exchange.Inquiry) (Tail, error)
}

func (s *script) Exchange(ctx context.Context, c exchange.Call) ([]exchange.Outcome, error) {
	s.mu.Lock()
	s.calls = append(s.calls, c)
	s.mu.Unlock()
	return s.exchange(ctx, c)
}

func (s *script) Introspect(ctx context.Context, q exchange.Inquiry) (exchange.Introspection, error) {
	s.mu.Lock()
	s.inquiries = append(s.inquiries, q)
	s.mu.Unlock()
	return s.introspect(ctx, q)
}

func (s *script) Chain(ctx context.Context, q exchange.Inquiry) ([]exchange.Recorded, error) {
	s.inquired(q)
	return s.chain(ctx, q)
}

func (s *script) inquired(q exchange.Inquiry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inquiries = append(s.inquiries, q)
}

func (s *script) Entry(_ context.Context, q exchange.Inquiry) (exchange.Recorded, error) {
	s.inquired(q)
	return s.found[0], nil
}

func (s *script) Descendants(_ context.Context, q exchange.Inquiry, after uint64, limit int) ([]exchange.Descendant, uint64, error) {
	s.inquired(q)
	s.query(ledger.Query{Before: after, Limit: limit})
	var list []exchange.Descendant
	for i, r := range s.found {
		list = append(list, exchange.Descendant{Recorded: r, Depth: i + 1})
	}
	return list, s.next, nil
}

func (s *script) query(q ledger.Query) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queries = append(s.queries, q)
}

func (s *script) Search(_ context.Context, q exchange.Inquiry, query ledger.Query) ([]exchange.Recorded, uint64, error) {
	s.inquired(q)
	s.query(query)
	return s.found, s.next, nil
}

func (s *script) Reach(_ context.Context, q exchange.Inquiry, agent delegation.Principal, _ int) (exchange.Reach, error) {
	s.inquired(q)
	return exchange.Reach{
		Time: time.Unix(1795305600, 0), Entry: 57, Suspended: true, Tokens: s.found, Live: 3, Below: 4, Truncated: true,
		Obtainable: []policy.Obtainable{{
			Path: []delegation.Principal{"user:alice", agent}, Scopes: delegation.Scopes{"calendar.read"}, Audiences: []string{"https://calendar.example"},
		}},
	}, nil
}

func (s *script) Tail(ctx context.Context, q exchange.Inquiry) (Tail, error) {
	if s.tail == nil {
		return nil, errors.New("no script for this")
	}
	return s.tail(ctx, q)
}

func (s *script) Checkpoint(_ context.Context, q exchange.Inquiry) (exchange.Checkpoint, error) {
	s.inquired(q)
	return exchange.Checkpoint{Checkpoint: ledger.Checkpoint{Size: 57, Root: tlog.Hash{1}, Time: time.Unix(1795305600, 0), Note: "note"}, VerifierKey: "key"}, nil
}

func (s *script) Proofs(_ context.Context, q exchange.Inquiry, _ uint64) (exchange.Proofs, error) {
	s.inquired(q)
	return exchange.Proofs{
		Checkpoint: exchange.Checkpoint{Checkpoint: ledger.Checkpoint{Note: "note"}}, Entry: &s.found[0],
		Inclusion: tlog.RecordProof{{2}}, Consistency: tlog.TreeProof{{3}},
	}, nil
}

func (s *script) Revoke(ctx context.Context, c exchange.RevokeCall) (exchange.Revoked, error) {
	s.mu.Lock()
	s.revocation = append(s.revocation, c)
	s.mu.Unlock()
	return s.revoke(ctx, c)
}

func (s *script) Receipts(ctx context.Context, q exchange.Inquiry, entry uint64) (exchange.Receipts, error) {
	s.mu.Lock()
	s.inquiries = append(s.inquiries, q)
	s.mu.Unlock()
	return s.receipts(ctx, q, entry)
}

func (s *script) Watch(ctx context.Context, q exchange.Inquiry) (Feed, error) {
	if s.watch == nil {
		return nil, errors.New("no script for this")
	}
	return s.watch(ctx, q)
}

// The method answers as the engine does.
func (s *script) Unauthenticated(context.Context) error {
	return delegation.Refuse(delegation.ClientUnauthenticated, "", "no credential")
}

func (s *script) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls) + len(s.inquiries) + len(s.revocation)
}

func sampleClaims() delegation.Claims {
	details, err := delegation.ParseDetails([]byte(`[{"actions":["read"],"type":"document"}]`))
	if err != nil {
		panic(err)
	}
	return delegation.Claims{
		Issuer: "https://deputy.example", Subject: "user:alice", ClientID: "agent:researcher",
		Audience: []string{"https://calendar.example"}, Scope: delegation.Scopes{"calendar.read"}, Details: details,
		IssuedAt: 1795305600, NotBefore: 1795305601, ExpiresAt: 1795305900, ID: "01JID", Txn: "01JTXN",
		Act: delegation.Chain{"agent:planner", "agent:researcher"},
		Delegation: delegation.Delegation{
			Root: "9f2c", Hops: []delegation.Hop{{ID: "01JP", Seq: 41}, {ID: "01JID", Seq: 57, Actor: 1, Key: "thumb"}}, DepthLeft: 2,
		},
		Confirmation: &delegation.Confirmation{JKT: "thumb"},
	}
}

// granting returns an engine that grants every request.
func granting() *script {
	claims := sampleClaims()
	return &script{
		exchange: func(_ context.Context, c exchange.Call) ([]exchange.Outcome, error) {
			outcomes := make([]exchange.Outcome, len(c.Children))
			for i := range outcomes {
				grant := &exchange.Grant{IssuedTokenType: delegation.TokenTypeAccessToken, ExpiresIn: 5 * time.Minute, Claims: claims, Entry: 57}
				if !c.ValidateOnly {
					grant.AccessToken = "signed-secret"
				}
				outcomes[i].Grant = grant
			}
			return outcomes, nil
		},
		introspect: func(context.Context, exchange.Inquiry) (exchange.Introspection, error) {
			return exchange.Introspection{Claims: &claims}, nil
		},
		found: []exchange.Recorded{{Entry: &ledger.Entry{Seq: 57, Kind: ledger.KindGrant}, State: exchange.StateLive}},
		chain: func(context.Context, exchange.Inquiry) ([]exchange.Recorded, error) {
			at := time.Unix(1795305600, 0)
			return []exchange.Recorded{
				{State: exchange.StateLive, Entry: &ledger.Entry{ID: "01JP", Seq: 41, Txn: "01JTXN", Root: "9f2c", Subject: "user:alice", Actor: "agent:planner", Caller: "agent:planner", Time: at, Expiry: at.Add(time.Hour), ActorProof: "caller", Kind: ledger.KindGrant, Outcome: ledger.Granted}},
				{State: exchange.StateRevoked, RevokedBy: 58, Entry: &ledger.Entry{
					ID: "01JID", Parent: "01JP", Seq: 57, Kind: ledger.KindGrant, Outcome: ledger.Granted, Actors: delegation.Chain{"agent:planner", "agent:researcher"}, Txn: "01JTXN", Root: "9f2c", Subject: "user:alice", Actor: "agent:researcher", Caller: "agent:planner", Time: at, Expiry: at.Add(time.Hour),
					Scopes: delegation.Scopes{"calendar.read"}, Audiences: []string{"https://calendar.example"}, ActorProof: "actor_jwt", ModelID: "model", TraceID: "trace", HolderKey: "thumb",
				}},
			}, nil
		},
		revoke: func(_ context.Context, c exchange.RevokeCall) (exchange.Revoked, error) {
			at := time.Unix(1795305600, 0)
			done := exchange.Revoked{Tokens: 3, Chains: 2, Counted: true}
			if c.DryRun {
				done.Grants = []*ledger.Entry{{
					ID: "01JID", Parent: "01JP", Seq: 57, Txn: "01JTXN", Subject: "user:alice", Actor: "agent:researcher",
					Scopes: delegation.Scopes{"calendar.read"}, Audiences: []string{"https://calendar.example"}, Expiry: at.Add(time.Hour),
				}}
				return done, nil
			}
			target := c.Target
			if target == (delegation.Target{}) {
				target = delegation.Target{Kind: delegation.BanToken, ID: "01JID"}
			}
			done.Revocation = &delegation.Revocation{Seq: 58, Prev: 12, Target: target, At: at, Until: at.Add(time.Hour)}
			return done, nil
		},
		receipts: func(context.Context, exchange.Inquiry, uint64) (exchange.Receipts, error) {
			return exchange.Receipts{List: []guard.Receipt{{ID: "v1", Verifier: "service:tool", Applied: 58, SeenAt: time.Unix(1795305601, 0)}}}, nil
		},
	}
}
