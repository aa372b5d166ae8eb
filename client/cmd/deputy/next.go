package main

import (
	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// nextForReason returns what the user can do about a refusal.
func nextForReason(e *delegation.Error) string {
	switch e.Reason {
	case delegation.ClientUnauthenticated:
		return "check --client-id, --client-key and that --issuer equals the tenant's issuer byte for byte; or name a fresh --workload-token-file"
	case delegation.AssertionReplayed:
		return "run the command again: every try signs a new assertion"
	case delegation.CallerNotActor:
		return "authenticate as the current actor of the subject token: deputy decode shows it"
	case delegation.SubjectTokenInvalid, delegation.ActorTokenInvalid:
		return "deputy decode shows what is wrong with a token; replace an expired token by a new one"
	case delegation.ScopeExceedsParent, delegation.AudienceExceedsParent, delegation.DetailsExceedParent,
		delegation.LifetimeExceedsParent, delegation.DepthExceedsParent:
		return "request no more than the subject token holds: deputy decode shows it"
	case delegation.AudienceMissing, delegation.AudienceNotSingle:
		return "name one --audience or --resource"
	case delegation.DepthExhausted:
		return "this token may not be delegated further: exchange one of its ancestors instead"
	case delegation.EdgeNotPermitted, delegation.ScopeNotPermitted, delegation.AudienceNotPermitted, delegation.DetailsNotPermitted:
		return missingRelation(e)
	case delegation.TokenRevoked:
		return "a token of the chain was revoked: start again from a root token"
	case delegation.ProofRequired:
		return "deputy decode shows what the token is bound to: name that key with --dpop-key, or that certificate with --tls-cert and --tls-key"
	case delegation.ProofInvalid:
		return "check that the clock of this machine is right and that the host in --addr is in listen.grpc.authorities"
	case delegation.ProofReplayed, delegation.ProofNonceNeeded:
		return "run the command again: every try creates a new proof with the newest nonce"
	case delegation.BearerNotIssued:
		return "name your own key with --dpop-key or --tls-cert, or an actor that has a key: this tenant issues no bearer tokens"
	case delegation.ActorUnconfirmed:
		return "--actor-confirmation must be the RFC 7638 thumbprint of a key that is registered for that agent"
	case delegation.IdempotencyConflict:
		return "use a new --idempotency-key for a new request"
	case delegation.NotFound:
		return nextForNotFound(e.Field)
	case delegation.DependencyDown:
		return "check that deputyd is running at --addr and whether it needs --plaintext; your tokens are unchanged"
	case delegation.RateLimited:
		return "wait a moment and try again"
	}
	return ""
}

// nextForNotFound names the roles that may see an object. The server gives one answer for an object
// that does not exist and for one that the caller may not see.
func nextForNotFound(field string) string {
	switch field {
	case "target", "token", "root_token":
		return "a caller may revoke tokens that it holds, tokens of which it is the subject, and agents that it operates; a responder may revoke all"
	case "agent":
		return "the agent itself, its operators, auditors and responders may read this; its operators and responders may suspend it"
	case "after":
		return "only auditors and responders may read the whole log"
	case "checkpoint":
		return "the first checkpoint follows the first entry by a second; the tenant's configuration needs audit.checkpoint_key"
	}
	return "check the jti; its subject, its actors, operators of its agents, auditors and responders may read an entry"
}

// missingRelation names the relation if the server returned it, which it does if the caller may know.
func missingRelation(e *delegation.Error) string {
	user, relation, object := e.Metadata["user"], e.Metadata["relation"], e.Metadata["object"]
	if user == "" || relation == "" || object == "" {
		return "an administrator of OpenFGA can grant the relation; the ledger entry names it"
	}
	return "an administrator of OpenFGA can grant the relation: (" + user + ", " + relation + ", " + object + ")"
}

func nextForAccess(e *client.AccessError) string {
	if e.Code == client.AccessUnavailable {
		return "check that the issuer's keys can be fetched from this machine; --jwks names another address or a file"
	}
	return "deputy decode --unverified shows the claims without verification; --issuer and --jwks name the expected issuer"
}
