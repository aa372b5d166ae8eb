package client

import (
	"context"
	"sync"
)

// flight lets all callers that need the same result at the same time wait for one execution. The
// zero value is ready.
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

// start begins an execution, or joins the running one. It runs with the values of ctx but not its
// end: a caller that gives up must not fail the others. run must end by itself.
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

// do starts or joins an execution and waits for it, at most until ctx ends.
func (f *flight[T]) do(ctx context.Context, run func(context.Context) (T, error)) (T, error) {
	return f.start(ctx, run).wait(ctx)
}

// wait returns the outcome of the execution, or an error when ctx ends.
func (l *landing[T]) wait(ctx context.Context) (T, error) {
	select {
	case <-l.done:
		return l.value, l.err
	case <-ctx.Done():
		var none T
		return none, givenUp(ctx)
	}
}

// underWay returns the running execution, or nil.
func (f *flight[T]) underWay() *landing[T] {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current
}

// wait returns when the running execution, if there is one, has ended.
func (f *flight[T]) wait() {
	if l := f.underWay(); l != nil {
		<-l.done
	}
}
