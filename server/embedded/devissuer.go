package embedded

import (
	"crypto/rand"
	"encoding/json"
	"errors"
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

// DevIssuer replaces the two parties that Deputy trusts and does not run: the OpenID provider that
// authenticates people, and the platform that gives each workload an identity. It gives a token to
// every caller, so it must listen on a loopback address, in development only. deputyd does not
// contain it.
//
// People and workloads are two issuers with a key each, at the address followed by /people and
// /workloads, because an issuer names one type of principal.
type DevIssuer struct {
	config    DevIssuerConfig
	people    *KeyFile
	workloads *KeyFile
	codes     codes
}

// DevIssuerConfig configures what a DevIssuer signs.
type DevIssuerConfig struct {
	// Dir keeps the keys people.pem and workloads.pem, made with mode 0600 if missing. Required.
	Dir string
	// Address of the issuer, as callers reach it, such as http://127.0.0.1:8081, without a trailing
	// slash. Required.
	Address string
	// Deputy is the tenant's issuer, the audience of all tokens. Required.
	Deputy string
	// People who can sign in, with the scopes of their tokens.
	People map[string]delegation.Scopes
	// Audiences are the services that people's tokens may be used for, in the claim "targets".
	Audiences []string
	// Workloads are the workloads with an identity.
	Workloads []string
	// Application lets people sign in with a browser; the zero value disables that.
	Application Application
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Lifetimes of tokens. Workload tokens are fetched when needed.
const (
	personLifetime   = time.Hour
	workloadLifetime = 10 * time.Minute
)

// TargetsClaim of a person's token lists the services that it may be used for.
const TargetsClaim = "targets"

// NewDevIssuer opens the keys, and makes them if necessary.
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

// AccessToken returns what a person's sign-in gives: a JWT access token (RFC 9068) for Deputy.
func (i *DevIssuer) AccessToken(person string) (string, error) {
	scopes, known := i.config.People[person]
	if !known {
		return "", fmt.Errorf("user: must be one of %s", strings.Join(slices.Sorted(maps.Keys(i.config.People)), ", "))
	}
	return i.people.Sign(delegation.HeaderTypeAccessToken, i.claims(i.PeopleIssuer(), person, i.config.Deputy, personLifetime, map[string]any{
		"client_id":  "demo-application",
		"scope":      scopes.String(),
		TargetsClaim: i.config.Audiences,
	}))
}

// WorkloadToken is a workload's identity document. Addressed to Deputy's issuer, it authenticates
// the workload as a caller. With naming set, it is addressed to delegation.ActorAudience: a parent
// can name the workload with it, but cannot authenticate as it.
func (i *DevIssuer) WorkloadToken(workload string, naming bool) (string, error) {
	if !slices.Contains(i.config.Workloads, workload) {
		return "", fmt.Errorf("agent: must be one of %s", strings.Join(i.config.Workloads, ", "))
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

// Handler serves discovery documents and keys, and gives tokens to every caller:
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
	mux.HandleFunc("GET "+signInPath, i.showPeople)
	mux.HandleFunc("POST "+signInPath, i.chosen)
	mux.HandleFunc("POST /workloads/token", giveToken(func(r *http.Request) (string, error) {
		audience := r.PostFormValue("audience")
		if audience != "caller" && audience != "actor" {
			return "", errors.New("audience: must be caller or actor")
		}
		return i.WorkloadToken(r.PostFormValue("agent"), audience == "actor")
	}))
	return mux
}

// metadata is what OpenID Connect Discovery 1.0 §3 requires, as far as it applies.
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

// giveToken responds with the bare token (RFC 7519 §10.3.1), so that a shell needs no JSON parser.
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
	_ = json.NewEncoder(w).Encode(v) // the client has gone
}

// LoopbackOnly refuses requests from other machines, and those that a web page could have sent. A
// page's request has an Origin header, or (by DNS rebinding) a host that is not a loopback address.
// Only the sign-in page is for browsers, and it gives codes to the application only.
func LoopbackOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		byPage := r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != ""
		if !isLoopback(r.RemoteAddr) || !isLoopback(r.Host) || byPage && r.URL.Path != signInPath {
			http.Error(w, "this development server serves only programs on this machine", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// isLoopback returns whether an address, with or without a port, is a loopback address. It resolves
// no names but localhost.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = strings.Trim(address, "[]")
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
