package token

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
)

// httpIssuer is an issuer on loopback, with a path in its name.
type httpIssuer struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string
}

func newHTTPIssuer(t *testing.T, pages map[string]http.HandlerFunc) *httpIssuer {
	t.Helper()
	h := &httpIssuer{}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.asked = append(h.asked, r.URL.Path)
		h.mu.Unlock()
		page, found := pages[r.URL.Path]
		if !found {
			http.NotFound(w, r)
			return
		}
		page(w, r)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *httpIssuer) paths() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.asked, " ")
}

func serve(contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		fmt.Fprint(w, body)
	}
}

const (
	openidPath = "/realms/acme/.well-known/openid-configuration"
	oauthPath  = "/.well-known/oauth-authorization-server/realms/acme"
)

// Every row is one deviation from a working issuer, over real HTTP with the package's own
// transport.
func TestFetchingKeys(t *testing.T) {
	key := newTestKey(t, "ES256", "k")
	set := jwks(t, key)
	secret := toJSON(t, map[string]any{"keys": []any{key.jwk(t, map[string]any{"d": "AAAA"})}})
	good := serve("application/json", set)
	metadata := func(issuer, jwksURI string) http.HandlerFunc {
		return serve("application/json", fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q,"extra":[1]}`, issuer, jwksURI))
	}
	type pages = map[string]http.HandlerFunc
	for _, row := range []struct {
		name   string
		direct bool // jwks_url instead of discovery
		pages  func(base string) pages
		reason delegation.Reason
		cause  string
		asked  string
	}{
		{name: "jwks_url", direct: true, pages: func(string) pages { return pages{"/jwks": good} }, asked: "/jwks"},
		{name: "jwks_url with the JWK Set's own type", direct: true, pages: func(string) pages { return pages{"/jwks": serve("application/jwk-set+json; charset=utf-8", set)} }},
		{name: "not JSON by its type", direct: true, pages: func(string) pages { return pages{"/jwks": serve("text/html", set)} }, reason: delegation.DependencyDown, cause: "other than JSON"},
		{name: "no type", direct: true, pages: func(string) pages { return pages{"/jwks": serve("", set)} }, reason: delegation.DependencyDown, cause: "other than JSON"},
		{name: "not JSON by its content", direct: true, pages: func(string) pages { return pages{"/jwks": serve("application/json", "<html>")} }, reason: delegation.DependencyDown, cause: "strict JSON"},
		{name: "private keys", direct: true, pages: func(string) pages { return pages{"/jwks": serve("application/json", secret)} }, reason: delegation.SubjectTokenInvalid},
		{name: "too long", direct: true, pages: func(string) pages {
			return pages{"/jwks": serve("application/json", set+strings.Repeat(" ", maxDocumentBytes))}
		}, reason: delegation.DependencyDown, cause: "longer than"},
		{name: "of the longest size", direct: true, pages: func(string) pages {
			return pages{"/jwks": serve("application/json", set+strings.Repeat(" ", maxDocumentBytes-len(set)))}
		}},
		{name: "redirect", direct: true, pages: func(base string) pages {
			return pages{"/jwks": http.RedirectHandler(base+"/elsewhere", http.StatusFound).ServeHTTP, "/elsewhere": good}
		}, reason: delegation.DependencyDown, cause: "status 302", asked: "/jwks"},
		{name: "server error", direct: true, pages: func(string) pages {
			return pages{"/jwks": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, set, http.StatusInternalServerError) }}
		}, reason: delegation.DependencyDown, cause: "status 500"},
		{name: "body that ends early", direct: true, pages: func(string) pages {
			return pages{"/jwks": func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "100000")
				good(w, r)
			}}
		}, reason: delegation.DependencyDown, cause: "EOF"},

		{name: "OpenID discovery", pages: func(base string) pages {
			return pages{openidPath: metadata(base+"/realms/acme", base+"/jwks"), "/jwks": good}
		}, asked: openidPath + " /jwks"},
		{name: "RFC 8414 metadata", pages: func(base string) pages {
			return pages{oauthPath: metadata(base+"/realms/acme", base+"/jwks"), "/jwks": good}
		}, asked: openidPath + " " + oauthPath + " /jwks"},
		{name: "no metadata", pages: func(string) pages { return nil }, reason: delegation.DependencyDown, cause: "status 404", asked: openidPath + " " + oauthPath},
		{name: "metadata of another issuer", pages: func(base string) pages {
			return pages{openidPath: metadata(base+"/realms/other", base+"/jwks"), oauthPath: metadata(base+"/realms/acme", base+"/jwks"), "/jwks": good}
		}, reason: delegation.DependencyDown, cause: "not exactly the configured one", asked: openidPath},
		{name: "metadata of the issuer with a slash", pages: func(base string) pages {
			return pages{openidPath: metadata(base+"/realms/acme/", base+"/jwks"), "/jwks": good}
		}, reason: delegation.DependencyDown, cause: "not exactly the configured one"},
		{name: "metadata with issuer twice", pages: func(base string) pages {
			return pages{openidPath: serve("application/json", fmt.Sprintf(`{"issuer":"x","issuer":%q,"jwks_uri":%q}`, base+"/realms/acme", base+"/jwks")), "/jwks": good}
		}, reason: delegation.DependencyDown, cause: "strict JSON"},
		{name: "metadata that sends elsewhere by http", pages: func(base string) pages {
			return pages{openidPath: metadata(base+"/realms/acme", "http://169.254.169.254/latest/meta-data")}
		}, reason: delegation.DependencyDown, cause: "must be https"},
		{name: "metadata that names a file", pages: func(base string) pages {
			return pages{openidPath: metadata(base+"/realms/acme", "file:///etc/passwd")}
		}, reason: delegation.DependencyDown, cause: "absolute URL"},
		{name: "metadata without jwks_uri", pages: func(base string) pages {
			return pages{openidPath: serve("application/json", fmt.Sprintf(`{"issuer":%q}`, base+"/realms/acme"))}
		}, reason: delegation.DependencyDown, cause: "absolute URL"},
		{name: "metadata by redirect", pages: func(base string) pages {
			return pages{
				openidPath:   http.RedirectHandler(base+"/elsewhere", http.StatusMovedPermanently).ServeHTTP,
				"/elsewhere": metadata(base+"/realms/acme", base+"/jwks"), "/jwks": good,
			}
		}, reason: delegation.DependencyDown, cause: "status 404"},
	} {
		t.Run(row.name, func(t *testing.T) {
			all := pages{}
			h := newHTTPIssuer(t, all)
			for path, page := range row.pages(h.URL) {
				all[path] = page
			}
			issuer := h.URL + "/realms/acme"
			w := newWorld(t, func(c *TrustConfig) {
				c.AllowInsecureLoopback = true
				c.TrustedIssuers[0].Issuer = issuer
				c.TrustedIssuers[0].Keys = KeySource{Discovery: true}
				if row.direct {
					c.TrustedIssuers[0].Keys = KeySource{JWKSURL: h.URL + "/jwks"}
				}
			})
			_, err := w.root(t.Context(), key.sign(t, "at+jwt", w.rootClaims().with(object{"iss": issuer})))
			wantReason(t, err, row.reason, "")
			if row.cause != "" {
				wantCause(t, err, row.cause)
			}
			if got := h.paths(); row.asked != "" && got != row.asked {
				t.Errorf("asked for %s, want %s", got, row.asked)
			}
		})
	}
}

// An issuer that accepts a connection and then sends nothing, or sends byte by byte, delays no
// request beyond two seconds. This one test needs the real clock: a stuck socket is not a timer.
func TestStuckIssuerIsGivenUp(t *testing.T) {
	release := make(chan struct{})
	h := newHTTPIssuer(t, map[string]http.HandlerFunc{"/jwks": func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"keys":[`)
		w.(http.Flusher).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}})
	t.Cleanup(func() { close(release) })
	w := newWorld(t, func(c *TrustConfig) {
		c.AllowInsecureLoopback = true
		c.TrustedIssuers[0].Keys = KeySource{JWKSURL: h.URL + "/jwks"}
	})
	w.idpSource().timing.timeout = 50 * time.Millisecond
	wantReason(t, w.rootBy(t, w.idp), delegation.DependencyDown, "")
	if defaultTiming.timeout != 2*time.Second || defaultTiming.refresh+defaultTiming.timeout >= time.Minute {
		t.Errorf("the documented bounds have moved: %+v", defaultTiming)
	}
}

// The control of the loopback rule: the address that is refused above would have answered.
func TestPlainHTTPNeedsPermission(t *testing.T) {
	h := newHTTPIssuer(t, map[string]http.HandlerFunc{"/jwks": serve("application/json", `{"keys":[]}`)})
	for allowed, words := range map[bool]string{true: "", false: "allow_insecure_loopback"} {
		_, err := newFetcher(nil, reach{loopback: allowed}, nil).get(t.Context(), h.URL+"/jwks")
		if (err == nil) != allowed || err != nil && !strings.Contains(err.Error(), words) {
			t.Errorf("allowed=%t: %v", allowed, err)
		}
	}
}
