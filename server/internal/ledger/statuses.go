package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"deputy.example/deputy/client/delegation"
)

// StatusListSize is how many numbers one status list covers. A list is 16 KiB, and a busy tenant
// fills one in minutes.
const StatusListSize = 1 << 17

// StatusPlace returns which of the tenant's status lists covers an entry, and the entry's bit in
// it.
func StatusPlace(seq uint64) (list uint64, bit int) {
	return seq / StatusListSize, int(seq % StatusListSize)
}

// Statuses is one status list at one time. It is shared and must not be changed.
type Statuses struct {
	// At is when the list was requested: it covers everything that was committed before.
	At time.Time
	// Bits has the bit of the lowest number first, in the lowest bit of the first byte. A bit is 0
	// for a live grant that no revocation hits, and for a number that was not given at the time. It
	// may be 0 for an expired grant. It is 1 for a live grant that was revoked or voided. Between
	// two lists of one process no bit returns to 0, because no revoked grant becomes live again.
	Bits []byte
}

// Dead is the bit of one entry of this list.
func (s *Statuses) Dead(seq uint64) bool {
	_, bit := StatusPlace(seq)
	return s.Bits[bit/8]&(1<<(bit%8)) != 0
}

const (
	// mostStatusLists is how many lists of one tenant are kept. Only those with live grants are, so
	// eight million live grants are needed to reach it.
	mostStatusLists = 64
	// statusTimeout bounds one computation. All waiting callers share it, so it may take longer
	// than each of them waits.
	statusTimeout = 30 * time.Second
)

// Statuses returns the tenant's status list with the given number. It is no older than maxAge,
// unless its computation took longer. Each list has one computation at a time, which all callers
// share. Without an answer within ctx the error is unavailable. ErrNotFound means that the list
// does not exist yet, or that all its grants have ended.
//
// The first computation takes time in proportion to the list's live grants, at most StatusListSize.
// Later ones take at most as long if there were revocations since, and almost none otherwise.
func (l *Ledger) Statuses(ctx context.Context, tenant string, list uint64, maxAge time.Duration) (*Statuses, error) {
	s, err := l.sequencer(tenant)
	if err != nil {
		return nil, unavailable(err)
	}
	found, err := s.statuses.get(ctx, list, maxAge)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, unavailable(err)
	}
	return found, err
}

// statusLists are the lists of one tenant that were requested.
type statusLists struct {
	ledger *Ledger
	tenant string

	mu sync.Mutex // never held over I/O
	by map[uint64]*statusList
}

// statusList is one of them.
type statusList struct {
	number uint64

	asked   time.Time   // time of the last request
	reading *statusRead // the running computation, or nil
	state   statusState // base of the next computation; zero before the first
}

// statusState is how far a list has come.
type statusState struct {
	*Statuses
	revoked uint64 // every revocation up to this number is included
	head    uint64 // every void up to this number is included
}

// statusRead is a computation that any number of callers wait for.
type statusRead struct {
	done  chan struct{}
	state statusState // set before done is closed; waiting callers must ignore it if err is set
	err   error
}

func newStatusLists(l *Ledger, tenant string) *statusLists {
	return &statusLists{ledger: l, tenant: tenant, by: make(map[uint64]*statusList)}
}

func (s *statusLists) get(ctx context.Context, number uint64, maxAge time.Duration) (*Statuses, error) {
	current, mine, err := s.join(number, maxAge)
	if current != nil || err != nil {
		return current, err
	}
	select {
	case <-mine.done:
		if mine.err != nil {
			return nil, mine.err
		}
		return mine.state.Statuses, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// join returns a list that is young enough, or the computation to wait for.
func (s *statusLists) join(number uint64, maxAge time.Duration) (*Statuses, *statusRead, error) {
	now := s.ledger.config.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.by[number]
	if list == nil {
		list = &statusList{number: number}
	}
	list.asked = now
	if list.state.Statuses != nil {
		if age := now.Sub(list.state.At); age >= 0 && age < maxAge {
			return list.state.Statuses, nil, nil
		}
	}
	if list.reading == nil {
		reading := &statusRead{done: make(chan struct{})}
		if !s.ledger.spawn(func() { s.read(list, reading) }) {
			return nil, nil, errClosed
		}
		list.reading, s.by[number] = reading, list
	}
	return nil, list.reading, nil
}

func (s *statusLists) read(list *statusList, r *statusRead) {
	ctx, cancel := context.WithTimeout(context.Background(), statusTimeout)
	defer cancel()
	r.state, r.err = s.next(ctx, list.number, list.state)
	s.mu.Lock()
	list.reading, list.state = nil, r.state
	switch {
	case r.err == nil:
		s.evict()
	case r.state.Statuses == nil || errors.Is(r.err, ErrNotFound):
		delete(s.by, list.number)
	}
	s.mu.Unlock()
	close(r.done)
}

// evict removes the list whose last request is the oldest, if there are too many. s.mu is held.
func (s *statusLists) evict() {
	var kept []*statusList
	for _, list := range s.by {
		if list.reading == nil {
			kept = append(kept, list)
		}
	}
	if len(kept) <= mostStatusLists {
		return
	}
	oldest := slices.MinFunc(kept, func(a, b *statusList) int { return a.asked.Compare(b.asked) })
	delete(s.by, oldest.number)
}

// next computes a list from the previous one, or from nothing. The state that it returns with an
// error is as old as the given one.
func (s *statusLists) next(ctx context.Context, number uint64, from statusState) (statusState, error) {
	p := statusPass{statusLists: s, first: number * StatusListSize, from: from, to: statusState{Statuses: &Statuses{At: s.ledger.config.Now()}}}
	if err := p.readProgress(ctx); err != nil {
		return from, err
	}
	if p.rebuild {
		p.to.Bits = p.allRevoked()
	} else {
		p.to.Bits = bytes.Clone(from.Bits)
	}
	alive, err := p.judgeAll(ctx)
	switch {
	case err == nil && p.rebuild && alive == 0 && p.to.head > p.last():
		return from, ErrNotFound
	case err == nil && !p.rebuild:
		err = p.applyVoids(ctx)
	}
	switch {
	case err == nil:
		return p.to, nil
	case p.rebuild:
		return from, err
	}
	// Grants that were found revoked need not be read again, however far this came.
	from.Statuses = &Statuses{At: from.At, Bits: p.to.Bits}
	return from, err
}

// statusPass brings one list up to date.
//
// The order of the ledger limits what it has to read: a grant is recorded only if no earlier
// revocation hits it. So only revocations with higher numbers can hit it, and of these only the
// ones since the last pass change anything.
type statusPass struct {
	*statusLists
	first    uint64 // the list's first number
	from, to statusState
	rebuild  bool // from cannot be continued

	news     *delegation.RevocationSet
	mentions mentions // in the claims that news can hit
}

func (p *statusPass) last() uint64 { return p.first + StatusListSize - 1 }

// readProgress reads how far the ledger has come. It reads the revocations first and the head
// second, so that all grants that these revocations can hit are below the head.
func (p *statusPass) readProgress(ctx context.Context) error {
	live, newest, err := p.ledger.Live(ctx, p.tenant)
	if err != nil {
		return err
	}
	p.to.revoked = newest
	attempt, cancel := context.WithTimeout(ctx, p.ledger.config.attempt())
	defer cancel()
	if p.to.head, err = p.ledger.headSeq(attempt, p.tenant); err != nil {
		return err
	}
	switch {
	case p.to.revoked < p.from.revoked || p.to.head < p.from.head:
		return errWentBack
	case p.first > p.to.head:
		return ErrNotFound
	}
	news, complete, _ := p.ledger.Events(p.tenant, p.from.revoked)
	p.rebuild = p.from.Statuses == nil || !complete || p.to.head-p.from.head > StatusListSize
	if p.rebuild {
		news = live[after(live, p.first):]
	}
	p.news = delegation.NewRevocationSet(p.ledger.Skew(p.tenant))
	p.news.Apply(news...)
	p.mentions = mentionsOf(news)
	return nil
}

// allRevoked has a 1 for every number that was given. A grant that turns out to be live gets its 0,
// so everything that is missing counts as revoked.
func (p *statusPass) allRevoked() []byte {
	bits := make([]byte, StatusListSize/8)
	for bit := range min(p.to.head-p.first+1, StatusListSize) {
		bits[bit/8] |= 1 << (bit % 8)
	}
	return bits
}

// judgeAll reads the live grants of the list, unless nothing new can hit any of them.
func (p *statusPass) judgeAll(ctx context.Context) (alive int, err error) {
	if !p.rebuild && p.mentions.nothing() {
		return 0, nil
	}
	for seq, more := max(p.first, 1)-1, true; more; {
		seq, more, err = p.judgePage(ctx, seq, &alive)
		if err != nil {
			return 0, err
		}
	}
	return alive, nil
}

func (p *statusPass) judgePage(ctx context.Context, after uint64, alive *int) (last uint64, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.ledger.config.attempt())
	defer cancel()
	return p.ledger.livePage(ctx, p.tenant, after, min(p.last(), p.to.head), p.to.At, func(seq uint64, raw []byte) error {
		*alive++
		dead, err := p.hit(seq, raw)
		if err == nil && (dead || p.rebuild) {
			p.set(seq, dead)
		}
		return err
	})
}

func (p *statusPass) hit(seq uint64, raw []byte) (bool, error) {
	if seq > p.to.revoked || !p.mentions.in(raw) {
		return false, nil
	}
	if !p.rebuild && p.to.Dead(seq) {
		return true, nil
	}
	claims, err := delegation.DecodeClaims(raw)
	if err != nil {
		return false, fmt.Errorf("claims of entry %d: %w", seq, err)
	}
	_, dead := p.news.Hit(claims.Lineage())
	return dead, nil
}

func (p *statusPass) set(seq uint64, dead bool) {
	_, bit := StatusPlace(seq)
	if dead {
		p.to.Bits[bit/8] |= 1 << (bit % 8)
	} else {
		p.to.Bits[bit/8] &^= 1 << (bit % 8)
	}
}

// sqlVoids reads the voids that were appended since the last pass.
const sqlVoids = `SELECT voids FROM entries WHERE tenant = $1 AND seq > $2 AND seq <= $3 AND kind = 'void' AND voids >= $4 AND voids <= $5`

// applyVoids sets the bits of what was voided since the last pass.
func (p *statusPass) applyVoids(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.ledger.config.attempt())
	defer cancel()
	found, err := p.ledger.store.query(ctx, sqlVoids, p.tenant, int64(p.from.head), int64(p.to.head), int64(p.first), int64(p.last()))
	if err != nil {
		return err
	}
	return eachRow(found, func() error {
		var seq uint64
		err := found.Scan(&seq)
		if err == nil {
			p.set(seq, true)
		}
		return err
	})
}

// mentions finds the claims that may hold one of some names. Comparing the strings of claims is
// many times faster than decoding them.
type mentions struct {
	names map[string]struct{}
	all   bool // all claims, whatever they hold
}

func mentionsOf(list []delegation.Revocation) mentions {
	m := mentions{names: make(map[string]struct{})}
	for _, r := range list {
		switch r.Target.Kind {
		case delegation.Resume: // hits nothing by itself
		case delegation.CutTenant, delegation.CutFork:
			m.all = true
		default:
			m.names[r.Target.ID] = struct{}{}
		}
	}
	return m
}

func (m mentions) nothing() bool { return !m.all && len(m.names) == 0 }

// in is false only for claims that hold none of the names. JSON without an escape holds every
// string as it is, between the first quotation mark and the second, the third and the fourth, and
// so on.
func (m mentions) in(claims []byte) bool {
	if m.all || bytes.IndexByte(claims, '\\') >= 0 {
		return true
	}
	for {
		opening := bytes.IndexByte(claims, '"')
		if opening < 0 {
			return false
		}
		claims = claims[opening+1:]
		closing := bytes.IndexByte(claims, '"')
		if closing < 0 {
			return false
		}
		if _, named := m.names[string(claims[:closing])]; named {
			return true
		}
		claims = claims[closing+1:]
	}
}
