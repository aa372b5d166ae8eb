package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// Check goes over a tenant's whole ledger and returns everything that must not be: what Verify
// finds, and grants that a revocation before them hits. It shares nothing with the code that
// decides: it replays the entries one by one.
func Check(ctx context.Context, l *ledger.Ledger, tenant string) error {
	findings := []error{l.Verify(ctx, tenant)}
	_, dropped, err := l.Dropped(ctx, tenant)
	if err != nil {
		return err
	}
	revoked := delegation.NewRevocationSet(0)
	grants := map[string]*ledger.Entry{}
	for after := uint64(0); ; {
		page, err := l.Entries(ctx, tenant, after, 500)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return errors.Join(findings...)
		}
		for _, e := range page {
			after = e.Seq
			switch e.Kind {
			case ledger.KindRevocation:
				revoked.Apply(*e.Revocation)
			case ledger.KindGrant:
				grants[e.ID] = e
				findings = append(findings, checkGrant(grants, dropped, revoked, e))
			}
		}
	}
}

func checkGrant(grants map[string]*ledger.Entry, dropped bool, revoked *delegation.RevocationSet, e *ledger.Entry) error {
	if len(e.Erased()) > 0 {
		return nil // its target was erased
	}
	lineage := delegation.Lineage{
		Root: e.Root, Txn: e.Txn, Subject: e.Subject, Actors: e.Actors, Caller: e.Caller,
		// When the root token was issued is not recorded; what cuts off by clock is checked
		// elsewhere.
		RootIssuedAt: time.Unix(1<<40, 0),
	}
	if e.HolderKey != "" {
		lineage.Keys = []string{e.HolderKey}
	}
	for parent := e.Parent; parent != ""; {
		p := grants[parent]
		switch {
		case p == nil && dropped, p != nil && len(p.Erased()) > 0:
			return nil
		case p == nil:
			return fmt.Errorf("entry %d: its ancestor %s was not granted before it", e.Seq, parent)
		}
		hop := delegation.Hop{ID: p.ID, Seq: p.Seq, Actor: len(p.Actors) - 1, Key: p.HolderKey}
		lineage.Hops = append([]delegation.Hop{hop}, lineage.Hops...)
		parent = p.Parent
	}
	revoked.Expire(e.Time)
	if r, hit := revoked.Hit(lineage); hit {
		return fmt.Errorf("entry %d: a grant that revocation %d (%s) hits", e.Seq, r.Seq, r.Target.Kind)
	}
	return nil
}
