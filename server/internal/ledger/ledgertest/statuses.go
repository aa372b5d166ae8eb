package ledgertest

import (
	"errors"
	"fmt"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// statuses follows the bits of a few grants, at an instance that goes on from list to list and at
// one that starts from nothing each time.
func statuses(b *bench) {
	here, there := b.open(), b.open()
	expect := func(what, want string) {
		b.Helper()
		for name, l := range map[string]*ledger.Ledger{"here": here, "from nothing": b.open()} {
			list, err := l.Statuses(b.Context(), tenant, 0, 0)
			if err != nil {
				b.Fatalf("%s, %s: %v", what, name, err)
			}
			got := ""
			for seq := range uint64(len(want)) {
				got += map[bool]string{false: "0", true: "1"}[list.Dead(seq+1)]
			}
			// An x is a number without a live grant: its bit means nothing.
			for i, c := range want {
				if c != 'x' && byte(c) != got[i] {
					b.Errorf("%s, %s: %s, want %s", what, name, got, want)
				}
			}
		}
	}
	if _, err := here.Statuses(b.Context(), tenant, 1, 0); !errors.Is(err, ledger.ErrNotFound) {
		b.Errorf("a list that was not begun: %v", err)
	}
	expect("empty ledger", "0000")
	first := b.append(here, Grant(b.Now(), "user:alice", "agent:planner"))
	b.append(there, Child(b.Now(), first.Claims, "agent:researcher"))
	third := b.append(there, Grant(b.Now(), "user:bob", "agent:planner"))
	expect("three grants", "0000")
	b.append(there, Revocation(delegation.CutAgent, "agent:researcher"))
	expect("an agent is cut off", "010x0")
	b.append(there, &ledger.Draft{Kind: ledger.KindVoid, Caller: "agent:planner", Voids: third.Seq})
	expect("a grant is voided", "011xx0")
	b.append(there, Child(b.Now(), first.Claims, "agent:researcher"))
	expect("what is newer than a cut-off lives", "011xx00")
	b.append(there, Revocation(delegation.BanSuspend, "agent:researcher"))
	b.append(there, Revocation(delegation.Resume, "agent:researcher"))
	b.append(there, Child(b.Now(), first.Claims, "agent:researcher"))
	expect("resuming revives nothing", "011xx1xx00")
	b.append(there, Revocation(delegation.CutTenant, ""))
	expect("everything is cut off", "111xx1xx1x0")

	list, err := here.Statuses(b.Context(), tenant, 0, 0)
	if err != nil {
		b.Fatal(err)
	}
	if again, err := here.Statuses(b.Context(), tenant, 0, time.Hour); err != nil || again != list {
		b.Errorf("a list that is young enough is not used: %v", err)
	}
	other, err := here.Statuses(b.Context(), "other", 0, 0)
	if err != nil || other.Dead(1) {
		b.Errorf("another tenant's list: %v", err)
	}
	for seq, want := range map[uint64]string{0: "0 0", 1: "0 1", ledger.StatusListSize - 1: "0 131071", ledger.StatusListSize: "1 0", 3*ledger.StatusListSize + 5: "3 5"} {
		if list, bit := ledger.StatusPlace(seq); fmt.Sprint(list, bit) != want {
			b.Errorf("entry %d has bit %d of list %d, want %s", seq, bit, list, want)
		}
	}
}
