package guardtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
)

// onRedis makes a check of two instances and of what is in Redis.
func onRedis(run func(ctx context.Context, a, b *guard.Guard, client redis.UniversalClient) error) func(context.Context, guard.Config) error {
	return func(ctx context.Context, store guard.Config) error {
		return run(ctx, guard.New(store), guard.New(store), store.Client)
	}
}

// RedisChecks are what a Redis must pass besides Checks. It was made with guard.Dial, or like it.
var RedisChecks = []Check{
	{"a lost script is loaded again", onRedis(lostScript)},
	{"a foreign value under our key admits nothing", onRedis(foreignValue)},
	{"every key belongs to its tenant and expires", onRedis(keysExpire)},
	{"nonces expire", onRedis(noncesExpire)},
	{"lists and events have their layout", onRedis(layout)},
	{"the hash agrees with the revocations", onRedis(hashAgrees)},
	{"a resumed agent's fields", onRedis(resumedHash)},
	{"what is wrong is noticed and mended", onRedis(mended)},
	{"who rebuilds keeps others out for a while", onRedis(claimed)},
	{"readers see the old lists or the new ones", onRedis(oldOrNew)},
	{"receipts expire", onRedis(receiptsExpire)},
	{"keys of the lists belong to their tenant", onRedis(listKeys)},
	{"a damaged witness is none", onRedis(damagedWitness)},
}

const listKey, eventsKey, rebuildingKey = "{acme}:revoked:list", "{acme}:revoked:events", "{acme}:revoked:rebuilding"

func lostScript(ctx context.Context, g, _ *guard.Guard, client redis.UniversalClient) error {
	two := guard.Limit{Rate: 1, Burst: 2}
	return errors.Join(
		expect("before", g.Admit(ctx, tenant, caller, 1, two), ""),
		client.ScriptFlush(ctx).Err(),
		expect("after", g.Admit(ctx, tenant, caller, 1, two), ""),
		expect("the bucket is still known", g.Admit(ctx, tenant, caller, 1, two), delegation.RateLimited),
	)
}

func foreignValue(ctx context.Context, g, _ *guard.Guard, client redis.UniversalClient) error {
	one := guard.Limit{Rate: 1, Burst: 1}
	seen := use("i", "k", "id")
	if err := g.Admit(ctx, tenant, caller, 1, one, seen...); err != nil {
		return err
	}
	keys, err := client.Keys(ctx, "*").Result()
	if err != nil || len(keys) != 2 {
		return fmt.Errorf("keys %q: %w", keys, err)
	}
	for _, k := range keys {
		if err := errors.Join(client.Del(ctx, k).Err(), client.LPush(ctx, k, "foreign").Err()); err != nil {
			return err
		}
	}
	return errors.Join(
		expect("a list where the rate is", g.Admit(ctx, tenant, caller, 1, one), delegation.DependencyDown),
		expect("a list where the replay is", note(ctx, g, tenant, seen), delegation.AssertionReplayed),
	)
}

func keysExpire(ctx context.Context, g, _ *guard.Guard, client redis.UniversalClient) error {
	limit := guard.Limit{Rate: 2, Burst: 100}
	if err := g.Admit(ctx, tenant, caller, 50, limit, use("i", "k", "id")...); err != nil {
		return err
	}
	keys, err := client.Keys(ctx, "*").Result()
	if err != nil {
		return err
	}
	for _, want := range []struct {
		prefix string
		ttl    time.Duration
	}{{"{acme}:rate:", 25 * time.Second}, {"{acme}:replay:", time.Minute}} {
		i := slices.IndexFunc(keys, func(k string) bool { return strings.HasPrefix(k, want.prefix) })
		if i < 0 || len(keys) != 2 {
			return fmt.Errorf("keys %q, want two, and one that starts with %s", keys, want.prefix)
		}
		ttl, err := client.PTTL(ctx, keys[i]).Result()
		if err != nil {
			return err
		}
		if ttl <= want.ttl-10*time.Second || ttl > want.ttl {
			return fmt.Errorf("key %s lives for %v, want %v", keys[i], ttl, want.ttl)
		}
	}
	return nil
}

func noncesExpire(ctx context.Context, a, _ *guard.Guard, client redis.UniversalClient) error {
	if _, err := a.Nonces(ctx, tenant); err != nil {
		return err
	}
	keys, err := client.Keys(ctx, "{acme}:nonce:*").Result()
	if err != nil || len(keys) == 0 {
		return fmt.Errorf("nonces are kept under %q, %w", keys, err)
	}
	for _, k := range keys {
		if ttl, err := client.PTTL(ctx, k).Result(); err != nil || ttl <= 0 || ttl > 4*time.Minute {
			return fmt.Errorf("nonces live for %v, %w", ttl, err)
		}
	}
	return nil
}

// layout is what docs/revocation.md promises to other services: the hash and the stream of events.
func layout(ctx context.Context, a, b *guard.Guard, client redis.UniversalClient) error {
	h := &history{gap: 4}
	soon := time.Now().Add(time.Hour)
	first, second, third := h.add(delegation.BanToken, "01A", soon), h.add(delegation.CutSubject, "user:alice", soon), h.add(delegation.BanKey, "thumb", time.Time{})
	if err := errors.Join(
		a.Publish(ctx, tenant, first), b.Publish(ctx, tenant, first), b.Publish(ctx, tenant, second), a.Publish(ctx, tenant, first), a.Publish(ctx, tenant, third),
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

func hashAgrees(ctx context.Context, a, b *guard.Guard, client redis.UniversalClient) error {
	return agreeOnHistory(ctx, a, b, func() (map[string]string, error) { return client.HGetAll(ctx, listKey).Result() })
}

func resumedHash(ctx context.Context, g, _ *guard.Guard, client redis.UniversalClient) error {
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
	return nil
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

func claimed(ctx context.Context, a, b *guard.Guard, client redis.UniversalClient) error {
	h, err := some(ctx, a)
	if err != nil {
		return err
	}
	again := h.list[0]
	next := h.add(delegation.BanChain, "t", time.Time{})
	old := h.list[:len(h.list)-1]
	if err := errors.Join(
		client.Set(ctx, rebuildingKey, "another", time.Second).Err(),
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
	// What never ends is no claim.
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

func receiptsExpire(ctx context.Context, a, _ *guard.Guard, client redis.UniversalClient) error {
	now := time.Now()
	if err := a.Saw(ctx, tenant, []guard.Receipt{{ID: "1", Verifier: "service:calendar", Applied: 5, SeenAt: now}, {ID: "3", Verifier: "service:gone", Applied: 9, SeenAt: now.Add(-11 * time.Minute)}}); err != nil {
		return err
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
	return nil
}

func damagedWitness(ctx context.Context, g, _ *guard.Guard, client redis.UniversalClient) error {
	w := guard.Witness{Number: 2, ID: "c", Seq: 3, Leaf: [32]byte{3}}
	if err := g.Testify(ctx, map[string]guard.Witness{tenant: w}); err != nil {
		return err
	}
	if known, err := g.Witness(ctx, tenant); err != nil || !known.There {
		return fmt.Errorf("the witness: %+v: %w", known, err)
	}
	if err := client.HSet(ctx, "{acme}:ledger:witness", "seq", "-1").Err(); err != nil {
		return err
	}
	if known, err := g.Witness(ctx, tenant); err != nil || known.There {
		return fmt.Errorf("a damaged witness: %+v: %w", known, err)
	}
	return nil
}
