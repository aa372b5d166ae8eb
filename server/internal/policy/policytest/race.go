package policytest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/policy"
)

// Access is a question that depends on one relation: may the principal have a token for the
// audience?
func Access(who, audience string) (policy.Question, policy.Relation) {
	p := delegation.Principal(who)
	return policy.Question{Subject: p, Actor: p, Audiences: []string{audience}},
		policy.Relation{User: who, Relation: "accessor", Object: "resource:" + delegation.EncodeID(audience)}
}

// testRace: while writers write and ask concurrently, no answer is older than the last write that
// was acknowledged before its question, and none is from the future.
func testRace(t *testing.T, b Backend) {
	if wrong := Race(t, b, NewChecker(t, b), 16, 40); wrong != 0 {
		t.Errorf("%d answers are explained by no state between question and answer", wrong)
	}
}

// history counts the writes of one relation by its only writer: it exists after odd ones. The
// answer to a question must have been true at some time between question and answer.
type history struct {
	question            policy.Question
	relation            policy.Relation
	begun, acknowledged atomic.Int64
}

func (h *history) explains(held bool, from, to int64) bool {
	return to > from || held == (from%2 == 1)
}

// Race has writers write one relation each, ask for it immediately, and ask for those of the
// others. It counts the answers that no state between question and answer explains.
func Race(t *testing.T, b Backend, c *policy.Checker, writers, rounds int) int {
	t.Helper()
	histories := make([]*history, writers)
	for i := range histories {
		histories[i] = new(history)
		histories[i].question, histories[i].relation = Access(fmt.Sprint("agent:a", i%5), fmt.Sprint("s", i))
	}
	var wrong atomic.Int64
	ask := func(ctx context.Context, h *history) error {
		from := h.acknowledged.Load()
		d, err := c.Ask(ctx, h.question)
		if err == nil && !h.explains(d.Allowed, from, h.begun.Load()) {
			wrong.Add(1)
		}
		return err
	}
	var everyone sync.WaitGroup
	for i, own := range histories {
		everyone.Go(func() {
			ctx := t.Context()
			for round := range rounds {
				change := b.Write
				if round%2 == 1 {
					change = b.Delete
				}
				own.begun.Add(1)
				if err := change(ctx, own.relation); err != nil {
					t.Error(err)
					return
				}
				own.acknowledged.Add(1)
				for _, h := range []*history{own, histories[(i+round)%writers], own} {
					if err := ask(ctx, h); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	everyone.Wait()
	return int(wrong.Load())
}
