package token

import (
	"slices"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
)

const (
	accessType = delegation.TokenTypeAccessToken
	idType     = delegation.TokenTypeIDToken
	jwtType    = delegation.TokenTypeJWT
)

// idpChange changes the identity provider's configuration.
func idpChange(change func(*TrustedIssuer)) func(*TrustConfig) {
	return func(c *TrustConfig) { change(&c.TrustedIssuers[0]) }
}

func TestRootTokenGivesPrincipalCeilingAndIdentity(t *testing.T) {
	w := newWorld(t)
	root, err := w.root(t.Context(), w.idp.sign(t, "at+jwt", w.rootClaims()))
	if err != nil {
		t.Fatal(err)
	}
	if root.Principal != "user:alice" || root.Issuer != idpIssuer || root.ID != "root-1" || root.Digest != RootDigest(idpIssuer, "root-1") {
		t.Errorf("root is %+v", root)
	}
	if !root.IssuedAt.Equal(w.clock.now()) || !root.ExpiresAt.Equal(w.clock.now().Add(10*time.Minute)) {
		t.Errorf("root lives from %v to %v", root.IssuedAt, root.ExpiresAt)
	}
	if root.Scopes.String() != "calendar.read mail.send" || root.Audiences != nil || root.Details != nil || root.MayAct != nil || root.Actors != nil {
		t.Errorf("ceiling is %+v", root)
	}
}

func TestDerivedTokenGivesItsClaims(t *testing.T) {
	w := newWorld(t)
	for _, tokenType := range []string{accessType, jwtType} {
		s, err := w.Subject(t.Context(), w.own(t, nil), tokenType)
		if err != nil || s.Root != nil || s.Derived == nil {
			t.Fatalf("%+v, %v", s, err)
		}
		if s.Derived.Subject != "user:alice" || s.Derived.Act.Current() != "agent:researcher" {
			t.Errorf("claims are %+v", s.Derived)
		}
	}
	bound := w.own(t, func(c *delegation.Claims) {
		c.Confirmation = &delegation.Confirmation{JKT: "thumbprint"}
		c.Delegation.Hops = slices.Clone(c.Delegation.Hops)
		c.Delegation.Hops[1].Key = "thumbprint"
	})
	s, err := w.Subject(t.Context(), bound, accessType)
	if err != nil || s.Derived.Confirmation == nil || s.Derived.Confirmation.JKT != "thumbprint" {
		t.Errorf("a bound token loses its confirmation: %+v, %v", s.Derived, err)
	}
}

// Each row differs from an accepted token in one thing, so only that can be why it is refused.
func TestSubjectTokenRules(t *testing.T) {
	second := time.Second
	rows := []struct {
		name      string
		config    func(*TrustedIssuer)
		tokenType string // default access_token
		typ       string // default at+jwt; "-" for none
		claims    func(w *world) object
		header    object
		reason    delegation.Reason // "" means accepted
		words     string
	}{
		{name: "as issued"},

		{name: "token type saml2", tokenType: delegation.TokenTypeSAML2, reason: delegation.TokenTypeUnsupported, words: "subject_token_type"},
		{name: "token type refresh_token", tokenType: delegation.TokenTypeRefreshToken, reason: delegation.TokenTypeUnsupported},
		{name: "token type unknown", tokenType: "access_token", reason: delegation.TokenTypeUnsupported},
		{name: "token type empty", tokenType: "-", reason: delegation.TokenTypeUnsupported},

		{name: "typ JWT as access token", typ: "JWT", reason: delegation.SubjectTokenInvalid, words: "its typ does not fit"},
		{name: "typ JWT as access token, allowed", typ: "JWT", config: func(c *TrustedIssuer) { c.UntypedAccessTokens = true }},
		{name: "no typ as access token", typ: "-", reason: delegation.SubjectTokenInvalid, words: "its typ does not fit"},
		{name: "no typ as access token, allowed", typ: "-", config: func(c *TrustedIssuer) { c.UntypedAccessTokens = true }},
		{name: "application/at+JWT", typ: "application/AT+JWT"},
		{name: "at+jwt as ID token", tokenType: idType, reason: delegation.SubjectTokenInvalid, words: "its typ does not fit"},
		{name: "typ JWT as ID token", tokenType: idType, typ: "JWT"},
		{name: "no typ as ID token", tokenType: idType, typ: "-"},
		{name: "typ JWT as ID token, not allowed", tokenType: idType, typ: "JWT", config: func(c *TrustedIssuer) { c.IDTokens = false }, reason: delegation.SubjectTokenInvalid, words: "its typ does not fit"},
		{name: "at+jwt as jwt", tokenType: jwtType},
		{name: "typ JWT as jwt", tokenType: jwtType, typ: "JWT"},
		{name: "typ JWT as jwt where nothing untyped is allowed", tokenType: jwtType, typ: "JWT", config: func(c *TrustedIssuer) { c.IDTokens = false }, reason: delegation.SubjectTokenInvalid, words: "its typ does not fit"},
		{name: "another typ as jwt", tokenType: jwtType, typ: "logout+jwt", reason: delegation.SubjectTokenInvalid, words: "its typ does not fit"},
		{name: "a client assertion's typ", typ: "client-authentication+jwt", tokenType: jwtType, reason: delegation.SubjectTokenInvalid, words: "its typ does not fit"},

		{name: "unknown issuer", claims: func(w *world) object { return object{"iss": "https://other.example"} }, reason: delegation.SubjectTokenInvalid, words: "its issuer is not trusted here"},
		{name: "issuer with a slash more", claims: func(w *world) object { return object{"iss": idpIssuer + "/"} }, reason: delegation.SubjectTokenInvalid, words: "its issuer is not trusted here"},
		{name: "issuer in other case", claims: func(w *world) object { return object{"iss": strings.ToUpper(idpIssuer)} }, reason: delegation.SubjectTokenInvalid, words: "its issuer is not trusted here"},
		{name: "another trusted issuer's name", claims: func(w *world) object { return object{"iss": spireIssuer} }, typ: "JWT", tokenType: jwtType, reason: delegation.SubjectTokenInvalid, words: "its typ does not fit"},
		{name: "no issuer", claims: func(w *world) object { return object{"iss": nil} }, reason: delegation.SubjectTokenInvalid, words: "iss is missing"},
		{name: "unknown kid", header: object{"kid": "idp-2"}, reason: delegation.SubjectTokenInvalid, words: "its key is not one of its issuer's"},
		{name: "kid that is a path", header: object{"kid": "../../../../dev/null"}, reason: delegation.SubjectTokenInvalid, words: "its key is not one of its issuer's"},
		{name: "no kid, where there is one key", header: object{"kid": nil}},
		{name: "empty kid", header: object{"kid": ""}, reason: delegation.SubjectTokenInvalid, words: "kid is not a string with content"},
		{name: "another algorithm in the header", header: object{"alg": "ES384"}, reason: delegation.SubjectTokenInvalid, words: "its algorithm is not the one of its key"},
		{name: "algorithm in other case", header: object{"alg": "es256"}, reason: delegation.SubjectTokenInvalid, words: "its algorithm is not the one of its key"},

		{name: "no exp", claims: func(w *world) object { return object{"exp": nil} }, reason: delegation.SubjectTokenInvalid, words: "exp is missing"},
		{name: "exp now", claims: func(w *world) object { return object{"exp": w.seconds(0), "iat": w.seconds(-second)} }, reason: delegation.SubjectTokenInvalid, words: "it has expired"},
		{name: "exp in a second", claims: func(w *world) object { return object{"exp": w.seconds(second)} }},
		{name: "exp as text", claims: func(w *world) object { return object{"exp": "4102444800"} }, reason: delegation.SubjectTokenInvalid, words: "exp is not"},
		{name: "exp with fraction", claims: func(w *world) object { return object{"exp": float64(w.seconds(second)) + 0.5} }, reason: delegation.SubjectTokenInvalid, words: "exp is not"},
		{name: "Exp", claims: func(w *world) object { return object{"exp": nil, "Exp": w.seconds(second)} }, reason: delegation.SubjectTokenInvalid, words: "exp is missing"},
		{name: "nbf within the skew", claims: func(w *world) object { return object{"nbf": w.seconds(5 * second)} }},
		{name: "nbf beyond the skew", claims: func(w *world) object { return object{"nbf": w.seconds(6 * second)} }, reason: delegation.SubjectTokenInvalid, words: "it is not valid yet"},
		{name: "nbf beyond the default, within the issuer's skew", claims: func(w *world) object { return object{"nbf": w.seconds(60 * second)} }, config: func(c *TrustedIssuer) { c.Skew = time.Minute }},
		{name: "nbf beyond the issuer's skew", claims: func(w *world) object { return object{"nbf": w.seconds(61 * second)} }, config: func(c *TrustedIssuer) { c.Skew = time.Minute }, reason: delegation.SubjectTokenInvalid, words: "it is not valid yet"},
		{name: "iat within the skew", claims: func(w *world) object { return object{"iat": w.seconds(5 * second)} }},
		{name: "iat beyond the skew", claims: func(w *world) object { return object{"iat": w.seconds(6 * second)} }, reason: delegation.SubjectTokenInvalid, words: "it was issued in the future"},
		{name: "iat at exp", claims: func(w *world) object { return object{"iat": w.seconds(second), "exp": w.seconds(second)} }, reason: delegation.SubjectTokenInvalid, words: "it expired when it was issued"},

		{name: "no aud", claims: func(w *world) object { return object{"aud": nil} }, reason: delegation.SubjectTokenInvalid, words: "another audience"},
		{name: "empty list of aud", claims: func(w *world) object { return object{"aud": []string{}} }, reason: delegation.SubjectTokenInvalid, words: "another audience"},
		{name: "another aud", claims: func(w *world) object { return object{"aud": "https://other.example"} }, reason: delegation.SubjectTokenInvalid, words: "another audience"},
		{name: "aud that begins like ours", claims: func(w *world) object { return object{"aud": api + "/v2"} }, reason: delegation.SubjectTokenInvalid, words: "another audience"},
		{name: "one of several aud", claims: func(w *world) object { return object{"aud": []string{"https://other.example", api}} }},
		{name: "aud of numbers", claims: func(w *world) object { return object{"aud": []any{api, 1}} }, reason: delegation.SubjectTokenInvalid, words: "aud is neither"},

		{name: "life of the maximum", claims: func(w *world) object { return object{"exp": w.seconds(time.Hour)} }},
		{name: "life above the maximum", claims: func(w *world) object { return object{"exp": w.seconds(time.Hour + second)} }, reason: delegation.RootTooLong, words: "lives longer"},
		{name: "life above a configured maximum", config: func(c *TrustedIssuer) { c.MaxLifetime = time.Minute }, reason: delegation.RootTooLong, words: "lives longer"},
		{name: "no iat", claims: func(w *world) object { return object{"iat": nil} }, reason: delegation.RootTooLong, words: "has no time of issue"},

		{name: "act", claims: func(w *world) object { return object{"act": object{"sub": "svc"}} }, reason: delegation.ForeignActorChain, words: "not configured to hand in"},
		{name: "act null", claims: func(w *world) object { return object{"act": explicitNull{}} }, reason: delegation.ForeignActorChain, words: "not configured to hand in"},
		{name: "cnf jkt", claims: func(w *world) object { return object{"cnf": object{"jkt": aThumbprint}} }},
		{name: "cnf that is no thumbprint", claims: func(w *world) object { return object{"cnf": object{"jkt": "x"}} }, reason: delegation.SubjectTokenInvalid, words: "its cnf holds"},
		{name: "cnf of an unknown kind", claims: func(w *world) object { return object{"cnf": object{"kid": aThumbprint}} }, reason: delegation.SubjectTokenInvalid, words: "its cnf holds"},
		{name: "cnf null", claims: func(w *world) object { return object{"cnf": explicitNull{}} }, reason: delegation.SubjectTokenInvalid, words: "its cnf holds"},

		{name: "no sub", claims: func(w *world) object { return object{"sub": nil} }, reason: delegation.SubjectTokenInvalid, words: "the claim that names its principal"},
		{name: "empty sub", claims: func(w *world) object { return object{"sub": ""} }, reason: delegation.SubjectTokenInvalid, words: "sub is not a string with content"},
		{name: "another claim names", config: func(c *TrustedIssuer) { c.Principal.Claim = "oid" }, claims: func(w *world) object { return object{"oid": "alice"} }},
		{name: "another claim names, absent", config: func(c *TrustedIssuer) { c.Principal.Claim = "oid" }, reason: delegation.SubjectTokenInvalid, words: "the claim that names its principal"},
		{name: "another claim names, a number", config: func(c *TrustedIssuer) { c.Principal.Claim = "oid" }, claims: func(w *world) object { return object{"oid": 7} }, reason: delegation.SubjectTokenInvalid, words: "the claim that names its principal"},
		{name: "another claim names, empty", config: func(c *TrustedIssuer) { c.Principal.Claim = "oid" }, claims: func(w *world) object { return object{"oid": ""} }, reason: delegation.SubjectTokenInvalid, words: "empty"},
		{name: "sub too long for OpenFGA", claims: func(w *world) object { return object{"sub": strings.Repeat("a", 252)} }, reason: delegation.SubjectTokenInvalid, words: "too long"},

		{name: "may_act with a foreign iss", claims: func(w *world) object { return object{"may_act": object{"sub": "agent:planner", "iss": idpIssuer}} }, reason: delegation.SubjectTokenInvalid, words: "another issuer"},
		{name: "may_act with an unknown member", claims: func(w *world) object { return object{"may_act": object{"sub": "agent:planner", "scope": "x"}} }, reason: delegation.SubjectTokenInvalid, words: "may_act"},
		{name: "may_act without sub", claims: func(w *world) object { return object{"may_act": object{"iss": tenantIssuer}} }, reason: delegation.SubjectTokenInvalid, words: "may_act"},
		{name: "may_act that is no principal", claims: func(w *world) object { return object{"may_act": object{"sub": "planner"}} }, reason: delegation.SubjectTokenInvalid, words: "not a principal"},
		{name: "may_act null", claims: func(w *world) object { return object{"may_act": explicitNull{}} }, reason: delegation.SubjectTokenInvalid, words: "may_act"},
		{name: "may_act in order", claims: func(w *world) object {
			return object{"may_act": object{"sub": "agent:planner", "iss": tenantIssuer}}
		}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var change []func(*TrustConfig)
			if row.config != nil {
				change = append(change, idpChange(row.config))
			}
			w := newWorld(t, change...)
			claims := w.rootClaims()
			if row.claims != nil {
				claims = claims.with(row.claims(w))
			}
			typ := orDefault(row.typ, "at+jwt")
			tokenType := orDefault(row.tokenType, accessType)
			var header []object
			if row.header != nil {
				header = append(header, row.header)
			}
			s, err := w.Subject(t.Context(), w.idp.sign(t, typ, claims, header...), tokenType)
			wantReason(t, err, row.reason, row.words)
			if (err == nil) != (s.Root != nil) || s.Derived != nil {
				t.Errorf("subject %+v beside error %v", s, err)
			}
		})
	}
}

// explicitNull is a member that is present and null; a plain nil removes the member.
type explicitNull struct{}

func (explicitNull) MarshalJSON() ([]byte, error) { return []byte("null"), nil }

// orDefault reads a table's field: "" means the usual value and "-" means none.
func orDefault(given, usual string) string {
	switch given {
	case "":
		return usual
	case "-":
		return ""
	}
	return given
}

func TestDerivedTokenRules(t *testing.T) {
	w := newWorld(t)
	payload, err := w.ownClaim.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	header := func(change object) []byte {
		return []byte(toJSON(t, object{"alg": "ES256", "kid": w.ownKey().kid, "typ": "at+jwt"}.with(change)))
	}
	for _, row := range []struct {
		name, token, tokenType, words string
	}{
		{"as an ID token", w.own(t, nil), idType, "not an ID token"},
		{"typ JWT", w.ownKey().signRaw(t, header(object{"typ": "JWT"}), payload), accessType, "its typ is not at+jwt"},
		{"no typ", w.ownKey().signRaw(t, header(object{"typ": nil}), payload), jwtType, "its typ is not at+jwt"},
		{"no kid", w.ownKey().signRaw(t, header(object{"kid": nil}), payload), accessType, "its key is not"},
		{"signed by a trusted issuer's key under its kid", w.idp.signRaw(t, header(object{"kid": w.idp.kid}), payload), accessType, "its key is not"},
		{"signed by a trusted issuer's key under our kid", w.idp.signRaw(t, header(nil), payload), accessType, "its signature does not verify"},
		{"another tenant's", w.own(t, func(c *delegation.Claims) { c.Issuer = "https://deputy.example/t/other" }), accessType, "its issuer is not trusted here"},
		{"expired", w.own(t, func(c *delegation.Claims) { c.ExpiresAt = w.seconds(0); c.IssuedAt -= 9; c.NotBefore -= 9 }), accessType, "it has expired"},
		{"not yet valid", w.own(t, func(c *delegation.Claims) { c.NotBefore = w.seconds(6 * time.Second) }), accessType, "it is not valid yet"},
		{"claims that disagree", w.own(t, func(c *delegation.Claims) { c.ClientID = "agent:other" }), accessType, "its claims are not those of a derived token"},
		{"no claims of ours at all", w.ownKey().sign(t, "at+jwt", w.rootClaims().with(object{"iss": tenantIssuer})), accessType, "its claims are not those of a derived token"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := w.Subject(t.Context(), row.token, row.tokenType)
			wantReason(t, err, delegation.SubjectTokenInvalid, row.words)
			if row.tokenType == idType {
				return
			}
			if claims, err := w.Own(row.token); err == nil {
				t.Errorf("Own accepts it: %+v", claims)
			}
		})
	}
	if _, err := w.Own(w.idp.sign(t, "at+jwt", w.rootClaims())); reasonOf(t, err) != delegation.SubjectTokenInvalid {
		t.Errorf("Own takes a foreign token: %v", err)
	}
	if _, err := w.Own(w.own(t, nil)); err != nil {
		t.Errorf("Own refuses a token of ours: %v", err)
	}
}

func TestRootGrantsAreTheCeiling(t *testing.T) {
	details := `[{"type":"payment","actions":["read"]}]`
	for _, row := range []struct {
		name   string
		grants RootGrants
		claims object
		want   string // scopes | audiences | details
		reason delegation.Reason
	}{
		{name: "nothing configured", claims: object{"scope": "a b", "": "a"}, want: "||"},
		{name: "claim absent", grants: RootGrants{ScopesClaim: "scp", AudiencesClaim: "res", DetailsClaim: "authorization_details"}, want: "||"},
		{name: "scope text", grants: RootGrants{ScopesClaim: "scope"}, claims: object{"scope": "b a b"}, want: "a b||"},
		{name: "scope list", grants: RootGrants{ScopesClaim: "scp"}, claims: object{"scp": []string{"b", "a"}}, want: "a b||"},
		{name: "scope empty list", grants: RootGrants{ScopesClaim: "scp"}, claims: object{"scp": []string{}}, want: "||"},
		{name: "scope fixed", grants: RootGrants{Scopes: []string{"z", "y"}}, claims: object{"scope": "a"}, want: "y z||"},
		{name: "scope fixed and claimed", grants: RootGrants{Scopes: []string{"z"}, ScopesClaim: "scope"}, claims: object{"scope": "a z"}, want: "a z||"},
		{name: "scope empty text", grants: RootGrants{ScopesClaim: "scope"}, claims: object{"scope": ""}, reason: delegation.SubjectTokenInvalid},
		{name: "scope two spaces", grants: RootGrants{ScopesClaim: "scope"}, claims: object{"scope": "a  b"}, reason: delegation.SubjectTokenInvalid},
		{name: "scope with a quote", grants: RootGrants{ScopesClaim: "scope"}, claims: object{"scope": `a"b`}, reason: delegation.SubjectTokenInvalid},
		{name: "scope list with a space inside", grants: RootGrants{ScopesClaim: "scope"}, claims: object{"scope": []string{"a b"}}, reason: delegation.SubjectTokenInvalid},
		{name: "scope list of numbers", grants: RootGrants{ScopesClaim: "scope"}, claims: object{"scope": []int{1}}, reason: delegation.SubjectTokenInvalid},
		{name: "scope null", grants: RootGrants{ScopesClaim: "scope"}, claims: object{"scope": explicitNull{}}, reason: delegation.SubjectTokenInvalid},
		{name: "scope object", grants: RootGrants{ScopesClaim: "scope"}, claims: object{"scope": object{"a": true}}, reason: delegation.SubjectTokenInvalid},
		{name: "audience claimed and fixed", grants: RootGrants{AudiencesClaim: "aud", Audiences: []string{"https://b.example"}}, want: "|" + api + " https://b.example|"},
		{name: "audience malformed", grants: RootGrants{AudiencesClaim: "res"}, claims: object{"res": []any{"a", 1}}, reason: delegation.SubjectTokenInvalid},
		{name: "audience empty text", grants: RootGrants{AudiencesClaim: "res"}, claims: object{"res": ""}, reason: delegation.SubjectTokenInvalid},
		{name: "details claimed and fixed", grants: RootGrants{DetailsClaim: "ad", Details: details}, claims: object{"ad": []object{{"type": "x"}}}, want: `||{"actions":["read"],"type":"payment"} {"type":"x"}`},
		{name: "details malformed", grants: RootGrants{DetailsClaim: "ad"}, claims: object{"ad": object{"type": "x"}}, reason: delegation.SubjectTokenInvalid},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, idpChange(func(c *TrustedIssuer) { c.RootGrants = row.grants }))
			root, err := w.root(t.Context(), w.idp.sign(t, "at+jwt", w.rootClaims().with(row.claims)))
			wantReason(t, err, row.reason, "malformed")
			if err != nil {
				return
			}
			var texts []string
			for _, d := range root.Details {
				texts = append(texts, d.String())
			}
			if got := root.Scopes.String() + "|" + strings.Join(root.Audiences, " ") + "|" + strings.Join(texts, " "); got != row.want {
				t.Errorf("ceiling is %s, want %s", got, row.want)
			}
		})
	}
}

func TestCeilingsOfTwoTokensShareNoMemory(t *testing.T) {
	w := newWorld(t, idpChange(func(c *TrustedIssuer) {
		c.RootGrants = RootGrants{Scopes: []string{"a", "b"}, Audiences: []string{"x", "y"}}
	}))
	token := w.idp.sign(t, "at+jwt", w.rootClaims())
	first, err := w.root(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	first.Scopes[0], first.Audiences[0] = "admin", "admin"
	second, err := w.root(t.Context(), token)
	if err != nil || second.Scopes.Contains("admin") || slices.Contains(second.Audiences, "admin") {
		t.Errorf("a token's ceiling changed the next one's: %+v, %v", second, err)
	}
}

func TestImportedActors(t *testing.T) {
	importing := func(c *TrustedIssuer) { c.ImportAct = &Mapping{Type: "agent", Prefix: "corp/"} }
	deep := object{"sub": "a"}
	for range delegation.MaxChainDepth {
		deep = object{"sub": "a", "act": deep}
	}
	for _, row := range []struct {
		name  string
		act   any
		want  string
		words string
	}{
		{name: "one", act: object{"sub": "svc"}, want: "agent:corp/svc"},
		{name: "oldest first", act: object{"sub": "new", "iss": idpIssuer, "act": object{"sub": "old one"}}, want: "agent:corp/old%20one agent:corp/new"},
		{name: "of another issuer", act: object{"sub": "svc", "iss": "https://other.example"}, words: "another issuer"},
		{name: "with an unknown member", act: object{"sub": "svc", "role": "x"}, words: "something other"},
		{name: "without sub", act: object{"iss": idpIssuer}, words: "cannot be turned"},
		{name: "null", act: explicitNull{}, words: "something other"},
		{name: "inner null", act: object{"sub": "svc", "act": explicitNull{}}, words: "something other"},
		{name: "too deep", act: deep, words: "cannot be turned"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, idpChange(importing))
			root, err := w.root(t.Context(), w.idp.sign(t, "at+jwt", w.rootClaims().with(object{"act": row.act})))
			if row.words != "" {
				wantReason(t, err, delegation.ForeignActorChain, row.words)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, p := range root.Actors {
				names = append(names, string(p))
			}
			if got := strings.Join(names, " "); got != row.want {
				t.Errorf("actors %s, want %s", got, row.want)
			}
		})
	}
}

func TestRootIdentity(t *testing.T) {
	w := newWorld(t)
	digest := func(claims object) string {
		root, err := w.root(t.Context(), w.idp.sign(t, "at+jwt", claims))
		if err != nil {
			t.Fatal(err)
		}
		return root.Digest
	}
	// ECDSA signs differently each time, so equal digests show that the signature does not count.
	if first, second := digest(w.rootClaims()), digest(w.rootClaims()); first != second {
		t.Error("one jti has two identities")
	}
	anonymous := w.rootClaims().with(object{"jti": nil})
	first, second := digest(anonymous), digest(anonymous)
	if first != second {
		t.Error("a token without jti has two identities")
	}
	if first == digest(anonymous.with(object{"sub": "bob"})) {
		t.Error("two tokens without jti have one identity")
	}
	if RootDigest("ab", "c") == RootDigest("a", "bc") {
		t.Error("the border between issuer and jti does not count")
	}
}
