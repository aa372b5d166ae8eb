package guard_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/guard/guardtest"
	"deputy.example/deputy/server/internal/testservers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func dial(t testing.TB, addr string) redis.UniversalClient {
	t.Helper()
	client, err := guard.Dial("redis://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func TestConformance(t *testing.T) {
	guardtest.Run(t, slices.Concat(guardtest.Checks, guardtest.RedisChecks), func(t *testing.T) guard.Config {
		return guard.Config{Client: dial(t, testservers.Redis(t))}
	})
}

func TestConformanceOfMemory(t *testing.T) {
	guardtest.Run(t, guardtest.Checks, func(*testing.T) guard.Config { return guard.Config{Memory: guard.NewMemory()} })
}

// amnesia is the protection switched off: Redis answers every question as if it were the first.
type amnesia struct{}

func (amnesia) DialHook(next redis.DialHook) redis.DialHook { return next }

func (amnesia) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if c, ok := cmd.(*redis.Cmd); ok && cmd.Name() == "evalsha" {
			c.SetVal(int64(0))
			return nil
		}
		return next(ctx, cmd)
	}
}

func (amnesia) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(_ context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			switch c := cmd.(type) {
			case *redis.StatusCmd:
				c.SetVal("OK")
			case *redis.Cmd:
				c.SetVal(int64(0))
			}
		}
		return nil
	}
}

// TestConformanceNoticesALeak is the suite's negative control.
func TestConformanceNoticesALeak(t *testing.T) {
	passes := map[string]bool{ // what does not depend on Redis' memory
		"a cost beyond the burst is told apart":   true,
		"a limit that is not one admits nothing":  true,
		"uses that only look alike are different": true,
		"what has expired is refused":             true,
	}
	addr := testservers.Redis(t)
	for _, c := range slices.Concat(guardtest.Checks, guardtest.RedisChecks) {
		client := dial(t, addr)
		client.AddHook(amnesia{})
		if err := c.Run(t.Context(), guard.Config{Client: client}); (err == nil) != passes[c.Name] {
			t.Errorf("%s, without a memory: %v", c.Name, err)
		}
	}
}

// ask puts every question to g and returns the answers.
func ask(ctx context.Context, g *guard.Guard, id string) map[string]error {
	var mu sync.Mutex
	answers := make(map[string]error)
	var wg sync.WaitGroup
	for name, question := range map[string]func() error{
		"Admit": func() error { return g.Admit(ctx, "acme", "agent:planner", 1, guard.Limit{Rate: 1e6, Burst: 1e6}) },
		"Admit with a use": func() error {
			return g.Admit(ctx, "acme", "agent:noted", 1, guard.Limit{Rate: 1e6, Burst: 1e6}, guard.Use{Issuer: "i", Key: "k", ID: id, Until: time.Now().Add(time.Minute)})
		},
		"Nonces": func() error { _, err := g.Nonces(ctx, "acme"); return err },
		"Ready":  func() error { return g.Ready(ctx) },
	} {
		wg.Go(func() {
			err := question()
			mu.Lock()
			defer mu.Unlock()
			answers[name] = err
		})
	}
	wg.Wait()
	return answers
}

// wantUnavailable asks everything and wants a typed refusal within two seconds.
func wantUnavailable(t *testing.T, g *guard.Guard) {
	t.Helper()
	start := time.Now()
	for name, err := range ask(t.Context(), g, t.Name()) {
		var e *delegation.Error
		if !errors.As(err, &e) || e.Reason != delegation.DependencyDown || e.RetryAfter == 0 {
			t.Errorf("%s: got %v, want unavailable and when to retry", name, err)
		}
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the answers took %v", took)
	}
}

// wantRecovery wants every question answered by itself before long. Asking again is what callers
// do; nothing else is done to the guard or its client.
func wantRecovery(t *testing.T, g *guard.Guard) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		answers := ask(t.Context(), g, t.Name()+" recovery "+time.Now().String())
		if errors.Join(answers["Admit"], answers["Note"], answers["Ready"]) == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not recovered: %v", answers)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func TestRedisFaults(t *testing.T) {
	for name, fault := range map[string]struct {
		begin, end func(*testservers.RedisServer)
	}{
		"stopped": {(*testservers.RedisServer).Stop, (*testservers.RedisServer).Start},
		"killed":  {(*testservers.RedisServer).Kill, (*testservers.RedisServer).Start},
		"paused":  {(*testservers.RedisServer).Pause, (*testservers.RedisServer).Resume},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := testservers.NewRedis(t)
			g := guard.New(guard.Config{Client: dial(t, r.Addr)})
			wantRecovery(t, g) // the control: it does answer
			fault.begin(r)
			for range 3 {
				wantUnavailable(t, g)
			}
			fault.end(r)
			wantRecovery(t, g)
		})
	}
}

func TestKilledMidFlight(t *testing.T) {
	r := testservers.NewRedis(t)
	g := guard.New(guard.Config{Client: dial(t, r.Addr), Timeout: time.Minute}) // only the kill ends the calls
	wantRecovery(t, g)
	r.Pause()
	done := make(chan map[string]error)
	go func() { done <- ask(t.Context(), g, "in flight") }()
	select {
	case answers := <-done:
		t.Fatalf("a paused Redis answered: %v", answers)
	case <-time.After(200 * time.Millisecond):
	}
	r.Kill()
	for name, err := range <-done {
		if e := delegation.AsError(err); e == nil || e.Reason != delegation.DependencyDown {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.Start()
	wantRecovery(t, g)
}

// TestNonsense connects to servers that are none.
func TestNonsense(t *testing.T) {
	for name, answer := range map[string]string{
		"not Redis":     "HTTP/1.1 400 Bad Request\r\n\r\n",
		"a wrong type":  "*1\r\n$2\r\nhi\r\n",
		"a wrong value": ":-7\r\n",
		"an error":      "-MISCONF cannot write\r\n",
		"silence":       "",
	} {
		t.Run(name, func(t *testing.T) {
			client := dial(t, nonsense(t, answer))
			wantUnavailable(t, guard.New(guard.Config{Client: client}))
		})
	}
}

// nonsense serves the same answer to whatever comes.
func nonsense(t *testing.T, answer string) (addr string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				buf := make([]byte, 4096)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					if _, err := c.Write([]byte(answer)); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}

func TestCallersDeadlineCounts(t *testing.T) {
	r := testservers.NewRedis(t)
	g := guard.New(guard.Config{Client: dial(t, r.Addr), Timeout: time.Minute})
	r.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	for name, err := range ask(ctx, g, "late") {
		if e := delegation.AsError(err); e == nil || e.Reason != delegation.DependencyDown {
			t.Errorf("%s: %v", name, err)
		}
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("the answers took %v", took)
	}
}

// TestTimeoutNeedsDial shows what Dial's options are for: a client without them hangs on for as
// long as its own read timeout.
func TestTimeoutNeedsDial(t *testing.T) {
	r := testservers.NewRedis(t)
	careless := redis.NewClient(&redis.Options{Addr: r.Addr, ReadTimeout: time.Second, MaxRetries: -1})
	defer careless.Close()
	took := func(client redis.UniversalClient) time.Duration {
		g := guard.New(guard.Config{Client: client, Timeout: 50 * time.Millisecond})
		wantRecovery(t, g)
		r.Pause()
		defer r.Resume()
		start := time.Now()
		if e := delegation.AsError(g.Ready(t.Context())); e == nil || e.Reason != delegation.DependencyDown {
			t.Errorf("got %v, want unavailable", e)
		}
		return time.Since(start)
	}
	if d := took(dial(t, r.Addr)); d > 500*time.Millisecond {
		t.Errorf("with Dial's options: %v", d)
	}
	if d := took(careless); d < 900*time.Millisecond {
		t.Errorf("without them: %v, so the check above shows nothing", d)
	}
}

func TestDialTellsNoPassword(t *testing.T) {
	const password = "hunter2"
	for _, url := range []string{"://:" + password + "@host", "http://:" + password + "@host", "redis://:" + password + "@host:port:1/x"} {
		if _, err := guard.Dial(url); err == nil {
			t.Errorf("%s is accepted", url)
		} else if strings.Contains(err.Error(), password) {
			t.Errorf("%s: the error repeats the password: %v", url, err)
		}
	}
}

// Parts of an address that the parser of go-redis drops are refused.
func TestAddress(t *testing.T) {
	for address, good := range map[string]bool{
		"redis://127.0.0.1:6379": true, "rediss://deputy@redis.example:6379/2?client_name=deputy": true,
		"unix:///run/a%231/redis.sock?db=2": true,
		"redis://127.0.0.1:6379/2#3":        false, "redis:127.0.0.1:6379": false, "redis:///2": false, "redis://127.0.0.1:6379/2/3": false,
		"unix:///run/a#1/redis.sock": false, "unix://run/redis.sock": false, "unix:run/redis.sock": false, "unix:///run/redis.sock?database=2": false,
	} {
		if err := guard.CheckAddress(address); (err == nil) != good {
			t.Errorf("%s: %v", address, err)
		}
		if client, err := guard.Dial(address); (err == nil) != good {
			t.Errorf("%s is dialed: %v", address, err)
		} else if err == nil {
			_ = client.Close()
		}
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	g := guard.New(guard.Config{Client: dial(t, testservers.Redis(t)), Registerer: registry})
	one := guard.Limit{Rate: 1, Burst: 1}
	_ = g.Admit(t.Context(), "acme", "agent:planner", 1, one)
	_ = g.Admit(t.Context(), "acme", "agent:planner", 1, one)
	_ = g.Ready(t.Context())
	families, err := registry.Gather()
	if err != nil || len(families) != 1 {
		t.Fatalf("%d metrics: %v", len(families), err)
	}
	if n := len(families[0].GetMetric()); n != 3 { // admit ok, admit refused, ready ok
		t.Errorf("%d series, want 3", n)
	}
}

func BenchmarkAdmit(b *testing.B) {
	g := guard.New(guard.Config{Client: dial(b, testservers.Redis(b))})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := g.Admit(b.Context(), "acme", "agent:planner", 1, guard.Limit{Rate: 1e6, Burst: 1e6}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkAdmitUse(b *testing.B) {
	g := guard.New(guard.Config{Client: dial(b, testservers.Redis(b))})
	b.ReportAllocs()
	for b.Loop() {
		use := guard.Use{Issuer: "i", Key: "k", ID: time.Now().String(), Until: time.Now().Add(time.Minute)}
		if err := g.Admit(b.Context(), "acme", "agent:planner", 1, guard.Limit{Rate: 1e6, Burst: 1e6}, use); err != nil {
			b.Fatal(err)
		}
	}
}
