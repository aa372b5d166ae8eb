package guard

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/server/internal/gather"
)

// rounds run one script for many calls in one round trip. A call that arrives while a round is under
// way waits for the next round, so no result is older than its call.
type rounds struct {
	client  redis.UniversalClient
	script  *redis.Script
	timeout time.Duration // of one round

	mu       sync.Mutex
	next     []*question
	underWay bool // ask runs, and will take the calls in next too
}

// mostInRound keeps the results of a round from arriving so late that its first callers have left.
const mostInRound = 256

// question is one run of the script.
type question struct {
	ctx    context.Context
	keys   []string
	args   []any
	answer *redis.Cmd    // set before closed is closed; nil: the caller had left
	closed chan struct{} // closed when the round is over
}

// run is one run of the script. It ends with its context, also if the round goes on; the script may
// then have run or not.
func (r *rounds) run(ctx context.Context, keys []string, args []any) (int64, error) {
	q := &question{ctx: ctx, keys: keys, args: args, closed: make(chan struct{})}
	r.mu.Lock()
	r.next = append(r.next, q)
	begins := !r.underWay
	r.underWay = true
	r.mu.Unlock()
	if begins {
		go r.ask()
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-q.closed:
	}
	if q.answer == nil {
		return 0, context.Cause(ctx)
	}
	if redis.HasErrorPrefix(q.answer.Err(), "NOSCRIPT") { // Redis was started again, and holds the script from now on
		return r.script.Eval(ctx, r.client, keys, args...).Int64()
	}
	return q.answer.Int64()
}

// ask goes on until no call waits.
func (r *rounds) ask() {
	for last := 0; ; {
		gather.Group(mostInRound, last, r.waiting)
		r.mu.Lock()
		round := r.next[:min(len(r.next), mostInRound)]
		r.next = r.next[len(round):]
		if r.underWay = len(round) > 0; !r.underWay {
			r.next = nil
		}
		r.mu.Unlock()
		if last = len(round); last == 0 {
			return
		}
		r.askFor(round)
	}
}

func (r *rounds) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.next)
}

func (r *rounds) askFor(round []*question) {
	defer func() {
		for _, q := range round {
			close(q.closed)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), r.timeout)
	defer cancel()
	pipe := r.client.Pipeline()
	for _, q := range round {
		if q.ctx.Err() == nil { // a caller that has left is not charged
			q.answer = r.script.EvalSha(ctx, pipe, q.keys, q.args...)
		}
	}
	_, _ = pipe.Exec(ctx) // each command has its own error, also that of the connection
}
