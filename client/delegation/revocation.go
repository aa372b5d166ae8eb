package delegation

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// TargetKind is the kind of a revocation's target.
type TargetKind string

// Bans hit every lineage that names their target, now and later. Cut-offs hit what is older than
// they are: every hop with a smaller sequence number.
const (
	BanToken   TargetKind = "token"   // a jti and all tokens below it
	BanChain   TargetKind = "chain"   // a txn
	BanRoot    TargetKind = "root"    // the digest of a root token
	BanKey     TargetKind = "key"     // a key thumbprint; never expires by itself
	BanSuspend TargetKind = "suspend" // an agent anywhere in the chain; lifted by Resume only

	CutSubject      TargetKind = "subject"       // what was granted for a subject
	CutAgent        TargetKind = "agent"         // what was granted to an agent, or for it
	CutAgentSubject TargetKind = "agent_subject" // what was granted to an agent for one subject
	CutTenant       TargetKind = "tenant"        // everything

	// CutFork hits what a ledger that was given up granted: every hop whose number is above its ID,
	// the decimal number of an entry, and whose jti is older than the recovery that recorded it.
	// Only a recovery makes one.
	CutFork TargetKind = "fork"

	// Resume lifts an agent's suspension and leaves a CutAgent at the suspension's number, so that
	// nothing older revives.
	Resume TargetKind = "resume"
)

// Target is what a revocation is aimed at. ID is a jti, txn, root digest, thumbprint or principal
// as the kind demands, or "" for a tenant. Subject is set for CutAgentSubject only.
type Target struct {
	Kind    TargetKind
	ID      string
	Subject Principal
}

// Check returns an error unless the target has the form that its kind demands.
func (t Target) Check() error {
	if (t.Subject != "") != (t.Kind == CutAgentSubject) {
		return Refuse(ParameterInvalid, "target.subject", "goes with an agent and its subject, and with nothing else")
	}
	switch t.Kind {
	case CutTenant:
		if t.ID != "" {
			return Refuse(ParameterInvalid, "target.id", "a tenant's target has none: it is the caller's own tenant")
		}
		return nil
	case BanToken, BanChain, BanRoot, BanKey:
		if t.ID == "" || len(t.ID) > 128 || strings.ContainsFunc(t.ID, func(r rune) bool { return r <= 0x20 || r > 0x7e }) {
			return Refuse(ParameterInvalid, "target.id", "must be 1 to 128 visible ASCII characters")
		}
		return nil
	case CutFork:
		if _, ok := t.forkedAt(); !ok {
			return Refuse(ParameterInvalid, "target.id", "must be the decimal number of an entry")
		}
		return nil
	case BanSuspend, Resume, CutSubject, CutAgent:
	case CutAgentSubject:
		if _, err := ParsePrincipal(string(t.Subject)); err != nil {
			return Refuse(ParameterInvalid, "target.subject", "%v", err)
		}
	default:
		return Refuse(ParameterInvalid, "target.kind", "is not one that can be revoked")
	}
	if _, err := ParsePrincipal(t.ID); err != nil {
		return Refuse(ParameterInvalid, "target.id", "%v", err)
	}
	return nil
}

// Revocation is one revocation as the ledger numbered it.
type Revocation struct {
	Seq    uint64 // its own number
	Prev   uint64 // the number of the tenant's revocation before it; 0 for the first
	Target Target
	At     time.Time // when it was recorded
	Until  time.Time // when every token that it could hit has expired; zero: never
}

// Lineage is every name in a token, or in a grant that is about to be made, that a revocation can
// aim at. A root token has no hops: it is the one case where a clock counts.
type Lineage struct {
	Root         string
	RootIssuedAt time.Time // of a root token that is being exchanged; zero: it has no iat
	RootActors   Chain     // actors that such a root token already had
	Txn          string
	Subject      Principal
	Actors       Chain // includes the actor of a grant that is about to be made
	Hops         []Hop // numbered hops only: a grant that is about to be made has none yet
	Caller       Principal
	Keys         []string // thumbprints in addition to those of the hops
}

// RevocationSet is the live revocations of one tenant. Exchange, introspection and verifiers all
// call the same Hit. It is safe for concurrent use; make it with NewRevocationSet.
//
// It keeps 128 bits of each target, hashed with seeds of its own: a million live revocations take
// at most 100 MB. Two targets that collide, which no caller can cause, would refuse too much, not
// too little.
type RevocationSet struct {
	skew    time.Duration
	seeds   [2]maphash.Seed
	version atomic.Uint64 // grows with every change that can change an answer of Hit

	mu    sync.RWMutex
	last  uint64
	by    map[targetHash]mark // for each target the latest revocation
	forks map[uint64]mark     // CutFork by the number of its target
	// forgotten, in seconds since 1970: revocations that expired by then may be missing.
	forgotten int64
}

type targetHash [2]uint64

// mark is the part of a revocation that Hit needs. Times are in seconds since 1970.
type mark struct {
	seq   uint64
	at    int64
	until int64 // 0: never
}

// NewRevocationSet makes an empty set. skew is how far the clock of a root token's issuer may be
// ahead: a cut-off also refuses a root token whose iat is up to skew after it.
func NewRevocationSet(skew time.Duration) *RevocationSet {
	return &RevocationSet{
		skew: skew, seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		by: make(map[targetHash]mark),
	}
}

func (s *RevocationSet) hash(t Target) targetHash {
	// The length of the id separates it from the subject. Kinds are a closed set.
	var room [160]byte
	name := append(room[:0], t.Kind...)
	name = binary.BigEndian.AppendUint32(name, uint32(len(t.ID)))
	name = append(append(name, t.ID...), t.Subject...)
	return targetHash{maphash.Bytes(s.seeds[0], name), maphash.Bytes(s.seeds[1], name)}
}

// Apply adds revocations in the order of their numbers. It skips those that were already applied.
func (s *RevocationSet) Apply(revocations ...Revocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range revocations {
		if r.Seq <= s.last {
			continue
		}
		s.last = r.Seq
		s.version.Add(1)
		if after, fork := r.Target.forkedAt(); fork {
			if s.forks == nil {
				s.forks = make(map[uint64]mark)
			}
			s.forks[after] = markOf(r)
			continue
		}
		if r.Target.Kind != Resume {
			s.put(r.Target, markOf(r))
			continue
		}
		// The suspension becomes a cut-off with the suspension's own number.
		suspend := s.hash(Target{Kind: BanSuspend, ID: r.Target.ID})
		if ban, suspended := s.by[suspend]; suspended {
			delete(s.by, suspend)
			s.put(Target{Kind: CutAgent, ID: r.Target.ID}, mark{seq: ban.seq, at: ban.at, until: markOf(r).until})
		}
	}
}

func markOf(r Revocation) mark {
	m := mark{seq: r.Seq, at: r.At.Unix()}
	if r.At.Nanosecond() > 0 {
		m.at++
	}
	if !r.Until.IsZero() {
		m.until = r.Until.Unix() + 1
	}
	return m
}

// put keeps the higher number and the longer life. A later, shorter revocation of the same target
// must not end an earlier, longer one.
func (s *RevocationSet) put(t Target, m mark) {
	h := s.hash(t)
	if old, there := s.by[h]; there {
		if old.seq > m.seq {
			old, m = m, old
		}
		if m.until != 0 && (old.until == 0 || old.until > m.until) {
			m.until = old.until
		}
	}
	s.by[h] = m
}

// Last is the number of the newest applied revocation.
func (s *RevocationSet) Last() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.last
}

// Version changes whenever an answer of Hit may have changed. A caller that reads Version, then
// calls Hit and keeps the answer, may use the answer while the version is the same.
func (s *RevocationSet) Version() uint64 { return s.version.Load() }

// Len counts the live targets.
func (s *RevocationSet) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.by)
}

// Expire forgets the revocations that expire at or before the given time, and raises Horizon to it.
// It never delays Hit for long: it finds them under the read lock, and deletes them in chunks.
func (s *RevocationSet) Expire(through time.Time) {
	s.Forget(through)
	var over []targetHash
	s.mu.RLock()
	for h, m := range s.by {
		if m.over(through) {
			over = append(over, h)
		}
	}
	s.mu.RUnlock()
	for chunk := range slices.Chunk(over, 1024) {
		s.mu.Lock()
		for _, h := range chunk {
			// The mark may have got a longer life meanwhile.
			if m, there := s.by[h]; there && m.over(through) {
				delete(s.by, h)
			}
		}
		s.mu.Unlock()
	}
}

// Forget raises Horizon to the given time and never lowers it. It is for a set that was made from a
// source in which revocations that expired by then may be missing.
func (s *RevocationSet) Forget(through time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgotten = max(s.forgotten, through.Unix())
}

// Horizon is the time up to which expired revocations may be missing from the set; zero: none is
// missing.
func (s *RevocationSet) Horizon() time.Time {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.forgotten == 0 {
		return time.Time{}
	}
	return time.Unix(s.forgotten, 0)
}

// Forgotten reports whether the set can no longer answer for a token that expires at the given
// time: a revocation that hits it may have expired with it and be missing. Such a token is refused,
// whatever a clock shows. A zero time is before every horizon. Call it after Hit, on the same set:
// Expire raises the horizon before it forgets.
func (s *RevocationSet) Forgotten(expires time.Time) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return expires.IsZero() || expires.Unix() <= s.forgotten
}

func (m mark) over(now time.Time) bool { return m.until != 0 && now.Unix() >= m.until }

// Hit returns the target and number of a revocation that hits the lineage, if there is one. It
// looks up every name in the lineage: there is no shorter path, and a lineage without a root digest
// is always hit.
func (s *RevocationSet) Hit(l Lineage) (Revocation, bool) {
	if l.Root == "" {
		return Revocation{}, true
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r, hit := s.lost(l); hit {
		return r, true
	}
	if len(s.by) == 0 {
		return Revocation{}, false
	}
	if r, hit := s.banned(l); hit {
		return r, true
	}
	return s.cutOff(l)
}

// HitCaller returns a revocation that keeps a caller from authenticating: the caller is suspended,
// or a key that authenticated it is banned. Keys that are "" are ignored.
func (s *RevocationSet) HitCaller(caller Principal, keys ...string) (Revocation, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r, suspended := s.find(Target{Kind: BanSuspend, ID: string(caller)}, whatever); suspended {
		return r, true
	}
	for _, key := range keys {
		if r, banned := s.find(Target{Kind: BanKey, ID: key}, whatever); banned && key != "" {
			return r, true
		}
	}
	return Revocation{}, false
}

// find returns the revocation of a target if there is one and dead reports true for its mark: for
// bans always, for cut-offs if the compared hop or root token is older.
func (s *RevocationSet) find(t Target, dead func(mark) bool) (Revocation, bool) {
	m, there := s.by[s.hash(t)]
	if !there || !dead(m) {
		return Revocation{}, false
	}
	return Revocation{Seq: m.seq, Target: t}, true
}

func whatever(mark) bool { return true }

func (s *RevocationSet) banned(l Lineage) (Revocation, bool) {
	if r, hit := s.find(Target{Kind: BanRoot, ID: l.Root}, whatever); hit {
		return r, true
	}
	if r, hit := s.find(Target{Kind: BanChain, ID: l.Txn}, whatever); hit {
		return r, true
	}
	for _, hop := range l.Hops {
		if r, hit := s.find(Target{Kind: BanToken, ID: hop.ID}, whatever); hit {
			return r, true
		}
		if hop.Key == "" {
			continue
		}
		if r, hit := s.find(Target{Kind: BanKey, ID: hop.Key}, whatever); hit {
			return r, true
		}
	}
	for _, key := range l.Keys {
		if r, hit := s.find(Target{Kind: BanKey, ID: key}, whatever); hit {
			return r, true
		}
	}
	for _, p := range l.Actors {
		if r, hit := s.find(Target{Kind: BanSuspend, ID: string(p)}, whatever); hit {
			return r, true
		}
	}
	for _, p := range [...]Principal{l.Subject, l.Caller} {
		if r, hit := s.find(Target{Kind: BanSuspend, ID: string(p)}, whatever); hit {
			return r, true
		}
	}
	return Revocation{}, false
}

// cutOff compares numbers. A cut-off of the subject, the tenant or an actor of the root token is
// compared at the first hop. A cut-off of another actor is compared at each of that actor's hops. A
// root token has no number: its time is compared.
func (s *RevocationSet) cutOff(l Lineage) (Revocation, bool) {
	origin := func(m mark) bool {
		if len(l.Hops) > 0 {
			return l.Hops[0].Seq < m.seq
		}
		return !l.RootIssuedAt.After(time.Unix(m.at, 0).Add(s.skew))
	}
	for _, t := range [...]Target{{Kind: CutTenant}, {Kind: CutSubject, ID: string(l.Subject)}, {Kind: CutAgent, ID: string(l.Subject)}} {
		if r, hit := s.find(t, origin); hit {
			return r, true
		}
	}
	brought := l.RootActors
	if len(l.Hops) > 0 {
		brought = l.Actors[:min(max(l.Hops[0].Actor, 0), len(l.Actors))]
	}
	for _, p := range brought {
		if r, hit := s.find(Target{Kind: CutAgent, ID: string(p)}, origin); hit {
			return r, true
		}
		if r, hit := s.find(Target{Kind: CutAgentSubject, ID: string(p), Subject: l.Subject}, origin); hit {
			return r, true
		}
	}
	for _, hop := range l.Hops {
		if hop.Actor < 0 || hop.Actor >= len(l.Actors) {
			return Revocation{}, true
		}
		older := func(m mark) bool { return hop.Seq < m.seq }
		actor := string(l.Actors[hop.Actor])
		if r, hit := s.find(Target{Kind: CutAgent, ID: actor}, older); hit {
			return r, true
		}
		if r, hit := s.find(Target{Kind: CutAgentSubject, ID: actor, Subject: l.Subject}, older); hit {
			return r, true
		}
	}
	return Revocation{}, false
}
