package guard

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
)

// What keeps the lists from being brought up to date. Each comes inside a *delegation.Error of
// reason unavailable. A Redis that does not answer gives one without.
var (
	// ErrGap: the lists are not those that the revocation follows, or no lists at all, because Redis
	// has lost or changed something. Republish mends it.
	ErrGap = errors.New("guard: the lists of revocations in Redis have a gap")
	// ErrRebuilding: another instance rebuilds the lists at the moment. Try again.
	ErrRebuilding = errors.New("guard: the lists of revocations in Redis are being rebuilt")
	// ErrAhead: the lists hold a later revocation than the caller of Republish. If they are also
	// ahead of the ledger, read after PublishedHead, then the ledger has lost something.
	ErrAhead = errors.New("guard: the lists of revocations in Redis are further than this")
)

// chunk is how many fields one command reads or writes.
const chunk = 1000

// headField holds the number up to which a list is complete. No kind of target is called so.
const headField = "head"

func field(t delegation.Target) string {
	switch {
	case t.Kind == delegation.CutTenant, t.Kind == delegation.CutFork: // one field, whatever it aims at
		return string(t.Kind)
	case t.Subject != "":
		return string(t.Kind) + ":" + t.ID + ":" + string(t.Subject)
	}
	return string(t.Kind) + ":" + t.ID
}

// targetOf reads what field wrote. A fork's field does not name what it aims at, and nothing is known by it.
func targetOf(name string) (t delegation.Target, known bool) {
	kind, id, _ := strings.Cut(name, ":")
	t = delegation.Target{Kind: delegation.TargetKind(kind), ID: id}
	if t.Kind == delegation.CutAgentSubject { // two principals, each a type, a colon and an id that holds none
		if parts := strings.Split(id, ":"); len(parts) == 4 {
			t.ID, t.Subject = parts[0]+":"+parts[1], delegation.Principal(parts[2]+":"+parts[3])
		}
	}
	return t, t.Check() == nil
}

// mark is the value of a field: the number of the latest revocation of that target, and when the
// last one to end does so, in milliseconds since 1970; 0: never.
type mark struct {
	seq  uint64
	ends int64
}

func (m mark) String() string {
	return strconv.FormatUint(m.seq, 10) + ":" + strconv.FormatInt(m.ends, 10)
}

func parseMark(s string) (mark, bool) {
	seq, ends, _ := strings.Cut(s, ":")
	var m mark
	var errSeq, errEnds error
	m.seq, errSeq = strconv.ParseUint(seq, 10, 64)
	m.ends, errEnds = strconv.ParseInt(ends, 10, 64)
	return m, errSeq == nil && errEnds == nil && m.String() == s
}

// ended means that lists may lack it. What lacks it is never made by this clock.
func (m mark) ended(now time.Time) bool { return m.ends != 0 && m.ends <= now.UnixMilli() }

// milliseconds rounds up: nothing ends early.
func milliseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Add(time.Millisecond - 1).UnixMilli()
}

// marks are a tenant's lists: the marks of all fields but the head.
type marks map[string]mark

// fold is what publishing the revocations one after the other makes of empty lists.
func fold(live []delegation.Revocation) marks {
	m := make(marks, len(live))
	for _, r := range live {
		m.apply(r)
	}
	return m
}

// apply adds one revocation. A resumed agent's suspension becomes a cut-off with the suspension's
// own number.
func (m marks) apply(r delegation.Revocation) {
	if r.Target.Kind != delegation.Resume {
		m.put(r.Target, mark{r.Seq, milliseconds(r.Until)})
		return
	}
	suspension := field(suspensionOf(r.Target))
	if suspended, there := m[suspension]; there {
		delete(m, suspension)
		m.put(agentOf(r.Target), mark{suspended.seq, milliseconds(r.Until)})
	}
}

// put keeps the higher number and the longer life.
func (m marks) put(t delegation.Target, added mark) {
	if old, there := m[field(t)]; there {
		added.seq = max(added.seq, old.seq)
		if old.ends == 0 || added.ends == 0 {
			added.ends = 0
		} else {
			added.ends = max(added.ends, old.ends)
		}
	}
	m[field(t)] = added
}

func suspensionOf(t delegation.Target) delegation.Target {
	return delegation.Target{Kind: delegation.BanSuspend, ID: t.ID}
}

func agentOf(t delegation.Target) delegation.Target {
	return delegation.Target{Kind: delegation.CutAgent, ID: t.ID}
}

// Publish adds a revocation to the tenant's lists, if it follows the last one there, and wakes every
// instance; all at once or not at all. A revocation that the lists have already changes nothing and
// is no error. The ledger must hold it durably before.
func (g *Guard) Publish(ctx context.Context, tenant string, r delegation.Revocation) (err error) {
	defer g.observe("publish", time.Now(), &err)
	ctx, cancel := g.within(ctx)
	defer cancel()
	return unavailable(g.store.publish(ctx, tenant, r, g.incarnation.Load()))
}

// PublishedHead returns the number up to which the lists are complete, 0 if there are none, and
// ErrGap if something else is in their place. A number above the ledger's newest, read after this,
// means that the ledger has lost something: an operator must decide.
func (g *Guard) PublishedHead(ctx context.Context, tenant string) (_ uint64, err error) {
	defer g.observe("head", time.Now(), &err)
	found, err := g.head(ctx, tenant)
	return found.seq, err
}

func (g *Guard) head(ctx context.Context, tenant string) (head, error) {
	ctx, cancel := g.within(ctx)
	defer cancel()
	found, err := g.store.head(ctx, tenant)
	return found, unavailable(err)
}

// Republish makes new lists, from the ledger's live revocations and complete up to last, and puts
// them in the place of what is there. Until then readers see what was there, afterwards the new
// lists, and nothing in between; no other instance can publish or rebuild meanwhile. It refuses with
// ErrAhead to replace lists that are further. It leaves nothing out that has ended: the ledger
// decides that, by better evidence than one clock. Each step is bounded by Timeout, the whole by
// ctx: it takes some microseconds for each revocation.
func (g *Guard) Republish(ctx context.Context, tenant string, live []delegation.Revocation, last uint64) (err error) {
	defer g.observe("republish", time.Now(), &err)
	list := fold(live)
	return unavailable(g.store.replace(ctx, tenant, list, last, g.incarnation.Load()))
}

// Audit returns whether the lists hold exactly the live revocations, which are complete up to last:
// nothing is missing, and nothing is there that has not ended. It is also false when so much has
// ended that the lists should be rebuilt. It reads all of them, in steps that are each bounded by
// Timeout. An error means that Redis did not answer.
func (g *Guard) Audit(ctx context.Context, tenant string, live []delegation.Revocation, last uint64) (ok bool, err error) {
	defer g.observe("audit", time.Now(), &err)
	found, err := g.head(ctx, tenant)
	switch {
	case errors.Is(err, ErrGap):
		return false, nil
	case err != nil:
		return false, err
	case !found.there || !found.sound || found.seq != last:
		return false, nil
	}
	a := audit{want: fold(live), now: g.now()}
	err = g.scan(ctx, tenant, func(name, value string) { a.see(name, value) })
	switch {
	case errors.Is(err, ErrGap):
		return false, nil
	case err != nil:
		return false, err
	}
	a.finish()
	if a.wrong || !a.doubtful {
		return !a.wrong, nil
	}
	// What looks wrong may have been published meanwhile. Then the next audit decides.
	found, err = g.head(ctx, tenant)
	if errors.Is(err, ErrGap) {
		return false, nil
	}
	return err == nil && found.seq > last, err
}

// scan reads all fields of a tenant's lists, some of them perhaps twice.
func (g *Guard) scan(ctx context.Context, tenant string, see func(name, value string)) error {
	for cursor, done := uint64(0), false; !done; done = cursor == 0 {
		pairs, next, err := g.page(ctx, tenant, cursor)
		if err != nil {
			return unavailable(err)
		}
		for i := 0; i+1 < len(pairs); i += 2 {
			see(pairs[i], pairs[i+1])
		}
		cursor = next
	}
	return nil
}

func (g *Guard) page(ctx context.Context, tenant string, cursor uint64) ([]string, uint64, error) {
	ctx, cancel := g.within(ctx)
	defer cancel()
	return g.store.fields(ctx, tenant, cursor)
}

// audit compares lists, of which it may see parts twice, with what they should hold.
type audit struct {
	want  marks
	now   time.Time
	seen  map[string]bool
	ended int // fields that should not be there any more

	wrong    bool // whatever is published meanwhile
	doubtful bool // unless something was published meanwhile
}

func (a *audit) see(name, value string) {
	if name == headField || a.seen[name] {
		return
	}
	if a.seen == nil {
		a.seen = make(map[string]bool, len(a.want))
	}
	a.seen[name] = true
	want, wanted := a.want[name]
	switch found, valid := parseMark(value); {
	case !valid:
		a.wrong = true
	case found == want && wanted:
	case found.ended(a.now) && (!wanted || want.ended(a.now)):
		a.ended++
	case wanted && found.seq < want.seq:
		a.wrong = true
	default:
		a.doubtful = true
	}
}

func (a *audit) finish() {
	for name, m := range a.want {
		switch {
		case a.seen[name] || m.ended(a.now):
		case strings.HasPrefix(name, string(delegation.BanSuspend)+":"):
			a.doubtful = true // or resumed meanwhile
		default:
			a.wrong = true
		}
	}
	if a.ended > len(a.want)+chunk {
		a.wrong = true
	}
}
