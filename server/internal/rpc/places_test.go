package rpc

import "testing"

func TestPlaces(t *testing.T) {
	p := newPlaces("streams", 6)
	enter := func(owner string, wanted, got int) {
		t.Helper()
		in := 0
		for range wanted {
			if p.enter(owner) == nil {
				in++
			}
		}
		if in != got {
			t.Errorf("%d of %d of %s got in, want %d", in, wanted, owner, got)
		}
	}
	enter("a", 4, 3) // half of them
	enter("b", 2, 2)
	enter("c", 2, 1) // the last one
	p.leave("a")
	enter("b", 1, 1)
	p.leave("b")
	p.leave("c")
	enter("a", 3, 1)
	for owner, n := range map[string]int{"a": 3, "b": 2} {
		for range n {
			p.leave(owner)
		}
	}
	if p.taken != 0 || len(p.owned) != 0 {
		t.Errorf("after all have left: %d taken, owners %v", p.taken, p.owned)
	}
}
