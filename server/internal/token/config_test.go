package token

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"deputy.example/deputy/client/delegation"
)

func TestConfigurationRules(t *testing.T) {
	es, rs := newTestKey(t, "ES256", "k"), newTestKey(t, "RS256", "r")
	set := func(entries ...any) KeySource {
		return KeySource{JWKS: toJSON(t, map[string]any{"keys": entries})}
	}
	secret := es.jwk(t, map[string]any{"d": "AAAA"})
	rows := []struct {
		name   string
		change func(c *TrustConfig)
		field  string // "" means accepted
		words  string
	}{
		{"as it is", func(*TrustConfig) {}, "", ""},
		{"no tenant issuer", func(c *TrustConfig) { c.Issuer = "" }, "issuer", "absolute URL"},
		{"http tenant issuer", func(c *TrustConfig) { c.Issuer = "http://deputy.example" }, "issuer", "must be https"},
		{"http loopback tenant issuer", func(c *TrustConfig) { c.Issuer = "http://127.0.0.1:8080" }, "issuer", "allow_insecure_loopback"},
		{"http loopback tenant issuer, allowed", func(c *TrustConfig) { c.Issuer, c.AllowInsecureLoopback = "http://127.0.0.1:8080", true }, "", ""},
		{"tenant issuer with slash", func(c *TrustConfig) { c.Issuer += "/" }, "issuer", "must end neither"},
		{"tenant issuer that is an actor audience", func(c *TrustConfig) { c.Issuer += "/actor" }, "issuer", "must end neither"},
		{"tenant issuer with query", func(c *TrustConfig) { c.Issuer += "?x=1" }, "issuer", "query"},
		{"tenant issuer with empty query", func(c *TrustConfig) { c.Issuer += "?" }, "issuer", "query"},
		{"tenant issuer with empty fragment", func(c *TrustConfig) { c.Issuer += "#" }, "issuer", "fragment"},
		{"no keys", func(c *TrustConfig) { c.Keys = nil }, "signing_keys", "missing"},
		{"skew of an hour", func(c *TrustConfig) { c.Skew = time.Hour }, "skew", "within"},
		{"negative skew", func(c *TrustConfig) { c.Skew = -1 }, "skew", "within"},

		{"no issuer", idpChange(func(i *TrustedIssuer) { i.Issuer = "" }), "trusted_issuers[0].issuer", "exact iss"},
		{"issuer with a space", idpChange(func(i *TrustedIssuer) { i.Issuer += " " }), "trusted_issuers[0].issuer", "exact iss"},
		{"issuer twice", func(c *TrustConfig) {
			again := c.TrustedIssuers[0]
			again.Principal.Prefix = "again/"
			c.TrustedIssuers = append(c.TrustedIssuers, again)
		}, "trusted_issuers[2].issuer", "twice"},
		{"the tenant itself", idpChange(func(i *TrustedIssuer) { i.Issuer = tenantIssuer }), "trusted_issuers[0].issuer", "this tenant itself"},
		{"no audiences", idpChange(func(i *TrustedIssuer) { i.Audiences = nil }), "trusted_issuers[0].audiences", "missing"},
		{"empty audience", idpChange(func(i *TrustedIssuer) { i.Audiences = []string{api, ""} }), "trusted_issuers[0].audiences", "empty"},
		{"tenant's audience for subject tokens", idpChange(func(i *TrustedIssuer) { i.Audiences = []string{tenantIssuer} }), "", ""},
		{"tenant's audience for subject tokens of workloads", func(c *TrustConfig) { c.TrustedIssuers[1].Audiences = []string{tenantIssuer} }, "trusted_issuers[1].audiences", "workloads"},
		{"actor audience for subject tokens of workloads", func(c *TrustConfig) {
			c.TrustedIssuers[1].Audiences = []string{delegation.ActorAudience(tenantIssuer)}
		}, "trusted_issuers[1].audiences", "workloads"},
		{"issuer's skew too large", idpChange(func(i *TrustedIssuer) { i.Skew = 61 * time.Second }), "trusted_issuers[0].skew", "within"},
		{"issuer's skew negative", idpChange(func(i *TrustedIssuer) { i.Skew = -time.Second }), "trusted_issuers[0].skew", "within"},
		{"negative lifetime", idpChange(func(i *TrustedIssuer) { i.MaxLifetime = -1 }), "trusted_issuers[0].max_lifetime", "positive"},
		{"no principal type", idpChange(func(i *TrustedIssuer) { i.Principal.Type = "" }), "trusted_issuers[0].principal", "type"},
		{"principal type with a colon", idpChange(func(i *TrustedIssuer) { i.Principal.Type = "user:x" }), "trusted_issuers[0].principal", "type"},
		{"principal prefix too long", idpChange(func(i *TrustedIssuer) { i.Principal.Prefix = strings.Repeat("x", 256) }), "trusted_issuers[0].principal", "at most 256 bytes"},
		{"imported act by another claim", idpChange(func(i *TrustedIssuer) { i.ImportAct = &Mapping{Type: "svc", Claim: "azp"} }), "trusted_issuers[0].import_act.claim", "act.sub"},
		{"imported act without type", idpChange(func(i *TrustedIssuer) { i.ImportAct = &Mapping{} }), "trusted_issuers[0].import_act", "type"},
		{"malformed fixed scope", idpChange(func(i *TrustedIssuer) { i.RootGrants.Scopes = []string{"a b"} }), "trusted_issuers[0].root_grants.scopes", "scope token"},
		{"empty fixed audience", idpChange(func(i *TrustedIssuer) { i.RootGrants.Audiences = []string{""} }), "trusted_issuers[0].root_grants.audiences", "empty"},
		{"malformed fixed details", idpChange(func(i *TrustedIssuer) { i.RootGrants.Details = `{}` }), "trusted_issuers[0].root_grants.details", "array"},

		{"no algorithms", idpChange(func(i *TrustedIssuer) { i.Algorithms = nil }), "trusted_issuers[0].algorithms", "missing"},
		{"algorithm none", idpChange(func(i *TrustedIssuer) { i.Algorithms = []string{"none"} }), "trusted_issuers[0].algorithms", "not one of"},
		{"algorithm HS256", idpChange(func(i *TrustedIssuer) { i.Algorithms = []string{"HS256"} }), "trusted_issuers[0].algorithms", "not one of"},
		{"algorithm ES256K", idpChange(func(i *TrustedIssuer) { i.Algorithms = []string{"ES256K"} }), "trusted_issuers[0].algorithms", "not one of"},
		{"algorithm twice", idpChange(func(i *TrustedIssuer) { i.Algorithms = []string{"ES256", "ES256"} }), "trusted_issuers[0].algorithms", "twice"},

		{"no key source", idpChange(func(i *TrustedIssuer) { i.Keys = KeySource{} }), "trusted_issuers[0].keys", "exactly one"},
		{"two key sources", idpChange(func(i *TrustedIssuer) { i.Keys.Discovery = true }), "trusted_issuers[0].keys", "exactly one"},
		{"file that is not there", idpChange(func(i *TrustedIssuer) { i.Keys = KeySource{File: "/nonexistent/jwks.json"} }), "trusted_issuers[0].keys.file", "no such file"},
		{"discovery of what is no URL", func(c *TrustConfig) {
			c.TrustedIssuers[1].Issuer, c.TrustedIssuers[1].Keys = "spire", KeySource{Discovery: true}
		}, "trusted_issuers[1].keys.discovery", "absolute URL"},
		{"discovery by http", func(c *TrustConfig) {
			c.TrustedIssuers[1].Issuer, c.TrustedIssuers[1].Keys = "http://spire.example", KeySource{Discovery: true}
		}, "trusted_issuers[1].keys.discovery", "https"},
		{"jwks_url by http", idpChange(func(i *TrustedIssuer) { i.Keys = KeySource{JWKSURL: "http://idp.example/jwks"} }), "trusted_issuers[0].keys.jwks_url", "must be https"},
		{"jwks_url by http, even where loopback may", func(c *TrustConfig) {
			c.AllowInsecureLoopback, c.TrustedIssuers[0].Keys = true, KeySource{JWKSURL: "http://idp.example/jwks"}
		}, "trusted_issuers[0].keys.jwks_url", "must be https"},
		{"jwks_url by http to a name that begins like loopback", func(c *TrustConfig) {
			c.AllowInsecureLoopback, c.TrustedIssuers[0].Keys = true, KeySource{JWKSURL: "http://127.0.0.1.example/jwks"}
		}, "trusted_issuers[0].keys.jwks_url", "must be https"},
		{"jwks_url by http to loopback", func(c *TrustConfig) {
			c.AllowInsecureLoopback, c.TrustedIssuers[0].Keys = true, KeySource{JWKSURL: "http://[::1]:1/jwks"}
		}, "", ""},
		{"jwks_url with a password", idpChange(func(i *TrustedIssuer) { i.Keys = KeySource{JWKSURL: "https://u:p@idp.example/jwks"} }), "trusted_issuers[0].keys.jwks_url", "user information"},
		{"jwks_url of a file", idpChange(func(i *TrustedIssuer) { i.Keys = KeySource{JWKSURL: "file:///etc/passwd"} }), "trusted_issuers[0].keys.jwks_url", "absolute URL"},

		{"JWKS that is no JSON", idpChange(func(i *TrustedIssuer) { i.Keys = KeySource{JWKS: "keys"} }), "trusted_issuers[0].keys.jwks", "strict JSON"},
		{"JWKS with keys twice", idpChange(func(i *TrustedIssuer) { i.Keys = KeySource{JWKS: `{"keys":[],"keys":[]}`} }), "trusted_issuers[0].keys.jwks", "strict JSON"},
		{"JWKS without keys", idpChange(func(i *TrustedIssuer) { i.Keys = KeySource{JWKS: `{"Keys":[]}`} }), "trusted_issuers[0].keys.jwks", "strict JSON"},
		{"JWKS that is empty", idpChange(func(i *TrustedIssuer) { i.Keys = KeySource{JWKS: `{"keys":[]}`} }), "trusted_issuers[0].keys.jwks", "have 0"},
		{"private key", idpChange(func(i *TrustedIssuer) { i.Keys = set(es.jwk(t, nil), secret) }), "trusted_issuers[0].keys.jwks", "keys[1]: holds a private"},
		{"shared key", idpChange(func(i *TrustedIssuer) {
			i.Keys = set(map[string]any{"kty": "oct", "k": "AAAA", "alg": "ES256"})
		}), "trusted_issuers[0].keys.jwks", "keys[0]: holds a private or a shared key"},
		{"key of another algorithm", idpChange(func(i *TrustedIssuer) { i.Keys = set(rs.jwk(t, nil)) }), "trusted_issuers[0].keys.jwks", "fits 0"},
		{"key whose alg differs", idpChange(func(i *TrustedIssuer) { i.Keys = set(es.jwk(t, map[string]any{"alg": "ES384"})) }), "trusted_issuers[0].keys.jwks", "fits 0"},
		{"key without alg", idpChange(func(i *TrustedIssuer) { i.Keys = set(es.jwk(t, map[string]any{"alg": nil})) }), "", ""},
		{"RSA key without alg where two fit", idpChange(func(i *TrustedIssuer) {
			i.Algorithms, i.Keys = []string{"RS256", "PS256"}, set(rs.jwk(t, map[string]any{"alg": nil}))
		}), "trusted_issuers[0].keys.jwks", "fits 2"},
		{"RSA key with alg where two fit", idpChange(func(i *TrustedIssuer) {
			i.Algorithms, i.Keys = []string{"RS256", "PS256"}, set(rs.jwk(t, nil))
		}), "", ""},
		{"encryption key alone", idpChange(func(i *TrustedIssuer) { i.Keys = set(es.jwk(t, map[string]any{"use": "enc"})) }), "trusted_issuers[0].keys.jwks", "have 0"},
		{"encryption key beside", idpChange(func(i *TrustedIssuer) {
			i.Keys = set(es.jwk(t, nil), rs.jwk(t, map[string]any{"use": "enc", "alg": "RSA-OAEP"}))
		}), "", ""},
		{"key_ops without verify", idpChange(func(i *TrustedIssuer) { i.Keys = set(es.jwk(t, map[string]any{"key_ops": []string{"sign"}})) }), "trusted_issuers[0].keys.jwks", "have 0"},
		{"two keys of one kid", idpChange(func(i *TrustedIssuer) {
			i.Keys = set(es.jwk(t, nil), newTestKey(t, "ES256", "k").jwk(t, nil))
		}), "trusted_issuers[0].keys.jwks", "several keys have one kid"},
		{"point off its curve", idpChange(func(i *TrustedIssuer) { i.Keys = set(es.jwk(t, map[string]any{"y": es.jwk(t, nil)["x"]})) }), "trusted_issuers[0].keys.jwks", "have 0"},
		{"RSA key of 1024 bits", idpChange(func(i *TrustedIssuer) {
			i.Algorithms, i.Keys = []string{"RS256"}, set(map[string]any{"kty": "RSA", "alg": "RS256", "e": "AQAB", "n": "_" + strings.Repeat("w", 170)})
		}), "trusted_issuers[0].keys.jwks", "fits 0"},
		{"RSA key with exponent 1", idpChange(func(i *TrustedIssuer) {
			i.Algorithms, i.Keys = []string{"RS256"}, set(rs.jwk(t, map[string]any{"e": "AQ"}))
		}), "trusted_issuers[0].keys.jwks", "fits 0"},
		{"Ed25519 key cut short", idpChange(func(i *TrustedIssuer) {
			i.Algorithms, i.Keys = []string{"EdDSA"}, set(map[string]any{"kty": "OKP", "crv": "Ed25519", "x": "AAAA"})
		}), "trusted_issuers[0].keys.jwks", "have 0"},
		{"X25519 key", idpChange(func(i *TrustedIssuer) {
			i.Algorithms, i.Keys = []string{"EdDSA"}, set(map[string]any{"kty": "OKP", "crv": "X25519", "x": strings.Repeat("A", 43)})
		}), "trusted_issuers[0].keys.jwks", "have 0"},

		{"client id that is no principal", func(c *TrustConfig) { c.Clients[0].ID = "planner" }, "clients[0].id", "must be type:id"},
		{"client twice", func(c *TrustConfig) { c.Clients = append(c.Clients, c.Clients[0]) }, "clients[1].id", "twice"},
		{"client with another's key", func(c *TrustConfig) {
			c.Clients = append(c.Clients, c.Clients[0])
			c.Clients[1].ID = "agent:writer"
		}, "clients[1].keys", "a key of client agent:planner"},
		{"client that is an issuer", func(c *TrustConfig) { c.TrustedIssuers[0].Issuer = "agent:planner" }, "clients[0].id", "twice"},
		{"client whose keys are fetched", func(c *TrustConfig) { c.Clients[0].Keys = KeySource{JWKSURL: "https://planner.example/jwks"} }, "clients[0].keys", "never fetched"},
		{"client by discovery", func(c *TrustConfig) { c.Clients[0].Keys = KeySource{Discovery: true} }, "clients[0].keys", "never fetched"},
		{"client without algorithms", func(c *TrustConfig) { c.Clients[0].Algorithms = nil }, "clients[0].algorithms", "missing"},

		// Invariant I7: no two sources of one principal.
		{"two issuers of one type", func(c *TrustConfig) { c.TrustedIssuers[1].Principal = Mapping{Type: "user"} }, "trusted_issuers[1].principal", "same principals as trusted_issuers[0].principal"},
		{"a prefix inside no prefix", func(c *TrustConfig) { c.TrustedIssuers[1].Principal = Mapping{Type: "user", Prefix: "x"} }, "trusted_issuers[1].principal", "same principals"},
		{"a prefix inside a prefix", func(c *TrustConfig) {
			c.TrustedIssuers[0].Principal = Mapping{Type: "user", Prefix: "corp/eu/"}
			c.TrustedIssuers[1].Principal = Mapping{Type: "user", Prefix: "corp/"}
		}, "trusted_issuers[1].principal", "same principals"},
		{"prefixes apart", func(c *TrustConfig) {
			c.TrustedIssuers[0].Principal = Mapping{Type: "user", Prefix: "a/"}
			c.TrustedIssuers[1].Principal = Mapping{Type: "user", Prefix: "b/"}
		}, "", ""},
		{"one type is the other's beginning", func(c *TrustConfig) { c.TrustedIssuers[1].Principal = Mapping{Type: "users"} }, "", ""},
		{"shared on one side", func(c *TrustConfig) {
			c.TrustedIssuers[1].Principal, c.TrustedIssuers[1].SharedPrincipals = Mapping{Type: "user"}, true
		}, "trusted_issuers[1].principal", "shared_principals on both"},
		{"shared on both sides", func(c *TrustConfig) {
			c.TrustedIssuers[1].Principal, c.TrustedIssuers[1].SharedPrincipals = Mapping{Type: "user"}, true
			c.TrustedIssuers[0].SharedPrincipals = true
		}, "", ""},
		{"client inside an issuer's range", func(c *TrustConfig) { c.Clients[0].ID = "agent:spire/planner" }, "clients[0].id", "same principals as trusted_issuers[1].principal"},
		{"client inside an issuer's range, shared", func(c *TrustConfig) {
			c.Clients[0].ID, c.Clients[0].SharedPrincipals, c.TrustedIssuers[1].SharedPrincipals = "agent:spire/planner", true, true
		}, "", ""},
		{"imported actors inside another's range", idpChange(func(i *TrustedIssuer) { i.ImportAct = &Mapping{Type: "agent"} }), "trusted_issuers[1].principal", "same principals as trusted_issuers[0].import_act"},
		{"imported actors are the issuer's own subjects", idpChange(func(i *TrustedIssuer) { i.ImportAct = &Mapping{Type: "user"} }), "", ""},
		{"imported actors beside subjects by another claim", idpChange(func(i *TrustedIssuer) {
			i.Principal.Claim, i.ImportAct = "email", &Mapping{Type: "user"}
		}), "trusted_issuers[0].import_act", "same principals"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			config := newWorld(t).config
			config.TrustedIssuers = append([]TrustedIssuer(nil), config.TrustedIssuers...)
			config.Clients = append([]Client(nil), config.Clients...)
			row.change(&config)
			trust, err := NewTrust(config)
			if row.field == "" {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			refusal, ok := errors.AsType[*delegation.Error](err)
			if !ok || trust != nil {
				t.Fatalf("got %v and %v, want a refusal", trust, err)
			}
			if refusal.Field != row.field || !strings.Contains(refusal.Description, row.words) {
				t.Errorf("refused with %q, want field %s and words %q", refusal, row.field, row.words)
			}
		})
	}
}

// The rule is complete: configurations that pass it never make one principal of two identities. The
// control is the rule switched off: then the same search finds such a pair.
func TestPassingConfigurationsKeepPrincipalsApart(t *testing.T) {
	type source struct {
		mapping Mapping
		realm   realm
	}
	part := rapid.StringOfN(rapid.SampledFrom([]rune("a/:%é")), 0, 3, -1)
	draw := func(rt *rapid.T) []source {
		var sources []source
		for n := range 2 {
			m := Mapping{Type: rapid.SampledFrom([]string{"user", "agent"}).Draw(rt, "type"), Prefix: part.Draw(rt, "prefix")}
			r, err := m.realm("", string(rune('a'+n)), false)
			if err != nil {
				rt.Fatal(err)
			}
			sources = append(sources, source{m, r})
		}
		return sources
	}
	collide := func(rt *rapid.T, sources []source) bool {
		seen := map[delegation.Principal]int{}
		for range 20 {
			n := rapid.IntRange(0, 1).Draw(rt, "issuer")
			id := part.Draw(rt, "id")
			if id == "" {
				continue
			}
			p, err := sources[n].mapping.principal(id)
			if err != nil {
				rt.Fatal(err)
			}
			if before, taken := seen[p]; taken && before != n {
				return true
			}
			seen[p] = n
		}
		return false
	}
	found := false
	rapid.Check(t, func(rt *rapid.T) {
		sources := draw(rt)
		passes := checkDisjoint([]realm{sources[0].realm, sources[1].realm}) == nil
		if collides := collide(rt, sources); collides && passes {
			rt.Fatalf("%+v and %+v yield one principal", sources[0].mapping, sources[1].mapping)
		} else if collides {
			found = true
		}
	})
	if !found {
		t.Error("the search finds no collision even where the rule refuses: it proves nothing")
	}
}

func TestPrincipalsOfOneIssuerAreInjective(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := Mapping{Type: "user", Prefix: rapid.StringN(0, 5, 20).Draw(rt, "prefix")}
		id := rapid.StringN(1, 10, 50)
		a, b := id.Draw(rt, "a"), id.Draw(rt, "b")
		pa, errA := m.principal(a)
		pb, errB := m.principal(b)
		if errA != nil || errB != nil {
			rt.Fatal(errA, errB)
		}
		if (a == b) != (pa == pb) {
			rt.Fatalf("%q and %q give %q and %q", a, b, pa, pb)
		}
	})
}

func TestKeysFromFile(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "jwks.json")
	write := func(content string) {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(jwks(t, w.agent))
	config := w.config
	config.Clients = []Client{{ID: "agent:planner", Keys: KeySource{File: path}, Algorithms: []string{"ES256"}}}
	trust, err := NewTrust(config)
	if err != nil {
		t.Fatal(err)
	}
	assertion := func() string { return w.agent.sign(t, "JWT", w.assertionClaims()) }
	if _, err := trust.Caller(t.Context(), assertion()); err != nil {
		t.Fatal(err)
	}

	// A key that is removed from the file is refused within a minute, even if nothing runs in the
	// background.
	next := newTestKey(t, "ES256", "agent-2")
	write(jwks(t, next))
	w.clock.advance(time.Minute)
	_, err = trust.Caller(t.Context(), assertion())
	wantUnauthenticated(t, err, "its key is not")
	if _, err := trust.Caller(t.Context(), next.sign(t, "JWT", w.assertionClaims())); err != nil {
		t.Error(err)
	}

	// A broken file changes nothing, for an hour.
	write("{")
	w.clock.advance(59 * time.Minute)
	if _, err := trust.Caller(t.Context(), next.sign(t, "JWT", w.assertionClaims())); err != nil {
		t.Errorf("the last good keys do not serve: %v", errors.Unwrap(err))
	}
	if thumbprint, err := thumbprintOf(next.private.Public()); err != nil || !trust.Registered("agent:planner", thumbprint) {
		t.Error("the key is not registered any more")
	}
	w.clock.advance(time.Minute)
	_, err = trust.Caller(t.Context(), next.sign(t, "JWT", w.assertionClaims()))
	wantUnauthenticated(t, err, "not available")
	if thumbprint, err := thumbprintOf(next.private.Public()); err != nil || trust.Registered("agent:planner", thumbprint) {
		t.Error("a key too old to be believed is still registered")
	}

	write(strings.Repeat(" ", maxDocumentBytes+1))
	if _, err := NewTrust(config); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("a file above the bound: %v", err)
	}
}
