package fill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"text/tabwriter"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// Measuring configures Measure.
type Measuring struct {
	Tenant  string
	Summary Summary // what Run returned when it filled the tenant's ledger
	Rounds  int     // number of runs of each query. Default 200
	Seed    uint64  // seed of the queries
}

// Figure is how long one question took, whose answers had so many rows at most.
type Figure struct {
	Question      string
	Rows          int
	P50, P99, Max time.Duration
}

// Print writes the figures as a table.
func Print(w io.Writer, figures []Figure) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "question\trows\tp50\tp99\tmax\t")
	for _, f := range figures {
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\t\n", f.Question, f.Rows, short(f.P50), short(f.P99), short(f.Max))
	}
	return table.Flush()
}

func short(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// Measure runs the queries of auditors and responders, one after the other, as of the time of the
// newest entry. It builds the search index first if that lags behind.
func Measure(ctx context.Context, dsn string, o Measuring) (figures []Figure, err error) {
	var now time.Time
	l, err := ledger.Open(ctx, dsn, ledger.Config{Now: func() time.Time { return now }, Timeout: time.Minute})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	size, _, err := l.Tree(ctx, o.Tenant)
	if err != nil {
		return nil, err
	}
	newest, err := l.EntryAt(ctx, o.Tenant, size)
	if err != nil {
		return nil, fmt.Errorf("the newest entry of tenant %q: %w", o.Tenant, err)
	}
	now = newest.Time
	if err := indexed(ctx, l, o.Tenant); err != nil {
		return nil, err
	}
	if o.Rounds <= 0 {
		o.Rounds = 200
	}
	m := &meter{Ledger: l, Measuring: o, rng: rand.New(rand.NewPCG(o.Seed, 1)), size: size}
	for _, q := range m.questions() {
		f, err := m.measure(ctx, q)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", q.name, err)
		}
		figures = append(figures, f)
	}
	return figures, nil
}

// indexed waits until the search index is built.
func indexed(ctx context.Context, l *ledger.Ledger, tenant string) error {
	ctx, cancel := context.WithCancel(ctx)
	kept := make(chan error, 1)
	go func() { kept <- l.Maintain(ctx, tenant) }()
	err := untilIndexed(ctx, l, tenant)
	cancel()
	return errors.Join(err, <-kept)
}

func untilIndexed(ctx context.Context, l *ledger.Ledger, tenant string) error {
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		if whole, err := l.IndexBuilt(ctx, tenant); whole || err != nil {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type meter struct {
	*ledger.Ledger
	Measuring
	rng  *rand.Rand
	size uint64
}

// question draws something to ask for, and returns the question itself: that alone is measured.
type question struct {
	name string
	draw func(ctx context.Context) (ask func(context.Context) (rows int, err error), err error)
}

func (m *meter) measure(ctx context.Context, q question) (Figure, error) {
	f := Figure{Question: q.name}
	var took []time.Duration
	for range m.Rounds {
		ask, err := q.draw(ctx)
		if err != nil {
			return f, err
		}
		start := time.Now()
		rows, err := ask(ctx)
		took = append(took, time.Since(start))
		if err != nil {
			return f, err
		}
		f.Rows = max(f.Rows, rows)
	}
	slices.Sort(took)
	f.P50, f.P99, f.Max = took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
	return f, nil
}

// grant draws a grant.
func (m *meter) grant(ctx context.Context) (*ledger.Entry, error) {
	for {
		e, err := m.EntryAt(ctx, m.Tenant, 1+m.rng.Uint64N(m.size))
		if err != nil || e.Kind == ledger.KindGrant {
			return e, err
		}
	}
}

type asking = func(context.Context) (rows int, err error)

// ofGrant queries about a grant that is drawn again each time.
func (m *meter) ofGrant(name string, ask func(ctx context.Context, e *ledger.Entry) (int, error)) question {
	return question{name, func(ctx context.Context) (asking, error) {
		e, err := m.grant(ctx)
		return func(ctx context.Context) (int, error) { return ask(ctx, e) }, err
	}}
}

// fixed runs the same query each time.
func fixed(name string, ask asking) question {
	return question{name, func(context.Context) (asking, error) { return ask, nil }}
}

func (m *meter) questions() []question {
	list := []question{
		m.ofGrant("entry", func(ctx context.Context, e *ledger.Entry) (int, error) {
			_, err := m.Entry(ctx, m.Tenant, e.ID)
			return 1, err
		}),
		m.ofGrant("chain", func(ctx context.Context, e *ledger.Entry) (int, error) { return m.chain(ctx, e.ID) }),
		fixed("chain, deepest", func(ctx context.Context) (int, error) { return m.chain(ctx, m.Summary.Deep) }),
		m.ofGrant("holdings", func(ctx context.Context, e *ledger.Entry) (int, error) { return m.holdings(ctx, e.Actor) }),
		fixed("holdings, busiest", func(ctx context.Context) (int, error) { return m.holdings(ctx, m.Summary.Actor) }),
		m.ofGrant("inclusion proof", func(ctx context.Context, e *ledger.Entry) (int, error) {
			proof, err := m.ProveEntry(ctx, m.Tenant, e.Seq, m.size)
			return len(proof), err
		}),
		m.ofGrant("consistency proof", func(ctx context.Context, e *ledger.Entry) (int, error) {
			proof, err := m.ProveGrowth(ctx, m.Tenant, e.Seq, m.size)
			return len(proof), err
		}),
	}
	if m.Summary.Tree != "" {
		list = append(list, fixed("descendants, all", m.descendants))
	}
	for _, f := range filters {
		list = append(list, m.ofGrant("search "+f.name, func(ctx context.Context, e *ledger.Entry) (int, error) {
			q := f.query(e)
			q.Limit = 50
			return m.search(ctx, q)
		}))
	}
	return list
}

// filters make a search that finds at least the entry, and two that find nothing.
var filters = []struct {
	name  string
	query func(*ledger.Entry) ledger.Query
}{
	{"all", func(*ledger.Entry) ledger.Query { return ledger.Query{} }},
	{"subject", func(e *ledger.Entry) ledger.Query { return ledger.Query{Subject: e.Subject} }},
	{"actor", func(e *ledger.Entry) ledger.Query { return ledger.Query{Actor: e.Actor} }},
	{"caller", func(e *ledger.Entry) ledger.Query { return ledger.Query{Caller: e.Caller} }},
	{"audience", func(e *ledger.Entry) ledger.Query { return ledger.Query{Audience: e.Audiences[0]} }},
	{"scope", func(e *ledger.Entry) ledger.Query { return ledger.Query{Scope: e.Scopes[0]} }},
	{"kind=revocation", func(*ledger.Entry) ledger.Query { return ledger.Query{Kind: ledger.KindRevocation} }},
	{"outcome=refused", func(*ledger.Entry) ledger.Query { return ledger.Query{Outcome: ledger.Refused} }},
	{"reason", func(*ledger.Entry) ledger.Query { return ledger.Query{Reason: delegation.TokenRevoked} }},
	{"trace", func(e *ledger.Entry) ledger.Query { return ledger.Query{TraceID: e.TraceID} }},
	{"time range", func(e *ledger.Entry) ledger.Query {
		return ledger.Query{From: e.Time.Add(-time.Hour), Until: e.Time.Add(time.Second)}
	}},
	{"subject+actor+scope+time", func(e *ledger.Entry) ledger.Query {
		return ledger.Query{Subject: e.Subject, Actor: e.Actor, Scope: e.Scopes[0], From: e.Time.Add(-time.Hour), Until: e.Time.Add(time.Second)}
	}},
	{"unknown", func(*ledger.Entry) ledger.Query { return ledger.Query{Subject: "user:unknown"} }},
	{"busy subject, other's trace", func(e *ledger.Entry) ledger.Query {
		return ledger.Query{Actor: e.Actor, TraceID: "00000000000000000000000000000001"}
	}},
}

// search gets the first page, however many calls that takes.
func (m *meter) search(ctx context.Context, q ledger.Query) (rows int, err error) {
	limit := q.Limit
	for rows < limit {
		q.Limit = limit - rows
		page, before, err := m.Search(ctx, m.Tenant, q)
		rows += len(page)
		if err != nil || before == 0 {
			return rows, err
		}
		q.Before = before
	}
	return rows, nil
}

func (m *meter) chain(ctx context.Context, jti string) (int, error) {
	hops, err := m.Chain(ctx, m.Tenant, jti)
	return len(hops), err
}

func (m *meter) holdings(ctx context.Context, agent delegation.Principal) (int, error) {
	h, err := m.AgentView(ctx, m.Tenant, agent, 100)
	return h.Live + h.Below, err
}

// descendants gets all pages below the tree's root.
func (m *meter) descendants(ctx context.Context) (rows int, err error) {
	for after := uint64(0); ; {
		page, next, err := m.Descendants(ctx, m.Tenant, m.Summary.Tree, after, 1000)
		rows += len(page)
		if err != nil || next == 0 {
			return rows, err
		}
		after = next
	}
}
