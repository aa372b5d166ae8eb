package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/credentials/local"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
	"deputy.example/deputy/client/internal/deputytest"
)

// fixedToken is a token source.
func fixedToken(token string) func(context.Context) (*Token, error) {
	return func(context.Context) (*Token, error) {
		return &Token{AccessToken: NewSecret(token), Expiry: time.Now().Add(time.Minute)}, nil
	}
}

func newPresenter(t testing.TB, origin, token string, key *dpop.Key) *Presenter {
	t.Helper()
	p, err := NewPresenter(PresenterConfig{Origin: origin, Token: fixedToken(token), ProofKey: key})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// webTool is a tool over HTTP that returns what it received, and counts requests.
func webTool(t *testing.T, s *deputytest.Server, edit func(*VerifierConfig)) (v *Verifier, address string, requests *atomic.Int32) {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	address = "http://" + server.Listener.Addr().String()
	v = provingVerifier(t, s, func(cfg *VerifierConfig) { cfg.URLs = []string{address}; edit(cfg) })
	admit := v.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
	requests = new(atomic.Int32)
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		admit.ServeHTTP(w, r)
	})
	server.Start()
	t.Cleanup(server.Close)
	return v, address, requests
}

func do(t testing.TB, transport http.RoundTripper, r *http.Request) (int, string, error) {
	t.Helper()
	response, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

func request(t testing.TB, method, address string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestPresenter: each token is sent with its scheme, and a presenter without the key sends nothing.
func TestPresenter(t *testing.T) {
	s := startDeputy(t)
	key := newProofKey(t)
	_, address, requests := webTool(t, s, asIs)
	bound := boundTo(s, time.Now(), delegation.Confirmation{JKT: key.Thumbprint()})
	unbound := s.Token(s.Claims(time.Now()))
	for name, test := range map[string]struct {
		token string
		key   *dpop.Key
		sent  int32
	}{
		"bound":                      {bound, key, 2},
		"unbound":                    {unbound, nil, 2},
		"unbound, with a key":        {unbound, key, 2},
		"bound, with no key":         {bound, nil, 0},
		"bound, with another key":    {bound, newProofKey(t), 0},
		"no token":                   {"", key, 0},
		"bound to what nobody knows": {s.Sign(deputytest.Header(), map[string]any{"cnf": map[string]any{"kid": "x"}}), key, 0},
	} {
		before := requests.Load()
		p := newPresenter(t, address, test.token, test.key)
		for range 2 {
			code, body, err := do(t, p, request(t, "POST", address+"/a%2Fb?q=1", strings.NewReader("hello")))
			if good := err == nil && code == 200 && body == "hello"; good != (test.sent > 0) {
				t.Errorf("%s: %d %s, %v", name, code, body, err)
			}
			if err != nil && len(test.token) > 0 && strings.Contains(err.Error(), test.token) {
				t.Errorf("%s: the error repeats the token", name)
			}
		}
		if got := requests.Load() - before; got != test.sent {
			t.Errorf("%s: %d requests came", name, got)
		}
	}
	lying, err := NewPresenter(PresenterConfig{Origin: address, ProofKey: key, Token: func(context.Context) (*Token, error) {
		return &Token{AccessToken: NewSecret(unbound), TokenType: "DPoP"}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := do(t, lying, request(t, "GET", address, nil)); err == nil {
		t.Error("a token of type DPoP goes out as Bearer")
	}
	down := delegation.Unavailable("Deputy", nil)
	failing, err := NewPresenter(PresenterConfig{Origin: address, Token: func(context.Context) (*Token, error) { return nil, down }})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := do(t, failing, request(t, "GET", address, nil)); !errors.Is(err, down) {
		t.Errorf("err = %v", err)
	}
	for _, header := range []string{"Authorization", "DPoP"} {
		r := request(t, "GET", address, nil)
		r.Header.Set(header, "x")
		if _, _, err := do(t, newPresenter(t, address, bound, key), r); err == nil {
			t.Errorf("beside its own %s", header)
		}
	}
	r := request(t, "GET", address, nil)
	if _, err := newPresenter(t, address, bound, key).RoundTrip(r); err != nil || r.Header.Get("Authorization") != "" {
		t.Errorf("RoundTrip changes the request: %v, %v", r.Header, err)
	}
}

// TestPresenterNonce is RFC 9449 §9: a request is repeated once with the nonce, if its body can be
// sent again. Later requests have it.
func TestPresenterNonce(t *testing.T) {
	s := startDeputy(t)
	key := newProofKey(t)
	token := boundTo(s, time.Now(), delegation.Confirmation{JKT: key.Thumbprint()})
	clock := newClock()
	v, address, requests := webTool(t, s, func(cfg *VerifierConfig) { cfg.RequireProofNonce, cfg.Now = true, clock.now })
	p := newPresenter(t, address, token, key)
	p.prover.now = clock.now
	for i, test := range []struct {
		body  io.Reader
		tries int32
		code  int
	}{
		{strings.NewReader("hello"), 2, 200}, {strings.NewReader("hello"), 1, 200}, {nil, 1, 200}, {bytes.NewBufferString("again"), 1, 200},
	} {
		before := requests.Load()
		code, body, err := do(t, p, request(t, "POST", address, test.body))
		if err != nil || code != test.code || requests.Load()-before != test.tries || i == 0 && body != "hello" {
			t.Errorf("request %d: %d %s after %d tries, %v", i, code, body, requests.Load()-before, err)
		}
	}
	// A body that is gone after it was sent is not sent again. The next request has the nonce.
	v.nonces = newNonces()
	for i, want := range []int{401, 200} {
		code, _, err := do(t, p, request(t, "POST", address, io.NopCloser(strings.NewReader("once"))))
		if err != nil || code != want {
			t.Errorf("a body of one use, request %d: %d, %v", i, code, err)
		}
	}
	// The nonce in each answer replaces the one before it, so that the passing of time costs no
	// round trip.
	for range 5 {
		clock.advance(20 * time.Second)
		before := requests.Load()
		if code, _, err := do(t, p, request(t, "GET", address, nil)); err != nil || code != 200 || requests.Load()-before != 1 {
			t.Errorf("%d after %d tries, %v", code, requests.Load()-before, err)
		}
	}
}

// TestPresenterIsNotAskedForever: a tool that always requires a new nonce, and one that sends an
// invalid nonce.
func TestPresenterIsNotAskedForever(t *testing.T) {
	key := newProofKey(t)
	s := startDeputy(t)
	token := boundTo(s, time.Now(), delegation.Confirmation{JKT: key.Thumbprint()})
	for name, test := range map[string]struct {
		status    int
		challenge string
		nonces    []string
		tries     int32
	}{
		"never content":     {401, `DPoP error="use_dpop_nonce"`, []string{"n"}, 2},
		"another error":     {401, `DPoP error="invalid_token"`, []string{"n"}, 1},
		"no nonce":          {401, `DPoP error="use_dpop_nonce"`, nil, 1},
		"two nonces":        {401, `DPoP error="use_dpop_nonce"`, []string{"n", "m"}, 1},
		"a nonce with a \"": {401, `DPoP error="use_dpop_nonce"`, []string{`a"b`}, 1},
		"another status":    {403, `DPoP error="use_dpop_nonce"`, []string{"n"}, 1},
	} {
		var tries atomic.Int32
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			tries.Add(1)
			w.Header()["Dpop-Nonce"] = test.nonces
			w.Header().Set("WWW-Authenticate", test.challenge)
			w.WriteHeader(test.status)
		}))
		code, _, err := do(t, newPresenter(t, server.URL, token, key), request(t, "GET", server.URL, nil))
		if err != nil || code != test.status || tries.Load() != test.tries {
			t.Errorf("%s: %d after %d tries, %v", name, code, tries.Load(), err)
		}
		server.Close()
	}
}

// addHeaders is the usual alternative to a Presenter.
type addHeaders struct{ authorization string }

func (a addHeaders) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", a.authorization)
	return http.DefaultTransport.RoundTrip(r)
}

// TestRedirects: a tool that redirects a request elsewhere does not make the token go there.
func TestRedirects(t *testing.T) {
	s := startDeputy(t)
	key := newProofKey(t)
	token := boundTo(s, time.Now(), delegation.Confirmation{JKT: key.Thumbprint()})
	var stolen atomic.Int32
	evil := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.Header.Get("DPoP") != "" {
			stolen.Add(1)
		}
	}))
	defer evil.Close()
	var same atomic.Int32
	tool := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/same" {
			same.Add(1)
			return
		}
		to := map[string]string{"/evil": evil.URL, "/userinfo": strings.Replace(evil.URL, "://", "://"+r.Host+"@", 1), "/scheme": "https://" + r.Host, "/": "/same"}[r.URL.Path]
		http.Redirect(w, r, to, http.StatusTemporaryRedirect)
	}))
	defer tool.Close()
	p := newPresenter(t, tool.URL, token, key)
	for _, path := range []string{"/evil", "/userinfo", "/scheme"} {
		if code, _, err := do(t, p, request(t, "POST", tool.URL+path, strings.NewReader("body"))); err == nil {
			t.Errorf("%s: %d", path, code)
		}
	}
	if code, _, err := do(t, p, request(t, "POST", tool.URL+"/", strings.NewReader("body"))); err != nil || code != 200 || same.Load() != 1 {
		t.Errorf("within the origin: %d, %v", code, err)
	}
	for _, address := range []string{evil.URL, "http://evil.example/", "ftp://" + tool.URL[7:]} {
		if _, _, err := do(t, p, request(t, "GET", address, nil)); err == nil {
			t.Errorf("asked for %s, it goes there", address)
		}
	}
	r := request(t, "GET", tool.URL+"/same", nil)
	if r.Host = "evil.example"; true {
		if _, _, err := do(t, p, r); err == nil {
			t.Error("it goes to another virtual host")
		}
	}
	if stolen.Load() != 0 {
		t.Errorf("%d requests reached the other origin with the token", stolen.Load())
	}
	if _, _, err := do(t, addHeaders{"DPoP " + token}, request(t, "GET", tool.URL+"/evil", nil)); err != nil || stolen.Load() != 1 {
		t.Errorf("negative control: a transport that adds a header to whatever comes: %v, stolen %d times", err, stolen.Load())
	}
}

func TestNewPresenterRefuses(t *testing.T) {
	for name, cfg := range map[string]PresenterConfig{
		"no origin": {Token: fixedToken("x")}, "no token": {Origin: calendar}, "plain http": {Origin: "http://calendar.example", Token: fixedToken("x")},
		"a path": {Origin: calendar + "/events", Token: fixedToken("x")}, "a host alone": {Origin: "calendar.example", Token: fixedToken("x")},
		"a user": {Origin: "https://u@calendar.example", Token: fixedToken("x")},
	} {
		if _, err := NewPresenter(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, origin := range []string{calendar, calendar + "/", "http://127.0.0.1:8080", "http://[::1]:8080", "http://localhost"} {
		if _, err := NewPresenter(PresenterConfig{Origin: origin, Token: fixedToken("x")}); err != nil {
			t.Errorf("negative control: %s: %v", origin, err)
		}
	}
}

// TestPresenterOverGRPC: unary calls and streams of one request, with and without nonces, over TLS
// and locally, and never in plaintext or to another authority.
func TestPresenterOverGRPC(t *testing.T) {
	s := startDeputy(t)
	key := newProofKey(t)
	token := boundTo(s, time.Now(), delegation.Confirmation{JKT: key.Thumbprint()})
	certificate := newCertificate(t, "tool")
	secure := credentials.NewServerTLSFromCert(&certificate)
	for name, test := range map[string]struct {
		nonce  bool
		server credentials.TransportCredentials
		client credentials.TransportCredentials
		edit   func(*PresenterConfig)
		want   codes.Code
	}{
		"locally":          {false, local.NewCredentials(), local.NewCredentials(), nil, codes.OK},
		"locally, a nonce": {true, local.NewCredentials(), local.NewCredentials(), nil, codes.OK},
		"TLS":              {false, secure, credentials.NewTLS(trusting(certificate)), nil, codes.OK},
		"TLS, a nonce":     {true, secure, credentials.NewTLS(trusting(certificate)), nil, codes.OK},
		"in the clear":     {false, insecure.NewCredentials(), insecure.NewCredentials(), nil, codes.Unauthenticated},
		"to another place": {false, local.NewCredentials(), local.NewCredentials(), func(cfg *PresenterConfig) { cfg.Origin = calendar }, codes.Unauthenticated},
		"with another key": {false, local.NewCredentials(), local.NewCredentials(), func(cfg *PresenterConfig) { cfg.ProofKey = newProofKey(t) }, codes.Unauthenticated},
		"Deputy is away": {false, local.NewCredentials(), local.NewCredentials(), func(cfg *PresenterConfig) {
			cfg.Token = func(context.Context) (*Token, error) { return nil, unavailable() }
		}, codes.Unavailable},
		"the source is wrong": {false, local.NewCredentials(), local.NewCredentials(), func(cfg *PresenterConfig) {
			cfg.Token = func(context.Context) (*Token, error) { return nil, errors.New("x") }
		}, codes.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			origin := "http://" + listener.Addr().String()
			v := provingVerifier(t, s, func(cfg *VerifierConfig) { cfg.URLs, cfg.RequireProofNonce = []string{origin}, test.nonce })
			cfg := PresenterConfig{Origin: origin, Token: fixedToken(token), ProofKey: key}
			if test.edit != nil {
				test.edit(&cfg)
			}
			p, err := NewPresenter(cfg)
			if err != nil {
				t.Fatal(err)
			}
			tool := serveTool(t, v, listener, test.server, append(p.DialOptions(), grpc.WithTransportCredentials(test.client))...)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			for range 2 {
				_, err = tool.Check(ctx, &healthpb.HealthCheckRequest{})
				if status.Code(err) != test.want {
					t.Errorf("unary: %v", err)
				}
				v.nonces = newNonces() // the stream lacks it again
				stream, err := tool.Watch(ctx, &healthpb.HealthCheckRequest{})
				if err == nil {
					_, err = stream.Recv()
				}
				if status.Code(err) != test.want {
					t.Errorf("stream: %v", err)
				}
				v.nonces = newNonces()
			}
		})
	}
}

// TestStreamOfMany: a stream on which the caller sends too ends for lack of a nonce, and the next
// one has it.
func TestStreamOfMany(t *testing.T) {
	s := startDeputy(t)
	key := newProofKey(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	origin := "http://" + listener.Addr().String()
	v := provingVerifier(t, s, func(cfg *VerifierConfig) { cfg.URLs, cfg.RequireProofNonce = []string{origin}, true })
	echo := func(_ any, stream grpc.ServerStream) error {
		m := new(healthpb.HealthCheckRequest)
		for {
			if err := stream.RecvMsg(m); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if err := stream.SendMsg(m); err != nil {
				return err
			}
		}
	}
	server := grpc.NewServer(grpc.Creds(local.NewCredentials()), grpc.StreamInterceptor(v.StreamServerInterceptor(Methods{Scopes: map[string]delegation.Scopes{"/echo/Echo": nil}})))
	desc := grpc.StreamDesc{StreamName: "Echo", Handler: echo, ServerStreams: true, ClientStreams: true}
	server.RegisterService(&grpc.ServiceDesc{ServiceName: "echo", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{desc}}, health.NewServer())
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	p := newPresenter(t, origin, boundTo(s, time.Now(), delegation.Confirmation{JKT: key.Thumbprint()}), key)
	conn, err := grpc.NewClient(listener.Addr().String(), append(p.DialOptions(), grpc.WithTransportCredentials(local.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for i, want := range []delegation.Reason{delegation.ProofNonceNeeded, ""} {
		stream, err := conn.NewStream(ctx, &desc, "/echo/Echo")
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.SendMsg(&healthpb.HealthCheckRequest{Service: "x"})
		m := new(healthpb.HealthCheckRequest)
		err = stream.RecvMsg(m)
		if want == "" && (err != nil || m.Service != "x") || want != "" && (err == nil || delegation.FromStatus(err).Reason != want) {
			t.Errorf("stream %d: %v, %v", i, m, err)
		}
	}
}
