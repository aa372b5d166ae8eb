package e2e

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server"
	"deputy.example/deputy/server/embedded"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
)

// deployment is what instances of Deputy share: configuration, database, Redis, OpenFGA,
// identities.
type deployment struct {
	t          testing.TB
	plan       plan
	dir        string
	issuer     string
	identities *embedded.DevIssuer
	relations  *relationships
	database   string
	redis      string
	keys       map[delegation.Principal]*embedded.KeyFile
	http       net.Listener // of the one instance, where the issuer is an address

	program           string                          // of processes; "": the test binary itself
	certFile, keyFile string                          // of the listeners with TLS
	certificates      map[delegation.Principal]string // files with clients' own certificates
}

// plan describes the deployment of a test. The zero value has a Redis of its own and an SQLite
// database.
type plan struct {
	database string // DSN; "": SQLite
	redis    string // host:port; "": a server of the test's own
	openFGA  string // URL of an OpenFGA that holds the world already; "": one in this process
	store    string // its ids
	model    string
	// reachable makes the issuer the address of the HTTP listener, for clients that discover it.
	reachable bool
	tls       bool   // on the HTTP listener
	grpcTLS   bool   // on both
	managed   bool   // keys, in place of a key file
	bound     bool   // no bearer tokens are issued
	tenant    string // more lines of the tenant's section, as YAML without indentation
	issuers   string // more trusted issuers, likewise
	people    string // one more line about the issuer of people
	// prompt keeps the default timeouts of dependencies, for tests that measure how soon an answer
	// comes.
	prompt bool
}

func deploy(t testing.TB, p plan) *deployment {
	t.Helper()
	d := &deployment{
		t: t, plan: p, dir: t.TempDir(), issuer: "https://deputy.example",
		keys: make(map[delegation.Principal]*embedded.KeyFile), certificates: make(map[delegation.Principal]string),
	}
	d.plan.tls = p.tls || p.grpcTLS
	if d.plan.tls {
		d.certFile, d.keyFile = certificate(t)
	}
	d.redis = "redis://" + cmp.Or(p.redis, redisAddress(t, p))
	if d.database = p.database; d.database == "" {
		d.database = ledgertest.SQLite(t)
	} else {
		ledgertest.Migrate(t, d.database)
	}
	if p.openFGA == "" {
		d.relations = newRelationships(t)
		d.plan.openFGA, d.plan.store, d.plan.model = d.relations.url, d.relations.store, d.relations.model
	}
	if p.reachable {
		var err error
		d.http, err = net.Listen("tcp", "127.0.0.1:0")
		check(t, err)
		d.issuer = map[bool]string{false: "http://", true: "https://"}[d.plan.tls] + d.http.Addr().String()
	}
	for _, who := range []delegation.Principal{planner, researcher, calendar} {
		key, err := embedded.OpenKeyFile(d.keyPath(who))
		check(t, err)
		jwks, err := key.JWKS()
		check(t, err)
		check(t, os.WriteFile(d.jwksPath(who), jwks, 0o600))
		d.keys[who] = key
	}
	d.serveIdentities()
	return d
}

func redisAddress(t testing.TB, p plan) string {
	if p.redis != "" {
		return ""
	}
	return testservers.Redis(t)
}

func (d *deployment) serveIdentities() {
	var handler http.Handler
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	d.t.Cleanup(site.Close)
	var err error
	d.identities, err = embedded.NewDevIssuer(embedded.DevIssuerConfig{
		Dir: filepath.Join(d.dir, "identities"), Address: site.URL, Deputy: d.issuer,
		People:    map[string]delegation.Scopes{alice.ID(): worldScopes},
		Audiences: []string{calendarAudience, mailAudience}, Workloads: []string{planner.ID(), researcher.ID()},
	})
	check(d.t, err)
	handler = d.identities.Handler()
}

func (d *deployment) keyPath(who delegation.Principal) string {
	return filepath.Join(d.dir, who.ID()+".pem")
}

func (d *deployment) jwksPath(who delegation.Principal) string {
	return filepath.Join(d.dir, who.ID()+".jwks.json")
}

// configuration writes a configuration file like an operator's, with the given addresses.
func (d *deployment) configuration(grpc, http, ops string) (file string) {
	d.t.Helper()
	var b bytes.Buffer
	fmt.Fprintf(&b, "listen:\n  ops: {address: %q}\n", ops)
	for _, l := range []struct {
		name, address string
		tls           bool
	}{{"grpc", grpc, d.plan.grpcTLS}, {"http", http, d.plan.tls}} {
		fmt.Fprintf(&b, "  %s:\n    address: %q\n", l.name, l.address)
		if l.tls {
			fmt.Fprintf(&b, "    tls: {cert_file: %q, key_file: %q}\n", d.certFile, d.keyFile)
		}
	}
	// The longest timeouts that a configuration may hold, because the machine of a test can be
	// busy.
	ofRedis, ofPolicy := ", timeout: 1s", ", timeout: 1500ms"
	if d.plan.prompt {
		ofRedis, ofPolicy = "", ""
	}
	fmt.Fprintf(&b, "database: {dsn: %q}\nredis: {url: %q%s}\ntelemetry: {log_level: error}\n", d.database, d.redis, ofRedis)
	if d.plan.managed {
		fmt.Fprintf(&b, "key_encryption: {key_file: %q}\n", d.ownKey("kek", func(file string) error { _, err := server.CreateKEK(file); return err }))
	}
	fmt.Fprintf(&b, "tenants:\n  - name: acme\n    default: true\n    issuer: %q\n    allow_insecure_loopback: true\n", d.issuer)
	if d.plan.managed {
		b.WriteString("    managed_keys: {algorithm: ES256}\n")
	} else {
		signing := d.ownKey("signing.pem", func(file string) error { return server.CreateKey(file, "ES256") })
		fmt.Fprintf(&b, "    signing_keys: [{path: %q, algorithm: ES256}]\n", signing)
	}
	fmt.Fprintf(&b, "    policy: {url: %q, store: %s, model: %s%s}\n", d.plan.openFGA, d.plan.store, d.plan.model, ofPolicy)
	fmt.Fprintf(&b, `    trusted_issuers:
      - issuer: %q
        keys: {discovery: true}
        algorithms: [ES256]
        principal: {type: user}
        audiences: [%q]
        root_grants: {scopes_claim: scope, audiences_claim: %s}
        %s
      - issuer: %q
        keys: {discovery: true}
        algorithms: [ES256]
        principal: {type: agent}
        workloads: true
        shared_principals: true
`, d.identities.PeopleIssuer(), d.issuer, embedded.TargetsClaim, d.plan.people, d.identities.WorkloadIssuer())
	b.WriteString(indented("      ", d.plan.issuers))
	b.WriteString("    clients:\n")
	for who := range d.keys {
		fmt.Fprintf(&b, "      - {id: %q, keys: {file: %q}, algorithms: [ES256], shared_principals: true", who, d.jwksPath(who))
		if file := d.certificates[who]; file != "" {
			fmt.Fprintf(&b, ", tls: {certificates_file: %q}", file)
		}
		b.WriteString("}\n")
	}
	b.WriteString(indented("    ", withLimits(d.plan)))
	file = filepath.Join(d.dir, fmt.Sprintf("deputy-%d.yaml", rand.Uint32()))
	check(d.t, os.WriteFile(file, b.Bytes(), 0o600))
	return file
}

// ownKey returns a key file of the deployment, which create makes at the first call.
func (d *deployment) ownKey(name string, create func(file string) error) (file string) {
	d.t.Helper()
	file = filepath.Join(d.dir, name)
	if _, err := os.Stat(file); err != nil {
		check(d.t, create(file))
	}
	return file
}

// withLimits allows bearer tokens unless the plan is about bound ones.
func withLimits(p plan) string {
	switch {
	case p.bound:
		return p.tenant
	case strings.Contains(p.tenant, "limits: {"):
		return strings.Replace(p.tenant, "limits: {", "limits: {allow_bearer: true, ", 1)
	}
	return p.tenant + "limits: {allow_bearer: true}\n"
}

func indented(by, text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(by + line)
	}
	return b.String()
}

// instance is one running Deputy.
type instance struct {
	grpc, http, ops string // host:port
	stop            func() // in order; a second call does nothing
}

// start runs an instance in this process.
func (d *deployment) start() *instance {
	d.t.Helper()
	config, err := server.Load(d.configuration("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"))
	check(d.t, err)
	options := server.Options{Logger: slog.New(slog.NewTextHandler(d.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))}
	if d.http != nil {
		options.HTTP, d.http = d.http, nil
	}
	s, err := server.New(context.Background(), config, options)
	check(d.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	i := &instance{grpc: s.GRPCAddr(), http: s.HTTPAddr(), ops: s.OpsAddr(), stop: sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			d.t.Errorf("Run: %v", err)
		}
	})}
	d.t.Cleanup(i.stop)
	i.awaitReady(d.t)
	return i
}

// process is an instance in a process of its own. It keeps its addresses when it is started again.
type process struct {
	instance
	t       testing.TB
	program string // "": the test binary itself
	file    string
	cmd     *exec.Cmd
	stderr  bytes.Buffer
}

func (d *deployment) spawn() *process {
	d.t.Helper()
	grpc, http, ops := freeAddress(d.t), freeAddress(d.t), freeAddress(d.t)
	p := &process{instance: instance{grpc: grpc, http: http, ops: ops}, t: d.t, program: d.program, file: d.configuration(grpc, http, ops)}
	p.stop = func() { p.end(syscall.SIGTERM) }
	d.t.Cleanup(func() { p.end(syscall.SIGKILL) })
	p.launch()
	return p
}

// launch starts the process and returns at once.
func (p *process) launch() {
	p.t.Helper()
	p.stderr.Reset()
	if p.program == "" {
		p.cmd = exec.Command(os.Args[0])
		p.cmd.Env = append(os.Environ(), beDeputyd+"="+p.file)
	} else {
		p.cmd = exec.Command(p.program, "serve", "--config", p.file)
	}
	p.cmd.Stderr = &p.stderr
	check(p.t, p.cmd.Start())
}

// end sends a signal and waits until the process is gone.
func (p *process) end(signal syscall.Signal) {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(signal)
	_ = p.cmd.Wait()
	p.cmd = nil
}

// freeAddress returns a loopback address without a listener. Its port is below those that the
// kernel gives to outgoing connections. Otherwise a client that connects while the server is down
// could get the port, or even connect to itself.
func freeAddress(t testing.TB) string {
	t.Helper()
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000))
		if l, err := net.Listen("tcp", address); err == nil {
			check(t, l.Close())
			return address
		}
	}
	t.Fatal("no free port")
	return ""
}

const readyWithin = 20 * time.Second

// awaitReady polls readiness and returns how long it took.
func (i *instance) awaitReady(t testing.TB) time.Duration {
	t.Helper()
	began := time.Now()
	eventually(t, readyWithin, func() error {
		code, body, err := i.ask("http://" + i.ops + "/readyz")
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("%d %s", code, body)
		}
		return err
	})
	return time.Since(began)
}

// ask gets an address over a connection of its own.
func (i *instance) ask(address string) (code int, body string, err error) {
	request, err := http.NewRequest(http.MethodGet, address, nil)
	if err != nil {
		return 0, "", err
	}
	request.Close = true
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return response.StatusCode, string(content), err
}

// eventually polls a condition until it holds.
func eventually(t testing.TB, within time.Duration, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", within, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// as returns an SDK client of the instance that calls as one of the clients and never retries.
func (d *deployment) as(i *instance, who delegation.Principal) *client.Client {
	d.t.Helper()
	key, err := client.LoadKey(d.keyPath(who))
	check(d.t, err)
	credential, err := client.NewAssertion(client.AssertionConfig{Issuer: d.issuer, ClientID: string(who), Key: key})
	check(d.t, err)
	return d.with(i, credential)
}

// with returns an SDK client with any credential.
func (d *deployment) with(i *instance, credential client.Credential) *client.Client {
	d.t.Helper()
	c, err := client.New(client.Config{Address: i.grpc, Transport: client.PlaintextLoopback, Credential: credential, Attempts: 1})
	check(d.t, err)
	d.t.Cleanup(func() { _ = c.Close() })
	return c
}

// root returns a new access token of alice's.
func (d *deployment) root() client.Secret {
	d.t.Helper()
	token, err := d.identities.AccessToken(alice.ID())
	check(d.t, err)
	return client.NewSecret(token)
}

// naming returns a token with which a parent names an agent.
func (d *deployment) naming(who delegation.Principal) client.Secret {
	d.t.Helper()
	token, err := d.identities.WorkloadToken(who.ID(), true)
	check(d.t, err)
	return client.NewSecret(token)
}

// stepIn returns the request with which most tests begin: the planner acts for alice at the
// calendar.
func stepIn(root client.Secret) client.ExchangeRequest {
	return client.ExchangeRequest{
		SubjectToken: root,
		Child:        client.Child{Scopes: delegation.Scopes{"calendar.read"}, Audience: []string{calendarAudience}},
	}
}

// handDown returns the request that hands the parent's calendar.read down to another agent.
func handDown(parent, name client.Secret) client.ExchangeRequest {
	request := stepIn(parent)
	request.Child.ActorToken = name
	return request
}

// jwks returns the keys that the instance publishes.
func (d *deployment) jwks(i *instance) []byte {
	d.t.Helper()
	scheme := map[bool]string{false: "http://", true: "https://"}[d.plan.tls]
	code, jwks, err := i.ask(scheme + i.http + "/oauth2/jwks")
	if err != nil || code != http.StatusOK {
		d.t.Fatalf("jwks: %d %v", code, err)
	}
	return []byte(jwks)
}

// verifier returns the verifier of the calendar server.
func (d *deployment) verifier(i *instance) *client.Verifier {
	d.t.Helper()
	v, err := client.NewVerifier(client.VerifierConfig{Issuer: d.issuer, Audience: calendarAudience, JWKS: d.jwks(i), IgnoreRevocations: true})
	check(d.t, err)
	return v
}
