package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
	"deputy.example/deputy/client/internal/deputytest"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

func newProofKey(t testing.TB) *dpop.Key {
	t.Helper()
	key, err := newTestKey(t).ProofKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// connectWith connects to a server with a configuration that the test edits.
func connectWith(t testing.TB, s *deputytest.Server, edit func(*Config)) *Client {
	t.Helper()
	cfg := Config{Address: s.Address, Transport: PlaintextLoopback, Credential: plannerAssertion(t, s.Issuer), Attempts: 1}
	edit(&cfg)
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestCallsCarryProofs: every call of every kind, each attempt included, has its own proof, which
// the server accepts for exactly that method.
func TestCallsCarryProofs(t *testing.T) {
	s := startDeputy(t)
	key := newProofKey(t)
	c := connectWith(t, s, func(cfg *Config) { cfg.ProofKey, cfg.Attempts = key, 4 })
	s.FailNext(unavailable())
	token, err := c.Exchange(t.Context(), toCalendar(s.RootToken("alice")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.BatchExchange(t.Context(), BatchRequest{SubjectToken: NewSecret(s.RootToken("alice")), Children: []Child{toCalendar("").Child}}); err != nil {
		t.Error(err)
	}
	in, err := c.Introspect(t.Context(), token.AccessToken)
	if err != nil || in.Confirmation == nil || *in.Confirmation != (delegation.Confirmation{JKT: key.Thumbprint()}) {
		t.Errorf("introspection: %+v, %v", in, err)
	}
	if _, err := c.Chain(t.Context(), token.JTI); err != nil {
		t.Error(err)
	}
	for _, err := range c.Entries(t.Context(), EntriesRequest{}) {
		if err != nil {
			t.Error(err)
		}
	}
	v, err := NewVerifier(VerifierConfig{Issuer: s.Issuer, Audience: calendar, Client: c})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if err := v.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := c.Revoke(t.Context(), RevokeRequest{Target: RevokeToken(token.AccessToken)}); err != nil {
		t.Error(err)
	}
	want := []string{
		"TokenExchangeService/Exchange", "TokenExchangeService/BatchExchange", "TokenExchangeService/Introspect",
		"AuditService/GetChain", "AuditService/StreamEntries", "RevocationService/WatchRevocations", "RevocationService/Revoke",
	}
	ids := make(map[string]bool)
	for i, proof := range s.Proofs() {
		if i >= len(want) || proof.Method != "/deputy.v1."+want[i] || proof.Thumbprint != key.Thumbprint() || ids[proof.ID] {
			t.Errorf("proof %d: %+v", i, proof)
		}
		ids[proof.ID] = true
	}
	if len(ids) != len(want) {
		t.Errorf("%d proofs for %d calls", len(ids), len(want))
	}
	if n := len(s.Bearers()); n != len(want)+1 {
		t.Errorf("%d attempts", n)
	}
	if _, err := connect(t, s, plannerAssertion(t, s.Issuer)).Exchange(t.Context(), toCalendar(s.RootToken("alice"))); err != nil || len(s.Proofs()) != len(want) {
		t.Errorf("negative control: without a key, %v, and %d proofs", err, len(s.Proofs()))
	}
}

// TestProofsNameTheAuthority: a proof is for the authority that the call is sent with, whatever its
// origin. The server compares it with the :authority that it receives.
func TestProofsNameTheAuthority(t *testing.T) {
	s := startDeputy(t)
	for name, edit := range map[string]func(*Config){
		"host and port": func(*Config) {},
		"dns":           func(cfg *Config) { cfg.Address = "dns:///" + s.Address },
		"passthrough":   func(cfg *Config) { cfg.Address = "passthrough:///" + s.Address },
		"WithAuthority": func(cfg *Config) { cfg.DialOptions = append(cfg.DialOptions, grpc.WithAuthority("deputy.example")) },
		"default port":  func(cfg *Config) { cfg.DialOptions = append(cfg.DialOptions, grpc.WithAuthority("deputy.example:443")) },
		"another port": func(cfg *Config) {
			cfg.DialOptions = append(cfg.DialOptions, grpc.WithAuthority("deputy.example:8443"))
		},
		"IPv6":     func(cfg *Config) { cfg.DialOptions = append(cfg.DialOptions, grpc.WithAuthority("[::1]:443")) },
		"capitals": func(cfg *Config) { cfg.DialOptions = append(cfg.DialOptions, grpc.WithAuthority("Deputy.Example")) },
	} {
		before := len(s.Proofs())
		c := connectWith(t, s, func(cfg *Config) { cfg.ProofKey = newProofKey(t); edit(cfg) })
		if _, err := c.Exchange(t.Context(), toCalendar(s.RootToken("alice"))); err != nil || len(s.Proofs()) != before+1 {
			t.Errorf("%s: %v", name, err)
		}
	}
	memory := deputytest.StartInMemory()
	t.Cleanup(memory.Close)
	c := connectWith(t, memory, func(cfg *Config) {
		cfg.ProofKey, cfg.Transport = newProofKey(t), PlaintextTrustedNetwork
		cfg.DialOptions = []grpc.DialOption{grpc.WithContextDialer(memory.Dial)}
	})
	if _, err := c.Exchange(t.Context(), toCalendar(memory.RootToken("alice"))); err != nil {
		t.Errorf("in memory: %v", err)
	}
}

// TestNonces: a call that lacked only the nonce is repeated at once, with a new credential and a
// new proof, and does not count as one of the attempts. Later calls have the nonce.
func TestNonces(t *testing.T) {
	s := startDeputy(t)
	c := connectWith(t, s, func(cfg *Config) { cfg.ProofKey = newProofKey(t) })
	s.WantNonce("first")
	for i, want := range []int{2, 3} {
		if _, err := c.Exchange(t.Context(), toCalendar(s.RootToken("alice"))); err != nil {
			t.Fatal(err)
		}
		if got := len(s.Bearers()); got != want {
			t.Errorf("after call %d: %d attempts, want %d", i+1, got, want)
		}
	}
	bearers := s.Bearers()
	if bearers[0] == bearers[1] || len(s.Proofs()) != 2 || s.Proofs()[1].Nonce != "first" {
		t.Errorf("one assertion twice, or proofs %+v", s.Proofs())
	}

	s.WantNonce("second")
	entries := 0
	for _, err := range c.Entries(t.Context(), EntriesRequest{}) {
		if err != nil {
			t.Fatal(err)
		}
		entries++
	}
	if proofs := s.Proofs(); entries == 0 || proofs[len(proofs)-1].Nonce != "second" {
		t.Errorf("a stream of one request: %d entries, %+v", entries, proofs)
	}

	s.WantNonce("third")
	v, err := NewVerifier(VerifierConfig{Issuer: s.Issuer, Audience: calendar, Client: c})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := v.Ready(ctx); err != nil {
		t.Errorf("the feed of revocations: %v", err)
	}
	if proofs := s.Proofs(); proofs[len(proofs)-1].Method != deputyv1.RevocationService_WatchRevocations_FullMethodName || proofs[len(proofs)-1].Nonce != "third" {
		t.Errorf("%+v", proofs[len(proofs)-1])
	}

	// A server that always requires a new nonce is not called without end.
	before := len(s.Bearers())
	never := delegation.Refuse(delegation.ProofNonceNeeded, "dpop", "another").WithMetadata(delegation.MetadataNonce, "x")
	s.FailNext(never, never) // a third attempt would succeed
	if _, err := c.Exchange(t.Context(), toCalendar(s.RootToken("alice"))); reason(t, err) != delegation.ProofNonceNeeded || len(s.Bearers()) != before+2 {
		t.Errorf("%v after %d attempts", err, len(s.Bearers())-before)
	}
	for name, nonce := range map[string]string{"none": "", "a quote": `a"b`, "a space": "a b", "long": strings.Repeat("x", 257), "foreign": "é"} {
		before := len(s.Bearers())
		s.FailNext(never.WithMetadata(delegation.MetadataNonce, nonce))
		_, err := c.Exchange(t.Context(), toCalendar(s.RootToken("alice")))
		if reason(t, err) != delegation.ProofNonceNeeded || len(s.Bearers()) != before+1 {
			t.Errorf("%s: a nonce that is none is used: %v, %d attempts", name, err, len(s.Bearers())-before)
		}
	}
}

// TestFeedIsNotAskedForever: a feed whose server always requires a new nonce is opened again with
// pauses.
func TestFeedIsNotAskedForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := delegation.Refuse(delegation.ProofNonceNeeded, "dpop", "another")
		calls := 0
		f := newFeed("", nil, maxMaxStaleness, clockOf(nil))
		f.open = func(context.Context) (watchStream, func(), error) {
			if calls++; calls > 1000 {
				f.end()
			}
			return nil, nil, never.GRPCStatus().Err()
		}
		go f.run()
		time.Sleep(10 * time.Second) // of the bubble
		f.close()
		if calls < 4 || calls > 40 {
			t.Errorf("opened %d times in ten seconds", calls)
		}
	})
}

// workload is a workload's own token that is bound to a key.
func workload(s *deputytest.Server, jkt string) Credential {
	token := s.Sign(map[string]any{"alg": "ES256", "typ": "JWT", "kid": deputytest.KeyID}, map[string]any{
		"iss": "https://idp.example", "sub": "planner", "aud": s.Issuer, "exp": time.Now().Unix() + 30, "jti": "w-" + jkt, "cnf": map[string]string{"jkt": jkt},
	})
	return func(context.Context) (string, error) { return token, nil }
}

// TestBoundCredential: a credential that is bound to the key is sent with scheme DPoP and its hash
// in the proof. A credential that is bound to another key is not sent at all.
func TestBoundCredential(t *testing.T) {
	s := startDeputy(t)
	key := newProofKey(t)
	c := connectWith(t, s, func(cfg *Config) { cfg.ProofKey, cfg.Credential = key, workload(s, key.Thumbprint()) })
	for range 2 { // it is not an assertion, and is valid until it expires
		if _, err := c.Exchange(t.Context(), toCalendar(s.RootToken("alice"))); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Bearers()[0]; !strings.HasPrefix(got, "DPoP ey") {
		t.Errorf("it goes out as %.10s", got)
	}
	before := len(s.Bearers())
	for name, edit := range map[string]func(*Config){
		"of another key": func(cfg *Config) { cfg.ProofKey, cfg.Credential = newProofKey(t), workload(s, key.Thumbprint()) },
		"no key":         func(cfg *Config) { cfg.Credential = workload(s, key.Thumbprint()) },
		"cnf of no sort": func(cfg *Config) { cfg.ProofKey, cfg.Credential = key, workload(s, "x") },
	} {
		_, err := connectWith(t, s, edit).Exchange(t.Context(), toCalendar(s.RootToken("alice")))
		if reason(t, err) != delegation.ClientUnauthenticated || len(s.Bearers()) != before {
			t.Errorf("%s: %v, sent %d times", name, err, len(s.Bearers())-before)
		}
	}
}

// TestBoundExchange: a token that is granted to the holder of the key is bound to it, and no other
// caller can exchange it.
func TestBoundExchange(t *testing.T) {
	s := startDeputy(t)
	key := newProofKey(t)
	holder := connectWith(t, s, func(cfg *Config) { cfg.ProofKey = key })
	own, err := holder.Exchange(t.Context(), toCalendar(s.RootToken("alice")))
	if err != nil || own.TokenType != "DPoP" {
		t.Fatalf("%+v, %v", own, err)
	}
	request := toCalendar(own.AccessToken.Reveal())
	for name, edit := range map[string]func(*Config){"no key": func(*Config) {}, "another key": func(cfg *Config) { cfg.ProofKey = newProofKey(t) }} {
		if _, err := connectWith(t, s, edit).Exchange(t.Context(), request); reason(t, err) != delegation.ProofRequired {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := holder.Exchange(t.Context(), request); err != nil {
		t.Errorf("the holder: %v", err)
	}
}

// newCertificate returns a self-signed certificate for 127.0.0.1.
func newCertificate(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA:        true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// trusting accepts only the server's certificate.
func trusting(server tls.Certificate, own ...tls.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(server.Leaf)
	return &tls.Config{RootCAs: roots, Certificates: own, MinVersion: tls.VersionTLS13}
}

// TestMutualTLS: a client certificate in TLSConfig binds the granted tokens. If
// GetClientCertificate returns another certificate, the next connection uses it.
func TestMutualTLS(t *testing.T) {
	server := newCertificate(t, "deputy")
	s := deputytest.Start(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13})))
	t.Cleanup(s.Close)
	var current atomic.Pointer[tls.Certificate]
	config := trusting(server)
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return current.Load(), nil }
	connectTLS := func(config *tls.Config) *Client {
		return connectWith(t, s, func(cfg *Config) { cfg.Transport, cfg.TLSConfig = TLS, config })
	}
	bound := func(c *Client, subject string) (*Token, string, error) {
		token, err := c.Exchange(t.Context(), toCalendar(subject))
		if err != nil {
			return nil, "", err
		}
		in, err := c.Introspect(t.Context(), token.AccessToken)
		if err != nil || in.Confirmation == nil {
			return nil, "", fmt.Errorf("introspection: %+v, %w", in, err)
		}
		return token, in.Confirmation.X5T, nil
	}
	first, second := newCertificate(t, "first"), newCertificate(t, "second")
	current.Store(&first)
	token, x5t, err := bound(connectTLS(config), s.RootToken("alice"))
	if err != nil || x5t != certificateThumbprint(first.Leaf) || token.TokenType != "Bearer" {
		t.Fatalf("%+v, %q, %v", token, x5t, err)
	}
	if _, _, err := bound(connectTLS(config), token.AccessToken.Reveal()); err != nil {
		t.Errorf("the holder: %v", err)
	}
	current.Store(&second)
	rotated := connectTLS(config)
	if _, x5t, err := bound(rotated, s.RootToken("alice")); err != nil || x5t != certificateThumbprint(second.Leaf) {
		t.Errorf("after rotation: %q, %v", x5t, err)
	}
	for name, c := range map[string]*Client{"another certificate": rotated, "no certificate": connectTLS(trusting(server))} {
		if _, _, err := bound(c, token.AccessToken.Reveal()); reason(t, err) != delegation.ProofRequired {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestProofsNeedACall: a proof is for exactly one call. Without a proof the call is not made.
func TestProofsNeedACall(t *testing.T) {
	c := callCredentials{prover: &prover{key: newProofKey(t), now: time.Now, rand: rand.Reader}}
	if md, err := c.GetRequestMetadata(t.Context(), "https://h.example/s"); err == nil {
		t.Errorf("a proof for no call: %v", md)
	}
	if !c.RequireTransportSecurity() {
		t.Error("it goes out in the clear")
	}
	broken := connectWith(t, startDeputy(t), func(cfg *Config) { cfg.ProofKey, cfg.Rand = newProofKey(t), strings.NewReader("short") })
	if _, err := broken.Introspect(t.Context(), NewSecret("a.b.c")); reason(t, err) != delegation.ClientUnauthenticated {
		t.Errorf("without randomness: %v", err)
	}
}

func TestLearn(t *testing.T) {
	needed := delegation.Refuse(delegation.ProofNonceNeeded, "dpop", "…").WithMetadata(delegation.MetadataNonce, "inside").GRPCStatus().Err()
	bare := delegation.Refuse(delegation.ProofNonceNeeded, "dpop", "…").GRPCStatus().Err()
	for name, test := range map[string]struct {
		err        error
		md         metadata.MD
		again      string
		remembered string
	}{
		"in the error":             {needed, nil, "inside", "inside"},
		"in both":                  {needed, metadata.Pairs(metadataNonce, "outside"), "inside", "inside"},
		"in the metadata":          {bare, metadata.Pairs(metadataNonce, "outside"), "outside", "outside"},
		"twice":                    {bare, metadata.Pairs(metadataNonce, "a", metadataNonce, "b"), "", ""},
		"nowhere":                  {bare, nil, "", ""},
		"a newer one, all is well": {nil, metadata.Pairs(metadataNonce, "outside"), "", "outside"},
		"another refusal":          {status.Error(codes.Unauthenticated, "no"), metadata.Pairs(metadataNonce, "outside"), "", "outside"},
		"somebody else's error":    {errors.New("x"), nil, "", ""},
	} {
		p := new(prover)
		if got := p.learn(test.err, test.md); got != test.again || p.nonceFor(t.Context()) != test.remembered {
			t.Errorf("%s: again with %q, remembered %q", name, got, p.nonceFor(t.Context()))
		}
	}
}
