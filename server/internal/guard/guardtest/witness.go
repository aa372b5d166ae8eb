package guardtest

import (
	"context"
	"errors"
	"fmt"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
)

// witness: the later incarnation and the newer entry are remembered, and lists are kept from a former one.
func witness(ctx context.Context, g, _ *guard.Guard) error {
	for i, step := range []struct {
		number, seq uint64
		id, want    string
		wantSeq     uint64
	}{{1, 5, "a", "a", 5}, {1, 4, "a", "a", 5}, {1, 9, "b", "a", 5}, {1, 7, "a", "a", 7}, {0, 99, "z", "a", 7}, {2, 3, "c", "c", 3}} {
		w := guard.Witness{Number: step.number, ID: step.id, Seq: step.seq, Leaf: [32]byte{byte(step.seq)}}
		if err := g.Testify(ctx, map[string]guard.Witness{"acme": w}); err != nil {
			return err
		}
		known, err := g.Witness(ctx, "acme")
		if err != nil {
			return err
		}
		if !known.There || known.ID != step.want || known.Seq != step.wantSeq || known.Leaf[0] != byte(step.wantSeq) {
			return fmt.Errorf("step %d: %+v", i, known)
		}
	}
	revocation := delegation.Revocation{Seq: 1, Target: delegation.Target{Kind: delegation.BanChain, ID: "x"}}
	g.On(1)
	if err := g.Publish(ctx, "acme", revocation); !errors.Is(err, guard.ErrSuperseded) {
		return fmt.Errorf("a former incarnation published: %w", err)
	}
	if err := g.Republish(ctx, "acme", nil, 8); !errors.Is(err, guard.ErrSuperseded) {
		return fmt.Errorf("a former incarnation made lists: %w", err)
	}
	g.On(2)
	if err := g.Publish(ctx, "acme", revocation); err != nil {
		return err
	}
	lost, complete, err := g.Remembered(ctx, "acme", 0)
	if err != nil || !complete || len(lost) != 1 || lost[0].Target != revocation.Target {
		return fmt.Errorf("remembered %v, complete %v: %w", lost, complete, err)
	}
	if err := g.Discard(ctx, "acme"); err != nil {
		return err
	}
	if _, complete, err := g.Remembered(ctx, "acme", 0); err != nil || complete {
		return fmt.Errorf("after it was discarded: complete %v: %w", complete, err)
	}
	if known, err := g.Witness(ctx, "acme"); err != nil || known.There {
		return fmt.Errorf("a discarded witness: %+v: %w", known, err)
	}
	return nil
}
