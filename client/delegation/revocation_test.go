package delegation_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"deputy.example/deputy/client/delegation"
)

var epoch = time.Unix(1_795_305_600, 0)

// aLineage is the lineage of a token after four hops of three actors. The second actor narrowed for
// itself.
func aLineage() delegation.Lineage {
	return delegation.Lineage{
		Root: "root", Txn: "txn", Subject: "user:alice", Caller: "service:caller", Keys: []string{"key-extra"},
		Actors: delegation.Chain{"agent:a", "agent:b", "agent:c"},
		Hops: []delegation.Hop{
			{ID: "jti-0", Seq: 10, Actor: 0, Key: "key-0"}, {ID: "jti-1", Seq: 20, Actor: 1, Key: "key-1"},
			{ID: "jti-2", Seq: 30, Actor: 1}, {ID: "jti-3", Seq: 40, Actor: 2, Key: "key-3"},
		},
	}
}

func revoke(seq uint64, kind delegation.TargetKind, id string, subject ...delegation.Principal) delegation.Revocation {
	r := delegation.Revocation{Seq: seq, Target: delegation.Target{Kind: kind, ID: id}, At: epoch.Add(time.Duration(seq) * time.Second)}
	if len(subject) > 0 {
		r.Target.Subject = subject[0]
	}
	return r
}

func applied(revocations ...delegation.Revocation) *delegation.RevocationSet {
	s := delegation.NewRevocationSet(5 * time.Second)
	s.Apply(revocations...)
	return s
}

// Each kind of target at each place of a chain.
func TestWhatRevocationsHit(t *testing.T) {
	type row struct {
		name string
		r    delegation.Revocation
		want bool
	}
	var rows []row
	add := func(name string, want bool, r delegation.Revocation) { rows = append(rows, row{name, r, want}) }

	l := aLineage()
	for i, hop := range l.Hops {
		// A ban's number does not matter: it may be older or newer than the hop.
		for _, seq := range []uint64{1, hop.Seq + 1, 1000} {
			add(fmt.Sprintf("ban %d of the token of hop %d", seq, i), true, revoke(seq, delegation.BanToken, hop.ID))
			add(fmt.Sprintf("ban %d of the key of hop %d", seq, i), hop.Key != "", revoke(seq, delegation.BanKey, hop.Key))
			add(fmt.Sprintf("suspension %d of the actor of hop %d", seq, i), true, revoke(seq, delegation.BanSuspend, string(l.Actors[hop.Actor])))
		}
	}
	for seq := range uint64(50) {
		if seq == 0 {
			continue
		}
		// A subject or tenant is compared at the first hop, an agent at the first of its own.
		add(fmt.Sprintf("cut-off %d of the tenant", seq), seq > 10, revoke(seq, delegation.CutTenant, ""))
		add(fmt.Sprintf("cut-off %d of the subject", seq), seq > 10, revoke(seq, delegation.CutSubject, "user:alice"))
		add(fmt.Sprintf("cut-off %d of an agent that is the subject", seq), seq > 10, revoke(seq, delegation.CutAgent, "user:alice"))
		for actor, first := range map[string]uint64{"agent:a": 10, "agent:b": 20, "agent:c": 40} {
			add(fmt.Sprintf("cut-off %d of %s", seq, actor), seq > first, revoke(seq, delegation.CutAgent, actor))
			add(fmt.Sprintf("cut-off %d of %s for the subject", seq, actor), seq > first, revoke(seq, delegation.CutAgentSubject, actor, "user:alice"))
			add(fmt.Sprintf("cut-off %d of %s for another", seq, actor), false, revoke(seq, delegation.CutAgentSubject, actor, "user:bob"))
		}
	}
	add("ban of the chain", true, revoke(1, delegation.BanChain, "txn"))
	add("ban of the root", true, revoke(1, delegation.BanRoot, "root"))
	add("ban of a key beside the hops", true, revoke(1, delegation.BanKey, "key-extra"))
	add("suspension of the subject", true, revoke(1, delegation.BanSuspend, "user:alice"))
	add("suspension of the caller", true, revoke(1, delegation.BanSuspend, "service:caller"))
	for _, kind := range []delegation.TargetKind{
		delegation.BanToken, delegation.BanChain, delegation.BanRoot, delegation.BanKey, delegation.BanSuspend,
		delegation.CutSubject, delegation.CutAgent, delegation.CutAgentSubject, delegation.Resume,
	} {
		add("another "+string(kind), false, revoke(1000, kind, "other"))
		// No kind accepts the name of another kind.
		for name, its := range map[string]delegation.TargetKind{"jti-1": delegation.BanToken, "txn": delegation.BanChain, "root": delegation.BanRoot, "key-1": delegation.BanKey} {
			if kind != its {
				add(fmt.Sprintf("%s named %s", kind, name), false, revoke(1000, kind, name))
			}
		}
	}
	for _, row := range rows {
		s := applied(row.r)
		r, hit := s.Hit(l)
		if hit != row.want {
			t.Errorf("%s: hit is %t", row.name, hit)
		}
		if hit && (r.Seq != row.r.Seq || r.Target != row.r.Target) {
			t.Errorf("%s: it was %+v", row.name, r)
		}
	}
	if _, hit := applied().Hit(l); hit {
		t.Error("the empty set hits")
	}
}

func TestLineageThatCannotBeJudgedIsDead(t *testing.T) {
	l := aLineage()
	l.Root = ""
	if _, hit := applied().Hit(l); !hit {
		t.Error("a lineage without a root lives")
	}
	for _, actor := range []int{-1, 3} {
		l := aLineage()
		l.Hops[3].Actor = actor
		if _, hit := applied(revoke(1, delegation.BanToken, "other")).Hit(l); !hit {
			t.Errorf("a hop of actor %d of three lives", actor)
		}
	}
}

// A root token has no number, so its time counts. The skew favors refusal.
func TestCutOffsOfRootTokens(t *testing.T) {
	at := revoke(100, delegation.CutSubject, "user:alice").At
	for _, row := range []struct {
		name   string
		issued time.Time
		want   bool
	}{
		{"before", at.Add(-time.Hour), true},
		{"at the same time", at, true},
		{"within the skew", at.Add(5 * time.Second), true},
		{"after the skew", at.Add(6 * time.Second), false},
		{"never said", time.Time{}, true},
	} {
		l := delegation.Lineage{Root: "root", Subject: "user:alice", RootIssuedAt: row.issued}
		for _, r := range []delegation.Revocation{
			revoke(100, delegation.CutSubject, "user:alice"), revoke(100, delegation.CutAgent, "user:alice"), revoke(100, delegation.CutTenant, ""),
		} {
			if _, hit := applied(r).Hit(l); hit != row.want {
				t.Errorf("issued %s, %s: hit is %t", row.name, r.Target.Kind, hit)
			}
			if _, hit := applied(r).Hit(delegation.Lineage{Root: "root", Subject: "user:bob", RootIssuedAt: row.issued}); hit != (row.want && r.Target.Kind == delegation.CutTenant) {
				t.Errorf("issued %s, %s: bob's token: hit is %t", row.name, r.Target.Kind, hit)
			}
		}
	}
}

func TestResumeRevivesNothingOlder(t *testing.T) {
	grant := func(seq uint64) delegation.Lineage {
		return delegation.Lineage{Root: "r", Txn: "t", Subject: "user:alice", Actors: delegation.Chain{"agent:a"}, Hops: []delegation.Hop{{ID: "j", Seq: seq}}}
	}
	s := applied(revoke(10, delegation.BanSuspend, "agent:a"))
	for _, seq := range []uint64{5, 15} {
		if _, hit := s.Hit(grant(seq)); !hit {
			t.Errorf("suspended, grant %d lives", seq)
		}
	}
	s.Apply(revoke(20, delegation.Resume, "agent:a"))
	for seq, want := range map[uint64]bool{5: true, 9: true, 15: false, 25: false} {
		if _, hit := s.Hit(grant(seq)); hit != want {
			t.Errorf("resumed, grant %d: hit is %t", seq, hit)
		}
	}
	s.Apply(revoke(30, delegation.Resume, "agent:a"), revoke(40, delegation.Resume, "agent:other"))
	if _, hit := s.Hit(grant(25)); hit {
		t.Error("a resume without a suspension cuts off")
	}
	// A resume does not weaken an earlier, stronger cut-off.
	s = applied(revoke(10, delegation.BanSuspend, "agent:a"), revoke(20, delegation.CutAgent, "agent:a"), revoke(30, delegation.Resume, "agent:a"))
	if _, hit := s.Hit(grant(15)); !hit {
		t.Error("resume brought the cut-off down to the suspension's number")
	}
	// Suspended twice, resumed once: the later suspension counts.
	s = applied(revoke(10, delegation.BanSuspend, "agent:a"), revoke(20, delegation.BanSuspend, "agent:a"), revoke(30, delegation.Resume, "agent:a"))
	if _, hit := s.Hit(grant(15)); !hit {
		t.Error("the second suspension was forgotten")
	}
	if _, hit := s.Hit(grant(25)); hit {
		t.Error("one resume does not lift the suspension")
	}
}

func TestRevocationsAreAppliedInOrderAndOnce(t *testing.T) {
	s := applied(revoke(10, delegation.BanSuspend, "agent:a"), revoke(20, delegation.Resume, "agent:a"))
	s.Apply(revoke(10, delegation.BanSuspend, "agent:a"), revoke(20, delegation.BanToken, "jti-0"), revoke(5, delegation.BanToken, "jti-1"))
	if _, hit := s.Hit(delegation.Lineage{Root: "root", Actors: delegation.Chain{"agent:a"}, Hops: []delegation.Hop{{ID: "jti-0", Seq: 15}, {ID: "jti-1", Seq: 16}}}); hit {
		t.Error("what was applied before was applied again")
	}
	if s.Last() != 20 {
		t.Errorf("last is %d", s.Last())
	}
}

func TestRevocationsExpireNotTooEarly(t *testing.T) {
	until := func(r delegation.Revocation, at time.Time) delegation.Revocation { r.Until = at; return r }
	l := aLineage()
	for _, row := range []struct {
		name        string
		revocations []delegation.Revocation
		now         time.Time
		want        bool
	}{
		{"never", []delegation.Revocation{revoke(1, delegation.BanKey, "key-1")}, epoch.Add(1e6 * time.Hour), true},
		{"before its time", []delegation.Revocation{until(revoke(1, delegation.BanToken, "jti-1"), epoch.Add(time.Hour))}, epoch.Add(time.Hour - time.Second), true},
		{"after its time", []delegation.Revocation{until(revoke(1, delegation.BanToken, "jti-1"), epoch.Add(time.Hour))}, epoch.Add(time.Hour + time.Second), false},
		{"again and shorter", []delegation.Revocation{
			until(revoke(1, delegation.BanToken, "jti-1"), epoch.Add(2*time.Hour)), until(revoke(2, delegation.BanToken, "jti-1"), epoch.Add(time.Hour)),
		}, epoch.Add(90 * time.Minute), true},
		{"again and for a time, after for ever", []delegation.Revocation{
			revoke(1, delegation.BanToken, "jti-1"), until(revoke(2, delegation.BanToken, "jti-1"), epoch.Add(time.Hour)),
		}, epoch.Add(90 * time.Minute), true},
		{"again and longer", []delegation.Revocation{
			until(revoke(1, delegation.BanToken, "jti-1"), epoch.Add(time.Hour)), until(revoke(2, delegation.BanToken, "jti-1"), epoch.Add(2*time.Hour)),
		}, epoch.Add(90 * time.Minute), true},
	} {
		s := applied(row.revocations...)
		s.Expire(row.now)
		if _, hit := s.Hit(l); hit != row.want {
			t.Errorf("%s: hit is %t", row.name, hit)
		}
		if want := map[bool]int{true: 1, false: 0}[row.want]; s.Len() != want {
			t.Errorf("%s: %d targets left", row.name, s.Len())
		}
	}
}

// Revocations that a set has forgotten can hit only tokens that Forgotten reports, for every order
// of expiries, calls of Expire and times.
func TestForgottenCoversWhatIsMissing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := func(label string) time.Time {
			return epoch.Add(time.Duration(rapid.Int64Range(-20_000, 20_000).Draw(t, label)) * time.Millisecond)
		}
		ends := at("until")
		r := revoke(1, delegation.BanToken, "jti-1")
		r.Until = ends
		s := applied(r)
		for range rapid.IntRange(1, 4).Draw(t, "sweeps") {
			s.Expire(at("through"))
		}
		expires := at("expires")
		if expires.After(ends) {
			expires = ends // a revocation lives at least as long as the tokens that it hits
		}
		_, hit := s.Hit(aLineage())
		if !hit && !s.Forgotten(expires) {
			t.Fatalf("a token that expires at %s passes: its revocation until %s is missing, the horizon is %s", expires, ends, s.Horizon())
		}
	})
	s := applied()
	if !s.Horizon().IsZero() || s.Forgotten(epoch) || !s.Forgotten(time.Time{}) {
		t.Error("a set that has forgotten nothing answers for every token that has an expiry, and for no other")
	}
	s.Forget(epoch)
	s.Forget(epoch.Add(-time.Hour))
	if !s.Horizon().Equal(epoch) || !s.Forgotten(epoch) || s.Forgotten(epoch.Add(time.Second)) {
		t.Error("the horizon falls, or is not the last second that is refused")
	}
}

// history is the specification in its simplest form: every revocation ever made, checked one by
// one.
type history []delegation.Revocation

func (h history) hits(l delegation.Lineage, skew time.Duration) bool {
	suspended := map[string]delegation.Revocation{}
	cuts := history{}
	for _, r := range h {
		switch id := r.Target.ID; r.Target.Kind {
		case delegation.BanSuspend:
			suspended[id] = r
		case delegation.Resume:
			if ban, is := suspended[id]; is {
				delete(suspended, id)
				ban.Target.Kind = delegation.CutAgent
				cuts = append(cuts, ban)
			}
		case delegation.BanToken:
			if slices.ContainsFunc(l.Hops, func(hop delegation.Hop) bool { return hop.ID == id }) {
				return true
			}
		case delegation.BanKey:
			if slices.Contains(l.Keys, id) || slices.ContainsFunc(l.Hops, func(hop delegation.Hop) bool { return hop.Key == id }) {
				return true
			}
		case delegation.BanChain:
			if l.Txn == id {
				return true
			}
		case delegation.BanRoot:
			if l.Root == id {
				return true
			}
		default:
			cuts = append(cuts, r)
		}
	}
	for _, p := range append(slices.Clone(l.Actors), l.Subject, l.Caller) {
		if _, is := suspended[string(p)]; is {
			return true
		}
	}
	for _, r := range cuts {
		if len(l.Hops) == 0 && r.Target.Kind != delegation.CutAgentSubject && !l.RootIssuedAt.After(r.At.Add(skew)) &&
			(r.Target.Kind == delegation.CutTenant || r.Target.ID == string(l.Subject)) {
			return true
		}
		for i, hop := range l.Hops {
			origin := i == 0 && (r.Target.Kind == delegation.CutTenant || r.Target.Kind != delegation.CutAgentSubject && r.Target.ID == string(l.Subject))
			agent := r.Target.Kind == delegation.CutAgent && r.Target.ID == string(l.Actors[hop.Actor])
			forOne := r.Target.Kind == delegation.CutAgentSubject && r.Target.ID == string(l.Actors[hop.Actor]) && r.Target.Subject == l.Subject
			if hop.Seq < r.Seq && (origin || agent || forOne) {
				return true
			}
		}
	}
	return false
}

func TestRevocationSetIsItsHistory(t *testing.T) {
	agents := rapid.SampledFrom([]string{"agent:a", "agent:b", "agent:c"})
	subjects := rapid.SampledFrom([]delegation.Principal{"user:alice", "user:bob", "agent:a"})
	kinds := rapid.SampledFrom([]delegation.TargetKind{
		delegation.BanToken, delegation.BanChain, delegation.BanRoot, delegation.BanKey, delegation.BanSuspend, delegation.Resume,
		delegation.CutSubject, delegation.CutAgent, delegation.CutAgentSubject, delegation.CutTenant,
	})
	hits, misses := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		var h history
		seq := uint64(0)
		for range rapid.IntRange(0, 5).Draw(t, "revocations") {
			seq += rapid.Uint64Range(1, 5).Draw(t, "seq")
			r := revoke(seq, kinds.Draw(t, "kind"), "")
			switch r.Target.Kind {
			case delegation.BanToken, delegation.BanChain, delegation.BanRoot, delegation.BanKey:
				r.Target.ID = rapid.SampledFrom([]string{"1", "2", "3", "4", "5", "6", "7", "8"}).Draw(t, "id")
			case delegation.CutSubject:
				r.Target.ID = string(subjects.Draw(t, "subject"))
			case delegation.CutAgentSubject:
				r.Target.ID, r.Target.Subject = agents.Draw(t, "agent"), subjects.Draw(t, "subject")
			case delegation.CutTenant:
			default:
				r.Target.ID = agents.Draw(t, "agent")
			}
			h = append(h, r)
		}
		id := rapid.SampledFrom([]string{"1", "2", "3", "4", "5", "6", "7", "8", "9"})
		l := delegation.Lineage{
			Root: id.Draw(t, "root"), Txn: id.Draw(t, "txn"), Subject: subjects.Draw(t, "subject"),
			RootIssuedAt: epoch.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "iat")) * time.Second),
		}
		seq = 0
		for actor := range rapid.IntRange(0, 3).Draw(t, "actors") {
			l.Actors = append(l.Actors, delegation.Principal(agents.Draw(t, "actor")))
			seq += rapid.Uint64Range(1, 8).Draw(t, "hop")
			l.Hops = append(l.Hops, delegation.Hop{ID: id.Draw(t, "jti"), Seq: seq, Actor: actor, Key: rapid.SampledFrom([]string{"", "1", "9"}).Draw(t, "key")})
		}
		s := delegation.NewRevocationSet(5 * time.Second)
		s.Apply(h...)
		r, hit := s.Hit(l)
		if want := h.hits(l, 5*time.Second); hit != want {
			t.Fatalf("%+v hits %+v: %t (%+v), want %t", h, l, hit, r, want)
		}
		if hit {
			hits++
		} else {
			misses++
		}
	})
	if hits == 0 || misses == 0 {
		t.Errorf("%d hits and %d misses show nothing", hits, misses)
	}
}

func TestRevocationSetIsSafeForConcurrentUse(t *testing.T) {
	s := applied()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for seq := range uint64(200) {
				s.Apply(revoke(seq+1, delegation.BanToken, fmt.Sprint(seq)))
				s.Hit(aLineage())
				s.Expire(epoch)
				_, _ = s.Last(), s.Len()
			}
		})
	}
	all.Wait()
	if s.Last() != 200 || s.Len() != 200 {
		t.Errorf("last %d, %d targets", s.Last(), s.Len())
	}
}
