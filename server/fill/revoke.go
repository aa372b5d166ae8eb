package fill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// Revoke writes n revocations of tokens that never existed, which stay in force for a day. The
// ledger may hold other entries already. Progress may be nil.
func Revoke(ctx context.Context, dsn, tenant string, revocations int, progress func(written int)) (err error) {
	l, err := ledger.Open(ctx, dsn, ledger.Config{Timeout: time.Minute}) // no caller waits for an answer
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	until := time.Now().Add(24 * time.Hour)
	for written := 0; written < revocations; {
		drafts := make([]*ledger.Draft, min(perCall, revocations-written))
		for i := range drafts {
			drafts[i] = &ledger.Draft{
				Kind: ledger.KindRevocation, Caller: "service:responder",
				Revocation: &delegation.Revocation{
					Target: delegation.Target{Kind: delegation.BanToken, ID: fmt.Sprintf("never-granted-%d", written+i)}, Until: until,
				},
			}
		}
		for _, r := range l.AppendAll(ctx, tenant, drafts, nil) {
			if r.Err != nil {
				return fmt.Errorf("fill: revocation: %w", r.Err)
			}
		}
		written += len(drafts)
		if progress != nil {
			progress(written)
		}
	}
	return nil
}
