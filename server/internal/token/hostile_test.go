package token

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/token/tokentest"
)

// hostile is an issuer at the other end of a pipe: the package's own HTTP transport connects to it,
// and the time is that of a synctest bubble. answer may write anything after each request.
func hostile(t *testing.T, answer func(io.Writer) error) *world {
	t.Helper()
	transport := newTransport(nil)
	transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			if _, err := http.ReadRequest(bufio.NewReader(there)); err == nil {
				_ = answer(there) // it ends when the reader is gone
			}
		}()
		return here, nil
	}
	w := newWorld(t, func(c *TrustConfig) {
		c.Transport, c.AllowInsecureLoopback = transport, true
		c.TrustedIssuers[0].Keys = KeySource{JWKSURL: "http://127.0.0.1/jwks"}
	})
	w.clock.live = true
	return w
}

const okHead = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

// drip writes the text byte by byte, in the time of the test's bubble.
func drip(w io.Writer, text string, every time.Duration) error {
	for n := range len(text) {
		time.Sleep(every)
		if _, err := io.WriteString(w, text[n:n+1]); err != nil {
			return err
		}
	}
	return nil
}

// endless repeats the text until the reader is gone.
func endless(w io.Writer, text string) error {
	for {
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
}

// Whatever an issuer answers costs two seconds and about a megabyte at most, and admits no token.
func TestHostileIssuers(t *testing.T) {
	var zeros bytes.Buffer
	packer := gzip.NewWriter(&zeros)
	if _, err := io.CopyN(packer, neverEnding(0), 16<<20); err != nil || packer.Close() != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name   string
		answer func(w io.Writer, set string) error
		cause  string
		takes  time.Duration
	}{
		{"keys", func(w io.Writer, set string) error {
			_, err := fmt.Fprintf(w, "%sContent-Length: %d\r\n\r\n%s", okHead, len(set), set)
			return err
		}, "", 0},
		{"nothing at all", func(io.Writer, string) error { time.Sleep(time.Minute); return nil }, "deadline", 2 * time.Second},
		{"the head byte by byte", func(w io.Writer, set string) error { return drip(w, okHead+"\r\n"+set, time.Second) }, "deadline", 2 * time.Second},
		{"the keys byte by byte", func(w io.Writer, set string) error {
			if _, err := io.WriteString(w, okHead+"\r\n"); err != nil {
				return err
			}
			return drip(w, set, 100*time.Millisecond)
		}, "deadline", 2 * time.Second},
		{"a head that never ends", func(w io.Writer, _ string) error {
			if _, err := io.WriteString(w, okHead); err != nil {
				return err
			}
			return endless(w, "X-More: "+strings.Repeat("x", 1000)+"\r\n")
		}, "exceeded", 0},
		{"keys behind a head of 100 KB", func(w io.Writer, set string) error {
			_, err := fmt.Fprintf(w, "%sX-More: %s\r\n\r\n%s", okHead, strings.Repeat("x", 100_000), set)
			return err
		}, "exceeded", 0},
		{"one header that never ends", func(w io.Writer, _ string) error {
			if _, err := io.WriteString(w, okHead+"X-More: "); err != nil {
				return err
			}
			return endless(w, strings.Repeat("x", 1000))
		}, "exceeded", 0},
		{"a status line that never ends", func(w io.Writer, _ string) error { return endless(w, "HTTP/1.1 200 "+strings.Repeat("x", 1000)) }, "exceeded", 0},
		{"early hints without end", func(w io.Writer, _ string) error {
			return endless(w, "HTTP/1.1 103 Early Hints\r\nLink: "+strings.Repeat("x", 1000)+"\r\n\r\n")
		}, "exceeded", 0},
		{"5 MB", func(w io.Writer, set string) error {
			_, err := fmt.Fprintf(w, "%s\r\n%s%s", okHead, set, strings.Repeat(" ", 5<<20))
			return err
		}, "longer than", 0},
		{"5 MB, honestly announced", func(w io.Writer, set string) error {
			_, err := fmt.Fprintf(w, "%sContent-Length: %d\r\n\r\n%s%s", okHead, len(set)+5<<20, set, strings.Repeat(" ", 5<<20))
			return err
		}, "longer than", 0},
		{"chunks without end", func(w io.Writer, _ string) error {
			if _, err := io.WriteString(w, okHead+"Transfer-Encoding: chunked\r\n\r\n"); err != nil {
				return err
			}
			return endless(w, "3e8\r\n"+strings.Repeat(" ", 1000)+"\r\n")
		}, "longer than", 0},
		{"a bomb", func(w io.Writer, _ string) error {
			_, err := fmt.Fprintf(w, "%sContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", okHead, zeros.Len(), zeros.Bytes())
			return err
		}, "strict JSON", 0},
		{"keys, packed without being asked", func(w io.Writer, set string) error {
			var packed bytes.Buffer
			packer := gzip.NewWriter(&packed)
			if _, err := io.WriteString(packer, set); err != nil || packer.Close() != nil {
				return err
			}
			_, err := fmt.Fprintf(w, "%sContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", okHead, packed.Len(), packed.Bytes())
			return err
		}, "strict JSON", 0},
		{"HTML", func(w io.Writer, set string) error {
			_, err := fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s", len(set), set)
			return err
		}, "other than JSON", 0},
		{"HTML that says it is JSON", func(w io.Writer, _ string) error {
			_, err := fmt.Fprintf(w, "%sContent-Length: 6\r\n\r\n<html>", okHead)
			return err
		}, "strict JSON", 0},
		{"JSON as deep as it fits", func(w io.Writer, _ string) error {
			deep := `{"keys":` + strings.Repeat("[", maxDocumentBytes-10)
			_, err := fmt.Fprintf(w, "%sContent-Length: %d\r\n\r\n%s", okHead, len(deep), deep)
			return err
		}, "strict JSON", 0},
		{"10,000 keys", func(w io.Writer, _ string) error {
			many := `{"keys":[{}` + strings.Repeat(",{}", 9_999) + `]}`
			_, err := fmt.Fprintf(w, "%sContent-Length: %d\r\n\r\n%s", okHead, len(many), many)
			return err
		}, "more than 100 keys", 0},
		{"no HTTP", func(w io.Writer, _ string) error {
			_, err := io.WriteString(w, "220 smtp.example ESMTP\r\n")
			return err
		}, "malformed HTTP", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var set string
				w := hostile(t, func(there io.Writer) error { return row.answer(there, set) })
				set = jwks(t, w.idp)
				defer time.Sleep(time.Hour) // until the other end has detected it
				began := time.Now()
				err := w.rootBy(t, w.idp)
				if took := time.Since(began); took != row.takes {
					t.Errorf("the answer takes %v, want %v", took, row.takes)
				}
				if row.cause == "" {
					wantReason(t, err, "", "")
					return
				}
				wantReason(t, err, delegation.DependencyDown, "")
				wantCause(t, err, row.cause)
			})
		})
	}
	t.Run("control: a slow issuer is believed by who has time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var set string
			w := hostile(t, func(there io.Writer) error { return drip(there, okHead+"\r\n"+set, time.Millisecond) })
			set = jwks(t, w.idp)
			w.idpSource().timing.timeout = time.Hour
			if err := w.rootBy(t, w.idp); err != nil {
				t.Error(err)
			}
		})
	})
}

// neverEnding reads as one byte without end.
type neverEnding byte

func (b neverEnding) Read(p []byte) (int, error) {
	for n := range p {
		p[n] = byte(b)
	}
	return len(p), nil
}

func TestRedirectsLeadNowhere(t *testing.T) {
	key := newTestKey(t, "ES256", "k")
	authority := tokentest.NewAuthority(t)
	var asked atomic.Int64
	good := func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		serve("application/json", jwks(t, key))(w, r)
	}
	plain := newHTTPIssuer(t, map[string]http.HandlerFunc{"/jwks": good})
	other := authority.Server(t, good)
	for name, target := range map[string]string{"https to http": plain.URL + "/jwks", "to another host": other.URL + "/jwks"} {
		for _, status := range []int{http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
			server := authority.Server(t, http.RedirectHandler(target, status).ServeHTTP)
			f := newFetcher(nil, reach{loopback: true}, roots(t, authority.File))
			if _, err := f.get(t.Context(), server.URL+"/jwks"); err == nil || !strings.Contains(err.Error(), fmt.Sprint(status)) || asked.Load() != 0 {
				t.Errorf("%s by %d: %v, and the target was asked %d times", name, status, err, asked.Load())
			}
			f.client.CheckRedirect = nil // the control: the redirect leads to a document
			if _, err := f.get(t.Context(), server.URL+"/jwks"); err != nil || asked.Swap(0) != 1 {
				t.Errorf("%s by %d: the redirect leads nowhere: %v", name, status, err)
			}
			server.Close()
		}
	}
}

// byHost is a network in which each issuer serves its own keys.
type byHost map[string]*fakeIssuer

func (b byHost) RoundTrip(r *http.Request) (*http.Response, error) { return b[r.URL.Host].RoundTrip(r) }

func TestFetchedKeysOfOneIDStayApart(t *testing.T) {
	first, second := newTestKey(t, "ES256", "k"), newTestKey(t, "ES256", "k")
	network := byHost{"idp.example": {body: jwks(t, first)}, "spire.example": {body: jwks(t, second)}}
	w := newWorld(t, func(c *TrustConfig) {
		c.Transport = network
		for n, issuer := range []string{idpIssuer, spireIssuer} {
			c.TrustedIssuers[n].Keys, c.TrustedIssuers[n].Algorithms = KeySource{JWKSURL: issuer + "/jwks"}, []string{"ES256"}
			c.TrustedIssuers[n].Audiences = []string{api}
		}
	})
	for issuer, keys := range map[string][2]testKey{idpIssuer: {first, second}, spireIssuer: {second, first}} {
		claims := w.rootClaims().with(object{"iss": issuer})
		if _, err := w.root(t.Context(), keys[0].sign(t, "at+jwt", claims)); err != nil {
			t.Errorf("%s: %v", issuer, err)
		}
		_, err := w.root(t.Context(), keys[1].sign(t, "at+jwt", claims))
		wantReason(t, err, delegation.SubjectTokenInvalid, "its signature does not verify")
	}
}

// Other keys in a fetched set do not affect a valid key: the valid one counts, the others do not.
func TestFetchedSets(t *testing.T) {
	good, other := newTestKey(t, "ES256", "idp-1"), newTestKey(t, "ES256", "k")
	rs := newTestKey(t, "RS256", "k")
	more := func(n int) []any {
		var all []any
		for range n {
			all = append(all, object{"kty": "EC", "kid": "x", "use": "enc"})
		}
		return all
	}
	for name, row := range map[string]struct {
		beside []any
		good   bool // whether the valid key counts
		other  bool
	}{
		"another key":                       {[]any{other.jwk(t, nil)}, true, true},
		"one kid twice":                     {[]any{other.jwk(t, nil), newTestKey(t, "ES256", "k").jwk(t, nil)}, true, false},
		"one kid and one key twice":         {[]any{other.jwk(t, nil), other.jwk(t, nil)}, true, false},
		"one kid three times":               {[]any{other.jwk(t, nil), rs.jwk(t, object{"alg": "ES256"}), other.jwk(t, nil), other.jwk(t, nil)}, true, false},
		"the good one's kid again":          {[]any{other.jwk(t, object{"kid": "idp-1"})}, false, false},
		"its kid again, for encryption":     {[]any{other.jwk(t, object{"kid": "idp-1", "use": "enc"})}, true, false},
		"its kid again, of another kind":    {[]any{rs.jwk(t, object{"kid": "idp-1"})}, true, false},
		"for encryption":                    {[]any{other.jwk(t, object{"use": "enc"})}, true, false},
		"for SVIDs":                         {[]any{other.jwk(t, object{"use": "jwt-svid"})}, true, false},
		"use in other case":                 {[]any{other.jwk(t, object{"use": "SIG"})}, true, false},
		"for signing only":                  {[]any{other.jwk(t, object{"use": nil, "key_ops": []string{"sign"}})}, true, false},
		"no use and no alg":                 {[]any{other.jwk(t, object{"use": nil, "alg": nil})}, true, true},
		"of a kind nobody knows":            {[]any{object{"kty": "PQC", "kid": "k", "use": "sig"}}, true, false},
		"what is no key":                    {[]any{1, "key", nil, []any{}, object{}}, true, false},
		"a private key":                     {[]any{other.jwk(t, object{"d": "AAAA"})}, true, false},
		"as many as there may be":           {append(more(maxKeys-2), other.jwk(t, nil)), true, true},
		"one more than there may be":        {append(more(maxKeys-1), other.jwk(t, nil)), false, false},
		"a certificate and members unknown": {[]any{other.jwk(t, object{"x5t": "abc", "issuer": "x", "nbf": 1})}, true, true},
	} {
		f := &fakeIssuer{body: toJSON(t, object{"keys": append([]any{good.jwk(t, nil)}, row.beside...)})}
		w := newWorld(t, func(c *TrustConfig) {
			c.Transport, c.TrustedIssuers[0].Keys = f, KeySource{JWKSURL: idpIssuer + "/jwks"}
		})
		if err := w.rootBy(t, good); (err == nil) != row.good {
			t.Errorf("%s: the good key: %v", name, err)
		}
		if err := w.rootBy(t, other); (err == nil) != row.other {
			t.Errorf("%s: the other key: %v", name, err)
		}
	}
}
