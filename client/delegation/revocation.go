package delegation

import (
	"slices"
	"sync"
	"time"
)

// TargetKind says how a revocation is aimed.
type TargetKind string

// Bans hit whatever names their target, now and later. Cut-offs hit what is older than they are:
// every hop with a smaller sequence number.
const (
	BanToken   TargetKind = "token"   // a jti and all below it
	BanChain   TargetKind = "chain"   // a txn
	BanRoot    TargetKind = "root"    // the digest of a root token
	BanKey     TargetKind = "key"     // a key thumbprint; never expires by itself
	BanSuspend TargetKind = "suspend" // an agent, wherever it stands; lifted by Resume only

	CutSubject      TargetKind = "subject"       // what was granted for a subject
	CutAgent        TargetKind = "agent"         // what was granted to an agent, or for it
	CutAgentSubject TargetKind = "agent_subject" // what was granted to an agent for one subject
	CutTenant       TargetKind = "tenant"        // everything

	// Resume lifts an agent's suspension and leaves a CutAgent at the suspension's number, so that
	// nothing older revives.
	Resume TargetKind = "resume"
)

// Target is what a revocation is aimed at: ID is a jti, txn, root digest, thumbprint or principal as
// the kind demands ("" for a tenant), Subject is set for CutAgentSubject only.
type Target struct {
	Kind    TargetKind
	ID      string
	Subject Principal
}

// Revocation is one revocation as the ledger numbered it.
type Revocation struct {
	Seq    uint64 // its own number
	Prev   uint64 // the number of the tenant's revocation before it; 0 for the first
	Target Target
	At     time.Time // when it was recorded
	Until  time.Time // when nothing it could hit is alive any more; zero: never
}

// Lineage is everything about a token, or about a grant that is about to be made, that a revocation
// can name. Root tokens have no hops; theirs is the one place where a clock counts.
type Lineage struct {
	Root         string
	RootIssuedAt time.Time // of a root token that is being exchanged; zero: it did not say
	Txn          string
	Subject      Principal
	Actors       Chain // including the actor of a grant that is about to be made
	Hops         []Hop // numbered hops only: a grant that is about to be made has none of its own yet
	Caller       Principal
	Keys         []string // thumbprints beside those of the hops
}

// RevocationSet is the live revocations of one tenant. Exchange, introspection and verifiers all ask
// the same Hit. It is safe for concurrent use; the zero value is the empty set.
type RevocationSet struct {
	mu   sync.RWMutex
	skew time.Duration
	last uint64
	by   map[Target]Revocation // for each target the latest revocation
}

// NewRevocationSet makes an empty set. skew is how far a root token's issuer's clock may be ahead:
// a cut-off also refuses a root that says it was issued up to skew after it.
func NewRevocationSet(skew time.Duration) *RevocationSet {
	return &RevocationSet{skew: skew, by: make(map[Target]Revocation)}
}

// Apply adds revocations in the order of their numbers; those already applied are passed over.
func (s *RevocationSet) Apply(revocations ...Revocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = make(map[Target]Revocation)
	}
	for _, r := range revocations {
		if r.Seq <= s.last {
			continue
		}
		s.last = r.Seq
		if r.Target.Kind != Resume {
			s.by[r.Target] = latest(s.by[r.Target], r)
			continue
		}
		suspend := Target{Kind: BanSuspend, ID: r.Target.ID}
		if ban, suspended := s.by[suspend]; suspended {
			delete(s.by, suspend)
			ban.Target.Kind = CutAgent
			s.by[ban.Target] = latest(s.by[ban.Target], ban)
		}
	}
}

// latest keeps the higher number and the longer life: a later, shorter-lived revocation of the same
// target must not end an earlier, longer one.
func latest(a, b Revocation) Revocation {
	if a.Seq == 0 {
		return b
	}
	if a.Seq > b.Seq {
		a, b = b, a
	}
	if !b.Until.IsZero() && (a.Until.IsZero() || a.Until.After(b.Until)) {
		b.Until = a.Until
	}
	return b
}

// Last is the number of the newest revocation applied.
func (s *RevocationSet) Last() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.last
}

// Len counts the live targets.
func (s *RevocationSet) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.by)
}

// Expire forgets what can hit nothing any more at the given time.
func (s *RevocationSet) Expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for target, r := range s.by {
		if !r.Until.IsZero() && !now.Before(r.Until) {
			delete(s.by, target)
		}
	}
}

// Hit returns a revocation that kills the lineage, if there is one. Every name in the lineage is
// asked for: no shorter path exists, and a lineage without a root digest is dead by itself.
func (s *RevocationSet) Hit(l Lineage) (Revocation, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if l.Root == "" {
		return Revocation{}, true
	}
	for _, target := range bansOn(l) {
		if r, banned := s.by[target]; banned {
			return r, true
		}
	}
	return s.cutOff(l)
}

func bansOn(l Lineage) []Target {
	bans := []Target{{Kind: BanRoot, ID: l.Root}, {Kind: BanChain, ID: l.Txn}}
	for _, hop := range l.Hops {
		bans = append(bans, Target{Kind: BanToken, ID: hop.ID})
		if hop.Key != "" {
			bans = append(bans, Target{Kind: BanKey, ID: hop.Key})
		}
	}
	for _, key := range l.Keys {
		bans = append(bans, Target{Kind: BanKey, ID: key})
	}
	for _, p := range slices.Concat(l.Actors, Chain{l.Subject, l.Caller}) {
		bans = append(bans, Target{Kind: BanSuspend, ID: string(p)})
	}
	return bans
}

// cutOff compares numbers. What names the subject or the tenant is compared at the first hop, what
// names an actor at each of that actor's hops.
func (s *RevocationSet) cutOff(l Lineage) (Revocation, bool) {
	origin := []Target{
		{Kind: CutTenant},
		{Kind: CutSubject, ID: string(l.Subject)},
		{Kind: CutAgent, ID: string(l.Subject)},
	}
	for _, target := range origin {
		r, cut := s.by[target]
		if !cut {
			continue
		}
		if len(l.Hops) > 0 && l.Hops[0].Seq < r.Seq || len(l.Hops) == 0 && !l.RootIssuedAt.After(r.At.Add(s.skew)) {
			return r, true
		}
	}
	for _, hop := range l.Hops {
		if hop.Actor < 0 || hop.Actor >= len(l.Actors) {
			return Revocation{}, true
		}
		actor := string(l.Actors[hop.Actor])
		for _, target := range []Target{{Kind: CutAgent, ID: actor}, {Kind: CutAgentSubject, ID: actor, Subject: l.Subject}} {
			if r, cut := s.by[target]; cut && hop.Seq < r.Seq {
				return r, true
			}
		}
	}
	return Revocation{}, false
}
