package console

import (
	"errors"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

const (
	// receiptsFresh is how long after a revocation its page reloads without script, unless every
	// verifier has applied it.
	receiptsFresh = 5 * time.Minute
	// silence is how long a verifier sends no mark before it counts as cut off. A connected
	// verifier sends one each second, and a verifier that is cut off refuses everything after ten
	// seconds.
	silence = 15 * time.Second
)

// receipts are the verifiers that have applied a revocation, and those that have not.
type receipts struct {
	Entry   uint64
	Unknown bool // a dependency did not answer: nothing below is known
	Partial bool // Redis did not answer: verifiers of other instances are not in the list
	Know    int
	Gone    int // were cut off, or ended, before they applied it
	List    []receipt
}

// Connected is how many verifiers are not Gone.
func (r *receipts) Connected() int { return len(r.List) - r.Gone }

// All reports whether every connected verifier has applied the revocation, as far as that is known.
func (r *receipts) All() bool { return !r.Partial && r.Know == r.Connected() }

type receipt struct {
	ID       string
	Verifier delegation.Principal
	Knows    bool
	Gone     bool
	SeenAt   time.Time
}

// receipts returns the verifiers and what each has applied; nil if the person may not read it. A
// temporary error is not returned: the revocation is in force, and its page must not fail because
// Redis does not answer.
func (h *console) receipts(c *call, entry uint64) (*receipts, error) {
	list, err := h.Engine.Receipts(c.r.Context(), c.inquiry(), entry)
	if refusal, typed := errors.AsType[*delegation.Error](err); typed && refusal.Reason == delegation.NotFound {
		return nil, nil
	} else if typed && refusal.Temporary() {
		return &receipts{Entry: entry, Unknown: true}, nil
	} else if err != nil {
		return nil, err
	}
	found := &receipts{Entry: entry, Partial: list.Partial}
	for _, r := range list.List {
		known := receipt{ID: r.ID, Verifier: r.Verifier, Knows: r.Applied >= entry, SeenAt: r.SeenAt}
		known.Gone = !known.Knows && h.Now().Sub(r.SeenAt) > silence
		if known.Knows {
			found.Know++
		}
		if known.Gone {
			found.Gone++
		}
		found.List = append(found.List, known)
	}
	return found, nil
}

// refresh returns the interval in seconds at which an entry's page reloads without script; 0:
// never.
func (h *console) refresh(r *receipts, e exchange.Recorded) int {
	if r == nil || r.All() && r.Connected() > 0 || h.Now().Sub(e.Time) > receiptsFresh {
		return 0
	}
	return livePause
}

// receiptsPart answers a script with only the receipts.
func (h *console) receiptsPart(c *call) error {
	entry, err := readNumber("entry", c.r.URL.Query().Get("entry"))
	if err != nil {
		return err
	}
	if entry == 0 {
		return delegation.Refuse(delegation.ParameterMissing, "entry", "must be the number of a revocation")
	}
	found, err := h.receipts(c, entry)
	if err != nil {
		return err
	}
	if found == nil {
		return errNotThere
	}
	return c.showPart("entry", "receipts", found)
}
