package exchange_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/clock"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/testservers"
)

// TestClockCampaign makes the clocks of instances, PostgreSQL and Redis step and drift at random
// moments, with restarts and losses of Redis, while tokens are granted, revoked and used again.
func TestClockCampaign(t *testing.T) {
	seed := testservers.Seed(t)
	for name, dsn := range map[string]func() string{
		"sqlite": func() string { return "" }, "postgres": func() string { return testservers.Postgres(t) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newClockCampaign(t, dsn(), seed)
			for range testservers.Campaign(40, 3) {
				for range 40 {
					c.disturb()
					for range 3 {
						c.load()
					}
				}
				c.setRight()
				c.examine()
			}
			c.readLedger()
			t.Logf("%d granted, %d revoked, %d refused", len(c.granted), len(c.revoked), c.refused)
		})
	}
}

type clockCampaign struct {
	*testing.T
	random   *rand.Rand
	world    *exchangetest.World // has the true time
	n        *exchangetest.Tenant
	redis    *redis.Client
	machines []*drifting
	remote   map[string]*atomic.Int64 // how far ahead the clocks of PostgreSQL and Redis are

	granted []*exchange.Grant
	revoked []delegation.Revocation
	spent   []exchange.Call // each was granted
	prover  *exchangetest.Prover
	proofs  []*exchange.Proof // and a grant was made with each
	once    []string          // tokens that allow one exchange and have had it
	roots   map[string]string // of each key, what it was used with
	keyed   map[string]string // and the grant that it gave
	refused int
	entries map[uint64][2]time.Time // of a grant: between which times it was requested
}

// drifting is an instance whose wall clock also runs too fast or too slow.
type drifting struct {
	*timed
	rate float64
}

func newClockCampaign(t *testing.T, dsn string, seed uint64) *clockCampaign {
	server := testservers.NewRedis(t)
	c := &clockCampaign{
		T: t, random: rand.New(rand.NewPCG(seed, 15)), redis: redis.NewClient(&redis.Options{Addr: server.Addr}),
		remote: map[string]*atomic.Int64{"redis": new(atomic.Int64)},
		prover: exchangetest.NewProver(t), roots: map[string]string{}, keyed: map[string]string{}, entries: map[uint64][2]time.Time{},
	}
	t.Cleanup(func() { _ = c.redis.Close() })
	if dsn != "" {
		c.remote["postgresql"] = new(atomic.Int64)
	}
	c.world = exchangetest.New(t, exchangetest.Config{DSN: dsn, RedisURL: server.URL(), Agents: []delegation.Principal{responder}, Deadline: 20 * time.Second})
	c.n = c.world.Tenant()
	c.n.FGA.Allow(string(responder), "responder", "system:deputy")
	for range 3 {
		c.machines = append(c.machines, &drifting{timed: newTimed(t, c.world, 0, c.ahead)})
	}
	return c
}

func (c *clockCampaign) ahead(source string) time.Duration {
	return time.Duration(c.remote[source].Load())
}

func (c *clockCampaign) any() *drifting { return c.machines[c.random.IntN(len(c.machines))] }

// step is between a second and two days, in either direction; mostly zero.
func (c *clockCampaign) step() int64 {
	if c.random.IntN(3) > 0 {
		return 0
	}
	most := []time.Duration{5 * time.Second, time.Minute, time.Hour, 48 * time.Hour}[c.random.IntN(4)]
	d := time.Second + rand.N(most)
	if c.random.IntN(2) == 0 {
		d = -d
	}
	return int64(d)
}

// disturb changes one clock, or loses something, and lets time pass.
func (c *clockCampaign) disturb() {
	switch c.random.IntN(12) {
	case 0, 1, 2, 3:
		c.any().wall.Store(c.step())
	case 4:
		if !c.evidence() {
			return
		}
		for _, ahead := range c.remote {
			ahead.Store(0)
		}
		names := []string{"redis", "postgresql"}[:len(c.remote)]
		c.remote[names[c.random.IntN(len(names))]].Store(c.step())
	case 5:
		if m := c.any(); m.rate != 0 {
			m.rate = 0
			m.wall.Store(0)
		} else {
			m.rate = (c.random.Float64() - 0.5) / 10
		}
	case 6:
		if c.evidence() {
			old := c.random.IntN(len(c.machines))
			wall := time.Duration(c.machines[old].wall.Load())
			c.machines[old] = &drifting{timed: newTimed(c.T, c.world, wall, c.ahead)}
		}
	case 7:
		if err := c.redis.FlushAll(c.Context()).Err(); err != nil {
			c.Fatal(err)
		}
	case 8, 9:
		c.pass(rand.N(3 * time.Minute))
	default:
		c.pass(time.Second)
	}
}

// evidence is false if an instance that was just started would have no correct evidence of time. At
// most one of PostgreSQL and Redis is wrong at a time. Without PostgreSQL, Redis is wrong only
// while each wall clock is right.
func (c *clockCampaign) evidence() bool {
	return len(c.remote) == 2 || c.ahead("redis") == 0 &&
		!slices.ContainsFunc(c.machines, func(m *drifting) bool { return m.wall.Load() != 0 || m.rate != 0 })
}

// pass lets time pass, and each instance compares.
func (c *clockCampaign) pass(d time.Duration) {
	c.world.Clock().Advance(d)
	for _, m := range c.machines {
		m.wall.Add(int64(m.rate * float64(d)))
		m.Compare(c.Context())
	}
}

func (c *clockCampaign) load() {
	switch c.random.IntN(10) {
	case 0, 1, 2:
		c.grant()
	case 3:
		c.revoke()
	case 4, 5:
		c.present()
	case 6, 7:
		c.replay()
	default:
		c.repeat()
	}
}

// exchange makes a call to an instance, which grants only while its clock is right.
func (c *clockCampaign) exchange(m *drifting, call exchange.Call) *exchange.Grant {
	began := c.world.Clock().Now()
	grant, refusal := m.One(c.Context(), call)
	if refusal != nil {
		c.refused++
		return nil
	}
	if off := time.Duration(m.wall.Load()).Abs(); off > clock.DefaultBound+time.Second {
		c.Errorf("an instance whose clock is %v off granted", off)
	}
	if _, known := c.entries[grant.Entry]; !known {
		c.entries[grant.Entry] = [2]time.Time{began, c.world.Clock().Now()}
	}
	return grant
}

// grant makes a token, and a child of it at another instance.
func (c *clockCampaign) grant() {
	call := c.n.Call(c, c.n.Root(c, nil), planner, "")
	if c.random.IntN(2) == 0 {
		call.Children[0].Uses = ptr(uint32(1))
	}
	if c.random.IntN(3) == 0 {
		call.Credentials.Proof = c.world.Proof(c, c.prover)
	}
	parent := c.exchange(c.any(), call)
	if parent == nil {
		return
	}
	if proof := call.Credentials.Proof; proof != nil {
		c.proofs = append(c.proofs, proof)
	}
	c.granted, c.spent = append(c.granted, parent), append(c.spent, call)
	down := c.n.Call(c, parent.AccessToken, planner, researcher)
	child := c.exchange(c.any(), down)
	if child == nil {
		return
	}
	c.granted, c.spent = append(c.granted, child), append(c.spent, down)
	if call.Children[0].Uses != nil {
		c.once = append(c.once, parent.AccessToken)
	}
}

func (c *clockCampaign) revoke() {
	if len(c.granted) == 0 {
		return
	}
	g := c.granted[max(0, len(c.granted)-1-c.random.IntN(10))]
	target := []delegation.Target{
		{Kind: delegation.BanToken, ID: g.Claims.ID}, {Kind: delegation.BanChain, ID: g.Claims.Txn}, {Kind: delegation.BanRoot, ID: g.Claims.Delegation.Root},
		{Kind: delegation.CutAgent, ID: string(g.Claims.Act.Current())},
	}[c.random.IntN(4)]
	done, err := c.any().Engine.Revoke(c.Context(), exchange.RevokeCall{Tenant: "default", Credentials: c.n.Credentials(c, responder), Target: target})
	if err == nil {
		c.revoked = append(c.revoked, *done.Revocation)
	}
}

func (c *clockCampaign) dead(g *exchange.Grant) bool {
	return slices.ContainsFunc(c.revoked, func(r delegation.Revocation) bool { return kills(r, g.Claims) }) ||
		!c.world.Clock().Now().Add(-clock.DefaultBound).Before(time.Unix(g.Claims.ExpiresAt, 0))
}

// present uses tokens that were revoked, or have expired, at each instance.
func (c *clockCampaign) present() {
	for range 5 {
		if len(c.granted) == 0 {
			return
		}
		g := c.granted[max(0, len(c.granted)-1-c.random.IntN(60))]
		if !c.dead(g) {
			continue
		}
		for i, m := range c.machines {
			got, err := m.Engine.Introspect(c.Context(), exchange.Inquiry{Tenant: "default", Credentials: c.n.Credentials(c, g.Claims.Act.Current()), Token: g.AccessToken})
			if err == nil && got.Claims != nil {
				c.Errorf("instance %d introspects a dead token as active", i)
			}
			if child := c.exchange(m, c.n.Call(c, g.AccessToken, g.Claims.Act.Current(), writer)); child != nil {
				c.Errorf("instance %d derives from a dead token", i)
			}
		}
	}
}

// replay uses again what was spent: an assertion, a proof, and a token that allows one exchange.
func (c *clockCampaign) replay() {
	if len(c.spent) > 0 {
		call := c.spent[max(0, len(c.spent)-1-c.random.IntN(20))]
		if c.exchange(c.any(), call) != nil {
			c.Error("an assertion was accepted twice")
		}
	}
	if len(c.proofs) > 0 {
		call := c.n.Call(c, c.n.Root(c, nil), planner, "")
		call.Credentials.Proof = c.proofs[max(0, len(c.proofs)-1-c.random.IntN(5))]
		if c.exchange(c.any(), call) != nil {
			c.Error("a proof was accepted twice")
		}
	}
	if len(c.once) > 0 {
		if c.exchange(c.any(), c.n.Call(c, c.once[max(0, len(c.once)-1-c.random.IntN(5))], planner, researcher)) != nil {
			c.Error("a token of one use was exchanged twice")
		}
	}
}

// repeat requests the same grant with the same key, at any instance.
func (c *clockCampaign) repeat() {
	key := fmt.Sprint("key-", c.random.IntN(8), "-", len(c.revoked)/8)
	if c.roots[key] == "" {
		c.roots[key] = c.n.Root(c, map[string]any{"exp": c.world.Clock().Now().Add(9 * time.Hour).Unix()})
	}
	call := c.n.Call(c, c.roots[key], planner, "")
	call.IdempotencyKey = key
	grant := c.exchange(c.any(), call)
	switch {
	case grant == nil:
	case c.keyed[key] == "":
		c.keyed[key] = grant.Claims.ID
		c.granted = append(c.granted, grant)
	case c.keyed[key] != grant.Claims.ID:
		c.Errorf("key %s gave two grants", key)
	}
}

// setRight sets all clocks right and gives them the time that they may need to be trusted again.
func (c *clockCampaign) setRight() {
	for _, ahead := range c.remote {
		ahead.Store(0)
	}
	for _, m := range c.machines {
		m.rate = 0
		m.wall.Store(0)
	}
	c.pass(time.Second)
	c.pass(clock.Hold + time.Second)
}

// examine makes each instance do what it must do when clocks are right: no caller is refused for
// longer.
func (c *clockCampaign) examine() {
	for i, m := range c.machines {
		parent, refusal := m.One(c.Context(), c.n.Call(c, c.n.Root(c, nil), writer, ""))
		if refusal != nil {
			c.Fatalf("instance %d with all clocks right: %v (cause %v)", i, refusal, refusal.Unwrap())
		}
		for k, other := range c.machines {
			got, err := other.Engine.Introspect(c.Context(), exchange.Inquiry{Tenant: "default", Credentials: c.n.Credentials(c, writer), Token: parent.AccessToken})
			if err != nil || got.Claims == nil && !c.dead(parent) {
				c.Errorf("instance %d with all clocks right says of a live token: %v, %v", k, got.Claims, err)
			}
		}
	}
	for range 20 {
		c.present()
		c.replay()
	}
}

// readLedger compares the times of all entries with one another, and those of grants with the true
// time.
func (c *clockCampaign) readLedger() {
	var last time.Time
	for after := uint64(0); ; {
		page, err := c.world.Ledger.Entries(c.Context(), "default", after, 500)
		if err != nil {
			c.Fatal(err)
		}
		for _, e := range page {
			if e.Time.Before(last) {
				c.Errorf("entry %d is older than the one before it", e.Seq)
			}
			last, after = e.Time, e.Seq
			when, known := c.entries[e.Seq]
			if known && (e.Time.Before(when[0].Add(-clock.DefaultBound-time.Second)) || e.Time.After(when[1].Add(clock.DefaultBound+time.Second))) {
				c.Errorf("entry %d says %v, which was between %v and %v", e.Seq, e.Time, when[0], when[1])
			}
		}
		if len(page) == 0 {
			return
		}
	}
}
