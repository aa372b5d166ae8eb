package token

import (
	"errors"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
)

func TestClientAssertionRules(t *testing.T) {
	rows := []struct {
		name   string
		typ    string
		claims func(w *world) object
		header object
		cause  string // "" means accepted
	}{
		{name: "as RFC 7523 wants it"},
		{name: "no typ", typ: "-"},
		{name: "typ client-authentication+jwt", typ: "client-authentication+jwt"},
		{name: "typ application/jwt", typ: "application/jwt"},
		{name: "typ at+jwt", typ: "at+jwt", cause: "its typ is not"},
		{name: "typ dpop+jwt", typ: "dpop+jwt", cause: "its typ is not"},
		{name: "aud in a list of one", claims: func(*world) object { return object{"aud": []string{tenantIssuer}} }, cause: "its aud is not exactly"},
		{name: "aud and another", claims: func(*world) object { return object{"aud": []string{tenantIssuer, api}} }, cause: "its aud is not exactly"},
		{name: "aud token endpoint", claims: func(*world) object { return object{"aud": tenantIssuer + "/oauth2/token"} }, cause: "its aud is not exactly"},
		{name: "aud with a slash more", claims: func(*world) object { return object{"aud": tenantIssuer + "/"} }, cause: "its aud is not exactly"},
		{name: "aud of the default tenant", claims: func(*world) object { return object{"aud": "https://deputy.example"} }, cause: "its aud is not exactly"},
		{name: "no aud", claims: func(*world) object { return object{"aud": nil} }, cause: "its aud is not exactly"},
		{name: "unknown client", claims: func(*world) object { return object{"iss": "agent:other", "sub": "agent:other"} }, cause: "no such client"},
		{name: "sub of another", claims: func(*world) object { return object{"sub": "agent:other"} }, cause: "its sub is not its iss"},
		{name: "no sub", claims: func(*world) object { return object{"sub": nil} }, cause: "its sub is not its iss"},
		{name: "no iss", claims: func(*world) object { return object{"iss": nil} }, cause: "iss is missing"},
		{name: "no jti", claims: func(*world) object { return object{"jti": nil} }, cause: "it has no jti"},
		{name: "empty jti", claims: func(*world) object { return object{"jti": ""} }, cause: "jti is not a string with content"},
		{name: "no exp", claims: func(*world) object { return object{"exp": nil} }, cause: "exp is missing"},
		{name: "exp now", claims: func(w *world) object { return object{"exp": w.seconds(0), "iat": w.seconds(-time.Minute)} }, cause: "it has expired"},
		{name: "exp in five minutes", claims: func(w *world) object { return object{"exp": w.seconds(5 * time.Minute)} }},
		{name: "exp in five minutes by a fast clock", claims: func(w *world) object { return object{"exp": w.seconds(5*time.Minute + 5*time.Second)} }},
		{name: "exp later", claims: func(w *world) object { return object{"exp": w.seconds(5*time.Minute + 6*time.Second)} }, cause: "it expires too late"},
		{name: "nbf in the future", claims: func(w *world) object { return object{"nbf": w.seconds(6 * time.Second)} }, cause: "not valid yet"},
		{name: "no iat", claims: func(*world) object { return object{"iat": nil} }},
		{name: "iat in the future", claims: func(w *world) object { return object{"iat": w.seconds(6 * time.Second)} }, cause: "issued in the future"},
		{name: "iat long ago", claims: func(w *world) object { return object{"iat": w.seconds(-time.Hour)} }, cause: "issued too long ago"},
		{name: "unknown kid", header: object{"kid": "agent-2"}, cause: "its key is not"},
		{name: "no kid", header: object{"kid": nil}},
		{name: "another algorithm", header: object{"alg": "RS256"}, cause: "its algorithm is not the one of its key"},
		{name: "alg none", header: object{"alg": "none"}, cause: "not one that signs with a key pair"},
		{name: "alg HS256", header: object{"alg": "HS256"}, cause: "not one that signs with a key pair"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t)
			claims := w.assertionClaims()
			if row.claims != nil {
				claims = claims.with(row.claims(w))
			}
			var header []object
			if row.header != nil {
				header = append(header, row.header)
			}
			assertion := w.agent.sign(t, orDefault(row.typ, "JWT"), claims, header...)
			for name, authenticate := range map[string]func() (Caller, error){
				"Caller": func() (Caller, error) { return w.Caller(t.Context(), assertion) },
				"Bearer": func() (Caller, error) { return w.Bearer(t.Context(), assertion) },
			} {
				c, err := authenticate()
				if row.cause != "" {
					wantUnauthenticated(t, err, row.cause)
					continue
				}
				if err != nil {
					t.Fatalf("%s: %v (%v)", name, err, errors.Unwrap(err))
				}
				if !w.Registered(c.Principal, c.Key) || c.Principal != "agent:planner" || c.Method != MethodPrivateKeyJWT {
					t.Errorf("%s: caller %+v", name, c)
				}
				exp, _ := claims["exp"].(int64)
				made := time.Unix(exp, 0).Add(-maxAssertionAge - w.skew)
				if iat, dated := claims["iat"].(int64); dated {
					made = time.Unix(iat, 0)
				}
				if c.Use == nil || *c.Use != (Use{Issuer: "agent:planner", Key: c.Key, ID: "assertion-1", Made: made, Until: time.Unix(exp, 0)}) {
					t.Errorf("%s: use %+v", name, c.Use)
				}
			}
		})
	}
}

// wantUnauthenticated requires the one answer, with the cause.
func wantUnauthenticated(tb testing.TB, err error, cause string) {
	tb.Helper()
	want := unauthenticated(nil)
	if err == nil || err.Error() != want.Error() {
		tb.Fatalf("error %v, want always %v", err, want)
	}
	refusal, _ := errors.AsType[*delegation.Error](err)
	if refusal.Field != "" || refusal.Metadata != nil {
		tb.Errorf("the answer tells more than that it failed: %+v", refusal)
	}
	wantCause(tb, err, cause)
}

func TestWorkloadAsBearer(t *testing.T) {
	w := newWorld(t)
	c, err := w.Bearer(t.Context(), w.spire.sign(t, "JWT", w.workloadClaims()))
	if err != nil || c != (Caller{Principal: "agent:spire/spiffe%3A//acme/researcher", Method: MethodWorkloadJWT}) {
		t.Errorf("%+v, %v", c, err)
	}
	_, err = w.Caller(t.Context(), w.spire.sign(t, "JWT", w.workloadClaims()))
	wantUnauthenticated(t, err, "no such client")
	_, err = w.Bearer(t.Context(), w.spire.sign(t, "JWT", w.workloadClaims().with(object{"exp": w.seconds(0)})))
	wantUnauthenticated(t, err, "it has expired")
	_, err = w.Bearer(t.Context(), w.idp.sign(t, "at+jwt", w.rootClaims().with(object{"aud": tenantIssuer})))
	wantUnauthenticated(t, err, "no such client")
	_, err = w.Bearer(t.Context(), w.own(t, func(c *delegation.Claims) { c.Audience = []string{tenantIssuer} }))
	wantUnauthenticated(t, err, "no such client")
	_, err = w.Bearer(t.Context(), "")
	wantUnauthenticated(t, err, "compact serialization")
}

// An assertion costs one verification of a signature, whatever client it names, so the time of the
// answer does not show which clients exist.
func TestUnknownClientsCostTheSameWork(t *testing.T) {
	for _, alg := range []string{"ES256", "ES384", "EdDSA", "RS256"} {
		w := newWorld(t, func(c *TrustConfig) {
			c.Clients[0].Algorithms = []string{"ES256"}
		})
		checked := w.counted()
		stranger := newTestKey(t, alg, "agent-1")
		for _, claims := range []object{w.assertionClaims(), w.assertionClaims().with(object{"iss": "agent:nobody"})} {
			for _, kid := range []string{"agent-1", "agent-2"} {
				_, err := w.Caller(t.Context(), stranger.sign(t, "JWT", claims, object{"kid": kid}))
				if reasonOf(t, err) != delegation.ClientUnauthenticated {
					t.Fatalf("%s: a stranger's key authenticates: %v", alg, err)
				}
			}
		}
		if n, alone := checked.of(alg); n != 4 || !alone {
			t.Errorf("%s: four assertions cost %v verifications", alg, checked.by)
		}
	}
}

func TestRegisteredKeys(t *testing.T) {
	w := newWorld(t)
	own := w.clients["agent:planner"].keys.current.Load().byID["agent-1"].thumbprint
	foreign := w.issuers[spireIssuer].keys.current.Load().byID["spire-1"].thumbprint
	for _, row := range []struct {
		principal  delegation.Principal
		thumbprint string
		want       bool
	}{
		{"agent:planner", own, true},
		{"agent:planner", foreign, false},
		{"agent:planner", "", false},
		{"agent:planner", "agent-1", false},
		{"agent:other", own, false},
		{"", own, false},
		{"agent:spire/x", foreign, false},
	} {
		if got := w.Registered(row.principal, row.thumbprint); got != row.want {
			t.Errorf("Registered(%q, %q) = %t", row.principal, row.thumbprint, got)
		}
	}
}

// An actor token also costs one verification and gets one answer, whether its issuer is unknown,
// the issuer has no such key, its algorithm is another, or the signature is wrong, and whatever
// else is wrong.
func TestUnknownActorsCostTheSameWork(t *testing.T) {
	for _, alg := range []string{"ES256", "ES384", "EdDSA", "RS256"} {
		w := newWorld(t, func(c *TrustConfig) {
			c.Clients[0].Algorithms = []string{"ES256"}
		})
		checked := w.counted()
		stranger := newTestKey(t, alg, "agent-1")
		claims, asked := w.assertionClaims().with(object{"aud": delegation.ActorAudience(tenantIssuer)}), 0
		for _, who := range []object{claims, claims.with(object{"iss": "agent:nobody"}), claims.with(object{"iss": "https://nobody.example"})} {
			for _, kid := range []string{"agent-1", "agent-2"} {
				for _, typ := range []string{"JWT", "at+jwt"} {
					for _, wrong := range []object{nil, {"aud": "elsewhere"}, {"exp": 1}} {
						_, err := w.Actor(t.Context(), stranger.sign(t, typ, who.with(wrong), object{"kid": kid}), jwtType)
						if asked++; err == nil || err.Error() != NamesNobody().Error() {
							t.Fatalf("%s: %v", alg, err)
						}
					}
				}
			}
		}
		if n, alone := checked.of(alg); n != asked || !alone {
			t.Errorf("%s: %d actor tokens cost %v verifications", alg, asked, checked.by)
		}
	}
}
