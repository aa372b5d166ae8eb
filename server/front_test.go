package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"deputy.example/deputy/server/internal/testservers"
)

// secured starts an instance whose three listeners accept TLS 1.2 and later.
func (s *site) secured(t *testing.T) (*instance, *tls.Config) {
	t.Helper()
	certificate := s.writeCertificate("tls.crt", "tls.key")
	at := strings.Index(s.text, "listen:")
	s.text = s.text[:at] + strings.ReplaceAll(s.text[at:], "address: 127.0.0.1:0}",
		"address: 127.0.0.1:0, tls: {cert_file: DIR/tls.crt, key_file: DIR/tls.key, min_version: '1.2'}}")
	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	return s.startUnready(t), &tls.Config{RootCAs: roots, ServerName: "localhost"}
}

// TestSuitesOfTheRealListeners: with TLS 1.2 every listener accepts suites with forward secrecy and
// authenticated encryption only.
func TestSuitesOfTheRealListeners(t *testing.T) {
	srv, client := newSite(t).secured(t)
	for _, address := range []string{srv.GRPCAddr(), srv.HTTPAddr(), srv.OpsAddr()} {
		for _, suite := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
			if slices.Equal(suite.SupportedVersions, []uint16{tls.VersionTLS13}) || strings.Contains(suite.Name, "_RSA_") && strings.HasPrefix(suite.Name, "TLS_ECDHE") {
				continue // not of 1.2, or not for the key of this certificate
			}
			offer := client.Clone()
			offer.MaxVersion, offer.CipherSuites, offer.NextProtos = tls.VersionTLS12, []uint16{suite.ID}, []string{"h2"}
			conn, err := tls.Dial("tcp", address, offer)
			if err == nil {
				_ = conn.Close()
			}
			modern := strings.HasPrefix(suite.Name, "TLS_ECDHE_") && (strings.Contains(suite.Name, "_GCM_") || strings.Contains(suite.Name, "POLY1305"))
			if (err == nil) != modern {
				t.Errorf("%s: %s: %v", address, suite.Name, err)
			}
		}
	}
}

// settings returns the SETTINGS of a server of HTTP/2.
func settings(t *testing.T, conn net.Conn) map[http2.SettingID]uint32 {
	t.Helper()
	f := http2.NewFramer(conn, conn)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	said := make(map[http2.SettingID]uint32)
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if s, is := frame.(*http2.SettingsFrame); is && !s.IsAck() {
			_ = s.ForeachSetting(func(one http2.Setting) error { said[one.ID] = one.Val; return nil })
			return said
		}
	}
}

// TestHTTP2OfTheRealListeners: all listeners negotiate HTTP/2 over TLS and announce their limits.
func TestHTTP2OfTheRealListeners(t *testing.T) {
	srv, client := newSite(t).secured(t)
	for address, limits := range map[string]map[http2.SettingID]uint32{
		srv.GRPCAddr(): {http2.SettingMaxConcurrentStreams: 2500, http2.SettingMaxHeaderListSize: 16 << 10},
		srv.HTTPAddr(): {http2.SettingMaxConcurrentStreams: 100, http2.SettingMaxFrameSize: 16 << 10, http2.SettingHeaderTableSize: 4 << 10},
		srv.OpsAddr():  {http2.SettingMaxConcurrentStreams: 100},
	} {
		offer := client.Clone()
		offer.NextProtos = []string{"h2"}
		conn, err := tls.Dial("tcp", address, offer)
		if err != nil {
			t.Fatal(err)
		}
		if conn.ConnectionState().NegotiatedProtocol != "h2" {
			t.Errorf("%s negotiates %q", address, conn.ConnectionState().NegotiatedProtocol)
			_ = conn.Close()
			continue
		}
		said := settings(t, conn)
		for id, want := range limits {
			if said[id] != want {
				t.Errorf("%s: %v is %d, not %d", address, id, said[id], want)
			}
		}
		if most := said[http2.SettingMaxHeaderListSize]; most == 0 || most > 32<<10 {
			t.Errorf("%s: headers may have %d bytes", address, most)
		}
		_ = conn.Close()
	}
	for _, forced := range []bool{true, false} {
		web := &http.Client{Transport: &http.Transport{TLSClientConfig: client.Clone(), ForceAttemptHTTP2: forced, DisableKeepAlives: true}}
		for _, url := range []string{"https://" + srv.HTTPAddr() + "/oauth2/jwks", "https://" + srv.OpsAddr() + "/healthz"} {
			response, err := web.Get(url)
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
			if response.StatusCode != http.StatusOK || (response.ProtoMajor == 2) != forced {
				t.Errorf("%s: %s %s", url, response.Proto, response.Status)
			}
			strict := response.Header.Get("Strict-Transport-Security")
			if ops := strings.HasSuffix(url, "healthz"); (strict == "") != ops {
				t.Errorf("%s: HSTS %q", url, strict)
			}
		}
		web.CloseIdleConnections()
	}
}

// TestPlaintextOfTheRealListener: over plaintext the HTTP listener has no HTTP/2 and sends no HSTS.
func TestPlaintextOfTheRealListener(t *testing.T) {
	srv := newSite(t).startUnready(t)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + srv.HTTPAddr() + "/oauth2/jwks")
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.Header.Get("Strict-Transport-Security") != "" {
		t.Error("HSTS over plaintext")
	}
	conn, err := new(net.Dialer).DialContext(context.Background(), "tcp", srv.HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	f := testservers.OpenFrames(t, conn, true)
	<-f.Closed()
	if f.Now(func(came map[http2.FrameType]int, _ map[uint32]http2.ErrCode, _ map[uint32]bool) bool {
		return came[http2.FrameSettings] > 0
	}) {
		t.Error("HTTP/2 without TLS")
	}
}

// TestUnreadableRequests: a request that net/http cannot read reaches no handler, and its
// connection is closed. The answer is JSON with no-store, with and without TLS.
func TestUnreadableRequests(t *testing.T) {
	plain := newSite(t).startUnready(t)
	secured, client := newSite(t).secured(t)
	for name, c := range map[string]struct{ request, status string }{
		"no request":             {"nonsense\r\n\r\n", "400"},
		"no version":             {"GET /oauth2/jwks\r\n\r\n", "400"},
		"another version":        {"GET /oauth2/jwks HTTP/3.0\r\nHost: d\r\n\r\n", "505"},
		"garbage of HTTP/1.0":    {"GET /oauth2/jwks HTTP/1.0\r\n<script>\r\n\r\n", "400"},
		"no host":                {"GET /oauth2/jwks HTTP/1.1\r\n\r\n", "400"},
		"two hosts":              {"GET /oauth2/jwks HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"},
		"a bad host":             {"GET /oauth2/jwks HTTP/1.1\r\nHost: <script>\r\n\r\n", "400"},
		"a bad name":             {"GET /oauth2/jwks HTTP/1.1\r\nHost: d\r\nA B: c\r\n\r\n", "400"},
		"a bad value":            {"GET /oauth2/jwks HTTP/1.1\r\nHost: d\r\nA: \x01<script>\r\n\r\n", "400"},
		"a bad length":           {"POST /oauth2/token HTTP/1.1\r\nHost: d\r\nContent-Length: -1\r\n\r\n", "400"},
		"an unknown coding":      {"POST /oauth2/token HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: <script>\r\n\r\n", "501"},
		"an unknown expectation": {"GET /oauth2/jwks HTTP/1.1\r\nHost: d\r\nExpect: <script>\r\n\r\n", "417"},
		"headers beyond measure": {"GET /oauth2/jwks HTTP/1.1\r\nHost: d\r\nA: " + strings.Repeat("a", 32<<10) + "\r\n\r\n", "431"},
	} {
		answers := func(how string, conn net.Conn, err error, strict bool) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			answer := said(t, conn, c.request)
			if !strings.HasPrefix(answer, "HTTP/1.1 "+c.status+" ") || !strings.Contains(answer, "\r\nCache-Control: no-store\r\n") ||
				!strings.Contains(answer, "\r\nContent-Type: application/json\r\n") || !strings.Contains(answer, `"error":"invalid_request"`) ||
				strings.Contains(answer, "<script") || strings.Contains(answer, "\r\nStrict-Transport-Security: ") != strict {
				t.Errorf("%s, %s: %s", name, how, answer)
			}
		}
		for _, address := range []string{plain.HTTPAddr(), plain.OpsAddr()} {
			conn, err := net.Dial("tcp", address)
			answers("plaintext", conn, err, false)
		}
		for _, address := range []string{secured.HTTPAddr(), secured.OpsAddr()} {
			for _, protocols := range [][]string{{"http/1.1"}, nil} {
				client.NextProtos = protocols
				conn, err := tls.Dial("tcp", address, client)
				answers("TLS", conn, err, address == secured.HTTPAddr())
			}
		}
	}
	conn, err := net.Dial("tcp", secured.HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	if answer := said(t, conn, "GET /oauth2/jwks HTTP/1.1\r\nHost: d\r\n\r\n"); !strings.HasPrefix(answer, "HTTP/1.1 400 ") || !strings.Contains(answer, "\r\nCache-Control: no-store\r\n") {
		t.Errorf("plaintext to a listener with TLS: %s", answer)
	}
	for name, request := range map[string]string{ // readable requests, which a handler receives
		"OPTIONS *":    "OPTIONS * HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n",
		"a bad chunk":  "POST /oauth2/token HTTP/1.1\r\nHost: d\r\nContent-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"no such path": "GET /nothing HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", plain.HTTPAddr())
		if err != nil {
			t.Fatal(err)
		}
		if answer := said(t, conn, request); !strings.Contains(answer, `"reason":`) || !strings.Contains(answer, "\r\nCache-Control: no-store\r\n") {
			t.Errorf("%s: %s", name, answer)
		}
	}
}

// said returns what a server sends for a request before it closes the connection.
func said(t *testing.T, conn net.Conn, request string) string {
	t.Helper()
	defer conn.Close()
	go func() { _, _ = io.WriteString(conn, request) }() // the server need not read all of it
	answer, err := io.ReadAll(conn)
	if err != nil && len(answer) == 0 {
		t.Fatal(err)
	}
	return string(answer)
}

// TestRefusalsOfTheFrontHaveHSTS: over TLS, answers of the server before any handler have HSTS too.
func TestRefusalsOfTheFrontHaveHSTS(t *testing.T) {
	i := newSite(t).start(t)
	// The request has no connection, so it gets no place.
	r := httptest.NewRequest(http.MethodGet, "https://d/oauth2/jwks", nil)
	w := httptest.NewRecorder()
	i.http.Handler.ServeHTTP(w, r)
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Strict-Transport-Security") == "" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}
