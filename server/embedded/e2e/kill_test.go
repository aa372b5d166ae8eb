package e2e

import (
	"context"
	cryptorand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
	"deputy.example/deputy/server/internal/token"
)

// TestKilledUnderLoad kills deputyd with SIGKILL at random instants while many callers exchange, on
// each database. At any instant these hold: each acknowledged grant is in the ledger with exactly
// the claims that were signed, no token verifies that is not in the ledger, and numbers have no
// gaps. An interrupted request that is repeated yields one grant and not two, and Deputy serves
// again within seconds.
func TestKilledUnderLoad(t *testing.T) {
	for name, database := range map[string]func(testing.TB) string{
		"SQLite":     func(testing.TB) string { return "" },
		"PostgreSQL": testservers.Postgres,
	} {
		t.Run(name, func(t *testing.T) {
			d := deploy(t, plan{database: database(t), tenant: "limits: {caller_rate: 100000, default_lifetime: 15m}\n"})
			c := &campaign{deployment: d, t: t, random: rand.New(rand.NewPCG(testservers.Seed(t), 0))}
			p := d.spawn()
			p.awaitReady(t)
			c.verifier = d.verifier(&p.instance)
			var slowest time.Duration
			for range testservers.Campaign(50, 6) {
				c.round(p)
				p.launch()
				slowest = max(slowest, p.awaitReady(t))
				c.repeatInterrupted(&p.instance)
			}
			p.stop()
			if p.stderr.Len() > 0 {
				t.Logf("the last process said: %s", &p.stderr)
			}
			c.audit(c.granted)
			if len(c.granted) == 0 || c.interrupted == 0 {
				t.Errorf("%d grants and %d interrupted requests show nothing", len(c.granted), c.interrupted)
			}
			t.Logf("%d grants acknowledged, %d requests interrupted, ready again after %v at most", len(c.granted), c.interrupted, slowest.Round(time.Millisecond))
		})
	}
}

// campaign holds the requests and the answers of all rounds.
type campaign struct {
	*deployment
	t           testing.TB
	random      *rand.Rand
	verifier    *client.Verifier
	granted     []string // tokens
	pending     []client.ExchangeRequest
	interrupted int
}

const callersAtOnce = 8

// round runs all callers until the process is killed, and then reads the ledger while no process
// uses it.
func (c *campaign) round(p *process) {
	c.t.Helper()
	before := len(c.granted)
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	var mu sync.Mutex
	first := make(chan struct{}, callersAtOnce)
	for range callersAtOnce {
		caller := c.as(&p.instance, planner)
		work.Go(func() {
			for err := error(nil); err == nil; {
				var answer *client.Token
				request := stepIn(c.root())
				request.IdempotencyKey = cryptorand.Text()
				answer, err = caller.Exchange(ctx, request)
				mu.Lock()
				c.note(request, answer, err)
				mu.Unlock()
				select {
				case first <- struct{}{}:
				default:
				}
			}
			_ = caller.Close()
		})
	}
	<-first
	// This is the random instant.
	<-time.After(time.Duration(c.random.Int64N(int64(400 * time.Millisecond))))
	p.end(syscall.SIGKILL)
	cancel()
	work.Wait()
	c.audit(c.granted[before:])
}

// note records the result of a request. An interrupted request may or may not have been granted.
func (c *campaign) note(request client.ExchangeRequest, answer *client.Token, err error) {
	switch {
	case err == nil:
		c.granted = append(c.granted, answer.AccessToken.Reveal())
	case delegation.AsError(err).Reason == delegation.DependencyDown:
		c.pending = append(c.pending, request)
	default:
		c.t.Errorf("a caller got %v", err)
	}
}

// repeatInterrupted sends each request without an answer again, byte for byte.
func (c *campaign) repeatInterrupted(i *instance) {
	c.t.Helper()
	caller := c.as(i, planner)
	for _, request := range c.pending {
		c.interrupted++
		answer, err := caller.Exchange(context.Background(), request)
		if err != nil {
			c.t.Errorf("an interrupted request, repeated: %v", err)
			continue
		}
		c.granted = append(c.granted, answer.AccessToken.Reveal())
	}
	c.pending = nil
}

// audit checks the whole ledger and compares tokens with it.
func (c *campaign) audit(tokens []string) {
	c.t.Helper()
	check(c.t, withLedger(c.deployment, func(l *ledger.Ledger) error {
		findings := []error{ledgertest.Check(context.Background(), l, "acme"), onePerRoot(l)}
		for _, token := range tokens {
			findings = append(findings, accountedFor(l, c.verifier, token))
		}
		return errors.Join(findings...)
	}))
}

// accountedFor returns an error unless a token verifies and is in the ledger with exactly its
// claims.
func accountedFor(l *ledger.Ledger, v *client.Verifier, raw string) error {
	ctx := context.Background()
	verified, err := v.Verify(ctx, raw)
	if err != nil {
		return err
	}
	unverified, err := delegation.Parse(raw)
	if err != nil {
		return err
	}
	claims := verified.Claims()
	e, err := l.Entry(ctx, "acme", claims.ID)
	switch {
	case err != nil:
		return fmt.Errorf("token %s: %w", claims.ID, err)
	case e.Kind != ledger.KindGrant || e.Seq != claims.Delegation.Hops[len(claims.Delegation.Hops)-1].Seq:
		return fmt.Errorf("token %s: entry %d is a %s", claims.ID, e.Seq, e.Kind)
	// Check has compared the entry's claims with their digest.
	case string(e.Claims) != string(unverified.Payload):
		return fmt.Errorf("token %s: entry %d holds other claims", claims.ID, e.Seq)
	}
	return nil
}

// onePerRoot checks that no root token has two grants. Each request of a campaign has a root token
// of its own, so two grants of one root are two grants for one request.
func onePerRoot(l *ledger.Ledger) error {
	grants := make(map[string]uint64)
	for after := uint64(0); ; {
		page, err := l.Entries(context.Background(), "acme", after, 500)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, e := range page {
			after = e.Seq
			if e.Kind != ledger.KindGrant {
				continue
			}
			if other, twice := grants[e.Root]; twice {
				return fmt.Errorf("entries %d and %d are grants for one request", other, e.Seq)
			}
			grants[e.Root] = e.Seq
		}
	}
}

// TestAuditNotices is the control of the campaign: the audit must notice tokens with a good
// signature whose entry is absent or differs, and two grants of one root.
func TestAuditNotices(t *testing.T) {
	d := deploy(t, plan{})
	i := d.start()
	answer, err := d.as(i, planner).Exchange(t.Context(), stepIn(d.root()))
	check(t, err)
	again := stepIn(d.root())
	again.IdempotencyKey = "one"
	for range 2 {
		_, err := d.as(i, planner).Exchange(t.Context(), again)
		check(t, err)
	}
	v := d.verifier(i)
	i.stop()
	genuine, err := delegation.Parse(answer.AccessToken.Reveal())
	check(t, err)
	keys, err := token.OpenKeyset(token.KeysetConfig{Keys: []token.KeyFile{{Path: filepath.Join(d.dir, "signing.pem"), Algorithm: "ES256"}}})
	check(t, err)
	forged := func(old, new string) string {
		claims := strings.ReplaceAll(string(genuine.Payload), old, new)
		if claims == string(genuine.Payload) {
			t.Fatalf("nothing was changed: %s", claims)
		}
		signed, err := keys.Sign([]byte(claims))
		check(t, err)
		return signed
	}
	check(t, withLedger(d, func(l *ledger.Ledger) error {
		check(t, accountedFor(l, v, answer.AccessToken.Reveal()))
		check(t, onePerRoot(l))
		for what, raw := range map[string]string{
			"a token without an entry": forged(answer.JTI, "01K9ZZZZZZZZZZZZZZZZZZZZZZ"),
			"more scope":               forged("calendar.read", "calendar.write"),
			"another number":           forged(fmt.Sprintf(`",%d,`, answer.Entry), `",999,`),
		} {
			if err := accountedFor(l, v, raw); err == nil {
				t.Errorf("not noticed: %s", what)
			}
		}
		return nil
	}))
	i = d.start()
	again.IdempotencyKey = "another"
	_, err = d.as(i, planner).Exchange(t.Context(), again)
	check(t, err)
	i.stop()
	check(t, withLedger(d, func(l *ledger.Ledger) error {
		if onePerRoot(l) == nil {
			t.Error("not noticed: two grants of one root")
		}
		return nil
	}))
}
