package audit

import "fmt"

// BadEntry is the first entry of a log that is not what was recorded.
type BadEntry struct {
	// Entry is its number, and Through the same. Where only the root of a checkpoint tells, the first bad
	// entry is one of Entry to Through: checkpoints that lie closer together narrow it.
	Entry, Through uint64
	Rule           string // which rule it breaks, in one word: docs/ledger.md has them all
	Detail         string // for people
}

func (b *BadEntry) Error() string {
	if b.Through > b.Entry {
		return fmt.Sprintf("entries %d to %d: %s: %s", b.Entry, b.Through, b.Rule, b.Detail)
	}
	return fmt.Sprintf("entry %d: %s: %s", b.Entry, b.Rule, b.Detail)
}
