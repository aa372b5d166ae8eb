package guardtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"deputy.example/deputy/server/internal/guard"
)

var nonceChecks = []Check{
	{"all instances give and take the same nonces", pair(sameNonces)},
	{"a nonce is taken for a period after its own", olderNonce},
}

func sameNonces(ctx context.Context, a, b *guard.Guard) error {
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
	return nil
}

func olderNonce(ctx context.Context, store guard.Config) error {
	now := time.Now()
	store.Now = func() time.Time { return now }
	g := guard.New(store)
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
