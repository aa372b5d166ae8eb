package ledger

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Entry returns the entry with the given jti, of any kind: a refusal may have one too.
func (l *Ledger) Entry(ctx context.Context, tenant, jti string) (*Entry, error) {
	return l.one(ctx, tenant, `e.tenant = $1 AND e.jti = $2 AND e.jti <> ''`, jti)
}

// EntryAt returns the entry with the given number.
func (l *Ledger) EntryAt(ctx context.Context, tenant string, seq uint64) (*Entry, error) {
	return l.one(ctx, tenant, `e.tenant = $1 AND e.seq = $2`, int64(seq))
}

const sqlAfter = `e.tenant = $1 AND e.seq > $2 AND e.seq > ` + sqlThrough + ` ORDER BY e.seq LIMIT $3`

// Entries returns up to limit entries with numbers above after, in order. They begin after the
// dropped ones (Dropped), even if a revocation among those is still in force.
func (l *Ledger) Entries(ctx context.Context, tenant string, after uint64, limit int) ([]*Entry, error) {
	return l.entries(ctx, sqlAfter, tenant, stored(after), int64(limit))
}

// stored is a number as the databases hold it. A number that they cannot hold is above all that
// they have. It must not become a negative one, which would be below.
func stored(seq uint64) int64 { return int64(min(seq, math.MaxInt64)) }

// First returns the grant that began the chain with the given txn.
func (l *Ledger) First(ctx context.Context, tenant, txn string) (*Entry, error) {
	return l.one(ctx, tenant, `e.tenant = $1 AND e.txn = $2 AND e.txn <> '' AND e.kind = 'grant' ORDER BY e.seq LIMIT 1`, txn)
}

// sqlUp follows parents from a grant up.
const sqlUp = `e.tenant = $1 AND e.seq IN (WITH RECURSIVE up(seq, parent, depth) AS (
		SELECT seq, parent, 1 FROM entries WHERE tenant = $1 AND jti = $2 AND jti <> '' AND kind = 'grant'
		UNION ALL
		SELECT p.seq, p.parent, up.depth + 1 FROM up JOIN entries p
			ON p.tenant = $1 AND p.jti = up.parent AND p.jti <> '' AND p.kind = 'grant'
			WHERE up.parent <> '' AND up.depth < $3)
		SELECT seq FROM up) ORDER BY e.seq`

// Chain returns the grants that led to the token with the given jti, from the exchange of the root
// token to the token itself. If the beginning was dropped for its age, the first returned grant has
// a Parent.
func (l *Ledger) Chain(ctx context.Context, tenant, jti string) ([]*Entry, error) {
	chain, err := l.entries(ctx, sqlUp, tenant, jti, int64(delegation.MaxChainDepth))
	switch {
	case err != nil:
		return nil, err
	case len(chain) == 0:
		return nil, ErrNotFound
	case chain[0].Parent == "":
		return chain, nil
	}
	_, dropped, err := l.Dropped(ctx, tenant)
	switch {
	case err != nil:
		return nil, err
	case !dropped:
		return nil, failed(fmt.Errorf("%w: the chain of entry %d lacks its beginning", errDamaged, chain[len(chain)-1].Seq))
	}
	return chain, nil
}

// Stored is what an idempotency key names.
type Stored struct {
	Fingerprint [32]byte
	Seq         uint64
	Time        time.Time
	Claims      []byte // nil: the grant has expired or was voided
}

// Lookup returns what an idempotency key of the caller names at the moment, or ErrNotFound. It may
// save work; the look-up in Append's transaction decides.
func (l *Ledger) Lookup(ctx context.Context, tenant string, caller delegation.Principal, key string) (*Stored, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	name := keyDigest(caller, key)
	k, err := lookUpKey(ctx, l.store, tenant, name[:], micros(l.config.Now()))
	switch {
	case err != nil:
		return nil, unavailable(err)
	case k == nil:
		return nil, ErrNotFound
	}
	return &Stored{Fingerprint: k.fingerprint, Seq: k.seq, Time: k.time, Claims: k.claims}, nil
}

// sqlKeys selects idempotency keys (k) with what they name; their source follows. The subqueries
// use the whole primary key, where a planner that takes the tables to be empty would join all of
// the tenant's rows. A key may outlive its grant, which was dropped for its age: the key is taken,
// and its grant is gone.
const sqlKeys = `SELECT k.digest, k.fingerprint, k.seq,
	coalesce((SELECT e.time FROM entries e WHERE e.tenant = $1 AND e.seq = k.seq), 0),
	(SELECT c.value FROM claims c WHERE c.tenant = $1 AND c.seq = k.seq AND c.until > $3) FROM `

func lookUpKey(ctx context.Context, db querier, tenant string, name []byte, now int64) (*storedKey, error) {
	found, err := db.query(ctx, sqlKeys+`idempotency_keys k WHERE k.tenant = $1 AND k.digest = $2`, tenant, name, now)
	if err != nil {
		return nil, err
	}
	keys := map[digest]storedKey{}
	if err := scanKeys(found, keys); err != nil {
		return nil, err
	}
	if key, taken := keys[digest(name)]; taken {
		return &key, nil
	}
	return nil, nil
}

func scanKeys(r rows, into map[digest]storedKey) error {
	defer r.Close()
	for r.Next() {
		var name, fingerprint, claims []byte
		var seq, at int64
		if err := r.Scan(&name, &fingerprint, &seq, &at, &claims); err != nil {
			return err
		}
		if len(name) != len(digest{}) || len(fingerprint) != len(digest{}) {
			return fmt.Errorf("the idempotency key of entry %d is damaged", seq)
		}
		into[digest(name)] = storedKey{fingerprint: digest(fingerprint), seq: uint64(seq), time: fromMicros(at), claims: claims}
	}
	return r.Err()
}

func (l *Ledger) one(ctx context.Context, tenant, where string, arg any) (*Entry, error) {
	found, err := l.entries(ctx, where, tenant, arg)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, ErrNotFound
	}
	return found[0], nil
}

func (l *Ledger) entries(ctx context.Context, where string, args ...any) ([]*Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	list, err := scanEntries(ctx, l.store, where, args...)
	if err != nil {
		return nil, failed(err)
	}
	return list, nil
}

// errDamaged is about rows that are missing, or that no entry was ever stored as. Another read
// gives the same.
var errDamaged = errors.New("the ledger is not what was recorded")

// failed translates the error of a read: damage is permanent, everything else may pass.
func failed(err error) error {
	if errors.Is(err, errDamaged) {
		return delegation.Refuse(delegation.LedgerDamaged, "",
			"the ledger lacks, or has changed, what it recorded: keep it and its backups as they are, and run 'deputy log verify'").WithCause(err)
	}
	return unavailable(err)
}

// entryPage is how many entries one statement takes by their numbers.
const entryPage = 100

// numbered are entryPage parameters from $2 on, the same for every list, so that both databases
// prepare one statement.
var numbered = func() string {
	var in strings.Builder
	for i := range entryPage {
		fmt.Fprintf(&in, ", $%d", i+2)
	}
	return in.String()[2:]
}()

// byNumber are the arguments for numbered. The last number fills the remaining places.
func byNumber(tenant string, seqs []uint64) []any {
	args := append(make([]any, 0, 1+entryPage), tenant)
	for i := range entryPage {
		args = append(args, int64(seqs[min(i, len(seqs)-1)]))
	}
	return args
}

var sqlEntriesIn = `e.tenant = $1 AND e.seq IN (` + numbered + `) ORDER BY e.seq`

// entriesAt returns those of up to entryPage entries that exist, in order.
func entriesAt(ctx context.Context, db querier, tenant string, seqs []uint64) ([]*Entry, error) {
	return scanEntries(ctx, db, sqlEntriesIn, byNumber(tenant, seqs)...)
}

func scanEntries(ctx context.Context, db querier, where string, args ...any) ([]*Entry, error) {
	found, err := db.query(ctx, sqlEntries+where, args...)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	var list []*Entry
	for found.Next() {
		var r record
		var claims []byte
		fields := r.fields()
		if err := found.Scan(append(fields[:], &claims)...); err != nil {
			return nil, err
		}
		e, err := r.entry(claims)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, found.Err()
}
