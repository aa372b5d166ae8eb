package guard

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Memory takes the place of Redis in a deployment of one instance. It is lost with the process, as
// Redis may be lost at any time: the ledger decides on replays and revocations, and a proof with a
// lost nonce is answered with a new one. It is safe for concurrent use.
//
// It measures time by the monotonic clock: a step of the wall clock lets nothing expire.
type Memory struct {
	started time.Time

	mu        sync.Mutex // guards what follows
	tenants   map[string]*shared
	listeners map[*listener]bool
}

// NewMemory makes an empty one.
func NewMemory() *Memory {
	return &Memory{started: time.Now(), tenants: make(map[string]*shared), listeners: make(map[*listener]bool)}
}

// shared is what belongs to one tenant. All its times are counted from the Memory's start.
type shared struct {
	rates    expiring[delegation.Principal, time.Duration] // when the caller's bucket will be full
	uses     expiring[string, bool]                        // by digest
	given    expiring[int64, string]                       // nonces by period
	seen     expiring[string, Receipt]                     // receipts by connection
	lists    marks                                         // nil: there are none
	head     uint64
	reported Witness
}

// of returns a tenant's part, and the time. The caller holds the lock.
func (m *Memory) of(tenant string) (*shared, time.Duration) {
	s := m.tenants[tenant]
	if s == nil {
		s = new(shared)
		m.tenants[tenant] = s
	}
	return s, time.Since(m.started)
}

// admit is the generic cell rate algorithm, as in admit.lua.
func (m *Memory) admit(_ context.Context, a admission) (result admitted, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, now := m.of(a.tenant)
	for i, u := range a.uses {
		if s.uses.get(u.digest, now) {
			if result.replayed == 0 {
				result.replayed = i + 1
			}
			continue
		}
		s.uses.put(u.digest, true, now, u.life)
	}
	if result.replayed > 0 {
		return result, nil
	}
	interval := (time.Second + time.Duration(a.limit.Rate) - 1) / time.Duration(a.limit.Rate) // rounded up: never more than the rate
	full := time.Duration(a.limit.Burst) * interval
	// A limit that was lowered must not lock the caller out for longer than an empty bucket takes to
	// fill.
	next := min(max(s.rates.get(a.caller, now), now), now+full) + time.Duration(a.cost)*interval
	if wait := next - full - now; wait > 0 {
		return admitted{wait: wait}, nil
	}
	s.rates.put(a.caller, next, now, next-now)
	return result, nil
}

func (m *Memory) nonces(_ context.Context, tenant string, period int64, fresh string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, now := m.of(tenant)
	if s.given.get(period, now) == "" {
		s.given.put(period, fresh, now, 2*noncePeriod)
	}
	known := []string{s.given.get(period, now)}
	if before := s.given.get(period-1, now); before != "" {
		known = append(known, before)
	}
	return known, nil
}

func (m *Memory) publish(_ context.Context, tenant string, r delegation.Revocation, incarnation uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, _ := m.of(tenant)
	switch {
	case s.reported.Number > incarnation:
		return ErrSuperseded
	case s.head >= r.Seq:
		return nil
	case s.head != r.Prev:
		return ErrGap
	}
	if s.lists == nil {
		s.lists = make(marks)
	}
	s.lists.apply(r)
	s.head = r.Seq
	m.tell(tenant)
	return nil
}

func (m *Memory) replace(_ context.Context, tenant string, list marks, last, incarnation uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, _ := m.of(tenant)
	switch {
	case s.reported.Number > incarnation:
		return ErrSuperseded
	case s.head > last:
		return ErrAhead
	}
	s.lists, s.head = list, last
	m.tell(tenant)
	return nil
}

func (m *Memory) discard(_ context.Context, tenant string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, _ := m.of(tenant)
	s.lists, s.head, s.reported = nil, 0, Witness{}
	return nil
}

func (m *Memory) head(_ context.Context, tenant string) (head, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, _ := m.of(tenant)
	return head{there: s.lists != nil, seq: s.head, sound: true}, nil
}

func (m *Memory) look(_ context.Context, tenants []string) ([]Peek, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	peeks := make([]Peek, len(tenants))
	for i, tenant := range tenants {
		s, _ := m.of(tenant)
		peeks[i] = Peek{fields: s.pairs(), whole: true, typed: true, Witness: s.reported}
	}
	return peeks, nil
}

// fields returns all of them at once.
func (m *Memory) fields(_ context.Context, tenant string, _ uint64) ([]string, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, _ := m.of(tenant)
	return s.pairs(), 0, nil
}

// pairs are the names and values of the lists, in turn.
func (s *shared) pairs() []string {
	if s.lists == nil {
		return nil
	}
	pairs := append(make([]string, 0, 2*len(s.lists)+2), headField, strconv.FormatUint(s.head, 10))
	for name, m := range s.lists {
		pairs = append(pairs, name, m.String())
	}
	return pairs
}

func (m *Memory) testify(_ context.Context, of map[string]Witness) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for tenant, w := range of {
		s, _ := m.of(tenant)
		known := s.reported
		newer := w.Number > known.Number || w.Number == known.Number && w.ID == known.ID && w.Seq >= known.Seq
		if !known.There || newer {
			w.There = true
			s.reported = w
		}
	}
	return nil
}

func (m *Memory) witness(_ context.Context, tenant string) (Witness, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, _ := m.of(tenant)
	return s.reported, nil
}

func (m *Memory) saw(_ context.Context, tenant string, receipts []Receipt) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, now := m.of(tenant)
	for _, r := range receipts {
		if !r.SeenAt.Before(s.seen.get(r.connection(), now).SeenAt) {
			s.seen.put(r.connection(), r, now, 3*receiptsFor)
		}
	}
	return nil
}

func (m *Memory) receipts(_ context.Context, tenant string, _ time.Time) ([]Receipt, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, now := m.of(tenant)
	return s.seen.all(now), nil
}

func (m *Memory) ready(context.Context) error { return nil }

func (m *Memory) clock(context.Context) (time.Time, error) { return time.Now(), nil }

// listener is one caller of wake.
type listener struct {
	tenants []string
	news    []string      // tenants that it has not taken yet, each once
	poke    chan struct{} // holds a value after news was added
}

// tell adds the tenant to the news of its listeners. The caller holds the lock.
func (m *Memory) tell(tenant string) {
	for l := range m.listeners {
		if slices.Contains(l.tenants, tenant) && !slices.Contains(l.news, tenant) {
			l.news = append(l.news, tenant)
			select {
			case l.poke <- struct{}{}:
			default:
			}
		}
	}
}

// wake begins with all tenants: what was published before is news to the listener.
func (m *Memory) wake(ctx context.Context, tenants []string) <-chan []string {
	woken := make(chan []string)
	l := &listener{tenants: tenants, news: slices.Clone(tenants), poke: make(chan struct{}, 1)}
	m.mu.Lock()
	m.listeners[l] = true
	m.mu.Unlock()
	go func() {
		defer m.leave(l)
		var names []string // in the order in which they came, each once
		for {
			for _, name := range m.take(l) {
				if !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
			out := woken
			if len(names) == 0 {
				out = nil
			}
			select {
			case <-ctx.Done():
				return
			case out <- names:
				names = nil
			case <-l.poke:
			}
		}
	}()
	return woken
}

// take empties the listener's news before it is sent: what is published from then on is new.
func (m *Memory) take(l *listener) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	news := l.news
	l.news = nil
	return news
}

func (m *Memory) leave(l *listener) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.listeners, l)
}

// expiring holds values for a time each. The zero value is empty.
type expiring[K comparable, V any] struct {
	values map[K]lasting[V]
	due    map[time.Duration][]K // by the whole second before which none of them expires
	swept  time.Duration         // the last second that sweep looked at
}

type lasting[V any] struct {
	value V
	until time.Duration
}

// get returns the zero value for what is not there or has expired.
func (e *expiring[K, V]) get(name K, now time.Duration) (value V) {
	if held, there := e.values[name]; there && now < held.until {
		return held.value
	}
	return value
}

func (e *expiring[K, V]) all(now time.Duration) (list []V) {
	for _, held := range e.values {
		if now < held.until {
			list = append(list, held.value)
		}
	}
	return list
}

func (e *expiring[K, V]) put(name K, value V, now, life time.Duration) {
	if e.values == nil {
		e.values, e.due = make(map[K]lasting[V]), make(map[time.Duration][]K)
	}
	e.sweep(now)
	before, there := e.values[name]
	until := now + life
	e.values[name] = lasting[V]{value, until}
	second := until.Truncate(time.Second)
	if !there || before.until.Truncate(time.Second) != second {
		e.due[second] = append(e.due[second], name)
	}
}

// sweep removes what has expired, once in a second.
func (e *expiring[K, V]) sweep(now time.Duration) {
	second := now.Truncate(time.Second)
	if second == e.swept {
		return
	}
	e.swept = second
	for due, names := range e.due {
		if due >= second {
			continue
		}
		delete(e.due, due)
		for _, name := range names {
			if now >= e.values[name].until { // or it was put again
				delete(e.values, name)
			}
		}
	}
}
