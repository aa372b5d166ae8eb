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
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
)

var listChecks = []Check{
	{"revocations are published in order", publishedInOrder},
	{"the lists say what the revocations say", listsSayTheSame},
	{"a resumed agent is cut off at its suspension", resumed},
	{"what is wrong is noticed and mended", mended},
	{"lists that are further are not replaced", further},
	{"who rebuilds keeps others out for a while", claimed},
	{"readers see the old lists or the new ones", oldOrNew},
	{"what has ended goes when there is much of it", forgets},
	{"a publication wakes every instance", wakes},
	{"receipts are shared", receipts},
	{"keys of the lists belong to their tenant", listKeys},
}

const listKey, eventsKey, rebuildingKey = "{acme}:revoked:list", "{acme}:revoked:events", "{acme}:revoked:rebuilding"

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
		return fmt.Errorf("%s: the audit says %t, %v", what, ok, err)
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

func publishedInOrder(ctx context.Context, a, b *guard.Guard, client redis.UniversalClient) error {
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
	found, err := client.HGetAll(ctx, listKey).Result()
	want := map[string]string{"head": "15", "token:01A": fmt.Sprintf("5:%d", ends(soon)), "subject:user:alice": fmt.Sprintf("10:%d", ends(soon)), "key:thumb": "15:0"}
	if err != nil || !maps.Equal(found, want) {
		return fmt.Errorf("the list is %v, %w; want %v", found, err, want)
	}
	events, err := client.XRange(ctx, eventsKey, "-", "+").Result()
	if err != nil || len(events) != 3 {
		return fmt.Errorf("%d events, %w; want each once", len(events), err)
	}
	for i, e := range events {
		r := h.list[i]
		want := map[string]any{"seq": fmt.Sprint(r.Seq), "prev": fmt.Sprint(r.Prev), "kind": string(r.Target.Kind), "id": r.Target.ID, "subject": "",
			"at": fmt.Sprint(r.At.UnixMilli()), "until": fmt.Sprint(ends(r.Until))}
		if !maps.Equal(e.Values, want) {
			return fmt.Errorf("event %d is %v, want %v", i, e.Values, want)
		}
	}
	return nil
}

func ends(until time.Time) int64 {
	if until.IsZero() {
		return 0
	}
	return until.Add(time.Millisecond - 1).UnixMilli()
}

// listsSayTheSame publishes a random history, and looks up in the list what a set would hit.
func listsSayTheSame(ctx context.Context, a, b *guard.Guard, client redis.UniversalClient) error {
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
		if err := errors.Join(audited(ctx, "on the way", b, h, true), agree(ctx, client, set, h.last())); err != nil {
			return err
		}
	}
	published, err := client.HGetAll(ctx, listKey).Result()
	if err != nil {
		return err
	}
	if err := b.Republish(ctx, tenant, h.list, h.last()); err != nil {
		return err
	}
	rebuilt, err := client.HGetAll(ctx, listKey).Result()
	if err != nil || !maps.Equal(published, rebuilt) {
		return fmt.Errorf("published one by one the list is\n%v\nrebuilt it is\n%v\n%w", published, rebuilt, err)
	}
	return nil
}

// agree asks list and set about tokens that each name one target.
func agree(ctx context.Context, client redis.UniversalClient, set *delegation.RevocationSet, last uint64) error {
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
				values, err := client.HMGet(ctx, listKey, "head", field, "tenant", "agent:"+id, "suspend:"+id, "subject:"+id).Result()
				if err != nil {
					return err
				}
				dead := hits(values[1], ban, seq) || hits(values[2], false, seq)
				switch name { // the same name may be hit in other ways
				case "suspend", "subject":
					dead = dead || hits(values[3], false, seq) || hits(values[4], true, seq) || hits(values[5], false, seq)
				case "agent", "agent_subject":
					dead = dead || hits(values[3], false, seq) || hits(values[4], true, seq)
				}
				if _, hit := set.Hit(l); hit != dead {
					return fmt.Errorf("%s by number %d: the list says %t, the set says %t", field, seq, dead, hit)
				}
			}
		}
	}
	return nil
}

// hits reads a field as docs/revocation.md tells others to.
func hits(value any, ban bool, seq uint64) bool {
	text, there := value.(string)
	if !there {
		return false
	}
	number, _, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(number, 10, 64)
	return err != nil || ban || seq < n
}

func resumed(ctx context.Context, g, _ *guard.Guard, client redis.UniversalClient) error {
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
	found, err := client.HGetAll(ctx, listKey).Result()
	want := map[string]string{"head": "4", "token:01A": "2:0", "agent:agent:writer": fmt.Sprintf("%d:0", suspended.Seq)}
	if err != nil || !maps.Equal(found, want) {
		return fmt.Errorf("the list is %v, %w; want %v", found, err, want)
	}
	return audited(ctx, "afterwards", g, h, true)
}

func mended(ctx context.Context, a, b *guard.Guard, client redis.UniversalClient) error {
	far := strconv.FormatInt(time.Now().Add(time.Hour).UnixMilli(), 10)
	for _, damage := range []struct {
		name string
		do   func() error
	}{
		{"the list deleted", func() error { return client.Del(ctx, listKey).Err() }},
		{"everything deleted", func() error { return client.FlushAll(ctx).Err() }},
		{"another type in its place", func() error {
			return errors.Join(client.Del(ctx, listKey).Err(), client.LPush(ctx, listKey, "foreign").Err())
		}},
		{"a text in its place", func() error { return client.Set(ctx, listKey, "foreign", 0).Err() }},
		{"another type in the stream's place", func() error {
			return errors.Join(client.Del(ctx, eventsKey).Err(), client.LPush(ctx, eventsKey, "foreign").Err())
		}},
		{"a field deleted", func() error { return client.HDel(ctx, listKey, "token:01A").Err() }},
		{"a suspension deleted", func() error { return client.HDel(ctx, listKey, "suspend:agent:writer").Err() }},
		{"a number lowered", func() error { return client.HSet(ctx, listKey, "tenant", "1:"+far).Err() }},
		{"a life shortened", func() error { return client.HSet(ctx, listKey, "suspend:agent:writer", "6:"+far).Err() }},
		{"a life that is over", func() error { return client.HSet(ctx, listKey, "suspend:agent:writer", "6:1").Err() }},
		{"a foreign field", func() error { return client.HSet(ctx, listKey, "token:other", "3:0").Err() }},
		{"a damaged field", func() error { return client.HSet(ctx, listKey, "token:01A", "yes").Err() }},
		{"the head deleted", func() error { return client.HDel(ctx, listKey, "head").Err() }},
		{"the head damaged", func() error { return client.HSet(ctx, listKey, "head", "many").Err() }},
		{"the head set back", func() error { return client.HSet(ctx, listKey, "head", 6).Err() }},
	} {
		if err := client.FlushAll(ctx).Err(); err != nil {
			return err
		}
		h, err := some(ctx, a)
		if err != nil {
			return err
		}
		err = errors.Join(audited(ctx, "before", b, h, true), damage.do(), audited(ctx, "damaged", b, h, false),
			expect("republish", b.Republish(ctx, tenant, h.list, h.last()), ""), audited(ctx, "mended", a, h, true),
			expect("the next", a.Publish(ctx, tenant, h.add(delegation.BanChain, "t", time.Time{})), ""), audited(ctx, "goes on", b, h, true))
		if err != nil {
			return fmt.Errorf("%s: %w", damage.name, err)
		}
	}
	// An empty list is a list too: it tells readers that nothing is revoked.
	none := &history{}
	return errors.Join(client.FlushAll(ctx).Err(), audited(ctx, "no list", a, none, false),
		expect("republish", a.Republish(ctx, tenant, nil, 0), ""), audited(ctx, "an empty list", a, none, true),
		expect("the first", a.Publish(ctx, tenant, none.add(delegation.BanChain, "t", time.Time{})), ""), audited(ctx, "no longer empty", b, none, true))
}

func further(ctx context.Context, a, b *guard.Guard, _ redis.UniversalClient) error {
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

func claimed(ctx context.Context, a, b *guard.Guard, client redis.UniversalClient) error {
	h, err := some(ctx, a)
	if err != nil {
		return err
	}
	again := h.list[0]
	next := h.add(delegation.BanChain, "t", time.Time{})
	old := h.list[:len(h.list)-1]
	if err := errors.Join(
		client.Set(ctx, rebuildingKey, "somebody", time.Second).Err(),
		expectErr("the next", a.Publish(ctx, tenant, next), guard.ErrRebuilding),
		expect("what is there", a.Publish(ctx, tenant, again), ""),
		expectErr("another rebuilder", b.Republish(ctx, tenant, old, next.Prev), guard.ErrRebuilding),
	); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		err := a.Publish(ctx, tenant, next)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("a dead rebuilder's claim stays: %w", err)
		}
		<-time.After(20 * time.Millisecond)
	}
	// A claim without an expiry belongs to no rebuild.
	return errors.Join(client.Set(ctx, rebuildingKey, "foreign", 0).Err(),
		expect("past a foreign key", b.Republish(ctx, tenant, h.list, h.last()), ""),
		client.Del(ctx, rebuildingKey).Err(), client.LPush(ctx, rebuildingKey, "foreign").Err(),
		expect("past a foreign list", b.Republish(ctx, tenant, h.list, h.last()), ""),
		expect("the next", a.Publish(ctx, tenant, h.add(delegation.BanChain, "u", time.Time{})), ""))
}

// oldOrNew rebuilds the list again and again, each time with all numbers of another thousand.
func oldOrNew(ctx context.Context, a, b *guard.Guard, client redis.UniversalClient) error {
	const size, rounds, step = 3000, 8, 10_000
	build := func(g *guard.Guard, round uint64) error {
		list := make([]delegation.Revocation, size)
		for i := range list {
			list[i] = delegation.Revocation{Seq: round*step + uint64(i), Target: delegation.Target{Kind: delegation.BanToken, ID: strconv.Itoa(i)}}
		}
		return g.Republish(ctx, tenant, list, round*step+size-1)
	}
	if err := build(a, 1); err != nil {
		return err
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	var torn error
	reads, rebuilt := 0, map[uint64]bool{}
	wg.Go(func() {
		for {
			values, err := client.HMGet(ctx, listKey, "head", "token:0", "token:1500", "token:2999").Result()
			if err != nil {
				torn = err
				return
			}
			rounds := map[uint64]bool{}
			for _, v := range values {
				text, _ := v.(string)
				number, _, _ := strings.Cut(text, ":")
				n, _ := strconv.ParseUint(number, 10, 64)
				rounds[n/step] = true
			}
			if len(rounds) != 1 || rounds[0] {
				torn = fmt.Errorf("a reader saw %v", values)
				return
			}
			maps.Copy(rebuilt, rounds)
			reads++
			select {
			case <-done:
				return
			default:
			}
		}
	})
	var err error
	for round := uint64(2); round < rounds && err == nil; round++ {
		err = build([]*guard.Guard{a, b}[round%2], round)
	}
	close(done)
	wg.Wait()
	if torn == nil && len(rebuilt) < 2 {
		torn = fmt.Errorf("%d reads saw %d lists: they show nothing", reads, len(rebuilt))
	}
	return errors.Join(err, torn)
}

func forgets(ctx context.Context, g, _ *guard.Guard, client redis.UniversalClient) error {
	h, err := some(ctx, g)
	if err != nil {
		return err
	}
	fields := make(map[string]any)
	for i := range 3000 {
		fields["token:"+strconv.Itoa(i)] = "1:1" // ended in 1970
		if i == 100 {
			if err := errors.Join(client.HSet(ctx, listKey, fields).Err(), audited(ctx, "a little that has ended", g, h, true)); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(client.HSet(ctx, listKey, fields).Err(), audited(ctx, "much that has ended", g, h, false),
		g.Republish(ctx, tenant, h.list, h.last())); err != nil {
		return err
	}
	if n, err := client.HLen(ctx, listKey).Result(); err != nil || n != int64(len(h.list))+1 {
		return fmt.Errorf("%d fields are left, %w; want %d", n, err, len(h.list)+1)
	}
	return nil
}

func wakes(ctx context.Context, a, b *guard.Guard, _ redis.UniversalClient) error {
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

func receipts(ctx context.Context, a, b *guard.Guard, client redis.UniversalClient) error {
	now := time.Now().Truncate(time.Millisecond)
	old := guard.Receipt{ID: "1", Verifier: "service:calendar", Applied: 3, SeenAt: now.Add(-9 * time.Minute)}
	fresh := guard.Receipt{ID: "1", Verifier: "service:calendar", Applied: 5, SeenAt: now}
	other := guard.Receipt{ID: "2:with:colons", Verifier: "agent:tool%3A", Applied: 0, SeenAt: now.Add(time.Second)}
	// Another verifier may choose the same ID: it does not speak for the first.
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
	keys, err := client.Keys(ctx, "{acme}:revoked:receipts:*").Result()
	if err != nil || len(keys) == 0 {
		return fmt.Errorf("receipts are kept under %q, %w", keys, err)
	}
	for _, k := range keys {
		if ttl, err := client.PTTL(ctx, k).Result(); err != nil || ttl <= 0 || ttl > 30*time.Minute {
			return fmt.Errorf("receipts live for %v, %w", ttl, err)
		}
	}
	return nil
}

func listKeys(ctx context.Context, g, _ *guard.Guard, client redis.UniversalClient) error {
	h, err := some(ctx, g)
	if err != nil {
		return err
	}
	if err := g.Republish(ctx, tenant, h.list, h.last()); err != nil {
		return err
	}
	keys, err := client.Keys(ctx, "*").Result()
	slices.Sort(keys)
	if err != nil || !slices.Equal(keys, []string{eventsKey, listKey}) {
		return fmt.Errorf("keys are %q, %w", keys, err)
	}
	if ttl, err := client.PTTL(ctx, listKey).Result(); err != nil || ttl != -1 {
		return fmt.Errorf("the list lives for %v, %w: it must not be evicted as what may go", ttl, err)
	}
	stranger := &history{}
	return errors.Join(
		expect("another tenant's first", g.Publish(ctx, "globex", stranger.add(delegation.BanToken, "x", time.Time{})), ""),
		audited(ctx, "this tenant", g, h, true))
}
