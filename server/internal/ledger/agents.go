package ledger

import (
	"cmp"
	"context"
	"slices"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Window is the activity of agents in a tenant's newest entries.
type Window struct {
	From, Through uint64     // numbers of its first and last entry; 0: there is none
	Since         time.Time  // when the first one was recorded
	Agents        []Activity // the most recent first
}

// Activity is one agent's part in a Window.
type Activity struct {
	Agent   delegation.Principal
	Last    uint64    // the newest entry in which it acted or called
	At      time.Time // when that was recorded
	Granted int       // grants of which it is the actor
	Refused int       // refusals with it as the caller
}

const (
	// mostInWindow bounds the entries that Agents reads.
	mostInWindow = 4096

	sqlWindow = `SELECT seq, time, kind, outcome, caller, actors FROM entries WHERE tenant = $1 AND seq > $2 AND seq <= $3 ORDER BY seq`
)

// Agents returns the agents in the tenant's newest entries: the actors of grants, and callers of
// type agent. A name that occurs only in a request is not included. It reads at most 4,096 entries.
// Erased names are left out.
func (l *Ledger) Agents(ctx context.Context, tenant string) (Window, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	head, err := l.headSeq(ctx, tenant)
	if err != nil {
		return Window{}, unavailable(err)
	}
	found, err := l.store.query(ctx, sqlWindow, tenant, int64(head-min(head, mostInWindow)), int64(head))
	if err != nil {
		return Window{}, unavailable(err)
	}
	var w Window
	by := map[delegation.Principal]*Activity{}
	err = eachRow(found, func() error {
		var e Entry
		var at int64
		var actors string
		if err := found.Scan(&e.Seq, &at, &e.Kind, &e.Outcome, &e.Caller, &actors); err != nil {
			return err
		}
		e.Time, e.Actors = fromMicros(at), splitChain(actors)
		if w.From == 0 {
			w.From, w.Since = e.Seq, e.Time
		}
		w.Through = e.Seq
		tally(by, &e)
		return nil
	})
	if err != nil {
		return Window{}, unavailable(err)
	}
	for _, a := range by {
		w.Agents = append(w.Agents, *a)
	}
	slices.SortFunc(w.Agents, func(a, b Activity) int {
		return cmp.Or(cmp.Compare(b.Last, a.Last), cmp.Compare(a.Agent, b.Agent))
	})
	return w, nil
}

// tally adds an entry to the activity of the agents in it.
func tally(by map[delegation.Principal]*Activity, e *Entry) {
	seen := func(p delegation.Principal) *Activity {
		if by[p] == nil {
			by[p] = &Activity{Agent: p}
		}
		by[p].Last, by[p].At = e.Seq, e.Time
		return by[p]
	}
	if e.Kind == KindGrant {
		for _, p := range e.Actors {
			seen(p)
		}
		if len(e.Actors) > 0 {
			seen(e.Actors.Current()).Granted++
		}
	}
	if e.Caller.Type() == "agent" {
		a := seen(e.Caller)
		if e.Outcome == Refused {
			a.Refused++
		}
	}
}

// Suspensions returns the suspensions that no resume has lifted, the newest first. Each agent has
// at most one, its last. The memory is brought up to date before it is read.
func (l *Ledger) Suspensions(ctx context.Context, tenant string) ([]delegation.Revocation, error) {
	live, _, err := l.Live(ctx, tenant)
	if err != nil {
		return nil, err
	}
	in := map[string]delegation.Revocation{}
	for _, r := range live {
		switch r.Target.Kind {
		case delegation.BanSuspend:
			in[r.Target.ID] = r
		case delegation.Resume:
			delete(in, r.Target.ID)
		}
	}
	var list []delegation.Revocation
	for _, r := range in {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b delegation.Revocation) int { return cmp.Compare(b.Seq, a.Seq) })
	return list, nil
}

// Numbered returns those of the entries that exist, in order. It looks for at most 100 numbers.
func (l *Ledger) Numbered(ctx context.Context, tenant string, seqs ...uint64) ([]*Entry, error) {
	if len(seqs) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	list, err := entriesAt(ctx, l.store, tenant, seqs[:min(len(seqs), entryPage)])
	if err != nil {
		return nil, unavailable(err)
	}
	return list, nil
}
