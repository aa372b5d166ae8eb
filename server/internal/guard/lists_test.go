package guard_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/guard/guardtest"
	"deputy.example/deputy/server/internal/testservers"
)

// mutant runs a changed script in the place of ours.
type mutant struct{ script, was, is string }

func (mutant) DialHook(next redis.DialHook) redis.DialHook { return next }
func (mutant) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (m mutant) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c, ok := cmd.(*redis.Cmd)
		if !ok || cmd.Name() != "evalsha" || cmd.Args()[1] != redis.NewScript(m.script).Hash() {
			return next(ctx, cmd)
		}
		changed := redis.NewCmd(ctx, append([]any{"eval", strings.ReplaceAll(m.script, m.was, m.is)}, cmd.Args()[2:]...)...)
		err := next(ctx, changed)
		c.SetVal(changed.Val())
		c.SetErr(err)
		return err
	}
}

// torn writes a rebuilt list into the old one's place from the first field on.
type torn struct{}

func (torn) DialHook(next redis.DialHook) redis.DialHook { return next }

func (torn) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if c, ok := cmd.(*redis.Cmd); ok && cmd.Name() == "evalsha" && cmd.Args()[1] == redis.NewScript(guard.SwitchScript).Hash() {
			c.SetVal(int64(1))
			return nil
		}
		return next(ctx, cmd)
	}
}

func (torn) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			if name, ok := cmd.Args()[1].(string); ok && strings.HasPrefix(name, "{acme}:revoked:next:") {
				cmd.Args()[1] = "{acme}:revoked:list"
			}
		}
		return next(ctx, cmds)
	}
}

// TestListProtections switches one protection off after the other; a check must notice each.
func TestListProtections(t *testing.T) {
	for _, c := range []struct {
		check string
		off   redis.Hook
	}{
		{"revocations are published in order", mutant{guard.PublishScript, "if head ~= prev then", "if false then"}},
		{"revocations are published in order", mutant{guard.PublishScript, "if head >= seq then", "if false then"}},
		{"lists and events have their layout", mutant{guard.PublishScript, "redis.call('XADD'", "local _ = ('XADD'"}},
		{"the lists agree with the revocations", mutant{guard.PublishScript, "ends = math.max(e, ends)", ""}},
		{"the lists agree with the revocations", mutant{guard.PublishScript, "e == 0 or ends == 0", "e == 0"}},
		{"a resumed agent is cut off at its suspension", mutant{guard.PublishScript, "seq, field = s, resumed", "field = resumed"}},
		{"a resumed agent is cut off at its suspension", mutant{guard.PublishScript, "redis.call('HDEL', list, suspended)", ""}},
		{"what is wrong is noticed and mended", mutant{guard.SwitchScript, "redis.call('UNLINK', KEYS[2])", ""}},
		{"lists that are further are not replaced", mutant{guard.SwitchScript, "result = -3", ""}},
		{"who rebuilds keeps others out for a while", mutant{guard.PublishScript, "redis.call('EXISTS', KEYS[3]) == 1", "false"}},
		{"who rebuilds keeps others out for a while", mutant{guard.ClaimScript, "return 0", ""}},
		{"who rebuilds keeps others out for a while", mutant{guard.ClaimScript, "left > 0 and", ""}},
		{"who rebuilds keeps others out for a while", mutant{guard.SwitchScript, "redis.call('DEL', KEYS[3])", ""}},
		{"readers see the old lists or the new ones", torn{}},
		{"a publication wakes every instance", mutant{guard.PublishScript, "redis.call('PUBLISH', ARGV[6], ARGV[1])", ""}},
		{"keys of the lists belong to their tenant", mutant{guard.SwitchScript, "redis.call('PERSIST', list)", ""}},
	} {
		name := c.check
		if m, ok := c.off.(mutant); ok {
			name += " without " + m.was
			if !strings.Contains(m.script, m.was) {
				t.Errorf("%s: the script has no such thing", name)
			}
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := dial(t, testservers.Redis(t))
			client.AddHook(c.off)
			for _, check := range slices.Concat(guardtest.Checks, guardtest.RedisChecks) {
				if check.Name != c.check {
					continue
				}
				if err := check.Run(t.Context(), guard.Config{Client: client}); err == nil {
					t.Error("not noticed")
				}
				return
			}
			t.Error("no such check")
		})
	}
}

// revocations are n live bans, numbered by twos.
func revocations(n int) (list []delegation.Revocation, last uint64) {
	until := time.Now().Add(24 * time.Hour)
	list = make([]delegation.Revocation, n)
	for i := range list {
		list[i] = delegation.Revocation{Seq: last + 2, Prev: last, At: time.Now(), Until: until,
			Target: delegation.Target{Kind: delegation.BanToken, ID: fmt.Sprintf("01K%023d", i)}}
		last += 2
	}
	return list, last
}

// lossy is a Redis with published lists, and what the ledger would say.
type lossy struct {
	*testing.T
	server *testservers.RedisServer
	client redis.UniversalClient
	guard  *guard.Guard
	live   []delegation.Revocation
	last   uint64
}

func newLossy(t *testing.T) *lossy {
	l := &lossy{T: t, server: testservers.NewRedis(t)}
	l.client = dial(t, l.server.Addr)
	l.guard = guard.New(guard.Config{Client: l.client})
	l.live, l.last = revocations(500)
	l.must(l.guard.Republish(t.Context(), "acme", l.live, l.last))
	l.publish(1)
	return l
}

func (l *lossy) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// publish makes n more revocations.
func (l *lossy) publish(n int) {
	l.Helper()
	for range n {
		r := delegation.Revocation{Seq: l.last + 1, Prev: l.last, At: time.Now(), Target: delegation.Target{Kind: delegation.BanKey, ID: fmt.Sprint(l.last)}}
		l.live, l.last = append(l.live, r), r.Seq
		l.must(l.guard.Publish(l.Context(), "acme", r))
	}
}

// eventually tries until it works, for longer than any freeze.
func (l *lossy) eventually(try func() error) {
	l.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			l.Fatal(err)
		}
	}
}

// mend waits until Redis answers, and then wants the loss noticed, mended, and publishing to go on.
func (l *lossy) mend() {
	l.Helper()
	wantRecovery(l.T, l.guard)
	start := time.Now()
	ok, err := l.guard.Audit(l.Context(), "acme", l.live, l.last)
	if err != nil || ok {
		l.Fatalf("the audit after the loss returns %t, %v", ok, err)
	}
	next := delegation.Revocation{Seq: l.last + 1, Prev: l.last, Target: delegation.Target{Kind: delegation.BanChain, ID: "t"}}
	if err := l.guard.Publish(l.Context(), "acme", next); !errors.Is(err, guard.ErrGap) {
		l.Errorf("publishing after the loss: %v, want ErrGap", err)
	}
	l.must(l.guard.Republish(l.Context(), "acme", l.live, l.last))
	l.publish(2)
	if ok, err := l.guard.Audit(l.Context(), "acme", l.live, l.last); err != nil || !ok {
		l.Errorf("the audit after mending returns %t, %v", ok, err)
	}
	if took := time.Since(start); took > 5*time.Second {
		l.Errorf("mending took %v", took)
	}
}

func TestListsAreLost(t *testing.T) {
	for name, lose := range map[string]func(*lossy){
		"nothing":  nil,
		"FLUSHALL": func(l *lossy) { l.must(l.client.FlushAll(l.Context()).Err()) },
		"kill -9 and empty restart": func(l *lossy) {
			l.server.Kill()
			l.server.Start()
		},
		"yesterday's snapshot": func(l *lossy) {
			l.must(l.client.Save(l.Context()).Err())
			l.publish(3)
			l.server.Kill()
			l.server.Start()
			wantRecovery(l.T, l.guard)
			if head, err := l.guard.PublishedHead(l.Context(), "acme"); err != nil || head != l.last-3 {
				l.Fatalf("the snapshot's head is %d, %v; want %d", head, err, l.last-3)
			}
		},
		"eviction": func(l *lossy) { l.evict() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLossy(t)
			if ok, err := l.guard.Audit(t.Context(), "acme", l.live, l.last); err != nil || !ok {
				t.Fatalf("the audit before the loss returns %t, %v", ok, err)
			}
			if lose != nil {
				lose(l)
				l.mend()
			}
		})
	}
}

// evict fills Redis until the lists are evicted: all of them at once, since they are one key.
func (l *lossy) evict() {
	for setting, value := range map[string]string{"maxmemory": "4mb", "maxmemory-policy": "allkeys-lru", "maxmemory-samples": "20"} {
		l.must(l.client.ConfigSet(l.Context(), setting, value).Err())
	}
	padding := strings.Repeat("x", 10_000)
	for i := 0; ; i++ {
		if i == 5000 {
			l.Fatal("the lists are not evicted, so this shows nothing")
		}
		l.must(l.client.Set(l.Context(), fmt.Sprintf("padding:%d", i), padding, 0).Err())
		n, err := l.client.HLen(l.Context(), "{acme}:revoked:list").Result()
		l.must(err)
		switch n {
		case 502:
		case 0:
			return
		default:
			l.Fatalf("%d fields are left: readers would take what is missing for not revoked", n)
		}
	}
}

// TestOutOfMemory has a Redis that takes no more writes: publishing fails as a whole.
func TestOutOfMemory(t *testing.T) {
	l := newLossy(t)
	l.must(l.client.ConfigSet(t.Context(), "maxmemory", "1mb").Err())
	next := delegation.Revocation{Seq: l.last + 1, Prev: l.last, Target: delegation.Target{Kind: delegation.BanChain, ID: "t"}}
	for name, err := range map[string]error{
		"Publish":   l.guard.Publish(t.Context(), "acme", next),
		"Republish": l.guard.Republish(t.Context(), "acme", l.live, l.last),
		"Saw":       l.guard.Saw(t.Context(), "acme", []guard.Receipt{{ID: "1", SeenAt: time.Now()}}),
	} {
		if e := delegation.AsError(err); e == nil || e.Reason != delegation.DependencyDown || errors.Is(err, guard.ErrGap) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if ok, err := l.guard.Audit(t.Context(), "acme", l.live, l.last); err != nil || !ok {
		t.Errorf("the lists after what failed: %t, %v", ok, err)
	}
	l.must(l.client.ConfigSet(t.Context(), "maxmemory", "0").Err())
	l.publish(1)
}

// TestListsWithoutRedis wants every call answered within its bound, whatever Redis does.
func TestListsWithoutRedis(t *testing.T) {
	for name, fault := range map[string]struct {
		begin, end func(*testservers.RedisServer)
	}{
		"stopped": {(*testservers.RedisServer).Stop, (*testservers.RedisServer).Start},
		"paused":  {(*testservers.RedisServer).Pause, (*testservers.RedisServer).Resume},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLossy(t)
			woken := l.guard.Wake(t.Context(), "acme")
			select {
			case <-woken:
			case <-time.After(5 * time.Second):
				t.Fatal("not connected")
			}
			fault.begin(l.server)
			for name, call := range map[string]func() error{
				"Publish": func() error {
					return l.guard.Publish(t.Context(), "acme", delegation.Revocation{Seq: l.last + 1, Prev: l.last, Target: delegation.Target{Kind: delegation.CutTenant}})
				},
				"PublishedHead": func() error { _, err := l.guard.PublishedHead(t.Context(), "acme"); return err },
				"Republish":     func() error { return l.guard.Republish(t.Context(), "acme", l.live, l.last) },
				"Audit": func() error {
					ok, err := l.guard.Audit(t.Context(), "acme", l.live, l.last)
					if ok {
						t.Error("an audit without Redis is fine")
					}
					return err
				},
				"Saw":      func() error { return l.guard.Saw(t.Context(), "acme", []guard.Receipt{{ID: "1", SeenAt: time.Now()}}) },
				"Receipts": func() error { _, err := l.guard.Receipts(t.Context(), "acme"); return err },
			} {
				start := time.Now()
				err := call()
				if e := delegation.AsError(err); e == nil || e.Reason != delegation.DependencyDown {
					t.Errorf("%s: %v", name, err)
				}
				if took := time.Since(start); took > 2*time.Second {
					t.Errorf("%s took %v", name, took)
				}
			}
			fault.end(l.server)
			if name == "paused" { // which may end before the connection was given up
				// What was sent meanwhile is carried out now: the answers may be missing for a moment, the
				// claim of the unfinished rebuild lasts three seconds, and any call may have moved the
				// head. The next publisher reads it first.
				l.eventually(func() error {
					head, err := l.guard.PublishedHead(t.Context(), "acme")
					if err != nil {
						return err
					}
					return l.guard.Publish(t.Context(), "acme", delegation.Revocation{Seq: head + 1, Prev: head, Target: delegation.Target{Kind: delegation.BanChain, ID: "t"}})
				})
			}
			select {
			case <-woken:
			case <-time.After(10 * time.Second):
				t.Error("no pulse after the connection was there again")
			}
		})
	}
}

// TestAheadOfTheLedger is what a ledger restored from a backup looks like.
func TestAheadOfTheLedger(t *testing.T) {
	l := newLossy(t)
	restored := l.live[:len(l.live)-1]
	last := restored[len(restored)-1].Seq
	if head, err := l.guard.PublishedHead(t.Context(), "acme"); err != nil || head <= last {
		t.Errorf("the head is %d, %v; want more than %d", head, err, last)
	}
	if err := l.guard.Republish(t.Context(), "acme", restored, last); !errors.Is(err, guard.ErrAhead) {
		t.Errorf("going back: %v, want ErrAhead", err)
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, n := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("live=%d", n), func(b *testing.B) {
			g := guard.New(guard.Config{Client: dial(b, testservers.Redis(b))})
			live, last := revocations(n)
			if err := g.Republish(b.Context(), "acme", live, last); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				r := delegation.Revocation{Seq: last + 1, Prev: last, At: time.Now(), Until: time.Now().Add(time.Hour),
					Target: delegation.Target{Kind: delegation.BanToken, ID: fmt.Sprint(last)}}
				if err := g.Publish(b.Context(), "acme", r); err != nil {
					b.Fatal(err)
				}
				last = r.Seq
			}
		})
	}
}

// BenchmarkRebuild also reports how long readers ever waited meanwhile.
func BenchmarkRebuild(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		live, last := revocations(n)
		setup := func(b *testing.B) *guard.Guard {
			g := guard.New(guard.Config{Client: dial(b, testservers.Redis(b))})
			if err := g.Republish(b.Context(), "acme", live, last); err != nil {
				b.Fatal(err)
			}
			runtime.GC()
			return g
		}
		b.Run(fmt.Sprintf("republish/live=%d", n), func(b *testing.B) {
			g := setup(b)
			done, slowest := make(chan struct{}), make(chan time.Duration)
			go func() {
				var most time.Duration
				for {
					select {
					case <-done:
						slowest <- most
						return
					default:
					}
					start := time.Now()
					if err := g.Ready(b.Context()); err != nil {
						b.Error(err)
					}
					most = max(most, time.Since(start))
				}
			}()
			for b.Loop() {
				if err := g.Republish(b.Context(), "acme", live, last); err != nil {
					b.Fatal(err)
				}
			}
			close(done)
			b.ReportMetric(float64((<-slowest).Microseconds())/1000, "ms-slowest-read")
		})
		b.Run(fmt.Sprintf("audit/live=%d", n), func(b *testing.B) {
			g := setup(b)
			for b.Loop() {
				if ok, err := g.Audit(b.Context(), "acme", live, last); err != nil || !ok {
					b.Fatal(ok, err)
				}
			}
		})
	}
}

// TestListsOfAClockThatIsAhead has an instance make lists whose clock shows that everything has ended.
func TestListsOfAClockThatIsAhead(t *testing.T) {
	client := dial(t, testservers.Redis(t))
	ahead := guard.New(guard.Config{Client: client, Now: func() time.Time { return time.Now().Add(48 * time.Hour) }})
	live := []delegation.Revocation{{
		Seq: 1, At: time.Now(), Until: time.Now().Add(time.Hour), Target: delegation.Target{Kind: delegation.BanToken, ID: "01A"},
	}}
	if err := ahead.Republish(t.Context(), "acme", live, 1); err != nil {
		t.Fatal(err)
	}
	if right, err := guard.New(guard.Config{Client: client}).Audit(t.Context(), "acme", live, 1); err != nil || !right {
		t.Errorf("a revocation in force is in no list: %t, %v", right, err)
	}
}
