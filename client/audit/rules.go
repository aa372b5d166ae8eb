package audit

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
)

// rules are what the entries of a log keep among themselves. They know nothing of how the server decides:
// they are checked on what was recorded.
type rules struct {
	dropped    uint64 // entries up to this number are not there, and may be parents
	orphans    uint64
	revocation uint64 // number of the newest revocation; 0: none yet
	revoked    *delegation.RevocationSet

	live   map[string]*grant // by jti
	voided map[uint64]bool
	most   int // how many live grants are waited for before the next sweep
}

// grant is what is remembered of a grant while it can have children.
type grant struct {
	parent    *grant
	seq       uint64
	id        string
	txn, root string
	key       string
	hops      int
	scopes    delegation.Scopes
	audiences []string
	expiry    time.Time

	// What was erased is not known.
	subject delegation.Principal
	actors  delegation.Chain
	details []delegation.Detail
	unknown struct{ subject, actors, details bool }

	claims *delegation.Claims // if they were there
}

// slack is how long after its expiry a grant is remembered: recorded time never runs backwards, so a clock
// that was ahead once makes all entries late until the others have caught up.
const slack = time.Hour

func newRules() *rules {
	return &rules{
		revoked: delegation.NewRevocationSet(0), live: make(map[string]*grant), voided: make(map[uint64]bool), most: 1024,
	}
}

// check goes over the next entry, whose leaf is sound.
func (s *rules) check(r *Record) error {
	if r.Kind != "revocation" && (r.Prev != 0 || r.TargetKind != "" || r.TargetID != "") {
		return r.bad("revocation", "it is no revocation and has a target")
	}
	if r.Kind != "void" && r.Voids != 0 {
		return r.bad("void", "it is no void and voids entry %d", r.Voids)
	}
	switch r.Kind {
	case "grant":
		return s.grant(r)
	case "void":
		if r.Voids == 0 || r.Voids >= r.Seq {
			return r.bad("void", "there is no grant %d before it", r.Voids)
		}
		s.voided[r.Voids] = true
	case "revocation":
		return s.revoke(r)
	case "refusal", "check", "admin":
	default:
		return r.bad("kind", "%.32q is not known", r.Kind)
	}
	return nil
}

// revoke follows the chain of revocations. One whose target was erased has ended, and hits nothing.
func (s *rules) revoke(r *Record) error {
	first := s.revocation == 0 && s.dropped > 0 // what came before it may have been dropped
	if r.Prev != s.revocation && !(first && r.Prev <= s.dropped) {
		return r.bad("prev", "must follow revocation %[2]d, and names %[1]d", r.Prev, s.revocation)
	}
	s.revocation = r.Seq
	if r.Personal[FieldTarget].Erased() || r.Personal[FieldTargetSubject].Erased() {
		return nil
	}
	target := delegation.Target{
		Kind: delegation.TargetKind(r.TargetKind), ID: r.TargetID + r.Personal[FieldTarget].Value,
		Subject: delegation.Principal(r.Personal[FieldTargetSubject].Value),
	}
	if err := target.Check(); err != nil {
		return r.bad("revocation", "its target is malformed")
	}
	s.revoked.Apply(delegation.Revocation{Seq: r.Seq, Prev: r.Prev, At: r.Time, Until: r.Until, Target: target})
	return nil
}

func (s *rules) grant(r *Record) error {
	s.sweep(r)
	g, err := newGrant(r)
	if err != nil {
		return err
	}
	if s.live[g.id] != nil {
		return r.bad("jti", "entry %d has the same jti", s.live[g.id].seq)
	}
	if r.Parent != "" {
		g.parent = s.live[r.Parent]
		switch {
		case g.parent == nil && s.dropped > 0:
			s.orphans++
		case g.parent == nil:
			return r.bad("parent", "there is no live grant %.64q before it", r.Parent)
		case s.voided[g.parent.seq]:
			return r.bad("parent", "entry %d was voided", g.parent.seq)
		default:
			g.hops = g.parent.hops + 1
			if rule, detail := g.widens(); rule != "" {
				return r.bad(rule, "%s", detail)
			}
		}
	}
	if what := g.contradicts(r); what != "" {
		return r.bad("claims", "%s", what)
	}
	s.revoked.Expire(r.Time)
	if v, hit := s.revoked.Hit(g.lineage(r)); hit {
		return r.bad("revoked", "revocation %d hits it", v.Seq)
	}
	s.live[g.id] = g
	return nil
}

func newGrant(r *Record) (*grant, error) {
	g := &grant{
		seq: r.Seq, id: r.ID, txn: r.Txn, root: r.Root, key: r.HolderKey, hops: 1, audiences: r.Audiences, expiry: r.Expiry,
		subject: delegation.Principal(r.Personal[FieldSubject].Value),
	}
	g.unknown.subject = r.Personal[FieldSubject].Erased()
	g.unknown.actors = r.Personal[FieldActors].Erased()
	g.unknown.details = r.Personal[FieldDetails].Erased()
	if g.id == "" || g.txn == "" || g.root == "" || g.expiry.IsZero() {
		return nil, r.bad("grant", "jti, txn, root or expiry is missing")
	}
	var err error
	if g.scopes, err = delegation.NewScopes(r.Scopes...); err != nil || !slices.Equal(g.scopes, r.Scopes) {
		return nil, r.bad("I1", "its scopes are not a sorted set of scope tokens")
	}
	if len(g.audiences) == 0 {
		return nil, r.bad("I2", "it has no audience")
	}
	if !g.unknown.subject && g.subject == "" || !g.unknown.actors && r.Personal[FieldActors].Value == "" {
		return nil, r.bad("I4", "it has no subject or no actor")
	}
	if actors := r.Personal[FieldActors].Value; actors != "" {
		for actor := range strings.SplitSeq(actors, "|") {
			g.actors = append(g.actors, delegation.Principal(actor))
		}
	}
	if details := r.Personal[FieldDetails].Value; details != "" {
		if g.details, err = delegation.ParseDetails([]byte(details)); err != nil {
			return nil, r.bad("I5", "its authorization details are malformed")
		}
	}
	if claims := r.Personal[FieldClaims].Value; claims != "" {
		c, err := delegation.DecodeClaims([]byte(claims))
		if err != nil {
			return nil, r.bad("claims", "they are malformed: %v", err)
		}
		g.claims = &c
	}
	return g, nil
}

// widens returns which of I1 to I5 the grant breaks against its parent.
func (g *grant) widens() (rule, detail string) {
	p := g.parent
	switch {
	case !g.scopes.SubsetOf(p.scopes):
		return "I1", fmt.Sprintf("scope %.64q is not its parent's, entry %d", g.scopes.Without(p.scopes)[0], p.seq)
	case slices.ContainsFunc(g.audiences, func(a string) bool { return !slices.Contains(p.audiences, a) }):
		return "I2", fmt.Sprintf("it has an audience that its parent, entry %d, has not", p.seq)
	case g.expiry.After(p.expiry):
		return "I3", fmt.Sprintf("it expires after its parent, entry %d", p.seq)
	case g.txn != p.txn || g.root != p.root:
		return "I4", fmt.Sprintf("txn or root is not that of its parent, entry %d", p.seq)
	case !g.unknown.subject && !p.unknown.subject && g.subject != p.subject:
		return "I4", fmt.Sprintf("its subject is not that of its parent, entry %d", p.seq)
	case !g.unknown.actors && !p.unknown.actors && !g.continues():
		return "I4", fmt.Sprintf("its actors don't continue those of its parent, entry %d", p.seq)
	case g.hops > delegation.MaxChainDepth:
		return "I4", fmt.Sprintf("the chain is longer than %d", delegation.MaxChainDepth)
	case !g.unknown.details && !p.unknown.details && slices.ContainsFunc(g.details, func(d delegation.Detail) bool { return !d.NarrowsAny(p.details) }):
		return "I5", fmt.Sprintf("an authorization detail narrows none of its parent's, entry %d", p.seq)
	}
	return "", ""
}

// continues reports whether the actors are those of the parent, or those and one more.
func (g *grant) continues() bool {
	n := len(g.parent.actors)
	return len(g.actors) >= n && len(g.actors) <= n+1 && slices.Equal(g.actors[:n], g.parent.actors)
}

// contradicts compares the claims, which are what was signed, with the entry and with the parent's.
func (g *grant) contradicts(r *Record) string {
	c := g.claims
	if c == nil {
		return ""
	}
	hops := c.Delegation.Hops
	own := hops[len(hops)-1]
	switch {
	case c.ID != g.id || c.Txn != g.txn || c.Delegation.Root != g.root || own.Seq != g.seq || own.Key != g.key:
		return "jti, txn, root, number or key is not the entry's"
	case !slices.Equal(c.Scope, g.scopes) || !slices.Equal(c.Audience, g.audiences) || c.ExpiresAt != g.expiry.Unix():
		return "scope, aud or exp is not the entry's"
	case !g.unknown.subject && c.Subject != g.subject || !g.unknown.actors && !slices.Equal(c.Act, g.actors):
		return "sub or act is not the entry's"
	case !g.unknown.details && !slices.EqualFunc(c.Details, g.details, func(a, b delegation.Detail) bool { return a.String() == b.String() }):
		return "authorization_details are not the entry's"
	case (r.Parent == "") != (len(hops) == 1) || r.Parent != "" && hops[len(hops)-2].ID != r.Parent:
		return "its hops don't lead through its parent"
	case g.parent == nil || g.parent.claims == nil:
		return ""
	}
	p := g.parent.claims
	switch {
	case !slices.Equal(hops[:len(hops)-1], p.Delegation.Hops):
		return "its hops are not its parent's and its own"
	case c.Delegation.DepthLeft >= p.Delegation.DepthLeft:
		return "depth_left does not fall"
	case c.Delegation.Uses < p.Delegation.Uses:
		return "it may be used more often than its parent"
	}
	return ""
}

// lineage is what a revocation could have named. When the root token was issued is not recorded: what cuts
// off root tokens by the clock cannot be checked here.
func (g *grant) lineage(r *Record) delegation.Lineage {
	l := delegation.Lineage{
		Root: g.root, RootIssuedAt: time.Unix(1<<40, 0), Txn: g.txn, Subject: g.subject, Actors: g.actors,
		Caller: delegation.Principal(r.Personal[FieldCaller].Value),
	}
	if g.key != "" {
		l.Keys = []string{g.key}
	}
	for p := g.parent; p != nil; p = p.parent {
		if g.unknown.actors || p.unknown.actors { // hops name their actors by their place in the chain
			l.Hops = nil
			break
		}
		l.Hops = append(l.Hops, delegation.Hop{ID: p.id, Seq: p.seq, Actor: len(p.actors) - 1, Key: p.key})
	}
	slices.Reverse(l.Hops)
	return l
}

// sweep forgets what can have no children any more.
func (s *rules) sweep(r *Record) {
	if len(s.live) < s.most {
		return
	}
	oldest := r.Seq
	for id, g := range s.live {
		if r.Time.After(g.expiry.Add(slack)) {
			delete(s.live, id)
		} else {
			oldest = min(oldest, g.seq)
		}
	}
	for seq := range s.voided {
		if seq < oldest {
			delete(s.voided, seq)
		}
	}
	s.most = max(1024, 2*len(s.live))
}
