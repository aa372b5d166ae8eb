package console

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
)

func TestSignInLeadsToThePageThatWasWanted(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	asked := s.get("/console/chain?jti=01JT")
	if asked.Request.URL.Path != "/console/sign-in" || !strings.Contains(asked.body, "is for people who are signed in") {
		t.Fatalf("a stranger lands at %s", asked.Request.URL)
	}
	landed := s.signIn(asked.Request.URL.Query().Get("next"))
	if got := landed.Request.URL.RequestURI(); got != "/console/chain?jti=01JT" {
		t.Errorf("signing in leads to %s", got)
	}
	if len(s.engine.signedIn) != 1 || s.engine.signedIn[0].Issuer != s.idp.URL || s.engine.signedIn[0].ClientID != "console" ||
		s.engine.signedIn[0].IDToken != canary+"."+s.engine.signedIn[0].Nonce {
		t.Errorf("the engine was asked %+v", s.engine.signedIn)
	}
	if held := s.cookies(); len(held) != 1 || len(held["deputy-demo-session"]) != 43 {
		t.Errorf("the browser holds %v", held)
	}
	s.site.Close() // all lines of the log are written
	if strings.Contains(s.log.String(), canary) || strings.Contains(s.log.String(), s.cookies()["deputy-demo-session"]) {
		t.Errorf("a secret is in the log:\n%s", s.log)
	}
}

func TestCookiesAreKeptFromScriptsAndOtherSites(t *testing.T) {
	for issuer, want := range map[string]string{
		"https://deputy.example":        "__Host-deputy-demo-session=v; Path=/; Max-Age=60; HttpOnly; Secure; SameSite=Lax",
		"https://deputy.example/t/demo": "__Host-deputy-demo-session=v; Path=/; Max-Age=60; HttpOnly; Secure; SameSite=Lax",
		"http://127.0.0.1:8080":         "deputy-demo-session=v; Path=/; Max-Age=60; HttpOnly; SameSite=Lax",
	} {
		made, err := newSite(Tenant{Name: "demo", Issuer: issuer, Provider: "https://login.example", ClientID: "c", Idle: time.Minute, Life: time.Hour}, Config{})
		if err != nil {
			t.Fatal(err)
		}
		if got := made.cookie(sessionCookie, "v", time.Minute).String(); got != want {
			t.Errorf("%s: %s, want %s", issuer, got, want)
		}
	}
	if _, err := newSite(Tenant{Name: "demo", Issuer: "http://deputy.example", Provider: "https://login.example", ClientID: "c", Idle: 1, Life: 1}, Config{}); err == nil {
		t.Error("a console is served over plain http to other machines")
	}
}

// TestAPlantedSessionIsWorthNothing is session fixation: the attacker knows an id and makes the
// victim sign in with it.
func TestAPlantedSessionIsWorthNothing(t *testing.T) {
	s := newStage(t)
	planted := newSecret()
	at, _ := url.Parse(s.site.URL)
	s.browser.Jar.SetCookies(at, []*http.Cookie{{Name: "deputy-demo-session", Value: planted, Path: "/"}})
	s.signIn("")

	attacker := s.request(http.MethodGet, "/console", nil)
	attacker.AddCookie(&http.Cookie{Name: "deputy-demo-session", Value: planted})
	s.browser = newBrowser(t)
	if strings.Contains(s.do(attacker).body, "Sign out") {
		t.Error("the attacker is signed in")
	}
}

func TestSigningInAgainEndsTheSessionBefore(t *testing.T) {
	s := newStage(t)
	s.signIn("")
	first := s.cookies()["deputy-demo-session"]
	s.signIn("")
	if second := s.cookies()["deputy-demo-session"]; second == first {
		t.Error("the id stays")
	}
	if _, there := s.shelf.kept[key(first)]; there || len(s.shelf.kept) != 1 {
		t.Errorf("the first session is still there: %d sessions", len(s.shelf.kept))
	}
	for k, session := range s.shelf.kept {
		if k == [32]byte([]byte(s.cookies()["deputy-demo-session"])[:32]) {
			t.Error("the database holds what the browser holds")
		}
		if session.Principal != rita || session.Issuer != s.idp.URL || session.Until != s.clock.Add(12*time.Hour) || session.Idle != 30*time.Minute {
			t.Errorf("kept is %+v", session)
		}
	}
}

// TestAnAnswerToAnotherSignInIsRefused: an attacker can neither sign a victim in as another person,
// nor use a code that leaked.
func TestAnAnswerToAnotherSignInIsRefused(t *testing.T) {
	s := newStage(t)
	// The attacker does not follow the provider's answer, and sends its address to the victim.
	attacker := newBrowser(t)
	attacker.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if strings.HasSuffix(r.URL.Path, "/callback") {
			return http.ErrUseLastResponse
		}
		return nil
	}
	victim := s.browser
	s.browser = attacker
	answer := s.post("/console/sign-in", nil)
	link := answer.Header.Get("Location")
	if answer.StatusCode != http.StatusFound || !strings.Contains(link, "/console/sign-in/callback?") {
		t.Fatalf("%s %s", answer.Status, link)
	}
	s.browser = victim
	clicked, err := http.NewRequest(http.MethodGet, link, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := s.do(clicked)
	if got.StatusCode != http.StatusForbidden || len(s.shelf.kept) != 0 {
		t.Errorf("%s, %d sessions", got.Status, len(s.shelf.kept))
	}
	if len(s.idp.asked) > 0 {
		t.Error("the code went to the provider")
	}
	s = newStage(t)
	for _, query := range []string{"", "?code=x", "?state=&code=x", "?state=x&code=x", "?error=access_denied"} {
		if got := s.get("/console/sign-in/callback" + query); got.StatusCode != http.StatusForbidden {
			t.Errorf("%q: %s", query, got.Status)
		}
	}
}

func TestSignInIsNotBegunByOthers(t *testing.T) {
	s := newStage(t)
	for _, header := range []http.Header{
		{}, {"Sec-Fetch-Site": {"cross-site"}}, {"Sec-Fetch-Site": {"same-site"}}, {"Origin": {"https://evil.example"}}, {"Origin": {"null"}},
	} {
		r := s.request(http.MethodPost, "/console/sign-in", nil)
		r.Header.Del("Sec-Fetch-Site")
		for name, values := range header {
			r.Header[name] = values
		}
		if got := s.do(r); got.StatusCode != http.StatusForbidden || len(s.cookies()) != 0 {
			t.Errorf("%v: %s, cookies %v", header, got.Status, s.cookies())
		}
	}
}

func TestWhatTheProviderSaysIsNotBelievedBlindly(t *testing.T) {
	t.Run("refusal", func(t *testing.T) {
		s := newStage(t)
		s.browser.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
			if strings.HasPrefix(r.URL.String(), s.idp.URL) {
				return http.ErrUseLastResponse
			}
			return nil
		}
		sent, err := s.post("/console/sign-in", nil).Location()
		if err != nil {
			t.Fatal(err)
		}
		back := "/console/sign-in/callback?" + url.Values{"state": {sent.Query().Get("state")}, "error": {"<script>alert(1)</script>"}}.Encode()
		got := s.get(back)
		if got.StatusCode != http.StatusForbidden || strings.Contains(got.body, "<script>alert") || !strings.Contains(got.body, "&lt;script&gt;") {
			t.Errorf("%s\n%s", got.Status, got.body)
		}
		if again := s.get(back); again.StatusCode != http.StatusForbidden || !strings.Contains(again.body, "does not belong") {
			t.Errorf("the answer is taken twice: %s", again.Status)
		}
		// RFC 9207: an answer of another issuer.
		sent, err = s.post("/console/sign-in", nil).Location()
		if err != nil {
			t.Fatal(err)
		}
		got = s.get("/console/sign-in/callback?" + url.Values{"state": {sent.Query().Get("state")}, "code": {"x"}, "iss": {"https://other.example"}}.Encode())
		if got.StatusCode != http.StatusForbidden || len(s.idp.asked) != 0 {
			t.Errorf("%s, asked %v", got.Status, s.idp.asked)
		}
	})
	t.Run("down", func(t *testing.T) {
		s := newStage(t)
		s.idp.down = true
		if got := s.get("/console/sign-in"); got.StatusCode != http.StatusOK || !strings.Contains(got.body, "does not answer") {
			t.Errorf("%s\n%s", got.Status, got.body)
		}
		if got := s.post("/console/sign-in", nil); got.StatusCode != http.StatusServiceUnavailable {
			t.Error(got.Status)
		}
		s.idp.down = false
		s.clock = s.clock.Add(discoveryPause)
		s.signIn("") // discovered again
	})
	t.Run("endpoint with a fragment", func(t *testing.T) {
		s := newStage(t)
		s.idp.fragment = "#here"
		if got := s.post("/console/sign-in", nil); got.StatusCode != http.StatusServiceUnavailable {
			t.Error(got.Status)
		}
	})
	t.Run("not believed", func(t *testing.T) {
		s := newStage(t)
		s.engine.unsigned = true
		if got := s.post("/console/sign-in", nil); got.StatusCode != http.StatusBadRequest || len(s.shelf.kept) != 0 || !strings.Contains(got.body, "did not accept") {
			t.Errorf("%s\n%s", got.Status, got.body)
		}
	})
}

func TestTheConsoleProvesItselfAsTheProviderWants(t *testing.T) {
	for name, c := range map[string]struct {
		secret  string
		methods []string
		basic   string
		form    string
	}{
		"public":         {"", nil, " ", ""},
		"by default":     {"s3cret", nil, "console s3cret", ""},
		"basic":          {"s3cret", []string{"client_secret_post", "client_secret_basic"}, "console s3cret", ""},
		"post":           {"s3cret", []string{"client_secret_post"}, " ", "s3cret"},
		"public, listed": {"", []string{"none", "client_secret_basic"}, " ", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.idp.methods = c.methods
			for _, r := range s.console.routes {
				r.site.provider.tenant.ClientSecret = c.secret
			}
			s.signIn("")
			if len(s.idp.asked) != 1 || s.idp.basic[0] != c.basic || s.idp.asked[0].Get("client_secret") != c.form {
				t.Errorf("asked %v with basic %q", s.idp.asked, s.idp.basic)
			}
			if strings.Contains(s.log.String(), "s3cret") {
				t.Error("the secret is in the log")
			}
		})
	}
}

// FuzzOnward searches for an address that leads out of the console after the sign-in.
func FuzzOnward(f *testing.F) {
	for _, seed := range []string{
		"", "/console", "/console/chain?jti=x", "https://evil.example/", "//evil.example", "/\\evil.example", "/console/../oauth2/token",
		"/console//evil.example", "/consoles", "javascript:alert(1)", "/console/sign-out", "/console?next=%2F%2Fevil", "\t//evil.example", "/console/%2e%2e/x",
	} {
		f.Add(seed)
	}
	s, err := newSite(Tenant{Name: "demo", Issuer: "https://deputy.example", Provider: "https://login.example", ClientID: "c", Idle: 1, Life: 1}, Config{})
	if err != nil {
		f.Fatal(err)
	}
	base, _ := url.Parse("https://deputy.example/console/sign-in/callback")
	f.Fuzz(func(t *testing.T, to string) {
		next := s.onward(to)
		u, err := base.Parse(next)
		if err != nil || u.Host != "deputy.example" || u.Scheme != "https" || u.Path != "/console" && !strings.HasPrefix(u.Path, "/console/") || strings.HasPrefix(u.Path, "/console/sign-") {
			t.Errorf("%q leads to %q, that is %v", to, next, u)
		}
	})
}

func TestSessionsEnd(t *testing.T) {
	in := func(s *stage) bool { return strings.Contains(s.get("/console").body, "Sign out") }
	t.Run("when they idle", func(t *testing.T) {
		s := newStage(t)
		s.signIn("")
		for range 3 {
			s.clock = s.clock.Add(29 * time.Minute)
			if !in(s) {
				t.Fatal("a session that is used ends")
			}
		}
		s.clock = s.clock.Add(30 * time.Minute)
		if in(s) {
			t.Error("it goes on")
		}
	})
	t.Run("after their time", func(t *testing.T) {
		s := newStage(t)
		s.signIn("")
		for range 26 {
			s.clock = s.clock.Add(29 * time.Minute)
			in(s)
		}
		if in(s) {
			t.Error("it goes on")
		}
	})
	t.Run("by signing out", func(t *testing.T) {
		s := newStage(t)
		page := s.signIn("")
		held := s.cookies()["deputy-demo-session"]
		out := s.post("/console/sign-out", url.Values{"csrf": {s.csrf(page.body)}})
		if !strings.Contains(out.body, "Signed out") || len(s.cookies()) != 0 || len(s.shelf.kept) != 0 {
			t.Errorf("%s, cookies %v, %d sessions", out.Status, s.cookies(), len(s.shelf.kept))
		}
		again := s.request(http.MethodGet, "/console", nil)
		again.AddCookie(&http.Cookie{Name: "deputy-demo-session", Value: held})
		if strings.Contains(s.do(again).body, "Sign out") {
			t.Error("a copy of the cookie still works")
		}
	})
	t.Run("when the person is cut off", func(t *testing.T) {
		s := newStage(t)
		s.signIn("")
		s.engine.unbelieved = delegation.Refuse(delegation.ClientUnauthenticated, "", "suspended")
		if in(s) || len(s.shelf.kept) != 0 {
			t.Errorf("%d sessions", len(s.shelf.kept))
		}
	})
	t.Run("and not when something is away", func(t *testing.T) {
		s := newStage(t)
		s.signIn("")
		s.engine.unbelieved = delegation.Unavailable("ledger", nil)
		if got := s.get("/console"); got.StatusCode != http.StatusServiceUnavailable || got.Header.Get("Retry-After") != "1" {
			t.Error(got.Status)
		}
		s.engine.unbelieved = nil
		if !in(s) {
			t.Error("an outage signs people out")
		}
	})
	t.Run("at the border of their tenant", func(t *testing.T) {
		s := newStage(t)
		s.signIn("")
		there := s.request(http.MethodGet, "/t/acme/console", nil)
		there.AddCookie(&http.Cookie{Name: "deputy-acme-session", Value: s.cookies()["deputy-demo-session"]})
		s.shelf.tenant = "demo"
		if strings.Contains(s.do(there).body, "Sign out") {
			t.Error("one tenant's session opens another's console")
		}
	})
	t.Run("when the cookie comes twice", func(t *testing.T) {
		s := newStage(t)
		s.signIn("")
		planted := s.request(http.MethodGet, "/console", nil)
		planted.AddCookie(&http.Cookie{Name: "deputy-demo-session", Value: newSecret()})
		if strings.Contains(s.do(planted).body, "Sign out") {
			t.Error("one of two is believed")
		}
	})
}
