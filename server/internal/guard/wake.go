package guard

import "context"

// Wake returns a channel of the tenants for which an instance has published revocations, this
// instance included. It also names all of them whenever the connection to Redis is made again, since
// something may have been missed. What was not received yet is sent at once. Silence means nothing:
// Redis may be gone. It returns at once and goes on until ctx ends; the channel is never closed.
func (g *Guard) Wake(ctx context.Context, tenants ...string) <-chan []string {
	return g.store.wake(ctx, tenants)
}
