package e2e

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

// browserPatience bounds one step in the browser, on a machine that may be busy.
const browserPatience = 30 * time.Second

// chromium starts the one browser of a test. Each visitor has a profile of its own in it.
func chromium(t *testing.T) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.DisableGPU, chromedp.Flag("lang", "en-US"))
	if os.Geteuid() == 0 {
		// Chromium has no sandbox as root, and these pages are the project's own.
		options = append(options, chromedp.NoSandbox)
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, end := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits for the process
		end()
		stop()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("starting Chromium (tools/install-test-deps installs it): %v", err)
	}
	return ctx
}

// visitor is a person with a browser profile of their own, and the events that the test recorded.
type visitor struct {
	t    *testing.T
	ctx  context.Context
	home string // address of the console

	mu      sync.Mutex
	dialogs []string // opened by scripts
	asked   []string // addresses of requests
}

func (c *consoleWorld) visitor(t *testing.T) *visitor {
	t.Helper()
	ctx, end := chromedp.NewContext(c.browser, chromedp.WithNewBrowserContext())
	t.Cleanup(end)
	v := &visitor{t: t, ctx: ctx, home: c.address}
	check(t, chromedp.Listen(ctx, func(event any) {
		v.mu.Lock()
		defer v.mu.Unlock()
		switch e := event.(type) {
		case *page.EventJavascriptDialogOpening:
			v.dialogs = append(v.dialogs, e.Message)
			go func() {
				_, _ = chromedp.Call(ctx, page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{Accept: true})
			}()
		case *network.EventRequestWillBeSent:
			v.asked = append(v.asked, e.Request.URL)
		}
	}))
	_, err := chromedp.Call(ctx, network.Enable, network.EnableParams{})
	check(t, err)
	_, err = chromedp.Call(ctx, page.Enable, page.EnableParams{})
	check(t, err)
	v.size(1280, 820)
	return v
}

func (v *visitor) size(width, height int64) {
	v.t.Helper()
	v.do(chromedp.EmulateViewport(width, height))
}

// theme sets the preferred color scheme, light or dark.
func (v *visitor) theme(name string) {
	v.t.Helper()
	_, err := chromedp.Call(v.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
	})
	check(v.t, err)
}

func (v *visitor) within() (context.Context, context.CancelFunc) {
	return context.WithTimeout(v.ctx, browserPatience)
}

func (v *visitor) do(steps ...chromedp.Action[chromedp.Void]) {
	v.t.Helper()
	ctx, cancel := v.within()
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		v.t.Fatalf("%v\nat %s", err, v.where())
	}
}

// open opens a page of the console and returns its status.
func (v *visitor) open(path string) int64 {
	v.t.Helper()
	ctx, cancel := v.within()
	defer cancel()
	address := path
	if !strings.HasPrefix(path, "http") {
		address = v.home + path
	}
	answer, err := chromedp.Run(ctx, chromedp.NavigateResponse(address))
	if err != nil {
		v.t.Fatalf("%s: %v", address, err)
	}
	return answer.Status
}

// press clicks on an element that leads to another page, and returns that page's status.
func (v *visitor) press(css string) int64 {
	v.t.Helper()
	ctx, cancel := v.within()
	defer cancel()
	answer, err := chromedp.RunResponse(ctx, chromedp.Click(chromedp.CSS(css)))
	if err != nil {
		v.t.Fatalf("%s: %v\nat %s", css, err, v.where())
	}
	return answer.Status
}

// key types keys that lead to another page.
func (v *visitor) key(keys string) {
	v.t.Helper()
	ctx, cancel := v.within()
	defer cancel()
	if _, err := chromedp.RunResponse(ctx, chromedp.KeyEvent(keys)); err != nil {
		v.t.Fatalf("%q: %v\nat %s", keys, err, v.where())
	}
}

func (v *visitor) where() string {
	at, err := chromedp.Run(v.ctx, chromedp.Location())
	if err != nil {
		return err.Error()
	}
	return at
}

// text returns the visible text of the page.
func (v *visitor) text() string {
	v.t.Helper()
	return evaluate[string](v, "document.body.innerText")
}

// shows requires all texts on the page.
func (v *visitor) shows(texts ...string) {
	v.t.Helper()
	body := v.text()
	for _, text := range texts {
		if !strings.Contains(body, text) {
			v.t.Errorf("%s does not show %q:\n%s", v.where(), text, body)
		}
	}
}

func evaluate[T any](v *visitor, script string) T {
	v.t.Helper()
	ctx, cancel := v.within()
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		v.t.Fatalf("%s: %v", script, err)
	}
	return value
}

// cookies returns the browser's cookies for the console, by name.
func (v *visitor) cookies() map[string]*network.Cookie {
	v.t.Helper()
	found, err := chromedp.Call(v.ctx, network.GetCookies, network.GetCookiesParams{URLs: []string{v.home}})
	check(v.t, err)
	held := map[string]*network.Cookie{}
	for _, c := range found.Cookies {
		held[c.Name] = c
	}
	return held
}

func (v *visitor) setCookie(name, value string) {
	v.t.Helper()
	at, err := url.Parse(v.home)
	check(v.t, err)
	_, err = chromedp.Call(v.ctx, network.SetCookie, network.SetCookieParams{Name: name, Value: value, Domain: at.Hostname(), Path: "/"})
	check(v.t, err)
}

// signIn signs in on the development issuer's page.
func (v *visitor) signIn(who string) {
	v.t.Helper()
	v.open("")
	v.press("main button")
	v.shows("Who are you?")
	v.press(fmt.Sprintf("button[value=%s]", who))
	v.shows("Sign out", "user:"+who)
}

// noticed returns the dialogs that scripts opened, and the requests to other hosts.
func (v *visitor) noticed() (found []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, d := range v.dialogs {
		found = append(found, "a dialog: "+d)
	}
	for _, address := range v.asked {
		if u, err := url.Parse(address); err != nil || strings.HasPrefix(u.Scheme, "http") && u.Hostname() != "127.0.0.1" {
			found = append(found, "a request to "+address)
		}
	}
	return found
}
