package policy

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"deputy.example/deputy/server/internal/gather"
	"deputy.example/deputy/server/internal/panics"
)

// Defaults and limits of Cache.
const (
	DefaultCacheEntries = 100_000
	MaxCacheEntries     = 10_000_000
	DefaultCacheOverlap = 10 * time.Second
	// MinCacheOverlap is OpenFGA's default request timeout plus the tolerated difference of clocks.
	MinCacheOverlap = 3*time.Second + maxSkew
	MaxCacheOverlap = 10 * time.Minute
)

const (
	// maxAge is how long a decision is remembered at most, also if the changelog has no changes. If
	// the changelog is incomplete, no decision is older than that, and the next check reveals it.
	maxAge = time.Minute
	// minAge is how long a decision is remembered at least. The actual life is random, so that
	// decisions that were made together do not expire together.
	minAge = 40 * time.Second
	// pause is how long questions go directly to OpenFGA after a failed reading of the changelog.
	pause = time.Second
)

// Cache configures whether a checker remembers decisions. The zero value remembers none.
type Cache struct {
	// Enabled turns it on. Default false. Danger: it is correct only if OpenFGA's changelog is
	// complete, which cannot be observed from outside. OPENFGA_DATASTORE_SECONDARY_URI and
	// OPENFGA_CHANGELOG_HORIZON_OFFSET must not be set, and no write may take longer than overlap.
	// See docs/policy.md, "Remembered decisions".
	Enabled bool `yaml:"enabled"`
	// Entries bounds how many decisions are kept, 100 to 600 bytes each. Default 100000, at most
	// 10000000.
	Entries int `yaml:"entries"`
	// Overlap is how far back each reading of the changelog begins. Default 10s, 5s to 10m. Danger:
	// it must be two seconds longer than OPENFGA_REQUEST_TIMEOUT, and more if the clocks of
	// OpenFGA's instances differ.
	Overlap time.Duration `yaml:"overlap"`
}

// complete fills in the defaults and refuses invalid values.
func (c Cache) complete() (Cache, error) {
	if c.Entries == 0 {
		c.Entries = DefaultCacheEntries
	}
	if c.Overlap == 0 {
		c.Overlap = DefaultCacheOverlap
	}
	var errs []error
	if c.Entries < 0 || c.Entries > MaxCacheEntries {
		errs = append(errs, fmt.Errorf("cache entries: must be 1 to %d", MaxCacheEntries))
	}
	if c.Overlap < MinCacheOverlap || c.Overlap > MaxCacheOverlap {
		errs = append(errs, fmt.Errorf("cache overlap: must be %v to %v", MinCacheOverlap, MaxCacheOverlap))
	}
	return c, errors.Join(errs...)
}

// memory holds the decisions of one checker, and the reading that all waiting questions share: has
// anything changed? That reading is OpenFGA's ReadChanges. A remembered decision answers a question
// only after a reading of the changelog that was *sent after the question arrived* and that showed
// no change that could affect the decision.
//
// # Readings
//
// At most one reading is under way. A question that arrives meanwhile waits for the next one,
// together with all others. OpenFGA may have computed the answer of the reading under way before a
// write that this caller saw acknowledged. A reading belongs to no caller, so a caller that cancels
// does not cancel it.
//
// Completed readings are counted, and the count is a position. A decision carries the position that
// was reached *before* its check was sent. So every change that a reading up to that position
// returned was committed before the check, and the check reflects it. Every other change is
// returned by a later reading, which then forgets the decision:
//
//   - A change is committed before the last reading was sent: the reading returned it, and the
//     check, which was sent later, reflects it.
//   - It is committed between that reading and the check: the check reflects it, and the next
//     reading forgets the decision nevertheless. That costs one check.
//   - It is committed while the check runs, and a reading completes before the check: that
//     reading has nothing to forget yet. Therefore a decision is remembered only if no reading
//     since its position has shown any change.
//   - It is committed while the check runs, and no reading completes before the check: the
//     decision is remembered. The next reading forgets it, and every use of the decision waits for
//     that reading.
//   - Two checks of the same relation complete in the wrong order: each carries its own position,
//     and the rules above hold for each.
//
// # What a reading returns
//
// Rows of the changelog are written in the transaction of the tuples, but they are ordered by ULIDs
// that are generated before it. So a row can appear behind rows that were read already. Such a row
// was begun no longer ago than the longest write that OpenFGA allows. Therefore each reading begins
// one overlap before the previous one, and counting tells new rows from earlier ones. If a row has
// vanished, the server's clock differs, there are too many rows, or a row is not understood, then
// everything is forgotten or asked directly: see [Checker.read].
//
// This has two requirements on OpenFGA that cannot be verified here. No write is acknowledged that
// began longer ago than the overlap, by the clock of the instance that took it. And ReadChanges is
// answered by the primary database (OpenFGA uses its secondary if one is configured), without
// changelog-horizon-offset. docs/policy.md states them for operators, decision 21 gives the
// reasons.
type memory struct {
	overlap time.Duration
	began   time.Time

	mu        sync.Mutex
	decisions generations
	granted   map[string]grant // whole questions, by questionKey
	ready     bool             // there is a window: decisions can be remembered from now on
	position  uint64           // completed readings
	changed   uint64           // the last position at which a reading had a new row
	forgotten map[class]uint64 // decisions of the class that were made before this position are void
	next      *reading         // collects the questions that wait for the next reading
	running   bool
	paused    time.Time // no reading before this time
	distrust  bool      // the changelog was found incomplete

	// Only the reading goroutine uses these.
	since time.Time      // where the window begins; zero: no reading yet
	seen  map[change]int // the rows of the window at the last reading
}

// decision is one remembered answer.
type decision struct {
	verdict verdict
	at      uint64        // position before the check was sent
	until   time.Duration // since the memory began; then the decision expires
}

// reading is one request of the changelog. done is closed after it; err is why it has no result.
type reading struct {
	done    chan struct{}
	waiting int // number of questions
	err     error
}

func newMemory(c Cache) *memory {
	return &memory{
		overlap: c.Overlap, began: time.Now(),
		decisions: generations{most: max(c.Entries/2, 1)},
		forgotten: make(map[class]uint64),
	}
}

// errPaused: the last reading failed a moment ago.
var errPaused = errors.New("OpenFGA: the changelog is paused after a failed reading")

// remember answers from memory what is remembered, asks for the rest, and remembers the answers.
// Like checkAll it never returns an error.
func (c *Checker) remember(ctx context.Context, relations []Relation) []result {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	model, err := c.readModel(ctx)
	if err != nil || len(relations) == 0 {
		return c.checkAll(ctx, relations)
	}
	results := make([]result, len(relations))
	m := c.memory
	here, ready := m.known(relations)
	var shared *reading
	if len(here) > 0 || !ready {
		shared = c.join(model.influences)
	}
	if !ready {
		_ = shared.wait(ctx) // after a successful reading, decisions can be remembered
	}
	c.checkSome(ctx, model, relations, results, without(len(relations), here))
	if len(here) == 0 {
		return results
	}
	if err := shared.wait(ctx); err != nil {
		c.metrics.fallbacks.Add(float64(len(here)))
		c.checkSome(ctx, model, relations, results, here)
		return results
	}
	gone := m.recall(relations, results, here)
	c.metrics.remembered.Add(float64(len(here) - len(gone)))
	c.checkSome(ctx, model, relations, results, gone)
	return results
}

// without returns the numbers below n that are not in the ascending list.
func without(n int, list []int) []int {
	rest := make([]int, 0, n-len(list))
	for i := range n {
		if len(list) > 0 && list[0] == i {
			list = list[1:]
			continue
		}
		rest = append(rest, i)
	}
	return rest
}

// checkSome asks for the relations with these numbers, and remembers the answers.
func (c *Checker) checkSome(ctx context.Context, model *model, relations []Relation, results []result, which []int) {
	if len(which) == 0 {
		return
	}
	some := make([]Relation, len(which))
	for i, at := range which {
		some[i] = relations[at]
	}
	position := c.memory.now()
	answers := c.checkAll(ctx, some)
	for i, at := range which {
		results[at] = answers[i]
	}
	contradicted := c.memory.keep(model.influences, some, answers, position)
	if len(contradicted) > 0 {
		c.doubt(ctx, model, contradicted)
	}
}

// doubt examines decisions that OpenFGA now answered differently although no reading had returned a
// change. A new reading must return that change. If it does not, the changelog is incomplete, and
// this memory is not used again.
func (c *Checker) doubt(ctx context.Context, model *model, doubtful map[Relation]decision) {
	if err := c.join(model.influences).wait(ctx); err != nil {
		return
	}
	if c.memory.disown(doubtful) {
		c.metrics.contradicted.Inc()
	}
}

// known returns the numbers of the relations that are remembered, and whether decisions can be
// remembered at all yet.
func (m *memory) known(relations []Relation) (here []int, ready bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, r := range relations {
		if _, ok := m.valid(r); ok {
			here = append(here, i)
		}
	}
	return here, m.ready && !m.distrust
}

// valid returns a decision that no reading has forgotten. The caller holds the lock.
func (m *memory) valid(r Relation) (decision, bool) {
	d, there := m.decisions.get(r)
	if !there || m.distrust || d.at < m.forgotten[classOf(r)] || time.Since(m.began) > d.until {
		return decision{}, false
	}
	return d, true
}

func (m *memory) now() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.position
}

// recall fills in what is still remembered after a reading, and returns the numbers of the rest.
func (m *memory) recall(relations []Relation, results []result, which []int) (gone []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range which {
		d, ok := m.valid(relations[i])
		if !ok {
			gone = append(gone, i)
			continue
		}
		results[i] = result{verdict: d.verdict}
	}
	return gone
}

// keep remembers answers to checks that were sent at a position. It returns the decisions that
// contradict them.
func (m *memory) keep(model *influences, relations []Relation, answers []result, position uint64) (contradicted map[Relation]decision) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ready || m.changed > position || m.distrust {
		return nil
	}
	now := time.Since(m.began)
	for i, r := range relations {
		if answers[i].verdict == unanswered || !model.remembers(r) {
			continue
		}
		old, there := m.decisions.get(r)
		if there && old.at >= m.forgotten[classOf(r)] && old.verdict != answers[i].verdict {
			if contradicted == nil {
				contradicted = make(map[Relation]decision)
			}
			contradicted[r] = old
			continue
		}
		m.decisions.put(r, decision{answers[i].verdict, position, now + minAge + rand.N(maxAge-minAge)})
	}
	return contradicted
}

// giveUp stops the use of this memory for good.
func (m *memory) giveUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.distrust = true
}

// disown gives up if one of the decisions has still not been forgotten. It returns true if it did
// so now.
func (m *memory) disown(doubtful map[Relation]decision) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.distrust {
		return false
	}
	for r, old := range doubtful {
		if still, there := m.decisions.get(r); there && still == old && old.at >= m.forgotten[classOf(r)] {
			m.distrust = true
		}
	}
	return m.distrust
}

// join returns the next reading, or noReading while readings are paused or given up.
func (c *Checker) join(model *influences) *reading {
	m := c.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.distrust || time.Now().Before(m.paused) {
		return noReading
	}
	if m.next == nil {
		m.next = &reading{done: make(chan struct{})}
	}
	next := m.next
	next.waiting++
	if !m.running {
		m.running = true
		go c.readOn(model)
	}
	return next
}

// noReading is a reading that has failed already.
var noReading = over(errPaused)

func over(err error) *reading {
	r := &reading{done: make(chan struct{}), err: err}
	close(r.done)
	return r
}

// wait returns nil after a successful reading.
func (r *reading) wait(ctx context.Context) error {
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// readOn reads as long as questions wait. A question that joins during a reading gets the next one.
func (c *Checker) readOn(model *influences) {
	m := c.memory
	for last := 0; ; {
		gather.Group(math.MaxInt, last, m.waiting)
		m.mu.Lock()
		r := m.next
		if r == nil {
			m.running = false
			m.mu.Unlock()
			return
		}
		last = r.waiting
		m.next = nil // a question that arrives from now on waits for the next reading
		m.mu.Unlock()
		r.err = c.read(model)
		close(r.done)
	}
}

// waiting is the number of questions that wait for the next reading.
func (m *memory) waiting() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.next == nil {
		return 0
	}
	return m.next.waiting
}

// read makes one reading and forgets what it must. It takes at most a quarter of a question's
// timeout, so that enough is left to ask directly.
func (c *Checker) read(model *influences) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout/4)
	defer cancel()
	m := c.memory
	defer func() {
		if p := recover(); p != nil { // no caller above recovers, and the state may be inconsistent
			m.giveUp()
			err = fmt.Errorf("policy: %w", panics.Of(p))
		}
	}()
	sent := time.Now()
	moved := sent.Add(-m.overlap)
	since := m.since
	if since.IsZero() {
		since = moved
	}
	var later []change
	move := len(m.seen) > 0 && moved.Sub(since) > m.overlap
	if move {
		// The window moves to where this reading begins. Its rows are read before the whole, so
		// that it holds no row that the whole lacks.
		later, err = c.readChanges(ctx, sent, moved)
	}
	var rows []change
	if err == nil {
		rows, err = c.readChanges(ctx, sent, since)
	}
	if err != nil {
		m.fail(err)
		c.metrics.readings.WithLabelValues(failed).Inc()
		return err
	}
	seen, fresh, whole := compare(m.seen, rows)
	outcome := unchanged
	switch {
	case m.since.IsZero():
		fresh = nil // no remembered decision yet that it could affect
	case !whole:
		outcome = incomplete
	case len(fresh) > 0:
		outcome = changed
	}
	c.metrics.readings.WithLabelValues(outcome).Inc()
	switch {
	case move:
		since = moved
		seen, _, _ = compare(nil, later)
	case len(rows) == 0:
		since = moved // every row that can still appear begins later
	}
	first := m.since.IsZero()
	m.since, m.seen = since, seen
	for _, reach := range m.advance(model, fresh, first || !whole) {
		c.metrics.forgotten.WithLabelValues(reach).Inc()
	}
	return nil
}

// compare counts rows. fresh are the rows that are new; whole is false if a seen one has vanished.
func compare(seen map[change]int, rows []change) (counted map[change]int, fresh []change, whole bool) {
	if len(rows) == 0 {
		return nil, nil, len(seen) == 0
	}
	counted = make(map[change]int, len(rows))
	for _, ch := range rows {
		if counted[ch]++; counted[ch] > seen[ch] {
			fresh = append(fresh, ch)
		}
	}
	whole = true
	for ch, n := range seen {
		whole = whole && counted[ch] >= n
	}
	return counted, fresh, whole
}

// fail pauses the readings. If the window holds too many rows, it restarts and all decisions are
// forgotten.
func (m *memory) fail(err error) {
	startOver := errors.Is(err, errTooManyChanges)
	if startOver {
		m.since, m.seen = time.Time{}, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = time.Now().Add(pause)
	if startOver {
		m.decisions.clear()
		m.granted = nil
		m.ready = false
	}
}

// advance completes a reading: the position counts it, and decisions that its changes affect are
// forgotten. It returns the reach of each change.
func (m *memory) advance(model *influences, fresh []change, everything bool) (reached []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ready = true
	m.position++
	if len(fresh) > 0 || everything {
		m.changed = m.position
	}
	for _, ch := range fresh {
		i, known := model.of[class{typeOf(ch.Object), ch.Relation.Relation}]
		switch {
		case !known:
			everything = true // a tuple of another model: its effect is unknown
		case !i.ofEverybody(ch):
			m.decisions.drop(ch.User, func(r Relation) bool { return i.touches(ch, r) })
			reached = append(reached, ofUser)
		default:
			reached = append(reached, ofType)
			for relation := range i.same {
				m.forgotten[class{typeOf(ch.Object), relation}] = m.position
			}
			for c := range i.far {
				m.forgotten[c] = m.position
			}
		}
	}
	if everything {
		m.decisions.clear()
		reached = append(reached, ofAll)
	}
	return reached
}

// generations hold decisions by user. When the young ones are half of what may be kept, the old
// ones are dropped and the young ones become old. So decisions in regular use stay.
type generations struct {
	most       int // of each
	young, old generation
}

type generation struct {
	users map[string]map[target]decision
	size  int
}

// target is a relation without its user.
type target struct{ relation, object string }

func (g *generations) get(r Relation) (decision, bool) {
	t := target{r.Relation, r.Object}
	d, there := g.young.users[r.User][t]
	if !there {
		if d, there = g.old.users[r.User][t]; there {
			g.put(r, d)
		}
	}
	return d, there
}

func (g *generations) put(r Relation, d decision) {
	if g.young.size >= g.most {
		g.old, g.young = g.young, generation{}
	}
	if g.young.users == nil {
		g.young.users = make(map[string]map[target]decision)
	}
	of := g.young.users[r.User]
	if of == nil {
		of = make(map[target]decision)
		g.young.users[r.User] = of
	}
	before := len(of)
	of[target{r.Relation, r.Object}] = d
	g.young.size += len(of) - before
}

// drop forgets the decisions about the user's relations that fit.
func (g *generations) drop(user string, fits func(Relation) bool) {
	for _, of := range []*generation{&g.young, &g.old} {
		for t := range of.users[user] {
			if fits(Relation{user, t.relation, t.object}) {
				delete(of.users[user], t)
				of.size--
			}
		}
		if len(of.users[user]) == 0 {
			delete(of.users, user)
		}
	}
}

func (g *generations) clear() { g.young, g.old = generation{}, generation{} }
