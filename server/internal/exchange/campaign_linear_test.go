package exchange_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
)

// A history is recorded chain by chain. Each chain has a user and workloads of its own, so no
// operation concerns two chains. Within a chain the sequential model is
//
//	exchange of p for c   granted: p lives; c is made     refused: p is dead
//	introspection of c    active: c lives                 inactive: c is dead
//	revocation            what it names and what is below dies, of what was made until then
//
// An exchange or introspection without an answer proves nothing and changes nothing that a client
// saw. A revocation without an answer may have happened at any time since, or never: it returns at
// the end.

// opKind is one of the three operations of the model.
type opKind int

const (
	opExchange opKind = iota
	opIntrospect
	opRevoke
)

// op is an operation's input. Tokens are numbered within their chain; sets of them are bit sets.
type op struct {
	kind   opKind
	token  int // that is exchanged or introspected
	child  int // that the exchange made, if it was granted
	target delegation.Target
	mask   uint64 // what a revocation of the target hits; see chainHistory.operations
}

// chainState is the model's state.
type chainState struct{ made, dead uint64 }

var chainModel = porcupine.Model{
	Init: func() any { return chainState{} },
	Step: func(state, input, output any) (bool, any) {
		s, in, yes := state.(chainState), input.(op), output.(bool)
		switch in.kind {
		case opExchange:
			// -1 is a root token, which no operation revokes.
			if in.token >= 0 && (s.dead>>in.token&1 == 0) != yes {
				return false, s
			}
			if yes {
				s.made |= 1 << in.child
			}
			return true, s
		case opIntrospect:
			return (s.dead>>in.token&1 == 0) == yes, s
		}
		s.dead |= s.made & in.mask
		return true, s
	},
}

// chainHistory is one chain's tokens and the operations on them.
type chainHistory struct {
	user  delegation.Principal
	crew  []delegation.Principal
	reach int // how many operations are wanted; a few more may be in progress

	mu      sync.Mutex
	tokens  []held
	history []porcupine.Operation
	pending int // revocations without an answer
}

// full reports that the chain has its share, or so many operations without an answer that checking
// it would take too long.
func (c *chainHistory) full() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.history) >= c.reach || c.pending >= maxPending
}

const maxPending = 2

// maxTokens leaves room in 64 bits for exchanges that are in progress when the last is counted.
const maxTokens = 48

// operations is the history in the form of the checker: each revocation with the tokens of the
// chain that it hits; those without an answer return at the end of the history.
func (c *chainHistory) operations() []porcupine.Operation {
	all := append([]porcupine.Operation(nil), c.history...)
	for i := range all {
		in := all[i].Input.(op)
		if in.kind != opRevoke {
			continue
		}
		for number, token := range c.tokens {
			// What was made before it in the model's order is older than any number.
			if kills(delegation.Revocation{Target: in.target, Seq: math.MaxUint64}, token.grant.Claims) {
				in.mask |= 1 << number
			}
		}
		all[i].Input = in
	}
	return all
}

// workers run clients over the chains until enough operations have answers.
type workers struct {
	*fleet
	*findings
	began time.Time
	left  atomic.Int64 // operations that are still wanted

	unanswered, stale atomic.Int64

	mu     sync.Mutex
	chains []*chainHistory
	active []*chainHistory
}

func (w *workers) now() int64 { return int64(time.Since(w.began)) }

// pick is one of the active chains. A chain that has its share is replaced by a new one.
func (w *workers) pick(t *testing.T, rnd *rand.Rand) *chainHistory {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := rnd.IntN(len(w.active))
	c := w.active[i]
	if c.full() {
		name := fmt.Sprintf("c%d", len(w.chains))
		c = &chainHistory{user: delegation.Principal("user:" + name), crew: w.crew(name, 5), reach: 60}
		w.welcome(c.user, c.crew...)
		w.chains = append(w.chains, c)
		w.active[i] = c
	}
	return c
}

// client does one operation after the other.
func (w *workers) client(t *testing.T, id int, rnd *rand.Rand) {
	for w.left.Load() > 0 {
		c := w.pick(t, rnd)
		instance := w.at(rnd.IntN(len(w.instances)))
		c.mu.Lock()
		tokens := c.tokens
		c.mu.Unlock()
		answered := false
		switch chance := rnd.IntN(100); {
		case len(tokens) == 0 || chance < 45 && len(tokens) < maxTokens:
			answered = w.exchange(t, c, id, instance, tokens, rnd)
		case chance < 93:
			answered = w.ask(t, c, id, instance, rnd.IntN(len(tokens)))
		default:
			answered = w.takeBack(t, c, id, instance, tokens, rnd)
		}
		if !answered {
			w.unanswered.Add(1)
			<-time.After(5 * time.Millisecond) // a dependency is down: do not spin
		}
	}
}

func (w *workers) record(c *chainHistory, id int, in op, call int64, yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.history = append(c.history, porcupine.Operation{ClientId: id, Input: in, Call: call, Output: yes, Return: w.now()})
	w.left.Add(-1)
}

func (w *workers) exchange(t *testing.T, c *chainHistory, id int, at *exchangetest.World, tokens []held, rnd *rand.Rand) bool {
	parent, in := held{holder: c.crew[0]}, op{kind: opExchange, token: -1}
	call := w.byWorkload(t, w.rootOf(t, c.user), c.crew[0], "")
	if len(tokens) > 0 {
		in.token = rnd.IntN(len(tokens))
		parent = tokens[in.token]
		next := c.crew[rnd.IntN(len(c.crew))]
		if parent.grant.Claims.Act.Contains(next) || rnd.IntN(3) == 0 {
			next = ""
		}
		call = w.byWorkload(t, parent.grant.AccessToken, parent.holder, next)
		if next != "" {
			parent.holder = next
		}
		if parent.grant.Claims.Delegation.DepthLeft == 0 {
			return w.ask(t, c, id, at, in.token)
		}
	}
	began := w.now()
	grant, refusal := at.One(t.Context(), call)
	switch {
	case refusal == nil:
		c.mu.Lock()
		in.child = len(c.tokens)
		if in.child >= 64 {
			c.mu.Unlock()
			return true // more than the model's bits: no client receives the token
		}
		// A copy each time: other clients read the slice that they received.
		c.tokens = append(c.tokens[:len(c.tokens):len(c.tokens)], held{grant: grant, holder: parent.holder})
		c.mu.Unlock()
		w.record(c, id, in, began, true)
	case takenBack(refusal):
		w.record(c, id, in, began, false)
	default:
		return w.silent("exchange", refusal)
	}
	return true
}

func (w *workers) ask(t *testing.T, c *chainHistory, id int, at *exchangetest.World, token int) bool {
	c.mu.Lock()
	raw := c.tokens[token].grant.AccessToken
	c.mu.Unlock()
	began := w.now()
	active, err := w.introspect(t, at, raw)
	if err != nil {
		return w.silent("introspection", delegation.AsError(err))
	}
	w.record(c, id, op{kind: opIntrospect, token: token}, began, active)
	return true
}

func (w *workers) takeBack(t *testing.T, c *chainHistory, id int, at *exchangetest.World, tokens []held, rnd *rand.Rand) bool {
	claims := tokens[rnd.IntN(len(tokens))].grant.Claims
	target := delegation.Target{Kind: delegation.BanToken, ID: claims.ID}
	switch rnd.IntN(10) {
	case 0:
		target = delegation.Target{Kind: delegation.BanChain, ID: claims.Txn}
	case 1, 2:
		target = delegation.Target{Kind: delegation.CutAgent, ID: string(claims.Act.Current())}
	case 3:
		target = delegation.Target{Kind: delegation.CutAgentSubject, ID: string(claims.Act.Current()), Subject: c.user}
	}
	in, began := op{kind: opRevoke, target: target}, w.now()
	_, err := w.revoke(t, at, target)
	if err == nil {
		w.record(c, id, in, began, true)
		return true
	}
	refusal := delegation.AsError(err)
	if refusal.Reason == delegation.DependencyDown {
		c.mu.Lock()
		c.history = append(c.history, porcupine.Operation{ClientId: id, Input: in, Call: began, Output: true, Return: math.MaxInt64})
		c.pending++
		c.mu.Unlock()
	}
	return w.silent("revocation", refusal)
}

// silent classifies a call without an answer. An assertion that was signed before Redis lost its
// memory is refused at admission; any other cause must be a dependency that is down.
func (w *workers) silent(what string, refusal *delegation.Error) bool {
	switch refusal.Reason {
	case delegation.DependencyDown:
	case delegation.AssertionReplayed:
		w.stale.Add(1)
	default:
		w.add("%s: %v (cause: %v)", what, refusal, refusal.Unwrap())
	}
	return false
}

// recordHistory runs clients over two instances during disturbances, until enough operations have
// answers.
func recordHistory(t *testing.T, f *fleet, operations int64, trouble []func(), every time.Duration, rnd *rand.Rand) *workers {
	t.Helper()
	const clients = 8
	w := &workers{fleet: f, findings: &findings{}, began: time.Now(), active: make([]*chainHistory, 3)}
	for i := range w.active {
		w.active[i] = &chainHistory{}
	}
	w.left.Store(operations)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var following, all sync.WaitGroup
	for _, i := range f.instances {
		following.Go(func() {
			if err := i.Engine.Follow(ctx); err != nil {
				w.add("follow: %v", err)
			}
		})
	}
	done := make(chan struct{})
	for id := range clients {
		own := rand.New(rand.NewPCG(rnd.Uint64(), uint64(id)))
		all.Go(func() { w.client(t, id, own) })
	}
	go func() { all.Wait(); close(done) }()
	for i := 0; ; i++ {
		select {
		case <-done:
			stop()
			following.Wait()
			return w
		case <-time.After(every):
			if len(trouble) > 0 {
				trouble[i%len(trouble)]()
			}
		}
	}
}

// during holds a disturbance for a time, from a test's own goroutine.
func during(begin, end func(), d time.Duration) func() {
	return func() {
		begin()
		<-time.After(d)
		end()
	}
}

func TestCampaignHistoryIsLinearizable(t *testing.T) {
	rnd := rand.New(rand.NewPCG(testservers.Seed(t), 5))
	redis, postgres := testservers.NewRedis(t), testservers.NewPostgres(t)
	f := newFleet(t, exchangetest.Config{DSN: postgres.DSN, RedisURL: redis.URL(), Prompt: true, Limits: exchange.Limits{MaxDepth: 16}}, 2)
	trouble := []func(){
		during(redis.Pause, redis.Resume, 300*time.Millisecond),
		during(redis.Kill, redis.Start, 100*time.Millisecond),
		during(redis.Stop, redis.Start, 100*time.Millisecond),
	}
	if testservers.Campaign(1, 0) == 1 {
		trouble = append(trouble, during(postgres.Pause, postgres.Resume, 2500*time.Millisecond), during(postgres.Kill, postgres.Start, 100*time.Millisecond))
	}
	operations := testservers.Campaign(100_000, 3_000)
	w := recordHistory(t, f, int64(operations), trouble, time.Duration(testservers.Campaign(5000, 2000))*time.Millisecond, rnd)
	w.report(t)
	took := time.Since(w.began)
	total, pending, refused := 0, 0, 0
	for i, c := range w.chains {
		history := c.operations()
		for _, o := range history {
			switch {
			case o.Return == math.MaxInt64:
				pending++
			case o.Output == false:
				refused++
			}
		}
		total += len(history)
		if verdict := porcupine.CheckOperationsTimeout(chainModel, history, time.Minute); verdict != porcupine.Ok {
			t.Errorf("the history of chain %d is not linearizable (%s)", i, verdict)
		}
	}
	if err := ledgertest.Check(t.Context(), f.instances[0].Ledger, "default"); err != nil {
		t.Errorf("the ledger: %v", err)
	}
	t.Logf("%d operations in %d chains in %v; %d said no, %d revocations without an answer, %d other calls, %d of them from before a loss",
		total, len(w.chains), took.Round(time.Millisecond), refused, pending, w.unanswered.Load()-int64(pending), w.stale.Load())
	if refused == 0 {
		t.Error("nothing was ever refused: the history shows nothing")
	}
	staleAnswerIsRefused(t, w)
}

// staleAnswerIsRefused is the control: one answer in a good history becomes that of an instance
// without an acknowledged revocation.
func staleAnswerIsRefused(t *testing.T, w *workers) {
	t.Helper()
	turned := 0
	for _, c := range w.chains {
		history := c.operations()
		for i, o := range history {
			in := o.Input.(op)
			if in.kind != opIntrospect || o.Output == true || !toldBefore(history, in.token, o.Call) {
				continue
			}
			history[i].Output = true
			if verdict := porcupine.CheckOperationsTimeout(chainModel, history, time.Minute); verdict != porcupine.Illegal {
				t.Errorf("a stale answer in the history: %s", verdict)
			}
			turned++
			break
		}
		if turned == 10 {
			return
		}
	}
	if turned == 0 {
		t.Error("no answer in the history could be turned into a stale one")
	}
}

// toldBefore reports whether a client found the token dead before the call.
func toldBefore(history []porcupine.Operation, token int, call int64) bool {
	for _, o := range history {
		in := o.Input.(op)
		if in.kind == opIntrospect && in.token == token && o.Output == false && o.Return < call {
			return true
		}
	}
	return false
}
