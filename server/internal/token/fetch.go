package token

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json"
)

// maxDocumentBytes bounds every document that is read: file or response.
const maxDocumentBytes = 1 << 20

// fetcher fetches small JSON documents from addresses in the configuration or in a trusted issuer's
// own metadata. It follows no redirect: an operator configures the new address instead.
type fetcher struct {
	client *http.Client
	reach  reach
}

// newFetcher uses transport, or a transport of its own that connects only within the reach and
// trusts the certificates of roots; nil means those of the system.
func newFetcher(transport http.RoundTripper, reach reach, roots *x509.CertPool) *fetcher {
	if transport == nil {
		direct, proxied := newTransport(roots), newTransport(roots)
		direct.DialContext = (&net.Dialer{Control: reach.control}).DialContext
		proxied.Proxy = http.ProxyFromEnvironment
		transport = routes{direct, proxied}
	}
	return &fetcher{
		reach: reach,
		client: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// newTransport keeps no connection open between two loads, and decompresses nothing.
func newTransport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		DisableKeepAlives:      true,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// readRoots reads the certificates of a ca_file.
func readRoots(path string) (*x509.CertPool, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, errors.New("holds no certificate in PEM")
	}
	return roots, nil
}

// errStatus is a response that arrived and is not 200.
type errStatus int

func (e errStatus) Error() string { return fmt.Sprintf("answered with status %d, want 200", int(e)) }

func (f *fetcher) get(ctx context.Context, address string) ([]byte, error) {
	if err := f.reach.checkAddress(address); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json, application/jwk-set+json")
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errStatus(resp.StatusCode)
	}
	if !isJSON(resp.Header.Get("Content-Type")) {
		return nil, errors.New("answered with something other than JSON")
	}
	return readBounded(resp.Body)
}

func readBounded(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxDocumentBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxDocumentBytes {
		return nil, fmt.Errorf("the document is longer than %d bytes", maxDocumentBytes)
	}
	return data, nil
}

func isJSON(contentType string) bool {
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && (media == "application/json" || strings.HasPrefix(media, "application/") && strings.HasSuffix(media, "+json"))
}

// checkAddress is the function checkAddress with the rule of the reach.
func (r reach) checkAddress(address string) error {
	if err := checkAddress(address, r.loopback); err != nil {
		return err
	}
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	return r.permitsHost(u.Hostname())
}

// checkAddress requires https. Plain http is for a loopback address, and only where it is allowed.
func checkAddress(address string, insecureLoopback bool) error {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Hostname() == "" || u.Opaque != "":
		return errors.New("must be an absolute URL")
	case u.User != nil || u.Fragment != "":
		return errors.New("must have neither user information nor a fragment")
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && insecureLoopback && isLoopback(u.Hostname()):
		return nil
	case u.Scheme == "http" && isLoopback(u.Hostname()):
		return errors.New("must be https; plain http to a loopback address needs allow_insecure_loopback")
	}
	return errors.New("must be https")
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// discover finds and fetches an issuer's keys: OpenID Connect Discovery 1.0 §4, or RFC 8414 §3
// where the issuer does not serve the former.
func (f *fetcher) discover(ctx context.Context, issuer string) ([]byte, error) {
	openid, oauth, err := metadataAddresses(issuer)
	if err != nil {
		return nil, err
	}
	document, err := f.get(ctx, openid)
	if _, answered := errors.AsType[errStatus](err); answered {
		document, err = f.get(ctx, oauth)
	}
	if err != nil {
		return nil, fmt.Errorf("issuer metadata: %w", err)
	}
	var metadata struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(document, &metadata); err != nil {
		return nil, errors.New("issuer metadata: not a strict JSON object")
	}
	if metadata.Issuer != issuer {
		return nil, errors.New("issuer metadata: issuer is not exactly the configured one")
	}
	keys, err := f.get(ctx, metadata.JWKSURI)
	if err != nil {
		return nil, fmt.Errorf("jwks_uri: %w", err)
	}
	return keys, nil
}

func metadataAddresses(issuer string) (openid, oauth string, err error) {
	u, err := url.Parse(issuer)
	if err != nil {
		return "", "", errors.New("issuer is not a URL")
	}
	path := strings.TrimSuffix(u.EscapedPath(), "/")
	origin := u.Scheme + "://" + u.Host
	return origin + path + "/.well-known/openid-configuration", origin + "/.well-known/oauth-authorization-server" + path, nil
}
