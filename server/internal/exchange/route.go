package exchange

import (
	"slices"

	"deputy.example/deputy/client/delegation"
)

// route returns the actor of the child, or the refusal of a caller that may not request it. The
// path follows from the tokens and the caller, never from the presence of parameters:
//
//   - hand down: the caller is the current actor and names another;
//   - self-narrowing: the caller is the current actor and names no actor, or itself;
//   - step in: the caller is the new actor itself, and the subject token is a root token or names it
//     in may_act.
//
// named is nil if the request names no actor; the caller is then the actor. held is what the
// request proves that the caller holds. A token for the caller is bound to it, unless the request
// names the caller with another key, or the subject token of a self-narrowing is bound already.
func (p parent) route(caller delegation.Principal, named *actor, held delegation.Confirmation, l Limits) (actor, error) {
	next := actor{principal: caller, proof: "caller"}
	if named != nil {
		next = *named
	}
	current := p.actors.Current()
	if current != "" && caller == current && next.principal == current {
		return p.selfNarrow(next, held)
	}
	if next.principal == caller && next.binding.Key() == "" {
		next.binding = held
	}
	switch {
	case current != "" && caller == current:
		// Hand down: the current actor decides.
	case caller != next.principal:
		return actor{}, delegation.Refuse(delegation.CallerNotActor, "subject_token", "only its current actor may hand it to another")
	case current != "" && (p.mayAct == nil || *p.mayAct != next.principal):
		return actor{}, delegation.Refuse(delegation.CallerNotActor, "subject_token", "the caller is not its current actor and may_act does not name it")
	}
	if p.mayAct != nil && p.isRoot() && *p.mayAct != next.principal {
		return actor{}, delegation.Refuse(delegation.ActorNotAllowed, "subject_token", "its may_act names another actor")
	}
	if p.actors.Contains(next.principal) && !l.ActorMayRecur {
		return actor{}, delegation.Refuse(delegation.ActorInChain, "actor_token", "the actor is in the chain already")
	}
	return p.withOwnKey(next)
}

// selfNarrow keeps the actor and its key. A bound token stays bound to the same key. An unbound
// token may become bound.
func (p parent) selfNarrow(next actor, held delegation.Confirmation) (actor, error) {
	keep := held
	if p.binding != nil {
		keep = *p.binding
	}
	if next.binding.Key() == "" {
		next.binding = keep
	}
	switch {
	case p.binding == nil:
		return p.withOwnKey(next)
	case next.binding != keep:
		return actor{}, delegation.Refuse(delegation.ActorUnconfirmed, "actor_confirmation", "self-narrowing keeps the key of the subject token")
	}
	return next, nil
}

// withOwnKey refuses an actor with a key that an earlier token of the chain is bound to. An actor
// that hands a token down must not keep the means to use it.
func (p parent) withOwnKey(next actor) (actor, error) {
	if key := next.binding.Key(); key != "" && slices.ContainsFunc(p.hops, func(h delegation.Hop) bool { return h.Key == key }) {
		return actor{}, delegation.Refuse(delegation.ActorUnconfirmed, "actor_confirmation", "the key belongs to an ancestor")
	}
	return next, nil
}
