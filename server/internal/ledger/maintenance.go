package ledger

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maintainEvery is how long Maintain pauses when there is nothing to do.
const maintainEvery = time.Second

// retainEvery is in how many pauses each tenant's retention is looked at once, where there are many
// tenants. What retention removes is a day old at least.
const retainEvery = 60

// round is one piece of work for one tenant: small, and safe to interrupt or to repeat.
type round struct {
	name string
	do   func(ctx context.Context, tenant string) (more bool, err error)
}

// Maintain does the background work of the tenants' ledgers until ctx ends. It builds the search
// index, repairs it, and removes what is older than Config.Retention. Any number of instances may
// do so on one database. Failures are logged and tried again. Tenants without work cost one
// statement together.
func (l *Ledger) Maintain(ctx context.Context, tenants ...string) error {
	var retained []string
	for _, tenant := range tenants {
		if l.config.Retention[tenant] != (Retention{}) {
			retained = append(retained, tenant)
		}
	}
	for turn := 0; ; turn = (turn + 1) % retainEvery {
		some := retained // few: all of them each time
		if n := len(retained); n > retainEvery {
			some = retained[n*turn/retainEvery : n*(turn+1)/retainEvery]
		}
		for more := true; more && ctx.Err() == nil; {
			more = false
			for _, work := range []struct {
				round
				tenants []string
			}{{round{"index", l.index}, l.unindexed(ctx, tenants)}, {round{"mend", l.mend}, l.lost.tenants()}, {round{"retain", l.retain}, some}} {
				for _, tenant := range work.tenants {
					more = l.runRound(ctx, tenant, work.round) || more
				}
			}
		}
		rest := time.NewTimer(maintainEvery)
		select {
		case <-rest.C:
		case <-ctx.Done():
			rest.Stop()
			return nil
		}
	}
}

// unindexed returns those of the tenants whose index lacks a whole block, or was never begun.
func (l *Ledger) unindexed(ctx context.Context, tenants []string) (list []string) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	found, err := l.store.among(ctx, sqlUnindexed, tenants)
	if err == nil {
		err = eachRow(found, func() error {
			var tenant string
			err := found.Scan(&tenant)
			list = append(list, tenant)
			return err
		})
	}
	if err != nil && ctx.Err() == nil {
		l.config.Logger.Error("maintenance failed", "round", "find work", "error", err)
	}
	return list
}

func (l *Ledger) runRound(ctx context.Context, tenant string, r round) (more bool) {
	bounded, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	more, err := r.do(bounded, tenant)
	if err != nil && ctx.Err() == nil {
		l.config.Logger.Error("maintenance failed", "round", r.name, "tenant", tenant, "error", err)
	}
	return more && err == nil
}

// Statements of the search index.
const (
	sqlNewSearchHead = `INSERT INTO search_heads (tenant, block, version) VALUES ($1, 0, 0) ON CONFLICT DO NOTHING`
	// sqlUnindexed names those of the tenants (store.among) whose index does not reach their last
	// whole block.
	sqlUnindexed  = `SELECT h.tenant FROM heads h LEFT JOIN search_heads s ON s.tenant = h.tenant WHERE (s.tenant IS NULL OR h.seq >= (s.block + 1) * 512) AND h.tenant`
	sqlSearchHead = `SELECT h.seq, s.block, s.version FROM heads h JOIN search_heads s ON s.tenant = h.tenant WHERE h.tenant = $1`
	// sqlAdvance and sqlSettled succeed only if the index was not advanced, and no indexed entry
	// was changed, since its head was read. They lock it.
	sqlAdvance = `UPDATE search_heads SET block = block + 1 WHERE tenant = $1 AND block = $2 AND version = $3`
	sqlSettled = `UPDATE search_heads SET block = block WHERE tenant = $1 AND block > $2 AND version = $3`
	// sqlUnsettle belongs in every transaction that changes what entries are found by. It prevents
	// that values which were read before it get into the index. The blocks must be indexed again
	// after it.
	sqlUnsettle = `UPDATE search_heads SET version = version + 1 WHERE tenant = $1`
)

// sqlBlock writes all rows of one block.
var sqlBlock = func() string {
	var values strings.Builder
	for i := range buckets {
		values.WriteString(", ($1, " + strconv.Itoa(i) + ", $2, $" + strconv.Itoa(i+3) + ")")
	}
	return `INSERT INTO postings (tenant, bucket, block, terms) VALUES ` + values.String()[2:] +
		` ON CONFLICT (tenant, bucket, block) DO UPDATE SET terms = excluded.terms`
}()

// sqlUnindex removes a block from the index. It names the buckets, because the key begins with
// them.
var sqlUnindex = func() string {
	var in strings.Builder
	for i := range buckets {
		in.WriteString(", " + strconv.Itoa(i))
	}
	return `DELETE FROM postings WHERE tenant = $1 AND block = $2 AND bucket IN (` + in.String()[2:] + `)`
}()

// unindex belongs in every transaction that removes something from a block's entries: no search
// finds it afterwards. Searches read the block itself until it is indexed again.
func (l *Ledger) unindex(ctx context.Context, db changer, tenant string, block uint64) error {
	if _, err := db.change(ctx, sqlUnsettle, tenant); err != nil {
		return err
	}
	_, err := db.change(ctx, sqlUnindex, tenant, int64(block))
	return err
}

// searchHead is a tenant's row in search_heads, and the number of its newest entry.
type searchHead struct{ seq, block, version uint64 }

func (l *Ledger) searchHead(ctx context.Context, tenant string) (h searchHead, there bool, err error) {
	found, err := l.store.query(ctx, sqlSearchHead, tenant)
	if err != nil {
		return h, false, err
	}
	err = eachRow(found, func() error {
		there = true
		return found.Scan(&h.seq, &h.block, &h.version)
	})
	return h, there, err
}

// index builds the next block of the tenant's index, if the block has all its entries. Other
// instances may build the same one; the first one wins.
func (l *Ledger) index(ctx context.Context, tenant string) (more bool, err error) {
	h, there, err := l.searchHead(ctx, tenant)
	if err == nil && !there {
		err = l.store.change(ctx, func(db changer) error {
			_, err := db.change(ctx, sqlNewSearchHead, tenant)
			return err
		})
		if err == nil {
			h, there, err = l.searchHead(ctx, tenant)
		}
	}
	if err != nil || !there || h.seq < firstOf(h.block+1)-1 {
		return false, err
	}
	_, err = l.build(ctx, tenant, h.block, sqlAdvance, h.block, h)
	return err == nil, err
}

// IndexBuilt reports whether the search index covers every whole block of the tenant's entries.
func (l *Ledger) IndexBuilt(ctx context.Context, tenant string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	h, there, err := l.searchHead(ctx, tenant)
	if err != nil {
		return false, unavailable(err)
	}
	return there && h.seq < firstOf(h.block+1)-1, nil
}

// reindex builds a block of the index again, after its entries have changed or its rows were lost.
// It does nothing above the end of the index.
func (l *Ledger) reindex(ctx context.Context, tenant string, block uint64) error {
	for {
		h, there, err := l.searchHead(ctx, tenant)
		if err != nil || !there || block >= min(h.block, h.seq/blockSize) {
			return err
		}
		if done, err := l.build(ctx, tenant, block, sqlSettled, block, h); done || err != nil {
			return err
		}
	}
}

// build reads the block's entries and writes its rows, if the condition still holds then.
func (l *Ledger) build(ctx context.Context, tenant string, block uint64, condition string, arg uint64, h searchHead) (done bool, err error) {
	entries, err := readFacets(ctx, l.store, tenant, firstOf(block), firstOf(block+1))
	if err != nil {
		return false, fmt.Errorf("block %d of the search index: %w", block, err)
	}
	args := []any{tenant, int64(block)}
	for _, row := range rowsOf(tenant, block, entries) {
		args = append(args, row)
	}
	err = l.store.change(ctx, func(db changer) error {
		n, err := db.change(ctx, condition, tenant, int64(arg), int64(h.version))
		if err != nil || n == 0 {
			return err
		}
		done = true
		_, err = db.change(ctx, sqlBlock, args...)
		return err
	})
	return done && err == nil, err
}

// lostBlocks are blocks of the index that a search found damaged.
type lostBlocks struct {
	mu     sync.Mutex
	blocks map[string]map[uint64]bool // by tenant
}

// mostLost bounds how many are remembered. A search finds the others again.
const mostLost = 4096

func (b *lostBlocks) note(tenant string, block uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.blocks[tenant] == nil {
		if b.blocks == nil {
			b.blocks = map[string]map[uint64]bool{}
		}
		b.blocks[tenant] = map[uint64]bool{}
	}
	if len(b.blocks[tenant]) < mostLost {
		b.blocks[tenant][block] = true
	}
}

// tenants are those with damaged blocks.
func (b *lostBlocks) tenants() (list []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for tenant, blocks := range b.blocks {
		if len(blocks) > 0 {
			list = append(list, tenant)
		}
	}
	return list
}

// next returns one damaged block of the tenant.
func (b *lostBlocks) next(tenant string) (block uint64, there bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for block := range b.blocks[tenant] {
		return block, true
	}
	return 0, false
}

func (b *lostBlocks) forget(tenant string, block uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.blocks[tenant], block)
}

// mend rebuilds a block that a search found damaged.
func (l *Ledger) mend(ctx context.Context, tenant string) (more bool, err error) {
	block, there := l.lost.next(tenant)
	if !there {
		return false, nil
	}
	l.config.Logger.Warn("search index block damaged", "tenant", tenant, "block", block)
	if err := l.reindex(ctx, tenant, block); err != nil {
		return false, err
	}
	l.lost.forget(tenant, block)
	return true, nil
}
