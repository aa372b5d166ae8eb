package embedded

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"deputy.example/deputy/client/delegation"
	fgamodels "deputy.example/deputy/fga-models"
	"deputy.example/deputy/server"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/token"
)

// Config configures the embedded deployment. All addresses must be loopback addresses, because the
// development issuer behind one of them gives tokens to every local program. Port 0 takes a free
// port.
type Config struct {
	// Dir holds the ledger, the relationships, all keys and the demo's tokens; created on the first
	// run, and used by one process at a time. Default deputy-data.
	Dir string
	// GRPC, HTTP and Ops are Deputy's own listeners. Default 127.0.0.1:9090, :8080 and :9091. The
	// HTTP address is the tenant's issuer, so changing it invalidates all earlier tokens.
	GRPC, HTTP, Ops string
	// Dev serves the development issuer, and OpenFGA under /openfga. Default 127.0.0.1:8081.
	Dev string
	// CLI is how a shell calls client/cmd/deputy, for the commands that the demo prints. Default
	// deputy.
	CLI string
	// Logger takes Deputy's log; nil discards it.
	Logger *slog.Logger
}

// Embedded is Deputy with all its dependencies, in one process.
type Embedded struct {
	config Config // with the actual listening addresses
	fga    *FGA
	store  string // id of the demo world in OpenFGA
	model  string
	// changed are the relationships in which the store differed from the demo world at the start.
	changed []string
	issuer  *DevIssuer
	keys    map[delegation.Principal]*KeyFile // of the clients

	deputy    *server.Server
	dev       *http.Server
	listeners struct{ grpc, http, ops, dev net.Listener }
	closers   []func() error // in order of opening
}

// tenantName is the name of the one tenant in ledger and log.
const tenantName = "demo"

// New creates missing data, writes the demo world into OpenFGA and listens. Run serves. Call Close
// only if Run is never called.
func New(ctx context.Context, config Config) (_ *Embedded, err error) {
	config.Dir = cmp.Or(config.Dir, "deputy-data")
	config.CLI = cmp.Or(config.CLI, "deputy")
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Embedded{config: config, keys: make(map[delegation.Principal]*KeyFile)}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if err := e.listen(); err != nil {
		return nil, err
	}
	if err := e.openData(); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := e.openDependencies(ctx); err != nil {
		return nil, err
	}
	settings, err := e.settings()
	if err != nil {
		return nil, err
	}
	if err := server.Migrate(ctx, settings.Database); err != nil {
		return nil, err
	}
	e.deputy, err = server.New(ctx, settings, server.Options{
		PolicyTransport: e.fga, CreateKeys: true, Logger: config.Logger,
		GRPC: e.listeners.grpc, HTTP: e.listeners.http, Ops: e.listeners.ops,
	})
	if err != nil {
		return nil, err
	}
	e.owns(e.deputy.Close)
	e.dev = &http.Server{
		Handler: e.devHandler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(config.Logger.Handler(), slog.LevelWarn),
	}
	return e, nil
}

// owns registers a closer for Close.
func (e *Embedded) owns(closer func() error) { e.closers = append(e.closers, closer) }

// listen opens all addresses first, so that an address in use is reported before anything is
// created.
func (e *Embedded) listen() error {
	for _, l := range []struct {
		name      string
		address   *string
		byDefault string
		into      *net.Listener
	}{
		{"grpc", &e.config.GRPC, "127.0.0.1:9090", &e.listeners.grpc},
		{"http", &e.config.HTTP, "127.0.0.1:8080", &e.listeners.http},
		{"ops", &e.config.Ops, "127.0.0.1:9091", &e.listeners.ops},
		{"dev", &e.config.Dev, "127.0.0.1:8081", &e.listeners.dev},
	} {
		address := cmp.Or(*l.address, l.byDefault)
		if !isLoopback(address) {
			return fmt.Errorf("--%s: must be a loopback address, not %s; the development issuer gives tokens to every caller", l.name, address)
		}
		listener, err := net.Listen("tcp", address)
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			return fmt.Errorf("%s is in use by another program, perhaps another Deputy; stop that program, or choose an address with --%s", address, l.name)
		case err != nil:
			return fmt.Errorf("--%s: %w", l.name, err)
		}
		e.owns(closedOnce(listener))
		*l.into, *l.address = listener, listener.Addr().String()
	}
	return nil
}

// closedOnce closes a listener that a server may have closed already.
func closedOnce(l net.Listener) func() error {
	return func() error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

// Run serves until ctx is done, drains, and closes everything. The dependencies close last.
func (e *Embedded) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := e.dev.Serve(e.listeners.dev); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("development issuer: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		defer e.dev.Close()
		return e.deputy.Run(ctx)
	})
	return errors.Join(group.Wait(), e.Close())
}

// Close releases what New opened, in reverse order.
func (e *Embedded) Close() error {
	var errs []error
	for _, closer := range slices.Backward(e.closers) {
		errs = append(errs, closer())
	}
	e.closers = nil
	return errors.Join(errs...)
}

// openData makes the data directory and the missing keys of the clients.
func (e *Embedded) openData() error {
	for _, dir := range []string{"", "keys", "clients", "demo"} {
		if err := os.MkdirAll(e.path(dir), 0o700); err != nil {
			return err
		}
	}
	for _, client := range []delegation.Principal{planner, researcher, calendarServer, security} {
		key, err := OpenKeyFile(e.clientKeyPath(client))
		if err != nil {
			return err
		}
		e.keys[client] = key
	}
	return nil
}

// path returns a path in the data directory.
func (e *Embedded) path(parts ...string) string {
	return filepath.Join(append([]string{e.config.Dir}, parts...)...)
}

func (e *Embedded) clientKeyPath(client delegation.Principal) string {
	return e.path("clients", client.Type()+"-"+client.ID()+".pem")
}

// Issuer is the iss of the tokens that this Deputy signs.
func (e *Embedded) Issuer() string { return "http://" + e.config.HTTP }

// ConsoleAddress is the address of the console.
func (e *Embedded) ConsoleAddress() string { return e.Issuer() + "/console" }

// consoleClient is the client_id of the console at the development issuer.
const consoleClient = "deputy-console"

func (e *Embedded) devAddress() string { return "http://" + e.config.Dev }

// openDependencies starts the dependencies.
func (e *Embedded) openDependencies(ctx context.Context) error {
	var err error
	if e.fga, err = OpenFGA(ctx, e.path("relationships.db")); err != nil {
		return err
	}
	e.owns(func() error { e.fga.Close(); return nil })
	if err := e.openWorld(ctx); err != nil {
		return err
	}
	e.issuer, err = NewDevIssuer(DevIssuerConfig{
		Dir: e.path("issuer"), Address: e.devAddress(), Deputy: e.Issuer(),
		People:    map[string]delegation.Scopes{alice.ID(): aliceScopes, rita.ID(): nil, audrey.ID(): nil},
		Audiences: []string{calendarAudience, mailAudience},
		Workloads: []string{planner.ID(), researcher.ID()},
		Application: Application{
			ClientID: consoleClient, RedirectURI: e.ConsoleAddress() + "/sign-in/callback",
			About: map[string]string{alice.ID(): "has agents that act for her", rita.ID(): "responder: sees everything and can revoke", audrey.ID(): "auditor: sees everything"},
		},
	})
	return err
}

// openWorld makes the demo world in OpenFGA, each relationship once for each data directory: what was
// deleted since must not come back with a restart.
func (e *Embedded) openWorld(ctx context.Context) (err error) {
	if e.store, err = e.fga.CreateStore(ctx, tenantName); err != nil {
		return err
	}
	if e.model, err = e.fga.WriteModel(ctx, e.store, fgamodels.DeputyJSON); err != nil {
		return err
	}
	had, err := e.fga.History(ctx, e.store)
	if err != nil {
		return err
	}
	unwritten := slices.DeleteFunc(worldTuples(), func(r policy.Relation) bool { _, written := had[r]; return written })
	e.changed = differences(had)
	return e.fga.WriteTuples(ctx, e.store, unwritten...)
}

// settings is the configuration that an operator would write for the same servers.
func (e *Embedded) settings() (server.Config, error) {
	database, err := filepath.Abs(e.path("ledger.db"))
	if err != nil {
		return server.Config{}, err
	}
	tenant := server.Tenant{
		Name: tenantName, Default: true, Issuer: e.Issuer(), AllowInsecureLoopback: true,
		SigningKeys: []token.KeyFile{{Path: e.path("keys", "signing.pem"), Algorithm: "ES256"}},
		// This OpenFGA has one process, one clock and no replica, so its changelog is complete. In
		// one process a slow answer is the load of the machine, not an outage: wait as long as
		// allowed.
		Policy:          server.Policy{URL: e.devAddress(), Store: e.store, Model: e.model, Timeout: 1500 * time.Millisecond, Cache: policy.Cache{Enabled: true}},
		Audit:           server.Audit{CheckpointKey: e.path("keys", "checkpoint.key"), CheckpointFile: e.path("checkpoint")},
		Console:         &server.Console{Issuer: e.issuer.PeopleIssuer(), ClientID: consoleClient},
		ResourceServers: map[string][]delegation.Principal{calendarAudience: {calendarServer}},
		// Long enough to try things out with the demo's tokens, and without a rate limit that tests
		// reach.
		Limits: server.Limits{AllowBearer: true, MaxLifetime: personLifetime, DefaultLifetime: personLifetime, CallerRate: 10_000},
		TrustedIssuers: []token.TrustedIssuer{
			{
				Issuer: e.issuer.PeopleIssuer(), Keys: token.KeySource{Discovery: true}, Algorithms: []string{"ES256"},
				Principal: token.Mapping{Type: "user"}, Audiences: []string{e.Issuer()}, MaxLifetime: personLifetime,
				RootGrants: token.RootGrants{ScopesClaim: "scope", AudiencesClaim: TargetsClaim},
			},
			{
				Issuer: e.issuer.WorkloadIssuer(), Keys: token.KeySource{Discovery: true}, Algorithms: []string{"ES256"},
				Principal: token.Mapping{Type: "agent"}, Workloads: true,
				// An agent can authenticate with its workload token or with its registered key.
				SharedPrincipals: true,
			},
		},
	}
	for client, key := range e.keys {
		jwks, err := key.JWKS()
		if err != nil {
			return server.Config{}, err
		}
		tenant.Clients = append(tenant.Clients, token.Client{
			ID: client, Keys: token.KeySource{JWKS: string(jwks)}, Algorithms: []string{"ES256"}, SharedPrincipals: true,
		})
	}
	return server.Config{
		Listen: server.Listen{
			GRPC: server.Listener{Address: e.config.GRPC}, HTTP: server.Listener{Address: e.config.HTTP}, Ops: server.Listener{Address: e.config.Ops},
		},
		Database: server.Database{DSN: (&url.URL{Scheme: "sqlite", Path: database}).String()},
		Redis:    server.Redis{InProcess: true},
		Tenants:  []server.Tenant{tenant},
	}, nil
}

// devHandler serves the development issuer, and OpenFGA's API so that relationships can be changed
// while Deputy runs.
func (e *Embedded) devHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", e.issuer.Handler())
	mux.Handle("/openfga/", http.StripPrefix("/openfga", e.fga))
	return LoopbackOnly(mux)
}
