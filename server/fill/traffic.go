package fill

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/oklog/ulid/v2"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

const (
	perCall    = 500 // drafts of one transaction
	pace       = 3 * time.Second
	maxHops    = 6
	treeSize   = 1000 // grants below the root of a large tree
	maxHolders = 4096 // grants that may still be handed on
	rootLife   = 24 * time.Hour
)

// traffic makes up calls. They come in spells of some minutes with long pauses between, the last of
// which ends at Until.
type traffic struct {
	Options
	*world
	summary Summary

	now     time.Time
	seq     uint64 // number of the newest draft
	first   uint64 // number of the first draft of the call that is being made
	holders []*holder
	revoked *delegation.RevocationSet // what the ledger will know when it decides
	resume  delegation.Principal      // is suspended
	call    *call
}

// holder is a grant that others may be derived from.
type holder struct {
	claims delegation.Claims
	trace  string
}

func newTraffic(o Options, skew time.Duration) *traffic {
	return &traffic{
		Options: o, world: newWorld(o.Seed, o.Entries), revoked: delegation.NewRevocationSet(skew),
		summary: Summary{Kinds: make(map[string]int)},
	}
}

// run makes calls until there are enough entries, or emit has had enough.
func (g *traffic) run(emit func(*call) bool) {
	calls := (g.Entries + perCall - 1) / perCall
	spells := min(max(calls/8, 2), 60)
	perSpell := (g.Entries + spells - 1) / spells
	for spell := range spells {
		end := g.Until.Add(-g.Span * time.Duration(spells-1-spell) / time.Duration(spells))
		last := min((spell+1)*perSpell, g.Entries)
		g.now = end.Add(-pace * time.Duration((last-int(g.seq))/perCall+2))
		for call := 0; int(g.seq) < last; call++ {
			if !g.emit(emit, func() { g.requests(last, call == 1) }) || !g.emit(emit, func() { g.containment(last) }) {
				return
			}
		}
	}
	g.summary.Entries, g.summary.Subject, g.summary.Actor = int(g.seq), g.users[0], g.agents[0]
}

// emit has one call made and hands it over, unless nothing is in it.
func (g *traffic) emit(to func(*call) bool, fill func()) bool {
	g.first = g.seq + 1
	g.call = &call{at: g.now, first: g.first, revoked: make(map[int]bool)}
	fill()
	return len(g.call.drafts) == 0 || to(g.call)
}

// requests makes a call of what agents ask for, and now and then a large tree.
func (g *traffic) requests(last int, tree bool) {
	g.now = g.now.Add(pace)
	g.call.at = g.now
	if tree && last-int(g.seq) > treeSize {
		g.tree()
		return
	}
	for n := min(perCall, last-int(g.seq)); n > 0; n-- {
		switch p := g.rng.IntN(1000); {
		case p < 270:
			g.hold(g.root())
		case p < 890:
			g.handOn()
		case p < 970:
			g.refusal(ledger.KindRefusal)
		case p < 996:
			g.refusal(ledger.KindCheck)
		default:
			g.void()
		}
	}
}

// containment is what responders do between two calls; revocations have transactions of their own.
func (g *traffic) containment(last int) {
	if int(g.seq) >= last || len(g.holders) == 0 {
		return
	}
	victim := g.holders[g.rng.IntN(len(g.holders))].claims
	agent := victim.Act[g.rng.IntN(len(victim.Act))]
	switch p := g.rng.IntN(100); {
	case g.resume != "":
		g.revocation(delegation.Target{Kind: delegation.Resume, ID: string(g.resume)})
		g.resume = ""
	case p < 30:
		g.revocation(delegation.Target{Kind: delegation.BanToken, ID: victim.ID})
	case p < 50:
		g.revocation(delegation.Target{Kind: delegation.BanChain, ID: victim.Txn})
	case p < 60:
		g.revocation(delegation.Target{Kind: delegation.BanRoot, ID: victim.Delegation.Root})
	case p < 70:
		g.revocation(delegation.Target{Kind: delegation.CutSubject, ID: string(victim.Subject)})
	case p < 78:
		g.revocation(delegation.Target{Kind: delegation.CutAgentSubject, ID: string(agent), Subject: victim.Subject})
	case p < 80:
		g.revocation(delegation.Target{Kind: delegation.CutAgent, ID: string(agent)})
	case p < 83:
		g.revocation(delegation.Target{Kind: delegation.BanKey, ID: g.key(agent)})
		g.keys[agent]++ // it gets a new one
	case p < 86:
		g.revocation(delegation.Target{Kind: delegation.BanSuspend, ID: string(agent)})
		g.resume = agent
	}
}

// root is the exchange of a new root token.
func (g *traffic) root() *holder {
	subject := g.user()
	actor := g.agent(delegation.Chain{subject})
	audience, scopes := g.grantable()
	parent := delegation.Claims{
		Subject: subject, Txn: g.id(), Audience: []string{audience}, Scope: scopes,
		Delegation: delegation.Delegation{Root: hexDigest(g.id()), DepthLeft: maxHops + 1},
	}
	if g.chance(25) {
		parent.Details = details(audience, string(subject))
	}
	return g.grant(&holder{claims: parent, trace: g.trace()}, actor)
}

// handOn derives a token from one that is alive, or begins a chain where there is none.
func (g *traffic) handOn() {
	for range 8 {
		if len(g.holders) == 0 {
			break
		}
		i := g.rng.IntN(len(g.holders))
		h := g.holders[i]
		if h.claims.ExpiresAt <= g.now.Unix()+60 || len(h.claims.Delegation.Hops) >= maxHops {
			g.drop(i)
			continue
		}
		if _, dead := g.revoked.Hit(h.claims.Lineage()); dead && !g.chance(4) {
			g.drop(i)
			continue
		}
		if actor := h.claims.Act.Current(); g.chance(15) {
			g.hold(g.grant(h, actor)) // narrows its own
		} else {
			g.hold(g.grant(h, g.agent(h.claims.Act)))
		}
		return
	}
	g.hold(g.root())
}

func (g *traffic) drop(i int) {
	end := len(g.holders) - 1
	g.holders[i] = g.holders[end]
	g.holders = g.holders[:end]
}

// tree is one root with treeSize grants below it, wide at the top and up to maxHops deep. Nothing
// else is derived from it.
func (g *traffic) tree() {
	level := []*holder{g.root()}
	if level[0] == nil {
		return // its subject was cut off a moment ago
	}
	root, trace := level[0].claims.ID, level[0].trace
	left := treeSize
	for _, width := range []int{10, 12, 4, 1, 1} {
		var next []*holder
		for _, parent := range level {
			for range min(width, left) {
				if child := g.grant(parent, g.agent(parent.claims.Act)); child != nil {
					next, left = append(next, child), left-1
				}
			}
		}
		level = next
	}
	for i := 0; left > 0 && i < 4*treeSize; i++ { // what is missing goes to the lowest but one
		parent := level[i%len(level)]
		if len(parent.claims.Delegation.Hops) < maxHops && g.grant(parent, g.agent(parent.claims.Act)) != nil {
			left--
		}
	}
	g.summary.Tree, g.summary.Below, g.summary.TraceID = root, treeSize-left, trace
}

// grant drafts the exchange of the parent's token for one of the actor. It returns nil where the
// ledger will refuse.
func (g *traffic) grant(parent *holder, actor delegation.Principal) *holder {
	p := parent.claims
	claims := delegation.Claims{
		Issuer: "https://deputy.example", Subject: p.Subject, ClientID: actor, Audience: p.Audience, Scope: p.Scope,
		IssuedAt: g.now.Unix(), NotBefore: g.now.Unix(), ExpiresAt: g.expiry(p).Unix(), ID: g.id(), Txn: p.Txn,
		Act: next(p.Act, actor), Details: p.Details,
		Delegation: delegation.Delegation{Root: p.Delegation.Root, DepthLeft: p.Delegation.DepthLeft - 1},
	}
	d := g.draft(ledger.KindGrant, parent, actor)
	if p.ID == "" {
		d.Lineage.RootIssuedAt = g.now
	} else if claims.Scope = g.narrowed(p.Scope); g.chance(2) {
		claims.Details = nil
	}
	if !g.chance(5) {
		d.HolderKey = g.key(actor)
		claims.Confirmation = &delegation.Confirmation{JKT: d.HolderKey}
	}
	d.ID, d.Expiry, d.Scopes, d.Details = claims.ID, time.Unix(claims.ExpiresAt, 0), claims.Scope, claims.Details
	if g.chance(10) {
		d.Idempotency = &ledger.Idempotency{Key: g.id(), Until: d.Expiry}
	}
	number := g.add(d)
	own := delegation.Hop{ID: d.ID, Seq: number, Actor: len(claims.Act) - 1, Key: d.HolderKey}
	claims.Delegation.Hops = append(p.Delegation.Hops[:len(p.Delegation.Hops):len(p.Delegation.Hops)], own)
	payload, err := claims.MarshalJSON()
	d.Claims = func(seq uint64) ([]byte, error) {
		if seq != number {
			return nil, errors.New("another program writes to this tenant")
		}
		return payload, errors.Join(err, claims.Check())
	}
	if _, dead := g.revoked.Hit(lineage(d)); dead {
		g.call.revoked[len(g.call.drafts)-1] = true
		g.summary.Kinds[string(ledger.KindGrant)]--
		g.summary.Kinds[string(ledger.KindRefusal)]++
		return nil
	}
	return &holder{claims: claims, trace: parent.trace}
}

// lineage is what the ledger will match revocations against.
func lineage(d *ledger.Draft) delegation.Lineage {
	l := d.Lineage
	l.Root, l.Txn, l.Subject, l.Caller, l.Actors = d.Root, d.Txn, d.Subject, d.Caller, d.Actors
	if d.HolderKey != "" {
		l.Keys = []string{d.HolderKey}
	}
	return l
}

// hold lets others derive from the grant, if it is one.
func (g *traffic) hold(h *holder) {
	if h == nil {
		return
	}
	if hops := len(h.claims.Delegation.Hops); hops > g.summary.Depth {
		g.summary.Deep, g.summary.Depth = h.claims.ID, hops
	}
	if len(g.holders) < maxHolders {
		g.holders = append(g.holders, h)
	} else {
		g.holders[g.rng.IntN(maxHolders)] = h
	}
}

// expiry is mostly minutes, seldom hours, and never later than the parent's.
func (g *traffic) expiry(parent delegation.Claims) time.Time {
	life := 5 * time.Minute
	switch p := g.rng.IntN(100); {
	case p < 2:
		life = 12 * time.Hour
	case p < 10:
		life = time.Hour
	case p < 30:
		life = 15 * time.Minute
	}
	at := g.now.Add(life)
	if end := time.Unix(parent.ExpiresAt, 0); parent.ExpiresAt > 0 && at.After(end) {
		return end
	}
	return at
}

// draft holds the fields of every request of an exchange.
func (g *traffic) draft(kind ledger.Kind, parent *holder, actor delegation.Principal) *ledger.Draft {
	p := parent.claims
	d := &ledger.Draft{
		Kind: kind, Parent: p.ID, Txn: p.Txn, Root: p.Delegation.Root, Subject: p.Subject,
		Actor: actor, Caller: p.Act.Current(), Actors: next(p.Act, actor),
		Scopes: p.Scope, Audiences: p.Audience, ModelID: "01K9ZB7Q4R8T6V2X0M5N3P1Q7S", Peer: g.peer(), TraceID: parent.trace,
		ActorProof: "actor_token", Lineage: delegation.Lineage{Hops: p.Delegation.Hops},
	}
	if d.Caller == "" {
		d.Caller, d.ActorProof = actor, "caller" // it steps in by itself
	}
	if g.chance(4) {
		d.TraceID = g.trace()
	}
	return d
}

// next is the chain after a grant to the actor, which may be the current one with a narrower token.
func next(c delegation.Chain, actor delegation.Principal) delegation.Chain {
	if c.Current() == actor {
		return c
	}
	return c.Extend(actor)
}

// refusals are the reasons that agents receive most.
var refusals = []delegation.Reason{
	delegation.EdgeNotPermitted, delegation.EdgeNotPermitted, delegation.ScopeNotPermitted, delegation.ScopeNotPermitted,
	delegation.ScopeExceedsParent, delegation.AudienceNotPermitted, delegation.AudienceExceedsParent,
	delegation.LifetimeExceedsParent, delegation.DepthExhausted, delegation.ActorInChain,
}

// refusal drafts a request that comes to nothing; of checks, half would have been granted.
func (g *traffic) refusal(kind ledger.Kind) {
	audience, scopes := g.grantable()
	parent := &holder{trace: g.trace(), claims: delegation.Claims{
		Subject: g.user(), Audience: []string{audience}, Scope: scopes, Delegation: delegation.Delegation{Root: hexDigest(g.id())},
	}}
	if len(g.holders) > 0 && !g.chance(3) {
		parent = g.holders[g.rng.IntN(len(g.holders))]
	}
	actor := g.agent(nil)
	d := g.draft(kind, parent, actor)
	d.Outcome = ledger.Refused
	if kind == ledger.KindCheck && g.chance(2) {
		d.Outcome = ledger.Granted
	} else {
		d.Reason = refusals[g.rng.IntN(len(refusals))]
		if d.Reason == delegation.EdgeNotPermitted {
			d.Detail = "missing: " + string(actor) + "#delegator@" + string(parent.claims.Subject)
		}
	}
	g.add(d)
}

// void voids one of the grants of earlier calls: the ledger holds none of this one yet.
func (g *traffic) void() {
	if len(g.holders) == 0 {
		g.hold(g.root())
		return
	}
	i := g.rng.IntN(len(g.holders))
	hops := g.holders[i].claims.Delegation.Hops
	if own := hops[len(hops)-1]; own.Seq < g.first && own.ID != g.summary.Deep {
		d := g.draft(ledger.KindVoid, g.holders[i], g.holders[i].claims.Act.Current())
		d.Voids, d.ActorProof = own.Seq, ""
		g.drop(i)
		g.add(d)
		return
	}
	g.hold(g.root())
}

func (g *traffic) revocation(target delegation.Target) {
	r := delegation.Revocation{Target: target}
	switch target.Kind {
	case delegation.BanKey, delegation.BanSuspend, delegation.Resume:
	default:
		r.Until = g.now.Add(rootLife)
	}
	r.Seq = g.add(&ledger.Draft{
		Kind: ledger.KindRevocation, Caller: "user:responder", Detail: "seen in a drill", Revocation: &r, Peer: g.peer(), TraceID: g.trace(),
	})
	r.At = g.now
	g.revoked.Apply(r)
}

// add puts a draft into the call and returns the number that it will get.
func (g *traffic) add(d *ledger.Draft) uint64 {
	g.seq++
	g.call.drafts = append(g.call.drafts, d)
	g.summary.Kinds[string(d.Kind)]++
	return g.seq
}

// id makes a ULID of the time, as Deputy does.
func (g *traffic) id() string {
	var id ulid.ULID
	var random [16]byte
	binary.BigEndian.PutUint64(random[:], g.rng.Uint64())
	binary.BigEndian.PutUint64(random[8:], g.rng.Uint64())
	_ = id.SetTime(ulid.Timestamp(g.now)) // beyond the year 10889
	_ = id.SetEntropy(random[:len(id)-6]) // ten bytes, as it must be
	return id.String()
}
