package client

import (
	"context"
	"sync"
)

// flight lets everybody who needs the same result at the same time wait for one execution. The zero
// value is ready.
type flight[T any] struct {
	mu      sync.Mutex
	current *landing[T]
}

// landing is the outcome of one execution; value and err are set before done is closed.
type landing[T any] struct {
	done  chan struct{}
	value T
	err   error
}

// start begins an execution, or joins the one that is under way. It runs with the values of ctx but
// not its end: whoever gives up must not fail the others. run must end by itself.
func (f *flight[T]) start(ctx context.Context, run func(context.Context) (T, error)) *landing[T] {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current != nil {
		return f.current
	}
	l := &landing[T]{done: make(chan struct{})}
	f.current = l
	go func() {
		defer close(l.done)
		l.value, l.err = run(context.WithoutCancel(ctx))
		f.mu.Lock()
		f.current = nil
		f.mu.Unlock()
	}()
	return l
}

// do starts or joins an execution and waits for it, but not longer than ctx.
func (f *flight[T]) do(ctx context.Context, run func(context.Context) (T, error)) (T, error) {
	return f.start(ctx, run).wait(ctx)
}

// wait returns what comes of the execution, but not later than ctx ends.
func (l *landing[T]) wait(ctx context.Context) (T, error) {
	select {
	case <-l.done:
		return l.value, l.err
	case <-ctx.Done():
		var none T
		return none, givenUp(ctx)
	}
}

// underWay is the execution that is running, or nil.
func (f *flight[T]) underWay() *landing[T] {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current
}

// wait returns when nothing is running, or what was running has ended.
func (f *flight[T]) wait() {
	if l := f.underWay(); l != nil {
		<-l.done
	}
}
