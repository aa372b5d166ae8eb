package guard

import (
	"context"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// Wake returns a channel that tells, again and again, for which of the tenants somebody has published
// revocations, this instance included; and all of them whenever the connection to Redis is made again, since
// something may have been missed. What nobody has taken yet is told at once. Silence means nothing: Redis
// may be gone. It returns at once and goes on until ctx ends; the channel is never closed.
//
// It holds one connection, however many tenants there are.
func (g *Guard) Wake(ctx context.Context, tenants ...string) <-chan []string {
	woken := make(chan []string)
	byChannel, channels := make(map[string]string, len(tenants)), make([]string, len(tenants))
	for i, tenant := range tenants {
		channels[i] = listsOf(tenant).wake
		byChannel[channels[i]] = tenant
	}
	go func() {
		sub := g.client.Subscribe(ctx, channels...)
		defer func() { _ = sub.Close() }()
		// A subscription that answers no ping for two seconds is made again.
		messages := sub.ChannelWithSubscriptions(redis.WithChannelHealthCheckInterval(time.Second))
		var names []string // in the order in which they came, each once
		for {
			var out chan []string
			if len(names) > 0 {
				out = woken
			}
			channel := ""
			select {
			case <-ctx.Done():
				return
			case out <- names:
				names = nil
				continue
			case message, open := <-messages:
				if !open { // the client was closed
					return
				}
				switch m := message.(type) {
				case *redis.Message:
					channel = m.Channel
				case *redis.Subscription: // one for each channel, each time that the connection is made
					channel = m.Channel
				}
			}
			if tenant, known := byChannel[channel]; known && !slices.Contains(names, tenant) {
				names = append(names, tenant)
			}
		}
	}()
	return woken
}
