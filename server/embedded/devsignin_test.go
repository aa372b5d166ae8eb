package embedded

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/token"
)

// signInStage is a development issuer with an application, and a browser that does not follow.
type signInStage struct {
	*testing.T
	issuer  *DevIssuer
	address string
	browser *http.Client
	now     time.Time
}

const (
	application = "deputy-console"
	redirect    = "http://127.0.0.1:8080/console/sign-in/callback"
	verifier    = "a-verifier-that-is-long-enough-for-this-purpose"
)

func newSignInStage(t *testing.T) *signInStage {
	t.Helper()
	s := &signInStage{T: t, now: time.Now()}
	var handler http.Handler
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	t.Cleanup(server.Close)
	var err error
	s.issuer, err = NewDevIssuer(DevIssuerConfig{
		Dir: t.TempDir(), Address: server.URL, Deputy: deputyIssuer, Now: func() time.Time { return s.now },
		People: map[string]delegation.Scopes{"rita": nil}, Application: Application{ClientID: application, RedirectURI: redirect},
	})
	if err != nil {
		t.Fatal(err)
	}
	handler = LoopbackOnly(s.issuer.Handler())
	s.address, s.browser = server.URL, server.Client()
	s.browser.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return s
}

func request() url.Values {
	sum := sha256.Sum256([]byte(verifier))
	return url.Values{
		"client_id": {application}, "redirect_uri": {redirect}, "response_type": {"code"}, "scope": {"openid"}, "state": {"st"}, "nonce": {"no"},
		"code_challenge_method": {"S256"}, "code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])},
	}
}

func (s *signInStage) do(method, path string, form url.Values, header http.Header) *http.Response {
	s.Helper()
	r, err := http.NewRequest(method, s.address+path, strings.NewReader(form.Encode()))
	if err != nil {
		s.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for name, values := range header {
		r.Header[name] = values
	}
	response, err := s.browser.Do(r)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = response.Body.Close() })
	return response
}

// code chooses rita and returns the code that goes back.
func (s *signInStage) code() string {
	s.Helper()
	sent := s.do(http.MethodPost, signInPath+"?"+request().Encode(), url.Values{"user": {"rita"}}, http.Header{"Sec-Fetch-Site": {"same-origin"}})
	to, err := sent.Location()
	if err != nil || sent.StatusCode != http.StatusSeeOther || !strings.HasPrefix(to.String(), redirect+"?") || to.Query().Get("state") != "st" || to.Query().Get("iss") != s.issuer.PeopleIssuer() {
		s.Fatalf("%s %v %v", sent.Status, to, err)
	}
	return to.Query().Get("code")
}

func (s *signInStage) redeem(code string, change func(url.Values)) *http.Response {
	s.Helper()
	form := url.Values{"grant_type": {"authorization_code"}, "code": {code}, "client_id": {application}, "redirect_uri": {redirect}, "code_verifier": {verifier}}
	if change != nil {
		change(form)
	}
	return s.do(http.MethodPost, "/people/token", form, nil)
}

func TestSignInWithTheDevIssuer(t *testing.T) {
	s := newSignInStage(t)
	page := s.do(http.MethodGet, signInPath+"?"+request().Encode(), nil, http.Header{"Sec-Fetch-Site": {"cross-site"}})
	if page.StatusCode != http.StatusOK || !strings.Contains(page.Header.Get("Content-Security-Policy"), "frame-ancestors 'none'") {
		t.Fatalf("%s %v", page.Status, page.Header)
	}
	given := s.code()
	var answer struct {
		IDToken string `json:"id_token"`
	}
	if err := json.NewDecoder(s.redeem(given, nil).Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	who, err := trustIn(t, s.issuer).SignIn(t.Context(), token.SignIn{IDToken: answer.IDToken, Issuer: s.issuer.PeopleIssuer(), ClientID: application, Nonce: "no"})
	if err != nil || who != "user:rita" {
		t.Errorf("signed in is %q, %v", who, err)
	}
	if again := s.redeem(given, nil); again.StatusCode != http.StatusBadRequest {
		t.Errorf("a code is worth something twice: %s", again.Status)
	}
	if _, err := trustIn(t, s.issuer).Subject(t.Context(), answer.IDToken, delegation.TokenTypeIDToken); err == nil {
		t.Error("an ID token of the console starts a chain")
	}
}

func TestTheDevIssuerSignsInForTheApplicationOnly(t *testing.T) {
	s := newSignInStage(t)
	for name, value := range map[string]string{
		"client_id": "other", "redirect_uri": redirect + "x", "response_type": "token", "scope": "profile", "state": "", "nonce": "",
		"code_challenge_method": "plain", "code_challenge": "short",
	} {
		query := request()
		query.Set(name, value)
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			got := s.do(method, signInPath+"?"+query.Encode(), url.Values{"user": {"rita"}}, http.Header{"Sec-Fetch-Site": {"same-origin"}})
			if got.StatusCode != http.StatusBadRequest || got.Header.Get("Location") != "" {
				t.Errorf("%s %s=%q: %s", method, name, value, got.Status)
			}
		}
	}
	if got := s.do(http.MethodPost, signInPath+"?"+request().Encode(), url.Values{"user": {"mallory"}}, nil); got.StatusCode != http.StatusBadRequest {
		t.Errorf("an unknown user: %s", got.Status)
	}
	if got := s.do(http.MethodPost, signInPath+"?"+request().Encode(), url.Values{"user": {"rita"}}, http.Header{"Sec-Fetch-Site": {"cross-site"}}); got.StatusCode != http.StatusForbidden {
		t.Errorf("another site chooses: %s", got.Status)
	}
	for name, value := range map[string]string{"code": "x", "client_id": "other", "redirect_uri": "http://127.0.0.1/", "code_verifier": "another"} {
		if got := s.redeem(s.code(), func(form url.Values) { form.Set(name, value) }); got.StatusCode != http.StatusBadRequest {
			t.Errorf("%s=%q: %s", name, value, got.Status)
		}
	}
	late := s.code()
	s.now = s.now.Add(codeLife)
	if got := s.redeem(late, nil); got.StatusCode != http.StatusBadRequest {
		t.Errorf("an old code: %s", got.Status)
	}
	// A browser is let in to the sign-in page and nowhere else.
	for path, want := range map[string]int{"/people/token": http.StatusForbidden, "/people/jwks": http.StatusForbidden} {
		if got := s.do(http.MethodPost, path, url.Values{"user": {"rita"}}, http.Header{"Sec-Fetch-Site": {"same-origin"}}); got.StatusCode != want {
			t.Errorf("%s: %s", path, got.Status)
		}
	}
}
