package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"deputy.example/deputy/client"
)

// The two set-ups.
const (
	embedded    = "embedded"    // everything in one process, SQLite
	distributed = "distributed" // deputyd, PostgreSQL, redis-server and OpenFGA, each in processes of its own
)

// plan describes a set-up.
type plan struct {
	kind     string // embedded or distributed
	users    int
	idle     int // users that hold the same and do nothing
	tenants  int // at least 1; the first is the one that most scenarios use
	profiled bool
	// before is called with the migrated database's address before Deputy is started. May be nil.
	before func(ctx context.Context, dsn, tenant string) error
}

// binaries are the programs under test.
type binaries struct{ deputyd, target string }

func binariesIn(dir string) binaries {
	return binaries{deputyd: filepath.Join(dir, "deputyd"), target: filepath.Join(dir, "deputy-target")}
}

// build compiles them from the repository. The first time takes minutes, because of OpenFGA.
func (b binaries) build(ctx context.Context, root string) error {
	for _, c := range []struct{ module, out, pkg string }{
		{root, b.deputyd, "./server/cmd/deputyd"}, {filepath.Join(root, "server", "embedded"), b.target, "./cmd/deputy-target"},
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", c.out, c.pkg)
		cmd.Dir = c.module
		if said, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w\n%s", c.pkg, err, said)
		}
	}
	return nil
}

// deputy is one running instance.
type deputy struct {
	*process
	grpc, http, ops, pprof string
}

// setup is a running Deputy with what it depends on.
type setup struct {
	plan
	binaries
	parties
	dir       string
	database  string
	redis     string
	relations relationships
	stores    []string // ids of store and model of each tenant
	models    []string
	written   time.Time // when the last relationship was
	settled   bool
	deputies  []*deputy
	fgaPprof  string
	others    []*process // in order of starting
	sessions  []*session
}

// open starts a set-up, in a folder of its own.
func open(ctx context.Context, b binaries, p plan) (_ *setup, err error) {
	s := &setup{plan: p, binaries: b}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.dir, err = os.MkdirTemp("", "deputy-loadtest-"); err != nil {
		return nil, err
	}
	if err := os.Chmod(s.dir, 0o711); err != nil { // PostgreSQL runs as another user
		return nil, err
	}
	if s.parties, err = newParties(); err != nil {
		return nil, err
	}
	if p.kind == embedded {
		return s, s.openEmbedded(ctx)
	}
	return s, s.openDistributed(ctx)
}

func (s *setup) openEmbedded(ctx context.Context) error {
	s.database = "sqlite://" + filepath.Join(s.dir, "ledger.db")
	s.redis = "redis://127.0.0.1:1" // the one in the process takes its place
	if err := s.prepareDatabase(ctx); err != nil {
		return err
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	d, args := &deputy{}, []string{"embedded", "--openfga", address}
	if s.profiled {
		if d.pprof, err = freeAddress(); err != nil {
			return err
		}
		args = append(args, "--pprof", d.pprof)
	}
	cmd := exec.Command(s.target, args...)
	configuration, name, err := os.Pipe()
	if err != nil {
		return err
	}
	defer name.Close()
	cmd.Stdin = configuration
	d.process, err = start("deputy", s.dir, cmd)
	configuration.Close()
	if err != nil {
		return err
	}
	s.deputies = append(s.deputies, d)
	if err := s.openRelations(ctx, d.process, address); err != nil {
		return err
	}
	file, err := s.configure(d)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(name, file+"\n"); err != nil {
		return err
	}
	return s.greet(ctx, d)
}

func (s *setup) openDistributed(ctx context.Context) error {
	if err := s.startPostgres(ctx); err != nil {
		return err
	}
	if err := s.prepareDatabase(ctx); err != nil {
		return err
	}
	if err := s.startRedis(ctx); err != nil {
		return err
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	args := []string{"openfga", "--openfga", address}
	if s.profiled {
		if s.fgaPprof, err = freeAddress(); err != nil {
			return err
		}
		args = append(args, "--pprof", s.fgaPprof)
	}
	fga, err := start("openfga", s.dir, exec.Command(s.target, args...))
	if err != nil {
		return err
	}
	s.others = append(s.others, fga)
	if err := s.openRelations(ctx, fga, address); err != nil {
		return err
	}
	return s.addDeputy(ctx)
}

// prepareDatabase migrates it, and has it filled.
func (s *setup) prepareDatabase(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, s.deputyd, "migrate", "--dsn", s.database)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("deputyd migrate: %w\n%s", err, said)
	}
	if s.before == nil {
		return nil
	}
	return s.before(ctx, s.database, tenantName(0))
}

// openRelations waits for OpenFGA and writes the world of each tenant into a store of its own.
func (s *setup) openRelations(ctx context.Context, p *process, address string) error {
	s.relations = relationships{url: "http://" + address, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}}
	err := p.await(ctx, time.Millisecond, func() error {
		_, err := get(ctx, s.relations.url+"/stores")
		return err
	})
	if err != nil {
		return err
	}
	for t := range s.tenants {
		store, model, err := s.relations.createStore(ctx, tenantName(t))
		if err != nil {
			return err
		}
		s.stores, s.models = append(s.stores, store), append(s.models, model)
		if err := s.relations.write(ctx, store, append(tuplesOfAgents(), tuplesOfUsers(0, s.users+s.idle)...)); err != nil {
			return err
		}
	}
	s.written = time.Now()
	return nil
}

const (
	// settling is how long the changelog of OpenFGA must be quiet after the world was written:
	// Deputy reads back two of its default overlaps of ten seconds, and asks about each exchange
	// directly while it finds hundreds of changes there.
	settling = 21 * time.Second
	// quiet is what all processes may use in a second without requests. More means background work,
	// as for the search index of a ledger that was filled.
	quiet = 100 * time.Millisecond
	// settledWithin is when that is given up on.
	settledWithin = 15 * time.Minute
)

// settle waits, once, until the making of the world is over: what is measured goes on for longer
// than it.
func (s *setup) settle(ctx context.Context) error {
	if s.settled || !sleepUntil(ctx, s.written.Add(settling)) {
		return ctx.Err()
	}
	for deadline := time.Now().Add(settledWithin); time.Now().Before(deadline); {
		before, err := cpuTimes("/proc", s.processes())
		if err != nil || !sleepUntil(ctx, time.Now().Add(time.Second)) {
			return errors.Join(err, ctx.Err())
		}
		after, err := cpuTimes("/proc", s.processes())
		if err != nil {
			return err
		}
		var spent time.Duration
		for name := range after {
			spent += after[name] - before[name]
		}
		if spent < quiet {
			s.settled = true
			return nil
		}
	}
	return fmt.Errorf("%s: still busy with itself after %v", s.kind, settledWithin)
}

// addDeputy starts one more instance.
func (s *setup) addDeputy(ctx context.Context) error {
	d := &deputy{}
	file, err := s.configure(d)
	if err != nil {
		return err
	}
	cmd := exec.Command(s.deputyd, "serve", "--config", file)
	if s.profiled {
		if d.pprof, err = freeAddress(); err != nil {
			return err
		}
		cmd = exec.Command(s.target, "deputyd", "--config", file, "--pprof", d.pprof)
	}
	if d.process, err = start("deputyd"+strings.Repeat("'", len(s.deputies)), s.dir, cmd); err != nil {
		return err
	}
	s.deputies = append(s.deputies, d)
	return s.greet(ctx, d)
}

// greet waits until an instance is ready, and opens sessions with the first.
func (s *setup) greet(ctx context.Context, d *deputy) error {
	err := d.await(ctx, 2*time.Millisecond, func() error {
		_, err := get(ctx, "http://"+d.ops+"/readyz")
		return err
	})
	if err != nil || len(s.sessions) > 0 {
		return err
	}
	for t := range s.tenants {
		s.sessions = append(s.sessions, s.session(d, t))
	}
	return nil
}

// session is a new one of a tenant with one instance.
func (s *setup) session(d *deputy, tenant int) *session {
	issuer := tenantIssuer(tenant)
	return &session{
		grpc: d.grpc, issuer: issuer, jwks: "http://" + d.http + strings.TrimPrefix(issuer, deputyAddress) + "/oauth2/jwks", users: s.users, connections: connections,
		credentials: &credentials{parties: s.parties, tenant: tenantName(tenant), issuer: issuer},
	}
}

const deputyAddress = "https://deputy.example"

func tenantName(i int) string { return fmt.Sprintf("load%d", i) }

func tenantIssuer(i int) string {
	if i == 0 {
		return deputyAddress
	}
	return deputyAddress + "/t/" + tenantName(i)
}

// configure gives an instance its addresses and writes the file that an operator would write for
// it.
func (s *setup) configure(d *deputy) (file string, err error) {
	for _, address := range []*string{&d.grpc, &d.http, &d.ops} {
		if *address, err = freeAddress(); err != nil {
			return "", err
		}
	}
	keys, err := s.keyFiles()
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "listen: {grpc: {address: %q}, http: {address: %q}, ops: {address: %q}}\n", d.grpc, d.http, d.ops)
	fmt.Fprintf(&b, "database: {dsn: %q}\nredis: {url: %q}\ntelemetry: {log_level: warn}\ntenants:\n", s.database, s.redis)
	var targets []string
	for _, scope := range scopes {
		targets = append(targets, fmt.Sprintf("%s: [%q, %q]", scope, audiences[0], audiences[1]))
	}
	for t := range s.tenants { // in few words: a thousand must fit into what a configuration may be long
		name := tenantName(t)
		fmt.Fprintf(&b, "  - {name: %s, default: %t, issuer: %q, signing_keys: [{path: signing.pem, algorithm: ES256}],\n", name, t == 0, tenantIssuer(t))
		fmt.Fprintf(&b, "     policy: {url: %q, store: %s, model: %s, timeout: 1500ms, cache: {enabled: true}},\n", s.relations.url, s.stores[t], s.models[t])
		fmt.Fprintf(&b, "     limits: {allow_bearer: true, max_lifetime: 1h, default_lifetime: 1h, max_depth: 16, caller_rate: 100000, scope_targets: {%s}},\n", strings.Join(targets, ", "))
		fmt.Fprintf(&b, "     trusted_issuers: [{issuer: %q, keys: {file: %q}, algorithms: [ES256], principal: {type: user}, audiences: [%q], root_grants: {scopes_claim: scope, audiences_claim: targets}},\n",
			peopleIssuer(name), keys[0], peopleIssuer(name))
		fmt.Fprintf(&b, "       {issuer: %q, keys: {file: %q}, algorithms: [ES256], principal: {type: agent}, workloads: true, shared_principals: true}]", workloadsIssuer(name), keys[1])
		if t == 0 {
			fmt.Fprintf(&b, ",\n     clients: [{id: %q, keys: {file: %q}, algorithms: [ES256]},\n", responder, keys[2])
			fmt.Fprintf(&b, "       {id: %q, keys: {file: %q}, algorithms: [ES256], shared_principals: true}]", line(depth), keys[3])
		}
		b.WriteString("}\n")
	}
	file = filepath.Join(s.dir, fmt.Sprintf("deputy-%d.yaml", len(s.deputies)))
	return file, os.WriteFile(file, b.Bytes(), 0o600)
}

// keyFiles writes the public keys of the parties, and Deputy's own key pair, once. It returns their
// names in the set-up's folder, which is where all of its processes work.
func (s *setup) keyFiles() (files []string, err error) {
	for _, party := range []struct {
		name string
		key  *signer
	}{{"people", s.people}, {"workloads", s.workloads}, {"responder", s.responder}, {"agent", s.agent}} {
		file := party.name + ".jwks.json"
		if err := os.WriteFile(filepath.Join(s.dir, file), party.key.public, 0o600); err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	signing := filepath.Join(s.dir, "signing.pem")
	if _, err := os.Stat(signing); err == nil {
		return files, nil
	}
	if said, err := exec.Command(s.deputyd, "keys", "create", "--out", signing, "--algorithm", "ES256").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("deputyd keys create: %w\n%s", err, said)
	}
	return files, nil
}

// startPostgres makes a cluster with full durability and PostgreSQL's own defaults otherwise.
func (s *setup) startPostgres(ctx context.Context) error {
	bin, err := postgresBin()
	if err != nil {
		return err
	}
	owner, err := unprivileged()
	if err != nil {
		return err
	}
	dir := filepath.Join(s.dir, "postgres")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	attributes := new(syscall.SysProcAttr)
	if owner != nil {
		attributes.Credential = owner
		if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	data := filepath.Join(dir, "data")
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", data, "-U", "deputy", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	initdb.Dir, initdb.SysProcAttr, initdb.Env = dir, attributes, withoutPostgres()
	if said, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, said)
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	host, port, _ := strings.Cut(address, ":")
	cmd := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-p", port, "-c", "listen_addresses="+host,
		"-c", "unix_socket_directories=", "-c", "max_connections=200", "-c", "shared_buffers=256MB")
	cmd.Dir, cmd.SysProcAttr, cmd.Env = dir, &syscall.SysProcAttr{Credential: owner}, withoutPostgres()
	p, err := start("postgres", s.dir, cmd)
	if err != nil {
		return err
	}
	p.quit = syscall.SIGINT // a fast shutdown
	s.others = append(s.others, p)
	s.database = fmt.Sprintf("postgres://deputy@%s/postgres?sslmode=disable", address)
	return p.await(ctx, 10*time.Millisecond, func() error {
		return exec.CommandContext(ctx, filepath.Join(bin, "pg_isready"), "-q", "-h", host, "-p", port).Run()
	})
}

// withoutPostgres is the environment without what would steer PostgreSQL.
func withoutPostgres() []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool { return strings.HasPrefix(variable, "PG") })
}

// postgresBin finds Debian's newest PostgreSQL, else the one in PATH.
func postgresBin() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	if len(found) > 0 {
		return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })), nil
	}
	path, err := exec.LookPath("initdb")
	if err != nil {
		return "", errors.New("PostgreSQL is missing: run tools/install-test-deps")
	}
	return filepath.Dir(path), nil
}

// unprivileged is the user that runs PostgreSQL, which refuses to be run by root; nil for the own
// user.
func unprivileged() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL does not run as root: %w", err)
	}
	uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(uidErr, gidErr)
}

// startRedis starts one that writes nothing to the disk.
func (s *setup) startRedis(ctx context.Context) error {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return errors.New("redis-server is missing: run tools/install-test-deps")
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	host, port, _ := strings.Cut(address, ":")
	p, err := start("redis-server", s.dir, exec.Command(program, "--bind", host, "--port", port, "--dir", s.dir, "--save", "", "--appendonly", "no"))
	if err != nil {
		return err
	}
	s.others = append(s.others, p)
	s.redis = "redis://" + address
	return p.await(ctx, 5*time.Millisecond, func() error { return reachable(address) })
}

// processes are all whose CPU time counts, by name.
func (s *setup) processes() map[string]int {
	all := make(map[string]int)
	for _, p := range s.others {
		all[p.name] = p.pid()
	}
	for _, d := range s.deputies {
		all[d.name] = d.pid()
	}
	return all
}

// close ends everything, what was started last first.
func (s *setup) close() error {
	var errs []error
	for _, session := range s.sessions {
		errs = append(errs, session.close())
	}
	for _, d := range slices.Backward(s.deputies) {
		if d.process == nil {
			continue
		}
		errs = append(errs, d.stop())
		if said, _ := os.ReadFile(d.log); len(said) > 0 {
			fmt.Fprintf(os.Stderr, "%s warned, in the end:\n%s\n", d.name, lastLines(string(said), 5))
		}
	}
	for _, p := range slices.Backward(s.others) {
		errs = append(errs, p.stop())
	}
	if s.relations.client != nil {
		s.relations.client.CloseIdleConnections()
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// verifier is an SDK verifier of the first audience that follows revocations.
func (s *session) verifier(ctx context.Context) (*client.Verifier, error) {
	keys, err := get(ctx, s.jwks)
	if err != nil {
		return nil, err
	}
	c, err := s.as(responder)
	if err != nil {
		return nil, err
	}
	v, err := client.NewVerifier(client.VerifierConfig{Issuer: s.issuer, Audience: audiences[0], Client: c, JWKS: keys})
	if err != nil {
		return nil, err
	}
	if err := v.Ready(ctx); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}
