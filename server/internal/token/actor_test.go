package token

import (
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
)

// aThumbprint has the form of an RFC 7638 thumbprint.
const aThumbprint = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"

func TestWorkloadTokenRules(t *testing.T) {
	actorAudience := delegation.ActorAudience(tenantIssuer)
	rows := []struct {
		name      string
		config    func(*TrustedIssuer)
		tokenType string // default jwt
		typ       string // default JWT; "-" for none
		claims    func(w *world) object
		header    object
		reason    delegation.Reason
		words     string
		want      Actor
		bound     delegation.Confirmation
	}{
		{name: "caller audience authenticates", want: Actor{Authenticates: true}},
		{name: "caller audience as a single string", claims: func(*world) object { return object{"aud": tenantIssuer} }, want: Actor{Authenticates: true}},
		{name: "actor audience only names", claims: func(*world) object { return object{"aud": actorAudience} }},
		{name: "both audiences", claims: func(*world) object { return object{"aud": []string{tenantIssuer, actorAudience}} }, reason: delegation.ActorTokenInvalid, words: "its aud is not exactly"},
		{name: "caller audience beside another", claims: func(*world) object { return object{"aud": []string{tenantIssuer, api}} }, reason: delegation.ActorTokenInvalid, words: "its aud is not exactly"},
		{name: "actor audience beside another", claims: func(*world) object { return object{"aud": []string{api, actorAudience}} }, reason: delegation.ActorTokenInvalid, words: "its aud is not exactly"},
		{name: "caller audience twice", claims: func(*world) object { return object{"aud": []string{tenantIssuer, tenantIssuer}} }, reason: delegation.ActorTokenInvalid, words: "its aud is not exactly"},
		{name: "another audience", claims: func(*world) object { return object{"aud": api} }, reason: delegation.ActorTokenInvalid, words: "its aud is not exactly"},
		{name: "another tenant", claims: func(*world) object { return object{"aud": "https://deputy.example/t/other"} }, reason: delegation.ActorTokenInvalid, words: "its aud is not exactly"},
		{name: "caller audience with a slash more", claims: func(*world) object { return object{"aud": tenantIssuer + "/"} }, reason: delegation.ActorTokenInvalid, words: "its aud is not exactly"},
		{name: "no audience", claims: func(*world) object { return object{"aud": nil} }, reason: delegation.ActorTokenInvalid, words: "its aud is not exactly"},

		{name: "no typ", typ: "-", want: Actor{Authenticates: true}},
		{name: "typ JOSE", typ: "JOSE", want: Actor{Authenticates: true}},
		{name: "typ at+jwt", typ: "at+jwt", want: Actor{Authenticates: true}},
		{name: "typ dpop+jwt", typ: "dpop+jwt", reason: delegation.ActorTokenInvalid, words: "its typ does not fit"},
		{name: "at+jwt as access token", typ: "at+jwt", tokenType: accessType, want: Actor{Authenticates: true}},
		{name: "typ JWT as access token", tokenType: accessType, reason: delegation.ActorTokenInvalid, words: "its typ does not fit"},
		{name: "typ JWT as ID token, not allowed", tokenType: idType, reason: delegation.ActorTokenInvalid, words: "its typ does not fit"},
		{name: "typ JWT as ID token, allowed", tokenType: idType, config: func(c *TrustedIssuer) { c.IDTokens = true }, want: Actor{Authenticates: true}},
		{name: "saml", tokenType: delegation.TokenTypeSAML1, reason: delegation.TokenTypeUnsupported, words: "actor_token_type"},

		{name: "issuer not for workloads", config: func(c *TrustedIssuer) { c.Workloads, c.Audiences = false, []string{api} }, reason: delegation.ActorTokenInvalid, words: "names no actor"},
		{name: "unknown issuer", claims: func(*world) object { return object{"iss": "https://other.example"} }, reason: delegation.ActorTokenInvalid, words: "names no actor"},
		{name: "expired", claims: func(w *world) object { return object{"exp": w.seconds(0)} }, reason: delegation.ActorTokenInvalid, words: "it has expired"},
		{name: "not yet valid", claims: func(w *world) object { return object{"nbf": w.seconds(time.Minute)} }, reason: delegation.ActorTokenInvalid, words: "not valid yet"},
		{name: "unknown kid", header: object{"kid": "spire-2"}, reason: delegation.ActorTokenInvalid, words: "names no actor"},
		{name: "no sub", claims: func(*world) object { return object{"sub": nil} }, reason: delegation.ActorTokenInvalid, words: "names its principal"},
		{name: "act", claims: func(*world) object { return object{"act": object{"sub": "x"}} }, reason: delegation.ActorTokenInvalid, words: "about a delegation"},

		{name: "names a key", claims: func(*world) object { return object{"aud": actorAudience, "cnf": object{"jkt": aThumbprint}} }, bound: delegation.Confirmation{JKT: aThumbprint}},
		{name: "authenticates who proves a key", claims: func(*world) object { return object{"cnf": object{"jkt": aThumbprint}} }, bound: delegation.Confirmation{JKT: aThumbprint}, want: Actor{Authenticates: true}},
		{name: "names a certificate", claims: func(*world) object {
			return object{"aud": actorAudience, "cnf": object{"x5t#S256": aThumbprint}}
		}, bound: delegation.Confirmation{X5T: aThumbprint}},
		{name: "names a key and more", claims: func(*world) object {
			return object{"aud": actorAudience, "cnf": object{"jkt": aThumbprint, "x5t#S256": aThumbprint}}
		}, reason: delegation.ActorTokenInvalid, words: "its cnf holds"},
		{name: "names no thumbprint", claims: func(*world) object { return object{"aud": actorAudience, "cnf": object{"jkt": "x"}} }, reason: delegation.ActorTokenInvalid, words: "its cnf holds"},
		{name: "empty cnf", claims: func(*world) object { return object{"aud": actorAudience, "cnf": object{}} }, reason: delegation.ActorTokenInvalid, words: "its cnf holds"},
		{name: "cnf null", claims: func(*world) object { return object{"aud": actorAudience, "cnf": explicitNull{}} }, reason: delegation.ActorTokenInvalid, words: "its cnf holds"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, func(c *TrustConfig) {
				if row.config != nil {
					row.config(&c.TrustedIssuers[1])
				}
			})
			claims := w.workloadClaims()
			if row.claims != nil {
				claims = claims.with(row.claims(w))
			}
			var header []object
			if row.header != nil {
				header = append(header, row.header)
			}
			a, err := w.Actor(t.Context(), w.spire.sign(t, orDefault(row.typ, "JWT"), claims, header...), orDefault(row.tokenType, jwtType))
			wantReason(t, err, row.reason, row.words)
			want := row.want
			if row.reason == "" {
				want.Principal, want.Method = "agent:spire/spiffe%3A//acme/researcher", MethodWorkloadJWT
			}
			wantBinding(t, &a.Confirmation, row.bound)
			if a != want {
				t.Errorf("actor %+v, want %+v", a, want)
			}
		})
	}
}

// wantBinding compares what a token is bound to, and removes it.
func wantBinding(t *testing.T, got **delegation.Confirmation, want delegation.Confirmation) {
	t.Helper()
	bound := delegation.Confirmation{}
	if *got != nil {
		bound = **got
	}
	if bound != want || (*got != nil) != (want.Key() != "") {
		t.Errorf("bound to %+v, want %+v", bound, want)
	}
	*got = nil
}

func TestSelfNamedActorRules(t *testing.T) {
	rows := []struct {
		name      string
		tokenType string
		typ       string
		claims    func(w *world) object
		reason    delegation.Reason
		words     string
		bound     delegation.Confirmation
	}{
		{name: "names its client"},
		{name: "no typ", typ: "-"},
		{name: "names a key", claims: func(*world) object { return object{"cnf": object{"jkt": aThumbprint}} }, bound: delegation.Confirmation{JKT: aThumbprint}},
		{name: "at+jwt", typ: "at+jwt", reason: delegation.ActorTokenInvalid, words: "its typ is not JWT"},
		{name: "a client assertion's typ", typ: "client-authentication+jwt", reason: delegation.ActorTokenInvalid, words: "its typ is not JWT"},
		{name: "as access token", tokenType: accessType, reason: delegation.ActorTokenInvalid, words: "of token type jwt"},
		{name: "as ID token", tokenType: idType, reason: delegation.ActorTokenInvalid, words: "of token type jwt"},
		{name: "caller audience", claims: func(*world) object { return object{"aud": tenantIssuer} }, reason: delegation.ActorTokenInvalid, words: "its aud is not exactly"},
		{name: "both audiences", claims: func(*world) object {
			return object{"aud": []string{delegation.ActorAudience(tenantIssuer), tenantIssuer}}
		}, reason: delegation.ActorTokenInvalid, words: "its aud is not exactly"},
		{name: "about somebody else", claims: func(*world) object { return object{"sub": "agent:other"} }, reason: delegation.ActorTokenInvalid, words: "its sub is not the client"},
		{name: "without sub", claims: func(*world) object { return object{"sub": nil} }, reason: delegation.ActorTokenInvalid, words: "its sub is not the client"},
		{name: "for an hour", claims: func(w *world) object { return object{"exp": w.seconds(time.Hour)} }},
		{name: "for ever", claims: func(w *world) object { return object{"exp": w.seconds(24 * time.Hour)} }, reason: delegation.ActorTokenInvalid, words: "expires too late"},
		{name: "expired", claims: func(w *world) object { return object{"iat": nil, "exp": w.seconds(0)} }, reason: delegation.ActorTokenInvalid, words: "it has expired"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t)
			claims := w.assertionClaims().with(object{"aud": delegation.ActorAudience(tenantIssuer), "jti": nil})
			if row.claims != nil {
				claims = claims.with(row.claims(w))
			}
			a, err := w.Actor(t.Context(), w.agent.sign(t, orDefault(row.typ, "JWT"), claims), orDefault(row.tokenType, jwtType))
			wantReason(t, err, row.reason, row.words)
			want := Actor{}
			if row.reason == "" {
				want = Actor{Principal: "agent:planner", Method: MethodActorJWT, Signer: a.Signer}
				if !w.Registered("agent:planner", a.Signer) {
					t.Errorf("%s signed it", a.Signer)
				}
			}
			wantBinding(t, &a.Confirmation, row.bound)
			if a != want {
				t.Errorf("actor %+v, want %+v", a, want)
			}
		})
	}
}

func TestDerivedTokenNamesNoActor(t *testing.T) {
	w := newWorld(t)
	for _, audience := range []string{tenantIssuer, delegation.ActorAudience(tenantIssuer), api} {
		derived := w.own(t, func(c *delegation.Claims) { c.Audience = []string{audience} })
		for _, tokenType := range []string{accessType, jwtType} {
			_, err := w.Actor(t.Context(), derived, tokenType)
			wantReason(t, err, delegation.ActorTokenInvalid, "a derived token names no actor")
		}
	}
}

// A credential that only names an actor must authenticate through no endpoint.
func TestActorAudienceAuthenticatesNobody(t *testing.T) {
	w := newWorld(t)
	naming := object{"aud": delegation.ActorAudience(tenantIssuer)}
	for name, token := range map[string]string{
		"workload": w.spire.sign(t, "JWT", w.workloadClaims().with(naming)),
		"client":   w.agent.sign(t, "JWT", w.assertionClaims().with(naming)),
	} {
		if _, err := w.Caller(t.Context(), token); reasonOf(t, err) != delegation.ClientUnauthenticated {
			t.Errorf("%s: Caller says %v", name, err)
		}
		if _, err := w.Bearer(t.Context(), token); reasonOf(t, err) != delegation.ClientUnauthenticated {
			t.Errorf("%s: Bearer says %v", name, err)
		}
		if a, err := w.Actor(t.Context(), token, jwtType); err != nil || a.Authenticates {
			t.Errorf("%s: Actor says %+v, %v", name, a, err)
		}
	}
}
