package server

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
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
	"google.golang.org/grpc/status"

	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/token/certtest"
)

// handshake holds what both sides know after a handshake.
type handshake struct{ client, server tls.ConnectionState }

// shake connects to a server with the configuration, and lets the client read until it has the
// tickets that there may be.
func shake(t testing.TB, server, client *tls.Config) (handshake, error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	states := make(chan tls.ConnectionState, 1)
	go func() {
		defer close(states)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		secured := tls.Server(conn, server)
		if secured.Handshake() == nil {
			states <- secured.ConnectionState()
			_ = secured.Close()
		}
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), client)
	if err != nil {
		<-states
		return handshake{}, err
	}
	defer conn.Close()
	if _, err := io.ReadAll(conn); err != nil {
		<-states
		return handshake{}, err
	}
	return handshake{conn.ConnectionState(), <-states}, nil
}

// tlsFiles is a certificate in two files, a clock and a log.
type tlsFiles struct {
	TLS
	at  atomic.Int64
	log syncBuffer
}

func newTLSFiles(t testing.TB, c tls.Certificate) *tlsFiles {
	dir := t.TempDir()
	f := &tlsFiles{TLS: TLS{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key")}}
	f.at.Store(time.Now().UnixNano())
	certtest.WritePair(t, f.CertFile, f.KeyFile, c)
	return f
}

func (f *tlsFiles) now() time.Time { return time.Unix(0, f.at.Load()) }

func (f *tlsFiles) open(t testing.TB) *tls.Config {
	t.Helper()
	var p problems
	f.check(&p, "tls", true)
	config := f.TLS.open(&p, "tls", Options{Now: f.now, Logger: slog.New(slog.NewTextHandler(&f.log, nil))})
	if err := p.err(); err != nil {
		t.Fatal(err)
	}
	return config
}

func localhost(t testing.TB, ca *certtest.CA) tls.Certificate {
	t.Helper()
	return ca.Issue(t, certtest.DNS("localhost"))
}

func trusting(ca *certtest.CA) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate)
	return &tls.Config{RootCAs: roots, ServerName: "localhost"}
}

func TestCertificateIsRenewed(t *testing.T) {
	ca := certtest.NewCA(t, "servers")
	first, second, third := localhost(t, ca), localhost(t, ca), localhost(t, ca)
	f := newTLSFiles(t, first)
	config := f.open(t)
	serves := func(when string, want tls.Certificate) {
		t.Helper()
		got, err := shake(t, config, trusting(ca))
		if err != nil || !got.client.PeerCertificates[0].Equal(want.Leaf) {
			t.Fatalf("%s: another certificate is served (%v)", when, err)
		}
	}
	serves("at the start", first)
	certtest.WritePair(t, f.CertFile, f.KeyFile, second)
	f.at.Add(int64(lookEvery) - 1)
	serves("before it is looked again", first)
	f.at.Add(1)
	serves("after it is looked again", second)

	// The key is there, the certificate is not yet.
	certtest.WritePair(t, f.CertFile+".third", f.KeyFile, third)
	for what, change := range map[string]func() error{
		"half-written": func() error { return nil },
		"gone":         func() error { return os.Remove(f.CertFile) },
		"broken":       func() error { return os.WriteFile(f.CertFile, []byte("-----BEGIN CERTIFICATE-----\nAAAA"), 0o600) },
		"too long":     func() error { return os.WriteFile(f.CertFile, make([]byte, 2<<20), 0o600) },
	} {
		if err := change(); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		f.at.Add(int64(lookEvery))
		if _, err := tls.LoadX509KeyPair(f.CertFile, f.KeyFile); err == nil { // the control
			t.Fatalf("%s: the files can be used", what)
		}
		serves(what, second)
	}
	if n := strings.Count(f.log.String(), "cannot be used"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, f.log.String())
	}
	certtest.WritePair(t, f.CertFile, f.KeyFile, third)
	f.at.Add(int64(lookEvery))
	serves("whole again", third)
	if !strings.Contains(f.log.String(), "can be used again") || strings.Contains(f.log.String(), "PRIVATE") {
		t.Error(f.log.String())
	}
}

// TestCertificateIsRenewedUnderLoad: handshakes succeed while a renewal replaces one file after the
// other.
func TestCertificateIsRenewedUnderLoad(t *testing.T) {
	ca := certtest.NewCA(t, "servers")
	f := newTLSFiles(t, localhost(t, ca))
	config := f.open(t)
	done := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				f.at.Add(int64(lookEvery)) // every handshake reads the files
				if _, err := shake(t, config, trusting(ca)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	var last tls.Certificate
	for range 50 {
		last = localhost(t, ca)
		certtest.WritePair(t, f.CertFile, f.KeyFile, last)
	}
	close(done)
	clients.Wait()
	f.at.Add(int64(lookEvery))
	if got, err := shake(t, config, trusting(ca)); err != nil || !got.client.PeerCertificates[0].Equal(last.Leaf) {
		t.Errorf("the last certificate is not served (%v)", err)
	}
}

func TestTLSVersionsAndClientCertificates(t *testing.T) {
	ca := certtest.NewCA(t, "servers")
	mine := certtest.SelfSigned(t, certtest.DNS("nobody.example"))
	for name, c := range map[string]struct {
		settings      TLS
		newest        uint16
		refused, seen bool
	}{
		"1.3 by default":      {seen: true},
		"1.2 by default":      {newest: tls.VersionTLS12, refused: true},
		"1.2 where allowed":   {settings: TLS{MinVersion: "1.2"}, newest: tls.VersionTLS12, seen: true},
		"1.1 where allowed":   {settings: TLS{MinVersion: "1.2"}, newest: tls.VersionTLS11, refused: true},
		"1.3 where 1.2 is":    {settings: TLS{MinVersion: "1.2"}, seen: true},
		"ignored":             {settings: TLS{ClientCertificates: "ignore"}},
		"requested like this": {settings: TLS{ClientCertificates: "request"}, seen: true},
	} {
		f := newTLSFiles(t, localhost(t, ca))
		f.MinVersion, f.ClientCertificates = c.settings.MinVersion, c.settings.ClientCertificates
		config := f.open(t)
		client := trusting(ca)
		client.MaxVersion, client.Certificates = c.newest, []tls.Certificate{mine}
		got, err := shake(t, config, client)
		if (err != nil) != c.refused {
			t.Errorf("%s: %v", name, err)
		}
		if seen := len(got.server.PeerCertificates) == 1; seen != c.seen || seen && !got.server.PeerCertificates[0].Equal(mine.Leaf) {
			t.Errorf("%s: the server saw %d certificates", name, len(got.server.PeerCertificates))
		}
		client.Certificates = nil
		if _, err := shake(t, config, client); (err != nil) != c.refused {
			t.Errorf("%s, without a certificate: %v", name, err)
		}
	}
}

// TestNoSessionIsResumed: a client that renewed its certificate presents the new one on its next
// connection, whatever state it keeps of the old one.
func TestNoSessionIsResumed(t *testing.T) {
	ca := certtest.NewCA(t, "servers")
	for _, newest := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, resumable := range []bool{false, true} {
			f := newTLSFiles(t, localhost(t, ca))
			f.MinVersion = "1.2"
			config := f.open(t)
			if resumable { // the control
				config.SessionTicketsDisabled = false
			}
			client := trusting(ca)
			client.MaxVersion, client.ClientSessionCache = newest, tls.NewLRUClientSessionCache(4)
			old, renewed := certtest.SelfSigned(t), certtest.SelfSigned(t)
			client.Certificates = []tls.Certificate{old}
			if _, err := shake(t, config, client); err != nil {
				t.Fatal(err)
			}
			client.Certificates = []tls.Certificate{renewed}
			got, err := shake(t, config, client)
			if err != nil || len(got.server.PeerCertificates) != 1 {
				t.Fatalf("%d certificates, %v", len(got.server.PeerCertificates), err)
			}
			if stale := got.server.PeerCertificates[0].Equal(old.Leaf); stale != resumable || got.server.DidResume != resumable {
				t.Errorf("TLS %x, resumable %v: resumed %v, the old certificate %v", newest, resumable, got.server.DidResume, stale)
			}
		}
	}
}

// TestMutualTLS runs a whole server with a client that its certificate authenticates, and a
// workload with its SVID, at both endpoints.
func TestMutualTLS(t *testing.T) {
	s := newSite(t)
	ca, prod := certtest.NewCA(t, "clients"), certtest.NewCA(t, "prod")
	s.write("ca.pem", certtest.PEM(ca.Certificate))
	s.write("prod.json", prod.Bundle(t))
	server := s.writeCertificate("tls.crt", "tls.key")
	at := strings.Index(s.text, "listen:")
	s.text = s.text[:at] + strings.NewReplacer(
		"grpc: {address: 127.0.0.1:0}", "grpc: {address: 127.0.0.1:0, tls: {cert_file: DIR/tls.crt, key_file: DIR/tls.key}}",
		"http: {address: 127.0.0.1:0}", "http: {address: 127.0.0.1:0, tls: {cert_file: DIR/tls.crt, key_file: DIR/tls.key}}",
	).Replace(s.text[at:])
	s.text = strings.Replace(s.text, "    clients:\n", `    client_ca_file: DIR/ca.pem
    spiffe:
      - {trust_domain: prod.example, bundle_file: DIR/prod.json, principal: {type: agent, prefix: prod/}}
    clients:
      - {id: service:job, tls: {san_dns: job.example}}
`, 1)
	srv := s.startUnready(t)

	roots := x509.NewCertPool()
	roots.AddCert(server)
	for clientID, shown := range map[string]*tls.Certificate{
		"service:job":        new(ca.Issue(t, certtest.DNS("job.example"))),
		"agent:prod/planner": new(prod.SVID(t, "spiffe://prod.example/planner")),
		"service:stranger":   new(certtest.SelfSigned(t, certtest.DNS("job.example"))),
		"service:nobody":     nil,
	} {
		known := clientID == "service:job" || clientID == "agent:prod/planner"
		client := &tls.Config{RootCAs: roots, ServerName: "localhost"}
		if shown != nil {
			client.Certificates = []tls.Certificate{*shown}
		}
		conn, err := grpc.NewClient(srv.GRPCAddr(), grpc.WithTransportCredentials(credentials.NewTLS(client.Clone())))
		if err != nil {
			t.Fatal(err)
		}
		_, err = deputyv1.NewTokenExchangeServiceClient(conn).Introspect(t.Context(), &deputyv1.IntrospectRequest{Token: "x"})
		if want := codes.Unauthenticated; known != (err == nil) || !known && status.Code(err) != want {
			t.Errorf("%s over gRPC: %v", clientID, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		web := &http.Client{Transport: &http.Transport{TLSClientConfig: client.Clone(), DisableKeepAlives: true}}
		h2 := &http.Client{Transport: &http.Transport{TLSClientConfig: client.Clone(), DisableKeepAlives: true, ForceAttemptHTTP2: true}}
		for protocol, over := range map[int]*http.Client{1: web, 2: h2} {
			response, err := over.PostForm("https://"+srv.HTTPAddr()+"/oauth2/introspect", url.Values{"token": {"x"}, "client_id": {clientID}})
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
			if known != (response.StatusCode == http.StatusOK) || response.ProtoMajor != protocol {
				t.Errorf("%s over HTTP/%d: %s %s", clientID, protocol, response.Proto, response.Status)
			}
		}
		response, err := web.Get("https://" + srv.HTTPAddr() + "/.well-known/oauth-authorization-server")
		if err != nil {
			t.Fatal(err)
		}
		var metadata struct {
			Methods []string `json:"token_endpoint_auth_methods_supported"`
			Bound   bool     `json:"tls_client_certificate_bound_access_tokens"`
		}
		err = json.NewDecoder(response.Body).Decode(&metadata)
		_ = response.Body.Close()
		if err != nil || !metadata.Bound || !slices.Equal(metadata.Methods, []string{"private_key_jwt", "tls_client_auth"}) {
			t.Errorf("%+v, %v", metadata, err)
		}
	}
}

// TestEndlessChainsEndTheHandshake: a certificate chain that is too long never reaches the
// application.
func TestEndlessChainsEndTheHandshake(t *testing.T) {
	ca := certtest.NewCA(t, "servers")
	config := newTLSFiles(t, localhost(t, ca)).open(t)
	client := trusting(ca)
	chain := certtest.SelfSigned(t)
	for size := 0; size < 10<<20; size += len(ca.Certificate.Raw) {
		chain.Certificate = append(chain.Certificate, ca.Certificate.Raw)
	}
	client.Certificates = []tls.Certificate{chain}
	if got, err := shake(t, config, client); err == nil && len(got.server.PeerCertificates) > 0 {
		t.Errorf("%d certificates were read", len(got.server.PeerCertificates))
	}
}

func TestTLSSettings(t *testing.T) {
	for want, text := range map[string]string{
		"min_version: must be 1.3 or 1.2":                 "{address: 127.0.0.1:0, tls: {cert_file: a, key_file: b, min_version: '1.1'}}",
		"client_certificates: must be request or ignore":  "{address: 127.0.0.1:0, tls: {cert_file: a, key_file: b, client_certificates: require}}",
		"tls.cert_file: is missing":                       "{address: 127.0.0.1:0, tls: {key_file: b}}",
		"tls: the certificate cannot be used: open nowhe": "{address: 127.0.0.1:0, tls: {cert_file: nowhere, key_file: b}}",
	} {
		if _, err := newScene(t).load(good + "listen:\n  grpc: " + text + "\n"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	ops := "{address: 127.0.0.1:0, tls: {cert_file: a, key_file: b, client_certificates: request}}"
	if _, err := newScene(t).load(good + "listen:\n  ops: " + ops + "\n"); err == nil || !strings.Contains(err.Error(), "client_certificates: has no meaning here") {
		t.Errorf("ops: %v", err)
	}
}
