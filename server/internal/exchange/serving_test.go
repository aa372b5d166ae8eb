package exchange_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/console"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/httpapi"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/testservers"
)

// concern is the purpose of an entry point. docs/incidents.md has the table of the states that
// refuse each of them.
type concern int

const (
	serves  concern = iota // grants, or answers whether a token is active
	revokes                // revokes
	reads                  // shows the ledger: an operator needs it in each state
)

// entryPoint is one way to call an instance. Its error is a *delegation.Error.
type entryPoint struct {
	concern   concern
	assertion bool // authenticated by an assertion, which is good once
	call      func() error
}

// entryPoints are those of the engine.
func entryPoints(t *testing.T, f *fleet, w *exchangetest.World) map[string]entryPoint {
	t.Helper()
	crew := f.crew("crew", 2)
	root := f.rootOf(t, exchangetest.Alice)
	f.welcome(exchangetest.Alice, crew...)

	one := func(change func(*exchange.Call)) error {
		call := f.byWorkload(t, root, crew[0], "")
		call.SubjectTokenType = delegation.TokenTypeJWT
		change(&call)
		outcomes, err := w.Engine.Exchange(t.Context(), call)
		if err == nil && outcomes[0].Err != nil {
			err = outcomes[0].Err
		}
		return err
	}
	if err := one(func(c *exchange.Call) { c.IdempotencyKey = "once" }); err != nil {
		t.Fatal(err, errors.Unwrap(err))
	}
	token := w.Chain(t, f.n, exchangetest.Planner)[0].AccessToken
	watch, err := w.Engine.Watch(t.Context(), exchange.Inquiry{Tenant: f.n.Name, Credentials: f.n.Credentials(t, exchangetest.Writer)})
	if err != nil {
		t.Fatal(err)
	}
	inquiry := func() exchange.Inquiry {
		return exchange.Inquiry{Tenant: f.n.Name, Credentials: exchange.Credentials{Bearer: f.n.Workload(t, "auditor", f.n.Issuer)}, Token: token}
	}
	revoke := func(target delegation.Target) error {
		_, err := w.Engine.Revoke(t.Context(), exchange.RevokeCall{
			Tenant: f.n.Name, Credentials: exchange.Credentials{Bearer: f.n.Workload(t, "responder", f.n.Issuer)}, Target: target,
		})
		return err
	}
	return map[string]entryPoint{
		"exchange":      {serves, false, func() error { return one(func(*exchange.Call) {}) }},
		"batch":         {serves, false, func() error { return one(func(c *exchange.Call) { c.Batch = true }) }},
		"validate_only": {serves, false, func() error { return one(func(c *exchange.Call) { c.ValidateOnly = true }) }},
		"retry":         {serves, false, func() error { return one(func(c *exchange.Call) { c.IdempotencyKey = "once" }) }},
		"introspect":    {serves, false, func() error { _, err := w.Engine.Introspect(t.Context(), inquiry()); return err }},
		"watch":         {serves, false, func() error { _, err := w.Engine.Watch(t.Context(), inquiry()); return err }},
		"echo":          {serves, false, func() error { _, _, err := watch.Last(t.Context()); return err }},
		"snapshot":      {serves, false, func() error { _, _, _, err := watch.Snapshot(t.Context()); return err }},
		"status list":   {serves, false, func() error { _, err := w.Engine.StatusList(t.Context(), f.n.Name, 0); return err }},
		"readiness": {serves, false, func() error {
			for _, err := range []error{w.Ledger.Trusted(), w.Engine.Standing(t.Context()), w.Engine.Ready(t.Context(), f.n.Name)} {
				if err != nil {
					return delegation.Unavailable("readiness", err)
				}
			}
			return nil
		}},
		"revoke":  {revokes, false, func() error { return revoke(delegation.Target{Kind: delegation.BanChain, ID: "nobody's"}) }},
		"suspend": {revokes, false, func() error { return revoke(delegation.Target{Kind: delegation.BanSuspend, ID: "agent:wl/nobody"}) }},
		"search": {reads, false, func() error {
			_, _, err := w.Engine.Search(t.Context(), inquiry(), ledger.Query{})
			return err
		}},
	}
}

// grpcPoints are those of gRPC.
func grpcPoints(t *testing.T, f *fleet, w *exchangetest.World) map[string]entryPoint {
	t.Helper()
	conn := overGRPC(t, w.Engine)
	tokens, audits, revoking := deputyv1.NewTokenExchangeServiceClient(conn), deputyv1.NewAuditServiceClient(conn), deputyv1.NewRevocationServiceClient(conn)
	root, token := f.rootOf(t, exchangetest.Alice), w.Chain(t, f.n, exchangetest.Planner)[0].AccessToken
	as := func(workload string) context.Context {
		return bearer(t.Context(), f.n.Workload(t, workload, f.n.Issuer))
	}
	of := func(concern concern, call func() error) entryPoint {
		return entryPoint{concern, false, func() error {
			if err := call(); err != nil {
				return delegation.FromStatus(err)
			}
			return nil
		}}
	}
	child := &deputyv1.Child{Scope: "calendar.read", Audience: []string{calendar}}
	exchanges := func(validate bool) func() error {
		return func() error {
			_, err := tokens.Exchange(as("crew-0"), &deputyv1.ExchangeRequest{
				SubjectToken: root, SubjectTokenType: delegation.TokenTypeJWT, Child: child, ValidateOnly: validate,
			})
			return err
		}
	}
	return map[string]entryPoint{
		"gRPC Exchange":                of(serves, exchanges(false)),
		"gRPC Exchange, validate_only": of(serves, exchanges(true)),
		"gRPC BatchExchange": of(serves, func() error {
			_, err := tokens.BatchExchange(as("crew-0"), &deputyv1.BatchExchangeRequest{
				SubjectToken: root, SubjectTokenType: delegation.TokenTypeJWT, Children: []*deputyv1.Child{child},
			})
			return err
		}),
		"gRPC Introspect": of(serves, func() error {
			_, err := tokens.Introspect(as("auditor"), &deputyv1.IntrospectRequest{Token: token})
			return err
		}),
		"gRPC WatchRevocations": of(serves, func() error {
			ctx, cancel := context.WithCancel(as("auditor"))
			defer cancel()
			stream, err := revoking.WatchRevocations(ctx)
			if err != nil {
				return err
			}
			// A stream that was refused may have ended before: Recv has the reason.
			_ = stream.Send(&deputyv1.WatchRevocationsRequest{Message: &deputyv1.WatchRevocationsRequest_Hello{Hello: &deputyv1.WatchHello{Id: "v1"}}})
			_, err = stream.Recv()
			return err
		}),
		"gRPC Revoke": of(revokes, func() error {
			_, err := revoking.Revoke(as("responder"), &deputyv1.RevokeRequest{
				Target: &deputyv1.RevocationTarget{Kind: deputyv1.RevocationKind_REVOCATION_KIND_CHAIN, Id: "nobody's"},
			})
			return err
		}),
		"gRPC Suspend": of(revokes, func() error {
			_, err := revoking.Suspend(as("responder"), &deputyv1.SuspendRequest{Agent: "agent:wl/nobody"})
			return err
		}),
		"gRPC SearchEntries": of(reads, func() error {
			_, err := audits.SearchEntries(as("auditor"), &deputyv1.SearchEntriesRequest{})
			return err
		}),
	}
}

// httpPoints are those of HTTP: the OAuth endpoints and the console.
func httpPoints(t *testing.T, f *fleet, w *exchangetest.World) map[string]entryPoint {
	t.Helper()
	oauth, err := httpapi.New(httpapi.Config{Engine: w.Engine, Tenants: []httpapi.Tenant{{Name: f.n.Name, Issuer: f.n.Issuer, JWKS: f.n.Keys.JWKS}}})
	must(t, err)
	pages, err := console.New(console.Config{Engine: console.For(w.Engine), Sessions: signedIn{f.n.IDP.Issuer}, Now: w.Clock().Now, Tenants: []console.Tenant{{
		Name: f.n.Name, Issuer: f.n.Issuer, Provider: f.n.IDP.Issuer, ClientID: exchangetest.Front, Idle: time.Hour, Life: time.Hour,
	}}})
	must(t, err)
	root, token := f.rootOf(t, exchangetest.Alice), w.Chain(t, f.n, exchangetest.Planner)[0].AccessToken
	f.n.FGA.Allow("user:rita", "responder", "system:deputy")
	f.n.FGA.Allow("user:rita", "auditor", "system:deputy")
	send := func(handler http.Handler, method, path string, form url.Values) (string, error) {
		r := httptest.NewRequest(method, "https://deputy.example"+path, strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
		r.AddCookie(&http.Cookie{Name: "__Host-deputy-" + f.n.Name + "-session", Value: "rita's"})
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, r)
		body := answer.Body.String()
		switch answer.Code {
		case http.StatusOK, http.StatusSeeOther:
			return body, nil
		case http.StatusServiceUnavailable:
			return body, delegation.Refuse(delegation.DependencyDown, "", "%s", body)
		}
		// Of a page, which has no reason for programs.
		why := struct{ Reason delegation.Reason }{delegation.Internal}
		_ = json.Unmarshal(answer.Body.Bytes(), &why)
		return body, delegation.Refuse(why.Reason, "", "status %d: %s", answer.Code, body)
	}
	of := func(concern concern, path string, pairs ...string) entryPoint {
		return entryPoint{concern, true, func() error {
			_, err := send(oauth, http.MethodPost, path, form(f.n.Assertion(t, exchangetest.Planner), pairs...))
			return err
		}}
	}
	csrf := ""
	return map[string]entryPoint{
		"HTTP token": of(serves, "/oauth2/token", "grant_type", delegation.GrantTypeTokenExchange,
			"subject_token", root, "subject_token_type", delegation.TokenTypeJWT, "scope", "calendar.read", "audience", calendar),
		"HTTP introspect": of(serves, "/oauth2/introspect", "token", token),
		"HTTP status list": {serves, false, func() error {
			_, err := send(oauth, http.MethodGet, exchange.PathStatusLists+"0", nil)
			return err
		}},
		"HTTP revoke": of(revokes, "/oauth2/revoke", "token", token),
		"console contain": {revokes, false, func() error {
			_, err := send(pages, http.MethodPost, "/console/take-back", url.Values{
				"kind": {string(delegation.BanSuspend)}, "id": {"agent:wl/nobody"}, "reason": {"drill"}, "csrf": {csrf},
			})
			return err
		}},
		"console entries": {reads, false, func() error {
			page, err := send(pages, http.MethodGet, "/console", nil)
			if found := csrfField.FindStringSubmatch(page); found != nil {
				csrf = found[1]
			}
			return err
		}},
	}
}

var csrfField = regexp.MustCompile(`name="csrf" value="([^"]+)"`)

// signedIn has a session of rita's for each cookie.
type signedIn struct{ issuer string }

func (signedIn) StartSession(context.Context, string, [32]byte, ledger.Session) error { return nil }
func (signedIn) EndSession(context.Context, string, [32]byte) error                   { return nil }

func (s signedIn) Session(context.Context, string, [32]byte) (ledger.Session, error) {
	return ledger.Session{Principal: "user:rita", Issuer: s.issuer, SignedIn: time.Now()}, nil
}

// state is a state of an instance.
type state struct {
	bring   func(t *testing.T, m *timed, g *guard.Guard, dsn string)
	refuses []concern
	spent   bool // single uses count as used: they may be, in entries that the ledger lost
}

var all = []concern{serves, revokes}

// instanceStates is the table of docs/incidents.md: what each state refuses.
var instanceStates = map[string]state{
	"sound": {bring: func(*testing.T, *timed, *guard.Guard, string) {}},
	"a ledger that is doubted": {func(t *testing.T, m *timed, _ *guard.Guard, _ string) {
		m.Ledger.Doubt(t.Context(), errors.New("a test"))
	}, all, false},
	"redis knows a later incarnation": {func(t *testing.T, m *timed, g *guard.Guard, _ string) {
		must(t, g.Testify(t.Context(), map[string]guard.Witness{"default": {Number: 99, ID: "later", Seq: 1}}))
		must(t, m.Engine.Arbitrate(t.Context(), "default"))
	}, all, false},
	"redis knows a later incarnation of another tenant": {func(t *testing.T, m *timed, g *guard.Guard, _ string) {
		mine, _ := m.Ledger.Incarnation()
		must(t, g.Testify(t.Context(), map[string]guard.Witness{"other": {Number: 99, ID: "later", Seq: 1}}))
		must(t, g.Testify(t.Context(), map[string]guard.Witness{"default": {Number: mine.Number, ID: mine.ID, Seq: 1}}))
		must(t, m.Engine.Arbitrate(t.Context(), "other"))
		must(t, m.Engine.Arbitrate(t.Context(), "default"))
		must(t, g.Discard(t.Context(), "other")) // it is gone, and has not changed
		must(t, m.Engine.Arbitrate(t.Context(), "other"))
	}, all, false},
	"redis knows another one of this number": {func(t *testing.T, m *timed, g *guard.Guard, _ string) {
		must(t, g.Discard(t.Context(), "default"))
		must(t, g.Testify(t.Context(), map[string]guard.Witness{"default": {ID: "twin", Seq: 1}}))
		must(t, m.Engine.Arbitrate(t.Context(), "default"))
	}, all, false},
	"redis knows more entries": {func(t *testing.T, m *timed, g *guard.Guard, _ string) {
		mine, _ := m.Ledger.Incarnation()
		must(t, g.Testify(t.Context(), map[string]guard.Witness{"default": {Number: mine.Number, ID: mine.ID, Seq: 1000}}))
		must(t, m.Engine.Compare(t.Context(), "default"))
	}, all, false},
	"redis knows another entry": {func(t *testing.T, m *timed, g *guard.Guard, _ string) {
		mine, _ := m.Ledger.Incarnation()
		must(t, g.Discard(t.Context(), "default"))
		must(t, g.Testify(t.Context(), map[string]guard.Witness{"default": {Number: mine.Number, ID: mine.ID, Seq: 1, Leaf: [32]byte{7}}}))
		must(t, m.Engine.Compare(t.Context(), "default"))
	}, all, false},
	"redis knows more revocations": {func(t *testing.T, m *timed, g *guard.Guard, _ string) {
		must(t, g.Republish(t.Context(), "default", nil, 1000))
		must(t, m.Engine.Compare(t.Context(), "default"))
	}, all, false},
	"redis forgot everything": {bring: func(t *testing.T, m *timed, g *guard.Guard, _ string) {
		must(t, g.Discard(t.Context(), "default"))
		must(t, m.Engine.Compare(t.Context(), "default"))
	}},
	"recovered a moment ago": {func(t *testing.T, m *timed, _ *guard.Guard, dsn string) {
		l, err := ledger.OpenToRecover(t.Context(), dsn, ledger.Config{Now: m.Clock().Now, Timeout: 20 * time.Second})
		must(t, err)
		_, err = l.Recover(t.Context(), ledger.Decision{Reason: "test", CutOff: true})
		must(t, errors.Join(err, l.Close()))
		must(t, m.Ledger.Probe(t.Context()))
	}, []concern{serves}, true},
	"a clock that is wrong": {func(_ *testing.T, m *timed, _ *guard.Guard, _ string) {
		m.wall.Store(int64(40 * time.Minute))
	}, []concern{serves}, false},
}

// TestWhoKnowsBetterDoesNotServe calls each entry point of the engine, of gRPC, of HTTP and of the
// console in each state.
func TestWhoKnowsBetterDoesNotServe(t *testing.T) {
	for name, state := range instanceStates {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testservers.NewRedis(t)
			dsn := "sqlite://" + filepath.Join(t.TempDir(), "ledger.db")
			f := newFleet(t, exchangetest.Config{RedisURL: server.URL(), DSN: dsn}, 1)
			f.n.FGA.Allow("agent:wl/auditor", "auditor", "system:deputy")
			f.n.FGA.Allow("agent:wl/responder", "responder", "system:deputy")
			m := newTimed(t, f.at(0), 0, exact)
			points := entryPoints(t, f, m.World)
			maps.Copy(points, grpcPoints(t, f, m.World))
			maps.Copy(points, httpPoints(t, f, m.World))
			// Pages first, because their forms follow.
			order := slices.SortedFunc(maps.Keys(points), func(a, b string) int {
				return cmp.Or(cmp.Compare(points[b].concern, points[a].concern), cmp.Compare(a, b))
			})
			for _, point := range order {
				if err := points[point].call(); err != nil {
					t.Fatalf("%s before: %v (%v)", point, err, errors.Unwrap(err))
				}
			}
			state.bring(t, m, guardAt(t, server.URL()), dsn)
			for _, point := range order {
				err := points[point].call()
				want := delegation.Reason("")
				switch {
				case state.spent && points[point].assertion:
					want = delegation.AssertionReplayed
				case slices.Contains(state.refuses, points[point].concern):
					want = delegation.DependencyDown
				}
				if reason(err) != want {
					t.Errorf("%s: %v, want %q", point, err, want)
				}
			}
		})
	}
}

// TestRedisDownIsNoFork: a ledger that was compared continues to be served, and one that was never
// compared is not.
func TestRedisDownIsNoFork(t *testing.T) {
	server := testservers.NewRedis(t)
	f := newFleet(t, exchangetest.Config{RedisURL: server.URL()}, 1)
	w := f.at(0)
	points := entryPoints(t, f, w)
	fresh := w.Peer(t)
	server.Stop()
	for _, point := range []string{"echo", "snapshot", "status list", "readiness"} {
		if err := points[point].call(); err != nil {
			t.Errorf("%s with Redis down: %v (%v)", point, err, errors.Unwrap(err))
		}
	}
	if _, err := fresh.Engine.StatusList(t.Context(), f.n.Name, 0); reason(err) != delegation.DependencyDown {
		t.Errorf("an instance that never compared its ledger: %v", err)
	}
}

// TestHopsAheadOfTheLedgerAreNotActive: a token with a number that this ledger never gave.
func TestHopsAheadOfTheLedgerAreNotActive(t *testing.T) {
	f := newFleet(t, exchangetest.Config{}, 1)
	w := f.at(0)
	grant := w.Chain(t, f.n, exchangetest.Planner)[0]
	for above, want := range map[uint64]bool{0: true, 50: false} {
		claims := grant.Claims
		hops := append([]delegation.Hop(nil), claims.Delegation.Hops...)
		hops[0].Seq += above
		claims.Delegation.Hops = hops
		payload, err := claims.MarshalJSON()
		must(t, err)
		token, err := f.n.Keys.Sign(payload)
		must(t, err)
		active, err := f.introspect(t, w, token)
		must(t, err)
		if active != want {
			t.Errorf("%d above: active %v", above, active)
		}

		for _, validate := range []bool{true, false} {
			call := f.n.Call(t, token, exchangetest.Planner, exchangetest.Researcher)
			call.ValidateOnly = validate
			if _, err := w.One(t.Context(), call); (err == nil) != want || err != nil && err.Reason != delegation.TokenRevoked {
				t.Errorf("%d above, validate only %v: %v", above, validate, err)
			}
		}
	}
}
