package token

import (
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/token/tokentest"
)

func TestReach(t *testing.T) {
	kinds := map[string]struct {
		addresses []string
		reaches   [4]bool // nothing set, allow_insecure_loopback, private_address, both
	}{
		"public": {[]string{
			"8.8.8.8", "11.0.0.1", "9.255.255.255", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "100.63.255.255", "100.128.0.0",
			"169.253.255.255", "223.255.255.255", "2606:4700::1", "2a00:1450::8", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
		}, [4]bool{true, true, true, true}},
		"loopback": {[]string{
			"127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1",
		}, [4]bool{false, true, true, true}},
		"private": {[]string{
			"10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.255", "fc00::1", "fd12:3456::1",
			"::ffff:10.0.0.1", "::ffff:192.168.0.1", "64:ff9b::10.0.0.1", "64:ff9b::a9f:1",
		}, [4]bool{false, false, true, true}},
		"nobody's": {[]string{
			"169.254.169.254", "169.254.170.2", "::ffff:169.254.169.254", "64:ff9b::169.254.169.254", "fe80::1", "fe80::1%eth0", "fd00:ec2::254",
			"fd20:ce::254", "100.100.100.200", "168.63.129.16", "::ffff:100.100.100.200", "0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0", "224.0.0.1", "239.1.1.1", "ff02::1",
			"255.255.255.255", "240.0.0.1", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.7", "203.0.113.9", "192.88.99.1",
			"2002:a00:1::1", "2002:a9fe:a9fe::1", "2001::1", "2001:db8::1", "3fff::1", "::10.0.0.1", "::8.8.8.8", "64:ff9b:1::1", "100::1", "fec0::1", "4000::1",
			"::ffff:0:8.8.8.8",
		}, [4]bool{}},
	}
	for kind, of := range kinds {
		for _, text := range of.addresses {
			for n, want := range of.reaches {
				r := reach{loopback: n&1 != 0, private: n&2 != 0}
				address, err := netip.ParseAddr(text)
				if err != nil {
					t.Fatal(err)
				}
				if err := r.permits(address); (err == nil) != want {
					t.Errorf("%s, %s, %+v: %v", kind, text, r, err)
				}
				if err := r.control("tcp", netip.AddrPortFrom(address, 443).String(), nil); (err == nil) != want {
					t.Errorf("%s, %s, %+v, connected to: %v", kind, text, r, err)
				}
			}
		}
	}
	for _, address := range []string{"", "443", "localhost:443", "8.8.8.8", "/run/socket"} {
		if (reach{true, true}).control("tcp", address, nil) == nil {
			t.Errorf("%q is connected to", address)
		}
	}
}

// knocked counts the connections that reach a listener.
type knocked struct {
	net.Listener
	times atomic.Int64
}

func (k *knocked) Accept() (net.Conn, error) {
	conn, err := k.Listener.Accept()
	if err == nil {
		k.times.Add(1)
	}
	return conn, err
}

// A name may resolve to any address, so the rule is checked when the connection is made, with the
// transport of the server. The control is the same address where the source permits it.
func TestConnectionsToPrivateAddresses(t *testing.T) {
	key := newTestKey(t, "ES256", "k")
	authority := tokentest.NewAuthority(t)
	knocks := &knocked{}
	server := authority.Server(t, serve("application/json", jwks(t, key)), func(l net.Listener) net.Listener { knocks.Listener = l; return knocks })
	port := server.Listener.Addr().(*net.TCPAddr).Port
	for _, row := range []struct {
		name     string
		keys     KeySource
		loopback bool
		reached  bool
	}{
		{"nothing set", KeySource{CAFile: authority.File}, false, false},
		{"allow_insecure_loopback", KeySource{CAFile: authority.File}, true, true},
		{"private_address", KeySource{CAFile: authority.File, PrivateAddress: true}, false, true},
	} {
		before := knocks.times.Load()
		w := newWorld(t, func(c *TrustConfig) {
			c.AllowInsecureLoopback = row.loopback
			c.TrustedIssuers[0].Keys = row.keys
			c.TrustedIssuers[0].Keys.JWKSURL = (&url.URL{Scheme: "https", Host: net.JoinHostPort("localhost", strconv.Itoa(port)), Path: "/jwks"}).String()
		})
		err := w.rootBy(t, key)
		if row.reached {
			wantReason(t, err, "", "")
		} else {
			wantReason(t, err, delegation.DependencyDown, "")
			wantCause(t, err, "set private_address")
		}
		if got := knocks.times.Load() > before; got != row.reached {
			t.Errorf("%s: a connection was made: %t", row.name, got)
		}
	}

	// Without its CA the server is not trusted, whatever its address is.
	w := newWorld(t, func(c *TrustConfig) {
		c.TrustedIssuers[0].Keys = KeySource{JWKSURL: server.URL + "/jwks", PrivateAddress: true}
	})
	err := w.rootBy(t, key)
	wantReason(t, err, delegation.DependencyDown, "")
	wantCause(t, err, "certificate")
	other := tokentest.NewAuthority(t)
	w = newWorld(t, func(c *TrustConfig) {
		c.TrustedIssuers[0].Keys = KeySource{JWKSURL: server.URL + "/jwks", PrivateAddress: true, CAFile: other.File}
	})
	err = w.rootBy(t, key)
	wantReason(t, err, delegation.DependencyDown, "")
	wantCause(t, err, "certificate")
}

// A proxy is usually inside the network. It is reached at any address. An address in a request to
// it is checked before.
func TestProxyIsReachedWhereItIs(t *testing.T) {
	authority := tokentest.NewAuthority(t)
	server := authority.Server(t, serve("application/json", `{"keys":[]}`))
	var asked atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		there, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil || r.Method != http.MethodConnect {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		// The answer is sent only after the connection is taken over: the server would read a byte
		// of what follows.
		here, read, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { defer here.Close(); _, _ = io.Copy(here, there) }()
		defer there.Close()
		_, _ = io.Copy(there, read)
	}))
	t.Cleanup(proxy.Close)
	address, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	f := newFetcher(nil, reach{}, roots(t, authority.File))
	f.client.Transport.(routes).proxied.Proxy = func(r *http.Request) (*url.URL, error) {
		if r.URL.Path == "/direct" {
			return nil, nil
		}
		return address, nil
	}
	named := strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
	if _, err := f.get(t.Context(), named+"/jwks"); err != nil || asked.Load() != 1 {
		t.Errorf("through the proxy: %v, asked %d times", err, asked.Load())
	}
	for _, refused := range []string{server.URL + "/jwks", named + "/direct", "https://169.254.169.254/jwks"} {
		if _, err := f.get(t.Context(), refused); err == nil || asked.Load() != 1 {
			t.Errorf("%s: %v, and the proxy was asked %d times", refused, err, asked.Load())
		}
	}
}

// The addresses in an issuer's metadata are checked by the same rule as those in the configuration.
func TestMetadataLeadsToNoPrivateAddress(t *testing.T) {
	key := newTestKey(t, "ES256", "k")
	authority := tokentest.NewAuthority(t)
	var jwksURI atomic.Pointer[string]
	var base atomic.Pointer[string]
	server := authority.Server(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/.well-known/") {
			serve("application/json", toJSON(t, object{"issuer": *base.Load(), "jwks_uri": *jwksURI.Load()}))(w, r)
			return
		}
		serve("application/json", jwks(t, key))(w, r)
	})
	base.Store(&server.URL)
	for address, cause := range map[string]string{
		server.URL + "/jwks": "",
		strings.Replace(server.URL, "127.0.0.1", "localhost", 1) + "/jwks": "", // another host
		"http://127.0.0.1/jwks":                     "must be https",
		"http://idp.example/jwks":                   "must be https",
		"https://169.254.169.254/latest/meta-data/": "never allowed",
		"https://[::ffff:169.254.169.254]/jwks":     "never allowed",
		"https://[fe80::1]/jwks":                    "never allowed",
		"https://10.0.0.1/jwks":                     "set private_address",
		"https://[fd00::1]/jwks":                    "set private_address",
		"https://u:p@idp.example/jwks":              "user information",
		"https:///jwks":                             "absolute URL",
		"//idp.example/jwks":                        "must be https",
		"gopher://idp.example/jwks":                 "must be https",
		"data:application/json,{}":                  "absolute URL",
		"":                                          "absolute URL",
	} {
		jwksURI.Store(&address)
		f := newFetcher(nil, reach{loopback: true}, roots(t, authority.File))
		// Loopback permits plain http to this machine, so that row has a rule of its own.
		if address == "http://127.0.0.1/jwks" {
			f.reach.loopback = false
			f.reach.private = true
		}
		_, err := f.discover(t.Context(), server.URL)
		if (err == nil) != (cause == "") || err != nil && !strings.Contains(err.Error(), cause) {
			t.Errorf("%s: %v, want %q", address, err, cause)
		}
	}
}

func roots(t *testing.T, file string) *x509.CertPool {
	t.Helper()
	pool, err := readRoots(file)
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

func TestKeySourceRules(t *testing.T) {
	authority := tokentest.NewAuthority(t)
	junk := filepath.Join(t.TempDir(), "junk.pem")
	if err := os.WriteFile(junk, []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const public = "https://idp.example/jwks"
	for name, row := range map[string]struct {
		keys  KeySource
		field string
		words string
	}{
		"fetched with a CA":               {KeySource{JWKSURL: public, CAFile: authority.File}, "", ""},
		"fetched from inside":             {KeySource{JWKSURL: "https://10.0.0.1/jwks", PrivateAddress: true}, "", ""},
		"from inside without a word":      {KeySource{JWKSURL: "https://10.0.0.1/jwks"}, "keys.jwks_url", "set private_address"},
		"from this machine without one":   {KeySource{JWKSURL: "https://127.0.0.1/jwks"}, "keys.jwks_url", "set private_address"},
		"from where clouds keep secrets":  {KeySource{JWKSURL: "https://169.254.169.254/jwks", PrivateAddress: true}, "keys.jwks_url", "never allowed"},
		"a CA that is not there":          {KeySource{JWKSURL: public, CAFile: "/nonexistent/ca.pem"}, "keys.ca_file", "no such file"},
		"a CA that is none":               {KeySource{JWKSURL: public, CAFile: junk}, "keys.ca_file", "no certificate"},
		"a CA for a file":                 {KeySource{File: "/nonexistent/jwks.json", CAFile: authority.File}, "keys.ca_file", "has no meaning"},
		"a private address of a file":     {KeySource{JWKS: `{"keys":[]}`, PrivateAddress: true}, "keys.private_address", "has no meaning"},
		"a CA and nothing that needs one": {KeySource{CAFile: authority.File}, "keys", "exactly one"},
	} {
		config := newWorld(t).config
		config.TrustedIssuers = slices.Clone(config.TrustedIssuers)
		config.TrustedIssuers[0].Keys = row.keys
		_, err := NewTrust(config)
		if row.field == "" && err != nil || row.field != "" && (err == nil || delegation.AsError(err).Field != "trusted_issuers[0]."+row.field || !strings.Contains(err.Error(), row.words)) {
			t.Errorf("%s: %v, want field %q and words %q", name, err, row.field, row.words)
		}
	}
	config := newWorld(t).config
	config.TrustedIssuers = slices.Clone(config.TrustedIssuers)
	config.TrustedIssuers[0].Issuer, config.TrustedIssuers[0].Keys = "https://192.168.0.1", KeySource{Discovery: true}
	if _, err := NewTrust(config); err == nil || delegation.AsError(err).Field != "trusted_issuers[0].keys.discovery" {
		t.Errorf("an issuer inside, without a word: %v", err)
	}
}
