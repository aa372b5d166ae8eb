package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
)

// outage is one way in which one dependency fails.
type outage struct {
	name  string
	begin func()
	end   func()
}

// refusalWithin is the guarantee: a typed answer in this time, whichever dependency hangs.
const refusalWithin = 2 * time.Second

// TestOutages makes each dependency fail in each way while Deputy serves. During the outage the
// answer is typed, comes in time and holds no token. After it exchanges succeed again without an
// operator.
func TestOutages(t *testing.T) {
	redis, postgres := testservers.NewRedis(t), testservers.NewPostgres(t)
	d := deploy(t, plan{redis: redis.Addr, database: postgres.DSN, prompt: true})
	i := d.start()
	asPlanner := d.as(i, planner)
	token, err := asPlanner.Exchange(t.Context(), stepIn(d.root()))
	check(t, err)

	nonsense := func(code int, body string) func() {
		return func() {
			d.relations.fail(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(code)
				_, _ = io.WriteString(w, body)
			})
		}
	}
	for _, o := range []outage{
		{"OpenFGA errs", nonsense(http.StatusInternalServerError, `{"code":"internal_error"}`), d.relations.heal},
		{"OpenFGA does not know the store", nonsense(http.StatusNotFound, `{"code":"store_id_not_found","message":"Store ID not found"}`), d.relations.heal},
		{"OpenFGA hangs", func() { d.relations.fail(d.relations.blackHole) }, d.relations.heal},
		{"OpenFGA drops the connection", func() { d.relations.fail(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }) }, d.relations.heal},
		{"OpenFGA answers garbage", nonsense(http.StatusOK, "\x00\xff<html>"), d.relations.heal},
		{"OpenFGA answers with nothing", nonsense(http.StatusOK, `{}`), d.relations.heal},
		{"OpenFGA answers other questions", nonsense(http.StatusOK, `{"result":{"other":{"allowed":true}}}`), d.relations.heal},
		{"Redis is killed", redis.Kill, redis.Start},
		{"Redis hangs", redis.Pause, redis.Resume},
		{"PostgreSQL is stopped", postgres.Stop, postgres.Start},
		{"PostgreSQL is killed", postgres.Kill, postgres.Start},
		{"PostgreSQL hangs", postgres.Pause, postgres.Resume},
	} {
		t.Run(o.name, func(t *testing.T) {
			o.begin()
			// The first request may find connections that are still good. The next must open new
			// ones.
			for n := range 3 {
				began := time.Now()
				granted, err := asPlanner.Exchange(t.Context(), stepIn(d.root()))
				took := time.Since(began)
				if granted != nil || delegation.AsError(err).Reason != delegation.DependencyDown {
					t.Errorf("request %d: got %v, %v", n, granted, err)
				}
				if took > refusalWithin {
					t.Errorf("request %d: answered after %v", n, took)
				}
			}
			d.refusedOverHTTP(t, i)
			eventually(t, 5*time.Second, func() error { // readiness keeps an answer for a second
				ready, body, err := i.ask("http://" + i.ops + "/readyz")
				if err == nil && ready != http.StatusServiceUnavailable {
					err = fmt.Errorf("readiness says %d %s", ready, body)
				}
				return err
			})
			if alive, _, err := i.ask("http://" + i.ops + "/healthz"); err != nil || alive != http.StatusOK {
				t.Errorf("health says %d, %v", alive, err)
			}
			o.end()
			eventually(t, 10*time.Second, func() error {
				_, err := asPlanner.Exchange(t.Context(), stepIn(token.AccessToken))
				return err
			})
			i.awaitReady(t)
		})
	}
	i.stop()
	checkLedger(t, d)
}

// TestWhatOpenFGAAnswersDecides is the control of the outages above. The answers that they return
// in OpenFGA's place reach the decision, so a permission from there would yield a token.
func TestWhatOpenFGAAnswersDecides(t *testing.T) {
	d := deploy(t, plan{prompt: true})
	asPlanner := d.as(d.start(), planner)
	check(t, d.relations.fga.DeleteTuples(t.Context(), d.relations.store, edge(alice, planner)))
	if _, err := asPlanner.Exchange(t.Context(), stepIn(d.root())); delegation.AsError(err).Reason != delegation.EdgeNotPermitted {
		t.Fatalf("without consent: %v", err)
	}
	d.relations.fail(func(w http.ResponseWriter, r *http.Request) {
		var asked struct {
			Checks []struct {
				ID string `json:"correlation_id"`
			} `json:"checks"`
		}
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			t.Error(err)
		}
		result := make(map[string]any)
		for _, c := range asked.Checks {
			result[c.ID] = map[string]bool{"allowed": true}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"result": result})
	})
	if _, err := asPlanner.Exchange(t.Context(), stepIn(d.root())); err != nil {
		t.Errorf("with yes to everything: %v", err)
	}
}

// refusedOverHTTP makes the same request over HTTP.
func (d *deployment) refusedOverHTTP(t *testing.T, i *instance) {
	t.Helper()
	workload, err := d.identities.WorkloadToken(planner.ID(), false)
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*refusalWithin)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+i.http+"/oauth2/token", strings.NewReader(url.Values{
		"grant_type":    {delegation.GrantTypeTokenExchange},
		"subject_token": {d.root().Reveal()}, "subject_token_type": {delegation.TokenTypeAccessToken},
		"actor_token": {workload}, "actor_token_type": {delegation.TokenTypeJWT},
		"scope": {"calendar.read"}, "audience": {calendarAudience},
	}.Encode()))
	check(t, err)
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Close = true
	began := time.Now()
	response, err := http.DefaultClient.Do(request)
	check(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	check(t, err)
	if took := time.Since(began); response.StatusCode != http.StatusServiceUnavailable || took > refusalWithin || strings.Contains(string(body), "eyJ") {
		t.Errorf("over HTTP: %d %s after %v", response.StatusCode, body, took)
	}
}

// checkLedger checks everything that was recorded, with a ledger of its own.
func checkLedger(t testing.TB, d *deployment) {
	t.Helper()
	check(t, withLedger(d, func(l *ledger.Ledger) error { return ledgertest.Check(context.Background(), l, "acme") }))
}

func withLedger(d *deployment, f func(*ledger.Ledger) error) error {
	l, err := ledger.Open(context.Background(), d.database, ledger.Config{Timeout: 20 * time.Second})
	if err != nil {
		return err
	}
	return errors.Join(f(l), l.Close())
}

// TestSlowIssuerIsUnavailable: keys that cannot be fetched are an outage too, but only for root
// tokens.
func TestSlowIssuerIsUnavailable(t *testing.T) {
	hanging := newRelationships(t) // any server that does not answer
	hanging.fail(hanging.blackHole)
	d := deploy(t, plan{prompt: true, issuers: fmt.Sprintf(`- issuer: %q
  keys: {jwks_url: %q}
  algorithms: [ES256]
  principal: {type: service, prefix: partner/}
  audiences: ["https://deputy.example"]
`, "https://slow.example", hanging.url+"/jwks")})
	i := d.start()
	key := d.keys[planner] // any key: the signature is never checked
	now := time.Now().Unix()
	token, err := key.Sign("at+jwt", map[string]any{"iss": "https://slow.example", "sub": "bob", "aud": d.issuer, "iat": now, "exp": now + 60, "jti": "1"})
	check(t, err)
	began := time.Now()
	_, err = d.as(i, planner).Exchange(t.Context(), stepIn(client.NewSecret(token)))
	if took := time.Since(began); delegation.AsError(err).Reason != delegation.DependencyDown || took > refusalWithin {
		t.Errorf("%v after %v", err, took)
	}
	if _, err := d.as(i, planner).Exchange(t.Context(), stepIn(d.root())); err != nil {
		t.Errorf("another issuer's tokens: %v", err)
	}
}
