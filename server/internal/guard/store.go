package guard

import (
	"context"
	"time"

	"deputy.example/deputy/client/delegation"
)

// store is what all instances of a deployment share: a Redis, or the memory of the process where
// there is one instance (Memory). It may lose all that it holds at any time.
//
// An error means that the store did not carry out the call or that its result is unknown, unless a
// method names other errors. A call ends with its context.
type store interface {
	limits
	lists
	notes

	// ready returns nil if the store takes writes.
	ready(ctx context.Context) error
	// clock is the time by the clock of the store's machine.
	clock(ctx context.Context) (time.Time, error)
}

// limits holds the rates of callers, the credentials that were used, and the nonces.
type limits interface {
	// admit notes all uses. If none of them was noted before, it takes the cost from the caller's
	// bucket. It does both or neither of them for two calls at once.
	admit(ctx context.Context, a admission) (admitted, error)
	// nonces returns the nonce of the period, which is fresh if the period has none yet, and after
	// it that of the period before, if there is one. A nonce is kept for two periods.
	nonces(ctx context.Context, tenant string, period int64, fresh string) ([]string, error)
}

type admission struct {
	tenant string
	caller delegation.Principal
	cost   int
	limit  Limit
	uses   []noted
}

// noted is a use as a store remembers it: for its life, which is at least a millisecond.
type noted struct {
	digest string
	life   time.Duration
}

// admitted is the result of an admission. The zero value admits.
type admitted struct {
	replayed int           // 1 for the first use, 2 for the second; 0: no use was noted before
	wait     time.Duration // until the bucket holds the cost; 0: the cost was taken
}

// lists holds each tenant's revocations. Readers see a change whole or not at all.
type lists interface {
	// publish adds the revocation if it follows the head, and wakes all instances. It does nothing
	// if the lists have it. It returns ErrGap, ErrRebuilding or ErrSuperseded.
	publish(ctx context.Context, tenant string, r delegation.Revocation, incarnation uint64) error
	// replace makes these the tenant's lists, complete up to last, and wakes all instances. It
	// returns ErrAhead, ErrRebuilding or ErrSuperseded.
	replace(ctx context.Context, tenant string, list marks, last, incarnation uint64) error
	// discard removes the tenant's lists and its witness.
	discard(ctx context.Context, tenant string) error
	// head reads up to which number the lists are complete. ErrGap: there is something else.
	head(ctx context.Context, tenant string) (head, error)
	// look reads what shows at once of several tenants' lists, in their order.
	look(ctx context.Context, tenants []string) ([]Peek, error)
	// fields reads some of the lists' names and values, and where to go on: 0 at the end. A field
	// that is there all the time is read at least once. ErrGap: there is something else.
	fields(ctx context.Context, tenant string, cursor uint64) (pairs []string, next uint64, err error)
	// wake is Guard.Wake.
	wake(ctx context.Context, tenants []string) <-chan []string
}

// head is what shows at once of a tenant's lists.
type head struct {
	there bool   // there are lists
	seq   uint64 // up to which they are complete
	sound bool   // what belongs to them is what it should be, or is not there
}

// notes holds what instances report: how far ledgers have come, and what verifiers have applied.
type notes interface {
	// testify keeps each witness unless the one that is there is of a later incarnation, or further.
	testify(ctx context.Context, of map[string]Witness) error
	witness(ctx context.Context, tenant string) (Witness, error)
	// saw keeps receipts for at least twice receiptsFor.
	saw(ctx context.Context, tenant string, receipts []Receipt) error
	// receipts returns at least the newest receipt of each connection that was seen within
	// receiptsFor before now.
	receipts(ctx context.Context, tenant string, now time.Time) ([]Receipt, error)
}
