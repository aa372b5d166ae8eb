package embedded

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
)

// DevIssuer plays the two parties that Deputy trusts and does not run: the OpenID provider that signs
// people in, and the platform that gives each workload an identity. It hands a token to whoever asks, so
// it belongs on a loopback address, in development, and nowhere else; deputyd does not contain it.
//
// People and workloads are two issuers with a key each, at the address followed by /people and
// /workloads, because an issuer names one type of principal.
type DevIssuer struct {
	config    DevIssuerConfig
	people    *KeyFile
	workloads *KeyFile
	codes     codes
}

// DevIssuerConfig says what a DevIssuer signs for whom.
type DevIssuerConfig struct {
	// Dir keeps the keys people.pem and workloads.pem, made with mode 0600 when they are not there. Required.
	Dir string
	// Address of the issuer as others reach it, such as http://127.0.0.1:8081, without a slash at the end. Required.
	Address string
	// Deputy is the tenant's issuer, to which all tokens are addressed. Required.
	Deputy string
	// People who can sign in, with the scopes that each one's token carries.
	People map[string]delegation.Scopes
	// Audiences are the services that people's tokens are for, in the claim "targets".
	Audiences []string
	// Workloads that have an identity.
	Workloads []string
	// Application lets people sign in with a browser; the zero value offers no such thing.
	Application Application
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// How long tokens live. Workload tokens are fetched when they are needed.
const (
	personLifetime   = time.Hour
	workloadLifetime = 10 * time.Minute
)

// TargetsClaim of a person's token lists the services that it may be used for.
const TargetsClaim = "targets"

// NewDevIssuer opens the keys.
func NewDevIssuer(config DevIssuerConfig) (*DevIssuer, error) {
	if config.Now == nil {
		config.Now = time.Now
	}
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("development issuer: %w", err)
	}
	i := &DevIssuer{config: config}
	for name, key := range map[string]**KeyFile{"people.pem": &i.people, "workloads.pem": &i.workloads} {
		var err error
		if *key, err = OpenKeyFile(filepath.Join(config.Dir, name)); err != nil {
			return nil, fmt.Errorf("development issuer: %w", err)
		}
	}
	return i, nil
}

// PeopleIssuer is the iss of people's tokens.
func (i *DevIssuer) PeopleIssuer() string { return i.config.Address + "/people" }

// WorkloadIssuer is the iss of workloads' tokens.
func (i *DevIssuer) WorkloadIssuer() string { return i.config.Address + "/workloads" }

// AccessToken is what a person's sign-in gives: a JWT access token (RFC 9068) for Deputy.
func (i *DevIssuer) AccessToken(person string) (string, error) {
	scopes, known := i.config.People[person]
	if !known {
		return "", fmt.Errorf("nobody here is called %q: there are %s", person, strings.Join(slices.Sorted(maps.Keys(i.config.People)), ", "))
	}
	return i.people.Sign(delegation.HeaderTypeAccessToken, i.claims(i.PeopleIssuer(), person, i.config.Deputy, personLifetime, map[string]any{
		"client_id":  "demo-application",
		"scope":      scopes.String(),
		TargetsClaim: i.config.Audiences,
	}))
}

// WorkloadToken is a workload's identity document. Addressed to Deputy's issuer it authenticates the
// workload as a caller; with naming set it is addressed to delegation.ActorAudience, and a parent to
// which it is given can name the workload with it and not become it.
func (i *DevIssuer) WorkloadToken(workload string, naming bool) (string, error) {
	if !slices.Contains(i.config.Workloads, workload) {
		return "", fmt.Errorf("no workload here is called %q: there are %s", workload, strings.Join(i.config.Workloads, ", "))
	}
	audience := i.config.Deputy
	if naming {
		audience = delegation.ActorAudience(audience)
	}
	return i.workloads.Sign("JWT", i.claims(i.WorkloadIssuer(), workload, audience, workloadLifetime, nil))
}

func (i *DevIssuer) claims(issuer, subject, audience string, lifetime time.Duration, more map[string]any) map[string]any {
	now := i.config.Now()
	claims := map[string]any{
		"iss": issuer, "sub": subject, "aud": audience, "jti": rand.Text(),
		"iat": now.Unix(), "exp": now.Add(lifetime).Unix(),
	}
	maps.Copy(claims, more)
	return claims
}

// Handler serves discovery documents and keys, and gives tokens away:
//
//	POST /people/token     user=alice
//	GET  /people/authorize the sign-in page, for the Application (OpenID Connect with PKCE)
//	POST /workloads/token  agent=planner&audience=caller, or audience=actor
//
// Put it behind [LoopbackOnly].
func (i *DevIssuer) Handler() http.Handler {
	mux := http.NewServeMux()
	for issuer, key := range map[string]*KeyFile{i.PeopleIssuer(): i.people, i.WorkloadIssuer(): i.workloads} {
		path := strings.TrimPrefix(issuer, i.config.Address)
		mux.HandleFunc("GET "+path+"/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, i.metadata(issuer))
		})
		mux.HandleFunc("GET "+path+"/jwks", func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, map[string][]jwk{"keys": {key.public}})
		})
	}
	give := giveToken(func(r *http.Request) (string, error) { return i.AccessToken(r.PostFormValue("user")) })
	mux.HandleFunc("POST /people/token", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
		if r.PostFormValue("grant_type") == "authorization_code" {
			i.redeem(w, r)
			return
		}
		give(w, r)
	})
	mux.HandleFunc("GET "+signInPath, i.askWho)
	mux.HandleFunc("POST "+signInPath, i.chosen)
	mux.HandleFunc("POST /workloads/token", giveToken(func(r *http.Request) (string, error) {
		audience := r.PostFormValue("audience")
		if audience != "caller" && audience != "actor" {
			return "", fmt.Errorf("audience must be caller or actor")
		}
		return i.WorkloadToken(r.PostFormValue("agent"), audience == "actor")
	}))
	return mux
}

// metadata is what OpenID Connect Discovery 1.0 §3 requires, as far as it is true here.
func (i *DevIssuer) metadata(issuer string) map[string]any {
	document := map[string]any{
		"issuer":                                issuer,
		"jwks_uri":                              issuer + "/jwks",
		"token_endpoint":                        issuer + "/token",
		"response_types_supported":              []string{"none"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{"ES256"},
	}
	if issuer == i.PeopleIssuer() && i.config.Application.ClientID != "" {
		maps.Copy(document, map[string]any{
			"authorization_endpoint":                i.config.Address + signInPath,
			"response_types_supported":              []string{"code"},
			"grant_types_supported":                 []string{"authorization_code"},
			"scopes_supported":                      []string{"openid"},
			"code_challenge_methods_supported":      []string{"S256"},
			"token_endpoint_auth_methods_supported": []string{"none"},
		})
	}
	return document
}

// giveToken answers with the bare token (RFC 7519 §10.3.1), so that a shell needs no JSON parser.
func giveToken(make func(*http.Request) (string, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
		token, err := make(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/jwt")
		w.Header().Set("Cache-Control", "no-store")
		fmt.Fprintln(w, token)
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client has gone: nobody to tell
}

// LoopbackOnly refuses whatever did not come from this machine, and what a web page could have sent: a
// page's request names its origin, or (by DNS rebinding) a host that is not a loopback address. Only the
// sign-in page is for browsers, and gives nothing to anybody but the application.
func LoopbackOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		byPage := r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != ""
		if !isLoopback(r.RemoteAddr) || !isLoopback(r.Host) || byPage && r.URL.Path != signInPath {
			http.Error(w, "this development server answers programs on this machine only", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// isLoopback says whether an address with or without a port is this machine's own. It resolves no names
// but localhost.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = strings.Trim(address, "[]")
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
