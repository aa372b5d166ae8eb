package exchange

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/singleflight"
	xrate "golang.org/x/time/rate"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/token"
)

// Tenant is one tenant of the configuration, with its own issuer address, trust, keys,
// relationships and limits. No tenant can see anything of another.
type Tenant struct {
	Name   string
	Issuer string // the iss of its tokens, and the audience that authenticates a caller
	Trust  *token.Trust
	Keys   *token.Keyset
	Policy *policy.Checker
	Limits Limits
	// Servers are the principals that serve an audience, by audience. They may introspect tokens
	// for it, as may a principal whose name is the audience. Default: no other principal.
	Servers map[string][]delegation.Principal
	// CallerRate bounds the children that one caller may request. Each child of a batch counts.
	CallerRate guard.Limit
	// RequireNonce requires a nonce of this server in each DPoP proof, so that proofs cannot be
	// made in advance (RFC 9449 §8). Default: the time in the proof is sufficient.
	RequireNonce bool
	// EmergencyResponders have the rights of responders while OpenFGA does not respond. They may
	// revoke and read, and may not resume. Default: none; each caller may then revoke only what is
	// its own.
	EmergencyResponders []delegation.Principal
	// Checkpoints signs the heads of the tenant's log. Default: no checkpoints are signed.
	Checkpoints *Checkpointer
}

// Config is the configuration of an Engine. All tenants share Ledger and Guard. The owner of the
// Config closes them.
type Config struct {
	Tenants []Tenant
	Ledger  *ledger.Ledger
	Guard   *guard.Guard

	// Deadline bounds the time of one call, so that a dependency that does not respond becomes a
	// typed error. Default 1.8 seconds.
	Deadline time.Duration
	// CountPatience is how long the answer to a revocation waits at most for its count, once the
	// revocation is in force. A count reads a bounded amount (ledger.SurveyOf), so this time passes
	// only if the database is slow. Default 200 milliseconds.
	CountPatience time.Duration

	Logger         *slog.Logger          // default: discard
	Registerer     prometheus.Registerer // default: none
	TracerProvider trace.TracerProvider  // default: none
	Now            func() time.Time      // default time.Now
	Rand           io.Reader             // default crypto/rand
}

// Engine decides, records and mints. It is safe for concurrent use and owns no goroutines.
type Engine struct {
	config   Config
	tenants  map[string]*Tenant
	byIssuer map[string]*Tenant
	tracer   trace.Tracer
	metrics  *metrics
	strange  xrate.Sometimes // samples the log of refusals before a caller is known
	randLock sync.Mutex      // Config.Rand need not be safe for concurrent use
	receipts receipts
	watchers *places
	tails    *places
	counting chan struct{} // holds a token for each count that runs
	lists    signedLists

	// The state that serving checks.
	compared   verdicts // an error if Redis has revocations that the ledger does not have
	proven     verdicts // an error if the log does not continue its checkpoints
	superseded verdicts // an error if Redis has a later incarnation; it counts for all tenants
	recoveries sync.Map // tenant's name → ledger.Recovered, the newest
	flights    singleflight.Group
}

// New returns an engine. It returns an error if a part is missing, if two tenants have the same
// name or issuer, or if a tenant's keys cannot sign.
func New(config Config) (*Engine, error) {
	if config.Ledger == nil || config.Guard == nil {
		return nil, errors.New("exchange: a ledger and a guard are required")
	}
	if config.Deadline == 0 {
		config.Deadline = 1800 * time.Millisecond
	}
	if config.CountPatience == 0 {
		config.CountPatience = 200 * time.Millisecond
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.TracerProvider == nil {
		config.TracerProvider = noop.NewTracerProvider()
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Rand == nil {
		config.Rand = rand.Reader
	}
	e := &Engine{
		config:   config,
		tenants:  make(map[string]*Tenant),
		byIssuer: make(map[string]*Tenant),
		tracer:   config.TracerProvider.Tracer("deputy.example/deputy/server/internal/exchange"),
		metrics:  newMetrics(config.Registerer),
		strange:  xrate.Sometimes{First: 20, Interval: time.Second},
		watchers: newPlaces("watchers", MaxWatchers, len(config.Tenants), 2, time.Second),
		tails:    newPlaces("streams of entries", maxTails, len(config.Tenants), 4, 5*time.Second),
		counting: make(chan struct{}, countsAtOnce),
	}
	for i := range config.Tenants {
		t := &config.Tenants[i]
		t.Limits = t.Limits.withDefaults()
		if t.Name == "" || t.Issuer == "" || t.Trust == nil || t.Keys == nil || t.Policy == nil {
			return nil, fmt.Errorf("exchange: tenant %q lacks a part", t.Name)
		}
		if e.tenants[t.Name] != nil || e.byIssuer[t.Issuer] != nil {
			return nil, fmt.Errorf("exchange: tenant %q or its issuer is configured twice", t.Name)
		}
		if _, err := t.Keys.Sign([]byte(`{}`)); err != nil {
			return nil, fmt.Errorf("exchange: tenant %q: %w", t.Name, err)
		}
		e.tenants[t.Name], e.byIssuer[t.Issuer] = t, t
		for _, cause := range []string{listsLost, listsOld, listsDamaged} {
			// Zero from the start, so that the first increment is visible.
			e.metrics.mended.WithLabelValues(t.Name, cause)
		}
	}
	return e, nil
}

// Tenants are the tenants as configured, in order.
func (e *Engine) Tenants() []Tenant { return e.config.Tenants }

// tenantOf returns the tenant of a call: the tenant of the endpoint if it names one, else the
// tenant to whose issuer the credential is addressed. That tenant's rules verify the credential
// afterwards, so a wrong choice can only lead to a refusal.
func (e *Engine) tenantOf(named, credential string) (*Tenant, error) {
	if named != "" || len(e.config.Tenants) == 0 {
		if t := e.tenants[named]; t != nil {
			return t, nil
		}
		return nil, unauthenticated(fmt.Errorf("no tenant %q", named))
	}
	// The result is the same for each tenant's Trust, and the tenants share their cache of tokens.
	audiences, err := e.config.Tenants[0].Trust.Audiences(credential)
	if err != nil {
		return nil, unauthenticated(err)
	}
	for _, audience := range audiences {
		if t := e.byIssuer[audience]; t != nil {
			return t, nil
		}
	}
	return nil, unauthenticated(errors.New("the credential is not addressed to a tenant"))
}

// unauthenticated is the one answer to each failed authentication, for any cause.
func unauthenticated(cause error) *delegation.Error {
	return delegation.Refuse(delegation.ClientUnauthenticated, "",
		"the caller could not be authenticated: send a private_key_jwt assertion, a workload JWT whose audience is the tenant's issuer, or a client certificate that the tenant knows").WithCause(cause)
}

// newID returns a new ULID: sortable by time, with 80 random bits.
func (e *Engine) newID(now time.Time) (string, error) {
	e.randLock.Lock()
	defer e.randLock.Unlock()
	id, err := ulid.New(ulid.Timestamp(now), e.config.Rand)
	if err != nil {
		return "", delegation.Refuse(delegation.Internal, "", "no randomness").WithCause(err)
	}
	return id.String(), nil
}

// within bounds a call by the engine's deadline, or by the caller's if that is earlier.
func (e *Engine) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, e.config.Deadline)
}
