package ledgertest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// Search returns everything that a query finds, page by page.
func Search(b interface{ Fatal(...any) }, search func(ledger.Query) ([]*ledger.Entry, uint64, error), q ledger.Query) []*ledger.Entry {
	var all []*ledger.Entry
	for {
		page, before, err := search(q)
		if err != nil {
			b.Fatal(err)
		}
		if len(page) > q.Limit || before != 0 && q.Before != 0 && before >= q.Before {
			b.Fatal(fmt.Sprintf("%+v: a page of %d that continues before %d", q, len(page), before))
		}
		if all = append(all, page...); before == 0 {
			return all
		}
		q.Before = before
	}
}

// Matches is what Search must return, computed without the ledger's code.
func Matches(q ledger.Query, e *ledger.Entry) bool {
	return (q.Subject == "" || e.Subject == q.Subject) &&
		(q.Actor == "" || e.Actor == q.Actor || slices.Contains(e.Actors, q.Actor)) &&
		(q.Caller == "" || e.Caller == q.Caller) &&
		(q.Audience == "" || slices.Contains(e.Audiences, q.Audience)) &&
		(q.Scope == "" || slices.Contains(e.Scopes, q.Scope)) &&
		(q.Kind == "" || e.Kind == q.Kind) &&
		(q.Outcome == "" || e.Outcome == q.Outcome) &&
		(q.Reason == "" || e.Reason == q.Reason) &&
		(q.TraceID == "" || e.TraceID == q.TraceID) &&
		(q.ID == "" || e.ID == q.ID) &&
		(q.Txn == "" || e.Txn == q.Txn) &&
		(q.Key == "" || e.HolderKey == q.Key) &&
		(q.Peer == "" || e.Peer == q.Peer || strings.Trim(strings.TrimRight(e.Peer, "0123456789"), "[]:") == q.Peer) &&
		(q.From.IsZero() || !e.Time.Before(q.From)) &&
		(q.Until.IsZero() || e.Time.Before(q.Until)) &&
		(q.Before == 0 || e.Seq < q.Before)
}

// Numbers of entries, for comparing.
func Numbers(list []*ledger.Entry) string {
	var seqs []uint64
	for _, e := range list {
		seqs = append(seqs, e.Seq)
	}
	return fmt.Sprint(seqs)
}

func searches(b *bench) {
	l := b.open()
	if page, before, err := l.Search(b.Context(), tenant, ledger.Query{Limit: 10}); err != nil || len(page) > 0 || before != 0 {
		b.Errorf("in an empty ledger: %d entries, before %d, %v", len(page), before, err)
	}
	parent := b.append(l, Grant(b.Now(), "user:alice", "agent:planner"))
	start := parent.Time
	b.Add(time.Minute)
	child := Child(b.Now(), parent.Claims, "agent:researcher")
	child.HolderKey, child.Peer = "thumbprint-of-a-key", "[2001:db8::1]:4711"
	child.Audiences, child.Scopes, child.TraceID = []string{"https://a.example", "https://b.example"}, delegation.Scopes{"mail.read", "mail.send"}, "trace-2"
	b.append(l, child)
	b.Add(time.Minute)
	b.append(l, &ledger.Draft{
		Kind: ledger.KindRefusal, Reason: delegation.AccessDenied, Subject: "user:bob", Actor: "agent:writer", Caller: "agent:planner",
	})
	b.append(l, &ledger.Draft{Kind: ledger.KindCheck, Outcome: ledger.Granted, Subject: "user:bob", Actor: "agent:planner", Caller: "user:bob"})
	b.append(l, &ledger.Draft{Kind: ledger.KindVoid, Caller: "agent:planner", Voids: parent.Seq})
	b.append(l, Revocation(delegation.CutSubject, "user:alice"))
	if _, err := l.Append(b.Context(), "other", Grant(b.Now(), "user:alice", "agent:planner")); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		query ledger.Query
		want  string
	}{
		{ledger.Query{}, "[6 5 4 3 2 1]"},
		{ledger.Query{Subject: "user:alice"}, "[2 1]"},
		{ledger.Query{Subject: "user:alic"}, "[]"},
		{ledger.Query{Subject: "USER:alice"}, "[]"},
		{ledger.Query{Actor: "agent:planner"}, "[4 2 1]"},
		{ledger.Query{Actor: "agent:writer"}, "[3]"},
		{ledger.Query{Caller: "agent:planner"}, "[5 3 2 1]"},
		{ledger.Query{Audience: "https://b.example"}, "[2]"},
		{ledger.Query{Audience: "https://b.example\",\"x"}, "[]"},
		{ledger.Query{Scope: "mail.read"}, "[2]"},
		{ledger.Query{Scope: "mail.read mail.send"}, "[]"},
		{ledger.Query{Kind: ledger.KindVoid}, "[5]"},
		{ledger.Query{Outcome: ledger.Granted}, "[4 2 1]"},
		{ledger.Query{Outcome: ledger.Done}, "[6 5]"},
		{ledger.Query{Reason: delegation.AccessDenied}, "[3]"},
		{ledger.Query{TraceID: "trace-2"}, "[2]"},
		{ledger.Query{TraceID: "' OR '1'='1"}, "[]"},
		{ledger.Query{ID: child.ID}, "[2]"},
		{ledger.Query{ID: child.ID, Subject: "user:bob"}, "[]"},
		{ledger.Query{ID: child.ID, Txn: "another"}, "[]"},
		{ledger.Query{ID: "none"}, "[]"},
		{ledger.Query{Txn: child.Txn}, "[2 1]"},
		{ledger.Query{Txn: child.Txn, Actor: "agent:researcher"}, "[2]"},
		{ledger.Query{Txn: child.Txn, Before: 2}, "[1]"},
		{ledger.Query{Txn: child.Txn, From: start.Add(time.Minute)}, "[2]"},
		{ledger.Query{Txn: child.Txn[:5]}, "[]"},
		{ledger.Query{Key: "thumbprint-of-a-key"}, "[2]"},
		{ledger.Query{Key: "thumbprint-of-a-ke"}, "[]"},
		{ledger.Query{Peer: "192.0.2.7"}, "[1]"},
		{ledger.Query{Peer: "192.0.2.7:4711"}, "[1]"},
		{ledger.Query{Peer: "192.0.2.7:4712"}, "[]"},
		{ledger.Query{Peer: "192.0.2"}, "[]"},
		{ledger.Query{Peer: "2001:db8::1"}, "[2]"},
		{ledger.Query{Peer: "[2001:db8::1]:4711", Caller: "agent:planner"}, "[2]"},
		{ledger.Query{Actor: "agent:planner", Subject: "user:alice", Kind: ledger.KindGrant}, "[2 1]"},
		{ledger.Query{Actor: "agent:planner", Scope: "mail.send"}, "[2]"},
		{ledger.Query{Actor: "agent:writer", Subject: "user:alice"}, "[]"},
		{ledger.Query{From: start.Add(time.Minute)}, "[6 5 4 3 2]"},
		{ledger.Query{From: start.Add(1)}, "[6 5 4 3 2]"}, // entries have whole microseconds
		{ledger.Query{Until: start.Add(1)}, "[1]"},
		{ledger.Query{From: start, Until: start}, "[]"},
		{ledger.Query{Until: start.Add(time.Minute)}, "[1]"},
		{ledger.Query{From: start.Add(time.Second), Until: start.Add(2 * time.Minute)}, "[2]"},
		{ledger.Query{From: start.Add(time.Hour)}, "[]"},
		{ledger.Query{Until: start.Add(-time.Hour)}, "[]"},
		{ledger.Query{From: start.Add(time.Hour), Until: start}, "[]"},
		{ledger.Query{Before: 3}, "[2 1]"},
		{ledger.Query{Before: 1}, "[]"},
		{ledger.Query{Before: 1 << 63}, "[6 5 4 3 2 1]"},
		{ledger.Query{Actor: "agent:planner", Before: 4}, "[2 1]"},
	} {
		for _, limit := range []int{0, 1, 2, 100} {
			c.query.Limit = max(limit, 1)
			got := Numbers(Search(b, func(q ledger.Query) ([]*ledger.Entry, uint64, error) {
				q.Limit = limit
				return l.Search(b.Context(), tenant, q)
			}, c.query))
			if got != c.want {
				b.Errorf("%+v: %s, want %s", c.query, got, c.want)
			}
		}
	}
	found, _, err := l.Search(b.Context(), tenant, ledger.Query{TraceID: "trace-2", Limit: 1})
	if err != nil || len(found) != 1 || found[0].Verify() != nil || found[0].Claims == nil {
		b.Errorf("what is found is not the whole entry: %+v, %v", found, err)
	}
	if page, _, err := l.Search(b.Context(), "third", ledger.Query{Limit: 10}); err != nil || len(page) > 0 {
		b.Errorf("in a tenant that does not exist: %d, %v", len(page), err)
	}

	voided, err := l.Voided(b.Context(), tenant, []uint64{1, 2, 3, 99})
	if err != nil || len(voided) != 1 || !voided[1] {
		b.Errorf("Voided = %v, %v; want 1", voided, err)
	}
	for other, seqs := range map[string][]uint64{tenant: nil, "other": {1}} {
		if voided, err := l.Voided(b.Context(), other, seqs); err != nil || len(voided) > 0 {
			b.Errorf("Voided of %v in %s = %v, %v", seqs, other, voided, err)
		}
	}
}

// descendants has two trees in one chain, and asks for each grant's own.
func descendants(b *bench) {
	l := b.open()
	type node struct {
		jti   string
		below map[uint64]int // depths by number
	}
	var nodes []*node
	add := func(d *ledger.Draft, ancestors ...*node) (*node, []byte) {
		r := b.append(l, d)
		for i, a := range ancestors {
			a.below[r.Seq] = len(ancestors) - i
		}
		n := &node{jti: d.ID, below: map[uint64]int{}}
		nodes = append(nodes, n)
		return n, r.Claims
	}
	root, rootClaims := add(Grant(b.Now(), "user:alice", "agent:planner"))
	b.append(l, Grant(b.Now(), "user:bob", "agent:planner")) // another chain
	for i := range 3 {
		left, claims := add(Child(b.Now(), rootClaims, delegation.Principal(fmt.Sprintf("agent:left-%d", i))), root)
		for range 2 {
			inner, innerClaims := add(Child(b.Now(), claims, "agent:inner"), root, left)
			add(Child(b.Now(), innerClaims, "agent:leaf"), root, left, inner)
		}
	}
	refused := Child(b.Now(), rootClaims, "agent:refused")
	b.append(l, &ledger.Draft{Kind: ledger.KindRefusal, Reason: delegation.AccessDenied, ID: refused.ID, Parent: refused.Parent, Txn: refused.Txn, Caller: "agent:planner"})
	for _, n := range nodes {
		for _, limit := range []int{0, 1, 2, 5, 1000} {
			found := map[uint64]int{}
			for after, last := uint64(0), uint64(0); ; {
				page, next, err := l.Descendants(b.Context(), tenant, n.jti, after, limit)
				if err != nil || len(page) > max(limit, 1) {
					b.Fatal(len(page), err)
				}
				for _, d := range page {
					if d.Seq <= last || d.Verify() != nil {
						b.Errorf("entry %d after entry %d", d.Seq, last)
					}
					found[d.Seq], last = d.Depth, d.Seq
				}
				if after = next; next == 0 {
					break
				}
			}
			if fmt.Sprint(found) != fmt.Sprint(n.below) {
				b.Errorf("%d at a time: %v, want %v", limit, found, n.below)
			}
		}
	}
	for jti, in := range map[string]string{refused.ID: tenant, "nobody": tenant, "": tenant, root.jti: "other"} {
		if _, _, err := l.Descendants(b.Context(), in, jti, 0, 10); err != ledger.ErrNotFound {
			b.Errorf("descendants of %q in %s: %v", jti, in, err)
		}
	}
}

// holds compares what an agent holds with every token's own claims.
func holds(b *bench) {
	l := b.open()
	const agent = delegation.Principal("agent:researcher")
	var all []ledger.Receipt
	add := func(d *ledger.Draft) ledger.Receipt {
		r := b.append(l, d)
		all = append(all, r)
		return r
	}
	var last ledger.Receipt
	for _, subject := range []delegation.Principal{"user:alice", "user:bob", "user:carol", agent} {
		parent := add(Grant(b.Now(), subject, "agent:planner"))
		for range 2 {
			last = add(Child(b.Now(), parent.Claims, agent))
			add(Child(b.Now(), last.Claims, "agent:tool"))
		}
	}
	brief := Grant(b.Now(), "user:alice", agent)
	brief.Expiry = b.Now().Add(time.Second)
	add(brief)
	voided := add(Grant(b.Now(), "user:alice", agent))
	b.append(l, &ledger.Draft{Kind: ledger.KindVoid, Caller: agent, Voids: voided.Seq})
	b.append(l, &ledger.Draft{Kind: ledger.KindRefusal, Reason: delegation.AccessDenied, Actor: agent, Actors: delegation.Chain{agent}, Caller: agent})
	head := b.append(l, Revocation(delegation.CutSubject, "user:bob"))
	b.Add(2 * time.Second)

	check := func(revoked *delegation.RevocationSet) {
		b.Helper()
		var tokens []uint64
		below := 0
		for _, r := range slices.Backward(all) {
			claims := Decode(r.Claims)
			_, dead := revoked.Hit(claims.Lineage())
			switch {
			case dead || claims.ID == brief.ID || r.Seq == voided.Seq:
			case claims.Act.Current() == agent:
				tokens = append(tokens, r.Seq)
			case slices.Contains(claims.Act, agent):
				below++
			}
		}
		for _, limit := range []int{0, 1, 3, 100} {
			h, err := l.AgentView(b.Context(), tenant, agent, limit)
			if want := fmt.Sprint(tokens[:min(limit, len(tokens))]); err != nil || Numbers(h.Tokens) != want ||
				h.Live != len(tokens) || h.Below != below || h.Truncated || h.Head < head.Seq {
				b.Errorf("at most %d: %s of %d, %d below, truncated %t, head %d, %v; want %s of %d, %d below",
					limit, Numbers(h.Tokens), h.Live, h.Below, h.Truncated, h.Head, err, want, len(tokens), below)
			}
		}
	}
	revoked, err := l.Revocations(b.Context(), tenant, true)
	if err != nil {
		b.Fatal(err)
	}
	check(revoked)
	b.append(b.open(), Revocation(delegation.BanToken, Decode(last.Claims).ID)) // by another instance
	if h, err := l.AgentView(b.Context(), tenant, agent, 100); err != nil || h.Live != 5 || h.Below != 5 {
		b.Errorf("after a token was revoked: %d, %d below, %v; want 5 and 5", h.Live, h.Below, err)
	}
	check(revoked) // which has seen it by now
	b.append(l, Revocation(delegation.BanSuspend, string(agent)))
	check(revoked)
	for in, who := range map[string]delegation.Principal{tenant: "agent:nobody", "other": agent} {
		if h, err := l.AgentView(b.Context(), in, who, 10); err != nil || h.Live+h.Below+len(h.Tokens) > 0 || h.Truncated {
			b.Errorf("%s in %s: %+v, %v", who, in, h, err)
		}
	}
}
