package guard

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// Wake returns a channel that pulses whenever somebody has published a revocation of the tenant's,
// this instance included, and whenever the connection to Redis is made again, since something may
// have been missed. Pulses that nobody has taken yet become one. No pulse means nothing: Redis may
// be gone. It returns at once and goes on until ctx ends; the channel is never closed.
//
// It holds a connection of its own for each tenant.
func (g *Guard) Wake(ctx context.Context, tenant string) <-chan struct{} {
	pulses := make(chan struct{}, 1)
	go func() {
		sub := g.client.Subscribe(ctx, listsOf(tenant).wake)
		defer func() { _ = sub.Close() }()
		// A subscription that answers no ping for two seconds is made again.
		messages := sub.ChannelWithSubscriptions(redis.WithChannelHealthCheckInterval(time.Second))
		for {
			select {
			case <-ctx.Done():
				return
			case _, open := <-messages:
				if !open { // the client was closed
					return
				}
			}
			select {
			case pulses <- struct{}{}:
			default:
			}
		}
	}()
	return pulses
}
