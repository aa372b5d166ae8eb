package audit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Options say what a log is verified against.
type Options struct {
	Key        note.Verifier   // of the log's checkpoints; have it from somewhere else than the log
	Former     []note.Verifier // keys that Key followed on: they are believed for what was kept
	Checkpoint string          // the newest one that the log is held to, as a signed note; mandatory
	Kept       []string        // earlier ones that the auditor kept: the log must continue each of them

	// Progress, if set, is told now and then how many entries have been verified, and at the end.
	Progress func(done uint64)
}

// Report is what a log holds that VerifyLog found in order.
type Report struct {
	Tenant     string
	Checkpoint Checkpoint // the newest
	First      uint64     // the first entry that is there: 1, unless a prefix was dropped by retention
	Last       uint64
	Grants     uint64
	Kept       int    // checkpoints besides the newest; the log continues all of them
	Uncovered  uint64 // entries after the newest checkpoint, which no signature covers yet
	Erased     uint64 // personal fields that cannot be shown any more; their digests are in the leaves
	Orphans    uint64 // grants whose parent was dropped: their narrowing cannot be shown any more
}

// MaxLine is the longest line that an export may have, in bytes.
const MaxLine = 4 << 20

// VerifyLog reads an export, one record per line, and recomputes everything: each entry's leaf and the
// digests of its personal fields, numbers without gaps, the order of time, the links between
// revocations, that each grant narrows its parent (I1 to I5) and that no earlier revocation covers it,
// and the roots of all checkpoints. The error is a *BadEntry if the log is at fault, and names the
// first bad entry; any other error means that the log was not verified.
//
// Memory is bounded by the grants and revocations that are live at one time, not by the log.
func VerifyLog(ctx context.Context, lines io.Reader, o Options) (Report, error) {
	heads, newest, err := o.checkpoints()
	if err != nil {
		return Report{}, err
	}
	v := &verification{heads: heads, rules: newRules(), report: Report{Checkpoint: newest, Kept: len(o.Kept), First: 1}}
	scanner := bufio.NewScanner(lines)
	scanner.Buffer(make([]byte, 64<<10), MaxLine)
	const step = 1 << 12 // entries between two looks up
	for n := uint64(0); scanner.Scan(); n++ {
		if n%step == 0 {
			if err := ctx.Err(); err != nil {
				return v.report, err
			}
			if o.Progress != nil {
				o.Progress(v.edge.Size)
			}
		}
		if err := v.line(n == 0, scanner.Bytes()); err != nil {
			return v.report, err
		}
	}
	switch err := scanner.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return v.report, v.bad("form", "its line is longer than %d bytes", MaxLine)
	case err != nil:
		return v.report, fmt.Errorf("read the log: %w", err)
	}
	if err := v.end(); err != nil {
		return v.report, err
	}
	if o.Progress != nil {
		o.Progress(v.edge.Size)
	}
	return v.report, nil
}

// checkpoints reads all signed heads, the smallest first. None is passed over: one that does not parse, or
// two that contradict each other, are errors.
func (o Options) checkpoints() (heads []Checkpoint, newest Checkpoint, err error) {
	if o.Key == nil || o.Checkpoint == "" {
		return nil, newest, errors.New("verify: a key and the newest checkpoint are needed: without them nothing is proven")
	}
	for i, text := range append([]string{o.Checkpoint}, o.Kept...) {
		keys := []note.Verifier{o.Key}
		if i > 0 {
			keys = append(keys, o.Former...)
		}
		c, err := ParseCheckpoint(text, keys...)
		if err != nil {
			if i > 0 {
				err = fmt.Errorf("kept checkpoint %d: %w", i, err)
			}
			return nil, newest, fmt.Errorf("verify: %w", err)
		}
		heads = append(heads, c)
	}
	newest = heads[0]
	slices.SortStableFunc(heads, func(a, b Checkpoint) int { return int(min(max(int64(a.Size-b.Size), -1), 1)) })
	for i, c := range heads[1:] {
		if c.Size == heads[i].Size && c.Root != heads[i].Root {
			return nil, newest, &BadEntry{Entry: 1, Through: c.Size, Rule: "fork",
				Detail: fmt.Sprintf("the key signed two different logs of %d entries", c.Size)}
		}
	}
	return heads, newest, nil
}

// verification is a log on its way through.
type verification struct {
	heads  []Checkpoint // that are still to come
	proven uint64       // the log is that of a checkpoint up to here
	edge   Edge
	last   time.Time
	rules  *rules
	report Report
}

// bad is about the entry that is next.
func (v *verification) bad(rule, format string, args ...any) *BadEntry {
	next := v.edge.Size + 1
	return &BadEntry{Entry: next, Through: next, Rule: rule, Detail: fmt.Sprintf(format, args...)}
}

func (v *verification) line(first bool, line []byte) error {
	if first && bytes.HasPrefix(line, []byte(`{"dropped"`)) {
		d, err := ParseDropped(line)
		if err != nil {
			return v.bad("form", "%v", err)
		}
		v.edge = Edge{Size: d.Through, Hashes: d.Hashes}
		v.rules.dropped = d.Through
		v.report.First, v.report.Last = d.Through+1, d.Through
		if within := v.heads[0]; within.Size < d.Through {
			return fmt.Errorf("verify: entries up to %d were dropped, so nothing proves any more that the log continues the checkpoint of size %d: "+
				"leave it out, and have its continuation proven by \"deputy log checkpoint --kept\"", d.Through, within.Size)
		}
		return v.root()
	}
	r, err := ParseRecord(line)
	if err != nil {
		return v.bad("form", "%v", err)
	}
	return v.entry(&r)
}

func (v *verification) entry(r *Record) error {
	switch {
	case r.Seq != v.edge.Size+1:
		return v.bad("order", "entry %d is in its place", r.Seq)
	case v.report.Tenant != "" && r.Tenant != v.report.Tenant:
		return v.bad("tenant", "it is of another tenant")
	case r.Time.Before(v.last):
		return v.bad("time", "it is older than the entry before it")
	}
	if err := r.Verify(); err != nil {
		return err
	}
	if err := v.rules.check(r); err != nil {
		return err
	}
	v.report.Tenant, v.last, v.report.Last = r.Tenant, r.Time, r.Seq
	if r.Kind == "grant" {
		v.report.Grants++
	}
	v.report.Orphans = v.rules.orphans
	for _, p := range r.Personal {
		if p.Erased() {
			v.report.Erased++
		}
	}
	v.edge.Add(r.LeafHash, nil)
	return v.root()
}

// root compares with the checkpoints of this size, all of which are the same.
func (v *verification) root() error {
	var root tlog.Hash
	for i := 0; len(v.heads) > 0 && v.heads[0].Size == v.edge.Size; i++ {
		if i == 0 {
			root = v.edge.Root()
		}
		if root != v.heads[0].Root {
			return &BadEntry{Entry: v.proven + 1, Through: v.edge.Size, Rule: "root",
				Detail: fmt.Sprintf("these are not the entries of the checkpoint of size %d, signed at %s", v.edge.Size, v.heads[0].Time.Format(time.RFC3339))}
		}
		v.proven = v.edge.Size
		v.heads = v.heads[1:]
	}
	return nil
}

func (v *verification) end() error {
	if len(v.heads) > 0 {
		missing := v.heads[len(v.heads)-1]
		return &BadEntry{Entry: v.edge.Size + 1, Through: missing.Size, Rule: "missing",
			Detail: fmt.Sprintf("the log ends here, but a checkpoint of %d entries was signed at %s", missing.Size, missing.Time.Format(time.RFC3339))}
	}
	if v.rules.dropped > 0 && v.edge.Size == v.rules.dropped {
		return &BadEntry{Entry: 1, Through: v.edge.Size, Rule: "dropped",
			Detail: "all entries are said to have been dropped for their age: nothing is left that could be verified"}
	}
	v.report.Uncovered = v.edge.Size - min(v.edge.Size, v.report.Checkpoint.Size)
	return nil
}
