package exchange_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
)

const (
	bob       = delegation.Principal("user:bob")
	maxChain  = 8
	racers    = 4
	pastDoubt = 40 * time.Second // beyond the skew that a cut-off allows a root token's issuer
)

var kinds = []delegation.TargetKind{
	delegation.BanToken, delegation.BanChain, delegation.BanRoot, delegation.BanKey, delegation.BanSuspend,
	delegation.CutSubject, delegation.CutAgent, delegation.CutAgentSubject, delegation.CutTenant,
}

// held is a token of a round and the workload that may exchange it.
type held struct {
	grant  *exchange.Grant
	holder delegation.Principal
	// fromRoot: the root token was exchanged for it. late: the call began after the
	// acknowledgement.
	fromRoot, late bool
}

// race is one round: a chain, a target above its leaf that is revoked, and racers below.
type race struct {
	*fleet
	*findings
	name      string
	rnd       *rand.Rand
	kind      delegation.TargetKind
	crew      []delegation.Principal // of the chain, oldest first; the last two are never in it
	key       delegation.Principal   // the leaf is bound to its key, in rounds about a key
	root      string
	chain     []held
	bystander []held // bob's chain, which ends with the agent that is the target
	hop       int    // the hop that is the target

	mu    sync.Mutex
	raced []held
}

// campaign runs rounds with each kind of target in turn, at each depth. It returns how many of them
// found a violation.
func campaign(t *testing.T, f *fleet, found *findings, keys []delegation.Principal, rnd *rand.Rand, rounds int) (guilty int) {
	t.Helper()
	crew := f.crew("crew", maxChain+2)
	f.welcome(alice, crew...)
	f.welcome(bob, crew...)
	for _, k := range keys {
		f.know(k)
		for _, c := range crew {
			f.n.FGA.Allow(string(c), "delegator", string(k))
		}
	}
	for i := range rounds {
		depth := 1 + i%maxChain
		r := &race{fleet: f, findings: &findings{}, rnd: rnd, kind: kinds[i%len(kinds)], crew: crew}
		if r.kind == delegation.BanKey {
			depth, r.key = max(depth, 2), keys[i/len(kinds)]
		}
		r.name = fmt.Sprintf("round %d (%s, depth %d)", i, r.kind, depth)
		rnd.Shuffle(len(crew), func(a, b int) { crew[a], crew[b] = crew[b], crew[a] })
		r.run(t, depth)
		if len(r.all) > 0 {
			guilty++
			found.all = append(found.all, r.all...)
		}
		if t.Failed() {
			return guilty
		}
		f.instances[0].Clock().Advance(pastDoubt)
	}
	return guilty
}

func (r *race) run(t *testing.T, depth int) {
	t.Helper()
	r.hop = r.rnd.IntN(depth)
	r.root = r.rootOf(t, alice)
	r.chain = r.build(t, r.root, r.crew[:depth])
	target := r.target(t)
	r.bystander = r.build(t, r.rootOf(t, bob), []delegation.Principal{r.crew[maxChain], r.crew[r.hop]})
	if t.Failed() {
		return
	}
	revocation := r.raceAgainst(t, target)
	if revocation == nil {
		return
	}
	r.judge(t, *revocation)
	if r.kind != delegation.BanSuspend {
		return
	}
	resumed := delegation.Target{Kind: delegation.Resume, ID: target.ID}
	if _, err := r.revokeSurely(t, r.at(r.rnd.IntN(2)), resumed); err != nil {
		t.Errorf("%s: resume: %v", r.name, err)
		return
	}
	r.judge(t, delegation.Revocation{Seq: revocation.Seq, Target: delegation.Target{Kind: delegation.CutAgent, ID: target.ID}})
}

// build makes a chain from a root token, its hops at any instance.
func (r *race) build(t *testing.T, root string, agents []delegation.Principal) []held {
	t.Helper()
	var chain []held
	parent, caller := root, agents[0]
	for i, agent := range agents {
		call := r.byWorkload(t, parent, caller, agent)
		if i == 0 {
			call = r.byWorkload(t, parent, caller, "")
		}
		if r.key != "" && root == r.root && i == len(agents)-1 {
			call = r.boundToKey(t, parent, caller)
		}
		grant, err := r.at(r.rnd.IntN(2)).One(t.Context(), call)
		for tries := 0; err != nil && err.Temporary() && tries < patience; tries++ {
			grant, err = r.at(tries).One(t.Context(), call)
		}
		if err != nil {
			t.Errorf("%s: hop %d: %v (cause: %v)", r.name, i, err, err.Unwrap())
			return chain
		}
		if grant.Claims.Confirmation != nil {
			agent = r.key
		}
		chain = append(chain, held{grant: grant, holder: agent})
		parent, caller = grant.AccessToken, agent
	}
	return chain
}

// boundToKey hands a token down to the round's key, by its thumbprint.
func (r *race) boundToKey(t *testing.T, parent string, caller delegation.Principal) exchange.Call {
	t.Helper()
	call := r.byWorkload(t, parent, caller, "")
	call.Children[0].RequestedActor, call.Children[0].ActorConfirmation = string(r.key), r.n.Clients[r.key].KeyID
	return call
}

func (r *race) target(t *testing.T) delegation.Target {
	t.Helper()
	aimed := r.chain[min(r.hop, len(r.chain)-1)]
	agent := string(r.crew[r.hop])
	switch r.kind {
	case delegation.BanToken:
		return delegation.Target{Kind: r.kind, ID: aimed.grant.Claims.ID}
	case delegation.BanChain:
		return delegation.Target{Kind: r.kind, ID: aimed.grant.Claims.Txn}
	case delegation.BanRoot:
		return delegation.Target{Kind: r.kind, ID: aimed.grant.Claims.Delegation.Root}
	case delegation.BanKey:
		return delegation.Target{Kind: r.kind, ID: r.n.Clients[r.key].KeyID}
	case delegation.CutSubject:
		return delegation.Target{Kind: r.kind, ID: string(alice)}
	case delegation.CutAgentSubject:
		return delegation.Target{Kind: r.kind, ID: agent, Subject: alice}
	case delegation.CutTenant:
		return delegation.Target{Kind: r.kind}
	}
	return delegation.Target{Kind: r.kind, ID: agent}
}

// raceAgainst revokes while the racers exchange. It returns when each racer has also exchanged once
// after the acknowledgement.
func (r *race) raceAgainst(t *testing.T, target delegation.Target) *delegation.Revocation {
	t.Helper()
	var acknowledged atomic.Bool
	ticks, begun := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	for i := range racers {
		own := rand.New(rand.NewPCG(r.rnd.Uint64(), uint64(i)))
		all.Go(func() {
			for last := false; !last; {
				last = acknowledged.Load()
				r.exchangeSomething(t, own, last)
				select {
				case ticks <- struct{}{}:
				case <-begun:
				}
			}
		})
	}
	by := r.rnd.IntN(2)
	for range r.rnd.IntN(racers + 1) {
		<-ticks
	}
	close(begun)
	revocation, err := r.revokeSurely(t, r.at(by), target)
	acknowledged.Store(true)
	all.Wait()
	if err != nil {
		t.Errorf("%s: revoke: %v", r.name, err)
		return nil
	}
	return revocation
}

// patience is how often a call is repeated that a busy machine made unavailable.
const patience = 20

// revokeSurely repeats until the answer is a success or a refusal. A call without an answer may
// have taken effect; the last one's number covers it.
func (r *race) revokeSurely(t *testing.T, w *exchangetest.World, target delegation.Target) (revocation *delegation.Revocation, err error) {
	t.Helper()
	for range patience {
		if revocation, err = r.revoke(t, w, target); err == nil || !delegation.AsError(err).Temporary() {
			break
		}
	}
	return revocation, err
}

// introspectSurely repeats until there is an answer.
func (r *race) introspectSurely(t *testing.T, w *exchangetest.World, token string) (active bool, err error) {
	t.Helper()
	for range patience {
		if active, err = r.introspect(t, w, token); err == nil || !delegation.AsError(err).Temporary() {
			break
		}
	}
	return active, err
}

// exchangeSomething hands down, fans out, narrows or starts a new chain from the root token.
func (r *race) exchangeSomething(t *testing.T, rnd *rand.Rand, late bool) {
	exchangeable := len(r.chain)
	if r.key != "" {
		exchangeable-- // the leaf would need a proof of its key
	}
	parent := r.chain[rnd.IntN(exchangeable)]
	next := r.crew[maxChain+rnd.IntN(2)]
	holders := []delegation.Principal{next}
	var call exchange.Call
	fromRoot := false
	switch style := rnd.IntN(5); {
	case r.key != "" && style < 3:
		parent = r.chain[exchangeable-1]
		call, holders = r.boundToKey(t, parent.grant.AccessToken, parent.holder), []delegation.Principal{r.key}
	case style == 0:
		call, fromRoot = r.byWorkload(t, r.root, next, ""), true
	case style == 1:
		call, holders[0] = r.byWorkload(t, parent.grant.AccessToken, parent.holder, ""), parent.holder
	case style == 2:
		call = r.byWorkload(t, parent.grant.AccessToken, parent.holder, next, "")
		holders = append(holders, parent.holder)
	default:
		call = r.byWorkload(t, parent.grant.AccessToken, parent.holder, next)
	}
	outcomes, err := r.at(rnd.IntN(2)).Engine.Exchange(t.Context(), call)
	if err != nil {
		if refusal := delegation.AsError(err); !takenBack(refusal) && !refusal.Temporary() {
			r.add("%s: an exchange: %v", r.name, refusal)
		}
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, o := range outcomes {
		switch {
		case o.Err == nil:
			r.raced = append(r.raced, held{grant: o.Grant, holder: holders[i], fromRoot: fromRoot, late: late})
		case !takenBack(o.Err) && !o.Err.Temporary():
			r.add("%s: an exchange: %v (cause: %v)", r.name, o.Err, o.Err.Unwrap())
		}
	}
}

// judge compares each token of the round with the revocation, at each instance.
func (r *race) judge(t *testing.T, revocation delegation.Revocation) {
	t.Helper()
	for _, h := range r.raced {
		number := h.grant.Entry
		if number > revocation.Seq && kills(revocation, h.grant.Claims) || h.late && kills(revocation, h.grant.Claims) {
			r.add("%s: entry %d grants below revocation %d", r.name, number, revocation.Seq)
		}
		beyond := r.kind == delegation.CutSubject || r.kind == delegation.CutTenant
		if beyond && h.fromRoot && (h.late || number > revocation.Seq) {
			r.add("%s: entry %d: a root token from before revocation %d mints", r.name, number, revocation.Seq)
		}
	}
	var all sync.WaitGroup
	for i, w := range r.instances {
		all.Go(func() {
			for _, set := range [][]held{r.chain, r.bystander, r.raced} {
				for _, h := range set {
					dead := kills(revocation, h.grant.Claims)
					active, err := r.introspectSurely(t, w, h.grant.AccessToken)
					if err != nil || active == dead {
						r.add("%s: instance %d, entry %d after revocation %d: active %t, want %t (%v)", r.name, i, h.grant.Entry, revocation.Seq, active, !dead, err)
					}
				}
				r.exchangeAfter(t, w, i, set, revocation)
			}
		})
	}
	all.Wait()
}

// exchangeAfter exchanges the last token of a set: a dead token is refused, a live one is not.
func (r *race) exchangeAfter(t *testing.T, w *exchangetest.World, instance int, set []held, revocation delegation.Revocation) {
	if len(set) == 0 {
		return
	}
	h := set[len(set)-1]
	if h.holder == r.key {
		return // dead or not, it needs a proof of its key
	}
	call := r.byWorkload(t, h.grant.AccessToken, h.holder, "")
	_, refusal := w.One(t.Context(), call)
	for tries := 0; refusal != nil && refusal.Temporary() && tries < patience; tries++ {
		_, refusal = w.One(t.Context(), call)
	}
	switch dead := kills(revocation, h.grant.Claims); {
	case dead && !takenBack(refusal):
		r.add("%s: instance %d, entry %d after revocation %d: exchanged, %v", r.name, instance, h.grant.Entry, revocation.Seq, refusal)
	case !dead && refusal != nil:
		r.add("%s: instance %d, entry %d is alive, and refused: %v", r.name, instance, h.grant.Entry, refusal)
	}
}

// keyholders are the agents whose keys the rounds ban, one each: a ban on a key is permanent.
func keyholders(rounds int) []delegation.Principal {
	all := make([]delegation.Principal, rounds/len(kinds)+1)
	for i := range all {
		all[i] = delegation.Principal(fmt.Sprintf("agent:keyholder-%d", i))
	}
	return all
}

func TestCampaignRevokeAgainstExchange(t *testing.T) {
	for name, c := range map[string]struct {
		dsn       func(testing.TB) string
		instances int
		rounds    int
	}{
		"two instances on PostgreSQL": {testservers.Postgres, 2, testservers.Campaign(2000, 27)},
		"one on SQLite":               {func(testing.TB) string { return "" }, 1, testservers.Campaign(2000, 9)},
	} {
		t.Run(name, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(testservers.Seed(t), 3))
			keys := keyholders(c.rounds)
			f := newFleet(t, exchangetest.Config{DSN: c.dsn(t), Agents: keys, Limits: exchange.Limits{MaxDepth: maxChain + 4}}, c.instances)
			found := &findings{}
			began := time.Now()
			campaign(t, f, found, keys, rnd, c.rounds)
			found.report(t)
			if err := ledgertest.Check(t.Context(), f.instances[0].Ledger, "default"); err != nil {
				t.Errorf("the ledger: %v", err)
			}
			t.Logf("%d rounds in %v", c.rounds, time.Since(began).Round(time.Millisecond))
		})
	}
}

// TestCampaignFindsAnInstanceThatHearsNothing is the control: an instance that receives no
// revocations is found in each round, for each target.
func TestCampaignFindsAnInstanceThatHearsNothing(t *testing.T) {
	rnd := rand.New(rand.NewPCG(testservers.Seed(t), 4))
	keys := keyholders(len(kinds))
	f := newFleet(t, exchangetest.Config{Agents: keys, Limits: exchange.Limits{MaxDepth: maxChain + 4}}, 1)
	f.splitOff(t)
	if guilty := campaign(t, f, &findings{}, keys, rnd, len(kinds)); guilty != len(kinds) {
		t.Errorf("found out in %d of %d rounds", guilty, len(kinds))
	}
}

// TestCampaignFindsAForgedGrant is the control of the ledger's own check: it finds a grant below a
// revoked token, which can be recorded only if its ancestors are hidden from the ledger.
func TestCampaignFindsAForgedGrant(t *testing.T) {
	w, n, chain := hospital(t)
	if _, refusal := take(w, t, responder, delegation.Target{Kind: delegation.BanToken, ID: chain[0].Claims.ID}); refusal != nil {
		t.Fatal(refusal)
	}
	if err := ledgertest.Check(t.Context(), w.Ledger, n.Name); err != nil {
		t.Fatal(err)
	}
	leaf, err := chain[2].Claims.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	forged := ledgertest.Child(w.Clock().Now(), leaf, stranger)
	forged.Lineage.Hops = forged.Lineage.Hops[2:]
	if _, err := w.Ledger.Append(context.WithoutCancel(t.Context()), n.Name, forged); err != nil {
		t.Fatal(err)
	}
	if err := ledgertest.Check(t.Context(), w.Ledger, n.Name); err == nil {
		t.Error("not found")
	}
}
