package exchange

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/policy"
)

// Reach is the authority of an agent now: the tokens that it holds and, separately, what it could
// still obtain.
type Reach struct {
	Time      time.Time
	Entry     uint64     // the newest entry that was taken into account
	Suspended bool       // the agent can use and obtain nothing until it is resumed
	Tokens    []Recorded // live, as the current actor; the newest first, at most MaxReachTokens
	Live      int        // the number of all such tokens
	Below     int        // live tokens of other actors in whose chain it is
	Truncated bool       // there are more than were counted

	// Seen is the number of the newest entry in which the agent is an actor or the caller. It is
	// set only if Live and Below are 0. 0 means that no such entry exists, or with SeenTruncated
	// that none is in the part of the ledger that was read.
	Seen          uint64
	SeenTruncated bool

	Obtainable          []policy.Obtainable
	ObtainableTruncated bool // there may be more
}

// Limits of one Reach: tokens, and delegation edges to follow.
const (
	MaxReachTokens    = 1000
	DefaultReachDepth = 3
	MaxReachDepth     = 8
)

// Reach returns an agent's authority now. The caller must be an auditor, an operator of the agent,
// or the agent itself. depth is the number of delegation edges that are followed upwards; 0 means
// DefaultReachDepth.
//
// Obtainable is what OpenFGA permits now, in chains without a suspended principal. Root tokens and
// the configuration may permit less. If OpenFGA does not respond in time, Obtainable is empty and
// ObtainableTruncated is set. The agent's tokens are returned in any case.
func (e *Engine) Reach(ctx context.Context, q Inquiry, agent delegation.Principal, depth int) (Reach, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, err := e.admitReader(ctx, q)
	if err != nil {
		return Reach{}, err
	}
	if _, err := delegation.ParsePrincipal(string(agent)); err != nil {
		return Reach{}, delegation.Refuse(delegation.ParameterInvalid, "agent", "%v", err)
	}
	if depth < 0 || depth > MaxReachDepth {
		return Reach{}, delegation.Refuse(delegation.ParameterInvalid, "depth", "at most %d", MaxReachDepth)
	}
	if depth == 0 {
		depth = DefaultReachDepth
	}
	sight, err := e.mayRead(ctx, by, agent)
	if err != nil {
		return Reach{}, err
	}
	if !sight.reaches(agent) {
		return Reach{}, e.nothing(ctx, by, q, sight, "agent", "no such agent, or none that you may ask about")
	}
	return e.reach(ctx, by, sight, agent, min(depth, by.tenant.Limits.MaxDepth))
}

// reaches reports whether the reader may see the authority of the agent.
func (s sight) reaches(agent delegation.Principal) bool {
	for _, p := range s.as {
		if p == agent {
			return true
		}
	}
	return s.whole
}

func (e *Engine) reach(ctx context.Context, by inquirer, s sight, agent delegation.Principal, depth int) (Reach, error) {
	answer := Reach{Time: e.config.Now(), Suspended: suspended(by.revoked, agent)}
	var holding ledger.AgentView
	both, held := errgroup.WithContext(ctx)
	both.Go(func() (err error) {
		holding, err = e.config.Ledger.AgentView(held, by.tenant.Name, agent, MaxReachTokens)
		return err
	})
	both.Go(func() error {
		obtainable, complete, err := by.tenant.Policy.Obtainable(held, policy.Search{
			Agent: agent, Depth: depth,
			Begins: by.tenant.Trust.MayBegin,
			Usable: func(p delegation.Principal) bool { return !suspended(by.revoked, p) },
		})
		if err != nil && !errors.Is(held.Err(), context.Canceled) {
			e.config.Logger.WarnContext(ctx, "what an agent could obtain is not known", "tenant", by.tenant.Name, "cause", errors.Unwrap(err))
		}
		answer.Obtainable, answer.ObtainableTruncated = obtainable, !complete
		return nil
	})
	if err := both.Wait(); err != nil {
		return Reach{}, delegation.AsError(err)
	}
	var err error
	answer.Entry, answer.Live, answer.Below, answer.Truncated = holding.Head, holding.Live, holding.Below, holding.Truncated
	if answer.Tokens, err = e.show(ctx, by, s, holding.Tokens...); err != nil {
		return Reach{}, err
	}
	if holding.Live+holding.Below == 0 {
		answer.Seen, answer.SeenTruncated, err = e.lastSeen(ctx, by.tenant, agent)
	}
	return answer, err
}

// lastSeen finds the newest entry in which an agent is an actor or the caller. It distinguishes an
// agent that never existed from one that holds nothing. A request that only names the agent does
// not count, because a request may contain any name.
func (e *Engine) lastSeen(ctx context.Context, tenant *Tenant, agent delegation.Principal) (seen uint64, truncated bool, err error) {
	for _, q := range []ledger.Query{{Actor: agent}, {Caller: agent}} {
		q.Limit, q.Seen = 1, func(entry *ledger.Entry) bool { return stands(entry, agent) }
		found, before, err := e.config.Ledger.Search(ctx, tenant.Name, q)
		if err != nil {
			return 0, false, delegation.AsError(err)
		}
		if len(found) > 0 {
			seen = max(seen, found[0].Seq)
		} else if before > 0 {
			truncated = true
		}
	}
	return seen, truncated, nil
}

func suspended(revoked *delegation.RevocationSet, p delegation.Principal) bool {
	_, hit := revoked.HitCaller(p, "")
	return hit
}
