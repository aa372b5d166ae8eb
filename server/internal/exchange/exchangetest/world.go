// Package exchangetest builds small deployments for tests of the exchange and of its endpoints: a
// real engine with a real ledger, real Redis, real keys and signatures, one or more tenants, and a
// replacement for OpenFGA that a test can make slow, wrong or unreachable.
package exchangetest

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/clock"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/policy/policytest"
	"deputy.example/deputy/server/internal/testservers"
	"deputy.example/deputy/server/internal/token"
	"deputy.example/deputy/server/internal/vault"
)

// Names that each tenant of a World knows.
const (
	Alice      = delegation.Principal("user:alice")
	Planner    = delegation.Principal("agent:planner")
	Researcher = delegation.Principal("agent:researcher")
	Writer     = delegation.Principal("agent:writer")
	Calendar   = "https://calendar.example"
	Mail       = "https://mail.example"
)

// Config is how a World differs from the default one. The zero value is one tenant named default on
// a new SQLite file.
type Config struct {
	DSN            string   // of a migrated or empty database
	RedisURL       string   // default: a new real server's
	Tenants        []string // default: default
	Limits         exchange.Limits
	BoundOnly      bool // each token is bound to a key: bearer tokens are not issued
	RequireNonce   bool // of DPoP proofs
	CallerRate     guard.Limit
	Emergency      []delegation.Principal            // responders while OpenFGA does not respond
	Prompt         bool                              // with the deadlines of production, for tests of hangs; default: patience
	Patience       time.Duration                     // with the count of a revocation; 0: that of production
	KeysNow        func() time.Time                  // clock of managed signing keys; nil: the keys are of a file
	Deadline       time.Duration                     // of one call, in place of either
	Agents         []delegation.Principal            // beyond planner, researcher and writer
	Elsewhere      []delegation.Principal            // that each tenant but the first knows
	Servers        map[string][]delegation.Principal // by audience
	Mapping        policy.Mapping
	ImportAct      *token.Mapping                            // of the OpenID provider
	Trust          func(tenant string, c *token.TrustConfig) // changes what a tenant accepts
	CheckpointFile string                                    // of a single tenant; default none
	Issuers        []token.TrustedIssuer                     // beside those of people and workloads
	Registerer     prometheus.Registerer
	TracerProvider trace.TracerProvider
}

// patience is the deadline of a call in tests that are not about deadlines. On a busy machine it
// only has to be shorter than the limit of the test. Each dependency may take half of it.
const patience = 30 * time.Second

// deadline returns the deadline of one call, and of the calls of each dependency within it; 0 is
// the default of production.
func (c Config) deadline() (call, dependency time.Duration) {
	if c.Prompt {
		return c.Deadline, 0
	}
	return cmp.Or(c.Deadline, patience), patience / 2
}

// World is one deployment.
type World struct {
	Engine  *exchange.Engine
	Ledger  *ledger.Ledger
	Tenants map[string]*Tenant
	Log     *Log

	config  Config
	clock   *Clock
	times   *clock.Clock   // of an instance with clocks of its own, otherwise nil
	sources []clock.Source // that it compares
	ids     atomic.Int64
}

// Tenant is one tenant with its issuers, workloads and clients.
type Tenant struct {
	Name, Issuer string
	IDP          *Signer // of root tokens for users
	Workloads    *Signer // of workload JWTs for agents
	Clients      map[delegation.Principal]*Signer
	FGA          *FGA
	Trust        *token.Trust
	Keys         *token.Keyset
	Checkpoints  *exchange.Checkpointer // signs while Engine.Checkpoints runs

	world    *World
	accepted token.TrustConfig
	managed  vault.Member // the managed signing keys; nil: keys of a file
}

// Clock is a clock that a test moves. It also advances with real time.
type Clock struct{ ahead atomic.Int64 }

// Now is the clock's time.
func (c *Clock) Now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// Advance moves the clock.
func (c *Clock) Advance(d time.Duration) { c.ahead.Add(int64(d)) }

// Log stores what was logged.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// New builds a World that ends with the test.
func New(t testing.TB, c Config) *World {
	t.Helper()
	if c.DSN == "" {
		c.DSN = ledgertest.SQLite(t)
	} else {
		ledgertest.Migrate(t, c.DSN)
	}
	if c.RedisURL == "" {
		c.RedisURL = "redis://" + testservers.Redis(t)
	}
	if len(c.Tenants) == 0 {
		c.Tenants = []string{"default"}
	}
	if c.CallerRate == (guard.Limit{}) {
		c.CallerRate = guard.Limit{Rate: 1_000_000, Burst: 1_000_000}
	}
	w := &World{config: c, clock: &Clock{}, Log: &Log{}, Tenants: make(map[string]*Tenant)}
	for _, name := range c.Tenants {
		w.Tenants[name] = w.newTenant(t, name)
	}
	w.open(t)
	return w
}

// Peer is a second instance of the same deployment: its own engine and ledger handle, the same
// database, Redis, keys and principals.
func (w *World) Peer(t testing.TB) *World {
	t.Helper()
	peer := &World{config: w.config, clock: w.clock, Log: w.Log, Tenants: w.Tenants}
	peer.ids.Store(1 << 32)
	peer.open(t)
	return peer
}

// Limited is a further instance whose configuration has other limits.
func (w *World) Limited(t testing.TB, limits exchange.Limits) *World {
	t.Helper()
	peer := &World{config: w.config, clock: w.clock, Log: w.Log, Tenants: w.Tenants}
	peer.config.Limits = limits
	peer.ids.Store(1 << 34)
	peer.open(t)
	return peer
}

// Elsewhere is a further instance on a machine of its own, with its own clocks. Issuers and callers
// continue to use the clock of the World.
func (w *World) Elsewhere(t testing.TB, clocks clock.Config) *World {
	t.Helper()
	there := &World{config: w.config, clock: w.clock, Log: w.Log, Tenants: make(map[string]*Tenant), times: clock.New(clocks)}
	there.ids.Store(rand.Int64N(1<<30) << 33)
	for name, n := range w.Tenants {
		own, accepted := *n, n.accepted
		accepted.Now = there.times.Now
		var err error
		if own.Trust, err = token.NewTrust(accepted); err != nil {
			t.Fatal(err)
		}
		there.Tenants[name] = &own
	}
	there.open(t)
	there.Compare(t.Context())
	return there
}

// Compare makes an instance with clocks of its own compare them, as it would every second.
func (w *World) Compare(ctx context.Context) { w.times.Compare(ctx, w.sources...) }

// Restored is an instance of the same deployment on another database, such as a restored backup.
func (w *World) Restored(t testing.TB, dsn string) *World {
	t.Helper()
	restored := &World{config: w.config, clock: w.clock, Log: w.Log, Tenants: w.Tenants}
	restored.config.DSN = dsn
	restored.ids.Store(1 << 33)
	restored.open(t)
	return restored
}

// Clock moves the time of all instances.
func (w *World) Clock() *Clock { return w.clock }

// Tenant is the only or first tenant.
func (w *World) Tenant() *Tenant { return w.Tenants[w.config.Tenants[0]] }

func (w *World) open(t testing.TB) {
	t.Helper()
	logger := slog.New(slog.NewTextHandler(w.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	deadline, each := w.config.deadline()
	records := ledger.Config{Logger: logger, Timeout: each, Skews: make(map[string]time.Duration)}
	now := w.clock.Now
	if w.times != nil {
		records.Clock, now = w.times, w.times.Now
	} else {
		records.Now = now
	}
	for name, n := range w.Tenants {
		records.Skews[name] = n.Trust.Skew()
	}
	l, err := ledger.Open(t.Context(), w.config.DSN, records)
	if err != nil {
		t.Fatal(err)
	}
	redis, err := guard.Dial(w.config.RedisURL)
	if err != nil {
		t.Fatal(err)
	}
	limits := w.config.Limits
	limits.AllowBearer = !w.config.BoundOnly
	config := exchange.Config{
		Ledger: l, Guard: guard.New(guard.Config{Client: redis, Timeout: each, Now: now}), Deadline: deadline,
		Logger: logger, Registerer: w.config.Registerer, TracerProvider: w.config.TracerProvider, Now: now,
		CountPatience: w.config.Patience,
	}
	w.sources = []clock.Source{{Name: "redis", Ask: config.Guard.Time}}
	if source, own := l.Clock(); own {
		w.sources = append(w.sources, source)
	}
	var checkers []*policy.Checker
	for _, name := range w.config.Tenants {
		tenant := w.Tenants[name]
		tenant.beginKeys(t, l, w.config.KeysNow)
		checker, err := policy.New(policy.Config{
			URL: "http://openfga.invalid", StoreID: policytest.FakeStore, ModelID: policytest.FakeModel,
			Transport: tenant.FGA, Timeout: each, Mapping: w.config.Mapping, Cache: policy.Cache{Enabled: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		checkers = append(checkers, checker)
		config.Tenants = append(config.Tenants, exchange.Tenant{
			Name: name, Issuer: tenant.Issuer, Trust: tenant.Trust, Keys: tenant.Keys, Policy: checker,
			Limits: limits, Servers: w.config.Servers, RequireNonce: w.config.RequireNonce, CallerRate: w.config.CallerRate, Checkpoints: tenant.Checkpoints,
			EmergencyResponders: w.config.Emergency,
		})
	}
	if w.Engine, err = exchange.New(config); err != nil {
		t.Fatal(err)
	}
	w.Ledger = l
	t.Cleanup(func() {
		for _, c := range checkers {
			c.Close()
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := redis.Close(); err != nil {
			t.Error(err)
		}
	})
}

func (w *World) newTenant(t testing.TB, name string) *Tenant {
	t.Helper()
	issuer := "https://deputy.example"
	if name != "default" {
		issuer += "/t/" + name
	}
	tenant := &Tenant{
		Name: name, Issuer: issuer, world: w, FGA: &FGA{},
		IDP:       NewSigner(t, "https://idp."+name+".example"),
		Workloads: NewSigner(t, "https://workloads."+name+".example"),
		Clients:   make(map[delegation.Principal]*Signer),
	}
	var clients []token.Client
	agents := append([]delegation.Principal{Planner, Researcher, Writer}, w.config.Agents...)
	if name != w.config.Tenants[0] {
		agents = append(agents, w.config.Elsewhere...)
	}
	for _, agent := range agents {
		signer := NewSigner(t, string(agent))
		tenant.Clients[agent] = signer
		clients = append(clients, token.Client{ID: agent, Keys: token.KeySource{JWKS: signer.JWKS()}, Algorithms: []string{"ES256"}})
	}
	keys := tenant.openKeys(t, w.config.KeysNow)
	accepted := token.TrustConfig{
		Issuer: issuer, Keys: keys, Clients: clients, Now: w.clock.Now,
		TrustedIssuers: append([]token.TrustedIssuer{
			{
				Issuer: tenant.IDP.Issuer, Keys: token.KeySource{JWKS: tenant.IDP.JWKS()}, Algorithms: []string{"ES256"},
				Principal: token.Mapping{Type: "user"}, Audiences: []string{"deputy"}, IDTokens: true, MaxLifetime: 10 * time.Hour,
				RootGrants: token.RootGrants{ScopesClaim: "scope", AudiencesClaim: "targets", DetailsClaim: "authorization_details"},
				ImportAct:  w.config.ImportAct,
			},
			{
				Issuer: tenant.Workloads.Issuer, Keys: token.KeySource{JWKS: tenant.Workloads.JWKS()}, Algorithms: []string{"ES256"},
				Principal: token.Mapping{Type: "agent", Prefix: "wl/"}, Workloads: true,
			},
		}, w.config.Issuers...),
	}
	if w.config.Trust != nil {
		w.config.Trust(name, &accepted)
	}
	tenant.accepted = accepted
	trust, err := token.NewTrust(accepted)
	if err != nil {
		t.Fatal(err)
	}
	tenant.Keys, tenant.Trust = keys, trust
	tenant.Checkpoints = newCheckpointer(t, issuer, w.config.CheckpointFile)
	tenant.populate()
	return tenant
}

// openKeys opens the tenant's signing keys: of a file or, where they have a clock, managed ones.
func (n *Tenant) openKeys(t testing.TB, now func() time.Time) *token.Keyset {
	t.Helper()
	if now != nil {
		keys, managed := token.NewManagedKeyset(vault.Plan{Tenant: n.Name, Use: vault.Tokens, Algorithm: "ES256", Lifetime: time.Hour}, now)
		n.managed = managed
		return keys
	}
	keys, err := token.OpenKeyset(token.KeysetConfig{
		Keys: []token.KeyFile{{Path: filepath.Join(t.TempDir(), "signing.pem"), Algorithm: "ES256"}}, Create: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// beginKeys makes and reads managed keys.
func (n *Tenant) beginKeys(t testing.TB, store vault.Store, now func() time.Time) {
	t.Helper()
	if n.managed == nil {
		return
	}
	kek := filepath.Join(t.TempDir(), "kek")
	_, err := vault.CreateKEK(kek)
	if err != nil {
		t.Fatal(err)
	}
	kms, err := vault.OpenFileKMS(kek)
	if err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(t.Context(), vault.Config{Store: store, KMS: kms, Now: now}, n.managed)
	if err == nil {
		err = v.Begin(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func newCheckpointer(t testing.TB, issuer, file string) *exchange.Checkpointer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "checkpoint.key")
	if _, err := exchange.CreateCheckpointKey(path, issuer); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := exchange.OpenCheckpointer(strings.TrimSpace(string(key)), issuer, file)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// populate writes the relationships that most tests start from: alice delegates to the planner,
// each agent to the others, and all of them hold a few scopes at two resources.
func (n *Tenant) populate() {
	people := []delegation.Principal{Alice}
	for agent := range n.Clients {
		people = append(people, agent)
	}
	n.Admit(people...)
}

// Admit gives principals what those of each tenant have: scopes and resources, consent to all
// agents with a key, and alice's consent to them.
func (n *Tenant) Admit(people ...delegation.Principal) {
	for _, p := range people {
		n.FGA.Allow(string(Alice), "delegator", string(p))
		for _, scope := range []string{"calendar.read", "calendar.write", "mail.read"} {
			n.FGA.Allow(string(p), "holder", "scope:"+scope)
			for _, audience := range []string{Calendar, Mail} {
				n.FGA.Allow(string(p), "holder", "scope:"+scope+"|"+delegation.EncodeID(audience))
			}
		}
		for _, audience := range []string{Calendar, Mail} {
			n.FGA.Allow(string(p), "accessor", "resource:"+delegation.EncodeID(audience))
		}
		for agent := range n.Clients {
			n.FGA.Allow(string(p), "delegator", string(agent))
		}
	}
}

// fresh returns an unused jti.
func (w *World) fresh() string { return "id-" + strconv.FormatInt(w.ids.Add(1), 10) }

// Root is a root token for alice that allows each scope and resource of the world for an hour.
// claims override; a nil value removes a claim.
func (n *Tenant) Root(t testing.TB, claims map[string]any) string {
	t.Helper()
	now := n.world.clock.Now().Unix()
	all := map[string]any{
		"sub": "alice", "aud": "deputy", "iat": now, "exp": now + 3600, "jti": n.world.fresh(),
		"scope": "calendar.read calendar.write mail.read", "targets": []string{Calendar, Mail},
	}
	for name, value := range claims {
		all[name] = value
	}
	return n.IDP.Sign(t, "at+jwt", all)
}

// Assertion authenticates an agent for one call.
func (n *Tenant) Assertion(t testing.TB, agent delegation.Principal) string {
	t.Helper()
	return n.statement(t, agent, n.Issuer)
}

// ActorToken names an agent and authenticates no caller.
func (n *Tenant) ActorToken(t testing.TB, agent delegation.Principal) string {
	t.Helper()
	return n.statement(t, agent, delegation.ActorAudience(n.Issuer))
}

func (n *Tenant) statement(t testing.TB, agent delegation.Principal, audience string) string {
	t.Helper()
	now := n.world.clock.Now().Unix()
	return n.Clients[agent].Sign(t, "JWT", map[string]any{
		"sub": string(agent), "aud": audience, "iat": now, "exp": now + 60, "jti": n.world.fresh(),
	})
}

// Workload is a workload JWT about agent:wl/<name>.
func (n *Tenant) Workload(t testing.TB, name, audience string) string {
	t.Helper()
	now := n.world.clock.Now().Unix()
	return n.Workloads.Sign(t, "JWT", map[string]any{"sub": name, "aud": audience, "iat": now, "exp": now + 600})
}

// Credentials authenticate an agent for one call.
func (n *Tenant) Credentials(t testing.TB, agent delegation.Principal) exchange.Credentials {
	t.Helper()
	return exchange.Credentials{AssertionType: delegation.ClientAssertionTypeJWTBearer, Assertion: n.Assertion(t, agent)}
}

// Call is an exchange of parent by caller, for one child that reads the calendar for the given
// actor. With actor "" or the caller itself, the request names no actor.
func (n *Tenant) Call(t testing.TB, parent string, caller, actor delegation.Principal) exchange.Call {
	t.Helper()
	scope := "calendar.read"
	c := exchange.Child{Audience: []string{Calendar}, Scope: &scope}
	if actor != "" && actor != caller {
		c.ActorToken, c.ActorTokenType = n.ActorToken(t, actor), delegation.TokenTypeJWT
	}
	return exchange.Call{
		Tenant: n.Name, Credentials: n.Credentials(t, caller), SubjectToken: parent,
		SubjectTokenType: delegation.TokenTypeAccessToken, Children: []exchange.Child{c}, Peer: "192.0.2.1:1234",
	}
}

// One makes a call with one child. It returns either kind of failure as one error.
func (w *World) One(ctx context.Context, call exchange.Call) (*exchange.Grant, *delegation.Error) {
	outcomes, err := w.Engine.Exchange(ctx, call)
	if err != nil {
		return nil, delegation.AsError(err)
	}
	return outcomes[0].Grant, outcomes[0].Err
}

// Chain makes a chain: the first agent steps in with a root token for alice, and each further agent
// receives the token before it. It returns the grants, first to last.
func (w *World) Chain(t testing.TB, n *Tenant, agents ...delegation.Principal) []*exchange.Grant {
	t.Helper()
	parent := n.Root(t, nil)
	var grants []*exchange.Grant
	for i, agent := range agents {
		caller := agents[max(i-1, 0)]
		grant, err := w.One(t.Context(), n.Call(t, parent, caller, agent))
		if err != nil {
			t.Fatalf("hop %d to %s: %v (cause: %v)", i, agent, err, err.Unwrap())
		}
		grants = append(grants, grant)
		parent = grant.AccessToken
	}
	return grants
}

// Front is the client ID of the console, through which people of a World sign in.
const Front = "deputy-console"

// SignIn signs in the person that the OpenID provider calls sub.
func (w *World) SignIn(t testing.TB, n *Tenant, sub string) *exchange.Person {
	t.Helper()
	person, err := w.Engine.SignIn(t.Context(), exchange.SignInCall{
		Tenant: n.Name, IDToken: n.IDToken(t, map[string]any{"sub": sub}), Issuer: n.IDP.Issuer, ClientID: Front, Nonce: "nonce",
	})
	if err != nil {
		t.Fatal(err)
	}
	return &person
}

// IDToken is the response to a sign-in of alice through Front with the nonce "nonce". claims
// override; a nil value removes a claim.
func (n *Tenant) IDToken(t testing.TB, claims map[string]any) string {
	t.Helper()
	now := n.world.clock.Now().Unix()
	all := map[string]any{"sub": "alice", "aud": Front, "nonce": "nonce", "iat": now, "exp": now + 300}
	maps.Copy(all, claims)
	return n.IDP.Sign(t, "JWT", all)
}
