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

// Target is what a revocation is aimed at. Bans (token, grant, chain, root token, key) hit whatever
// names them, now and later; cut-offs (agent, subject, everything) hit what was granted before them,
// so that a fresh start works.
type Target struct {
	token, rootToken Secret
	target           delegation.Target
}

// RevokeToken bans a derived token and all below it. One that has expired may be named too: what
// descends from it is as old at most.
func RevokeToken(token Secret) Target { return Target{token: token} }

// RevokeRootToken bans everything that descends from a token of a trusted issuer.
func RevokeRootToken(token Secret) Target { return Target{rootToken: token} }

// RevokeGrant bans the token with this jti and all below it.
func RevokeGrant(jti string) Target { return target(delegation.BanToken, jti) }

// RevokeChain bans every token of a chain, by its txn.
func RevokeChain(txn string) Target { return target(delegation.BanChain, txn) }

// RevokeRoot bans everything that descends from a root token, by its digest (the claim delegation.root).
func RevokeRoot(digest string) Target { return target(delegation.BanRoot, digest) }

// RevokeKey bans a key for good, by its RFC 7638 thumbprint: whatever is bound to it, or below what is.
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

// RevokeRequest says what to revoke and why.
type RevokeRequest struct {
	// Target comes from one of the functions RevokeToken, RevokeAgent, … Required.
	Target Target
	// Reason is recorded in the ledger.
	Reason string
	// DryRun revokes nothing and says what would die.
	DryRun bool
}

// Revoked is what a revocation did, or in a dry run would do.
type Revoked struct {
	// Revocation as the ledger numbered it; nil in a dry run, and where there was nothing to revoke.
	Revocation *delegation.Revocation
	// Tokens that were alive, and the Chains that they belong to.
	Tokens, Chains int
	// Counted says that Deputy had the time to count them. Otherwise both are 0, whatever died.
	Counted bool
	// Grants of these tokens, oldest first, at most 1,000: in a dry run only.
	Grants []AffectedGrant
}

// AffectedGrant is the grant of one token that dies.
type AffectedGrant struct {
	JTI      string
	Parent   string // jti, or "" for a grant of a root token
	Txn      string
	Entry    uint64 // the ledger's number
	Subject  delegation.Principal
	Actor    delegation.Principal
	Scope    delegation.Scopes
	Audience []string
	Expiry   time.Time
}

// Revoke takes authority back. When it returns, the revocation is durable: no server accepts what it
// hits, verifiers that are connected refuse it within a second, and those that are cut off refuse
// everything within ten. The holder of a token may revoke it, a subject what was delegated for it, an
// agent's operator that agent, and a responder everything.
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

// SuspendRequest says which agent to suspend and why.
type SuspendRequest struct {
	Agent delegation.Principal
	// Reason is recorded in the ledger.
	Reason string
	// DryRun suspends nothing and says what would die.
	DryRun bool
}

// Suspend refuses every token in whose chain the agent stands, those to come included, until Resume.
// It holds and is allowed as Revoke.
func (c *Client) Suspend(ctx context.Context, request SuspendRequest) (*Revoked, error) {
	response, err := call(ctx, c, c.revocations.Suspend, &deputyv1.SuspendRequest{
		Agent: string(request.Agent), Reason: request.Reason, DryRun: request.DryRun,
	})
	if err != nil {
		return nil, err
	}
	return readRevoked(response, request.DryRun)
}

// Resume lets an agent be granted tokens again. None that is older than its suspension comes back to
// life. The reason is recorded in the ledger.
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

// Receipt says how far a verifier has come.
type Receipt struct {
	ID       string               // of the verifier's connection
	Verifier delegation.Principal // as whom it follows
	Applied  uint64               // the number of the newest revocation that it had applied
	SeenAt   time.Time            // when it said so; a connected verifier does every second
}

// Receipts returns the last mark of each verifier that follows the tenant's revocations. Responders
// may ask with entry 0, others with the number of a revocation of their own. If Deputy knows only the
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

// ErrPartialReceipts is returned by [Client.Receipts] with the verifiers of one instance. There may be
// others, of which nothing is known.
var ErrPartialReceipts = errors.New("deputy: Redis does not answer: only the verifiers of one instance are known")

func wireKind(kind delegation.TargetKind) deputyv1.RevocationKind {
	for wire, k := range revocationKinds {
		if k == kind {
			return wire
		}
	}
	return deputyv1.RevocationKind_REVOCATION_KIND_UNSPECIFIED
}

// revokedWire is what the responses of Revoke and Suspend have in common.
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
