package guard

import (
	"context"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
)

// Witness is what Redis remembers of a tenant's ledger: the incarnation, and the newest entry that some instance saw.
// Nothing is concluded from a witness that is not there.
type Witness struct {
	There  bool
	Number uint64 // of the incarnation
	ID     string
	Seq    uint64
	Leaf   [32]byte
}

// ErrSuperseded means that Redis holds a later incarnation of the ledger than the one that this instance is on. Nothing of the
// former one is published.
var ErrSuperseded = errors.New("guard: Redis knows a later incarnation of the ledger")

//go:embed witness.lua
var witnessSource string

var testify = redis.NewScript(witnessSource)

func witnessKey(tenant string) string { return key(tenant, "ledger", "witness") }

// On says of which incarnation what is published from now on is. Lists of a later one are left alone.
func (g *Guard) On(incarnation uint64) { g.incarnation.Store(incarnation) }

// Testify remembers how far the ledgers of some tenants have come, each unless Redis knows more.
func (g *Guard) Testify(ctx context.Context, of map[string]Witness) (err error) {
	if len(of) == 0 {
		return nil
	}
	defer g.observe("testify", time.Now(), &err)
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	pipe := g.client.Pipeline()
	for tenant, w := range of {
		testify.Eval(ctx, pipe, []string{witnessKey(tenant)}, w.Number, w.ID, w.Seq, hex.EncodeToString(w.Leaf[:]))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return delegation.Unavailable(dependency, err)
	}
	return nil
}

// Witness returns what Redis remembers of one tenant's ledger.
func (g *Guard) Witness(ctx context.Context, tenant string) (w Witness, err error) {
	defer g.observe("witness", time.Now(), &err)
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	w, err = readWitness(g.client.HGetAll(ctx, witnessKey(tenant)))
	if err != nil {
		return Witness{}, delegation.Unavailable(dependency, err)
	}
	return w, nil
}

// readWitness takes what is no witness for one that is not there: Redis may lose and damage what it holds.
func readWitness(answer *redis.MapStringStringCmd) (w Witness, err error) {
	fields, err := answer.Result()
	if wrongType(err) {
		return Witness{}, nil
	}
	if err != nil {
		return Witness{}, err
	}
	number, errNumber := strconv.ParseUint(fields["number"], 10, 63)
	seq, errSeq := strconv.ParseUint(fields["seq"], 10, 63)
	leaf, errLeaf := hex.DecodeString(fields["leaf"])
	if errors.Join(errNumber, errSeq, errLeaf) != nil || len(leaf) != len(w.Leaf) || fields["id"] == "" {
		return Witness{}, nil
	}
	return Witness{There: true, Number: number, ID: fields["id"], Seq: seq, Leaf: [32]byte(leaf)}, nil
}

// Discard removes a tenant's lists, its events and its witness: they are of an incarnation that was given up.
func (g *Guard) Discard(ctx context.Context, tenant string) (err error) {
	defer g.observe("discard", time.Now(), &err)
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	n := listsOf(tenant)
	if err := g.client.Unlink(ctx, n.list, n.events, witnessKey(tenant)).Err(); err != nil {
		return delegation.Unavailable(dependency, err)
	}
	return nil
}

// Remembered returns what Redis holds of a tenant's revocations above a number: of each target the latest one. What was
// resumed there is not among it. complete is false where there are no lists.
func (g *Guard) Remembered(ctx context.Context, tenant string, above uint64) (list []delegation.Revocation, complete bool, err error) {
	n := listsOf(tenant)
	for cursor, done := uint64(0), false; !done; done = cursor == 0 {
		var pairs []string
		if pairs, cursor, err = g.scan(ctx, tenant, cursor); err != nil {
			if wrongType(err) {
				return nil, false, nil
			}
			return nil, false, delegation.Unavailable(dependency, fmt.Errorf("%s: %w", n.list, err))
		}
		for i := 0; i+1 < len(pairs); i += 2 {
			if pairs[i] == headField {
				complete = true
				continue
			}
			m, good := parseMark(pairs[i+1])
			target, known := targetOf(pairs[i])
			switch {
			case !good || !known:
				return nil, false, nil
			case m.seq > above:
				r := delegation.Revocation{Seq: m.seq, Target: target}
				if m.ends != 0 {
					r.Until = time.UnixMilli(m.ends)
				}
				list = append(list, r)
			}
		}
	}
	return list, complete, nil
}
