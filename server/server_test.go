package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/policy/policytest"
	"deputy.example/deputy/server/internal/testservers"
)

// site is a deployment: its files, its people and its dependencies. A site can start several
// servers.
type site struct {
	scene
	redis     *testservers.RedisServer
	fga       *policytest.Fake
	people    *exchangetest.Signer
	planner   *exchangetest.Signer
	workloads *exchangetest.Signer // nil: there are none
	log       *syncBuffer
	options   Options
	text      string // of the configuration
	ids       int
	mu        sync.Mutex
}

type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}
func (b *syncBuffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.text.String() }

const issuer = "https://deputy.example"

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{
		scene: newScene(t), redis: testservers.NewRedis(t), log: &syncBuffer{},
		fga:     &policytest.Fake{Judge: func(policy.Relation) (yes, ok bool) { return true, true }},
		people:  exchangetest.NewSigner(t, "https://login.example"),
		planner: exchangetest.NewSigner(t, "agent:planner"),
	}
	s.write("people.jwks.json", []byte(s.people.JWKS()))
	s.write("client.jwks.json", []byte(s.planner.JWKS()))
	s.text = strings.NewReplacer(
		// The timeout is the longest permitted one, because the machine of a test can be busy.
		"redis://127.0.0.1:6379", s.redis.URL()+"\n  timeout: 1s",
		"keys: {discovery: true}", "keys: {file: DIR/people.jwks.json}",
		"    policy:\n", "    limits: {allow_bearer: true}\n    policy:\n      timeout: 1500ms\n",
		"principal: {type: user}", "principal: {type: user}\n        root_grants: {scopes_claim: scope, audiences: [https://calendar.example]}",
	).Replace(good) + "listen:\n  grpc: {address: 127.0.0.1:0}\n  http: {address: 127.0.0.1:0}\n  ops: {address: 127.0.0.1:0}\n"
	s.options = Options{PolicyTransport: s.fga, Logger: slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	return s
}

// instance is one running server.
type instance struct {
	*Server
	site   *site
	cancel context.CancelFunc
	done   chan error
	conn   *grpc.ClientConn
}

// start migrates, loads, opens and runs, and waits until the instance reports that it is ready.
func (s *site) start(t testing.TB) *instance {
	t.Helper()
	i := s.startUnready(t)
	i.await(t, nil)
	return i
}

func (s *site) startUnready(t testing.TB) *instance {
	t.Helper()
	config, err := s.load(s.text)
	if err != nil {
		t.Fatal(err)
	}
	ledgertest.Migrate(t, config.Database.DSN)
	srv, err := New(t.Context(), config, s.options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	i := &instance{Server: srv, site: s, cancel: cancel, done: make(chan error, 1)}
	go func() { i.done <- srv.Run(ctx) }()
	if i.conn, err = grpc.NewClient(srv.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = i.conn.Close()
		cancel()
		if i.done != nil {
			<-i.done
		}
	})
	return i
}

// stop drains the instance.
func (i *instance) stop(t *testing.T) {
	t.Helper()
	i.cancel()
	if err := <-i.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	i.done = nil
}

// get uses connections of its own, so that none outlives the test.
func get(t testing.TB, url string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// await polls the gRPC health service and /readyz until they report exactly these dependencies as
// missing.
func (i *instance) await(t testing.TB, missing []string) {
	t.Helper()
	var said string
	poll(t, func() bool {
		var code int
		code, said = get(t, "http://"+i.OpsAddr()+"/readyz")
		var answer struct {
			Ready   bool
			Missing []string
		}
		_ = json.Unmarshal([]byte(said), &answer)
		return answer.Ready == (missing == nil) && (code == http.StatusOK) == answer.Ready && slices.Equal(answer.Missing, missing)
	}, func() string { return fmt.Sprintf("readyz: %s, want missing %v\n%s", said, missing, i.site.log) })
	want := healthpb.HealthCheckResponse_NOT_SERVING
	if missing == nil {
		want = healthpb.HealthCheckResponse_SERVING
	}
	var health *healthpb.HealthCheckResponse
	poll(t, func() bool {
		var err error
		health, err = healthpb.NewHealthClient(i.conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		return err == nil && health.GetStatus() == want
	}, func() string { return fmt.Sprintf("gRPC health: %v, want %v", health, want) })
}

func poll(t testing.TB, done func() bool, why func() string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatal(why())
		}
		<-time.After(20 * time.Millisecond) // real servers are involved
	}
}

func (s *site) id() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids++
	return fmt.Sprintf("id-%d", s.ids)
}

func (s *site) root(t *testing.T) string {
	return s.people.Sign(t, "at+jwt", map[string]any{
		"sub": "alice", "aud": issuer + "/subject-tokens", "scope": "calendar.read calendar.write", "jti": s.id(),
		"iat": time.Now().Unix(), "exp": time.Now().Add(10 * time.Minute).Unix(),
	})
}

func (s *site) assertion(t *testing.T) string {
	return s.planner.Sign(t, "JWT", map[string]any{
		"sub": "agent:planner", "aud": issuer, "jti": s.id(),
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
	})
}

func (s *site) request(t *testing.T) *deputyv1.ExchangeRequest {
	return &deputyv1.ExchangeRequest{
		SubjectToken: s.root(t), SubjectTokenType: delegation.TokenTypeAccessToken,
		Child:  &deputyv1.Child{Audience: []string{"https://calendar.example"}, Scope: "calendar.read"},
		Client: &deputyv1.ClientAuthentication{ClientAssertionType: delegation.ClientAssertionTypeJWTBearer, ClientAssertion: s.assertion(t)},
	}
}

func (i *instance) exchange(ctx context.Context, t *testing.T) (*deputyv1.ExchangeResponse, error) {
	return deputyv1.NewTokenExchangeServiceClient(i.conn).Exchange(ctx, i.site.request(t))
}

// TestEmergencyRespondersOfTheFile: a principal in emergency_responders suspends an agent while
// OpenFGA does not answer. The control is the same configuration without the field.
func TestEmergencyRespondersOfTheFile(t *testing.T) {
	for _, named := range []bool{true, false} {
		s := newSite(t)
		if named {
			s.text = strings.Replace(s.text, "    default: true\n", "    default: true\n    emergency_responders: [agent:planner]\n", 1)
		}
		var down atomic.Bool
		s.fga.Answer = func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
			if down.Load() {
				return nil, errors.New("connection refused")
			}
			return next.RoundTrip(r)
		}
		i := s.start(t)
		down.Store(true)
		_, err := deputyv1.NewRevocationServiceClient(i.conn).Suspend(t.Context(), &deputyv1.SuspendRequest{
			Agent: "agent:rogue", Reason: "a test",
			Client: &deputyv1.ClientAuthentication{ClientAssertionType: delegation.ClientAssertionTypeJWTBearer, ClientAssertion: s.assertion(t)},
		})
		if (err == nil) != named || !named && status.Code(err) != codes.Unavailable {
			t.Errorf("named %t: %v", named, err)
		}
		i.stop(t)
	}
}

func TestStartExchangeRestart(t *testing.T) {
	s := newSite(t)
	first := s.start(t)
	grant, err := first.exchange(t.Context(), t)
	if err != nil {
		t.Fatal(err)
	}
	if grant.GetAccessToken() == "" || grant.GetEntry() != 1 {
		t.Errorf("grant %v", grant.GetEntry())
	}
	if code, body := get(t, "http://"+first.HTTPAddr()+"/.well-known/oauth-authorization-server"); code != http.StatusOK || !strings.Contains(body, issuer) {
		t.Errorf("metadata: %d %s", code, body)
	}
	_, keys := get(t, "http://"+first.HTTPAddr()+"/oauth2/jwks")
	first.stop(t)

	second := s.start(t)
	grant, err = second.exchange(t.Context(), t)
	if err != nil || grant.GetEntry() != 2 {
		t.Errorf("after a restart: entry %d, %v", grant.GetEntry(), err)
	}
	if _, again := get(t, "http://"+second.HTTPAddr()+"/oauth2/jwks"); again != keys {
		t.Error("a restart changed the keys")
	}
	second.stop(t)
}

func TestReadinessNamesWhatIsMissing(t *testing.T) {
	s := newSite(t)
	postgres := testservers.NewPostgres(t)
	s.text = strings.Replace(s.text, "sqlite://DIR/ledger.db", postgres.DSN, 1)
	var down sync.Mutex
	refusing := false
	s.fga.Answer = func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		down.Lock()
		defer down.Unlock()
		if refusing {
			return policytest.Response(http.StatusInternalServerError, `{}`), nil
		}
		return next.RoundTrip(r)
	}
	refuse := func(yes bool) { down.Lock(); refusing = yes; down.Unlock() }
	i := s.start(t)

	s.redis.Stop()
	i.await(t, []string{"redis"})
	if _, err := i.exchange(t.Context(), t); status.Code(err) != codes.Unavailable {
		t.Errorf("without Redis: %v", err)
	}
	refuse(true)
	i.await(t, []string{"policy of acme", "redis"})
	s.redis.Start()
	i.await(t, []string{"policy of acme"})
	postgres.Stop()
	i.await(t, []string{"ledger", "policy of acme"})
	refuse(false)
	postgres.Start()
	i.await(t, nil)
	if _, err := i.exchange(t.Context(), t); err != nil {
		t.Errorf("with everything back: %v", err)
	}
	i.stop(t)
}

// TestDrainUnderLoad: a request that runs at the signal completes, a request after the notice is
// refused, and the ledger holds every grant.
func TestDrainUnderLoad(t *testing.T) {
	s := newSite(t)
	s.text = strings.Replace(s.text, "listen:\n", "listen:\n  drain_notice: 500ms\n", 1)
	arrived, release := make(chan struct{}, 100), make(chan struct{})
	s.fga.Answer = func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		if strings.HasSuffix(r.URL.Path, "/batch-check") {
			arrived <- struct{}{}
			<-release
		}
		return next.RoundTrip(r)
	}
	i := s.start(t)
	const load = 8
	results := make(chan error, load)
	for range load {
		go func() {
			grant, err := i.exchange(context.Background(), t)
			if err == nil && grant.GetAccessToken() == "" {
				err = fmt.Errorf("no token")
			}
			results <- err
		}()
	}
	for range load {
		<-arrived
	}
	i.cancel()
	i.await(t, []string{"serving"})
	close(release)
	for range load {
		if err := <-results; err != nil {
			t.Errorf("a request under way: %v", err)
		}
	}
	if err := <-i.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	i.done = nil
	if _, err := i.exchange(t.Context(), t); status.Code(err) != codes.Unavailable {
		t.Errorf("after the drain: %v", err)
	}
	again := s.start(t)
	if grant, err := again.exchange(t.Context(), t); err != nil || grant.GetEntry() != load+1 {
		t.Errorf("entry %d, %v", grant.GetEntry(), err)
	}
	again.stop(t)
}

// TestDrainIsBounded: a request that never ends is cut off, and Run returns.
func TestDrainIsBounded(t *testing.T) {
	s := newSite(t)
	s.text = strings.Replace(s.text, "listen:\n", "listen:\n  drain_timeout: 50ms\n", 1)
	arrived := make(chan struct{}, 1)
	s.fga.Answer = func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		if strings.HasSuffix(r.URL.Path, "/batch-check") {
			arrived <- struct{}{}
			<-r.Context().Done()
			return nil, r.Context().Err()
		}
		return next.RoundTrip(r)
	}
	i := s.start(t)
	result := make(chan error, 1)
	go func() { _, err := i.exchange(context.Background(), t); result <- err }()
	<-arrived
	i.stop(t)
	if err := <-result; status.Code(err) != codes.Unavailable {
		t.Errorf("the request: %v", err)
	}
}

func TestFailingComponentEndsRunAndIsNamed(t *testing.T) {
	for name, break_ := range map[string]func(*instance){
		"gRPC server": func(i *instance) { _ = i.listeners.grpc.Close() },
		"HTTP server": func(i *instance) { _ = i.listeners.http.Close() },
		"ops server":  func(i *instance) { _ = i.listeners.ops.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			i := s.start(t)
			break_(i)
			err := <-i.done
			i.done = nil
			if err == nil || !strings.HasPrefix(err.Error(), name+": ") {
				t.Errorf("Run: %v", err)
			}
		})
	}
}

func TestNewClosesWhatItOpenedWhenItFails(t *testing.T) {
	s := newSite(t)
	config, err := s.load(s.text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), config, s.options); err == nil || !strings.Contains(err.Error(), "deputyd migrate") {
		t.Errorf("an unmigrated database: %v", err)
	}
	if err := Migrate(t.Context(), config.Database); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	config.Listen.Ops.Address = taken.Addr().String()
	if _, err := New(t.Context(), config, s.options); err == nil || !strings.Contains(err.Error(), "listen.ops: ") {
		t.Errorf("a port that is taken: %v", err)
	}
	config.Listen.Ops.Address = "0.0.0.0:0"
	if _, err := New(t.Context(), config, s.options); err == nil || !strings.Contains(err.Error(), "listen.ops.address: ") {
		t.Errorf("New does not validate: %v", err)
	}
	config.Listen.Ops.Address = "127.0.0.1:0"
	srv, err := New(t.Context(), config, s.options)
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Close(); err != nil { // never ran
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	s := newSite(t)
	certificate := s.writeCertificate("tls.crt", "tls.key")
	with := ", tls: {cert_file: DIR/tls.crt, key_file: DIR/tls.key}}"
	at := strings.Index(s.text, "listen:")
	s.text = s.text[:at] + strings.ReplaceAll(s.text[at:], ":0}", ":0"+with)
	srv := s.startUnready(t)

	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	trusting := &tls.Config{RootCAs: roots, ServerName: "localhost"}
	conn, err := grpc.NewClient(srv.GRPCAddr(), grpc.WithTransportCredentials(credentials.NewTLS(trusting.Clone())))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	i := &instance{Server: srv.Server, site: s, conn: conn}
	if _, err := i.exchange(t.Context(), t); err != nil {
		t.Errorf("gRPC over TLS: %v", err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trusting, DisableKeepAlives: true}}
	for _, url := range []string{"https://" + srv.HTTPAddr() + "/oauth2/jwks", "https://" + srv.OpsAddr() + "/healthz"} {
		response, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Errorf("%s: %d", url, response.StatusCode)
		}
	}
	if code, _ := get(t, "http://"+srv.HTTPAddr()+"/oauth2/jwks"); code == http.StatusOK {
		t.Error("plaintext was answered")
	}
}

func TestCreateKeyNeverReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pem")
	if err := CreateKey(path, "EdDSA"); err != nil {
		t.Fatal(err)
	}
	made, err := os.Stat(path)
	if err != nil || made.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", made.Mode(), err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := CreateKey(path, "EdDSA"); err == nil {
		t.Error("an existing key was accepted")
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the key was replaced (%v)", err)
	}
	dangling := filepath.Join(t.TempDir(), "link.pem")
	if err := os.Symlink(filepath.Join(t.TempDir(), "elsewhere"), dangling); err != nil {
		t.Fatal(err)
	}
	if err := CreateKey(dangling, "ES256"); err == nil {
		t.Error("a key went where a link points to")
	}
}
