package console

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/oauth2"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	rita  = delegation.Principal("user:rita")
	alice = delegation.Principal("user:alice")
)

// script is an engine that returns scripted answers and records its calls.
type script struct {
	clock    func() time.Time
	mu       sync.Mutex
	signedIn []exchange.SignInCall
	queries  []ledger.Query
	revokes  []exchange.RevokeCall

	role        exchange.Role
	err         error // of every question
	unbelieved  error // of Restore
	unsigned    bool  // SignIn refuses
	entries     []exchange.Recorded
	chain       []exchange.Recorded
	descendants []exchange.Descendant
	reach       exchange.Reach
	tail        []exchange.Recorded
	full        error        // returned in place of a tail
	closed      atomic.Int32 // tails
	checkpoint  exchange.Checkpoint
	receipts    []guard.Receipt
	window      ledger.Window
	suspended   []exchange.Suspension
	mayNot      bool
	uncounted   bool // dry runs take too long
	unanswered  error
	undecided   error // of MayRevoke
	unheard     error // of Receipts
	partial     bool  // Receipts are of one instance
}

func (s *script) SignIn(_ context.Context, in exchange.SignInCall) (exchange.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signedIn = append(s.signedIn, in)
	if in.IDToken == "" || s.unsigned {
		return exchange.Session{}, delegation.Refuse(delegation.ClientUnauthenticated, "", "nobody has signed in")
	}
	return exchange.Session{Principal: s.role.Principal, Issuer: in.Issuer, SignedIn: s.clock()}, nil
}

func (s *script) Restore(_ context.Context, _ string, _ exchange.Session) (exchange.Person, error) {
	if s.unanswered != nil {
		return exchange.Person{}, s.unanswered
	}
	return exchange.Person{}, s.unbelieved
}

func (s *script) Role(context.Context, exchange.Inquiry) (exchange.Role, error) { return s.role, nil }

func (s *script) Search(_ context.Context, _ exchange.Inquiry, q ledger.Query) ([]exchange.Recorded, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queries = append(s.queries, q)
	before := uint64(0)
	if len(s.entries) > 0 {
		before = s.entries[len(s.entries)-1].Seq
	}
	return s.entries, before, s.err
}

func (s *script) Entry(_ context.Context, q exchange.Inquiry) (exchange.Recorded, error) {
	for _, e := range s.entries {
		if s.err == nil && (e.Seq == q.Entry || q.ID != "" && e.ID == q.ID) {
			return e, nil
		}
	}
	if s.err != nil {
		return exchange.Recorded{}, s.err
	}
	return exchange.Recorded{}, delegation.Refuse(delegation.NotFound, "entry", "no such entry, or none that you may see")
}

func (s *script) Chain(context.Context, exchange.Inquiry) ([]exchange.Recorded, error) {
	return s.chain, s.err
}

func (s *script) Descendants(context.Context, exchange.Inquiry, uint64, int) ([]exchange.Descendant, uint64, error) {
	return s.descendants, 0, s.err
}

func (s *script) Reach(context.Context, exchange.Inquiry, delegation.Principal, int) (exchange.Reach, error) {
	return s.reach, s.err
}

func (s *script) Agents(context.Context, exchange.Inquiry) (ledger.Window, error) {
	return s.window, s.err
}

func (s *script) Suspensions(context.Context, exchange.Inquiry, uint64) ([]exchange.Suspension, uint64, error) {
	return s.suspended, 17, s.err
}

func (s *script) MayRevoke(_ context.Context, _ exchange.Inquiry, targets ...delegation.Target) ([]bool, error) {
	may := make([]bool, len(targets))
	for i := range may {
		may[i] = !s.mayNot
	}
	return may, cmp.Or(s.undecided, s.err)
}

func (s *script) Tail(context.Context, exchange.Inquiry) (Tail, error) {
	if s.full != nil {
		return nil, s.full
	}
	return s, s.err
}

func (s *script) Close() { s.closed.Add(1) }

func (s *script) Next(_ context.Context, after uint64) ([]exchange.Recorded, error) {
	var news []exchange.Recorded
	for _, e := range s.tail {
		if e.Seq > after {
			news = append(news, e)
		}
	}
	return news, nil
}

func (s *script) Checkpoint(context.Context, exchange.Inquiry) (exchange.Checkpoint, error) {
	return s.checkpoint, s.err
}

func (s *script) Revoke(_ context.Context, call exchange.RevokeCall) (exchange.Revoked, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revokes = append(s.revokes, call)
	switch {
	case s.err != nil:
		return exchange.Revoked{}, s.err
	case s.uncounted && call.DryRun:
		return exchange.Revoked{}, delegation.Unavailable("ledger", context.DeadlineExceeded)
	case s.mayNot:
		return exchange.Revoked{}, delegation.Refuse(delegation.NotFound, "target", "nothing there to revoke, or nothing that you may revoke")
	case call.DryRun:
		return exchange.Revoked{Tokens: 2, Chains: 1, Counted: true}, nil
	}
	return exchange.Revoked{Revocation: &delegation.Revocation{Seq: 58, Target: call.Target}}, nil
}

func (s *script) Receipts(context.Context, exchange.Inquiry, uint64) (exchange.Receipts, error) {
	return exchange.Receipts{List: s.receipts, Partial: s.partial}, cmp.Or(s.unheard, s.err)
}

// shelf keeps sessions as the ledger does, in memory.
type shelf struct {
	mu   sync.Mutex
	kept map[[32]byte]ledger.Session
	seen map[[32]byte]time.Time
	now  func() time.Time

	tenant string // the only one that has sessions; "": any
}

func (s *shelf) StartSession(_ context.Context, _ string, key [32]byte, session ledger.Session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept[key], s.seen[key] = session, s.now()
	return nil
}

func (s *shelf) Session(_ context.Context, tenant string, key [32]byte) (ledger.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	session, there := s.kept[key]
	if now := s.now(); !there || s.tenant != "" && tenant != s.tenant || !now.Before(session.Until) || !now.Before(s.seen[key].Add(session.Idle)) {
		return ledger.Session{}, ledger.ErrNotFound
	}
	s.seen[key] = s.now()
	return session, nil
}

func (s *shelf) EndSession(_ context.Context, _ string, key [32]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.kept, key)
	return nil
}

// idp is an OpenID provider that signs in every visitor, and requires PKCE.
type idp struct {
	*httptest.Server
	mu         sync.Mutex
	challenges map[string]url.Values // by code
	asked      []url.Values          // by the token endpoint
	basic      []string              // user and password of the same requests
	methods    []string
	down       bool
	fragment   string // of the authorization endpoint
}

func newIDP(t *testing.T) *idp {
	t.Helper()
	p := &idp{challenges: map[string]url.Values{}}
	mux := http.NewServeMux()
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.down {
			http.Error(w, "down", http.StatusInternalServerError)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(p.Close)
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize" + p.fragment, "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/jwks",
			"token_endpoint_auth_methods_supported": p.methods, "id_token_signing_alg_values_supported": []string{"ES256"},
		})
	})
	mux.HandleFunc("GET /authorize", func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		code := newSecret()
		p.mu.Lock()
		p.challenges[code] = query
		p.mu.Unlock()
		back := query.Get("redirect_uri") + "?" + url.Values{"code": {code}, "state": {query.Get("state")}, "iss": {p.URL}}.Encode()
		http.Redirect(w, r, back, http.StatusFound)
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.asked = append(p.asked, r.PostForm)
		user, password, _ := r.BasicAuth()
		p.basic = append(p.basic, user+" "+password)
		began, known := p.challenges[r.PostForm.Get("code")]
		delete(p.challenges, r.PostForm.Get("code"))
		w.Header().Set("Content-Type", "application/json")
		if !known || challengeOf(r.PostForm.Get("code_verifier")) != began.Get("code_challenge") || began.Get("code_challenge_method") != "S256" {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error":"invalid_grant"}`)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "opaque", "token_type": "Bearer", "id_token": canary + "." + began.Get("nonce")})
	})
	return p
}

func challengeOf(verifier string) string {
	return oauth2.S256ChallengeFromVerifier(verifier)
}

// canary replaces an ID token, and must not occur in any output.
const canary = "canary-of-an-id-token"

// diary is a log that a test can read while the site writes.
type diary struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (d *diary) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.Write(b)
}

func (d *diary) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.String()
}

// stage is a console with all its dependencies, and a browser.
type stage struct {
	t       *testing.T
	engine  *script
	shelf   *shelf
	idp     *idp
	console *console
	site    *httptest.Server
	browser *http.Client
	log     *diary
	clock   time.Time
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{t: t, idp: newIDP(t), log: &diary{}, clock: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
	now := func() time.Time { return s.clock }
	s.engine = &script{clock: now, role: exchange.Role{Principal: rita, Audits: true, Responds: true}}
	s.shelf = &shelf{kept: map[[32]byte]ledger.Session{}, seen: map[[32]byte]time.Time{}, now: now}
	var handler http.Handler
	s.site = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	t.Cleanup(s.site.Close)
	made, err := New(Config{
		Engine: s.engine, Sessions: s.shelf, Now: now, Transport: s.idp.Client().Transport, Logger: slog.New(slog.NewTextHandler(s.log, nil)),
		Tenants: []Tenant{s.tenant("demo", ""), s.tenant("acme", "/t/acme")},
	})
	if err != nil {
		t.Fatal(err)
	}
	handler, s.console = made, made.(*console)
	s.browser = newBrowser(t)
	return s
}

func (s *stage) tenant(name, path string) Tenant {
	return Tenant{
		Name: name, Issuer: s.site.URL + path, Provider: s.idp.URL, ClientID: "console", Idle: 30 * time.Minute, Life: 12 * time.Hour,
		InsecureLoopback: true,
	}
}

func newBrowser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Jar: jar, Transport: transport}
}

// reply is an answer whose body was read to its end.
type reply struct {
	*http.Response
	body string
}

func (s *stage) do(r *http.Request) reply {
	s.t.Helper()
	response, err := s.browser.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return reply{response, string(body)}
}

func (s *stage) request(method, path string, form url.Values) *http.Request {
	s.t.Helper()
	r, err := http.NewRequest(method, s.site.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		s.t.Fatal(err)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	return r
}

func (s *stage) get(path string) reply { return s.do(s.request(http.MethodGet, path, nil)) }

func (s *stage) post(path string, form url.Values) reply {
	return s.do(s.request(http.MethodPost, path, form))
}

// signIn signs in at the provider and returns the first page after it.
func (s *stage) signIn(next string) reply {
	s.t.Helper()
	landed := s.post("/console/sign-in", url.Values{"next": {next}})
	if landed.StatusCode != http.StatusOK || !strings.Contains(landed.body, "Sign out") {
		s.t.Fatalf("sign-in ends with %s at %s:\n%s", landed.Status, landed.Request.URL, landed.body)
	}
	return landed
}

var tokenField = regexp.MustCompile(`name="csrf" value="([^"]+)"`)

// csrf returns the token in the forms of a page.
func (s *stage) csrf(page string) string {
	s.t.Helper()
	found := tokenField.FindStringSubmatch(page)
	if found == nil {
		s.t.Fatalf("no csrf token in:\n%s", page)
	}
	return found[1]
}

// cookies returns the browser's cookies for the console.
func (s *stage) cookies() map[string]string {
	at, err := url.Parse(s.site.URL)
	if err != nil {
		s.t.Fatal(err)
	}
	held := map[string]string{}
	for _, c := range s.browser.Jar.Cookies(at) {
		held[c.Name] = c.Value
	}
	return held
}

func scopes(t testing.TB, names ...string) delegation.Scopes {
	t.Helper()
	list, err := delegation.NewScopes(names...)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
