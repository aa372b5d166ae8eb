package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server"
	"deputy.example/deputy/server/fill"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
)

// longWords are the longest words of a ledger: names of service accounts, people with mail
// addresses, scopes that are addresses, a reason without a space.
const (
	longSubject  = delegation.Principal("user:maximiliane.von-und-zu-hohenlohe-waldenburg@department-of-procurement.example")
	longScope    = "https://calendar.googleapis.example/auth/calendar.events.owned.readonly"
	longAudience = "https://resource-server.eu-central-1.internal.platform.department-of-procurement.example/v1/calendars"
)

func longAgent(i int) delegation.Principal {
	return delegation.Principal(fmt.Sprintf("agent:k8s/system%%3Aserviceaccount%%3Adepartment-of-procurement%%3Aorchestrating-planner-%d", i))
}

// filled returns a directory with the ledger of some months, and in it a chain of eight with the
// longest words. It also returns the jti at the chain's end.
func filled(t *testing.T) (dir, leaf string) {
	t.Helper()
	dir = t.TempDir()
	dsn := "sqlite://" + filepath.Join(dir, "ledger.db")
	check(t, server.Migrate(t.Context(), server.Database{DSN: dsn}))
	_, err := fill.Run(t.Context(), dsn, fill.Options{Tenant: "demo", Entries: 2000, Seed: 12, Until: time.Now().Add(-time.Second)})
	check(t, err)
	l, err := ledger.Open(t.Context(), dsn, ledger.Config{Timeout: 20 * time.Second})
	check(t, err)
	defer func() { check(t, l.Close()) }()
	add := func(d *ledger.Draft) ledger.Receipt {
		r := l.AppendAll(context.Background(), "demo", []*ledger.Draft{d}, nil)[0]
		check(t, r.Err)
		return r.Receipt
	}
	crockford := strings.NewReplacer("I", "8", "L", "9", "O", "0", "U", "1")
	d := ledgertest.Grant(time.Now(), longSubject, longAgent(0))
	for i := range 8 {
		d.ID = "01" + crockford.Replace(rand.Text()[:24])
		d.Scopes, d.Audiences, d.Caller = delegation.Scopes{longScope, longScope + ".more"}, []string{longAudience}, longAgent(9)
		leaf = d.ID
		last := add(d)
		d = ledgertest.Child(time.Now(), last.Claims, longAgent(i+1))
	}
	add(&ledger.Draft{Kind: ledger.KindRefusal, Reason: delegation.ScopeExceedsParent, Caller: longAgent(1), Detail: strings.Repeat("a-reason-without-spaces-", 8)})
	for _, target := range []delegation.Target{
		{Kind: delegation.BanSuspend, ID: string(longAgent(7))}, {Kind: delegation.CutAgentSubject, ID: string(longAgent(6)), Subject: longSubject},
		{Kind: delegation.BanKey, ID: strings.Repeat("0Zc", 40)},
	} {
		d := ledgertest.Revocation(target.Kind, target.ID)
		d.Revocation.Target, d.Caller, d.Detail = target, longSubject, strings.Repeat("a-reason-without-spaces-", 8)
		add(d)
	}
	return dir, leaf
}

// TestNoPageIsWiderThanItsScreen shows a ledger after months of service on screens of every size.
func TestNoPageIsWiderThanItsScreen(t *testing.T) {
	dir, leaf := filled(t)
	c, _ := consoleIn(t, dir)
	v := c.visitor(t)
	v.signIn("rita")
	agent := url.QueryEscape(string(longAgent(7)))
	paths := []string{
		"", "/?limit=500", "/?txn=x", "/?subject=" + url.QueryEscape(string(longSubject)), "/live", "/chain?jti=" + leaf, "/agent", "/agent?agent=" + agent,
		"/agent?agent=agent%3Aplanner-0", "/suspensions", "/revoke", "/take-back?kind=suspend&id=" + agent, "/take-back?kind=tenant", "/entry?entry=2008",
		"/entry?entry=2009", "/entry?entry=2011", "/entry?entry=2012", "/nothing",
	}
	for _, path := range paths {
		for _, width := range []int64{390, 768, 1089, 1280, 1920} {
			v.size(width, 900)
			v.open(path)
			if wide := evaluate[int64](v, "document.scrollingElement.scrollWidth"); wide > width {
				t.Errorf("%q is %d wide on a screen of %d; the widest is %s", path, wide, width, evaluate[string](v, widest))
			}
		}
		if faults := evaluate[string](v, unusable); faults != "" {
			t.Errorf("%q: %s", path, faults)
		}
	}
	v.open("/revoke")
	evaluate[any](v, `document.body.insertAdjacentHTML("beforeend", "<table><tr><td>" + "x".repeat(4000) + "</td></tr></table><nav></nav><input><h4></h4><a href=x></a>"); document.querySelector("td:last-of-type").style.overflowWrap = "normal"`)
	if evaluate[int64](v, "document.scrollingElement.scrollWidth") <= 1920 || len(strings.Split(evaluate[string](v, unusable), ";")) < 3 {
		t.Errorf("the control: the test does not notice what is too wide, or unusable: %s", evaluate[string](v, unusable))
	}
}

// widest returns the element that reaches furthest to the right.
const widest = `[...document.querySelectorAll("main *")].filter(e => !e.closest("svg, pre")).map(e => [e.getBoundingClientRect().right, e.tagName + "." + e.className + " " + e.textContent.trim().slice(0, 60)]).sort((a, b) => b[0] - a[0])[0].join(" ")`

// unusable returns the elements that a person who cannot see the page, or has no mouse, cannot use.
const unusable = `(() => {
	const faults = [], all = (css) => [...document.querySelectorAll(css)];
	for (const e of all("input:not([type=hidden]), select, textarea")) if (!e.labels || e.labels.length !== 1 || !e.labels[0].textContent.trim()) faults.push("no label: " + e.outerHTML.slice(0, 80));
	for (const e of all("a[href], button")) if (!e.textContent.trim()) faults.push("no text: " + e.outerHTML.slice(0, 80));
	for (const e of all("a:not([href]), [onclick], [tabindex]:not([tabindex='0']):not([tabindex='-1'])")) faults.push("not for keyboards: " + e.outerHTML.slice(0, 80));
	if (all("h1").length !== 1) faults.push(all("h1").length + " headings of the first level");
	let level = 0;
	for (const h of all("h1, h2, h3, h4, h5, h6")) { const n = Number(h.tagName[1]); if (n > level + 1) faults.push("a level is left out: " + h.outerHTML.slice(0, 80)); level = n; }
	for (const t of all("th:not([scope])")) faults.push("a heading without its scope: " + t.outerHTML.slice(0, 80));
	for (const e of all("nav:not([aria-label]), [role=region]:not([aria-label])")) faults.push("a region without a name: " + e.outerHTML.slice(0, 80));
	for (const e of all("svg:not([aria-labelledby]):not([aria-hidden])")) faults.push("a picture without words");
	const ids = all("[id]").map((e) => e.id);
	for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) faults.push("an id twice: " + id);
	for (const e of all("[aria-labelledby], [aria-describedby]")) for (const id of (e.getAttribute("aria-labelledby") || e.getAttribute("aria-describedby")).split(" ")) if (!document.getElementById(id)) faults.push("no element " + id);
	if (document.documentElement.lang !== "en" || !document.title.trim()) faults.push("no language or title");
	return faults.join("; ");
})()`
