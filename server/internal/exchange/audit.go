package exchange

import (
	"context"
	"errors"
	"slices"

	"github.com/oklog/ulid/v2"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/policy"
)

// Descendant is a grant that was derived from another grant, directly or through others.
type Descendant struct {
	Recorded
	Depth int // 1 for a child
}

// Entry returns one entry, by Inquiry.Entry or by Inquiry.ID. The error is NotFound if the entry
// does not exist or the caller may not see it.
func (e *Engine) Entry(ctx context.Context, q Inquiry) (Recorded, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, err := e.admitReader(ctx, q)
	if err != nil {
		return Recorded{}, err
	}
	if (q.ID == "") == (q.Entry == 0) {
		return Recorded{}, delegation.Refuse(delegation.ParameterInvalid, "entry", "name exactly one of entry and jti")
	}
	return e.readEntry(ctx, by, q)
}

func (e *Engine) readEntry(ctx context.Context, by inquirer, q Inquiry) (Recorded, error) {
	entry, err := e.find(ctx, by.tenant, q)
	if err != nil {
		return Recorded{}, err
	}
	sight, err := e.mayRead(ctx, by, standing(entry)...)
	if err != nil {
		return Recorded{}, err
	}
	if entry == nil || !sight.sees(entry) {
		return Recorded{}, e.nothing(ctx, by, q, sight, "entry", "no such entry, or none that you may see")
	}
	shown, err := e.show(ctx, by, sight, entry)
	if err != nil {
		return Recorded{}, err
	}
	return shown[0], nil
}

// Chain returns the grants that lead to one grant, root to leaf. A caller that may see the leaf may
// see all of them.
func (e *Engine) Chain(ctx context.Context, q Inquiry) ([]Recorded, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, err := e.admitReader(ctx, q)
	if err != nil {
		return nil, err
	}
	q.Entry = 0
	leaf, err := e.find(ctx, by.tenant, q)
	if err != nil {
		return nil, err
	}
	sight, err := e.mayRead(ctx, by, standing(leaf)...)
	if err != nil {
		return nil, err
	}
	if leaf == nil || leaf.Kind != ledger.KindGrant || !sight.sees(leaf) {
		return nil, e.nothing(ctx, by, q, sight, "jti", "no such grant, or none that you may see")
	}
	// Only now, because a longer chain takes longer.
	entries, err := e.config.Ledger.Chain(ctx, by.tenant.Name, q.ID)
	if err != nil {
		return nil, delegation.AsError(err)
	}
	return e.show(ctx, by, sight, entries...)
}

// Descendants returns the grants that were derived from one grant, each after its parent, with
// numbers above after. next is the value of after for the next page; 0 means that the page is the
// last one. A caller that may see a grant may see all its descendants.
func (e *Engine) Descendants(ctx context.Context, q Inquiry, after uint64, limit int) (page []Descendant, next uint64, err error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, err := e.admitReader(ctx, q)
	if err != nil {
		return nil, 0, err
	}
	q.Entry = 0
	origin, err := e.find(ctx, by.tenant, q)
	if err != nil {
		return nil, 0, err
	}
	sight, err := e.mayRead(ctx, by, standing(origin)...)
	if err != nil {
		return nil, 0, err
	}
	if origin == nil || origin.Kind != ledger.KindGrant || !sight.sees(origin) {
		return nil, 0, e.nothing(ctx, by, q, sight, "jti", "no such grant, or none that you may see")
	}
	found, next, err := e.config.Ledger.Descendants(ctx, by.tenant.Name, q.ID, after, limit)
	if err != nil {
		return nil, 0, delegation.AsError(err)
	}
	entries := make([]*ledger.Entry, len(found))
	for i := range found {
		entries[i] = found[i].Entry
	}
	shown, err := e.show(ctx, by, sight, entries...)
	if err != nil {
		return nil, 0, err
	}
	for i := range shown {
		page = append(page, Descendant{Recorded: shown[i], Depth: found[i].Depth})
	}
	return page, next, nil
}

// Search returns entries, the newest first. before is the value of Query.Before for the next page;
// 0 means that the page is the last one. An auditor may search for anything. Another caller must
// name itself as the subject, or name itself or an agent that it operates as the actor.
func (e *Engine) Search(ctx context.Context, q Inquiry, query ledger.Query) (page []Recorded, before uint64, err error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, err := e.admitReader(ctx, q)
	if err != nil {
		return nil, 0, err
	}
	if err := searchable(query); err != nil {
		return nil, 0, err
	}
	sight, err := e.mayRead(ctx, by, query.Actor)
	if err != nil {
		return nil, 0, err
	}
	if !sight.whole && query.Subject != by.caller.Principal && !slices.Contains(sight.as, query.Actor) {
		return nil, 0, e.nothing(ctx, by, q, sight, "subject", "nothing that you may search for: name yourself as the subject, or as the actor yourself or an agent that you operate")
	}
	if !sight.whole && query.Peer != "" { // it is withheld from them: a match would disclose it
		return nil, 0, e.nothing(ctx, by, q, sight, "peer", "must be empty; only auditors search by the address of callers")
	}
	// The ledger filters, so that the end of a page discloses nothing of withheld entries.
	query.Seen = sight.sees
	found, before, err := e.config.Ledger.Search(ctx, by.tenant.Name, query)
	if err != nil {
		return nil, 0, delegation.AsError(err)
	}
	page, err = e.show(ctx, by, sight, found...)
	return page, before, err
}

// find returns the entry that the inquiry names, or nil if it does not exist.
func (e *Engine) find(ctx context.Context, tenant *Tenant, q Inquiry) (entry *ledger.Entry, err error) {
	switch {
	case q.Entry > 0:
		entry, err = e.config.Ledger.EntryAt(ctx, tenant.Name, q.Entry)
	case isID(q.ID):
		entry, err = e.config.Ledger.Entry(ctx, tenant.Name, q.ID)
	}
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return nil, delegation.AsError(err)
	}
	return entry, nil
}

// isID reports whether jti has the form of a grant's name. Other names are not looked up.
func isID(jti string) bool {
	_, odd := ulid.ParseStrict(jti)
	return odd == nil
}

// sight is what a caller may read: the whole ledger, or the entries in which a principal of as has
// a part.
type sight struct {
	whole    bool
	as       []delegation.Principal // the caller first, then the agents that it operates
	withhold bool
}

// mayRead is the only function that decides what a caller may read. Auditors read everything, and
// the model makes responders and admins auditors. Any other caller reads the entries in which it
// has a part, and the entries in which an agent that it operates has a part. about are the
// principals of the entries that the caller asks for.
//
// OpenFGA is asked the same number of questions if the entry does not exist. Neither the answer nor
// its time distinguishes an absent entry from one that the caller may not see.
func (e *Engine) mayRead(ctx context.Context, by inquirer, about ...delegation.Principal) (sight, error) {
	caller := string(by.caller.Principal)
	relations := []policy.Relation{{User: caller, Relation: "auditor", Object: system}}
	for i := range max(len(about), by.tenant.Limits.MaxDepth+2) {
		agent := nobody
		if i < len(about) && about[i] != "" {
			agent = about[i]
		}
		relations = append(relations, policy.Relation{User: caller, Relation: "operator", Object: string(agent)})
	}
	has, err := by.tenant.Policy.HasEach(ctx, relations)
	if e.inEmergency(ctx, by.tenant, by.caller.Principal, err) {
		return sight{whole: true, as: []delegation.Principal{by.caller.Principal}}, nil
	}
	if err != nil {
		return sight{}, delegation.AsError(err)
	}
	s := sight{whole: has[0], as: []delegation.Principal{by.caller.Principal}, withhold: !has[0]}
	for i, agent := range about {
		if has[1+i] && agent != "" {
			s.as = append(s.as, agent)
		}
	}
	return s, nil
}

// An agent that never exists. A question about it takes the place of one about an absent agent.
const nobody = delegation.Principal("agent:-")

func (s sight) sees(entry *ledger.Entry) bool {
	return s.whole || slices.ContainsFunc(s.as, func(p delegation.Principal) bool { return stands(entry, p) })
}

// A principal has a part in an entry as subject, caller or actor. The requested actor of a refusal
// has none.
func stands(entry *ledger.Entry, p delegation.Principal) bool {
	actors := entry.Actors
	if entry.Kind != ledger.KindGrant && len(actors) > 0 {
		actors = actors[:len(actors)-1]
	}
	return p != "" && (entry.Subject == p || entry.Caller == p || actors.Contains(p))
}

// standing returns all principals that have a part in an entry, whose operators may read it. It is
// empty if entry is nil.
func standing(entry *ledger.Entry) []delegation.Principal {
	if entry == nil {
		return nil
	}
	all := slices.Clone(entry.Actors)
	for _, p := range []delegation.Principal{entry.Subject, entry.Caller} {
		if p != "" && !all.Contains(p) {
			all = append(all, p)
		}
	}
	return all
}

// nothing refuses a caller that asked for an entry that is absent or that it may not see, and
// records the attempt. The record does not repeat the request, because a reader of the record may
// not be permitted to see that entry either.
func (e *Engine) nothing(ctx context.Context, by inquirer, q Inquiry, s sight, field, answer string) error {
	refusal := delegation.Refuse(delegation.NotFound, field, "%s", answer)
	if s.whole {
		return refusal // nothing is withheld from an auditor
	}
	draft := &ledger.Draft{Caller: by.caller.Principal, Peer: q.Peer, TraceID: traceID(ctx)}
	return e.recordRefusal(ctx, by.tenant, draft, "reading", refusal)
}
