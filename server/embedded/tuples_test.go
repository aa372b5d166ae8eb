package embedded

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/openfga/openfga/pkg/storage"
	"github.com/openfga/openfga/pkg/tuple"

	"deputy.example/deputy/client/delegation"
	fgamodels "deputy.example/deputy/fga-models"
	"deputy.example/deputy/server/internal/policy"
)

// BenchmarkTuples is a question of five checks, four of which are held, in ever larger worlds. All
// people hold the same scopes, so that the lists of an object grow with the world.
//
//	go test -run '^$' -bench Tuples -benchtime 2000x .
func BenchmarkTuples(b *testing.B) {
	for _, size := range []int{1_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := newStore(b, startFGA(b), fgamodels.DeputyJSON)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			var keys storage.Writes
			for i := range size {
				who := fmt.Sprintf("user:%d", i/4)
				k := tuple.NewTupleKey(fmt.Sprintf("scope:%d", i%4), "holder", who)
				if i%4 == 3 {
					k = tuple.NewTupleKey("agent:planner", "delegator", who)
				}
				keys = append(keys, k)
			}
			if err := s.fga.datastore.Write(b.Context(), s.id, nil, keys); err != nil {
				b.Fatal(err)
			}
			keys = nil
			runtime.GC()
			runtime.ReadMemStats(&after)
			if err := s.Write(b.Context(), policy.Relation{User: "agent:planner", Relation: "holder", Object: "scope:0"}); err != nil {
				b.Fatal(err)
			}
			c, asked := s.checker(b, policy.Mapping{}), 0
			began := processorTime()
			b.ResetTimer()
			for b.Loop() {
				subject := delegation.Principal(fmt.Sprintf("user:%d", asked*7919%(size/4)))
				asked++
				answer, err := c.Ask(b.Context(), policy.Question{
					Edges:   []policy.Edge{{From: subject, To: "agent:planner"}},
					Subject: subject, Actor: "agent:planner", Scopes: delegation.Scopes{"0"}, Audiences: []string{"none"},
				})
				if err != nil || answer.Checks != 5 || answer.Missing == nil || answer.Missing.Reason != delegation.AudienceNotPermitted {
					b.Fatal(answer, err)
				}
			}
			b.ReportMetric(float64((processorTime()-began).Nanoseconds())/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(size), "B/tuple")
		})
	}
}
