package exchange_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/testservers"
)

const (
	answerWithin  = 2 * time.Second // the right answer, or unavailable
	serviceWithin = 5 * time.Second // full service, once Redis is back
	revokedList   = "{default}:revoked:list"
)

// relay is the address of Redis for the instances. It forwards to one server or another, with a
// delay if one is set.
type relay struct {
	watched  atomic.Pointer[watched]
	listener net.Listener
	to       atomic.Value // string
	delay    atomic.Int64
	done     chan struct{}
	all      sync.WaitGroup

	mu   sync.Mutex
	open map[net.Conn]bool
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: l, done: make(chan struct{}), open: make(map[net.Conn]bool)}
	r.to.Store(to)
	r.all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.all.Go(func() { r.carry(c) })
		}
	})
	t.Cleanup(func() {
		close(r.done)
		_ = l.Close()
		r.cut()
		r.all.Wait()
	})
	return r
}

func (r *relay) url() string { return "redis://" + r.listener.Addr().String() }

// carry connects a connection with one of its own to the server.
func (r *relay) carry(c net.Conn) {
	s, err := net.Dial("tcp", r.to.Load().(string))
	if err != nil {
		_ = c.Close()
		return
	}
	r.mu.Lock()
	r.open[c], r.open[s] = true, true
	r.mu.Unlock()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{c, s}, {s, c}} {
		both.Go(func() {
			_, _ = io.Copy(slowly{way[0], r}, way[1])
			_, _ = c.Close(), s.Close()
		})
	}
	both.Wait()
	r.mu.Lock()
	delete(r.open, c)
	delete(r.open, s)
	r.mu.Unlock()
}

// watched is a command, and a function to run when one passes.
type watched struct {
	command []byte
	do      func()
}

// seen runs do whenever the command passes, before it reaches Redis.
func (r *relay) seen(command string, do func()) { r.watched.Store(&watched{[]byte(command), do}) }

// slowly writes after the relay's delay.
type slowly struct {
	io.Writer
	relay *relay
}

func (s slowly) Write(p []byte) (int, error) {
	if w := s.relay.watched.Load(); w != nil && bytes.Contains(bytes.ToLower(p), w.command) {
		w.do()
	}
	if d := time.Duration(s.relay.delay.Load()); d > 0 {
		select {
		case <-time.After(d):
		case <-s.relay.done:
		}
	}
	return s.Writer.Write(p)
}

// cut closes each connection.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.open {
		_ = c.Close()
	}
}

// ward is a fleet of two that follows revocations, with a live chain, a revoked one, and probes
// that use both all the time.
type ward struct {
	*fleet
	*findings
	redis *testservers.RedisServer
	relay *relay
	admin redis.UniversalClient // not through the relay

	lives held
	mu    sync.Mutex
	dead  []held // of revocations that were acknowledged

	probed, unavailable, slowest atomic.Int64
}

func newWard(t *testing.T) *ward {
	t.Helper()
	server := testservers.NewRedis(t)
	v := &ward{findings: &findings{}, redis: server, relay: newRelay(t, server.Addr)}
	v.fleet = newFleet(t, exchangetest.Config{DSN: testservers.Postgres(t), RedisURL: v.relay.url(), Prompt: true}, 2)
	v.admin = redis.NewClient(&redis.Options{Addr: server.Addr})
	t.Cleanup(func() { _ = v.admin.Close() })
	v.crew("ward", 2)
	v.welcome(alice, v.agents()...)
	v.lives = v.issue(t)
	ctx, stop := context.WithCancel(t.Context())
	var following sync.WaitGroup
	for _, w := range v.instances {
		following.Go(func() {
			if err := w.Engine.Follow(ctx); err != nil {
				v.add("follow: %v", err)
			}
		})
	}
	t.Cleanup(func() { stop(); following.Wait() })
	return v
}

func (v *ward) agents() []delegation.Principal {
	return []delegation.Principal{"agent:wl/ward-0", "agent:wl/ward-1"}
}

// issue makes a chain of two and returns its leaf.
func (v *ward) issue(t *testing.T) held {
	t.Helper()
	agents := v.agents()
	first, err := v.at(0).One(t.Context(), v.byWorkload(t, v.rootOf(t, alice), agents[0], ""))
	if err != nil {
		t.Fatal(err, err.Unwrap())
	}
	leaf, err := v.at(1).One(t.Context(), v.byWorkload(t, first.AccessToken, agents[0], agents[1]))
	if err != nil {
		t.Fatal(err, err.Unwrap())
	}
	return held{grant: leaf, holder: agents[1]}
}

// kill revokes an ancestor of the token, and repeats while the answer is unavailable.
func (v *ward) kill(t *testing.T, h held) {
	t.Helper()
	target := delegation.Target{Kind: delegation.BanToken, ID: h.grant.Claims.Delegation.Hops[0].ID}
	for i, deadline := 0, time.Now().Add(30*time.Second); ; i++ {
		_, err := v.revoke(t, v.at(i), target)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			v.add("a revocation: %v", err)
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.dead = append(v.dead, h)
}

// probe makes each kind of call to the instance once, and finds what is wrong or late.
func (v *ward) probe(t *testing.T, w *exchangetest.World) (available bool) {
	v.mu.Lock()
	dead := v.dead
	v.mu.Unlock()
	available = true
	ask := func(what string, want bool, question func() (bool, error)) {
		began := time.Now()
		got, err := question()
		took := time.Since(began)
		v.probed.Add(1)
		for slowest := v.slowest.Load(); int64(took) > slowest && !v.slowest.CompareAndSwap(slowest, int64(took)); slowest = v.slowest.Load() {
		}
		if took > answerWithin {
			v.add("%s took %v", what, took)
		}
		switch refusal := delegation.AsError(err); {
		case refusal != nil && refusal.Reason == delegation.DependencyDown:
			v.unavailable.Add(1)
			available = false
		case refusal != nil:
			v.add("%s: %v (cause: %v)", what, refusal, refusal.Unwrap())
		case got != want:
			v.add("%s: %t, want %t", what, got, want)
		}
	}
	exchanged := func(h held) (bool, error) {
		_, refusal := w.One(t.Context(), v.byWorkload(t, h.grant.AccessToken, h.holder, ""))
		if refusal == nil || takenBack(refusal) {
			return refusal == nil, nil
		}
		return false, refusal
	}
	for _, h := range dead {
		ask("introspection of a revoked token", false, func() (bool, error) { return v.introspect(t, w, h.grant.AccessToken) })
		ask("exchange of a revoked token", false, func() (bool, error) { return exchanged(h) })
	}
	ask("introspection of a live token", true, func() (bool, error) { return v.introspect(t, w, v.lives.grant.AccessToken) })
	ask("exchange of a live token", true, func() (bool, error) { return exchanged(v.lives) })
	return available
}

// listsRight reads Redis itself, not through the relay.
func (v *ward) listsRight(t *testing.T, g *guard.Guard) bool {
	live, last, err := v.at(0).Ledger.Live(t.Context(), "default")
	if err != nil {
		return false
	}
	right, err := g.Audit(t.Context(), "default", live, last)
	return err == nil && right
}

// await polls until so is true, at most for within.
func await(within time.Duration, so func() bool) (time.Duration, bool) {
	began := time.Now()
	for {
		if so() {
			return time.Since(began), true
		}
		if time.Since(began) > within {
			return within, false
		}
		<-time.After(20 * time.Millisecond)
	}
}

// TestRedisFaults: in each fault of Redis, revoked tokens stay revoked at each instant, answers
// come in time, and the lists are right again soon after.
func TestRedisFaults(t *testing.T) {
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		before func(*testing.T, *ward) // before the last of the revocations
		fault  func(*testing.T, *ward)
		heal   func(*testing.T, *ward)
	}{
		"FLUSHALL": {
			fault: func(t *testing.T, v *ward) { must(t, v.admin.FlushAll(t.Context()).Err()) },
		},
		"killed, and empty afterwards": {
			fault: func(_ *testing.T, v *ward) { v.redis.Kill() },
			heal:  func(_ *testing.T, v *ward) { v.redis.Start() },
		},
		"yesterday's snapshot": {
			before: func(t *testing.T, v *ward) { must(t, v.admin.Save(t.Context()).Err()) },
			fault:  func(_ *testing.T, v *ward) { v.redis.Kill() },
			heal:   func(_ *testing.T, v *ward) { v.redis.Start() },
		},
		"the list deleted": {
			fault: func(t *testing.T, v *ward) { must(t, v.admin.Del(t.Context(), revokedList).Err()) },
		},
		"one field deleted": {
			fault: func(t *testing.T, v *ward) {
				must(t, v.admin.HDel(t.Context(), revokedList, "token:"+v.dead[0].grant.Claims.Delegation.Hops[0].ID).Err())
			},
		},
		"another type in the list's place": {
			fault: func(t *testing.T, v *ward) { must(t, v.admin.Set(t.Context(), revokedList, "0", 0).Err()) },
		},
		"failover to a replica that lacks the last writes": {
			before: func(t *testing.T, v *ward) {
				replica := testservers.NewRedis(t)
				client := redis.NewClient(&redis.Options{Addr: replica.Addr})
				t.Cleanup(func() { _ = client.Close() })
				host, port, _ := strings.Cut(v.redis.Addr, ":")
				must(t, v.admin.ConfigSet(t.Context(), "repl-diskless-sync-delay", "0").Err())
				must(t, client.ReplicaOf(t.Context(), host, port).Err())
				if _, synced := await(20*time.Second, func() bool {
					n, err := client.Exists(t.Context(), revokedList).Result()
					return err == nil && n == 1
				}); !synced {
					t.Fatal("the replica has nothing")
				}
				must(t, client.ReplicaOf(t.Context(), "NO", "ONE").Err())
				v.redis, v.admin = replica, client
			},
			fault: func(_ *testing.T, v *ward) { v.relay.cut() },
			heal: func(_ *testing.T, v *ward) {
				v.relay.to.Store(v.redis.Addr)
				v.relay.cut()
			},
		},
		"five seconds of latency": {
			fault: func(_ *testing.T, v *ward) { v.relay.delay.Store(int64(5 * time.Second)) },
			heal: func(_ *testing.T, v *ward) {
				v.relay.delay.Store(0)
				v.relay.cut()
			},
		},
		"it answers nothing": {
			fault: func(_ *testing.T, v *ward) { v.redis.Pause() },
			heal:  func(_ *testing.T, v *ward) { v.redis.Resume() },
		},
		"out of memory, with eviction": {
			fault: func(t *testing.T, v *ward) {
				must(t, v.admin.ConfigSet(t.Context(), "maxmemory-policy", "allkeys-random").Err())
				must(t, v.admin.ConfigSet(t.Context(), "maxmemory", "1mb").Err())
			},
			heal: func(t *testing.T, v *ward) { must(t, v.admin.ConfigSet(t.Context(), "maxmemory", "0").Err()) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := newWard(t)
			v.kill(t, v.issue(t))
			g := guardAt(t, "redis://"+v.redis.Addr)
			if _, right := await(serviceWithin, func() bool { return v.listsRight(t, g) }); !right {
				t.Fatal("the lists are not right to begin with")
			}
			if c.before != nil {
				c.before(t, v)
			}
			next := []held{v.issue(t), v.issue(t)}
			v.kill(t, next[0])

			stop := make(chan struct{})
			var probing sync.WaitGroup
			for _, w := range v.instances {
				probing.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							v.probe(t, w)
						}
					}
				})
			}
			c.fault(t, v)
			killed := make(chan struct{})
			go func() { defer close(killed); v.kill(t, next[1]) }()
			<-time.After(time.Second)
			if c.heal != nil {
				c.heal(t, v)
			}
			g = guardAt(t, "redis://"+v.redis.Addr) // perhaps another server
			back := time.Now()
			took, right := await(serviceWithin, func() bool { return v.listsRight(t, g) })
			if !right {
				t.Errorf("the lists are not right %v after Redis is back", serviceWithin)
			}
			close(stop)
			probing.Wait()
			<-killed
			_, full := await(serviceWithin-time.Since(back), func() bool { return v.probe(t, v.at(0)) && v.probe(t, v.at(1)) })
			service := time.Since(back)
			if !full {
				t.Errorf("no full service %v after Redis is back", service)
			}
			for i, w := range v.instances {
				if err := w.Engine.Ready(t.Context(), "default"); err != nil {
					t.Errorf("instance %d: %v", i, err)
				}
			}
			v.report(t)
			t.Logf("lists right after %v, full service %v after Redis was back; %d answers, %d of them unavailable, the slowest after %v",
				took.Round(time.Millisecond), service.Round(time.Millisecond), v.probed.Load(), v.unavailable.Load(), time.Duration(v.slowest.Load()).Round(time.Millisecond))
		})
	}
}

// TestRedisFaultsAreSeen is the control: the probes find an instance that receives no revocation,
// and without followers the lists are not mended.
func TestRedisFaultsAreSeen(t *testing.T) {
	v := newWard(t)
	v.kill(t, v.issue(t))
	v.splitOff(t)
	v.probe(t, v.instances[2])
	if len(v.all) == 0 {
		t.Error("an instance on another ledger was not noticed")
	}

	w, n, chain := hospital(t)
	if _, refusal := take(w, t, responder, delegation.Target{Kind: delegation.BanToken, ID: chain[0].Claims.ID}); refusal != nil {
		t.Fatal(refusal)
	}
	live, last, err := w.Ledger.Live(t.Context(), n.Name)
	if err != nil {
		t.Fatal(err)
	}
	if right, err := quietGuard(t).Audit(t.Context(), n.Name, live, last); right || err != nil {
		t.Errorf("an empty Redis passes for right: %t, %v", right, err)
	}
}

// TestRedisAheadOfTheLedger: if Redis has more than the ledger, one of them is from a backup, or of
// another deployment. The instance is not ready, and does not change Redis.
func TestRedisAheadOfTheLedger(t *testing.T) {
	server := testservers.NewRedis(t)
	f := newFleet(t, exchangetest.Config{RedisURL: server.URL()}, 1)
	f.crew("ahead", 1)
	if _, err := f.revoke(t, f.at(0), delegation.Target{Kind: delegation.BanToken, ID: "01ARZ3NDEKTSV4RRFFQ69G5FAV"}); err != nil {
		t.Fatal(err)
	}
	g := guardAt(t, server.URL())
	head, err := g.PublishedHead(t.Context(), "default")
	if err != nil || head == 0 {
		t.Fatalf("published up to %d, %v", head, err)
	}
	empty := exchangetest.New(t, exchangetest.Config{}) // a ledger that has lost everything
	restored, err := exchange.New(exchange.Config{Tenants: f.at(0).Engine.Tenants(), Ledger: empty.Ledger, Guard: g})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var following sync.WaitGroup
	for _, e := range []*exchange.Engine{restored, f.at(0).Engine} {
		following.Go(func() {
			if err := e.Follow(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	if _, ready := await(serviceWithin, func() bool { return f.at(0).Engine.Ready(t.Context(), "default") == nil }); !ready {
		t.Error("the instance whose ledger is right is not ready")
	}
	if _, said := await(serviceWithin, func() bool {
		refusal := delegation.AsError(restored.Ready(t.Context(), "default"))
		return refusal != nil && strings.Contains(refusal.Unwrap().Error(), "redis knows")
	}); !said {
		t.Errorf("an instance whose ledger is behind Redis: %v", restored.Ready(t.Context(), "default"))
	}
	stop()
	following.Wait()
	if now, err := g.PublishedHead(t.Context(), "default"); err != nil || now != head {
		t.Errorf("the lists were changed: %d, %v", now, err)
	}
}
