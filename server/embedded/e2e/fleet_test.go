package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/testservers"
	"deputy.example/deputy/server/internal/token/certtest"
)

// fleet is two deputyd processes, built as they are shipped, on one PostgreSQL and one Redis. They
// have managed keys and TLS, and issue no bearer tokens.
type fleet struct {
	*deployment
	t         *testing.T
	instances []*process
	own       tls.Certificate // the planner's, besides its key
	dsn       string
	redis     *redis.Client
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, own: certtest.SelfSigned(t), dsn: testservers.Postgres(t)}
	memory := testservers.Redis(t)
	f.redis = redis.NewClient(&redis.Options{Addr: memory})
	t.Cleanup(func() { _ = f.redis.Close() })
	// One caller makes all the load of the rotation. On a quiet machine that is more than the
	// default rate.
	f.deployment = deploy(t, plan{redis: memory, database: f.dsn, grpcTLS: true, managed: true, bound: true, tenant: "limits: {caller_rate: 100000}\n"})
	f.program = built(t, rootModule, "./server/cmd/deputyd")
	f.certificates[planner] = f.path("planner.crt")
	certtest.WritePair(t, f.certificates[planner], f.path("planner.key"), f.own)
	for range 2 {
		f.instances = append(f.instances, f.spawn())
	}
	f.ready()
	return f
}

func (f *fleet) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fleet) ready() {
	f.t.Helper()
	for _, p := range f.instances {
		p.awaitReady(f.t)
	}
}

// commands returns the command line that calls as the planner, over TLS.
func (f *fleet) commands(program string, with ...string) *commandLine {
	here, there := f.instances[0], f.instances[1]
	return &commandLine{t: f.t, program: program, env: append(os.Environ(), append([]string{
		"DEPUTY_ISSUER=" + f.issuer, "DEPUTY_JWKS=https://" + there.http + "/oauth2/jwks", "DEPUTY_ADDR=" + here.grpc, "DEPUTY_CA_FILE=" + authority.file,
	}, with...)...)}
}

// byKey returns the arguments that authenticate the planner by its registered key.
func (f *fleet) byKey() []string {
	return []string{"DEPUTY_CLIENT_ID=" + string(planner), "DEPUTY_CLIENT_KEY=" + f.keyPath(planner)}
}

// holder returns the planner's SDK client, with its key or without.
func (f *fleet) holder(i *instance, proving bool) *client.Client {
	f.t.Helper()
	key, err := client.LoadKey(f.keyPath(planner))
	check(f.t, err)
	credential, err := client.NewAssertion(client.AssertionConfig{Issuer: f.issuer, ClientID: string(planner), Key: key})
	check(f.t, err)
	config := client.Config{Address: i.grpc, Credential: credential, Attempts: 1}
	if proving {
		config.ProofKey, err = key.ProofKey()
		check(f.t, err)
	}
	c, err := client.New(config)
	check(f.t, err)
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestFleet checks on two real processes the guarantees about bound tokens and keys.
func TestFleet(t *testing.T) {
	f := newFleet(t)
	deputy := built(t, rootModule, "./client/cmd/deputy")
	t.Run("command line", func(t *testing.T) { f.commandLines(t, deputy) })
	t.Run("replay", func(t *testing.T) { f.replay(t, deputy) })
	t.Run("rotation", func(t *testing.T) { f.rotation(t) })
}

// commandLines makes the planner's command line prove possession of its key and its certificate.
func (f *fleet) commandLines(t *testing.T, deputy string) {
	key, err := client.LoadKey(f.keyPath(planner))
	check(t, err)
	for name, c := range map[string]struct {
		by      []string // authenticates the planner
		proves  []string
		binding delegation.Confirmation
	}{
		"key": {f.byKey(), []string{"--dpop-key", f.keyPath(planner)}, delegation.Confirmation{JKT: key.Thumbprint()}},
		"certificate": {nil, []string{"--tls-cert", f.path("planner.crt"), "--tls-key", f.path("planner.key")},
			delegation.Confirmation{X5T: certificateThumbprint(f.own)}},
	} {
		holder, thief := f.commands(deputy, c.by...), f.commands(deputy, f.byKey()...)
		exchange := []string{"exchange", "--subject-token-file", "-", "--audience", calendarAudience, "--scope", "calendar.read"}
		token, stderr, code := holder.run(f.root().Reveal(), append(exchange, c.proves...)...)
		if code != 0 || strings.Count(token, ".") != 2 {
			t.Fatalf("%s: exit code %d: %s%s", name, code, token, stderr)
		}
		var decoded struct {
			Verified bool
			Claims   json.RawMessage
		}
		holder.json(&decoded, 0, token, "decode", "-")
		claims, err := delegation.DecodeClaims(decoded.Claims)
		if err != nil || !decoded.Verified || claims.Confirmation == nil || *claims.Confirmation != c.binding {
			t.Errorf("%s: decode: %s, %v", name, decoded.Claims, err)
		}
		explained, _, _ := holder.run(token, "decode", "-")
		if !strings.Contains(explained, "VERIFIED") || !strings.Contains(explained, c.binding.JKT+c.binding.X5T) {
			t.Errorf("%s: decode does not say what the token is bound to:\n%s", name, explained)
		}
		if _, stderr, code := holder.run(token, append(exchange, c.proves...)...); code != 0 {
			t.Errorf("%s: the holder: exit code %d: %s", name, code, stderr)
		}
		var refusal struct{ Reason string }
		thief.json(&refusal, 1, token, exchange...)
		if refusal.Reason != string(delegation.ProofRequired) {
			t.Errorf("%s: who does not prove it: %+v", name, refusal)
		}
	}
	var refusal struct{ Reason string }
	f.commands(deputy, f.byKey()...).json(&refusal, 1, f.root().Reveal(), "exchange", "--subject-token-file", "-", "--audience", calendarAudience, "--scope", "calendar.read")
	if refusal.Reason != string(delegation.BearerNotIssued) {
		t.Errorf("without a key: %+v", refusal)
	}
}

// replay uses one proof of "deputy proof" several times, over HTTP without any library.
func (f *fleet) replay(t *testing.T, deputy string) {
	printed, stderr, code := f.commands(deputy).run("", "proof", "--dpop-key", f.keyPath(planner), "--method", "POST", "--url", f.issuer+"/oauth2/token")
	if code != 0 {
		t.Fatalf("deputy proof: exit code %d: %s", code, stderr)
	}
	proof := strings.TrimSpace(printed)
	key, err := client.LoadKey(f.keyPath(planner))
	check(t, err)
	assertion, err := client.NewAssertion(client.AssertionConfig{Issuer: f.issuer, ClientID: string(planner), Key: key})
	check(t, err)
	post := func(i *process, proof string) string {
		t.Helper()
		fresh, err := assertion(t.Context())
		check(t, err)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+i.http+"/oauth2/token", strings.NewReader(url.Values{
			"grant_type": {delegation.GrantTypeTokenExchange}, "client_assertion_type": {delegation.ClientAssertionTypeJWTBearer}, "client_assertion": {fresh},
			"subject_token": {f.root().Reveal()}, "subject_token_type": {delegation.TokenTypeAccessToken}, "audience": {calendarAudience}, "scope": {"calendar.read"},
		}.Encode()))
		check(t, err)
		request.Close = true
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if proof != "" {
			request.Header.Set("DPoP", proof)
		}
		response, err := http.DefaultClient.Do(request)
		check(t, err)
		defer response.Body.Close()
		var answer struct {
			TokenType string `json:"token_type"`
			Reason    string
		}
		check(t, json.NewDecoder(response.Body).Decode(&answer))
		return answer.TokenType + answer.Reason
	}
	a, b := f.instances[0], f.instances[1]
	restart := func() {
		t.Helper()
		for _, p := range f.instances {
			p.end(syscall.SIGTERM)
		}
		for _, p := range f.instances {
			p.launch()
		}
		f.ready()
	}
	forget := func() {
		t.Helper()
		check(t, f.redis.FlushAll(t.Context()).Err())
	}
	for _, step := range []struct {
		when   string
		before func()
		at     *process
		proof  string
		want   string
	}{
		{"no proof", nil, a, "", string(delegation.BearerNotIssued)},
		{"first", nil, a, proof, "DPoP"},
		{"at the same instance", nil, a, proof, string(delegation.ProofReplayed)},
		{"at the other", nil, b, proof, string(delegation.ProofReplayed)},
		{"after Redis lost everything", forget, b, proof, string(delegation.ProofReplayed)},
		{"after both were restarted", restart, a, proof, string(delegation.ProofReplayed)},
		{"after that, with an empty Redis", forget, b, proof, string(delegation.ProofReplayed)},
		// The control: without the ledger's row, the same proof passes.
		{"after the ledger lost it too", func() {
			conn, err := pgx.Connect(t.Context(), f.dsn)
			check(t, err)
			defer conn.Close(context.Background())
			_, err = conn.Exec(t.Context(), "DELETE FROM single_uses")
			check(t, err)
			forget()
		}, b, proof, "DPoP"},
	} {
		if step.before != nil {
			step.before()
		}
		if got := post(step.at, step.proof); got != step.want {
			t.Errorf("%s: %q, want %q", step.when, got, step.want)
		}
	}
}

// rotation rotates keys and renews the certificate of both listeners with an operator's means:
// deputyd and the files. Meanwhile bound tokens are exchanged, handed down and introspected, and
// none is refused.
func (f *fleet) rotation(t *testing.T) {
	l := &fleetLoad{root: f.root, why: make(map[string]int)}
	for _, p := range f.instances {
		l.clients = append(l.clients, f.holder(&p.instance, true))
	}
	thief := f.holder(&f.instances[0].instance, false)
	first := f.keys(t, "list")
	if len(first) != 1 || first[0].State != "signing" {
		t.Fatalf("the fleet began with %+v", first)
	}
	ctx, stop := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	defer workers.Wait()
	defer stop()
	for n := range 2 {
		workers.Go(func() { l.work(ctx, n) })
	}
	l.goesOn(t, 10)

	made := f.keys(t, "rotate", "--immediately")
	before := f.serial(t, f.instances[0].grpc)
	certFile, keyFile := certificate(t)
	check(t, os.Rename(keyFile, f.keyFile))
	check(t, os.Rename(certFile, f.certFile))
	for _, p := range f.instances {
		for _, address := range []string{p.grpc, p.http} {
			eventually(t, changesIn, func() error {
				if f.serial(t, address) == before {
					return fmt.Errorf("%s shows the old certificate", address)
				}
				return nil
			})
		}
	}
	eventually(t, changesIn, func() error {
		if signers, _ := l.seen(); len(signers) != 2 || signers[0] != first[0].ID || signers[1] != made[0].ID {
			return fmt.Errorf("%v have signed, of %v and %v", signers, first, made)
		}
		return nil
	})
	l.goesOn(t, 10)
	if n := l.rejected.Load(); n > 0 {
		l.mu.Lock()
		t.Errorf("%d calls, and %d refused: %v", l.calls.Load(), n, l.why)
		l.mu.Unlock()
	}
	t.Logf("%d calls by the holder through a rotation and a renewal, %d refused", l.calls.Load(), l.rejected.Load())

	_, kept := l.seen()
	if _, err := thief.Exchange(t.Context(), stepIn(kept)); err == nil || delegation.AsError(err).Reason != delegation.ProofRequired {
		t.Errorf("a token of the key before, not proven: %v", err)
	}
	// The control: a token that a retired key signed is refused, and the load detects it.
	f.keys(t, "retire", "--", first[0].ID)
	for n, c := range l.clients {
		eventually(t, changesIn, func() error {
			// Until the instance has applied the change, the token is accepted.
			if _, err := c.Exchange(t.Context(), stepIn(kept)); err == nil || delegation.AsError(err).Reason != delegation.SubjectTokenInvalid {
				return fmt.Errorf("instance %d says of a token of the retired key: %v", n, err)
			}
			return nil
		})
	}
	eventually(t, changesIn, func() error {
		if l.rejected.Load() == 0 {
			return errors.New("the load noticed nothing: it cannot fail")
		}
		return nil
	})
	if states := f.keys(t, "list"); len(states) != 2 || states[0].State != "retired" || states[1].State != "signing" {
		t.Errorf("in the end: %+v", states)
	}
}

// serial returns the serial number of the certificate that a new connection receives.
func (f *fleet) serial(t *testing.T, address string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", address, nil)
	check(t, err)
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

type managedKey struct {
	ID    string `json:"kid"`
	State string
}

// keys runs one of deputyd's commands about keys, and returns the keys that it prints.
func (f *fleet) keys(t *testing.T, command string, args ...string) (said []managedKey) {
	t.Helper()
	c := &commandLine{t: t, program: f.program, env: os.Environ()}
	stdout, stderr, code := c.run("", append([]string{"keys", command, "--config", f.instances[0].file, "--json"}, args...)...)
	if code != 0 {
		t.Fatalf("deputyd keys %s: exit code %d: %s", command, code, stderr)
	}
	for line := range strings.Lines(stdout) {
		var key managedKey
		check(t, json.Unmarshal([]byte(line), &key))
		said = append(said, key)
	}
	return said
}

// fleetLoad is the work of the workers until they are stopped, and its results.
type fleetLoad struct {
	clients  []*client.Client // of each instance
	root     func() client.Secret
	calls    atomic.Int64 // calls with the expected answer
	rejected atomic.Int64

	mu      sync.Mutex
	why     map[string]int
	signers []string        // kids, in the order in which they began to sign
	tokens  []client.Secret // one for each of them
}

// work steps in at one instance. It exchanges and introspects at the other: the newest token, and
// the first.
func (l *fleetLoad) work(ctx context.Context, turn int) {
	for ; ctx.Err() == nil; turn++ {
		here, there := l.clients[turn%2], l.clients[(turn+1)%2]
		token, err := here.Exchange(ctx, stepIn(l.root()))
		l.judge(ctx, "stepping in", err)
		if err != nil {
			continue
		}
		for _, held := range []client.Secret{token.AccessToken, l.sort(token.AccessToken)} {
			_, err := there.Exchange(ctx, stepIn(held))
			l.judge(ctx, "narrowing", err)
			in, err := there.Introspect(ctx, held)
			if err == nil && !in.Active {
				err = errors.New("not active")
			}
			l.judge(ctx, "introspection", err)
		}
	}
}

func (l *fleetLoad) judge(ctx context.Context, what string, err error) {
	switch {
	case err == nil:
		l.calls.Add(1)
	case ctx.Err() == nil:
		l.rejected.Add(1)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.why[what+": "+err.Error()]++
	}
}

// sort keeps the first token of each key, and returns the first of all.
func (l *fleetLoad) sort(token client.Secret) client.Secret {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u, err := delegation.Parse(token.Reveal()); err == nil && !slices.Contains(l.signers, u.Header.KeyID) {
		l.signers, l.tokens = append(l.signers, u.Header.KeyID), append(l.tokens, token)
	}
	return l.tokens[0]
}

// seen returns the kids that have signed so far, and a token of the first.
func (l *fleetLoad) seen() (signers []string, first client.Secret) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.tokens) > 0 {
		first = l.tokens[0]
	}
	return slices.Clone(l.signers), first
}

// goesOn waits for so many more calls.
func (l *fleetLoad) goesOn(t *testing.T, calls int64) {
	t.Helper()
	began := l.calls.Load()
	eventually(t, changesIn, func() error {
		if done := l.calls.Load() - began; done < calls {
			return fmt.Errorf("%d calls", done)
		}
		return nil
	})
}

// changesIn bounds the wait for changes that take ten seconds at most on a quiet machine.
const changesIn = 40 * time.Second
