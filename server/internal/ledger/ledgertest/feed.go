package ledgertest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// numbers of revocations, for comparing.
func numbers(list []delegation.Revocation) string {
	var seqs []uint64
	for _, r := range list {
		seqs = append(seqs, r.Seq)
	}
	return fmt.Sprint(seqs)
}

func pending(changed <-chan struct{}) bool {
	select {
	case <-changed:
		return false
	default:
		return true
	}
}

func feeds(b *bench) {
	here, there := b.open(), b.open()
	_, complete, loaded := here.Events(tenant, 0)
	if complete || !pending(loaded) {
		b.Error("events of a tenant that was not read yet are reported as complete")
	}
	if last, err := here.LastRevocation(b.Context(), tenant); err != nil || last != 0 {
		b.Errorf("an empty ledger's last revocation is %d, %v", last, err)
	}
	events, complete, changed := here.Events(tenant, 0)
	if len(events) > 0 || !complete || pending(loaded) || !pending(changed) {
		b.Errorf("events of an empty ledger: %v, complete %t", events, complete)
	}
	_, _, same := here.Events(tenant, 0)
	if same != changed {
		b.Error("two who wait have two channels")
	}

	b.append(here, Grant(b.Now(), "user:alice", "agent:planner")) // takes a number, is no revocation
	if !pending(changed) {
		b.Error("a grant woke those who wait for revocations")
	}
	first := b.append(here, Revocation(delegation.BanChain, "a")) // own commit
	if pending(changed) {
		b.Error("a revocation woke no waiting reader")
	}
	second := b.append(there, Revocation(delegation.BanChain, "b")) // another instance's, seen by a batch
	b.append(here, Grant(b.Now(), "user:alice", "agent:planner"))
	third := b.append(there, Revocation(delegation.CutTenant, "")) // and by a read
	if last, err := here.LastRevocation(b.Context(), tenant); err != nil || last != third.Seq {
		b.Errorf("the last revocation is %d, %v; want %d", last, err, third.Seq)
	}
	for after, want := range map[uint64][]uint64{
		0:          {first.Seq, second.Seq, third.Seq},
		first.Seq:  {second.Seq, third.Seq},
		second.Seq: {third.Seq},
		third.Seq:  nil,
	} {
		events, complete, _ := here.Events(tenant, after)
		if !complete || numbers(events) != fmt.Sprint(want) {
			b.Errorf("events after %d: %s, complete %t; want %d", after, numbers(events), complete, want)
		}
		for _, e := range events {
			if e.Prev != after || e.At.IsZero() {
				b.Errorf("event %d follows %d, want %d", e.Seq, e.Prev, after)
			}
			after = e.Seq
		}
	}
	for _, unknown := range []uint64{first.Seq - 1, third.Seq + 1, 1 << 60} {
		if events, complete, _ := here.Events(tenant, unknown); complete || len(events) > 0 {
			b.Errorf("events after %d, which is no revocation: %s, complete %t", unknown, numbers(events), complete)
		}
	}
	live, last, err := there.Live(b.Context(), tenant)
	if err != nil || last != third.Seq || numbers(live) != fmt.Sprint([]uint64{first.Seq, second.Seq, third.Seq}) || live[0].Target.ID != "a" {
		b.Errorf("Live = %v, %d, %v", live, last, err)
	}
	_ = append(live[:1], delegation.Revocation{Seq: 99}) // what one caller does to its slice …
	if events, _, _ := there.Events("other", 0); len(events) > 0 {
		b.Error("events of another tenant")
	}
	b.check(here)
}

// feedsNoGap has revocations end while no instance runs: the next one cannot report everything that
// happened, and must not claim to.
func feedsNoGap(b *bench) {
	brief := func(id string) *ledger.Draft {
		d := Revocation(delegation.BanToken, id)
		d.Revocation.Until = b.Now().Add(time.Minute)
		return d
	}
	l := b.open()
	first := b.append(l, Revocation(delegation.BanToken, "first"))
	ended := b.append(l, brief("ended"))
	third := b.append(l, Revocation(delegation.BanToken, "third"))
	newest := b.append(l, brief("newest"))
	b.Add(time.Hour)

	if events, complete, _ := l.Events(tenant, first.Seq); !complete || len(events) != 3 {
		b.Errorf("who was there all the time: %s, complete %t", numbers(events), complete)
	}
	live, last, err := l.Live(b.Context(), tenant)
	if err != nil || last != newest.Seq || numbers(live) != fmt.Sprint([]uint64{first.Seq, third.Seq}) {
		b.Errorf("Live = %s, %d, %v; want what has not ended", numbers(live), last, err)
	}
	late := b.open()
	if live, last, err := late.Live(b.Context(), tenant); err != nil || last != newest.Seq || numbers(live) != fmt.Sprint([]uint64{first.Seq, third.Seq, newest.Seq}) {
		b.Errorf("Live after a restart = %s, %d, %v", numbers(live), last, err)
	}
	for after, want := range map[uint64]bool{0: false, first.Seq: false, ended.Seq: true, third.Seq: true, newest.Seq: true} {
		events, complete, _ := late.Events(tenant, after)
		if complete != want {
			b.Errorf("after a restart, events after %d: %s, complete %t", after, numbers(events), complete)
		}
		for _, e := range events {
			if e.Prev != after {
				b.Errorf("after a restart, event %d follows %d, want %d", e.Seq, e.Prev, after)
			}
			after = e.Seq
		}
	}
}

// Impact is what a revocation of the target would revoke if it were recorded now: at most limit of
// the grants, and how many tokens and chains there are.
func Impact(ctx context.Context, l *ledger.Ledger, tenant string, t delegation.Target, limit int) (grants []*ledger.Entry, tokens, chains int, err error) {
	s, err := l.Survey(ctx, tenant, t)
	if err != nil {
		return nil, 0, 0, err
	}
	return s.Count(ctx, limit)
}

// impact compares what a Survey foretells with what then becomes of every grant.
func impact(b *bench) {
	l := b.open()
	var grants []*ledger.Draft
	var claims [][]byte
	grant := func(d *ledger.Draft) []byte {
		r := b.append(l, d)
		grants, claims = append(grants, d), append(claims, r.Claims)
		return r.Claims
	}
	var roots []*ledger.Draft
	for i, subject := range []delegation.Principal{"user:alice", "user:bob", "agent:cron"} {
		root := Grant(b.Now(), subject, "agent:planner")
		root.HolderKey = fmt.Sprintf("key-%d", i)
		roots = append(roots, root)
		parent := grant(root)
		for _, actor := range []delegation.Principal{"agent:researcher", "agent:writer"} {
			child := Child(b.Now(), parent, actor)
			child.HolderKey = "key-of-" + actor.ID()
			grant(Child(b.Now(), grant(child), "agent:tool"))
		}
	}
	// JSON may hold a name in another spelling.
	odd := Grant(b.Now(), "user:odd", "agent:odd")
	spell := odd.Claims
	odd.Claims = func(seq uint64) ([]byte, error) {
		raw, err := spell(seq)
		return bytes.ReplaceAll(raw, []byte(`"user:odd"`), []byte(`"user:\u006fdd"`)), err
	}
	grant(odd)
	voided := b.append(l, Grant(b.Now(), "user:alice", "agent:planner"))
	b.append(l, &ledger.Draft{Kind: ledger.KindVoid, Caller: "agent:planner", Voids: voided.Seq})
	brief := Grant(b.Now(), "user:alice", "agent:planner")
	brief.Expiry = b.Now().Add(time.Second)
	b.append(l, brief)
	b.Add(2 * time.Second)

	for _, c := range []struct {
		target         delegation.Target
		tokens, chains int
	}{
		{delegation.Target{Kind: delegation.BanToken, ID: roots[0].ID}, 5, 1},
		{delegation.Target{Kind: delegation.BanToken, ID: grants[1].ID}, 2, 1},
		{delegation.Target{Kind: delegation.BanToken, ID: "not seen yet"}, 0, 0},
		{delegation.Target{Kind: delegation.BanChain, ID: roots[1].Txn}, 5, 1},
		{delegation.Target{Kind: delegation.BanRoot, ID: roots[1].Root}, 5, 1},
		{delegation.Target{Kind: delegation.BanKey, ID: "key-2"}, 5, 1},
		{delegation.Target{Kind: delegation.BanKey, ID: "key-of-writer"}, 6, 3},
		{delegation.Target{Kind: delegation.BanSuspend, ID: "agent:tool"}, 6, 3},
		{delegation.Target{Kind: delegation.BanSuspend, ID: "agent:cron"}, 5, 1},
		{delegation.Target{Kind: delegation.CutSubject, ID: "user:alice"}, 5, 1},
		{delegation.Target{Kind: delegation.CutAgent, ID: "agent:researcher"}, 6, 3},
		{delegation.Target{Kind: delegation.CutAgent, ID: "agent:cron"}, 5, 1},
		{delegation.Target{Kind: delegation.CutAgentSubject, ID: "agent:researcher", Subject: "user:bob"}, 2, 1},
		{delegation.Target{Kind: delegation.CutTenant}, 16, 4},
		{delegation.Target{Kind: delegation.CutSubject, ID: "user:odd"}, 1, 1},
		{delegation.Target{Kind: delegation.Resume, ID: "agent:tool"}, 0, 0},
	} {
		foretold, tokens, chains, err := Impact(b.Context(), l, tenant, c.target, 100)
		if err != nil || tokens != c.tokens || chains != c.chains || len(foretold) != c.tokens {
			b.Errorf("%v: %d tokens (%d listed) in %d chains, %v; want %d in %d", c.target, tokens, len(foretold), chains, err, c.tokens, c.chains)
		}
		if !slices.IsSortedFunc(foretold, func(x, y *ledger.Entry) int { return int(x.Seq) - int(y.Seq) }) {
			b.Errorf("%v: not oldest first", c.target)
		}
		if list, all, _, err := Impact(b.Context(), l, tenant, c.target, 2); err != nil || all != c.tokens || len(list) != min(2, c.tokens) {
			b.Errorf("%v, at most two: %d listed of %d, %v", c.target, len(list), all, err)
		}
		named := map[string]bool{}
		for _, e := range foretold {
			named[e.ID] = true
		}
		// The truth: the same revocation, recorded in a set as the ledger numbers it now.
		head, err := l.Append(b.Context(), tenant, &ledger.Draft{Kind: ledger.KindCheck, Outcome: ledger.Granted, Caller: "user:auditor"})
		if err != nil {
			b.Fatal(err)
		}
		truth := delegation.NewRevocationSet(0)
		truth.Apply(delegation.Revocation{Seq: head.Seq + 1, Target: c.target, At: b.Now()})
		for i, d := range grants {
			if _, dead := truth.Hit(Decode(claims[i]).Lineage()); dead != named[d.ID] {
				b.Errorf("%v: grant %d of %s: foretold %t, dies %t", c.target, i, d.Actor, named[d.ID], dead)
			}
		}
	}
	// And the deed.
	target := delegation.Target{Kind: delegation.CutAgent, ID: "agent:researcher"}
	foretold, _, _, err := Impact(b.Context(), l, tenant, target, 100)
	if err != nil {
		b.Fatal(err)
	}
	b.append(l, Revocation(target.Kind, target.ID))
	for i, d := range grants {
		named := slices.ContainsFunc(foretold, func(e *ledger.Entry) bool { return e.ID == d.ID })
		_, err := l.Append(b.Context(), tenant, Child(b.Now(), claims[i], "agent:late"))
		if dead := reason(err) == delegation.TokenRevoked; dead != named {
			b.Errorf("grant %d of %s: foretold %t, refused: %v", i, d.Actor, named, err)
		}
	}
	if _, tokens, chains, err := Impact(b.Context(), l, tenant, target, 100); err != nil || tokens != 0 || chains != 0 {
		b.Errorf("what is dead already dies again: %d tokens in %d chains, %v", tokens, chains, err)
	}
	if _, _, _, err := Impact(b.Context(), l, tenant, delegation.Target{Kind: "moon", ID: "x"}, 1); reason(err) != delegation.Internal {
		b.Errorf("an unknown kind of target: %v", err)
	}
	if _, tokens, _, err := Impact(b.Context(), l, "other", delegation.Target{Kind: delegation.CutTenant}, 10); err != nil || tokens != 0 {
		b.Errorf("in another tenant: %d, %v", tokens, err)
	}
}
