package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"golang.org/x/net/html"
)

var update = flag.Bool("update", false, "take the screenshots in docs/screenshots anew")

// screenshots are the pages in docs/screenshots, in the state after the demo.
var screenshots = []struct {
	name, path string
	width      int64
	theme      string
}{
	{"entries", "", 1280, "light"},
	{"chain", "/chain?jti=JTI", 1280, "light"},
	{"agent", "/agent?agent=agent%3Aresearcher", 1280, "dark"},
	{"contain", "/take-back?kind=suspend&id=agent%3Aresearcher", 1280, "light"},
	{"agents", "/agent", 1280, "light"},
	{"revoke", "/revoke", 1280, "dark"},
	{"ledger", "/ledger", 1280, "dark"},
	{"phone", "/agent?agent=agent%3Aresearcher", 390, "light"},
}

// TestScreenshotsAreCurrent compares the demo's pages with those at the time of the pictures:
// elements, classes and words that do not change, and all styles. A picture itself would differ
// from machine to machine.
func TestScreenshotsAreCurrent(t *testing.T) {
	c := newConsoleWorld(t)
	v := c.visitor(t)
	v.signIn("rita")
	leaf := c.leaf(t)
	eventually(t, changesIn, func() error {
		if page := fetch(t, v, c.address+"/ledger"); !strings.Contains(page, "Latest checkpoint") {
			return errors.New("the ledger has no checkpoint yet")
		}
		return nil
	})
	dir := filepath.Join("..", "..", "..", "docs", "screenshots")
	record := filepath.Join(dir, "pages.json")
	now := map[string]string{}
	for _, shot := range screenshots {
		path := strings.ReplaceAll(shot.path, "JTI", leaf)
		now[shot.name] = c.digest(t, v, path)
		if !*update {
			continue
		}
		v.size(shot.width, map[int64]int64{1280: 800, 390: 844}[shot.width])
		v.theme(shot.theme)
		v.open(path)
		ctx, cancel := v.within()
		picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
		cancel()
		check(t, err)
		check(t, os.MkdirAll(dir, 0o755))
		check(t, os.WriteFile(filepath.Join(dir, shot.name+".png"), picture, 0o644))
	}
	if *update {
		text, err := json.MarshalIndent(now, "", "  ")
		check(t, err)
		check(t, os.WriteFile(record, append(text, '\n'), 0o644))
	}
	then := map[string]string{}
	text, err := os.ReadFile(record)
	check(t, err)
	check(t, json.Unmarshal(text, &then))
	for name, digest := range now {
		if then[name] != digest {
			t.Errorf("the page in docs/screenshots/%s.png looks different now: look at it, then run go test ./e2e -run TestScreenshotsAreCurrent -update in server/embedded", name)
		}
		if _, err := os.Stat(filepath.Join(dir, name+".png")); err != nil {
			t.Error(err)
		}
	}
	if len(then) != len(now) {
		t.Errorf("docs/screenshots has %v", slices.Sorted(maps.Keys(then)))
	}
	// The control: another page has another digest.
	if c.digest(t, v, "/agent") == now["agent"] {
		t.Error("the test does not notice that a page is another one")
	}
}

// digest covers the page's structure and its styles, fetched with the visitor's session.
func (c *consoleWorld) digest(t *testing.T, v *visitor, path string) string {
	t.Helper()
	root, err := html.Parse(strings.NewReader(fetch(t, v, c.address+path)))
	check(t, err)
	sum := sha256.New()
	for n := range root.Descendants() {
		switch n.Type {
		case html.ElementNode:
			fmt.Fprintf(sum, "<%s", n.Data)
			for _, a := range n.Attr {
				fmt.Fprintf(sum, " %s", a.Key)
				if a.Key == "class" {
					fmt.Fprintf(sum, "=%q", a.Val)
				}
				if n.Data == "link" && a.Key == "href" {
					fmt.Fprint(sum, fetch(t, v, "http://"+c.HTTP+a.Val))
				}
			}
		case html.TextNode:
			// The console's own words hold only letters. Numbers, names, times and ids hold others.
			for word := range strings.FieldsSeq(n.Data) {
				if !strings.ContainsFunc(word, func(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') }) {
					fmt.Fprintf(sum, " %s", word)
				}
			}
		}
	}
	return hex.EncodeToString(sum.Sum(nil)[:12])
}

// fetch gets a page with the visitor's session.
func fetch(t *testing.T, v *visitor, address string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	check(t, err)
	for name, cookie := range v.cookies() {
		request.AddCookie(&http.Cookie{Name: name, Value: cookie.Value})
	}
	request.Close = true
	answer, err := http.DefaultClient.Do(request)
	check(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	check(t, err)
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", address, answer.Status)
	}
	return string(body)
}
