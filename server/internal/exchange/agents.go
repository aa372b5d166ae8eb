package exchange

import (
	"context"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// Agents returns the agents in the tenant's newest entries, as Ledger.Agents does. The caller must
// be an auditor. For any other caller the error is NotFound, and the attempt is recorded.
func (e *Engine) Agents(ctx context.Context, q Inquiry) (ledger.Window, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, _, err := e.admitAuditor(ctx, q)
	if err != nil {
		return ledger.Window{}, err
	}
	window, err := e.config.Ledger.Agents(ctx, by.tenant.Name)
	if err != nil {
		return ledger.Window{}, delegation.AsError(err)
	}
	return window, nil
}

// Suspension is an agent that is suspended now.
type Suspension struct {
	delegation.Revocation
	// Recorded is the entry with the caller and the reason. Its Entry is nil if it was dropped for
	// its age.
	Recorded Recorded
}

// MaxSuspensions is the largest number of suspensions that one call returns.
const MaxSuspensions = 100

// Suspensions returns the agents that are suspended now, the latest first. A page has at most
// MaxSuspensions, with numbers below before (0: no limit). next is the value of before for the next
// page; 0 means that the page is the last one. The caller must be an auditor, as for Agents.
func (e *Engine) Suspensions(ctx context.Context, q Inquiry, before uint64) (page []Suspension, next uint64, err error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, sight, err := e.admitAuditor(ctx, q)
	if err != nil {
		return nil, 0, err
	}
	all, err := e.config.Ledger.Suspensions(ctx, by.tenant.Name)
	if err != nil {
		return nil, 0, delegation.AsError(err)
	}
	var seqs []uint64
	for _, r := range all {
		if before > 0 && r.Seq >= before {
			continue
		}
		if len(page) == MaxSuspensions {
			next = page[len(page)-1].Seq
			break
		}
		page, seqs = append(page, Suspension{Revocation: r}), append(seqs, r.Seq)
	}
	return page, next, e.explain(ctx, by, sight, page, seqs)
}

// explain adds the entries to the suspensions.
func (e *Engine) explain(ctx context.Context, by inquirer, s sight, page []Suspension, seqs []uint64) error {
	entries, err := e.config.Ledger.Numbered(ctx, by.tenant.Name, seqs...)
	if err != nil {
		return delegation.AsError(err)
	}
	shown, err := e.show(ctx, by, s, entries...)
	if err != nil {
		return err
	}
	for _, r := range shown {
		for i := range page {
			if page[i].Seq == r.Seq {
				page[i].Recorded = r
			}
		}
	}
	return nil
}

// admitAuditor admits callers that may read the whole ledger. For other callers the error is
// NotFound.
func (e *Engine) admitAuditor(ctx context.Context, q Inquiry) (inquirer, sight, error) {
	by, err := e.admitReader(ctx, q)
	if err != nil {
		return inquirer{}, sight{}, err
	}
	sight, err := e.mayRead(ctx, by)
	if err == nil && !sight.whole {
		err = e.nothing(ctx, by, q, sight, "agent", "no agents, or none that you may see")
	}
	return by, sight, err
}

// MayRevoke reports for each target whether the caller may revoke it now, so that an interface
// offers only those. Revoke decides. Nothing is recorded.
func (e *Engine) MayRevoke(ctx context.Context, q Inquiry, targets ...delegation.Target) ([]bool, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, err := e.admitReader(ctx, q)
	if err != nil {
		return nil, err
	}
	may := make([]bool, len(targets))
	for i, t := range targets {
		may[i], err = e.mayRevoke(ctx, by.tenant, by.caller.Principal, t)
		if err != nil && !e.isEmergency(ctx, by.tenant, by.caller.Principal, err) {
			return nil, delegation.AsError(err)
		}
		may[i] = may[i] && err == nil // an emergency responder may not: the answer is known
	}
	return may, nil
}
