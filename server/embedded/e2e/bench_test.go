package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"deputy.example/deputy/server/embedded"
	"deputy.example/deputy/server/internal/testservers"
)

// BenchmarkExchange measures one whole exchange over gRPC. Redis, PostgreSQL and OpenFGA run in
// processes of their own on this machine. Client and Deputy share this process, so allocations are
// those of both.
//
//	go test -run '^$' -bench Exchange -benchmem -cpuprofile cpu.prof . &&
//		go tool pprof -top cpu.prof
func BenchmarkExchange(b *testing.B) {
	d := deploy(b, spawnOpenFGA(b, plan{
		redis: testservers.Redis(b), database: testservers.Postgres(b), tenant: "limits: {caller_rate: 100000}\n",
	}))
	c := d.as(d.start(), planner)
	root := d.root()
	exchange := func() error {
		_, err := c.Exchange(b.Context(), stepIn(root))
		return err
	}
	check(b, exchange())
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			check(b, exchange())
		}
	})
	b.Run("64 at once", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := exchange(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

// BenchmarkVerify measures the offline verification of the result by a tool.
func BenchmarkVerify(b *testing.B) {
	d := deploy(b, plan{})
	i := d.start()
	answer, err := d.as(i, planner).Exchange(b.Context(), stepIn(d.root()))
	check(b, err)
	v, token := d.verifier(i), answer.AccessToken.Reveal()
	b.ReportAllocs()
	for b.Loop() {
		_, err := v.Verify(b.Context(), token)
		check(b, err)
	}
}

// BenchmarkNarrow measures an exchange of a derived token by its own actor.
func BenchmarkNarrow(b *testing.B) {
	d := deploy(b, plan{tenant: "limits: {caller_rate: 100000}\n"})
	c := d.as(d.start(), planner)
	parent, err := c.Exchange(b.Context(), stepIn(d.root()))
	check(b, err)
	b.ReportAllocs()
	for b.Loop() {
		_, err := c.Exchange(b.Context(), stepIn(parent.AccessToken))
		check(b, err)
	}
}

// spawnOpenFGA starts OpenFGA in a process of its own.
func spawnOpenFGA(t testing.TB, p plan) plan {
	t.Helper()
	// The ids follow from names and content, so the child process has the same ids as a server in
	// this process.
	fga, err := embedded.NewFGA(t.Context())
	check(t, err)
	p.store, p.model = prepareStore(t, fga)
	fga.Close()
	address := freeAddress(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), beOpenFGA+"="+address)
	cmd.Stderr = os.Stderr
	check(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	p.openFGA = "http://" + address
	eventually(t, 10*time.Second, func() error {
		code, _, err := new(instance).ask(p.openFGA + "/stores/" + p.store)
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("OpenFGA answers %d", code)
		}
		return err
	})
	return p
}
