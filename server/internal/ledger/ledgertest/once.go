package ledgertest

import (
	"crypto/rand"
	"errors"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

func singleUse(b *bench) {
	l, other := b.open(), b.open()
	grant := func(spends ...ledger.SingleUse) *ledger.Draft {
		d := Grant(b.Now(), "user:alice", "agent:planner")
		d.Uses = spends
		return d
	}
	b.append(l, grant(), b.use("1"))
	b.refused(l, grant(), delegation.AssertionReplayed, b.use("1"))
	b.refused(other, grant(), delegation.AssertionReplayed, b.use("1"), b.use("2"))
	b.refused(l, grant(), delegation.AssertionReplayed, b.use("2")) // the refusal before noted it

	spent := b.use("3")
	spent.Reason = delegation.TokenSpent
	b.refused(l, grant(spent), delegation.AssertionReplayed, b.use("1"))
	b.append(l, grant(spent)) // the refusal before did not spend it
	b.refused(other, grant(spent), delegation.TokenSpent)

	refusal := &ledger.Draft{Kind: ledger.KindRefusal, Caller: "agent:a", Reason: delegation.EdgeNotPermitted}
	b.append(l, refusal, b.use("4"))
	b.refused(l, refusal, delegation.AssertionReplayed, b.use("4"))
	b.refused(other, Revocation(delegation.CutSubject, "user:alice"), delegation.AssertionReplayed, b.use("4"))
	if live, _, err := other.Live(b.Context(), tenant); err != nil || len(live) != 0 {
		b.Errorf("a replayed credential revoked: %v, %v", live, err)
	}
	b.refused(l, grant(), delegation.AssertionReplayed, b.use("4"))
	b.refused(l, &ledger.Draft{Kind: ledger.KindCheck, Outcome: ledger.Granted, Caller: "agent:a"}, delegation.AssertionReplayed, b.use("4"))

	// A check needs what is unspent, and spends it for the other checks of its call only.
	check := func(spends ...ledger.SingleUse) *ledger.Draft {
		return &ledger.Draft{Kind: ledger.KindCheck, Outcome: ledger.Granted, Caller: "agent:a", Uses: spends}
	}
	b.refused(l, check(spent), delegation.TokenSpent)
	unspent := b.use("9")
	unspent.Reason = delegation.TokenSpent
	for range 2 {
		checks := l.AppendAll(b.Context(), tenant, []*ledger.Draft{check(unspent), check(unspent), check()}, nil)
		if checks[0].Err != nil || reason(checks[1].Err) != delegation.TokenSpent || checks[2].Err != nil {
			b.Errorf("three checks of one call: %+v", checks)
		}
	}
	b.append(l, grant(unspent))
	b.refused(other, check(unspent), delegation.TokenSpent)

	// One call with several drafts: its credential serves all of them or none, what a draft spends
	// serves that draft.
	several := l.AppendAll(b.Context(), tenant, []*ledger.Draft{grant(), grant(spent), grant()}, []ledger.SingleUse{b.use("8")})
	if several[0].Err != nil || reason(several[1].Err) != delegation.TokenSpent || several[2].Err != nil || several[2].Receipt.Seq != several[0].Receipt.Seq+2 {
		b.Errorf("three drafts of one call: %+v", several)
	}
	for i, r := range other.AppendAll(b.Context(), tenant, []*ledger.Draft{grant(), grant()}, []ledger.SingleUse{b.use("8")}) {
		if reason(r.Err) != delegation.AssertionReplayed || r.Receipt.Seq == 0 {
			b.Errorf("draft %d of a replayed call: %+v", i, r)
		}
	}

	if err := l.Spend(b.Context(), tenant, []ledger.SingleUse{b.use("5"), b.use("6")}); err != nil {
		b.Fatal(err)
	}
	if err := other.Spend(b.Context(), tenant, []ledger.SingleUse{b.use("7"), b.use("6")}); reason(err) != delegation.AssertionReplayed {
		b.Errorf("spent twice: %v", err)
	}
	if err := l.Spend(b.Context(), tenant, []ledger.SingleUse{b.use("7")}); reason(err) != delegation.AssertionReplayed {
		b.Errorf("the new one beside a replayed one was not noted: %v", err)
	}
	if err := l.Spend(b.Context(), "other", []ledger.SingleUse{b.use("7")}); err != nil {
		b.Errorf("another tenant: %v", err)
	}
	// What is one name must not be another by moving a boundary.
	shifted := ledger.SingleUse{Issuer: "https://idp.examplek", Key: "1", ID: "7", Until: b.Now().Add(time.Minute)}
	if err := l.Spend(b.Context(), tenant, []ledger.SingleUse{shifted}); err != nil {
		b.Errorf("another name: %v", err)
	}
	b.check(l)
}

func prunes(b *bench) {
	l := b.open()
	spend := func(id string) error { return l.Spend(b.Context(), tenant, []ledger.SingleUse{b.use(id)}) }
	first := b.use("first")
	if err := l.Spend(b.Context(), tenant, []ledger.SingleUse{first}); err != nil {
		b.Fatal(err)
	}
	kept := b.append(l, b.keyed(Grant(b.Now(), "user:alice", "agent:planner"), "k", 1))
	b.Add(time.Minute + 10*time.Second) // its end has passed, the margin has not
	if err := spend("second"); err != nil {
		b.Fatal(err)
	}
	if err := l.Spend(b.Context(), tenant, []ledger.SingleUse{first}); reason(err) != delegation.AssertionReplayed {
		b.Errorf("pruned within the margin: %v", err)
	}
	b.Add(time.Minute)
	if err := spend("third"); err != nil {
		b.Fatal(err)
	}
	if err := l.Spend(b.Context(), tenant, []ledger.SingleUse{first}); reason(err) != delegation.AssertionReplayed {
		b.Errorf("good again once its row was pruned: %v", err)
	}
	b.Add(Life)
	b.append(l, Grant(b.Now(), "user:alice", "agent:planner"))
	e, err := l.EntryAt(b.Context(), tenant, kept.Seq)
	if err != nil || e.Claims != nil || !e.MatchesClaims(kept.Claims) {
		b.Errorf("claims of an expired grant: %q, %v", e.Claims, err)
	}
	b.check(l)
}

func idempotency(b *bench) {
	l, other := b.open(), b.open()
	spends := b.use("parent")
	draft := func(fingerprint byte) *ledger.Draft {
		d := b.keyed(Grant(b.Now(), "user:alice", "agent:planner"), "key-1", fingerprint)
		d.Uses = []ledger.SingleUse{spends}
		return d
	}
	first := b.append(l, draft(1))
	if _, err := l.Lookup(b.Context(), tenant, "agent:planner", "key-2"); !errors.Is(err, ledger.ErrNotFound) {
		b.Errorf("Lookup of a free key: %v", err)
	}
	stored, err := l.Lookup(b.Context(), tenant, "agent:planner", "key-1")
	if err != nil || stored.Seq != first.Seq || stored.Fingerprint != [32]byte{1} || string(stored.Claims) != string(first.Claims) {
		b.Errorf("Lookup = %+v, %v", stored, err)
	}
	for _, instance := range []*ledger.Ledger{l, other} {
		// The first try spent its parent; its retry is not a second use.
		retry, fresh := draft(1), b.use(rand.Text())
		again := b.append(instance, retry, fresh)
		if !again.Existing || again.Seq != first.Seq || !again.Time.Equal(first.Time) || string(again.Claims) != string(first.Claims) {
			b.Errorf("retry: %+v, want %+v", again, first)
		}
		if err := instance.Spend(b.Context(), tenant, []ledger.SingleUse{fresh}); reason(err) != delegation.AssertionReplayed {
			b.Errorf("the retry's own assertion was not noted: %v", err)
		}
	}
	b.refused(l, draft(2), delegation.IdempotencyConflict)
	another := draft(1)
	another.Caller, another.Uses = "agent:other", nil
	if r := b.append(l, another); r.Existing {
		b.Error("another caller's key gave this caller's grant")
	}
	if page, _ := l.Entries(b.Context(), tenant, 0, 10); len(page) != 3 {
		b.Errorf("%d entries, want 3: the retries append nothing", len(page))
	}
	b.append(other, Revocation(delegation.BanToken, Decode(first.Claims).ID))
	b.refused(l, draft(1), delegation.TokenRevoked) // hit through the stored grant: the retry has another jti
	b.Add(Life + time.Second)
	b.refused(l, draft(1), delegation.GrantGone)
	b.check(l)
}

func voids(b *bench) {
	l := b.open()
	draft := func() *ledger.Draft { return b.keyed(Grant(b.Now(), "user:alice", "agent:planner"), "k", 1) }
	first := b.append(l, draft())
	b.append(l, &ledger.Draft{Kind: ledger.KindVoid, Caller: "agent:planner", Voids: first.Seq})
	b.refused(l, draft(), delegation.GrantGone)
	b.check(l)
}
