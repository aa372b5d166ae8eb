package guardtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
)

var listChecks = []Check{
	{"revocations are published in order", pair(publishedInOrder)},
	{"the lists agree with the revocations", pair(listsAgree)},
	{"a resumed agent is cut off at its suspension", pair(resumed)},
	{"lists that are lost are noticed and mended", pair(lost)},
	{"lists that are further are not replaced", pair(further)},
	{"one look shows the old lists or the new ones", pair(oneLook)},
	{"what has ended goes when there is much of it", pair(forgets)},
	{"a publication wakes every instance", pair(wakes)},
	{"receipts are shared", pair(receipts)},
	{"tenants have lists of their own", pair(separateLists)},
}

// history makes revocations that follow each other.
type history struct {
	list []delegation.Revocation
	gap  uint64 // between two numbers: of other entries
}

func (h *history) add(kind delegation.TargetKind, id string, until time.Time) delegation.Revocation {
	t := delegation.Target{Kind: kind, ID: id}
	if kind == delegation.CutAgentSubject {
		t.Subject = "user:alice"
	}
	r := delegation.Revocation{Prev: h.last(), Target: t, At: time.Now(), Until: until}
	r.Seq = r.Prev + 1 + h.gap
	h.list = append(h.list, r)
	return r
}

func (h *history) last() uint64 {
	if len(h.list) == 0 {
		return 0
	}
	return h.list[len(h.list)-1].Seq
}

// some is a short history that is published already.
func some(ctx context.Context, g *guard.Guard) (*history, error) {
	h := &history{gap: 2}
	soon := time.Now().Add(time.Hour)
	h.add(delegation.BanToken, "01A", soon)
	h.add(delegation.BanSuspend, "agent:writer", time.Time{})
	h.add(delegation.CutAgentSubject, "agent:tool", soon)
	h.add(delegation.CutTenant, "", soon)
	for _, r := range h.list {
		if err := g.Publish(ctx, tenant, r); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func expectErr(what string, err, want error) error {
	if !errors.Is(err, want) || delegation.AsError(err).Reason != delegation.DependencyDown {
		return fmt.Errorf("%s: got %v, want unavailable and %w", what, err, want)
	}
	return nil
}

func audited(ctx context.Context, what string, g *guard.Guard, h *history, want bool) error {
	ok, err := g.Audit(ctx, tenant, h.list, h.last())
	if err != nil || ok != want {
		return fmt.Errorf("%s: the audit returns %t, %v", what, ok, err)
	}
	return nil
}

func headIs(ctx context.Context, g *guard.Guard, want uint64) error {
	head, err := g.PublishedHead(ctx, tenant)
	if err != nil || head != want {
		return fmt.Errorf("the head is %d, %w; want %d", head, err, want)
	}
	return nil
}

func ends(until time.Time) int64 {
	if until.IsZero() {
		return 0
	}
	return until.Add(time.Millisecond - 1).UnixMilli()
}

// hits reads a field as docs/revocation.md tells others to.
func hits(value string, ban bool, seq uint64) bool {
	if value == "" {
		return false
	}
	number, _, _ := strings.Cut(value, ":")
	n, err := strconv.ParseUint(number, 10, 64)
	return err != nil || ban || seq < n
}

func further(ctx context.Context, a, b *guard.Guard) error {
	h, err := some(ctx, a)
	if err != nil {
		return err
	}
	behind := &history{list: h.list[:3]}
	return errors.Join(
		expectErr("to go back", b.Republish(ctx, tenant, behind.list, behind.last()), guard.ErrAhead),
		audited(ctx, "who is behind", b, behind, false),
		headIs(ctx, b, h.last()), audited(ctx, "afterwards", a, h, true),
		expect("the next", a.Publish(ctx, tenant, h.add(delegation.BanChain, "t", time.Time{})), ""),
		expect("to stay", b.Republish(ctx, tenant, h.list, h.last()), ""), audited(ctx, "in the end", a, h, true),
	)
}

func wakes(ctx context.Context, a, b *guard.Guard) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	here, there, other := a.Wake(ctx, tenant), b.Wake(ctx, tenant), b.Wake(ctx, "globex")
	pulse := func(what string, c <-chan []string) error {
		select {
		case <-c:
			return nil
		case <-time.After(5 * time.Second):
			return fmt.Errorf("%s: no pulse", what)
		}
	}
	if err := errors.Join(pulse("connected", here), pulse("connected", there), pulse("connected", other)); err != nil {
		return err
	}
	h := &history{}
	for range 3 {
		if err := errors.Join(expect("publish", a.Publish(ctx, tenant, h.add(delegation.BanToken, "01A", time.Time{})), ""),
			pulse("the publisher", here), pulse("another instance", there)); err != nil {
			return err
		}
	}
	if err := errors.Join(b.Republish(ctx, tenant, h.list, h.last()), pulse("rebuilt", here)); err != nil {
		return err
	}
	select {
	case <-other:
		return errors.New("another tenant was woken")
	default:
		return nil
	}
}

func publishedInOrder(ctx context.Context, a, b *guard.Guard) error {
	h := &history{gap: 4}
	soon := time.Now().Add(time.Hour)
	first, second, third := h.add(delegation.BanToken, "01A", soon), h.add(delegation.CutSubject, "user:alice", soon), h.add(delegation.BanKey, "thumb", time.Time{})
	if err := errors.Join(
		headIs(ctx, a, 0),
		expectErr("the second of a list that is lost", a.Publish(ctx, tenant, second), guard.ErrGap),
		expect("the first", a.Publish(ctx, tenant, first), ""),
		expect("the first, by another instance", b.Publish(ctx, tenant, first), ""),
		expectErr("the third before the second", b.Publish(ctx, tenant, third), guard.ErrGap),
		headIs(ctx, b, first.Seq),
		expect("the second", b.Publish(ctx, tenant, second), ""),
		expect("the first once more", a.Publish(ctx, tenant, first), ""),
		expect("the third", a.Publish(ctx, tenant, third), ""),
		headIs(ctx, a, third.Seq),
		audited(ctx, "afterwards", b, h, true),
	); err != nil {
		return err
	}
	want := map[string]string{"head": "15", "token:01A": fmt.Sprintf("5:%d", ends(soon)), "subject:user:alice": fmt.Sprintf("10:%d", ends(soon)), "key:thumb": "15:0"}
	return holds(ctx, a, want)
}

func listsAgree(ctx context.Context, a, b *guard.Guard) error {
	return agreeOnHistory(ctx, a, b, func() (map[string]string, error) { return contents(ctx, b) })
}

// agreeOnHistory publishes a random history, and looks up in the list what a set would hit.
func agreeOnHistory(ctx context.Context, a, b *guard.Guard, read func() (map[string]string, error)) error {
	random := rand.New(rand.NewPCG(1, 2))
	kinds := []delegation.TargetKind{delegation.BanToken, delegation.BanChain, delegation.BanRoot, delegation.BanKey, delegation.BanSuspend, delegation.BanSuspend,
		delegation.Resume, delegation.Resume, delegation.CutSubject, delegation.CutAgent, delegation.CutAgentSubject, delegation.CutTenant}
	h, set := &history{}, delegation.NewRevocationSet(0)
	for i := range 400 {
		kind, id, until := kinds[random.IntN(len(kinds))], fmt.Sprintf("agent:%d", random.IntN(4)), time.Time{}
		switch kind {
		case delegation.CutTenant:
			id = ""
		case delegation.BanKey, delegation.BanSuspend, delegation.Resume:
		default:
			if random.IntN(3) > 0 {
				until = time.Now().Add(time.Hour + time.Duration(random.IntN(1000))*time.Second)
			}
		}
		r := h.add(kind, id, until)
		set.Apply(r)
		if err := a.Publish(ctx, tenant, r); err != nil {
			return fmt.Errorf("revocation %d: %w", r.Seq, err)
		}
		if i%40 != 39 {
			continue
		}
		if err := errors.Join(audited(ctx, "on the way", b, h, true), agree(read, set, h.last())); err != nil {
			return err
		}
	}
	published, err := read()
	if err != nil {
		return err
	}
	if err := b.Republish(ctx, tenant, h.list, h.last()); err != nil {
		return err
	}
	rebuilt, err := read()
	if err != nil || !maps.Equal(published, rebuilt) {
		return fmt.Errorf("published one by one the list is\n%v\nrebuilt it is\n%v\n%w", published, rebuilt, err)
	}
	return nil
}

// agree asks list and set about tokens that each name one target.
func agree(read func() (map[string]string, error), set *delegation.RevocationSet, last uint64) error {
	list, err := read()
	if err != nil {
		return err
	}
	for i := range 4 {
		id := fmt.Sprintf("agent:%d", i)
		for _, seq := range []uint64{1, last / 2, last} {
			hop := delegation.Hop{ID: "-", Seq: seq}
			free := delegation.Lineage{Root: "-", Txn: "-", Subject: "user:nobody", Actors: delegation.Chain{"agent:none"}, Hops: []delegation.Hop{hop}}
			for _, name := range []string{"token", "chain", "root", "key", "suspend", "subject", "agent", "agent_subject"} {
				l, field := free, name+":"+id
				l.Hops = []delegation.Hop{hop}
				ban := true
				switch name {
				case "token":
					l.Hops[0].ID = id
				case "chain":
					l.Txn = id
				case "root":
					l.Root = id
				case "key":
					l.Hops[0].Key = id
				case "suspend":
					l.Subject = delegation.Principal(id)
				case "subject":
					l.Subject, ban = delegation.Principal(id), false
				case "agent":
					l.Actors, ban = delegation.Chain{delegation.Principal(id)}, false
				case "agent_subject":
					l.Actors, l.Subject, ban = delegation.Chain{delegation.Principal(id)}, "user:alice", false
					field += ":user:alice"
				}
				dead := hits(list[field], ban, seq) || hits(list["tenant"], false, seq)
				switch name { // the same name may be hit in other ways
				case "suspend", "subject":
					dead = dead || hits(list["agent:"+id], false, seq) || hits(list["suspend:"+id], true, seq) || hits(list["subject:"+id], false, seq)
				case "agent", "agent_subject":
					dead = dead || hits(list["agent:"+id], false, seq) || hits(list["suspend:"+id], true, seq)
				}
				if _, hit := set.Hit(l); hit != dead {
					return fmt.Errorf("%s by number %d: the list has %t, the set %t", field, seq, dead, hit)
				}
			}
		}
	}
	return nil
}

func resumed(ctx context.Context, g, _ *guard.Guard) error {
	h := &history{}
	suspended := h.add(delegation.BanSuspend, "agent:writer", time.Time{})
	h.add(delegation.BanToken, "01A", time.Time{})
	h.add(delegation.Resume, "agent:writer", time.Time{})
	h.add(delegation.Resume, "agent:never-suspended", time.Time{})
	for _, r := range h.list {
		if err := g.Publish(ctx, tenant, r); err != nil {
			return err
		}
	}
	want := map[string]string{"head": "4", "token:01A": "2:0", "agent:agent:writer": fmt.Sprintf("%d:0", suspended.Seq)}
	return errors.Join(holds(ctx, g, want), audited(ctx, "afterwards", g, h, true))
}

func receipts(ctx context.Context, a, b *guard.Guard) error {
	now := time.Now().Truncate(time.Millisecond)
	old := guard.Receipt{ID: "1", Verifier: "service:calendar", Applied: 3, SeenAt: now.Add(-9 * time.Minute)}
	fresh := guard.Receipt{ID: "1", Verifier: "service:calendar", Applied: 5, SeenAt: now}
	other := guard.Receipt{ID: "2:with:colons", Verifier: "agent:tool%3A", Applied: 0, SeenAt: now.Add(time.Second)}
	// Another verifier may choose the same ID: it does not report for the first.
	namesake := guard.Receipt{ID: "1", Verifier: "service:mail", Applied: 99, SeenAt: now}
	gone := guard.Receipt{ID: "3", Verifier: "service:gone", Applied: 9, SeenAt: now.Add(-11 * time.Minute)}
	if err := errors.Join(a.Saw(ctx, tenant, []guard.Receipt{old, gone}), b.Saw(ctx, tenant, []guard.Receipt{other, namesake, fresh}), a.Saw(ctx, tenant, nil)); err != nil {
		return err
	}
	for _, g := range []*guard.Guard{a, b} {
		list, err := g.Receipts(ctx, tenant)
		if err != nil || !slices.Equal(list, []guard.Receipt{fresh, namesake, other}) {
			return fmt.Errorf("receipts are %+v, %w", list, err)
		}
	}
	if list, err := a.Receipts(ctx, "globex"); err != nil || len(list) > 0 {
		return fmt.Errorf("another tenant's receipts are %+v, %w", list, err)
	}
	return nil
}

// contents are the fields of a tenant's lists as docs/revocation.md has them, as guard returns them.
func contents(ctx context.Context, g *guard.Guard) (map[string]string, error) {
	list, complete, err := g.Remembered(ctx, tenant, 0)
	if err != nil || !complete {
		return nil, fmt.Errorf("the lists are complete: %t: %w", complete, err)
	}
	head, err := g.PublishedHead(ctx, tenant)
	found := map[string]string{"head": strconv.FormatUint(head, 10)}
	for _, r := range list {
		name := string(r.Target.Kind)
		for _, part := range []string{r.Target.ID, string(r.Target.Subject)} {
			if part != "" {
				name += ":" + part
			}
		}
		found[name] = fmt.Sprintf("%d:%d", r.Seq, ends(r.Until))
	}
	return found, err
}

func holds(ctx context.Context, g *guard.Guard, want map[string]string) error {
	found, err := contents(ctx, g)
	if err != nil || !maps.Equal(found, want) {
		return fmt.Errorf("the list is %v, %w; want %v", found, err, want)
	}
	return nil
}

// lost discards the lists, as any loss of a store does.
func lost(ctx context.Context, a, b *guard.Guard) error {
	h, err := some(ctx, a)
	if err != nil {
		return err
	}
	none := &history{}
	return errors.Join(
		audited(ctx, "before", b, h, true), a.Discard(ctx, tenant), audited(ctx, "lost", b, h, false), headIs(ctx, a, 0),
		expectErr("the next", a.Publish(ctx, tenant, h.add(delegation.BanChain, "t", time.Time{})), guard.ErrGap),
		expect("republish", b.Republish(ctx, tenant, h.list, h.last()), ""), audited(ctx, "mended", a, h, true),
		expect("the one after it", a.Publish(ctx, tenant, h.add(delegation.BanChain, "u", time.Time{})), ""), audited(ctx, "goes on", b, h, true),
		// An empty list is a list too: it tells readers that nothing is revoked.
		a.Discard(ctx, tenant), audited(ctx, "no list", a, none, false),
		expect("republish nothing", a.Republish(ctx, tenant, nil, 0), ""), audited(ctx, "an empty list", a, none, true),
		expect("the first", a.Publish(ctx, tenant, none.add(delegation.BanChain, "t", time.Time{})), ""), audited(ctx, "no longer empty", b, none, true))
}

// oneLook rebuilds the list again and again, each time with all numbers of another thousand.
func oneLook(ctx context.Context, a, b *guard.Guard) error {
	const size, rounds, step = 200, 50, 1000
	of := func(round uint64) (list []delegation.Revocation, last uint64) {
		for i := range uint64(size) {
			list = append(list, delegation.Revocation{Seq: round*step + i, Target: delegation.Target{Kind: delegation.BanToken, ID: strconv.FormatUint(i, 10)}})
		}
		return list, round*step + size - 1
	}
	done := make(chan error, 1)
	go func() {
		for round := uint64(1); round < rounds; round++ {
			list, last := of(round)
			if err := []*guard.Guard{a, b}[round%2].Republish(ctx, tenant, list, last); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for {
		peeks, err := a.Peek(ctx, tenant)
		if err != nil {
			return err
		}
		head, err := peeks[0].Head()
		if err != nil {
			return err
		}
		if list, last := of(head / step); head > 0 && !peeks[0].Right(list, last) {
			return fmt.Errorf("at head %d the lists are not those of round %d", head, head/step)
		}
		select {
		case err := <-done:
			list, last := of(rounds - 1)
			return errors.Join(err, audited(ctx, "in the end", b, &history{list: list}, true), headIs(ctx, a, last))
		default:
		}
	}
}

func forgets(ctx context.Context, a, b *guard.Guard) error {
	h, err := some(ctx, a)
	if err != nil {
		return err
	}
	with := func(ended int) []delegation.Revocation {
		list := slices.Clone(h.list)
		for i := range ended {
			list = append(list, delegation.Revocation{Seq: 1, Until: time.UnixMilli(1), Target: delegation.Target{Kind: delegation.BanToken, ID: strconv.Itoa(i)}})
		}
		return list
	}
	if err := errors.Join(
		a.Republish(ctx, tenant, with(101), h.last()), audited(ctx, "a little that has ended", b, h, true),
		a.Republish(ctx, tenant, with(3000), h.last()), audited(ctx, "much that has ended", b, h, false),
		b.Republish(ctx, tenant, h.list, h.last()), audited(ctx, "without it", a, h, true)); err != nil {
		return err
	}
	left, _, err := a.Remembered(ctx, tenant, 0)
	if err != nil || len(left) != len(h.list) {
		return fmt.Errorf("%d fields are left, %w; want %d", len(left), err, len(h.list))
	}
	return nil
}

func separateLists(ctx context.Context, a, b *guard.Guard) error {
	h, err := some(ctx, a)
	if err != nil {
		return err
	}
	other := &history{}
	return errors.Join(
		expect("another tenant's first", b.Publish(ctx, "globex", other.add(delegation.BanToken, "x", time.Time{})), ""),
		audited(ctx, "this tenant", b, h, true), b.Discard(ctx, "globex"), audited(ctx, "this tenant, without the other", a, h, true))
}
