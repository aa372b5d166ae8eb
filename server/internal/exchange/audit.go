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

// Descendant is a grant below another one.
type Descendant struct {
	Recorded
	Depth int // 1 for a child
}

// Entry returns one entry, by Inquiry.Entry or by Inquiry.ID. NotFound says that there is none, or none
// that the caller may see.
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

// Chain returns the grants that lead to one, root to leaf. Whoever may see the leaf may see what it
// came from.
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
	entries, err := e.config.Ledger.Chain(ctx, by.tenant.Name, q.ID) // only now: it takes longer where there is more
	if err != nil {
		return nil, delegation.AsError(err)
	}
	return e.show(ctx, by, sight, entries...)
}

// Descendants returns grants that were derived from one, each after its parent: those with numbers above
// after. next continues, 0 says that there is nothing more. Whoever may see a grant may see what became
// of it.
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

// Search finds entries, the newest first. before goes into Query.Before and continues; 0 says that there
// is nothing more. Auditors may search for anything; others name themselves as the subject, or as the
// actor themselves or an agent that they operate.
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
	query.Seen = sight.sees // in the ledger, so that where a page ends says nothing of what is kept back
	found, before, err := e.config.Ledger.Search(ctx, by.tenant.Name, query)
	if err != nil {
		return nil, 0, delegation.AsError(err)
	}
	page, err = e.show(ctx, by, sight, found...)
	return page, before, err
}

// find returns the entry that is asked for; nil if there is none.
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

// isID spares the database what no grant is called.
func isID(jti string) bool {
	_, odd := ulid.ParseStrict(jti)
	return odd == nil
}

// sight is what somebody may read: the whole ledger, or the entries in which one of as stands.
type sight struct {
	whole    bool
	as       []delegation.Principal // the caller first, then the agents that it operates
	withhold bool
}

// mayRead is the one place that says who may read what. Auditors (and whoever the model makes one:
// responders, admins) read everything; everybody what it stands in itself, and what the agents stand in
// that it operates. about are the agents that what is asked for is about.
//
// It asks OpenFGA as much about what does not exist: neither answer nor time shall tell that from what
// may not be seen.
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

// nobody is asked about in place of agents that are not there.
const nobody = delegation.Principal("agent:-")

func (s sight) sees(entry *ledger.Entry) bool {
	return s.whole || slices.ContainsFunc(s.as, func(p delegation.Principal) bool { return stands(entry, p) })
}

// stands says whether somebody has a part in what an entry records. Who was only asked for, and got
// nothing, has none.
func stands(entry *ledger.Entry, p delegation.Principal) bool {
	actors := entry.Actors
	if entry.Kind != ledger.KindGrant && len(actors) > 0 {
		actors = actors[:len(actors)-1]
	}
	return p != "" && (entry.Subject == p || entry.Caller == p || actors.Contains(p))
}

// standing are all who stand in an entry, whose operators may read it; nobody where there is no entry.
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

// nothing refuses, and records that somebody asked for what it may not see or what is not there. The
// record does not repeat what was asked for, because whoever reads it may not know of that either.
func (e *Engine) nothing(ctx context.Context, by inquirer, q Inquiry, s sight, field, answer string) error {
	refusal := delegation.Refuse(delegation.NotFound, field, "%s", answer)
	if s.whole {
		return refusal // nothing was kept from an auditor
	}
	draft := &ledger.Draft{Caller: by.caller.Principal, Peer: q.Peer, TraceID: traceID(ctx)}
	return e.recordRefusal(ctx, by.tenant, draft, "reading", refusal)
}
