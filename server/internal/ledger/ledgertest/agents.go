package ledgertest

import (
	"fmt"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// activity is what is compared of a window.
func activity(w ledger.Window) (all []string) {
	for _, a := range w.Agents {
		all = append(all, fmt.Sprintf("%s %d: %d granted, %d refused", a.Agent, a.Last, a.Granted, a.Refused))
	}
	return all
}

// agents has names that occur in a request alone, and a person as the caller: neither is an agent.
func agents(b *bench) {
	l := b.open()
	if w, err := l.Agents(b.Context(), tenant); err != nil || w.Through != 0 || len(w.Agents) > 0 {
		b.Errorf("in an empty ledger: %+v, %v", w, err)
	}
	parent := b.append(l, Grant(b.Now(), "user:alice", "agent:planner"))
	b.Add(time.Minute)
	b.append(l, Child(b.Now(), parent.Claims, "service:batch"))
	for range 2 {
		b.append(l, &ledger.Draft{Kind: ledger.KindRefusal, Reason: delegation.AccessDenied, Caller: "agent:prober", Actor: "agent:made-up", Actors: delegation.Chain{"agent:prober", "agent:made-up"}})
	}
	b.append(l, &ledger.Draft{Kind: ledger.KindRefusal, Reason: delegation.NotFound, Caller: "user:audrey"})
	b.append(l, &ledger.Draft{Kind: ledger.KindCheck, Outcome: ledger.Refused, Reason: delegation.AccessDenied, Caller: "agent:checker"})
	if _, err := l.Append(b.Context(), "other", Grant(b.Now(), "user:alice", "agent:elsewhere")); err != nil {
		b.Fatal(err)
	}
	w, err := l.Agents(b.Context(), tenant)
	want := fmt.Sprint([]string{
		"agent:checker 6: 0 granted, 1 refused", "agent:prober 4: 0 granted, 2 refused",
		"agent:planner 2: 1 granted, 0 refused", "service:batch 2: 1 granted, 0 refused",
	})
	if got := fmt.Sprint(activity(w)); err != nil || got != want || w.From != 1 || w.Through != 6 || !w.Since.Equal(parent.Time) {
		b.Errorf("%s from %d (%s) to %d, %v; want %s", got, w.From, w.Since, w.Through, err, want)
	}
}

// suspensions come and go, and are those of one tenant.
func suspensions(b *bench) {
	l := b.open()
	suspended := func() (names []string) {
		list, err := b.open().Suspensions(b.Context(), tenant) // as another instance reads them
		if err != nil {
			b.Fatal(err)
		}
		for _, r := range list {
			names = append(names, fmt.Sprintf("%d %s", r.Seq, r.Target.ID))
		}
		return names
	}
	if got := suspended(); len(got) > 0 {
		b.Errorf("in an empty ledger: %s", got)
	}
	for _, name := range []string{"agent:a", "agent:b", "agent:c", "agent:a"} {
		b.append(l, Revocation(delegation.BanSuspend, name))
	}
	b.append(l, Revocation(delegation.Resume, "agent:b"))
	b.append(l, Revocation(delegation.CutAgent, "agent:d"))
	if r := l.AppendAll(b.Context(), "other", []*ledger.Draft{Revocation(delegation.BanSuspend, "agent:z")}, nil)[0]; r.Err != nil {
		b.Fatal(r.Err)
	}
	if got, want := fmt.Sprint(suspended()), "[4 agent:a 3 agent:c]"; got != want {
		b.Errorf("suspended are %s, want %s", got, want)
	}
	b.append(l, Revocation(delegation.Resume, "agent:a"))
	b.append(l, Revocation(delegation.BanSuspend, "agent:b"))
	if got, want := fmt.Sprint(suspended()), "[8 agent:b 3 agent:c]"; got != want {
		b.Errorf("suspended are %s, want %s", got, want)
	}
	found, err := l.Numbered(b.Context(), tenant, 8, 3, 99)
	if err != nil || Numbers(found) != "[3 8]" {
		b.Errorf("entries 3, 8 and 99 are %s, %v", Numbers(found), err)
	}
}
