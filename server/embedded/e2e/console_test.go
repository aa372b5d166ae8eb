package e2e

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/embedded"
)

// consoleWorld is the embedded default after its demo, and a browser.
type consoleWorld struct {
	embedded.Config
	issuer  string
	address string // of the console
	browser context.Context
}

func newConsoleWorld(t *testing.T) *consoleWorld {
	t.Helper()
	c, e := consoleIn(t, t.TempDir())
	check(t, e.Demo(t.Context(), io.Discard))
	return c
}

// consoleIn serves the contents of a directory.
func consoleIn(t *testing.T, dir string) (*consoleWorld, *embedded.Embedded) {
	t.Helper()
	config := embedded.Config{Dir: dir, GRPC: freeAddress(t), HTTP: freeAddress(t), Ops: freeAddress(t), Dev: freeAddress(t)}
	e, err := embedded.New(t.Context(), config)
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		check(t, <-ended)
	})
	return &consoleWorld{Config: config, issuer: e.Issuer(), address: e.ConsoleAddress(), browser: chromium(t)}, e
}

// as returns a client that calls as one of the demo's agents.
func (c *consoleWorld) as(t *testing.T, who delegation.Principal) *client.Client {
	t.Helper()
	key, err := client.LoadKey(filepath.Join(c.Dir, "clients", who.Type()+"-"+who.ID()+".pem"))
	check(t, err)
	credential, err := client.NewAssertion(client.AssertionConfig{Issuer: c.issuer, ClientID: string(who), Key: key})
	check(t, err)
	connected, err := client.New(client.Config{Address: c.GRPC, Transport: client.PlaintextLoopback, Credential: credential})
	check(t, err)
	t.Cleanup(func() { _ = connected.Close() })
	return connected
}

// token requests a token of the development issuer, which any program on this machine may do.
func (c *consoleWorld) token(t *testing.T, from string, form url.Values) client.Secret {
	t.Helper()
	answer, err := http.PostForm("http://"+c.Dev+"/"+from+"/token", form)
	check(t, err)
	defer answer.Body.Close()
	token, err := io.ReadAll(answer.Body)
	check(t, err)
	return client.NewSecret(strings.TrimSpace(string(token)))
}

// exchange makes the planner step in for alice.
func (c *consoleWorld) exchange(t *testing.T, scope, audience string) (*client.Token, error) {
	t.Helper()
	root := c.token(t, "people", url.Values{"user": {alice.ID()}})
	return c.as(t, planner).Exchange(t.Context(), client.ExchangeRequest{
		SubjectToken: root, Child: client.Child{Scopes: delegation.Scopes{scope}, Audience: []string{audience}},
	})
}

// TestConsole shares one embedded Deputy and one Chromium, because each takes seconds to start.
func TestConsole(t *testing.T) {
	c := newConsoleWorld(t)
	for _, story := range []struct {
		name string
		tell func(*testing.T, *consoleWorld)
	}{
		{"sign in", signInStory}, {"fixation", fixationStory}, {"search to picture", searchStory}, {"what a subject sees", subjectStory},
		{"live", liveStory}, {"frames", frameStory}, {"forged forms", forgeryStory}, {"keyboard", keyboardStory}, {"sizes and themes", sizeStory},
		{"without script", noScriptStory}, {"hostile text", hostileStory}, {"contain and resume", containStory}, {"who knows", receiptsStory}, {"an auditor", auditorStory}, {"sign out", signOutStory},
	} {
		t.Run(story.name, func(t *testing.T) { story.tell(t, c) })
	}
}

func signInStory(t *testing.T, c *consoleWorld) {
	v := c.visitor(t)
	v.open("/agent?agent=" + url.QueryEscape(string(researcher)))
	v.shows("Sign in")
	v.press("main button")
	v.press("button[value=rita]")
	v.shows("What it holds", "user:rita", "responder")
	if !strings.HasSuffix(v.where(), "/agent?agent=agent%3Aresearcher") {
		t.Errorf("signing in leads to %s", v.where())
	}
	held := v.cookies()
	if session := held["deputy-demo-session"]; len(held) != 1 || session == nil || !session.HTTPOnly || session.SameSite != "Lax" {
		t.Errorf("the browser holds %+v", held)
	}
	if seen := evaluate[string](v, "document.cookie"); seen != "" {
		t.Errorf("scripts see %q", seen)
	}
}

// fixationStory: an attacker plants a session id before the victim signs in.
func fixationStory(t *testing.T, c *consoleWorld) {
	attacker := c.visitor(t)
	attacker.signIn("audrey")
	planted := attacker.cookies()["deputy-demo-session"].Value
	victim := c.visitor(t)
	victim.setCookie("deputy-demo-session", planted)
	victim.open("/sign-in")
	victim.press("main button")
	victim.press("button[value=rita]")
	victim.shows("user:rita")
	if victim.cookies()["deputy-demo-session"].Value == planted {
		t.Error("the planted id stays")
	}
	attacker.open("")
	if strings.Contains(attacker.text(), "user:rita") {
		t.Error("the attacker is rita now")
	}
}

func searchStory(t *testing.T, c *consoleWorld) {
	v := c.visitor(t)
	v.signIn("audrey")
	v.shows("Ledger entries", "refused", "scope_exceeds_parent", "agent:planner")
	v.do(chromedp.SetValue(chromedp.CSS("#f-kind"), "grant"), chromedp.SendKeys(chromedp.CSS("#f-actor"), string(researcher)))
	v.press(".submit button")
	v.shows("Filtered by Any actor of the chain agent:researcher, Kind grant")
	if rows := evaluate[int](v, "document.querySelectorAll('tbody tr').length"); rows != 2 {
		t.Errorf("%d rows", rows)
	}
	table := evaluate[string](v, "fetch(document.querySelector('.pager > a').href).then(r => r.text())")
	if cells, err := csv.NewReader(strings.NewReader(table)).ReadAll(); err != nil || len(cells) != 3 {
		t.Errorf("%v: %s", err, table)
	}
	v.press("tbody tr:last-child td:last-child a")
	v.shows("Each hop's decision", "calendar.read", "calendar.write", "What was derived from it")
	if boxes := evaluate[int](v, "document.querySelectorAll('.picture .node').length"); boxes != 3 {
		t.Errorf("%d boxes in the picture", boxes)
	}
	if gone := evaluate[string](v, "document.querySelector('.lane.gone text').textContent"); !strings.HasPrefix(gone, "calendar.write") {
		t.Errorf("what was not handed on is %q", gone)
	}
	v.press(".picture .edge a")
	v.shows("Entry ", "Leaf hash")
}

// subjectStory: alice sees only what was delegated on her behalf.
func subjectStory(t *testing.T, c *consoleWorld) {
	v := c.visitor(t)
	v.signIn("alice")
	v.shows("on your behalf", "agent:researcher")
	if strings.Contains(v.text(), "Live") {
		t.Error("she is offered everything")
	}
	for path, want := range map[string]int64{
		"/live": http.StatusNotFound, "/agent?agent=agent%3Aresearcher": http.StatusNotFound, "/entry?entry=999999": http.StatusNotFound,
		"/?subject=user%3Abob": http.StatusNotFound, "/take-back?kind=suspend&id=agent%3Aresearcher": http.StatusNotFound, "/ledger": http.StatusOK,
	} {
		if got := v.open(path); got != want {
			t.Errorf("%s: %d", path, got)
		}
	}
}

func liveStory(t *testing.T, c *consoleWorld) {
	v := c.visitor(t)
	v.signIn("rita")
	v.open("/live")
	before := evaluate[int](v, "document.querySelectorAll('tbody tr').length")
	granted, err := c.exchange(t, "mail.read", mailAudience)
	check(t, err)
	link := fmt.Sprintf("tbody tr.fresh a[href$='entry=%d']", granted.Entry)
	v.do(chromedp.WaitVisible(chromedp.CSS(link)))
	if after := evaluate[int](v, "document.querySelectorAll('tbody tr').length"); after <= before {
		t.Errorf("%d rows, then %d", before, after)
	}
	v.do(chromedp.Click(chromedp.CSS("[data-live-pause]")))
	v.shows("paused", "Go on")
}

// elsewhere serves a page of another site.
func elsewhere(t *testing.T, host, body string) string {
	t.Helper()
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<!doctype html><title>elsewhere</title>"+body)
	}))
	t.Cleanup(site.Close)
	_, port, err := net.SplitHostPort(site.Listener.Addr().String())
	check(t, err)
	return "http://" + net.JoinHostPort(host, port) + "/"
}

// frameStory: another site shows the console in a frame, to make a person press its buttons.
func frameStory(t *testing.T, c *consoleWorld) {
	v := c.visitor(t)
	v.signIn("rita")
	loaded := func(address string) bool {
		v.open(elsewhere(t, "127.0.0.1", `<iframe src="`+address+`" onload="document.title='done'"></iframe>`))
		ctx, cancel := v.within()
		defer cancel()
		_, err := chromedp.Run(ctx, chromedp.Poll[bool]("document.title === 'done'"))
		check(t, err)
		frames, err := chromedp.Call(v.ctx, page.GetFrameTree, cdp.Empty{})
		check(t, err)
		return len(frames.FrameTree.ChildFrames) == 1 && strings.HasPrefix(frames.FrameTree.ChildFrames[0].Frame.URL, "http") &&
			frames.FrameTree.ChildFrames[0].Frame.UnreachableURL == ""
	}
	for _, path := range []string{"", "/agent?agent=agent%3Aresearcher", "/take-back?kind=suspend&id=agent%3Aresearcher", "/sign-in"} {
		if loaded(c.address + path) {
			t.Errorf("%q is shown in a frame", path)
		}
	}
	if !loaded(elsewhere(t, "127.0.0.1", "content")) {
		t.Error("the test does not notice a frame that is shown")
	}
}

// forgeryStory: a page of another site sends the console's forms. From another port of this host
// the browser sends the session too. From localhost it does not.
func forgeryStory(t *testing.T, c *consoleWorld) {
	v := c.visitor(t)
	v.signIn("rita")
	for _, host := range []string{"127.0.0.1", "localhost"} {
		for path, fields := range map[string]string{
			"/take-back": `<input name="kind" value="suspend"><input name="id" value="agent:planner"><input name="reason" value="x"><input name="csrf" value="x">`,
			"/sign-out":  ``,
			"/sign-in":   `<input name="next" value="https://evil.example/">`,
		} {
			v.open(elsewhere(t, host, `<form method="post" action="`+c.address+path+`">`+fields+`<button>Win</button></form>`))
			if status := v.press("button"); status != http.StatusForbidden {
				t.Errorf("%s from %s: %d", path, host, status)
			}
		}
	}
	v.open("/agent?agent=" + url.QueryEscape(string(planner)))
	v.shows("user:rita", "Contain…") // neither signed out nor suspended
}

// keyboardStory contains and resumes nothing. It goes as far as the reason, with the keyboard only.
func keyboardStory(t *testing.T, c *consoleWorld) {
	v := c.visitor(t)
	v.signIn("rita")
	focused := func() string {
		return evaluate[string](v, "(document.activeElement.textContent || document.activeElement.id || document.activeElement.name).trim()")
	}
	v.do(chromedp.KeyEvent("\t"))
	if got := focused(); got != "Skip to the content" || evaluate[float64](v, "document.activeElement.getBoundingClientRect().top") < 0 {
		t.Errorf("the first stop is %q", got)
	}
	v.do(chromedp.KeyEvent("\r"))
	if got := evaluate[string](v, "document.activeElement.id"); got != "main" {
		t.Errorf("skipping leads to %q", got)
	}
	v.open("/agent?agent=" + url.QueryEscape(string(researcher)))
	for stops := 0; !strings.HasPrefix(focused(), "Contain"); stops++ {
		if stops > 30 {
			t.Fatal("Contain cannot be reached")
		}
		v.do(chromedp.KeyEvent("\t"))
		if width := evaluate[string](v, "getComputedStyle(document.activeElement).outlineWidth"); width != "3px" {
			t.Errorf("%q has the focus and does not show it: %s", focused(), width)
		}
	}
	v.key("\r")
	v.shows("Contain agent:researcher", "live tokens to revoke")
	for stops := 0; focused() != "reason"; stops++ {
		if stops > 30 {
			t.Fatal("the reason cannot be reached")
		}
		v.do(chromedp.KeyEvent("\t"))
	}
	v.do(chromedp.KeyEvent("by keyboard"))
	if got := evaluate[string](v, "document.activeElement.value"); got != "by keyboard" {
		t.Errorf("the reason is %q", got)
	}
}

var consolePages = []string{
	"", "/chain?jti=JTI", "/agent?agent=agent%3Aresearcher", "/entry?entry=1", "/entry?entry=3", "/live", "/ledger", "/take-back?kind=suspend&id=agent%3Aresearcher", "/agent",
	"/nothing", "/suspensions", "/revoke", "/take-back?kind=tenant",
}

// leaf returns the jti of the researcher's token.
func (c *consoleWorld) leaf(t *testing.T) string {
	t.Helper()
	entry, err := c.as(t, planner).Entry(t.Context(), 2)
	check(t, err)
	return entry.JTI
}

func sizeStory(t *testing.T, c *consoleWorld) {
	v := c.visitor(t)
	v.signIn("rita")
	leaf := c.leaf(t)
	for _, width := range []int64{1280, 390} {
		v.size(width, 820)
		for _, path := range consolePages {
			v.open(strings.ReplaceAll(path, "JTI", leaf))
			if wide := evaluate[int64](v, "document.scrollingElement.scrollWidth"); wide > width {
				t.Errorf("%q is %d wide on a screen of %d", path, wide, width)
			}
		}
	}
	ground := func(theme string) string {
		v.theme(theme)
		return evaluate[string](v, "getComputedStyle(document.body).backgroundColor")
	}
	if light, dark := ground("light"), ground("dark"); light == dark {
		t.Errorf("light and dark are both %s", light)
	}
}

func noScriptStory(t *testing.T, c *consoleWorld) {
	v := c.visitor(t)
	_, err := chromedp.Call(v.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	check(t, err)
	v.signIn("rita")
	v.press("tbody td:last-child a")
	v.shows("Each hop's decision")
	v.open("/agent?agent=agent%3Aresearcher")
	v.press("main .danger")
	v.shows("Contain agent:researcher")
	v.open("/live")
	if every := evaluate[string](v, "document.querySelector('noscript meta, meta[http-equiv=refresh]')?.getAttribute('content') ?? ''"); every != "5" {
		t.Errorf("the live page reloads every %q seconds", every)
	}
	v.press(".me button")
	v.shows("Signed out")
}

// hostile is text that an agent, or a person who controls one, may send.
var hostile = []string{
	`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `javascript:alert(1)`, `</textarea></title></style><svg/onload=alert(1)>`,
	`<iframe srcdoc="<script>parent.alert(1)</script>">`, `<base href="http://localhost:1/">`, `<meta http-equiv="refresh" content="0;url=http://localhost:1/">`, "a\u202etxt.exe",
}

func hostileStory(t *testing.T, c *consoleWorld) {
	var leaf string
	for _, evil := range hostile {
		scope := strings.Map(func(r rune) rune {
			if r <= ' ' || r == '"' || r == '\\' || r > '~' {
				return '/'
			}
			return r
		}, evil)
		if _, err := c.exchange(t, scope, evil); err == nil {
			t.Fatalf("%q was granted", scope)
		}
		granted, err := c.exchange(t, "mail.read", mailAudience)
		check(t, err)
		leaf = granted.JTI
		_, err = c.as(t, planner).Revoke(t.Context(), client.RevokeRequest{Target: client.RevokeGrant(leaf), Reason: evil})
		check(t, err)
	}
	v := c.visitor(t)
	v.signIn("rita")
	last := evaluate[int](v, "Number(document.querySelector('tbody th a').textContent)")
	paths := []string{"", "/live", "/chain?jti=" + leaf, "/agent?agent=agent%3Aplanner"}
	for entry := last; entry > last-3*len(hostile); entry-- {
		paths = append(paths, fmt.Sprintf("/entry?entry=%d", entry))
	}
	for _, evil := range hostile[:2] { // the tests of package console send all texts to all pages
		quoted := url.QueryEscape(evil)
		paths = append(paths, "/?scope="+quoted, "/?audience="+quoted, "/agent?agent="+quoted, "/chain?jti="+quoted, "/take-back?kind=token&id="+quoted, "/sign-in?next="+quoted, "/"+quoted)
	}
	seen := ""
	for _, path := range paths {
		v.open(path)
		seen += v.text()
	}
	for _, evil := range hostile[:len(hostile)-1] {
		if !strings.Contains(seen, evil) {
			t.Errorf("%q is nowhere: the test shows nothing", evil)
		}
	}
	if found := v.noticed(); len(found) > 0 {
		t.Error(strings.Join(found, "\n"))
	}
	// The control: the same text on a page that does not escape it.
	v.open(elsewhere(t, "127.0.0.1", hostile[1]+`<img src="http://localhost:1/">`))
	eventually(t, browserPatience, func() error {
		if len(v.noticed()) < 2 {
			return fmt.Errorf("the test does not notice: %v", v.noticed())
		}
		return nil
	})
}

func containStory(t *testing.T, c *consoleWorld) {
	v := c.visitor(t)
	v.signIn("rita")
	v.open("/agent?agent=agent%3Aresearcher")
	v.shows("live tokens in its hands", "What it could still obtain", "user:alice")
	v.press("main .danger")
	v.shows("Contain agent:researcher", "live tokens to revoke")
	const reason = "key found in a public repository"
	v.do(chromedp.SendKeys(chromedp.CSS("#reason"), reason))
	v.press("main .primary")
	v.shows("revocation", "suspends agent:researcher", reason, "user:rita", "Who knows of it")
	v.open("/agent?agent=agent%3Aresearcher")
	v.shows("suspended", "It can do nothing until it is resumed", "No live token")
	// The planner cannot hand down to it any more.
	naming := c.token(t, "workloads", url.Values{"agent": {researcher.ID()}, "audience": {"actor"}})
	own, err := c.exchange(t, "calendar.read", calendarAudience)
	check(t, err)
	_, err = c.as(t, planner).Exchange(t.Context(), client.ExchangeRequest{
		SubjectToken: own.AccessToken,
		Child:        client.Child{ActorToken: naming, Scopes: delegation.Scopes{"calendar.read"}, Audience: []string{calendarAudience}},
	})
	if got := delegation.AsError(err); got == nil || got.Reason != delegation.ActorTokenInvalid {
		t.Errorf("handing on to a contained agent: %v", err)
	}
	v.press(".actions a:last-child")
	v.shows("Resume agent:researcher")
	v.do(chromedp.SendKeys(chromedp.CSS("#reason"), "the key was changed"))
	v.press("main .primary")
	v.shows("resumes agent:researcher")
	v.open("/agent?agent=agent%3Aresearcher")
	v.shows("Contain…")
}

// receiptsStory: an open page of a revocation is updated when one more verifier has applied it.
func receiptsStory(t *testing.T, c *consoleWorld) {
	granted, err := c.exchange(t, "mail.read", mailAudience)
	check(t, err)
	own := c.as(t, planner)
	done, err := own.Revoke(t.Context(), client.RevokeRequest{Target: client.RevokeGrant(granted.JTI), Reason: "a drill"})
	check(t, err)
	v := c.visitor(t)
	v.signIn("rita")
	v.open(fmt.Sprintf("/entry?entry=%d", done.Revocation.Seq))
	verifier, err := client.NewVerifier(client.VerifierConfig{Issuer: c.issuer, Audience: mailAudience, Client: own})
	check(t, err)
	defer verifier.Close()
	eventually(t, browserPatience, func() error {
		if text := v.text(); !strings.Contains(text, "All 1 connected verifiers have applied it") || !strings.Contains(text, string(planner)) {
			return fmt.Errorf("the page still shows:\n%s", text)
		}
		return nil
	})
}

// auditorStory: audrey reads everything, and no page offers her a revocation.
func auditorStory(t *testing.T, c *consoleWorld) {
	v := c.visitor(t)
	v.signIn("audrey")
	for _, path := range []string{"/agent?agent=agent%3Aresearcher", "/agent", "/suspensions", "/chain?jti=" + c.leaf(t), "/?subject=user%3Aalice"} {
		if status := v.open(path); status != http.StatusOK {
			t.Errorf("%s: %d", path, status)
		}
		if offers := evaluate[string](v, "[...document.querySelectorAll('a[href*=take-back]')].map(a => a.textContent).join()"); offers != "" {
			t.Errorf("%s offers %s", path, offers)
		}
	}
	v.open("/agent?agent=agent%3Anever-was")
	v.shows("check how its name is written")
	v.open("/agent")
	v.shows("Seen lately", "agent:researcher", "Most refused")
	if status := v.open("/take-back?kind=suspend&id=agent%3Aresearcher"); status != http.StatusNotFound {
		t.Errorf("the form for a reason is there: %d", status)
	}
	v.shows("Nothing there", "Entries", "Sign out")
}

func signOutStory(t *testing.T, c *consoleWorld) {
	v := c.visitor(t)
	v.signIn("rita")
	held := v.cookies()["deputy-demo-session"].Value
	v.press(".me button")
	v.shows("Signed out")
	if len(v.cookies()) != 0 {
		t.Errorf("the browser still holds %v", v.cookies())
	}
	evaluate[any](v, "history.back()")
	eventually(t, browserPatience, func() error {
		at, err := chromedp.Run(v.ctx, chromedp.Evaluate[string]("location.search + document.body.innerText"))
		if err == nil && (!strings.Contains(at, "?next=") || strings.Contains(at, "Ledger entries")) {
			err = fmt.Errorf("going back shows %s", at)
		}
		return err
	})
	v.setCookie("deputy-demo-session", held)
	v.open("")
	v.shows("Sign in")
}
