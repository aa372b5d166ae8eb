package ledgertest

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/server/internal/ledger"
)

// memory is a whole tree in memory, made by the library alone: what the ledger's must equal.
type memory []tlog.Hash

func (m memory) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	list := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		list[i] = m[index]
	}
	return list, nil
}

func (m *memory) add(b *bench, n int64, leaf tlog.Hash) {
	more, err := tlog.StoredHashesForRecordHash(n, leaf, *m)
	if err != nil {
		b.Fatal(err)
	}
	*m = append(*m, more...)
}

func growsTree(b *bench) {
	const size = 700 // two whole blocks and a part
	l := b.open()
	if n, root, err := l.Tree(b.Context(), tenant); n != 0 || err != nil {
		b.Fatalf("the tree of an empty log has size %d (%x), %v", n, root, err)
	}
	for n := range 70 {
		drafts := make([]*ledger.Draft, size/70)
		for i := range drafts {
			drafts[i] = Grant(b.Now(), "user:alice", "agent:planner")
		}
		if n%7 == 3 { // a draft that gets no number must not leave a leaf
			bad := Grant(b.Now(), "user:alice", "agent:planner")
			bad.Claims = func(uint64) ([]byte, error) { return nil, errors.New("no claims") }
			drafts = slices.Insert(drafts, 5, bad)
		}
		l.AppendAll(b.Context(), tenant, drafts, nil)
	}
	l = b.open() // nothing of the tree is in memory only
	var want memory
	roots := []tlog.Hash{{}}
	for after := uint64(0); after < size; {
		page, err := l.Entries(b.Context(), tenant, after, 500)
		if err != nil || len(page) == 0 {
			b.Fatalf("%d entries after %d, %v", len(page), after, err)
		}
		for _, e := range page {
			want.add(b, int64(after), e.Leaf)
			after = e.Seq
			root, err := tlog.TreeHash(int64(after), want)
			if err != nil {
				b.Fatal(err)
			}
			roots = append(roots, root)
		}
	}
	n, root, err := l.Tree(b.Context(), tenant)
	if err != nil || n != size || root != roots[size] {
		b.Fatalf("Tree = %d, %v, %v; want %d, %v", n, root, err, size, roots[size])
	}
	for _, n := range []uint64{1, 2, 3, 255, 256, 257, 511, 512, 513, 600, 699, size} {
		if got, err := l.RootAt(b.Context(), tenant, n); err != nil || got != roots[n] {
			b.Errorf("RootAt(%d) = %v, %v; want %v", n, got, err, roots[n])
		}
		growth, err := l.ProveGrowth(b.Context(), tenant, n, size)
		if err == nil {
			err = tlog.CheckTree(growth, size, root, int64(n), roots[n])
		}
		if err != nil {
			b.Errorf("from %d to %d: %v", n, size, err)
		}
		for _, seq := range []uint64{1, n/2 + 1, n} {
			e, err := l.EntryAt(b.Context(), tenant, seq)
			if err != nil {
				b.Fatal(err)
			}
			proof, err := l.ProveEntry(b.Context(), tenant, seq, n)
			if err == nil {
				err = tlog.CheckRecord(proof, int64(n), roots[n], int64(seq-1), e.Leaf)
			}
			if err != nil {
				b.Errorf("entry %d in %d: %v", seq, n, err)
			}
			if tlog.CheckRecord(proof, int64(n), roots[n], int64(seq-1), tlog.Hash{}) == nil {
				b.Errorf("entry %d in %d: the proof proves any leaf", seq, n)
			}
		}
	}
	for _, ask := range []func() error{
		func() error { _, err := l.ProveEntry(b.Context(), tenant, 0, size); return err },
		func() error { _, err := l.ProveEntry(b.Context(), tenant, 2, 1); return err },
		func() error { _, err := l.ProveEntry(b.Context(), tenant, 1, size+1); return err },
		func() error { _, err := l.ProveEntry(b.Context(), "other", 1, 1); return err },
		func() error { _, err := l.ProveGrowth(b.Context(), tenant, 0, size); return err },
		func() error { _, err := l.ProveGrowth(b.Context(), tenant, size, size+1); return err },
		func() error { _, err := l.RootAt(b.Context(), tenant, size+1); return err },
	} {
		if err := ask(); !errors.Is(err, ledger.ErrNotFound) {
			b.Errorf("asked for what the log has not: %v", err)
		}
	}
	b.check(l)
}

func keepsCheckpoint(b *bench) {
	here, there := b.open(), b.open()
	if _, err := here.LastCheckpoint(b.Context(), tenant); !errors.Is(err, ledger.ErrNotFound) {
		b.Fatalf("before the first: %v", err)
	}
	at := b.Now().UTC().Truncate(time.Microsecond)
	make := func(size uint64, root byte) ledger.Checkpoint {
		return ledger.Checkpoint{Size: size, Root: tlog.Hash{root}, Time: at, Note: "note " + string(root)}
	}
	for _, save := range []struct {
		l      *ledger.Ledger
		c      ledger.Checkpoint
		forked bool
	}{
		{here, make(5, 'a'), false},
		{there, make(5, 'a'), false}, // two instances may both do it
		{there, make(5, 'b'), true},
		{there, make(4, 'a'), true},
		{there, make(9, 'c'), false},
		{here, make(5, 'a'), true},
	} {
		if err := save.l.SaveCheckpoint(b.Context(), tenant, save.c); errors.Is(err, ledger.ErrForked) != save.forked || err != nil && !save.forked {
			b.Errorf("saving %d %s: %v", save.c.Size, save.c.Note, err)
		}
	}
	if err := here.SaveCheckpoint(b.Context(), "other", make(1, 'x')); err != nil {
		b.Error(err)
	}
	resigned := make(9, 'c')
	resigned.Note = "signed by another key too"
	if err := there.SaveCheckpoint(b.Context(), tenant, resigned); err != nil {
		b.Error(err)
	}
	if got, err := here.LastCheckpoint(b.Context(), tenant); err != nil || got != resigned {
		b.Errorf("kept %+v, %v", got, err)
	}
}
