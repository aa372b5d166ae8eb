// Package guard holds what the instances of a deployment share besides the ledger: how much of its
// rate a caller has used, which credentials were used, which nonces a proof may hold, which
// revocations are in force, how far ledgers have come and what verifiers have applied.
//
// All of it is in Redis, or in the memory of the process where there is one instance (Memory). It
// may be lost at any time, and nothing here decides alone. The ledger's row decides on a replay, so
// guard only refuses early. The lists of revocations are published from the ledger, compared with
// it, and replaced when they differ. When Redis fails, is slow or returns nonsense, guard refuses
// (unavailable), except calls that revoke or read (AdmitOrLimit): the instance then limits them by
// itself.
//
// In Redis it owns the keys under "{tenant}:rate:", "{tenant}:replay:", "{tenant}:nonce:",
// "{tenant}:revoked:" and "{tenant}:ledger:", the key "deputy:probe", and nothing else.
//
// It must not know tokens, policy or the ledger.
package guard

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
)

const (
	defaultTimeout = 500 * time.Millisecond
	dependency     = "Redis"
)

// Config configures a Guard. It has a Client or a Memory, and not both.
type Config struct {
	// Client reaches Redis. Make it with Dial, or set what Dial sets: without
	// ContextTimeoutEnabled, Timeout would not bound a call to a Redis that hangs.
	Client redis.UniversalClient
	// Memory takes the place of Redis where the deployment has one instance.
	Memory *Memory
	// Timeout bounds each call. Default 500 ms.
	Timeout time.Duration
	// Now is the clock that turns a use's Until into a time to live. Rates are measured by the
	// clock of Redis, which all instances share. Default time.Now.
	Now func() time.Time
	// Registerer gets the metric deputy_guard_seconds. Default: no metrics.
	Registerer prometheus.Registerer
}

// Guard limits rates, refuses replays early and keeps the lists of revocations. It is safe for
// concurrent use.
type Guard struct {
	store     store
	timeout   time.Duration
	now       func() time.Time
	seconds   *prometheus.HistogramVec
	alone     alone
	undecided alone
	own       ownNonces

	incarnation atomic.Uint64 // of the ledger that is published from
}

// New makes a Guard. It does not connect to Redis; Ready does.
func New(c Config) *Guard {
	g := &Guard{timeout: c.Timeout, now: c.Now}
	if g.timeout <= 0 {
		g.timeout = defaultTimeout
	}
	if g.now == nil {
		g.now = time.Now
	}
	if c.Memory != nil {
		g.store = c.Memory
	} else {
		g.store = newRedisStore(c.Client, g.timeout)
	}
	g.seconds = promauto.With(c.Registerer).NewHistogramVec(prometheus.HistogramOpts{
		Name:    "deputy_guard_seconds",
		Help:    "Time of a question to Redis by call (admit, limit, publish, …) and outcome (ok, refused, unavailable).",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 10),
	}, []string{"call", "outcome"})
	return g
}

// Limit is a token bucket: Rate per second on average, Burst at once. Both must be at least 1.
type Limit struct{ Rate, Burst int }

// Use names a credential that may be used once: an assertion or a proof, identified by its issuer,
// the key that signed it and its jti. Until is when it stops being acceptable by itself.
type Use struct {
	Issuer, Key, ID string
	Until           time.Time
	Reason          delegation.Reason // of the refusal; AssertionReplayed if empty
}

// Admit notes the uses until their time has passed, and refuses with the reason of the first that
// was noted before. Only then it takes cost from the caller's bucket: a captured credential cannot
// use up its owner's rate. It refuses with rate_limited and the time after which the same cost is
// admitted, if no other call takes it before; with request_too_large if the cost exceeds the burst,
// because no waiting would help; and with unavailable.
//
// Uses are credentials that are new in every request, also in a retried one. A token with uses 1
// goes to the ledger only, which tells an idempotent retry from a second use.
func (g *Guard) Admit(ctx context.Context, tenant string, caller delegation.Principal, cost int, l Limit, uses ...Use) (err error) {
	defer g.observe("admit", time.Now(), &err)
	if l.Rate < 1 || l.Burst < 1 || cost < 1 {
		return delegation.Refuse(delegation.Internal, "", "a rate of %d, burst of %d and cost of %d admit nothing", l.Rate, l.Burst, cost)
	}
	if cost > l.Burst {
		return delegation.Refuse(delegation.RequestTooLarge, "", "%d items at once exceed the caller's limit of %d", cost, l.Burst)
	}
	a := admission{tenant: tenant, caller: caller, cost: cost, limit: l}
	for _, u := range uses {
		life := u.Until.Sub(g.now())
		if life < time.Millisecond {
			return delegation.Refuse(delegation.ClientUnauthenticated, "", "the assertion or the proof has expired")
		}
		a.uses = append(a.uses, noted{u.digest(), life})
	}
	ctx, cancel := g.within(ctx)
	defer cancel()
	result, err := g.store.admit(ctx, a)
	switch {
	case err != nil:
		return delegation.Unavailable(dependency, err)
	case result.replayed > 0:
		replayed := uses[result.replayed-1]
		return delegation.Refuse(cmp.Or(replayed.Reason, delegation.AssertionReplayed), "", "the assertion or the proof was used before: make a new one for every request")
	case result.wait > 0:
		refusal := delegation.Refuse(delegation.RateLimited, "", "the caller's limit of %d per second is used up", l.Rate)
		refusal.RetryAfter = result.wait
		return refusal
	}
	return nil
}

// within bounds one call to the store.
func (g *Guard) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, g.timeout)
}

// Ready returns nil if Redis takes writes, which everything here needs.
func (g *Guard) Ready(ctx context.Context) (err error) {
	defer g.observe("ready", time.Now(), &err)
	ctx, cancel := g.within(ctx)
	defer cancel()
	return unavailable(g.store.ready(ctx))
}

// Time is the clock of Redis.
func (g *Guard) Time(ctx context.Context) (time.Time, error) {
	ctx, cancel := g.within(ctx)
	defer cancel()
	at, err := g.store.clock(ctx)
	return at, unavailable(err)
}

// unavailable is what callers get for an error of the store.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return delegation.Unavailable(dependency, err)
}

// digest gives different triples different digests: each part is preceded by its length.
func (u Use) digest() string {
	var b []byte
	for _, part := range []string{u.Issuer, u.Key, u.ID} {
		b = binary.AppendUvarint(b, uint64(len(part)))
		b = append(b, part...)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (g *Guard) observe(call string, start time.Time, err *error) {
	outcome := "ok"
	if e := delegation.AsError(*err); e != nil {
		outcome = "refused"
		if e.Reason == delegation.DependencyDown {
			outcome = "unavailable"
		}
	}
	g.seconds.WithLabelValues(call, outcome).Observe(time.Since(start).Seconds())
}
