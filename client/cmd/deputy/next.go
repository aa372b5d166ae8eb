package main

import (
	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// nextForReason says what a person can do about a refusal.
func nextForReason(e *delegation.Error) string {
	switch e.Reason {
	case delegation.ClientUnauthenticated:
		return "check --client-id, --client-key and that --issuer is the tenant's issuer byte for byte; or name a fresh --workload-token-file"
	case delegation.AssertionReplayed:
		return "run the command again: every try signs a new assertion"
	case delegation.CallerNotActor:
		return "call as the current actor of the subject token: deputy decode names it"
	case delegation.SubjectTokenInvalid, delegation.ActorTokenInvalid:
		return "deputy decode says what is wrong with a token; one that has expired has to be fetched anew"
	case delegation.ScopeExceedsParent, delegation.AudienceExceedsParent, delegation.DetailsExceedParent,
		delegation.LifetimeExceedsParent, delegation.DepthExceedsParent:
		return "ask for no more than the subject token has: deputy decode shows it"
	case delegation.AudienceMissing, delegation.AudienceNotSingle:
		return "name one --audience or --resource"
	case delegation.DepthExhausted:
		return "this chain may not grow: exchange one of its ancestors instead"
	case delegation.EdgeNotPermitted, delegation.ScopeNotPermitted, delegation.AudienceNotPermitted, delegation.DetailsNotPermitted:
		return missingRelation(e)
	case delegation.TokenRevoked:
		return "the chain was revoked: start again from a root token"
	case delegation.ProofRequired:
		return "deputy decode says what the token is bound to: name that key with --dpop-key, or that certificate with --tls-cert and --tls-key"
	case delegation.ProofInvalid:
		return "is the clock of this machine right, and does --addr call Deputy by one of its own names (listen.grpc.authorities)?"
	case delegation.ProofReplayed, delegation.ProofNonceNeeded:
		return "run the command again: every try makes a new proof, with the newest nonce"
	case delegation.BearerNotIssued:
		return "name your own key with --dpop-key or --tls-cert, or an actor with a key of its own: this tenant issues no bearer tokens"
	case delegation.ActorUnconfirmed:
		return "--actor-confirmation must be the RFC 7638 thumbprint of a key that is registered for that agent"
	case delegation.IdempotencyConflict:
		return "use a new --idempotency-key for a new request"
	case delegation.NotFound:
		return nextForNotFound(e.Field)
	case delegation.DependencyDown:
		return "is deputyd running at --addr, and is --plaintext right for it? nothing that you hold has changed"
	case delegation.RateLimited:
		return "wait a moment and try again"
	}
	return ""
}

// nextForNotFound says who may see what: what does not exist and what one may not see is one answer.
func nextForNotFound(field string) string {
	switch field {
	case "target", "token", "root_token":
		return "you may revoke a token that you hold, what was delegated for you and an agent that you operate; a responder may revoke everything"
	case "agent":
		return "an agent is for itself, its operators, auditors and responders to ask about, and for its operators and responders to stop"
	case "after":
		return "the whole log is for auditors and responders"
	case "checkpoint":
		return "it takes a second after the first entry; and does the tenant's configuration have audit.checkpoint_key?"
	}
	return "check the jti; an entry is shown to its subject and its actors, to operators of its agents, to auditors and responders"
}

// missingRelation names the relation where the server told it: only where the caller may know.
func missingRelation(e *delegation.Error) string {
	user, relation, object := e.Metadata["user"], e.Metadata["relation"], e.Metadata["object"]
	if user == "" || relation == "" || object == "" {
		return "whoever manages OpenFGA can grant the relation; the ledger entry names it"
	}
	return "whoever manages OpenFGA can grant it: (" + user + ", " + relation + ", " + object + ")"
}

func nextForAccess(e *client.AccessError) string {
	if e.Code == client.AccessUnavailable {
		return "can the issuer's keys be fetched from here? --jwks names another address or a file"
	}
	return "deputy decode --unverified shows what it claims, unproven; --issuer and --jwks say whose token it should be"
}
