package server

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// TLS names a certificate and configures client certificates. Handshakes read the files again, at
// most every ten seconds, and use a changed certificate, so that a renewal needs no restart.
type TLS struct {
	CertFile string `yaml:"cert_file"` // PEM, with intermediates. Required.
	KeyFile  string `yaml:"key_file"`  // PEM. Required. Danger: readable by Deputy alone.
	// MinVersion is 1.3 or 1.2. Default 1.3. Danger: 1.2 sends client certificates in plaintext, so
	// that the network path reveals the callers, and its handshakes are weaker.
	MinVersion string `yaml:"min_version"`
	// ClientCertificates is request or ignore. Default request: a client may present a certificate,
	// which authenticates it or binds its tokens where a tenant is configured so (RFC 8705), and
	// need not. Use ignore where browsers would ask people for a certificate. Not for listen.ops,
	// which authenticates no caller.
	ClientCertificates string `yaml:"client_certificates"`
}

func (t *TLS) check(p *problems, path string, authenticates bool) {
	required(p, path+".cert_file", t.CertFile, "name the PEM file of the certificate")
	required(p, path+".key_file", t.KeyFile, "name the PEM file of its key")
	oneOf(p, path+".min_version", &t.MinVersion, "1.3", "1.2")
	if authenticates {
		oneOf(p, path+".client_certificates", &t.ClientCertificates, "request", "ignore")
	} else if t.ClientCertificates != "" {
		p.add(path+".client_certificates", "has no meaning here, where no caller is authenticated: remove it")
	}
}

// requests reports whether clients can present a certificate here.
func (t *TLS) requests() bool { return t != nil && t.ClientCertificates == "request" }

// open reads the certificate. The handshake verifies only that a client has the key of its
// certificate. Each tenant decides which principal the certificate authenticates, if any.
//
// No session is resumed. A resumed session would prove possession of a key from memory, for days,
// and present the certificate of its first handshake. A client that renewed its certificate would
// be refused for the old one.
func (t *TLS) open(p *problems, path string, o Options) *tls.Config {
	if t == nil {
		return nil
	}
	r := &renewable{certFile: t.CertFile, keyFile: t.KeyFile, now: o.Now, logger: o.Logger}
	if r.now == nil {
		r.now = time.Now
	}
	if r.logger == nil {
		r.logger = slog.New(slog.DiscardHandler)
	}
	if err := r.read(); err != nil {
		p.add(path, "the certificate cannot be used: %v", err)
		return nil
	}
	r.looked = r.now()
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, CipherSuites: authenticatedSuites, GetCertificate: r.certificate, SessionTicketsDisabled: true,
	}
	if t.MinVersion == "1.2" {
		config.MinVersion = tls.VersionTLS12
	}
	if t.requests() {
		config.ClientAuth = tls.RequestClientCert
	}
	return config
}

// authenticatedSuites are the suites of TLS 1.2 with forward secrecy and authenticated encryption
// (RFC 9325 section 4.2). HTTP/2 forbids the others (RFC 9113 section 9.2.2). TLS 1.3 has only such
// suites.
var authenticatedSuites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// renewable is a certificate whose files may be replaced while the server runs.
type renewable struct {
	certFile, keyFile string
	now               func() time.Time
	logger            *slog.Logger

	mu      sync.Mutex // held while reading too: concurrent handshakes wait for two small files
	current *tls.Certificate
	content [sha256.Size]byte // of the files that current was made of
	looked  time.Time         // when the files were last read
	failing bool
}

// lookEvery bounds how often handshakes read the files.
const lookEvery = 10 * time.Second

// certificate is tls.Config.GetCertificate. The previous certificate continues to serve while the
// files cannot be used together, because they are missing, broken or half replaced.
func (r *renewable) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.now(); now.Sub(r.looked) >= lookEvery {
		r.looked = now
		err := r.read()
		switch {
		case err != nil && !r.failing:
			r.logger.Warn("a renewed certificate cannot be used; the one before serves", "file", r.certFile, "until", r.current.Leaf.NotAfter, "error", err)
		case err == nil && r.failing:
			r.logger.Info("the certificate can be used again", "file", r.certFile, "until", r.current.Leaf.NotAfter)
		}
		r.failing = err != nil
	}
	return r.current, nil
}

// read takes the files' certificate where they differ from those before. Files that do not match
// each other change nothing.
func (r *renewable) read() error {
	cert, err := readPEM(r.certFile)
	if err != nil {
		return err
	}
	key, err := readPEM(r.keyFile)
	if err != nil {
		return err
	}
	content := sha256.Sum256(slices.Concat(cert, []byte{0}, key))
	if r.current != nil && content == r.content {
		return nil
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return err
	}
	if r.current != nil {
		r.logger.Info("the certificate was renewed", "file", r.certFile, "until", pair.Leaf.NotAfter)
	}
	r.current, r.content = &pair, content
	return nil
}

func readPEM(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const most = 1 << 20
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) > most:
		return nil, errors.New("is longer than 1 MiB")
	case bytes.IndexByte(text, 0) >= 0:
		return nil, errors.New("is not PEM")
	}
	return text, nil
}
