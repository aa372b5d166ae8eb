package exchange_test

import (
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/ledger"
)

// TestPagesDoNotEndAtWhatIsKeptBack: the end of a page discloses nothing of matching entries that
// the caller may not see. Otherwise a series of filters would disclose them.
func TestPagesDoNotEndAtWhatIsKeptBack(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	parent := w.Chain(t, n, exchangetest.Planner, exchangetest.Researcher)[1]
	n.FGA.Deny("agent:writer", "holder", "scope:calendar.read")
	if _, refusal := w.One(t.Context(), n.Call(t, parent.AccessToken, exchangetest.Researcher, exchangetest.Writer)); refusal == nil {
		t.Fatal("granted")
	}
	for who, sees := range map[delegation.Principal]int{exchangetest.Researcher: 1, exchangetest.Writer: 0} {
		q := ledger.Query{Subject: "user:alice", Actor: who, Kind: ledger.KindRefusal, Limit: 1}
		page, before, err := w.Engine.Search(t.Context(), exchange.Inquiry{Credentials: n.Credentials(t, who)}, q)
		if err != nil || len(page) != sees {
			t.Fatalf("%s: %d entries, %v", who, len(page), err)
		}
		if sees == 0 && before != 0 {
			t.Errorf("%s sees nothing, and is told that it goes on at %d", who, before)
		}
	}
}

// TestATailEndsWithItsSession: when a session ends, its tails end.
func TestATailEndsWithItsSession(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	n.FGA.Allow("user:alice", "auditor", "system:deputy")
	w.Chain(t, n, exchangetest.Planner)
	signedIn := w.SignIn(t, n, "alice")
	w.Clock().Advance(exchange.MaxSession - time.Minute)
	tail, err := w.Engine.Tail(t.Context(), exchange.Inquiry{Credentials: exchange.Credentials{Person: signedIn}})
	if err != nil {
		t.Fatal(err)
	}
	if page, err := tail.Next(t.Context(), 0); err != nil || len(page) == 0 {
		t.Fatalf("%d entries, %v", len(page), err)
	}
	w.Clock().Advance(2 * time.Minute)
	if page, err := tail.Next(t.Context(), 0); reason(err) != delegation.ClientUnauthenticated {
		t.Errorf("after the session: %d entries, %v", len(page), err)
	}
}
