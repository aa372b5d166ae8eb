package e2e

import (
	"errors"
	"testing"

	"deputy.example/deputy/client/delegation"
)

// TestWithdrawnConsentCutsTheChain is invariant I11: a relationship that was deleted before a
// request counts in that request, and an edge counts for everything below it.
func TestWithdrawnConsentCutsTheChain(t *testing.T) {
	d := deploy(t, plan{})
	i := d.start()
	asPlanner, asResearcher := d.as(i, planner), d.as(i, researcher)
	parent, err := asPlanner.Exchange(t.Context(), stepIn(d.root()))
	check(t, err)
	child, err := asPlanner.Exchange(t.Context(), handDown(parent.AccessToken, d.naming(researcher)))
	check(t, err)
	narrow := func() error {
		_, err := asResearcher.Exchange(t.Context(), stepIn(child.AccessToken))
		return err
	}
	check(t, narrow()) // the control of the refusals below

	for _, withdrawn := range []struct{ from, to delegation.Principal }{{alice, planner}, {planner, researcher}} {
		tuple := edge(withdrawn.from, withdrawn.to)
		for range 20 { // a cache would have to be right every time
			check(t, d.relations.fga.DeleteTuples(t.Context(), d.relations.store, tuple))
			if err := narrow(); delegation.AsError(err).Reason != delegation.EdgeNotPermitted {
				t.Fatalf("without %s: %v", tuple, err)
			}
			check(t, d.relations.fga.WriteTuples(t.Context(), d.relations.store, tuple))
			check(t, narrow())
		}
	}
}

// TestNobodyGetsMoreThanTheParentHolds requests more than the parent holds, over the wire, in every
// way that the planner and OpenFGA must refuse.
func TestNobodyGetsMoreThanTheParentHolds(t *testing.T) {
	d := deploy(t, plan{})
	i := d.start()
	asPlanner, asResearcher := d.as(i, planner), d.as(i, researcher)
	parent, err := asPlanner.Exchange(t.Context(), stepIn(d.root()))
	check(t, err)

	wider := stepIn(parent.AccessToken)
	wider.Child.Scopes = delegation.Scopes{"calendar.read", "calendar.write"}
	elsewhere := stepIn(parent.AccessToken)
	elsewhere.Child.Audience = []string{mailAudience}
	unheld := stepIn(d.root())
	unheld.Child.Scopes = delegation.Scopes{"payments.send"}
	for want, request := range map[delegation.Reason]func() error{
		delegation.ScopeExceedsParent: func() error { _, err := asPlanner.Exchange(t.Context(), wider); return err },
		delegation.AudienceExceedsParent: func() error {
			_, err := asPlanner.Exchange(t.Context(), elsewhere)
			return err
		},
		delegation.CallerNotActor: func() error {
			_, err := asResearcher.Exchange(t.Context(), stepIn(parent.AccessToken))
			return err
		},
	} {
		var refusal *delegation.Error
		if err := request(); !errors.As(err, &refusal) || refusal.Reason != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if _, err := asPlanner.Exchange(t.Context(), unheld); delegation.AsError(err).Reason != delegation.ScopeExceedsParent {
		t.Errorf("a scope that alice's token lacks: %v", err)
	}
}
