package guard

import (
	"context"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
)

//go:embed witness.lua
var witnessSource string

var testify = redis.NewScript(witnessSource)

func witnessKey(tenant string) string { return key(tenant, "ledger", "witness") }

func (s *redisStore) testify(ctx context.Context, of map[string]Witness) error {
	pipe := s.client.Pipeline()
	for tenant, w := range of {
		testify.Eval(ctx, pipe, []string{witnessKey(tenant)}, w.Number, w.ID, w.Seq, hex.EncodeToString(w.Leaf[:]))
	}
	_, err := pipe.Exec(ctx)
	return err
}

func (s *redisStore) witness(ctx context.Context, tenant string) (Witness, error) {
	return readWitness(s.client.HGetAll(ctx, witnessKey(tenant)))
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

// receiptsKey is the key of the receipts of one span of time, which expires as a whole.
func receiptsKey(tenant string, span int64) string {
	return key(tenant, "revoked", "receipts:"+strconv.FormatInt(span, 10))
}

func spanOf(t time.Time) int64 { return t.UnixMilli() / receiptsFor.Milliseconds() }

func (s *redisStore) saw(ctx context.Context, tenant string, receipts []Receipt) error {
	spans := make(map[int64][]any)
	for _, r := range receipts {
		span := spanOf(r.SeenAt)
		spans[span] = append(spans[span], r.connection(), fmt.Sprintf("%d:%d", r.Applied, r.SeenAt.UnixMilli()))
	}
	pipe := s.client.Pipeline()
	for span, pairs := range spans {
		name := receiptsKey(tenant, span)
		pipe.HSet(ctx, name, pairs...)
		pipe.PExpire(ctx, name, 3*receiptsFor)
	}
	_, err := pipe.Exec(ctx)
	return err
}

func (s *redisStore) receipts(ctx context.Context, tenant string, now time.Time) (list []Receipt, err error) {
	for span := spanOf(now) - 1; span <= spanOf(now)+1; span++ { // another instance's clock may be ahead
		found, err := s.client.HGetAll(ctx, receiptsKey(tenant, span)).Result()
		if err != nil {
			return nil, err
		}
		for connection, value := range found {
			r, valid := parseReceipt(connection, value)
			if !valid {
				return nil, fmt.Errorf("the receipt of %q is damaged", connection)
			}
			list = append(list, r)
		}
	}
	return list, nil
}

func parseReceipt(connection, value string) (Receipt, bool) {
	verifier, id, both := strings.Cut(connection, " ")
	first, second, two := strings.Cut(value, ":")
	applied, errApplied := strconv.ParseUint(first, 10, 64)
	seen, errSeen := strconv.ParseInt(second, 10, 64)
	r := Receipt{ID: id, Verifier: delegation.Principal(verifier), Applied: applied, SeenAt: time.UnixMilli(seen)}
	return r, both && two && errApplied == nil && errSeen == nil
}
