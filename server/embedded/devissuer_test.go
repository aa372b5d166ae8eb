package embedded

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/token"
)

const deputyIssuer = "http://127.0.0.1:8080"

func newDevIssuer(t *testing.T, dir string) (*DevIssuer, *httptest.Server) {
	t.Helper()
	var handler http.Handler
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	t.Cleanup(server.Close)
	issuer, err := NewDevIssuer(DevIssuerConfig{
		Dir: dir, Address: server.URL, Deputy: deputyIssuer,
		People:    map[string]delegation.Scopes{"alice": {"calendar.read", "mail.read"}},
		Audiences: []string{"https://calendar.example"}, Workloads: []string{"planner"},
	})
	if err != nil {
		t.Fatal(err)
	}
	handler = LoopbackOnly(issuer.Handler())
	return issuer, server
}

func TestDevIssuerIsAnIssuerThatDeputyCanTrust(t *testing.T) {
	issuer, _ := newDevIssuer(t, t.TempDir())
	trust := trustIn(t, issuer)
	token, err := issuer.AccessToken("alice")
	if err != nil {
		t.Fatal(err)
	}
	subject, err := trust.Subject(t.Context(), token, delegation.TokenTypeAccessToken)
	if err != nil {
		t.Fatal(err)
	}
	if r := subject.Root; r == nil || r.Principal != "user:alice" || r.Scopes.String() != "calendar.read mail.read" ||
		len(r.Audiences) != 1 || r.Audiences[0] != "https://calendar.example" {
		t.Errorf("alice's token is read as %+v", subject.Root)
	}
	for naming, authenticates := range map[bool]bool{true: false, false: true} {
		token, err := issuer.WorkloadToken("planner", naming)
		if err != nil {
			t.Fatal(err)
		}
		actor, err := trust.Actor(t.Context(), token, delegation.TokenTypeJWT)
		if err != nil || actor.Principal != "agent:planner" || actor.Authenticates != authenticates {
			t.Errorf("naming %v: read as %+v, %v", naming, actor, err)
		}
		if _, err := trust.Subject(t.Context(), token, delegation.TokenTypeJWT); err == nil {
			t.Errorf("naming %v: a workload's token starts a chain", naming)
		}
	}
}

func TestDevIssuerKeepsItsKeysToItself(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dev")
	first, _ := newDevIssuer(t, dir)
	second, _ := newDevIssuer(t, dir)
	if first.people.id != second.people.id || first.workloads.id != second.workloads.id {
		t.Error("a restart changes the keys")
	}
	if first.people.id == first.workloads.id {
		t.Error("people and workloads share a key")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 2 {
		t.Fatalf("files %v, %v", files, err)
	}
	for _, file := range files {
		if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v", file, info.Mode(), err)
		}
	}
	if err := os.WriteFile(files[0], []byte("not a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewDevIssuer(DevIssuerConfig{Dir: dir}); err == nil {
		t.Error("a broken key is accepted")
	}
}

func TestDevIssuerGivesTokensToProgramsOnThisMachineOnly(t *testing.T) {
	_, server := newDevIssuer(t, t.TempDir())
	ask := func(change func(*http.Request)) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/people/token", strings.NewReader(url.Values{"user": {"alice"}}.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		change(r)
		response, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(body)
	}
	// The control of the refusals below: the same request without what they add.
	if code, body := ask(func(*http.Request) {}); code != http.StatusOK || strings.Count(body, ".") != 2 {
		t.Fatalf("a program gets %d %s", code, body)
	}
	for name, change := range map[string]func(*http.Request){
		"a page of another site":      func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") },
		"a page without an origin":    func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "none") },
		"a name that was bound to us": func(r *http.Request) { r.Host = "evil.example:8081" },
		"a name that looks like us":   func(r *http.Request) { r.Host = "127.0.0.1.evil.example" },
	} {
		if code, body := ask(change); code != http.StatusForbidden || strings.Contains(body, "eyJ") {
			t.Errorf("%s gets %d %s", name, code, body)
		}
	}

	remote := httptest.NewRequest(http.MethodPost, "http://127.0.0.1:8081/people/token", nil)
	remote.RemoteAddr = "192.0.2.7:1234"
	answer := httptest.NewRecorder()
	LoopbackOnly(http.NotFoundHandler()).ServeHTTP(answer, remote)
	if answer.Code != http.StatusForbidden {
		t.Errorf("another machine gets %d", answer.Code)
	}
	for name, form := range map[string]string{"an unknown user": "user=mallory", "a GET in disguise": ""} {
		if code, _ := ask(func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(form)), int64(len(form))
		}); code != http.StatusBadRequest {
			t.Errorf("%s gets %d", name, code)
		}
	}
}

func TestDevIssuerListsItsNames(t *testing.T) {
	issuer, _ := newDevIssuer(t, t.TempDir())
	if _, err := issuer.AccessToken("bob"); err == nil || !strings.Contains(err.Error(), "must be one of alice") {
		t.Errorf("bob: %v", err)
	}
	if _, err := issuer.WorkloadToken("alice", false); err == nil || !strings.Contains(err.Error(), "must be one of planner") {
		t.Errorf("a person as a workload: %v", err)
	}
}

// trustIn is a tenant that trusts the development issuer and finds its keys by discovery.
func trustIn(t *testing.T, issuer *DevIssuer) *token.Trust {
	t.Helper()
	keys, err := token.OpenKeyset(token.KeysetConfig{
		Keys: []token.KeyFile{{Path: filepath.Join(t.TempDir(), "signing.pem"), Algorithm: "ES256"}}, Create: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	trust, err := token.NewTrust(token.TrustConfig{
		Issuer: deputyIssuer, Keys: keys, AllowInsecureLoopback: true,
		TrustedIssuers: []token.TrustedIssuer{
			{
				Issuer: issuer.PeopleIssuer(), Keys: token.KeySource{Discovery: true}, Algorithms: []string{"ES256"},
				Principal: token.Mapping{Type: "user"}, Audiences: []string{deputyIssuer},
				RootGrants: token.RootGrants{ScopesClaim: "scope", AudiencesClaim: TargetsClaim},
			},
			{
				Issuer: issuer.WorkloadIssuer(), Keys: token.KeySource{Discovery: true}, Algorithms: []string{"ES256"},
				Principal: token.Mapping{Type: "agent"}, Workloads: true,
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return trust
}
