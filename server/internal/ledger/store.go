package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
)

// store is one SQL dialect. Both dialects give the same guarantees, which the suite in ledgertest
// verifies: begin holds the tenant's head until the transaction ends, and what commit wrote is
// durable.
type store interface {
	querier // one statement, one snapshot

	// begin opens a transaction and locks the tenant's head, which it creates for a new tenant. It
	// then answers the questions, in statements of their own that see everything that was committed
	// before.
	begin(ctx context.Context, tenant string, q questions) (transaction, facts, error)

	// settle finds out, under the lock of the head, whether the transaction that wrote the evidence
	// was committed. It answers after a commit of its own, which is durable only if everything
	// before it is.
	settle(ctx context.Context, tenant string, e evidence) (committed bool, err error)

	// among runs a statement that ends with the name of a column, for the rows whose column is one
	// of the tenants. The number of tenants is not limited.
	among(ctx context.Context, sql string, tenants []string) (rows, error)

	// view runs all of f's statements on one snapshot.
	view(ctx context.Context, f func(querier) error) error

	// change runs all of f's statements in one transaction, which locks no head.
	change(ctx context.Context, f func(changer) error) error

	// renew makes later statements use new connections.
	renew()
	// revocations is the statement that reads a tenant's revocations (scanRevocations).
	revocations() string

	// time is the database's clock; zero if it has none of its own.
	time(ctx context.Context) (time.Time, error)

	ready(ctx context.Context) error
	close() error

	// physical returns on which server the transaction runs. below returns the server of the newest
	// connection.
	physical(ctx context.Context, db querier) (physical, error)
	below() physical
	// touch takes the table locks that an append takes, and releases them with the transaction.
	touch(ctx context.Context, db changer) error
}

type transaction interface {
	// commit writes and commits. After an error that is errUnknown the outcome is open; after any
	// other error nothing was written. In both cases the transaction is over. The error is errTaken
	// if an entry has the id of another one.
	commit(ctx context.Context, w *writes) error
	// rollback ends the transaction without a trace.
	rollback()
}

// errUnknown is the outcome of a COMMIT whose answer was lost.
var errUnknown = errors.New("the outcome of the commit is unknown")

// errTaken is returned where an entry to be written has the id of a recorded one.
var errTaken = errors.New("an entry has the id of another one")

// idIndex is the index whose violation is errTaken.
const idIndex = "entries_jti"

// querier runs one statement. Both dialects take $1, $2, … as parameters.
type querier interface {
	query(ctx context.Context, sql string, args ...any) (rows, error)
}

// changer also changes rows, and returns how many.
type changer interface {
	querier
	change(ctx context.Context, sql string, args ...any) (changed int64, err error)
}

type rows interface {
	Next() bool
	Scan(...any) error
	Err() error
	Close()
}

// head is a tenant's row in heads.
type head struct {
	seq        uint64
	time       int64 // of the newest entry, microseconds
	revocation uint64
	pruned     int64      // what ended by then may be gone, microseconds
	longest    int64      // the latest expiry of a grant, microseconds
	tree       audit.Edge // of seq entries
	damaged    error      // the tree is not one of seq entries, so nothing can be appended
}

// headRow is what sqlLockRow selects.
type headRow struct {
	seq, at, revocation, pruned, longest int64
	tree                                 []byte
}

func (r *headRow) columns() []any {
	return []any{&r.seq, &r.at, &r.revocation, &r.tree, &r.pruned, &r.longest}
}

func (r *headRow) head() head {
	h := head{seq: uint64(r.seq), time: r.at, revocation: uint64(r.revocation), pruned: r.pruned, longest: r.longest}
	h.tree, h.damaged = parseEdge(h.seq, r.tree)
	return h
}

type digest = [sha256.Size]byte

// questions are what a batch must look up before it can decide.
type questions struct {
	revokedAfter uint64      // revocations with a higher number …
	revokedUntil int64       // … that end after this or never; the newest in any case
	uses         []digest    // which of these are used?
	keys         []digest    // which of these idempotency keys are taken?
	ids          []string    // which of these entries exist?
	voids        []uint64    // which of these are grants?
	now          int64       // claims that ended before this are not given out
	known        memory      // is it there?
	life         Incarnation // is this still the ledger's incarnation?
}

type facts struct {
	head        head
	asked       time.Duration // when the transaction began, by clock.Elapsed
	server      time.Time     // by the database's clock, with the head locked; zero: it has none of its own
	revocations []delegation.Revocation
	used        map[digest]bool
	keys        map[digest]storedKey
	ids         map[string]bool
	grants      map[uint64]bool
	witness     witness
}

func newFacts() facts {
	return facts{used: map[digest]bool{}, keys: map[digest]storedKey{}, ids: map[string]bool{}, grants: map[uint64]bool{}}
}

// storedKey is an idempotency key with the grant that it names.
type storedKey struct {
	fingerprint [32]byte
	seq         uint64
	time        time.Time
	claims      []byte // nil: expired, voided or erased
}

// writes are all that one transaction writes.
type writes struct {
	tenant  string
	batch   []byte  // distinguishes this transaction's single-use rows from others
	expired int64   // what ended before this may be pruned: at most head.pruned
	prune   pruning // at most that much of it; zero: nothing now
	// claimsFrom is a number below which no claims are left. A store that prunes may raise it.
	claimsFrom uint64
	head       head
	entries    []*Entry
	nodes      []audit.Node // of the tree, to be stored
	claims     []claimsRow
	uses       []useRow
	keys       []keyRow
	voids      []uint64
}

type claimsRow struct {
	seq   uint64
	until int64
	value []byte
}

type useRow struct {
	digest digest
	until  int64
}

type keyRow struct {
	digest, fingerprint digest
	seq                 uint64
	until               int64
}

func (w *writes) empty() bool { return len(w.entries) == 0 && len(w.uses) == 0 }

// evidence identifies a transaction by one row that no other transaction can have written.
type evidence struct {
	seq   uint64 // with leaf: of its first entry; salts make the leaf unique
	leaf  []byte
	use   []byte // with batch: digest of its first single use, if it wrote no entry
	batch []byte
}

func (w *writes) evidence() evidence {
	if len(w.entries) > 0 {
		return evidence{seq: w.entries[0].Seq, leaf: w.entries[0].Leaf[:]}
	}
	return evidence{use: w.uses[0].digest[:], batch: w.batch}
}

func (e evidence) query(tenant string) (sql string, args []any) {
	if e.leaf != nil {
		return `SELECT count(*) FROM entries WHERE tenant = $1 AND seq = $2 AND leaf = $3`, []any{tenant, int64(e.seq), e.leaf}
	}
	return `SELECT count(*) FROM single_uses WHERE tenant = $1 AND digest = $2 AND batch = $3`, []any{tenant, e.use, e.batch}
}

// nameDigest is a fixed-size name for parts of any length. Length prefixes prevent that different
// parts get the same name.
func nameDigest(parts ...string) digest {
	b := make([]byte, 0, 512)
	for _, p := range parts {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(p))), p...)
	}
	return sha256.Sum256(b)
}

func (u SingleUse) digest() digest { return nameDigest("use", u.Issuer, u.Key, u.ID) }

func keyDigest(caller delegation.Principal, key string) digest {
	return nameDigest("idempotency", string(caller), key)
}

// Statements that are the same in both dialects.
const (
	sqlLockRow = `SELECT seq, time, revocation, tree, pruned_through, longest FROM heads WHERE tenant = $1`
	sqlNewHead = `INSERT INTO heads (tenant, seq, time, revocation) VALUES ($1, 0, 0, 0) ON CONFLICT DO NOTHING`
	sqlHead    = `UPDATE heads SET seq = $2, time = $3, revocation = $4, tree = $5, tree_size = $2,
		pruned_through = $6, longest = $7 WHERE tenant = $1`
	sqlTouch = `UPDATE heads SET seq = seq WHERE tenant = $1`

	// One statement, so that the head's numbers and the rows come from one snapshot. Two
	// expressions of the dialect precede it: 1 on a standby, else 0, and the server's clock.
	sqlRevocations = `, (SELECT number FROM incarnation), h.seq, h.revocation, h.pruned_through, coalesce(e.seq, 0), coalesce(e.prev, 0), coalesce(e.time, 0), coalesce(e.until, 0),
		coalesce(e.target_kind, ''), coalesce(e.target_id, ''), coalesce(e.target_principal, ''), coalesce(e.target_subject, '')
		FROM heads h LEFT JOIN (SELECT seq, prev, time, until, target_kind, target_id, target_principal, target_subject FROM entries
			WHERE tenant = $1 AND kind = 'revocation' AND seq > $2
			AND (until = 0 OR until > $3 OR seq = (SELECT revocation FROM heads WHERE tenant = $1))
			ORDER BY seq LIMIT $4) e ON 1 = 1
		WHERE h.tenant = $1 ORDER BY e.seq`
	everything = int64(math.MaxInt64) // as a LIMIT

	// SQLite compiles a statement again each time that a parameter of LIMIT is bound, so the limit
	// is written out.
	sqlPruneUses = `DELETE FROM single_uses WHERE tenant = $1 AND digest IN
		(SELECT digest FROM single_uses WHERE tenant = $1 AND until > 0 AND until < $2 ORDER BY until LIMIT `
	sqlPruneKeys = `DELETE FROM idempotency_keys WHERE tenant = $1 AND digest IN
		(SELECT digest FROM idempotency_keys WHERE tenant = $1 AND until > 0 AND until < $2 ORDER BY until LIMIT `
	// Claims are pruned in the order of their numbers, which needs no index. Expired claims stay at
	// most for the longest life of a token. The database reads a range of numbers as a range,
	// whatever its statistics of the table are.
	sqlPruneClaims = `DELETE FROM claims WHERE tenant = $1 AND until < $2
		AND seq >= (SELECT min(seq) FROM claims WHERE tenant = $1) AND seq < (SELECT min(seq) FROM claims WHERE tenant = $1) + $3`
)

// pruning is how much was added since the last pruning, or how much may be removed.
type pruning struct{ uses, keys, claims int }

const (
	// pruneAfter and pruneEvery are when a transaction prunes: after that many additions by earlier
	// ones, or after that time. The look-up of what has ended costs more than its removal.
	pruneAfter = 128
	pruneEvery = time.Second
)

// added is what the transaction adds. Claims are counted as numbers, including those of entries
// without claims.
func (w *writes) added() pruning { return pruning{len(w.uses), len(w.keys), len(w.entries)} }

func (p pruning) plus(q pruning) pruning {
	return pruning{p.uses + q.uses, p.keys + q.keys, p.claims + q.claims}
}

func (p pruning) due() bool { return p.uses+p.keys+p.claims >= pruneAfter }

// limits are a few powers of two, so that there are few statements in which they are written out.
// They are at least twice what was added, and less than four times that. This always keeps up, at a
// bounded price.
func (p pruning) limits() pruning {
	return pruning{atLeastTwice(p.uses), atLeastTwice(p.keys), atLeastTwice(p.claims)}
}

func atLeastTwice(n int) int {
	if n == 0 {
		return 0
	}
	limit := 2
	for limit < 2*n {
		limit *= 2
	}
	return limit
}

// news is what a statement of revocations returned.
type news struct {
	found  bool   // the tenant has a head
	of     uint64 // number of the incarnation that was read
	head   uint64 // number of the tenant's newest entry
	newest uint64 // number of the tenant's newest revocation
	pruned int64  // as in head
	server time.Time
	list   []delegation.Revocation
}

// scanRevocations reads the rows of a statement of revocations. A revocation that has ended may
// have lost its target, and then hits nothing.
func scanRevocations(r rows, now int64) (n news, err error) {
	defer r.Close()
	for r.Next() {
		var standby, server, seq, prev, at, until int64
		var kind, id, principal, subject string
		if err := r.Scan(&standby, &server, &n.of, &n.head, &n.newest, &n.pruned, &seq, &prev, &at, &until, &kind, &id, &principal, &subject); err != nil {
			return news{}, err
		}
		if standby != 0 {
			return news{}, errStandby
		}
		n.found, n.server = true, fromMicros(server)
		if seq == 0 {
			continue // the head without a revocation
		}
		v := delegation.Revocation{
			Seq: uint64(seq), Prev: uint64(prev), At: fromMicros(at), Until: fromMicros(until),
			Target: joinTarget(kind, id, principal, subject),
		}
		if err := checkTarget(v); err != nil && until != 0 && until < now {
			v.Target = erasedTarget
		} else if err != nil { // without its target, a live revocation would revive what it hit
			return news{}, fmt.Errorf("revocation %d is damaged or was erased while it was live: %w", seq, err)
		}
		n.list = append(n.list, v)
	}
	return n, r.Err()
}

// erasedTarget replaces the target of a revocation that has ended and whose target was erased. No
// token has this id.
var erasedTarget = delegation.Target{Kind: delegation.BanToken, ID: "erased"}

func joinTarget(kind, id, principal, subject string) delegation.Target {
	k := delegation.TargetKind(kind)
	if i := slices.Index(targetKinds, k); i >= 0 {
		k = targetKinds[i] // one string for a million revocations
	}
	return delegation.Target{Kind: k, ID: id + principal, Subject: delegation.Principal(subject)}
}

var targetKinds = []delegation.TargetKind{
	delegation.BanToken, delegation.BanChain, delegation.BanRoot, delegation.BanKey, delegation.BanSuspend,
	delegation.CutSubject, delegation.CutAgent, delegation.CutAgentSubject, delegation.CutTenant, delegation.Resume,
	delegation.CutFork,
}

// entryColumns are the columns of entries in the order of record.fields.
const entryColumns = `tenant, seq, kind, time, jti, parent, txn, root, holder_key, outcome, reason, scopes, audiences, ` +
	`expiry, model_id, trace_id, voids, prev, target_kind, target_id, until, subject, actor, caller, actors, peer, detail, ` +
	`details, actor_proof, target_principal, target_subject, digests, salts, leaf`

// sqlEntries selects entries (e) with their claims (c); a condition follows.
var sqlEntries = `SELECT e.` + strings.ReplaceAll(entryColumns, ", ", ", e.") + `, c.value FROM entries e
	LEFT JOIN claims c ON c.tenant = e.tenant AND c.seq = e.seq WHERE `

// record is a row of entries in the types that both databases store.
type record struct {
	tenant                             string
	seq                                int64
	kind                               string
	time                               int64
	jti, parent, txn, root, holderKey  string
	outcome, reason, scopes, audiences string
	expiry                             int64
	modelID, traceID                   string
	voids, prev                        int64
	targetKind, targetID               string
	until                              int64
	subject, actor, caller, actors     string
	peer, detail, details, actorProof  string
	targetPrincipal, targetSubject     string
	digests, salts, leaf               []byte
}

// columns is the number of a record's fields.
const columns = 34

// fields are pointers to the record's parts, for reading and writing.
func (r *record) fields() [columns]any {
	return [columns]any{
		&r.tenant, &r.seq, &r.kind, &r.time, &r.jti, &r.parent, &r.txn, &r.root, &r.holderKey, &r.outcome, &r.reason,
		&r.scopes, &r.audiences, &r.expiry, &r.modelID, &r.traceID, &r.voids, &r.prev, &r.targetKind, &r.targetID,
		&r.until, &r.subject, &r.actor, &r.caller, &r.actors, &r.peer, &r.detail, &r.details, &r.actorProof,
		&r.targetPrincipal, &r.targetSubject, &r.digests, &r.salts, &r.leaf,
	}
}

func (e *Entry) record() (*record, error) {
	r := &record{
		tenant: e.Tenant, seq: int64(e.Seq), kind: string(e.Kind), time: micros(e.Time), jti: e.ID, parent: e.Parent,
		txn: e.Txn, root: e.Root, holderKey: e.HolderKey, outcome: string(e.Outcome), reason: string(e.Reason),
		scopes: e.Scopes.String(), audiences: "[]", expiry: micros(e.Expiry), modelID: e.ModelID, traceID: e.TraceID,
		voids: int64(e.Voids), subject: string(e.Subject), actor: string(e.Actor), caller: string(e.Caller),
		actors: joinChain(e.Actors), peer: e.Peer, detail: e.Detail, details: joinDetails(e.Details),
		actorProof: e.ActorProof, digests: e.digests.bytes(), salts: e.salts.bytes(), leaf: e.Leaf[:],
	}
	if len(e.Audiences) > 0 {
		raw, err := json.Marshal(e.Audiences)
		if err != nil {
			return nil, err
		}
		r.audiences = string(raw)
	}
	if v := e.Revocation; v != nil {
		r.prev, r.targetKind, r.until = int64(v.Prev), string(v.Target.Kind), micros(v.Until)
		r.targetID, r.targetPrincipal = splitTarget(v.Target)
		r.targetSubject = string(v.Target.Subject)
	}
	return r, nil
}

func (r *record) entry(claims []byte) (*Entry, error) {
	e := &Entry{
		Tenant: r.tenant, Seq: uint64(r.seq), Kind: Kind(r.kind), Time: fromMicros(r.time), ID: r.jti, Parent: r.parent,
		Txn: r.txn, Root: r.root, HolderKey: r.holderKey, Outcome: Outcome(r.outcome), Reason: delegation.Reason(r.reason),
		Expiry: fromMicros(r.expiry), ModelID: r.modelID, TraceID: r.traceID, Voids: uint64(r.voids),
		Subject: delegation.Principal(r.subject), Actor: delegation.Principal(r.actor), Caller: delegation.Principal(r.caller),
		Actors: splitChain(r.actors), Peer: r.peer, Detail: r.detail, ActorProof: r.actorProof, Claims: claims,
	}
	var err error
	damaged := func(column string, err error) (*Entry, error) {
		return nil, fmt.Errorf("%w: entry %d: column %s: %w", errDamaged, r.seq, column, err)
	}
	if r.scopes != "" {
		if e.Scopes, err = delegation.ParseScopes(r.scopes); err != nil {
			return damaged("scopes", err)
		}
	}
	if err := json.Unmarshal([]byte(r.audiences), &e.Audiences); err != nil {
		return damaged("audiences", err)
	}
	if r.details != "" {
		if e.Details, err = delegation.ParseDetails([]byte(r.details)); err != nil {
			return damaged("details", err)
		}
	}
	if e.digests, err = parseSealed(r.digests); err != nil {
		return damaged("digests", err)
	}
	if e.salts, err = parseSealed(r.salts); err != nil {
		return damaged("salts", err)
	}
	if copy(e.Leaf[:], r.leaf) != len(e.Leaf) || len(r.leaf) != len(e.Leaf) {
		return damaged("leaf", errors.New("it is not a SHA-256"))
	}
	if e.Kind == KindRevocation {
		e.Revocation = &delegation.Revocation{
			Seq: e.Seq, Prev: uint64(r.prev), At: e.Time, Until: fromMicros(r.until),
			Target: joinTarget(r.targetKind, r.targetID, r.targetPrincipal, r.targetSubject),
		}
	}
	return e, nil
}
