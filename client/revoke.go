package client

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// Target is what a revocation is aimed at. Bans (token, grant, chain, root token, key) hit
// everything that names them, now and later. Cut-offs (agent, subject, everything) hit what was
// granted before them, so that a new grant works.
type Target struct {
	token, rootToken Secret
	target           delegation.Target
}

// RevokeToken bans a derived token and all tokens below it. The token may have expired: its
// descendants expire no later.
func RevokeToken(token Secret) Target { return Target{token: token} }

// RevokeRootToken bans everything that descends from a token of a trusted issuer.
func RevokeRootToken(token Secret) Target { return Target{rootToken: token} }

// RevokeGrant bans the token with this jti and all below it.
func RevokeGrant(jti string) Target { return target(delegation.BanToken, jti) }

// RevokeChain bans every token of a chain, by its txn.
func RevokeChain(txn string) Target { return target(delegation.BanChain, txn) }

// RevokeRoot bans everything that descends from a root token, by its digest (the claim
// delegation.root).
func RevokeRoot(digest string) Target { return target(delegation.BanRoot, digest) }

// RevokeKey bans a key permanently, by its RFC 7638 thumbprint: all tokens that are bound to it,
// and all tokens below them.
func RevokeKey(thumbprint string) Target { return target(delegation.BanKey, thumbprint) }

// RevokeAgent cuts off what was granted to an agent, or for it.
func RevokeAgent(agent delegation.Principal) Target {
	return target(delegation.CutAgent, string(agent))
}

// RevokeSubject cuts off what was granted for a subject.
func RevokeSubject(subject delegation.Principal) Target {
	return target(delegation.CutSubject, string(subject))
}

// RevokeAgentFor cuts off what was granted to an agent for one subject.
func RevokeAgentFor(agent, subject delegation.Principal) Target {
	return Target{target: delegation.Target{Kind: delegation.CutAgentSubject, ID: string(agent), Subject: subject}}
}

// RevokeEverything cuts off everything in the tenant.
func RevokeEverything() Target { return target(delegation.CutTenant, "") }

func target(kind delegation.TargetKind, id string) Target {
	return Target{target: delegation.Target{Kind: kind, ID: id}}
}

// RevokeRequest names what to revoke and the reason.
type RevokeRequest struct {
	// Target is the result of a function such as RevokeToken or RevokeAgent. Required.
	Target Target
	// Reason is recorded in the ledger.
	Reason string
	// DryRun revokes nothing and returns what would be revoked.
	DryRun bool
}

// Revoked is the effect of a revocation, or in a dry run the effect that it would have.
type Revoked struct {
	// Revocation as the ledger numbered it; nil in a dry run, and where there was nothing to
	// revoke.
	Revocation *delegation.Revocation
	// Tokens counts the tokens that were alive, Chains the chains that they belong to.
	Tokens, Chains int
	// Counted: Deputy had the time to count them. Otherwise both are 0, whatever was revoked.
	Counted bool
	// Grants of these tokens, oldest first, at most 1,000. Set in a dry run only.
	Grants []AffectedGrant
}

// AffectedGrant is the grant of one token that is revoked.
type AffectedGrant struct {
	JTI      string
	Parent   string // jti, or "" for a grant of a root token
	Txn      string
	Entry    uint64 // number in the ledger
	Subject  delegation.Principal
	Actor    delegation.Principal
	Scope    delegation.Scopes
	Audience []string
	Expiry   time.Time
}

// Revoke revokes authority. When it returns, the revocation is durable: no server accepts what it
// hits, connected verifiers refuse it within a second, and disconnected verifiers refuse everything
// within ten. The holder of a token may revoke it, a subject what was delegated for it, an agent's
// operator that agent, and a responder everything.
func (c *Client) Revoke(ctx context.Context, request RevokeRequest) (*Revoked, error) {
	t := request.Target
	message := &deputyv1.RevokeRequest{
		Token: t.token.Reveal(), RootToken: t.rootToken.Reveal(), Reason: request.Reason, DryRun: request.DryRun,
	}
	switch {
	case t.target.Kind != "":
		if err := t.target.Check(); err != nil {
			return nil, err
		}
		message.Target = &deputyv1.RevocationTarget{Kind: wireKind(t.target.Kind), Id: t.target.ID, Subject: string(t.target.Subject)}
	case t.token.IsZero() && t.rootToken.IsZero():
		return nil, delegation.Refuse(delegation.ParameterMissing, "target", "nothing is named to be revoked")
	}
	response, err := call(ctx, c, c.revocations.Revoke, message)
	if err != nil {
		return nil, err
	}
	return readRevoked(response, request.DryRun)
}

// SuspendRequest names the agent to suspend and the reason.
type SuspendRequest struct {
	Agent delegation.Principal
	// Reason is recorded in the ledger.
	Reason string
	// DryRun suspends nothing and returns what would be revoked.
	DryRun bool
}

// Suspend refuses every token whose chain holds the agent, later tokens included, until Resume. It
// is durable and permitted as Revoke.
func (c *Client) Suspend(ctx context.Context, request SuspendRequest) (*Revoked, error) {
	response, err := call(ctx, c, c.revocations.Suspend, &deputyv1.SuspendRequest{
		Agent: string(request.Agent), Reason: request.Reason, DryRun: request.DryRun,
	})
	if err != nil {
		return nil, err
	}
	return readRevoked(response, request.DryRun)
}

// Resume lets an agent be granted tokens again. No token that is older than its suspension becomes
// valid again. The reason is recorded in the ledger.
func (c *Client) Resume(ctx context.Context, agent delegation.Principal, reason string) (*delegation.Revocation, error) {
	response, err := call(ctx, c, c.revocations.Resume, &deputyv1.ResumeRequest{Agent: string(agent), Reason: reason})
	if err != nil {
		return nil, err
	}
	r, err := readRevocation(response.GetRevocation())
	if err != nil {
		return nil, malformed("%v", err)
	}
	return &r, nil
}

// Receipt is how far a verifier has applied revocations.
type Receipt struct {
	ID       string               // id of the verifier's connection
	Verifier delegation.Principal // the principal as which it follows
	Applied  uint64               // number of the newest revocation that it had applied
	SeenAt   time.Time            // when it reported that: every second while connected
}

// Receipts returns the last mark of each verifier that follows the tenant's revocations. Responders
// may pass entry 0, others the number of a revocation of their own. If Deputy has only the
// verifiers of one instance, because Redis does not answer, they are returned together with
// [ErrPartialReceipts].
func (c *Client) Receipts(ctx context.Context, entry uint64) ([]Receipt, error) {
	response, err := call(ctx, c, c.revocations.GetReceipts, &deputyv1.GetReceiptsRequest{Entry: entry})
	if err != nil {
		return nil, err
	}
	receipts := make([]Receipt, 0, len(response.GetReceipts()))
	for _, r := range response.GetReceipts() {
		receipts = append(receipts, Receipt{
			ID: r.GetId(), Verifier: delegation.Principal(r.GetVerifier()), Applied: r.GetApplied(), SeenAt: r.GetSeenAt().AsTime(),
		})
	}
	if response.GetPartial() {
		return receipts, ErrPartialReceipts
	}
	return receipts, nil
}

// ErrPartialReceipts is returned by [Client.Receipts] with the verifiers of one instance. There may
// be others, which are unknown.
var ErrPartialReceipts = errors.New("deputy: Redis does not answer: only the verifiers of one instance are known")

func wireKind(kind delegation.TargetKind) deputyv1.RevocationKind {
	for wire, k := range revocationKinds {
		if k == kind {
			return wire
		}
	}
	return deputyv1.RevocationKind_REVOCATION_KIND_UNSPECIFIED
}

// revokedWire is the common part of the responses of Revoke and Suspend.
type revokedWire interface {
	GetRevocation() *deputyv1.Revocation
	GetTokens() uint32
	GetChains() uint32
	GetCounted() bool
	GetGrants() []*deputyv1.AffectedGrant
}

func readRevoked(response revokedWire, dryRun bool) (*Revoked, error) {
	revoked := &Revoked{Tokens: int(response.GetTokens()), Chains: int(response.GetChains()), Counted: response.GetCounted()}
	if m := response.GetRevocation(); m != nil {
		if dryRun {
			return nil, malformed("something was revoked in a dry run")
		}
		r, err := readRevocation(m)
		if err != nil {
			return nil, malformed("%v", err)
		}
		revoked.Revocation = &r
	}
	for _, g := range response.GetGrants() {
		scope, err := delegation.NewScopes(g.GetScope()...)
		if err != nil {
			return nil, malformed("scope: %v", err)
		}
		revoked.Grants = append(revoked.Grants, AffectedGrant{
			JTI: g.GetJti(), Parent: g.GetParent(), Txn: g.GetTxn(), Entry: g.GetEntry(),
			Subject: delegation.Principal(g.GetSubject()), Actor: delegation.Principal(g.GetActor()),
			Scope: scope, Audience: slices.Clone(g.GetAudience()), Expiry: moment(g.GetExpiresAt()),
		})
	}
	return revoked, nil
}

func moment(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
