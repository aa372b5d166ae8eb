package tokentest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // what x5t is (RFC 7515 section 4.1.7)
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math/big"
	"net/http"
	"testing"
	"time"
)

// Claims are the claims of a token.
type Claims = map[string]any

// Issuer is a workload issuer that serves its metadata and keys over HTTPS on this machine.
type Issuer struct {
	URL       string // its iss
	CAFile    string // who vouches for its certificate
	Algorithm string
	Sub       string // of an ordinary token
	// Attacks are changes to the claims of an ordinary token that make it one which the issuer gives to
	// others, and which a configuration for its ordinary token must refuse.
	Attacks map[string]func(Claims)

	key    crypto.Signer
	header map[string]any
	claims func(now int64) Claims
}

// Token signs an ordinary token for the audience, with its claims changed where change is not nil.
func (i *Issuer) Token(t testing.TB, audience any, now time.Time, change func(Claims)) string {
	t.Helper()
	claims := Claims{"iss": i.URL, "sub": i.Sub, "aud": audience}
	maps.Copy(claims, i.claims(now.Unix()))
	if change != nil {
		change(claims)
	}
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	input := segment(i.header) + "." + segment(claims)
	return input + "." + base64.RawURLEncoding.EncodeToString(i.sign(t, input))
}

func (i *Issuer) sign(t testing.TB, input string) []byte {
	t.Helper()
	sum := sha256.Sum256([]byte(input))
	switch key := i.key.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case ed25519.PrivateKey:
		return ed25519.Sign(key, []byte(input))
	}
	signature, err := i.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

func segment(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // what is written here can be marshalled
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// Kubernetes is a cluster's API server: projected tokens of the service account planner in the namespace
// agents, without a typ, with all that the cluster knows in an object of their own.
func Kubernetes(t testing.TB) *Issuer {
	t.Helper()
	const kid = "hXkbOWp4bEqEZRK1rGYzLvVHcvz3HbEeFQGqwOZTLVM"
	key := newRSA(t)
	i := &Issuer{Algorithm: "RS256", Sub: "system:serviceaccount:agents:planner", key: key, header: map[string]any{"alg": "RS256", "kid": kid}}
	i.serve(t, "", func(issuer string) pages {
		return pages{
			"/.well-known/openid-configuration": page{"application/json", map[string]any{
				"issuer": issuer, "jwks_uri": issuer + "/openid/v1/jwks", "response_types_supported": []string{"id_token"},
				"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"RS256"},
			}},
			"/openid/v1/jwks": page{"application/jwk-set+json", keySet(rsaKey(key, kid))},
		}
	})
	i.claims = func(now int64) Claims {
		return Claims{
			"iat": now, "nbf": now, "exp": now + 3607, "jti": "ea28ed49-2e11-4280-9ec5-bc3d1d84661a",
			"kubernetes.io": map[string]any{
				"namespace":      "agents",
				"node":           map[string]any{"name": "node-1", "uid": "646e7c5e-32d6-4d42-9dbd-e504e6cbe6b1"},
				"pod":            map[string]any{"name": "planner-69cbfb9798-jv9gn", "uid": "5e0bd49b-f040-43b0-99b7-22765a53f7f3"},
				"serviceaccount": map[string]any{"name": "planner", "uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"},
				"warnafter":      now + 3007,
			},
		}
	}
	within := func(c Claims) map[string]any { return c["kubernetes.io"].(map[string]any) }
	i.Attacks = map[string]func(Claims){
		"another namespace": func(c Claims) {
			c["sub"], within(c)["namespace"] = "system:serviceaccount:default:planner", "default"
		},
		"a namespace that begins like it": func(c Claims) {
			c["sub"], within(c)["namespace"] = "system:serviceaccount:agents-evil:planner", "agents-evil"
		},
		"no namespace": func(c Claims) { delete(within(c), "namespace") },
		"a token of a secret, as clusters made them before": func(c Claims) {
			delete(c, "kubernetes.io")
			c["kubernetes.io/serviceaccount/namespace"], c["kubernetes.io/serviceaccount/service-account.name"] = "agents", "planner"
		},
	}
	return i
}

// GitHub is the issuer of GitHub Actions: one for everybody who has a repository there. Its ordinary
// token is that of the release workflow of acme/deploy on its main branch.
func GitHub(t testing.TB) *Issuer {
	t.Helper()
	const kid = "38826b17-6a30-5f9b-b169-8beb8202f723"
	key := newRSA(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "vstoken"}},
		&x509.Certificate{Subject: pkix.Name{CommonName: "vstoken"}}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha1.Sum(der)
	thumbprint := base64.RawURLEncoding.EncodeToString(sum[:])
	signing := rsaKey(key, kid)
	signing["x5t"], signing["x5c"] = thumbprint, []string{base64.StdEncoding.EncodeToString(der)}
	i := &Issuer{
		Algorithm: "RS256", Sub: "repo:acme/deploy:environment:production", key: key,
		header: map[string]any{"typ": "JWT", "alg": "RS256", "x5t": thumbprint, "kid": kid},
	}
	i.serve(t, "", func(issuer string) pages {
		return pages{
			"/.well-known/openid-configuration": page{"application/json; charset=utf-8", map[string]any{
				"issuer": issuer, "jwks_uri": issuer + "/.well-known/jwks", "subject_types_supported": []string{"public", "pairwise"},
				"response_types_supported": []string{"id_token"}, "id_token_signing_alg_values_supported": []string{"RS256"},
				"scopes_supported": []string{"openid"}, "claims_supported": []string{"sub", "aud", "exp", "iat", "iss", "jti", "nbf", "ref", "repository"},
			}},
			"/.well-known/jwks": page{"application/json; charset=utf-8", keySet(rsaKey(newRSA(t), "1F2AB83404C08EC9EA0BB99DAED02186B091DBF4"), signing)},
		}
	})
	i.claims = func(now int64) Claims {
		return Claims{
			"jti": "f1a2c7d0-5a43-4bd0-9d0e-5a1c53a0a8a4", "nbf": now - 600, "iat": now, "exp": now + 300,
			"repository": "acme/deploy", "repository_id": "74", "repository_owner": "acme", "repository_owner_id": "65",
			"repository_visibility": "private", "ref": "refs/heads/main", "ref_type": "branch", "ref_protected": "true",
			"sha": "9f2c0d7be3d1c9b3d5f3a5c2a1d2e4f60718293a", "head_ref": "", "base_ref": "", "event_name": "push",
			"workflow": "release", "workflow_ref": "acme/deploy/.github/workflows/release.yml@refs/heads/main",
			"job_workflow_ref": "acme/deploy/.github/workflows/release.yml@refs/heads/main",
			"job_workflow_sha": "9f2c0d7be3d1c9b3d5f3a5c2a1d2e4f60718293a", "environment": "production", "actor": "octocat", "actor_id": "12",
			"run_id": "8421379523", "run_number": "10", "run_attempt": "2", "runner_environment": "github-hosted",
		}
	}
	i.Attacks = map[string]func(Claims){
		"a fork": func(c Claims) {
			c["sub"], c["repository"], c["repository_id"] = "repo:mallory/deploy:environment:production", "mallory/deploy", "981"
			c["repository_owner"], c["repository_owner_id"] = "mallory", "977"
			c["job_workflow_ref"] = "mallory/deploy/.github/workflows/release.yml@refs/heads/main"
		},
		"another repository that took over the name": func(c Claims) { c["repository_id"] = "982" },
		"a pull request": func(c Claims) {
			c["sub"], c["ref"], c["event_name"] = "repo:acme/deploy:pull_request", "refs/pull/7/merge", "pull_request"
			c["head_ref"], c["base_ref"], c["environment"] = "innocent", "main", nil
			c["job_workflow_ref"] = "acme/deploy/.github/workflows/release.yml@refs/pull/7/merge"
		},
		"a pull request that runs on the main branch": func(c Claims) { c["event_name"] = "pull_request_target" },
		"another branch":                   func(c Claims) { c["ref"] = "refs/heads/mainframe" },
		"a branch that is named like one":  func(c Claims) { c["ref"] = "refs/heads/refs/heads/main" },
		"another workflow":                 func(c Claims) { c["job_workflow_ref"] = "acme/deploy/.github/workflows/test.yml@refs/heads/main" },
		"no repository id":                 func(c Claims) { delete(c, "repository_id") },
		"a repository id that is a number": func(c Claims) { c["repository_id"] = 74 },
	}
	return i
}

// Google is the issuer of a virtual machine's identity tokens, and of everybody else's at Google. Its keys
// are served by another host, several at a time.
func Google(t testing.TB) *Issuer {
	t.Helper()
	const kid = "6ce11aecf9eb14024a44bbfd1bcf8b32a12287fa"
	key := newRSA(t)
	i := &Issuer{Algorithm: "RS256", Sub: "114920391823748273645", key: key, header: map[string]any{"alg": "RS256", "kid": kid, "typ": "JWT"}}
	authority := NewAuthority(t)
	certs := authority.Server(t, pages{"/oauth2/v3/certs": page{"application/json; charset=UTF-8", keySet(rsaKey(key, kid), rsaKey(newRSA(t), "other"))}}.ServeHTTP)
	i.serveAs(t, authority, "", func(issuer string) pages {
		return pages{"/.well-known/openid-configuration": page{"application/json", map[string]any{
			"issuer": issuer, "authorization_endpoint": "https://accounts.google.com/o/oauth2/v2/auth", "jwks_uri": certs.URL + "/oauth2/v3/certs",
		}}}
	})
	i.claims = func(now int64) Claims {
		return Claims{
			"azp": i.Sub, "email": "planner@acme-agents.iam.gserviceaccount.com", "email_verified": true, "iat": now, "exp": now + 3600,
			"google": map[string]any{"compute_engine": map[string]any{
				"project_id": "acme-agents", "project_number": 739419398126, "zone": "europe-west1-b", "instance_id": "152986662232938449",
				"instance_name": "planner", "instance_creation_timestamp": now - 86400,
			}},
		}
	}
	engine := func(c Claims) map[string]any { return c["google"].(map[string]any)["compute_engine"].(map[string]any) }
	i.Attacks = map[string]func(Claims){
		"a machine of another project": func(c Claims) { engine(c)["project_id"] = "mallory-agents" },
		"a person": func(c Claims) {
			c["sub"], c["email"], c["google"] = "100000000000000000001", "mallory@gmail.com", nil
		},
		"another service account": func(c Claims) { c["email"] = "build@acme-agents.iam.gserviceaccount.com" },
		"a project in its own name only": func(c Claims) {
			c["google"], c["project_id"] = nil, "acme-agents"
		},
	}
	return i
}

// Workload is an issuer of JWT-SVIDs such as SPIRE's: RFC 8414 metadata only, below a path, and keys that
// say neither use nor alg. The algorithm is ES256 or EdDSA.
func Workload(t testing.TB, algorithm string) *Issuer {
	t.Helper()
	i := &Issuer{Algorithm: algorithm, Sub: "spiffe://acme.example/ns/agents/planner", header: map[string]any{"alg": algorithm, "kid": "1", "typ": "JOSE"}}
	var public map[string]any
	if algorithm == "ES256" {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		point, err := key.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		i.key, public = key, map[string]any{"kty": "EC", "kid": "1", "crv": "P-256", "x": encode(point[1:33]), "y": encode(point[33:])}
	} else {
		edPublic, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		i.key, public = key, map[string]any{"kty": "OKP", "kid": "1", "crv": "Ed25519", "x": encode(edPublic)}
	}
	i.serve(t, "/workloads", func(issuer string) pages {
		return pages{
			"/.well-known/oauth-authorization-server/workloads": page{"application/json", map[string]any{"issuer": issuer, "jwks_uri": issuer + "/keys"}},
			"/workloads/keys": page{"application/json", keySet(public)},
		}
	})
	i.claims = func(now int64) Claims { return Claims{"iat": now, "exp": now + 300} }
	sub := func(id string) func(Claims) { return func(c Claims) { c["sub"] = id } }
	i.Attacks = map[string]func(Claims){
		"another trust domain":           sub("spiffe://mallory.example/ns/agents/planner"),
		"another part of the domain":     sub("spiffe://acme.example/ns/builds/planner"),
		"a part that begins like it":     sub("spiffe://acme.example/ns/agents-evil/planner"),
		"the part in other case":         sub("SPIFFE://acme.example/ns/agents/planner"),
		"the domain as somebody's claim": func(c Claims) { c["sub"], c["spiffe_id"] = "mallory", "spiffe://acme.example/ns/agents/planner" },
	}
	return i
}

// page is one document.
type page struct {
	contentType string
	content     any
}

// pages are documents by their paths.
type pages map[string]page

func (p pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	found, known := p[r.URL.Path]
	if !known {
		http.NotFound(w, r)
		return
	}
	var body bytes.Buffer
	if err := json.NewEncoder(&body).Encode(found.content); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", found.contentType)
	w.Header().Set("Cache-Control", "public, max-age=3600")
	_, _ = w.Write(body.Bytes()) // to a client that may be gone
}

func (i *Issuer) serve(t testing.TB, path string, content func(issuer string) pages) {
	t.Helper()
	i.serveAs(t, NewAuthority(t), path, content)
}

func (i *Issuer) serveAs(t testing.TB, authority *Authority, path string, content func(issuer string) pages) {
	t.Helper()
	var served pages
	server := authority.Server(t, func(w http.ResponseWriter, r *http.Request) { served.ServeHTTP(w, r) })
	i.URL, i.CAFile = server.URL+path, authority.File
	served = content(i.URL) // before any request can come
}

func newRSA(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaKey(key *rsa.PrivateKey, kid string) map[string]any {
	return map[string]any{"use": "sig", "kty": "RSA", "kid": kid, "alg": "RS256", "n": encode(key.N.Bytes()), "e": "AQAB"}
}

func keySet(keys ...map[string]any) map[string]any { return map[string]any{"keys": keys} }

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
