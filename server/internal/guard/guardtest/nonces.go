package guardtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/server/internal/guard"
)

var nonceChecks = []Check{
	{"all instances give and take the same nonces", sameNonces},
	{"a nonce is taken for a period after its own", olderNonce},
}

func sameNonces(ctx context.Context, a, b *guard.Guard, client redis.UniversalClient) error {
	first, err := a.Nonces(ctx, tenant)
	if err != nil {
		return err
	}
	second, errSecond := b.Nonces(ctx, tenant)
	others, errOthers := b.Nonces(ctx, "globex")
	if err := errors.Join(errSecond, errOthers); err != nil {
		return err
	}
	if !slices.Contains(second, first[0]) || slices.Contains(second, others[0]) { // a period may have ended meanwhile
		return fmt.Errorf("nonces %q, %q, another tenant's %q", first, second, others)
	}
	keys, err := client.Keys(ctx, "{acme}:nonce:*").Result()
	if err != nil || len(keys) == 0 {
		return fmt.Errorf("nonces are kept under %q, %w", keys, err)
	}
	for _, k := range keys {
		if ttl, err := client.PTTL(ctx, k).Result(); err != nil || ttl <= 0 || ttl > 4*time.Minute {
			return fmt.Errorf("nonces live for %v, %w", ttl, err)
		}
	}
	return nil
}

func olderNonce(ctx context.Context, _, _ *guard.Guard, client redis.UniversalClient) error {
	now := time.Now()
	g := guard.New(guard.Config{Client: client, Now: func() time.Time { return now }})
	var given []string
	for range 3 {
		nonces, err := g.Nonces(ctx, tenant)
		if err != nil {
			return err
		}
		if want := append([]string{nonces[0]}, given...); !slices.Equal(nonces, want) || slices.Contains(given, nonces[0]) {
			return fmt.Errorf("nonces are %q after %q", nonces, given)
		}
		given = nonces[:1]
		now = now.Add(2 * time.Minute)
	}
	return nil
}
