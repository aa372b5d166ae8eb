package server

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/policy"
)

// BenchmarkExchange measures what deputyd itself spends on one exchange. The server is whole, with
// the default configuration, and is reached by gRPC from another process. Redis and SQLite are
// real, and an OpenFGA stub answers at once. Each exchange hands down a new parent of depth 3, with
// three scopes at two audiences. 64 concurrent callers authenticate with workload JWTs. All inputs
// that can be made in advance are made before the clock runs.
//
// Elapsed time is of no use on a busy machine. CPU-µs/op is the CPU time that the operating system
// counts for this process, which is the server and nothing else. floors/op is the same time in
// units of one ES256 verification and one signature, measured beside it. Allocations are exact.
func BenchmarkExchange(b *testing.B) {
	s := newSite(b)
	workloads := exchangetest.NewSigner(b, "https://workloads.example")
	s.write("workloads.jwks.json", []byte(workloads.JWKS()))
	s.text = strings.NewReplacer(
		"    clients:\n", "      - {issuer: "+workloads.Issuer+", keys: {file: DIR/workloads.jwks.json}, algorithms: [ES256], principal: {type: agent, prefix: wl/}, workloads: true}\n    clients:\n",
		"audiences: [https://calendar.example]", "audiences: ["+strings.Join(benchAudiences, ", ")+"]",
		"allow_bearer: true", "allow_bearer: true, max_lifetime: 1h, default_lifetime: 1h, caller_rate: 100000, scope_targets: {"+
			strings.Join(benchScopes, ": ["+strings.Join(benchAudiences, ", ")+"], ")+": ["+strings.Join(benchAudiences, ", ")+"]}",
		"    policy:\n", "    policy:\n      cache: {enabled: true}\n",
	).Replace(s.text)
	silent, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer silent.Close()
	s.options.Logger = NewLogger(Telemetry{}, silent)
	s.fga.Judge = func(policy.Relation) (yes, ok bool) { return true, true }
	i := s.start(b)

	statement := func(agent, audience string) string {
		return workloads.Sign(b, "JWT", map[string]any{
			"sub": agent, "aud": audience, "jti": s.id(), "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
		})
	}
	child := func(to string) *deputyv1.Child {
		return &deputyv1.Child{
			Audience: benchAudiences, Scope: strings.Join(benchScopes, " "),
			ActorToken: statement(to, delegation.ActorAudience(issuer)), ActorTokenType: delegation.TokenTypeJWT,
		}
	}
	as := func(agent string) context.Context {
		return metadata.AppendToOutgoingContext(b.Context(), "authorization", "Bearer "+statement(agent, issuer))
	}
	api := deputyv1.NewTokenExchangeServiceClient(i.conn)
	handDown := func(holder, parent string, c *deputyv1.Child, copies int) (tokens []string) {
		b.Helper()
		batch := &deputyv1.BatchExchangeRequest{SubjectToken: parent, SubjectTokenType: delegation.TokenTypeAccessToken}
		for range copies {
			batch.Children = append(batch.Children, c)
		}
		made, err := api.BatchExchange(as(holder), batch)
		if err != nil {
			b.Fatal(err)
		}
		for _, o := range made.GetOutcomes() {
			if o.GetGrant() == nil {
				b.Fatal(o.GetRefusal())
			}
			tokens = append(tokens, o.GetGrant().GetAccessToken())
		}
		return tokens
	}
	root := s.people.Sign(b, "at+jwt", map[string]any{
		"sub": "alice", "aud": issuer + "/subject-tokens", "scope": strings.Join(benchScopes, " "), "jti": s.id(),
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	})
	own := child("")
	own.ActorToken, own.ActorTokenType = "", ""
	first := handDown("c1", root, own, 1)[0]
	second := handDown("c1", first, child("c2"), 1)[0]
	load := benchLoad{Address: i.GRPCAddr(), Bearer: statement("c3", issuer)}
	third, fourth := child("c3"), child("c4")
	const warmUp = 64
	for len(load.Requests) < b.N+warmUp {
		for _, parent := range handDown("c2", second, third, min(100, b.N+warmUp-len(load.Requests))) {
			request, err := proto.Marshal(&deputyv1.ExchangeRequest{
				SubjectToken: parent, SubjectTokenType: delegation.TokenTypeAccessToken, Child: fourth, IdempotencyKey: rand.Text(),
			})
			if err != nil {
				b.Fatal(err)
			}
			load.Requests = append(load.Requests, request)
		}
	}
	run := startBenchCallers(b, load)
	load = benchLoad{} // without this, the garbage collector would have less to do than in a server
	run(0, warmUp)
	runtime.GC()

	b.ReportAllocs()
	b.ResetTimer()
	before := benchCPU(b)
	run(warmUp, warmUp+b.N)
	spent := benchCPU(b) - before
	b.StopTimer()
	each := spent / time.Duration(b.N)
	b.ReportMetric(float64(each.Nanoseconds())/1e3, "CPU-µs/op")
	b.ReportMetric(float64(each)/float64(benchSignatures(b)), "floors/op")
}

var (
	benchScopes    = []string{"calendar.read", "calendar.write", "mail.read"}
	benchAudiences = []string{"https://calendar.example", "https://mail.example"}
)

// benchCPU returns the user and system CPU time that this process has spent so far.
func benchCPU(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// benchSignatures returns the cost of one ES256 verification and one signature.
func benchSignatures(b *testing.B) time.Duration {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	const times = 1000
	digest := make([]byte, 32)
	before := benchCPU(b)
	for range times {
		signature, err := ecdsa.SignASN1(rand.Reader, key, digest)
		if err != nil || !ecdsa.VerifyASN1(&key.PublicKey, digest, signature) {
			b.Fatal(err)
		}
	}
	return (benchCPU(b) - before) / times
}

// benchLoad is the input of the callers on standard input. After it, each line names the first and
// the last request to send.
type benchLoad struct {
	Address, Bearer string
	Requests        [][]byte
}

// benchCallersVariable makes the test binary run the callers in place of the tests.
const benchCallersVariable = "DEPUTY_BENCH_CALLERS"

// startBenchCallers starts this binary again, as 64 callers on four connections.
func startBenchCallers(b *testing.B, load benchLoad) (run func(from, to int)) {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), benchCallersVariable+"=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	if err := json.NewEncoder(stdin).Encode(load); err != nil {
		b.Fatal(err)
	}
	said := bufio.NewScanner(stdout)
	return func(from, to int) {
		b.Helper()
		fmt.Fprintln(stdin, from, to)
		if !said.Scan() || said.Text() != "done" {
			b.Fatalf("the callers say %q", said.Text())
		}
	}
}

// benchCallers runs the callers, in the other process.
func benchCallers(in io.Reader, out io.Writer) error {
	const callers, connections = 64, 4
	lines := bufio.NewReader(in)
	text, err := lines.ReadBytes('\n')
	if err != nil {
		return err
	}
	var load benchLoad
	if err := json.Unmarshal(text, &load); err != nil {
		return err
	}
	requests := make([]*deputyv1.ExchangeRequest, len(load.Requests))
	for i, raw := range load.Requests {
		requests[i] = new(deputyv1.ExchangeRequest)
		if err := proto.Unmarshal(raw, requests[i]); err != nil {
			return err
		}
	}
	ctx := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+load.Bearer)
	var pool []deputyv1.TokenExchangeServiceClient
	for range connections {
		conn, err := grpc.NewClient(load.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer conn.Close()
		pool = append(pool, deputyv1.NewTokenExchangeServiceClient(conn))
	}
	for {
		var from, to int
		if _, err := fmt.Fscanln(lines, &from, &to); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		var next atomic.Int64
		next.Store(int64(from))
		var failed atomic.Pointer[error]
		var all sync.WaitGroup
		for c := range callers {
			all.Go(func() {
				for i := next.Add(1) - 1; i < int64(to); i = next.Add(1) - 1 {
					if _, err := pool[c%connections].Exchange(ctx, requests[i]); err != nil {
						failed.Store(&err)
						return
					}
				}
			})
		}
		all.Wait()
		if err := failed.Load(); err != nil {
			fmt.Fprintln(out, *err)
			return nil
		}
		fmt.Fprintln(out, "done")
	}
}
