package ledger_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"deputy.example/deputy/server/internal/ledger"
)

// BenchmarkAppendCPU measures what an append costs in CPU time of this process and of PostgreSQL
// with all of its sessions, and how many appends share a transaction. It differs from wall time on
// a machine that does something else too. It needs Linux, and some thousand appends: the clock
// ticks every 10 ms.
func BenchmarkAppendCPU(b *testing.B) {
	for _, kind := range []string{"sqlite", "postgres"} {
		for _, instances := range []int{1, 2} {
			if instances > 1 && kind == "sqlite" {
				continue
			}
			for _, n := range []int{1, 64} {
				b.Run(fmt.Sprintf("%s/instances=%d/writers=%d", kind, instances, n), func(b *testing.B) {
					dsn, registry := databases[kind](b), prometheus.NewRegistry()
					var ledgers []*ledger.Ledger
					for i := range instances {
						labelled := prometheus.WrapRegistererWith(prometheus.Labels{"instance": strconv.Itoa(i)}, registry)
						ledgers = append(ledgers, opened(b, dsn, ledger.Config{Timeout: 30 * time.Second, Registerer: labelled}))
						appendGrants(b, ledgers[i], 64, 512) // statements are prepared, and plans chosen
					}
					count, sum := batches(b, registry)
					own, server := selfTime(b), postgresTime()
					b.ReportAllocs()
					b.ResetTimer()
					concurrently(instances, func(i int) { appendGrants(b, ledgers[i], max(1, n/instances), b.N/instances) })
					b.StopTimer()
					ops := float64(b.N)
					b.ReportMetric(float64((selfTime(b)-own).Microseconds())/ops, "own-µs/op")
					b.ReportMetric(float64((postgresTime()-server).Microseconds())/ops, "server-µs/op")
					after, total := batches(b, registry)
					b.ReportMetric((total-sum)/(after-count), "appends/batch")
				})
			}
		}
	}
}

func batches(b *testing.B, registry *prometheus.Registry) (count, sum float64) {
	families, err := registry.Gather()
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "deputy_ledger_batch_size" {
				count, sum = count+float64(m.GetHistogram().GetSampleCount()), sum+m.GetHistogram().GetSampleSum()
			}
		}
	}
	return count, sum
}

func selfTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// postgresTime is the CPU time of this process's children and theirs, those that have ended
// included.
func postgresTime() (sum time.Duration) {
	for _, child := range childrenOf(os.Getpid()) {
		sum += processTime(child, true)
		for _, session := range childrenOf(child) {
			sum += processTime(session, false)
		}
	}
	return sum
}

func childrenOf(pid int) (children []int) {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		list, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		for _, f := range strings.Fields(string(list)) {
			if child, err := strconv.Atoi(f); err == nil {
				children = append(children, child)
			}
		}
	}
	return children
}

// processTime reads utime and stime, and those of children that have ended (proc(5)), in ticks of
// 10 ms.
func processTime(pid int, withEnded bool) time.Duration {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, behind, _ := strings.Cut(string(stat), ") ")
	fields, ticks := strings.Fields(behind), 0
	if len(fields) < 15 {
		return 0
	}
	for i, f := range fields[11:15] {
		if n, err := strconv.Atoi(f); err == nil && (i < 2 || withEnded) {
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
