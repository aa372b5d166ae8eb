// Package guard is what Deputy keeps in Redis: may this caller go on at this rate, was this assertion
// seen before, which nonces may a proof hold, and which revocations are in force?
//
// It owns the keys under "{tenant}:rate:", "{tenant}:replay:", "{tenant}:nonce:", "{tenant}:revoked:" and
// "{tenant}:ledger:", the key "deputy:probe" and nothing else, shared by every instance on the same Redis. Nothing here is the truth: what is remembered may
// be lost at any time. The row that decides about a replay is the ledger's, and so guard only ever
// says no early. The lists of revocations are for other services to read, and to spread news fast;
// they are published from the ledger, audited against it, and made anew when they differ. When Redis
// errs, is slow or answers nonsense, guard says no too (unavailable), but for calls that take authority
// back or look (AdmitOrLimit): this instance then limits them by itself.
//
// It must not know tokens, policy or the ledger.
package guard

import (
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"deputy.example/deputy/client/delegation"
)

const (
	defaultTimeout = 500 * time.Millisecond
	dependency     = "Redis"
)

// Config is what a Guard works with.
type Config struct {
	// Client reaches Redis; required. Make it with Dial, or set what Dial sets: without
	// ContextTimeoutEnabled, Timeout would not bound a call to a Redis that hangs.
	Client redis.UniversalClient
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
	client    redis.UniversalClient
	timeout   time.Duration
	now       func() time.Time
	seconds   *prometheus.HistogramVec
	admits    rounds
	alone     alone
	undecided alone
	nonces    ownNonces

	incarnation atomic.Uint64 // of the ledger that is published from
}

// New makes a Guard. It does not talk to Redis yet; Ready does.
func New(c Config) *Guard {
	g := &Guard{client: c.Client, timeout: c.Timeout, now: c.Now}
	if g.timeout <= 0 {
		g.timeout = defaultTimeout
	}
	if g.now == nil {
		g.now = time.Now
	}
	g.admits = rounds{client: g.client, script: admit, timeout: g.timeout}
	g.seconds = promauto.With(c.Registerer).NewHistogramVec(prometheus.HistogramOpts{
		Name:    "deputy_guard_seconds",
		Help:    "Time of a question to Redis by call (admit, limit, publish, …) and outcome (ok, refused, unavailable).",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 10),
	}, []string{"call", "outcome"})
	return g
}

// Dial makes a client from redis://, rediss:// or unix:// with the options that let every call fail
// within its context's deadline. It connects on first use. The caller closes it.
func Dial(address string) (redis.UniversalClient, error) { return DialBy(address, nil) }

// DialBy is Dial for a Redis that is reached in another way than over the network; nil is that.
func DialBy(address string, dialer func(ctx context.Context, network, address string) (net.Conn, error)) (redis.UniversalClient, error) {
	o, err := options(address)
	if err != nil {
		return nil, fmt.Errorf("the Redis URL %w", err)
	}
	redis.SetLogger(silent{})
	o.Dialer, o.ContextTimeoutEnabled = dialer, true
	o.DialTimeout, o.DialerRetries = defaultTimeout, 1
	o.ReadTimeout, o.WriteTimeout = time.Second, time.Second // for calls without a deadline
	// A repeated SET NX would meet its own first try and report a replay that was none.
	o.MaxRetries = -1
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return redis.NewClient(o), nil
}

// CheckAddress refuses an address with parts that Dial would not honor. The error repeats nothing
// of the address, which may hold a password.
func CheckAddress(address string) error {
	_, err := options(address)
	return err
}

func options(address string) (*redis.Options, error) {
	o, err := redis.ParseURL(address)
	u, malformed := url.Parse(address)
	if err != nil || malformed != nil || strings.Contains(address, "#") || (u.Host == "") != (u.Scheme == "unix") {
		return nil, errors.New("must be redis://user@host:port/db, rediss:// for TLS, or unix:///path?db=0, without a fragment; " +
			"write # in a path as %23")
	}
	return o, nil
}

// silent takes what go-redis would write to standard error by itself, past every logger of ours. All
// of it comes back as an error too, and those are logged.
type silent struct{}

// Printf implements go-redis's logger.
func (silent) Printf(context.Context, string, ...any) {}

// Limit is a token bucket: Rate per second on average, Burst at once. Both must be at least 1.
type Limit struct{ Rate, Burst int }

// Use names a credential that may be used once: an assertion or a proof, identified by its issuer,
// the key that signed it and its jti. Until is when it stops being acceptable by itself.
type Use struct {
	Issuer, Key, ID string
	Until           time.Time
	Reason          delegation.Reason // of the refusal; AssertionReplayed if empty
}

// admit notes uses and is the generic cell rate algorithm. The rate's key holds the theoretical arrival time.
//
//go:embed admit.lua
var admitSource string

var admit = redis.NewScript(admitSource)

// Admit notes the uses until their time has passed, and refuses with the reason of the first that was
// noted before. Only then it takes cost from the caller's bucket: with what somebody captured, nobody can
// use up its owner's rate. It refuses with rate_limited and the time after which the same cost will be
// admitted, if nobody takes it before; with request_too_large if the cost exceeds the burst, since then no
// waiting would help; and with unavailable.
//
// Uses are credentials that are new in every request, also in a retried one: a token with uses 1 goes to
// the ledger only, which knows an idempotent retry from a second use.
func (g *Guard) Admit(ctx context.Context, tenant string, caller delegation.Principal, cost int, l Limit, uses ...Use) (err error) {
	defer g.observe("admit", time.Now(), &err)
	if l.Rate < 1 || l.Burst < 1 || cost < 1 {
		return delegation.Refuse(delegation.Internal, "", "a rate of %d, burst of %d and cost of %d admit nothing", l.Rate, l.Burst, cost)
	}
	if cost > l.Burst {
		return delegation.Refuse(delegation.RequestTooLarge, "", "%d items at once exceed the caller's limit of %d", cost, l.Burst)
	}
	keys, args := []string{key(tenant, "rate", string(caller))}, []any{l.Rate, l.Burst, cost}
	for _, u := range uses {
		ttl := u.Until.Sub(g.now()).Milliseconds()
		if ttl < 1 {
			return delegation.Refuse(delegation.ClientUnauthenticated, "", "the assertion or the proof has expired")
		}
		keys, args = append(keys, key(tenant, "replay", u.digest())), append(args, ttl)
	}
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	wait, err := g.admits.run(ctx, keys, args)
	switch {
	case err != nil:
		return delegation.Unavailable(dependency, err)
	case wait < -int64(len(uses)):
		return delegation.Unavailable(dependency, fmt.Errorf("rate limit answered %d", wait))
	case wait < 0:
		replayed := uses[-wait-1]
		return delegation.Refuse(cmp.Or(replayed.Reason, delegation.AssertionReplayed), "", "the assertion or the proof was used before: make a new one for every request")
	case wait > 0:
		refusal := delegation.Refuse(delegation.RateLimited, "", "the caller's limit of %d per second is used up", l.Rate)
		refusal.RetryAfter = time.Duration(wait) * time.Microsecond
		return refusal
	}
	return nil
}

// probeFor is how long what Ready writes remains.
const probeFor = time.Minute

// Ready says whether Redis takes writes, as everything here needs: one that is out of memory, a replica, or cannot save
// still answers a ping.
func (g *Guard) Ready(ctx context.Context) (err error) {
	defer g.observe("ready", time.Now(), &err)
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	if err := g.client.Set(ctx, "deputy:probe", "1", probeFor).Err(); err != nil {
		return delegation.Unavailable(dependency, err)
	}
	return nil
}

// Time is the clock of Redis.
func (g *Guard) Time(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	at, err := g.client.Time(ctx).Result()
	if err != nil {
		return time.Time{}, delegation.Unavailable(dependency, err)
	}
	return at, nil
}

// key makes all keys of a tenant fall into one slot of a Redis cluster.
func key(tenant, kind, name string) string { return "{" + tenant + "}:" + kind + ":" + name }

// digest gives different triples different digests: each part goes in after its length.
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
