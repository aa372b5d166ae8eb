package delegation_test

import (
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"deputy.example/deputy/client/delegation"
)

// TestCutForkHitsWhatWasLost: a recovery assigns numbers again, so number and age of a hop decide
// together.
func TestCutForkHitsWhatWasLost(t *testing.T) {
	recovered := time.Unix(1_800_000_000, 0)
	jti := func(at time.Time) string {
		return ulid.MustNew(ulid.Timestamp(at), ulid.DefaultEntropy()).String()
	}
	set := delegation.NewRevocationSet(30 * time.Second)
	target := delegation.Target{Kind: delegation.CutFork, ID: "100"}
	if err := target.Check(); err != nil {
		t.Fatal(err)
	}
	set.Apply(delegation.Revocation{Seq: 102, At: recovered, Target: target})
	before, margin, after := recovered.Add(-time.Hour), recovered.Add(delegation.ForkMargin*time.Second), recovered.Add(time.Hour)
	for name, c := range map[string]struct {
		hop delegation.Hop
		hit bool
	}{
		"before the fork":               {delegation.Hop{ID: jti(before), Seq: 100}, false},
		"lost, above the head":          {delegation.Hop{ID: jti(before), Seq: 150}, true},
		"lost, its number given again":  {delegation.Hop{ID: jti(before), Seq: 101}, true},
		"within the margin of clocks":   {delegation.Hop{ID: jti(margin.Add(-time.Millisecond)), Seq: 103}, true},
		"recorded after the recovery":   {delegation.Hop{ID: jti(margin), Seq: 103}, false},
		"long after it":                 {delegation.Hop{ID: jti(after), Seq: 1000}, false},
		"a jti that does not say when":  {delegation.Hop{ID: "x", Seq: 101}, true},
		"one of 26 that is not a ULID":  {delegation.Hop{ID: "01K9ZQ6U3VAAAAAAAAAAAAAAAA", Seq: 101}, true},
		"such a jti from before it all": {delegation.Hop{ID: "x", Seq: 99}, false},
	} {
		l := delegation.Lineage{Root: "r", Subject: "user:alice", Actors: delegation.Chain{"agent:planner"}, Hops: []delegation.Hop{c.hop}}
		if r, hit := set.Hit(l); hit != c.hit || hit && (r.Seq != 102 || r.Target != target) {
			t.Errorf("%s: %v, %v", name, r, hit)
		}
		child := l
		child.Hops = append(child.Hops, delegation.Hop{ID: jti(after), Seq: 2000})
		if _, hit := set.Hit(child); hit != c.hit {
			t.Errorf("a child of one %s: %v", name, hit)
		}
	}
	for _, id := range []string{"", "-1", "01", "1e3", "18446744073709551616"} {
		if (delegation.Target{Kind: delegation.CutFork, ID: id}).Check() == nil {
			t.Errorf("target %q was taken", id)
		}
	}
}
