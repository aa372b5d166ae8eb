package server

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/policy/policytest"
)

// withConsole adds a console, whose OpenID provider is the issuer of people, and an issuer of
// workloads.
func (s *site) withConsole(secrets canaries) *provider {
	s.workloads = exchangetest.NewSigner(s.t, "https://workloads.example")
	s.write("workloads.jwks.json", []byte(s.workloads.JWKS()))
	secrets["client secret of the console"] = "canary-console-secret-c2f8"
	s.write("console-secret", []byte(secrets["client secret of the console"]))
	s.text = strings.NewReplacer("    clients:\n      - id: agent:planner\n", `      - issuer: https://workloads.example
        keys: {file: DIR/workloads.jwks.json}
        algorithms: [ES256]
        principal: {type: agent}
        workloads: true
        shared_principals: true
    console: {issuer: https://login.example, client_id: console, client_secret_file: DIR/console-secret}
    clients:
      - id: agent:planner
        shared_principals: true
`).Replace(s.text)
	p := &provider{site: s, secrets: canaries{}}
	s.options.KeyTransport = p
	return p
}

func (s *site) workload(t *testing.T) string {
	return s.workloads.Sign(t, "JWT", map[string]any{
		"sub": "planner", "aud": issuer, "jti": s.id(), "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
	})
}

// provider signs alice in and records each secret that passes through it. Its answer to an unknown
// code repeats everything that it received.
type provider struct {
	*site
	mu      sync.Mutex
	secrets canaries
	nonce   string
}

func (p *provider) RoundTrip(r *http.Request) (*http.Response, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		return policytest.Response(http.StatusOK, `{"issuer":"https://login.example","authorization_endpoint":"https://login.example/authorize",
			"token_endpoint":"https://login.example/token","jwks_uri":"https://login.example/jwks","id_token_signing_alg_values_supported":["ES256"]}`), nil
	case "/token":
		sent, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		form, err := url.ParseQuery(string(sent))
		if err != nil {
			return nil, err
		}
		p.secrets["PKCE verifier"] = form.Get("code_verifier")
		switch code := form.Get("code"); code {
		case p.secrets["code"]:
			id := p.secrets.token("ID token", p.people.Sign(p.t, "JWT", map[string]any{
				"sub": "alice", "aud": "console", "nonce": p.nonce, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
			}))
			p.secrets["access token of the provider"], p.secrets["refresh token of the provider"] = "canary-access-19d4", "canary-refresh-6b0e"
			return policytest.Response(http.StatusOK, fmt.Sprintf(`{"access_token":%q,"refresh_token":%q,"token_type":"Bearer","id_token":%q}`,
				p.secrets["access token of the provider"], p.secrets["refresh token of the provider"], id)), nil
		case p.secrets["code of another"]:
			other := p.secrets.token("ID token for another", p.people.Sign(p.t, "JWT", map[string]any{
				"sub": "alice", "aud": "another", "nonce": p.nonce, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
			}))
			return policytest.Response(http.StatusOK, fmt.Sprintf(`{"access_token":"x","token_type":"Bearer","id_token":%q}`, other)), nil
		default:
			return policytest.Response(http.StatusBadRequest, fmt.Sprintf(`{"error":%q,"error_description":%q,"error_uri":%q}`, code, sent, code)), nil
		}
	}
	return policytest.Response(http.StatusNotFound, `{}`), nil
}

// visitor is a minimal browser: it sends exactly the given request and follows no redirect.
type visitor struct {
	t      *testing.T
	i      *instance
	cookie string
}

func (v *visitor) send(method, path string, form url.Values, headers ...string) (*http.Response, string) {
	v.t.Helper()
	r, err := http.NewRequestWithContext(v.t.Context(), method, "http://"+v.i.HTTPAddr()+path, strings.NewReader(form.Encode()))
	if err != nil {
		v.t.Fatal(err)
	}
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Cookie", v.cookie)
	for n := 0; n < len(headers); n += 2 {
		r.Header.Set(headers[n], headers[n+1])
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(r)
	if err != nil {
		v.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	for _, set := range response.Cookies() {
		if set.MaxAge > 0 {
			v.cookie = set.Name + "=" + set.Value
		}
	}
	return response, string(body)
}

// signIn signs in at the provider, returns to the console with the code, and returns the console's
// answer.
func (v *visitor) signIn(p *provider, secrets canaries, which, code string) (*http.Response, string) {
	v.t.Helper()
	began, body := v.send(http.MethodPost, "/console/sign-in", url.Values{"next": {"/console"}})
	to, err := began.Location()
	if err != nil {
		v.t.Fatalf("%s %s", began.Status, body)
	}
	secrets[which] = code
	secrets["sign-in"], _, _ = strings.Cut(valueOf(v.cookie), ".")
	p.mu.Lock()
	p.secrets[which], p.nonce = code, to.Query().Get("nonce")
	p.mu.Unlock()
	secrets["nonce"], secrets["state"] = to.Query().Get("nonce"), to.Query().Get("state")
	return v.send(http.MethodGet, "/console/sign-in/callback?"+url.Values{"code": {code}, "state": {secrets["state"]}}.Encode(), nil)
}

func valueOf(cookie string) string {
	_, value, _ := strings.Cut(cookie, "=")
	return value
}

// browse signs in to the console, opens every page, and then sends credentials that the console
// refuses.
func (s *site) browse(t *testing.T, i *instance, p *provider, grant *deputyv1.ExchangeResponse, all traces, secrets canaries) {
	t.Helper()
	v := &visitor{t: t, i: i}
	_, page := v.send(http.MethodGet, "/console/sign-in", nil)
	all.leave("console's page for signing in", page, "Sign in")
	refused := ""
	for which, code := range map[string]string{"code of another": "canary-code-8e31", "unknown code": "canary-code-aa07"} {
		response, page := v.signIn(p, secrets, which, code)
		if refused += page; response.StatusCode != http.StatusForbidden && response.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", which, response.Status)
		}
	}
	response, page := v.signIn(p, secrets, "code", "canary-code-51c9")
	if response.StatusCode != http.StatusSeeOther || !strings.Contains(v.cookie, "-session=") {
		t.Fatalf("not signed in: %s %s", response.Status, page)
	}
	secrets["session"] = valueOf(v.cookie)
	p.mu.Lock()
	for where, secret := range p.secrets {
		secrets[where] = secret
	}
	p.mu.Unlock()

	jti := url.QueryEscape(grant.GetJti())
	for path, mark := range map[string]string{
		"": planted, "/search.csv": planted, fmt.Sprintf("/entry?entry=%d", grant.GetEntry()): planted, "/chain?jti=" + jti: planted,
		"/agent?agent=agent%3Aplanner": planted, "/take-back?kind=token&id=" + jti: grant.GetJti(), "/live": planted, "/live/entries?after=0": planted,
		"/ledger": "checkpoint",
	} {
		response, page := v.send(http.MethodGet, "/console"+path, nil)
		if response.StatusCode != http.StatusOK {
			t.Errorf("%q: %s", path, response.Status)
		}
		name, _, _ := strings.Cut(path, "?")
		all.leave("console's page "+name, page, mark)
	}

	session, token := v.cookie, grant.GetAccessToken()
	// Only this page may repeat what was typed into it.
	if response, _ := v.send(http.MethodGet, "/console?scope="+token, nil); response.StatusCode != http.StatusOK {
		t.Error(response.Status)
	}
	for _, try := range []func() (*http.Response, string){
		func() (*http.Response, string) { return v.send(http.MethodGet, "/console/entry?jti="+token, nil) },
		func() (*http.Response, string) { return v.send(http.MethodGet, "/console/chain?jti="+token, nil) },
		func() (*http.Response, string) { return v.send(http.MethodGet, "/console/"+token, nil) },
		func() (*http.Response, string) {
			return v.send(http.MethodPost, "/console/take-back", url.Values{"kind": {"token"}, "id": {jti}, "reason": {"drill"}, "csrf": {secrets["garbage"]}})
		},
		func() (*http.Response, string) {
			return v.send(http.MethodPost, "/console/sign-out", url.Values{"csrf": {token}})
		},
		func() (*http.Response, string) {
			v.cookie = strings.TrimSuffix(session, secrets["session"]) + secrets["garbage"]
			return v.send(http.MethodGet, "/console", nil, "Authorization", "Bearer "+secrets["bearer"], "DPoP", secrets["garbage"])
		},
		func() (*http.Response, string) {
			return v.send(http.MethodGet, "/console/sign-in/callback?code="+token+"&state="+secrets["garbage"], nil)
		},
	} {
		response, page := try()
		if refused += page; response.StatusCode == http.StatusOK {
			t.Errorf("%s was answered", response.Request.URL.Path)
		}
	}
	all.leave("console's refusals", refused, "<html")
}
