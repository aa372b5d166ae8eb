package console

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
)

// TestContainIsOfferedToWhoMay: no page offers what the engine would refuse, and a form that is
// sent without the right is refused.
func TestContainIsOfferedToWhoMay(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	s.engine.role = exchange.Role{Principal: rita, Audits: true}
	page := s.signIn("")
	form := url.Values{"kind": {"suspend"}, "id": {"agent:researcher"}, "reason": {"x"}, "csrf": {s.csrf(page.body)}}
	offers := map[string]string{
		"/console/agent?agent=agent%3Aresearcher": "kind=suspend", "/console/chain?jti=x": "kind=token", "/console?subject=user%3Aalice": "kind=subject",
		"/console?key=x": "kind=key", "/console?txn=x": "kind=chain",
	}
	for _, mayNot := range []bool{true, false} {
		s.engine.mayNot = mayNot
		for path, offer := range offers {
			got := s.get(path)
			if got.StatusCode != http.StatusOK || strings.Contains(got.body, "take-back?") && strings.Contains(got.body, offer) == mayNot {
				t.Errorf("may not %t: %s: %s, offers %t", mayNot, path, got.Status, strings.Contains(got.body, offer))
			}
			if !mayNot && !strings.Contains(got.body, offer) {
				t.Errorf("%s does not offer %s", path, offer)
			}
		}
	}
	for _, path := range []string{"/console/agent", "/console/suspensions"} {
		if strings.Contains(s.get(path).body, "kind=resume") {
			t.Errorf("%s offers an auditor to resume", path)
		}
	}
	s.engine.mayNot = true
	if got := s.post("/console/take-back", form); got.StatusCode != http.StatusNotFound {
		t.Errorf("a form without the right: %s", got.Status)
	}
	for _, kind := range []string{"suspend", "resume", "subject"} {
		if got := s.get("/console/take-back?id=agent%3Aresearcher&kind=" + kind); got.StatusCode != http.StatusNotFound || strings.Contains(got.body, `name="reason"`) {
			t.Errorf("the page to confirm %s: %s", kind, got.Status)
		}
	}
}

// TestRevokeEveryKind goes from the form through the preview to the engine, for each kind of
// target.
func TestRevokeEveryKind(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	s.signIn("")
	for query, want := range map[string]delegation.Target{
		"kind=subject&id=user%3Aalice":                 {Kind: delegation.CutSubject, ID: "user:alice"},
		"kind=key&id=0Zc":                              {Kind: delegation.BanKey, ID: "0Zc"},
		"kind=root&id=0Zc":                             {Kind: delegation.BanRoot, ID: "0Zc"},
		"kind=chain&id=01M":                            {Kind: delegation.BanChain, ID: "01M"},
		"kind=agent&id=agent:a":                        {Kind: delegation.CutAgent, ID: "agent:a"},
		"kind=agent_subject&id=agent:a&subject=user:b": {Kind: delegation.CutAgentSubject, ID: "agent:a", Subject: "user:b"},
		"kind=suspend&id=agent:k8s/system:serviceaccount:agents:summarizer": {Kind: delegation.BanSuspend, ID: string(longName)},
		"kind=tenant": {Kind: delegation.CutTenant},
	} {
		s.engine.revokes = nil
		preview := s.get("/console/take-back?" + query)
		if preview.StatusCode != http.StatusOK || !strings.Contains(preview.body, "live tokens to revoke") || len(s.engine.revokes) != 1 || !s.engine.revokes[0].DryRun {
			t.Errorf("%s: %s, called %+v", query, preview.Status, s.engine.revokes)
		}
		form, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		form.Set("csrf", s.csrf(preview.body))
		form.Set("reason", "a drill")
		if want.Kind == delegation.CutTenant {
			for _, name := range []string{"", "acme"} {
				form.Set("repeat", name)
				if got := s.post("/console/take-back", form); got.StatusCode != http.StatusBadRequest || !strings.Contains(got.body, "a drill") {
					t.Errorf("the tenant is called %q: %s", name, got.Status)
				}
			}
			form.Set("repeat", "demo")
		}
		for _, call := range s.engine.revokes {
			if !call.DryRun {
				t.Errorf("%s revokes before it was confirmed: %+v", query, call)
			}
		}
		got := s.post("/console/take-back", form)
		last := s.engine.revokes[len(s.engine.revokes)-1]
		if got.Request.URL.RequestURI() != "/console/entry?entry=58" || last.DryRun || last.Target != want || last.Reason != "a drill" || last.Credentials.Person == nil {
			t.Errorf("%s leads to %s and calls %+v", query, got.Request.URL, last)
		}
	}
}

// TestUncountedIsRevokedAllTheSame: a revocation does not depend on the count.
func TestUncountedIsRevokedAllTheSame(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	s.signIn("")
	s.engine.uncounted = true
	const path = "/console/take-back?kind=suspend&id=agent%3Aresearcher"
	if got := s.get(path); got.StatusCode != http.StatusOK || !strings.Contains(got.body, "could not be counted in time") || !strings.Contains(got.body, `name="reason"`) {
		t.Errorf("%s\n%s", got.Status, got.body)
	}
	s.engine.mayNot = true
	if got := s.get(path); got.StatusCode != http.StatusServiceUnavailable || strings.Contains(got.body, `name="reason"`) {
		t.Errorf("to a person who may not: %s\n%s", got.Status, got.body)
	}
}

// TestARevocationSaysWhoAndWhy: the list of entries has the caller and the reason too, not only the
// entry's own page.
func TestARevocationSaysWhoAndWhy(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	s.engine.tail = s.engine.entries[:1]
	s.signIn("")
	for _, path := range []string{"/console", "/console/live", "/console/live/entries?after=0"} {
		_, row, _ := strings.Cut(s.get(path).body, "entry=58")
		row, _, _ = strings.Cut(row, "</tr>")
		for _, want := range []string{`title="user:rita"`, "key found in a public repository", "token 01M80MB5RF8N5796EC20R80057"} {
			if !strings.Contains(row, want) {
				t.Errorf("%s: the row lacks %q:\n%s", path, want, row)
			}
		}
	}
}

// TestAnAgentThatNeverWas: the page of an unknown agent differs from that of an agent that holds
// nothing.
func TestAnAgentThatNeverWas(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	s.signIn("")
	never, idle := "check how its name is written", "It was last active in"
	for _, c := range []struct {
		reach       exchange.Reach
		never, idle bool
	}{
		{exchange.Reach{}, true, false},
		{exchange.Reach{SeenTruncated: true}, true, false},
		{exchange.Reach{Seen: 7}, false, true},
		{exchange.Reach{Suspended: true}, false, false},
		{exchange.Reach{Below: 1}, false, false},
		{s.engine.reach, false, false},
	} {
		s.engine.reach = c.reach
		got := s.get("/console/agent?agent=agent%3Ax")
		if strings.Contains(got.body, never) != c.never || strings.Contains(got.body, idle) != c.idle {
			t.Errorf("%+v: %s\n%s", c.reach, got.Status, got.body)
		}
	}
}

// TestProblemsKeepTheNavigation: the pages of problems have the navigation, also if the request was
// refused before its authentication.
func TestProblemsKeepTheNavigation(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	s.signIn("")
	down := delegation.Unavailable("redis", nil)
	foreign := s.request(http.MethodPost, "/console/take-back", nil)
	foreign.Header.Set("Sec-Fetch-Site", "cross-site")
	for name, c := range map[string]struct {
		request         *http.Request
		status          int
		err, unanswered error
	}{
		"an unknown address":     {s.request(http.MethodGet, "/console/nothing", nil), http.StatusNotFound, nil, nil},
		"another method":         {s.request(http.MethodDelete, "/console", nil), http.StatusMethodNotAllowed, nil, nil},
		"a foreign form":         {foreign, http.StatusForbidden, nil, nil},
		"a form without a token": {s.request(http.MethodPost, "/console/take-back", nil), http.StatusForbidden, nil, nil},
		"what is not there":      {s.request(http.MethodGet, "/console/entry?entry=4711", nil), http.StatusNotFound, nil, nil},
		"a question that fails":  {s.request(http.MethodGet, "/console", nil), http.StatusServiceUnavailable, down, nil},
		"no dependency answers":  {s.request(http.MethodGet, "/console", nil), http.StatusServiceUnavailable, nil, down},
	} {
		s.engine.err, s.engine.unanswered = c.err, c.unanswered
		got := s.do(c.request)
		if got.StatusCode != c.status || !strings.Contains(got.body, `<nav aria-label="Pages">`) || !strings.Contains(got.body, "Sign out") {
			t.Errorf("%s: %s\n%s", name, got.Status, got.body)
		}
	}
	s.engine.err, s.engine.unanswered = nil, nil
	s.browser = newBrowser(t)
	if got := s.get("/console/nothing"); strings.Contains(got.body, "<nav") || got.StatusCode != http.StatusNotFound {
		t.Errorf("an unauthenticated caller at an unknown address: %s\n%s", got.Status, got.body)
	}
}

// TestReceiptsAreRefreshed: a script refreshes the receipts. Without a script the page reloads for
// some minutes.
func TestReceiptsAreRefreshed(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	if got := s.get("/console/entry/receipts?entry=58"); got.StatusCode != http.StatusUnauthorized {
		t.Errorf("an unauthenticated script: %s", got.Status)
	}
	s.signIn("")
	verifiers := func(applied ...uint64) {
		s.engine.receipts = nil
		for i, n := range applied {
			s.engine.receipts = append(s.engine.receipts, guard.Receipt{ID: fmt.Sprint(i), Verifier: "service:calendar", Applied: n, SeenAt: s.clock})
		}
	}
	reloads := func() bool { return strings.Contains(s.get("/console/entry?entry=58").body, `http-equiv="refresh"`) }
	s.engine.entries[0].Time = s.clock
	verifiers(58, 41)
	if got := s.get("/console/entry/receipts?entry=58"); got.StatusCode != http.StatusOK || !strings.Contains(got.body, "1 of 2 connected") || strings.Contains(got.body, "<html") {
		t.Errorf("%s\n%s", got.Status, got.body)
	}
	if page := s.get("/console/entry?entry=58").body; !strings.Contains(page, `data-receipts="/console/entry/receipts?entry=58"`) || !reloads() {
		t.Errorf("the page is not refreshed:\n%s", page)
	}
	verifiers(58, 59, 41)
	s.engine.receipts[2].SeenAt = s.clock.Add(-silence - time.Second)
	if got := s.get("/console/entry/receipts?entry=58"); !strings.Contains(got.body, "All 2 connected") || !strings.Contains(got.body, "cut off or ended") || reloads() {
		t.Errorf("all have applied it: %s", got.body)
	}
	verifiers(58, 41)
	verifiers(58, 58)
	s.engine.partial = true
	if got := s.get("/console/entry/receipts?entry=58"); !strings.Contains(got.body, "2 of 2 verifiers that are connected to this instance") ||
		strings.Contains(got.body, "All 2") || !reloads() {
		t.Errorf("without Redis: %s", got.body)
	}
	s.engine.partial = false
	verifiers(58, 41)
	s.engine.entries[0].Time = s.clock.Add(-receiptsFresh - time.Second)
	if reloads() {
		t.Error("the page of an old revocation reloads")
	}
	for _, query := range []string{"", "?entry=0", "?entry=x"} {
		if got := s.get("/console/entry/receipts" + query); got.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: %s", query, got.Status)
		}
	}
}

// TestAgentsListIsForAuditors: other people get only the form.
func TestAgentsListIsForAuditors(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	s.engine.role = exchange.Role{Principal: alice}
	s.signIn("")
	if got := s.get("/console/agent"); got.StatusCode != http.StatusOK || strings.Contains(got.body, "prober") || strings.Contains(got.body, ">Suspensions<") || strings.Contains(got.body, ">Revoke<") {
		t.Errorf("%s\n%s", got.Status, got.body)
	}
}

func TestMostRefused(t *testing.T) {
	var all []ledger.Activity
	for i := range 3 * mostListed {
		all = append(all, ledger.Activity{Agent: delegation.Principal(fmt.Sprint("agent:", i)), Refused: i % 70})
	}
	list := mostRefused(all)
	if len(list) != mostListed || list[0].Refused != 69 || list[len(list)-1].Refused == 0 || all[0].Refused != 0 {
		t.Errorf("%d: %+v", len(list), list)
	}
}

// TestPagesWithoutADependency: a page is shown without the additional data that a failed dependency
// would give, and no page claims that a revocation was not made.
func TestPagesWithoutADependency(t *testing.T) {
	s := newStage(t)
	s.sample(t)
	page := s.signIn("")
	s.engine.unheard, s.engine.undecided = delegation.Unavailable("redis", nil), delegation.Unavailable("OpenFGA", nil)
	form := url.Values{"kind": {"suspend"}, "id": {"agent:researcher"}, "reason": {"x"}, "csrf": {s.csrf(page.body)}}
	if got := s.post("/console/take-back", form); got.StatusCode != http.StatusOK || !strings.Contains(got.body, "not known now") {
		t.Errorf("the suspension leads to: %s\n%s", got.Status, got.body)
	}
	for _, path := range []string{"/console/entry?entry=58", "/console/entry/receipts?entry=58"} {
		if got := s.get(path); got.StatusCode != http.StatusOK || !strings.Contains(got.body, "not known now") || strings.Contains(got.body, "No verifier is connected") {
			t.Errorf("%s: %s\n%s", path, got.Status, got.body)
		}
	}
	for _, path := range []string{"/console/agent?agent=agent%3Aresearcher", "/console/chain?jti=x", "/console?subject=user%3Aalice"} {
		if got := s.get(path); got.StatusCode != http.StatusOK || strings.Contains(got.body, "take-back?") && strings.Contains(got.body, "kind=suspend") {
			t.Errorf("%s: %s", path, got.Status)
		}
	}
	s.engine.unheard = delegation.Refuse(delegation.Internal, "", "broken")
	if got := s.get("/console/entry?entry=58"); got.StatusCode != http.StatusInternalServerError {
		t.Errorf("an internal error: %s", got.Status)
	}
	s.engine.unheard, s.engine.err = nil, delegation.Refuse(delegation.DependencyDown, "", "the revocation may be in force or not")
	got := s.post("/console/take-back", form)
	if got.StatusCode != http.StatusServiceUnavailable || !strings.Contains(got.body, "may be in force or not") || strings.Contains(got.body, "othing was") {
		t.Errorf("a revocation that is not known: %s\n%s", got.Status, got.body)
	}
}
