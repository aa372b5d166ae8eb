package token

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"deputy.example/deputy/client/delegation"
)

// conditioned returns a world in which both issuers have the conditions.
func conditioned(t *testing.T, when ...Condition) *world {
	t.Helper()
	return newWorld(t, func(c *TrustConfig) {
		for n := range c.TrustedIssuers {
			c.TrustedIssuers[n].Principal.When = when
		}
	})
}

func TestConditionsOnEveryWayIn(t *testing.T) {
	conditions := []Condition{
		{Claim: "/kubernetes.io/namespace", Values: []string{"agents", "tools"}},
		{Claim: "ref", Values: []string{"refs/heads/main"}, Prefixes: []string{"refs/tags/v"}},
	}
	met := object{"kubernetes.io": object{"namespace": "agents"}, "ref": "refs/tags/v1.2"}
	claim := func(change object) object { return met.with(change) }
	namespace := func(value any) object { return claim(object{"kubernetes.io": object{"namespace": value}}) }
	rows := map[string]struct {
		claims object
		broken string // the claim at fault; "" where there is no fault
	}{
		"met":                      {met, ""},
		"met by the other value":   {namespace("tools"), ""},
		"met by the exact value":   {claim(object{"ref": "refs/heads/main"}), ""},
		"met by the prefix itself": {claim(object{"ref": "refs/tags/v"}), ""},

		"another namespace":        {namespace("default"), "/kubernetes.io/namespace"},
		"namespace in other case":  {namespace("Agents"), "/kubernetes.io/namespace"},
		"namespace with more":      {namespace("agents-evil"), "/kubernetes.io/namespace"},
		"namespace with a space":   {namespace("agents "), "/kubernetes.io/namespace"},
		"namespace with a newline": {namespace("agents\n"), "/kubernetes.io/namespace"},
		"namespace with less":      {namespace("agent"), "/kubernetes.io/namespace"},
		"empty namespace":          {namespace(""), "/kubernetes.io/namespace"},
		// A Cyrillic а.
		"namespace by look":        {namespace("аgents"), "/kubernetes.io/namespace"},
		"namespace in a list":      {namespace([]string{"agents"}), "/kubernetes.io/namespace"},
		"namespace null":           {namespace(explicitNull{}), "/kubernetes.io/namespace"},
		"namespace a number":       {namespace(1), "/kubernetes.io/namespace"},
		"namespace true":           {namespace(true), "/kubernetes.io/namespace"},
		"namespace an object":      {namespace(object{"agents": "agents"}), "/kubernetes.io/namespace"},
		"no namespace":             {claim(object{"kubernetes.io": object{}}), "/kubernetes.io/namespace"},
		"namespace elsewhere":      {claim(object{"kubernetes.io": object{"pod": object{"namespace": "agents"}}, "namespace": "agents"}), "/kubernetes.io/namespace"},
		"no object":                {claim(object{"kubernetes.io": nil}), "/kubernetes.io/namespace"},
		"a list of objects":        {claim(object{"kubernetes.io": []object{{"namespace": "agents"}}}), "/kubernetes.io/namespace"},
		"a string for the object":  {claim(object{"kubernetes.io": "namespace"}), "/kubernetes.io/namespace"},
		"the path as a name":       {claim(object{"kubernetes.io": nil, "/kubernetes.io/namespace": "agents"}), "/kubernetes.io/namespace"},
		"the path without a slash": {claim(object{"kubernetes.io": nil, "kubernetes.io/namespace": "agents"}), "/kubernetes.io/namespace"},
		"object in other case":     {claim(object{"kubernetes.io": nil, "Kubernetes.io": object{"namespace": "agents"}}), "/kubernetes.io/namespace"},

		"another ref":           {claim(object{"ref": "refs/heads/dev"}), "/ref"},
		"pull request's ref":    {claim(object{"ref": "refs/pull/7/merge"}), "/ref"},
		"exact value with more": {claim(object{"ref": "refs/heads/main/x"}), "/ref"},
		"prefix cut":            {claim(object{"ref": "refs/tags/"}), "/ref"},
		"prefix further inside": {claim(object{"ref": "x/refs/tags/v1"}), "/ref"},
		"no ref":                {claim(object{"ref": nil}), "/ref"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			for way, enter := range conditioned(t, conditions...).waysIn(t, row.claims) {
				who, err := enter()
				if row.broken == "" {
					if err != nil || who == "" {
						t.Errorf("%s: %q, %v (%v)", way, who, err, errors.Unwrap(err))
					}
					continue
				}
				rule := "its claim " + row.broken + " is missing, not a string, or not one"
				switch way {
				case "bearer":
					wantUnauthenticated(t, err, rule)
				case "actor that authenticates", "actor that is named":
					wantReason(t, err, delegation.ActorTokenInvalid, rule)
				default:
					wantReason(t, err, delegation.SubjectTokenInvalid, rule)
				}
				if err != nil && strings.Contains(err.Error(), "evil") {
					t.Errorf("%s repeats the claim: %v", way, err)
				}
			}
			// The control: such tokens are accepted where no condition is configured.
			for way, enter := range conditioned(t).waysIn(t, row.claims) {
				if who, err := enter(); err != nil || who == "" {
					t.Errorf("%s: refused without the conditions too: %v (%v)", way, err, errors.Unwrap(err))
				}
			}
		})
	}
}

// waysIn present one set of extra claims in every way in which a trusted issuer's token can name a
// principal.
func (w *world) waysIn(t *testing.T, extra object) map[string]func() (delegation.Principal, error) {
	t.Helper()
	svid := w.workloadClaims().with(extra)
	naming := svid.with(object{"aud": delegation.ActorAudience(tenantIssuer)})
	workload, named := w.spire.sign(t, "JWT", svid), w.spire.sign(t, "JWT", naming)
	root := w.idp.sign(t, "at+jwt", w.rootClaims().with(extra))
	id := w.idp.sign(t, "JWT", w.rootClaims().with(extra))
	signIn := w.idp.sign(t, "JWT", w.signInClaims().with(extra))
	ctx := t.Context()
	subject := func(token, tokenType string) func() (delegation.Principal, error) {
		return func() (delegation.Principal, error) {
			s, err := w.Subject(ctx, token, tokenType)
			if err != nil {
				return "", err
			}
			return s.Root.Principal, nil
		}
	}
	actor := func(token string) func() (delegation.Principal, error) {
		return func() (delegation.Principal, error) {
			a, err := w.Actor(ctx, token, jwtType)
			return a.Principal, err
		}
	}
	return map[string]func() (delegation.Principal, error){
		"bearer": func() (delegation.Principal, error) {
			c, err := w.Bearer(ctx, workload)
			return c.Principal, err
		},
		"actor that authenticates": actor(workload),
		"actor that is named":      actor(named),
		"subject":                  subject(root, accessType),
		"subject by ID token":      subject(id, idType),
		"sign-in": func() (delegation.Principal, error) {
			return w.SignIn(ctx, SignIn{IDToken: signIn, Issuer: idpIssuer, ClientID: consoleClient, Nonce: "n-1"})
		},
	}
}

// A token that breaks a condition gets the same answer as one that an unknown signer made.
func TestBrokenConditionsLookLikeAnyFailure(t *testing.T) {
	w := conditioned(t, Condition{Claim: "ref", Values: []string{"refs/heads/main"}})
	_, broke := w.Bearer(t.Context(), w.spire.sign(t, "JWT", w.workloadClaims().with(object{"ref": "refs/heads/dev"})))
	_, unknown := w.Bearer(t.Context(), newTestKey(t, "EdDSA", "x").sign(t, "JWT", w.workloadClaims().with(object{"iss": "https://nobody.example"})))
	a, _ := errors.AsType[*delegation.Error](broke)
	b, _ := errors.AsType[*delegation.Error](unknown)
	if a == nil || b == nil || a.Reason != b.Reason || a.Description != b.Description || a.Field != b.Field || len(a.Metadata)+len(b.Metadata) > 0 {
		t.Errorf("%+v differs from %+v", a, b)
	}
}

func TestIdentityByPointer(t *testing.T) {
	w := newWorld(t, func(c *TrustConfig) {
		c.TrustedIssuers[1].Principal = Mapping{Type: "agent", Prefix: "k8s/", Claim: "/kubernetes.io/serviceaccount/uid"}
	})
	named := func(account any) (delegation.Principal, error) {
		c, err := w.Bearer(t.Context(), w.spire.sign(t, "JWT", w.workloadClaims().with(object{"kubernetes.io": object{"serviceaccount": account}})))
		return c.Principal, err
	}
	seen := map[delegation.Principal]string{}
	for _, uid := range []string{"a", "A", "a/b", "a%2Fb", "a ", "k8s/a", "ä", "a:b"} {
		p, err := named(object{"uid": uid, "name": "planner"})
		if err != nil || seen[p] != "" || p != delegation.Principal("agent:k8s/"+delegation.EncodeID(uid)) {
			t.Errorf("%q becomes %q, which is %q already: %v", uid, p, seen[p], err)
		}
		seen[p] = uid
	}
	for _, account := range []any{nil, object{}, object{"uid": ""}, object{"uid": 1}, object{"uid": []string{"a"}}, []object{{"uid": "a"}}, "uid"} {
		if p, err := named(account); err == nil {
			t.Errorf("%v becomes %q", account, p)
		}
	}
}

func TestConditionRules(t *testing.T) {
	values := []string{"x"}
	for name, row := range map[string]struct {
		when  []Condition
		field string // below trusted_issuers[0].principal; "" means accepted
		words string
	}{
		"a name":                           {[]Condition{{Claim: "ref", Values: values}}, "", ""},
		"a URL as name":                    {[]Condition{{Claim: "https://acme.example/roles", Values: values}}, "", ""},
		"a name with a slash":              {[]Condition{{Claim: "kubernetes.io/namespace", Values: values}}, "", ""},
		"a pointer":                        {[]Condition{{Claim: "/a~1b/~0c", Prefixes: values}}, "", ""},
		"the identity itself":              {[]Condition{{Claim: "sub", Prefixes: values}}, "", ""},
		"no claim":                         {[]Condition{{Values: values}}, "when[0].claim", "names no claim"},
		"the whole token":                  {[]Condition{{Claim: "/", Values: values}}, "when[0].claim", "names no claim"},
		"an empty member":                  {[]Condition{{Claim: "/a//b", Values: values}}, "when[0].claim", "names no claim"},
		"a slash at the end":               {[]Condition{{Claim: "/a/", Values: values}}, "when[0].claim", "names no claim"},
		"an escape that is none":           {[]Condition{{Claim: "/a~2", Values: values}}, "when[0].claim", "RFC 6901"},
		"an escape cut off":                {[]Condition{{Claim: "/a/~", Values: values}}, "when[0].claim", "RFC 6901"},
		"an escape of an escape":           {[]Condition{{Claim: "/a~~00", Values: values}}, "when[0].claim", "RFC 6901"},
		"nothing allowed":                  {[]Condition{{Claim: "ref"}}, "when[0].values", "missing"},
		"an empty list":                    {[]Condition{{Claim: "ref", Values: []string{}, Prefixes: []string{}}}, "when[0].values", "missing"},
		"an empty value":                   {[]Condition{{Claim: "a", Values: values}, {Claim: "ref", Values: []string{"x", ""}}}, "when[1].values", "empty value"},
		"an empty prefix":                  {[]Condition{{Claim: "ref", Values: values, Prefixes: []string{""}}}, "when[0].prefixes", "empty prefix"},
		"a claim twice":                    {[]Condition{{Claim: "ref", Values: values}, {Claim: "ref", Values: values}}, "when[1].claim", "already"},
		"a claim twice, spelt in two ways": {[]Condition{{Claim: "ref", Values: values}, {Claim: "/ref", Values: values}}, "when[1].claim", "already"},
	} {
		config := newWorld(t).config
		config.TrustedIssuers = slices.Clone(config.TrustedIssuers)
		config.TrustedIssuers[0].Principal.When = row.when
		_, err := NewTrust(config)
		if row.field == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		refusal, _ := errors.AsType[*delegation.Error](err)
		if refusal == nil || refusal.Field != "trusted_issuers[0].principal."+row.field || !strings.Contains(refusal.Description, row.words) {
			t.Errorf("%s: %v, want field %s and words %q", name, err, row.field, row.words)
		}
	}
}

// Conditions decide which of an issuer's principals are accepted, and do not separate the
// principals of two issuers.
func TestConditionsKeepNoIssuersApart(t *testing.T) {
	config := newWorld(t).config
	config.TrustedIssuers = slices.Clone(config.TrustedIssuers)
	for n, prefix := range []string{"repo:acme/", "repo:other/"} {
		config.TrustedIssuers[n].Principal = Mapping{Type: "agent", When: []Condition{{Claim: "sub", Prefixes: []string{prefix}}}}
	}
	config.Clients = nil
	if _, err := NewTrust(config); err == nil || !strings.Contains(err.Error(), "same principals as trusted_issuers[0].principal") {
		t.Errorf("two issuers whose conditions differ: %v", err)
	}
	config.TrustedIssuers[0].SharedPrincipals, config.TrustedIssuers[1].SharedPrincipals = true, true
	if _, err := NewTrust(config); err != nil {
		t.Errorf("shared by both: %v", err)
	}

	// sub and /sub are one claim, so imported actors may be the issuer's own subjects by either
	// name.
	config = newWorld(t).config
	config.TrustedIssuers = slices.Clone(config.TrustedIssuers)
	config.TrustedIssuers[0].Principal.Claim, config.TrustedIssuers[0].ImportAct = "/sub", &Mapping{Type: "user"}
	if _, err := NewTrust(config); err != nil {
		t.Errorf("sub by pointer: %v", err)
	}
	config.TrustedIssuers[0].ImportAct.When = []Condition{{Claim: "ref", Values: []string{"x"}}}
	if _, err := NewTrust(config); err == nil || !strings.Contains(err.Error(), "import_act.when") {
		t.Errorf("conditions on imported actors: %v", err)
	}
}

// A session ends when its person no longer meets a condition on the identity.
func TestNamesKeepsConditionsOnTheIdentity(t *testing.T) {
	w := conditioned(t, Condition{Claim: "/sub", Values: []string{"alice"}, Prefixes: []string{"team/"}}, Condition{Claim: "ref", Values: []string{"x"}})
	for p, want := range map[delegation.Principal]bool{
		"user:alice": true, "user:team/x": true, "user:bob": false, "user:team": false, "agent:alice": false, "users:alice": false,
	} {
		if got := w.Names(idpIssuer, p); got != want {
			t.Errorf("Names(%s) = %t", p, got)
		}
	}
	if !newWorld(t).Names(idpIssuer, "user:bob") {
		t.Error("the control: without conditions bob has a name")
	}
}

// FuzzConditions compares pointers and conditions with a walk of the same claims by encoding/json.
func FuzzConditions(f *testing.F) {
	f.Add([]byte(`{"kubernetes.io":{"namespace":"agents"}}`), "/kubernetes.io/namespace", "agents", "")
	f.Add([]byte(`{"a/b":{"~c":"x"},"ref":["x"]}`), "/a~1b/~0c", "", "x")
	f.Add([]byte(`{"~1":"x","":{"":"y"}}`), "/~01", "x", "y")
	f.Add([]byte(`{"ref":"refs/heads/main"}`), "ref", "refs/heads/main", "refs/tags/v")
	f.Fuzz(func(t *testing.T, claims []byte, pointer, value, prefix string) {
		path, err := parseClaimPath(pointer)
		if err != nil {
			return
		}
		again, err := parseClaimPath(path.String())
		if err != nil || !slices.Equal(path, again) || strings.HasPrefix(pointer, "/") && path.String() != pointer {
			t.Fatalf("%q leads along %q, which is written %q and leads along %q: %v", pointer, path, path, again, err)
		}
		conditions, err := Mapping{When: []Condition{{Claim: pointer, Values: []string{value}, Prefixes: []string{prefix}}}}.conditions("p")
		if (err != nil) != (value == "" || prefix == "") {
			t.Fatalf("%q and %q: %v", value, prefix, err)
		}
		u, parseErr := delegation.Parse(segment([]byte(`{"alg":"ES256"}`)) + "." + segment(claims) + ".AAAA")
		if err != nil || parseErr != nil {
			return
		}
		var at any
		if err := json.Unmarshal(claims, &at); err != nil {
			t.Fatalf("the gate takes what encoding/json does not: %v", err)
		}
		for _, name := range path {
			object, _ := at.(map[string]any)
			at = object[name]
		}
		text, isText := at.(string)
		want := isText && (text == value || strings.HasPrefix(text, prefix))
		if got := conditions[0].metBy(presented{Unverified: u}); got != want {
			t.Errorf("%s: the condition %q is %q or begins with %q: %t, want %t", claims, pointer, value, prefix, got, want)
		}
	})
}
