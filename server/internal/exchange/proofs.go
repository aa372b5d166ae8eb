package exchange

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// Checkpoint is a signed head of a tenant's log, with the key that verifies it.
type Checkpoint struct {
	ledger.Checkpoint
	VerifierKey string
}

// Proofs prove, against a checkpoint, that an entry is in the log and that the log has only grown.
type Proofs struct {
	Checkpoint  Checkpoint
	Entry       *Recorded        // nil if the inquiry names none
	Inclusion   tlog.RecordProof // of the entry
	Consistency tlog.TreeProof   // with the log of the old size, if the caller gave one
}

// Checkpoint returns the newest signed head of the tenant's log. Each caller of the tenant may ask.
// The error is NotFound if no head was signed.
func (e *Engine) Checkpoint(ctx context.Context, q Inquiry) (Checkpoint, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, err := e.admitReader(ctx, q)
	if err != nil {
		return Checkpoint{}, err
	}
	return e.lastCheckpoint(ctx, by.tenant)
}

func (e *Engine) lastCheckpoint(ctx context.Context, tenant *Tenant) (Checkpoint, error) {
	last, err := e.config.Ledger.LastCheckpoint(ctx, tenant.Name)
	if errors.Is(err, ledger.ErrNotFound) || err == nil && tenant.Checkpoints == nil {
		return Checkpoint{}, delegation.Refuse(delegation.NotFound, "checkpoint", "no head of this tenant's log has been signed: it is empty, or configured without a checkpoint key")
	}
	if err != nil {
		return Checkpoint{}, delegation.AsError(err)
	}
	return Checkpoint{Checkpoint: last, VerifierKey: tenant.Checkpoints.VerifierKey()}, nil
}

// Proofs returns proofs against the newest checkpoint. They prove that an entry (by Inquiry.Entry
// or Inquiry.ID, or neither) is in the log; the caller must be permitted to see it. If old is not
// 0, they also prove that the log continues the log of that size; each caller may ask for that.
func (e *Engine) Proofs(ctx context.Context, q Inquiry, old uint64) (Proofs, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, err := e.admitReader(ctx, q)
	if err != nil {
		return Proofs{}, err
	}
	if q.ID != "" && q.Entry != 0 {
		return Proofs{}, delegation.Refuse(delegation.ParameterInvalid, "entry", "name at most one of entry and jti")
	}
	var p Proofs
	if q.ID != "" || q.Entry != 0 {
		recorded, err := e.readEntry(ctx, by, q)
		if err != nil {
			return Proofs{}, err
		}
		p.Entry = &recorded
	}
	if p.Checkpoint, err = e.lastCheckpoint(ctx, by.tenant); err != nil {
		return Proofs{}, err
	}
	size := p.Checkpoint.Size
	if old > size {
		return Proofs{}, delegation.Refuse(delegation.ParameterInvalid, "old_size",
			"the newest checkpoint covers %d entries only: if one that this tenant signed covers %d, keep it, because then the log was cut", size, old)
	}
	if p.Entry != nil && p.Entry.Seq > size {
		return Proofs{}, delegation.Unavailable("checkpoint", fmt.Errorf("entry %d is newer than the checkpoint, which covers %d", p.Entry.Seq, size))
	}
	if p.Entry != nil {
		if p.Inclusion, err = e.config.Ledger.ProveEntry(ctx, by.tenant.Name, p.Entry.Seq, size); err != nil {
			return Proofs{}, notProven(err)
		}
	}
	if old > 0 {
		if p.Consistency, err = e.config.Ledger.ProveGrowth(ctx, by.tenant.Name, old, size); err != nil {
			return Proofs{}, notProven(err)
		}
	}
	return p, nil
}

// notProven is the error of a ledger that lacks the data for a proof.
func notProven(err error) error {
	if errors.Is(err, ledger.ErrNotFound) {
		return delegation.Refuse(delegation.NotFound, "entry", "the log lacks what this proof needs: it is behind its checkpoint, or that part of it was dropped")
	}
	return delegation.AsError(err)
}
