package token

import (
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
)

const consoleClient = "deputy-console"

func (w *world) signInClaims() object {
	return object{
		"iss": idpIssuer, "sub": "alice", "aud": consoleClient, "nonce": "n-1",
		"iat": w.seconds(0), "exp": w.seconds(10 * time.Minute),
	}
}

// One ID token signs a person in. With any rule broken it signs in no person.
func TestSignIn(t *testing.T) {
	w := newWorld(t)
	asked := SignIn{Issuer: idpIssuer, ClientID: consoleClient, Nonce: "n-1"}
	for name, c := range map[string]struct {
		key    *testKey
		typ    string
		change object
		asked  func(*SignIn)
		reason delegation.Reason
	}{
		"as asked":                      {},
		"two audiences, ours the party": {change: object{"aud": []string{"other", consoleClient}, "azp": consoleClient}},
		"a little old":                  {change: object{"iat": w.seconds(-4 * time.Minute)}},

		"two audiences and no party":     {change: object{"aud": []string{"other", consoleClient}}, reason: delegation.SubjectTokenInvalid},
		"another party":                  {change: object{"azp": "other"}, reason: delegation.SubjectTokenInvalid},
		"a party that is no string":      {change: object{"azp": 7}, reason: delegation.SubjectTokenInvalid},
		"another audience":               {change: object{"aud": api}, reason: delegation.SubjectTokenInvalid},
		"another nonce":                  {change: object{"nonce": "n-2"}, reason: delegation.SubjectTokenInvalid},
		"no nonce":                       {change: object{"nonce": nil}, reason: delegation.SubjectTokenInvalid},
		"no nonce, and none asked for":   {change: object{"nonce": ""}, asked: func(s *SignIn) { s.Nonce = "" }, reason: delegation.SubjectTokenInvalid},
		"no client":                      {change: object{"aud": ""}, asked: func(s *SignIn) { s.ClientID = "" }, reason: delegation.SubjectTokenInvalid},
		"a workload's audience":          {change: object{"aud": tenantIssuer}, asked: func(s *SignIn) { s.ClientID = tenantIssuer }, reason: delegation.SubjectTokenInvalid},
		"expired":                        {change: object{"exp": w.seconds(0)}, reason: delegation.SubjectTokenInvalid},
		"of tomorrow":                    {change: object{"iat": w.seconds(5 * time.Minute)}, reason: delegation.SubjectTokenInvalid},
		"old":                            {change: object{"iat": w.seconds(-6 * time.Minute)}, reason: delegation.SubjectTokenInvalid},
		"undated":                        {change: object{"iat": nil}, reason: delegation.SubjectTokenInvalid},
		"an access token":                {typ: "at+jwt", reason: delegation.SubjectTokenInvalid},
		"another issuer that is trusted": {key: &w.spire, change: object{"iss": spireIssuer}, reason: delegation.SubjectTokenInvalid},
		"an issuer that is not":          {change: object{"iss": "https://elsewhere.example"}, reason: delegation.SubjectTokenInvalid},
		"a forged signature":             {key: &w.agent, reason: delegation.SubjectTokenInvalid},
		"bound to a key":                 {change: object{"cnf": object{"jkt": "x"}}, reason: delegation.ProofRequired},
		"nobody":                         {change: object{"sub": nil}, reason: delegation.SubjectTokenInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			key, typ, s := w.idp, "JWT", asked
			if c.key != nil {
				key = *c.key
			}
			if c.typ != "" {
				typ = c.typ
			}
			if c.asked != nil {
				c.asked(&s)
			}
			s.IDToken = key.sign(t, typ, w.signInClaims().with(c.change))
			who, err := w.SignIn(t.Context(), s)
			if got := reasonOf(t, err); got != c.reason || (err == nil) != (who == "user:alice") {
				t.Errorf("%q, %v; want %q", who, err, c.reason)
			}
		})
	}
}

// The principals that an issuer can name follow from its mapping, and from nothing in a token.
func TestNames(t *testing.T) {
	w := newWorld(t, idpChange(func(c *TrustedIssuer) { c.Principal.Prefix = "corp/" }))
	for who, want := range map[delegation.Principal]bool{
		"user:corp/alice": true, "user:alice": false, "user:corp/": false, "agent:corp/alice": false, "": false,
	} {
		if got := w.Names(idpIssuer, who); got != want {
			t.Errorf("%q: %t", who, got)
		}
		if got := w.MayBegin(who); got != want {
			t.Errorf("%q may begin: %t", who, got)
		}
	}
	if w.Names("https://elsewhere.example", "user:corp/alice") {
		t.Error("an issuer that is not trusted names somebody")
	}
}
