package redisd

import (
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/guard/guardtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t testing.TB, now func() time.Time) (*Server, redis.UniversalClient) {
	t.Helper()
	s := New(now)
	client, err := guard.DialBy(Address, s.Dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(); s.Close() })
	return s, client
}

func TestServesTheGuard(t *testing.T) {
	guardtest.Run(t, func(t *testing.T) redis.UniversalClient { _, client := start(t, time.Now); return client })
}

// The suite fails with a server that does not do what the scripts do.
func TestSuiteSeesWhatIsMissing(t *testing.T) {
	right := scripts
	defer func() { scripts = right }()
	for digest := range right {
		broken := make(map[string]script)
		for d, run := range right {
			broken[d] = run
		}
		broken[digest] = func(_ *Server, c *connection, _, args []string) error { // reports success and does nothing
			switch len(args) {
			case 2:
				c.out.list([]string{args[0]})
			default:
				c.out.integer(1)
			}
			return nil
		}
		scripts = broken
		failed := false
		for _, check := range guardtest.Checks {
			s := New(time.Now)
			client, err := guard.DialBy(Address, s.Dial)
			if err != nil {
				t.Fatal(err)
			}
			failed = check.Run(t.Context(), guard.New(guard.Config{Client: client}), guard.New(guard.Config{Client: client}), client) != nil
			_ = client.Close()
			s.Close()
			if failed {
				break
			}
		}
		if !failed {
			t.Errorf("nothing fails without script %s", digest)
		}
	}
}

// A script that changes in Lua must change here too.
func TestScriptsAreGuards(t *testing.T) {
	for _, name := range []string{"admit", "nonces", "publish", "claim", "switch"} {
		source, err := os.ReadFile("../../../internal/guard/" + name + ".lua")
		if err != nil {
			t.Fatal(err)
		}
		sum := sha1.Sum(source)
		if digest := hex.EncodeToString(sum[:]); scripts[digest] == nil {
			t.Errorf("%s.lua has changed: make its function in scripts.go say the same, then give it the digest %s", name, digest)
		}
	}
	sources, err := os.ReadDir("../../../internal/guard")
	if err != nil {
		t.Fatal(err)
	}
	n := len(slices.DeleteFunc(sources, func(e os.DirEntry) bool { return !strings.HasSuffix(e.Name(), ".lua") }))
	if n != len(scripts) {
		t.Errorf("guard has %d scripts, %d are here", n, len(scripts))
	}
}

func TestRunsNoOtherScript(t *testing.T) {
	_, client := start(t, time.Now)
	if err := client.Eval(t.Context(), "return 0", nil).Err(); err == nil || !strings.Contains(err.Error(), "does not know this script") {
		t.Errorf("a strange script: %v", err)
	}
}

func TestWhatItDoesNotKnowIsAnError(t *testing.T) {
	_, client := start(t, time.Now)
	for _, args := range [][]any{{"append", "k", "v"}, {"set", "k", "v", "nx"}, {"set", "k", "v", "px", "0"}, {"set", "k", "v", "px", "soon"}, {"get"}, {"hset", "h", "f"},
		{"hscan", "h", "0", "match", "*"}, {"hscan", "h", "-1"}, {"keys", "a*b*"}, {"pexpire", "k", "soon"}, {"xrange", "s", "0", "1"}, {"script", "load", "x"}, {"psubscribe", "*"},
		{"evalsha", "0000", "0"}} {
		if err := client.Do(t.Context(), args...).Err(); err == nil || errors.Is(err, redis.Nil) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if n, err := client.Exists(t.Context(), "k").Result(); err == nil {
		t.Errorf("EXISTS, which it does not know, says %d", n)
	}
}

// An expired key is missing, whether it is read or not.
func TestKeysExpire(t *testing.T) {
	now := time.Now()
	s, client := start(t, func() time.Time { return now })
	ctx := t.Context()
	for i := range 100 {
		if err := client.Set(ctx, fmt.Sprint("short", i), "lived", 1500*time.Millisecond).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(client.Set(ctx, "long", "lived", time.Hour).Err(), client.Set(ctx, "short0", "longer", time.Minute).Err(), client.Set(ctx, "endless", "lived", 0).Err()); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	now = now.Add(1500 * time.Millisecond)
	s.mu.Unlock()
	if err := client.Get(ctx, "short1").Err(); !errors.Is(err, redis.Nil) {
		t.Errorf("a key that has expired: %v", err)
	}
	s.mu.Lock()
	now = now.Add(3 * time.Second)
	s.mu.Unlock()
	if err := client.Set(ctx, "another", "", time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	if n := len(s.db.keys); n != 4 {
		t.Errorf("%d keys are left, want 4", n)
	}
	s.mu.Unlock()
	if left, err := client.PTTL(ctx, "long").Result(); err != nil || left != time.Hour-4500*time.Millisecond {
		t.Errorf("an hour has become %v, %v", left, err)
	}
}

// A scan misses nothing that is there all the time, whatever comes and goes meanwhile.
func TestScanMissesNothing(t *testing.T) {
	var h hash
	for i := range 1000 {
		h.set(fmt.Sprint("stays", i), "")
		h.set(fmt.Sprint("goes", i), "")
	}
	seen, cursor := make(map[string]bool), 0
	for i := 0; ; i++ {
		var some []pair
		some, cursor = h.scan(cursor, 7)
		for _, p := range some {
			seen[p.name] = true
		}
		if cursor == 0 {
			break
		}
		for j := range 5 {
			h.delete(fmt.Sprint("goes", (i*5+j)*37%1000))
		}
		h.set(fmt.Sprint("comes", i), "")
	}
	for i := range 1000 {
		if !seen[fmt.Sprint("stays", i)] {
			t.Fatalf("field %d was missed", i)
		}
	}
}

// A client may send far more than fits into any buffer before it reads a reply.
func TestLongPipeline(t *testing.T) {
	_, client := start(t, time.Now)
	large, pipe := strings.Repeat("x", 2_000), client.Pipeline()
	for i := range 200 {
		pipe.Set(t.Context(), fmt.Sprint(i), large, 0)
		pipe.Get(t.Context(), fmt.Sprint(i))
	}
	answers, err := pipe.Exec(t.Context())
	if err != nil || len(answers) != 400 || answers[399].(*redis.StringCmd).Val() != large {
		t.Errorf("%d answers, %v", len(answers), err)
	}
}

func TestOtherProtocolsAreCutOff(t *testing.T) {
	s, _ := start(t, time.Now)
	for _, nonsense := range []string{"GET / HTTP/1.1\r\n\r\n", "*1\r\n$-1\r\n", "*99999999\r\n", "*1\r\n$99999999\r\n", "*1\r\n+PING\r\n", "*x\r\n"} {
		conn, err := s.Dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.WriteString(conn, nonsense) }()
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("%q: %v", nonsense, err)
		}
		_ = conn.Close()
	}
}

func TestClosed(t *testing.T) {
	s, client := start(t, time.Now)
	sub := client.Subscribe(t.Context(), "channel")
	defer sub.Close()
	if _, err := sub.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := s.Dial(t.Context(), "", ""); err == nil {
		t.Error("a closed server is dialled")
	}
	if err := guard.New(guard.Config{Client: client}).Admit(t.Context(), "acme", "agent:planner", 1, guard.Limit{Rate: 1, Burst: 1}); delegation.AsError(err).Reason != delegation.DependencyDown {
		t.Errorf("a closed server admits: %v", err)
	}
}

// BenchmarkAdmit is one admission with two uses, by guard's own client.
//
//	go test -run '^$' -bench Admit -benchmem ./internal/redisd
func BenchmarkAdmit(b *testing.B) {
	_, client := start(b, time.Now)
	g := guard.New(guard.Config{Client: client})
	until := time.Now().Add(time.Minute)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := g.Admit(b.Context(), "acme", "agent:planner", 1, guard.Limit{Rate: 1e6, Burst: 1e6},
			guard.Use{Issuer: "i", Key: "k", ID: fmt.Sprint("a", i), Until: until}, guard.Use{Issuer: "i", Key: "k", ID: fmt.Sprint("b", i), Until: until}); err != nil {
			b.Fatal(err)
		}
	}
}
