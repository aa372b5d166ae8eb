package guard

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
)

// What keeps the lists from being brought up to date. Each comes inside a *delegation.Error of
// reason unavailable; Redis that does not answer gives one without.
var (
	// ErrGap: the lists are not those that the revocation follows, or no lists at all, because Redis
	// has lost or changed something. Republish mends it.
	ErrGap = errors.New("guard: the lists of revocations in Redis have a gap")
	// ErrRebuilding: somebody rebuilds the lists at the moment. Try again.
	ErrRebuilding = errors.New("guard: the lists of revocations in Redis are being rebuilt")
	// ErrAhead: the lists know a later revocation than the caller of Republish. If they are also
	// ahead of the ledger, read after PublishedHead, then the ledger has lost something.
	ErrAhead = errors.New("guard: the lists of revocations in Redis are further than this")
)

const (
	chunk    = 1000            // fields in one command
	claimFor = 3 * time.Second // how long a rebuilder that died holds others up
	stageFor = time.Minute     // and how long what it wrote remains
)

//go:embed publish.lua
var publishSource string

//go:embed claim.lua
var claimSource string

//go:embed switch.lua
var switchSource string

var (
	publish    = redis.NewScript(publishSource)
	claim      = redis.NewScript(claimSource)
	switchOver = redis.NewScript(switchSource)
)

// lists are the names of a tenant's keys, all in one slot of a Redis cluster. docs/revocation.md
// says what other services may rely on.
type lists struct{ list, events, rebuilding, wake string }

func listsOf(tenant string) lists {
	return lists{
		list: key(tenant, "revoked", "list"), events: key(tenant, "revoked", "events"),
		rebuilding: key(tenant, "revoked", "rebuilding"), wake: key(tenant, "revoked", "wake"),
	}
}

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

// fold is what publishing the revocations one after the other would make of an empty list.
func fold(live []delegation.Revocation) map[string]mark {
	marks := make(map[string]mark, len(live))
	put := func(t delegation.Target, m mark) {
		if old, there := marks[field(t)]; there {
			m.seq = max(m.seq, old.seq)
			if old.ends == 0 || m.ends == 0 {
				m.ends = 0
			} else {
				m.ends = max(m.ends, old.ends)
			}
		}
		marks[field(t)] = m
	}
	for _, r := range live {
		if r.Target.Kind != delegation.Resume {
			put(r.Target, mark{r.Seq, milliseconds(r.Until)})
			continue
		}
		suspension := field(suspensionOf(r.Target))
		if m, suspended := marks[suspension]; suspended {
			delete(marks, suspension)
			put(agentOf(r.Target), mark{m.seq, milliseconds(r.Until)})
		}
	}
	return marks
}

func suspensionOf(t delegation.Target) delegation.Target {
	return delegation.Target{Kind: delegation.BanSuspend, ID: t.ID}
}

func agentOf(t delegation.Target) delegation.Target {
	return delegation.Target{Kind: delegation.CutAgent, ID: t.ID}
}

// Publish adds a revocation to the tenant's lists, if it follows the last one there, appends it to
// the stream of events and wakes every instance; all at once or not at all. A revocation that the
// lists have already is none of its business and no error. The ledger must hold it durably before.
func (g *Guard) Publish(ctx context.Context, tenant string, r delegation.Revocation) (err error) {
	defer g.observe("publish", time.Now(), &err)
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	at, resumed := r.Target, ""
	if at.Kind == delegation.Resume {
		at, resumed = suspensionOf(at), field(agentOf(at))
	}
	n := listsOf(tenant)
	answer, err := publish.Run(ctx, g.client, []string{n.list, n.events, n.rebuilding, witnessKey(tenant)},
		r.Seq, r.Prev, field(at), milliseconds(r.Until), resumed, n.wake, g.incarnation.Load(),
		"seq", r.Seq, "prev", r.Prev, "kind", string(r.Target.Kind), "id", r.Target.ID, "subject", string(r.Target.Subject),
		"at", r.At.UnixMilli(), "until", milliseconds(r.Until)).Int64()
	switch {
	case err != nil:
		return delegation.Unavailable(dependency, err)
	case answer == 0, answer == 1:
		return nil
	case answer == -1:
		return delegation.Unavailable(dependency, ErrGap)
	case answer == -2:
		return delegation.Unavailable(dependency, ErrRebuilding)
	case answer == -4:
		return delegation.Unavailable(dependency, ErrSuperseded)
	}
	return delegation.Unavailable(dependency, fmt.Errorf("publishing answered %d", answer))
}

// PublishedHead returns the number up to which the lists are complete, 0 if there are none, and
// ErrGap if something else is in their place. A number above the ledger's newest, read after this,
// means that the ledger has lost something: an operator must decide.
func (g *Guard) PublishedHead(ctx context.Context, tenant string) (head uint64, err error) {
	defer g.observe("head", time.Now(), &err)
	return g.head(ctx, tenant)
}

func (g *Guard) head(ctx context.Context, tenant string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	value, err := g.client.HGet(ctx, listsOf(tenant).list, headField).Result()
	switch {
	case errors.Is(err, redis.Nil):
		return 0, nil
	case wrongType(err):
		return 0, delegation.Unavailable(dependency, fmt.Errorf("%w: %w", ErrGap, err))
	case err != nil:
		return 0, delegation.Unavailable(dependency, err)
	}
	head, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return 0, delegation.Unavailable(dependency, fmt.Errorf("%w: the head is no number", ErrGap))
	}
	return head, nil
}

func wrongType(err error) bool { return err != nil && redis.HasErrorPrefix(err, "WRONGTYPE") }

// Republish puts new lists, made from the ledger's live revocations and complete up to last, in the
// place of whatever is there. Until then readers see what was there, afterwards the new lists, and
// nothing in between; nobody else can publish or rebuild meanwhile. It refuses with ErrAhead to
// replace lists that are further. It leaves nothing out that has ended: the ledger decides that, by better evidence
// than one clock. Each step is bounded by Timeout, the whole by ctx: it takes some
// microseconds for each revocation.
func (g *Guard) Republish(ctx context.Context, tenant string, live []delegation.Revocation, last uint64) (err error) {
	defer g.observe("republish", time.Now(), &err)
	n, token := listsOf(tenant), rand.Text()
	next := key(tenant, "revoked", "next:"+token)
	fields, pairs := 0, make([]any, 0, 2*chunk)
	flush := func() error {
		err := g.stage(ctx, n.rebuilding, next, token, pairs)
		pairs = pairs[:0]
		return err
	}
	for name, m := range fold(live) {
		fields, pairs = fields+1, append(pairs, name, m.String())
		if len(pairs) == cap(pairs) {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	pairs = append(pairs, headField, last)
	if err := flush(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	answer, err := switchOver.Run(ctx, g.client, []string{n.list, n.events, n.rebuilding, next, witnessKey(tenant)}, token, last, fields+1, n.wake, g.incarnation.Load()).Int64()
	switch {
	case err != nil:
		return delegation.Unavailable(dependency, err)
	case answer == 1:
		return nil
	case answer == -1:
		return delegation.Unavailable(dependency, errors.New("the new list lost something while it was written: has Redis too little memory?"))
	case answer == -3:
		return delegation.Unavailable(dependency, ErrAhead)
	case answer == -4:
		return delegation.Unavailable(dependency, ErrSuperseded)
	}
	return delegation.Unavailable(dependency, fmt.Errorf("the switch answered %d", answer))
}

// stage writes some fields of a new list and renews the claim.
func (g *Guard) stage(ctx context.Context, rebuilding, next, token string, pairs []any) error {
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	claimed, err := claim.Run(ctx, g.client, []string{rebuilding}, token, claimFor.Milliseconds()).Int64()
	switch {
	case err != nil:
		return delegation.Unavailable(dependency, err)
	case claimed != 1:
		return delegation.Unavailable(dependency, ErrRebuilding)
	}
	pipe := g.client.Pipeline()
	pipe.HSet(ctx, next, pairs...)
	pipe.PExpire(ctx, next, stageFor) // whatever becomes of us
	if _, err := pipe.Exec(ctx); err != nil {
		return delegation.Unavailable(dependency, err)
	}
	return nil
}

// Audit says whether the lists in Redis say exactly what the live revocations say, which are
// complete up to last: nothing is missing, and nothing is there that has not ended. It is also false
// when so much has ended that the lists should be made anew. It reads all of them, in steps that are
// each bounded by Timeout. An error means that Redis did not answer.
func (g *Guard) Audit(ctx context.Context, tenant string, live []delegation.Revocation, last uint64) (ok bool, err error) {
	defer g.observe("audit", time.Now(), &err)
	if ok, err := g.auditTypes(ctx, tenant, last); !ok || err != nil {
		return false, err
	}
	a := audit{want: fold(live), now: g.now()}
	for cursor, done := uint64(0), false; !done; done = cursor == 0 {
		var pairs []string
		if pairs, cursor, err = g.scan(ctx, tenant, cursor); err != nil {
			if wrongType(err) {
				return false, nil
			}
			return false, delegation.Unavailable(dependency, err)
		}
		for i := 0; i+1 < len(pairs); i += 2 {
			a.see(pairs[i], pairs[i+1])
		}
	}
	a.finish()
	if a.wrong || !a.doubtful {
		return !a.wrong, nil
	}
	// What looks wrong may have been published while we read. Then the next audit has to say.
	head, err := g.head(ctx, tenant)
	if errors.Is(err, ErrGap) {
		return false, nil
	}
	return err == nil && head > last, err
}

// auditTypes looks at what Publish looks at before anything else.
func (g *Guard) auditTypes(ctx context.Context, tenant string, last uint64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	n := listsOf(tenant)
	pipe := g.client.Pipeline()
	head, events := pipe.HGet(ctx, n.list, headField), pipe.Type(ctx, n.events)
	_, err := pipe.Exec(ctx)
	switch {
	case wrongType(err), errors.Is(err, redis.Nil):
		return false, nil
	case err != nil:
		return false, delegation.Unavailable(dependency, err)
	}
	typed := events.Val() == "stream" || events.Val() == "none"
	return typed && head.Val() == strconv.FormatUint(last, 10), nil
}

func (g *Guard) scan(ctx context.Context, tenant string, cursor uint64) ([]string, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	return g.client.HScan(ctx, listsOf(tenant).list, cursor, "", chunk).Result()
}

// audit compares a list, of which it may see parts twice, with what should be there.
type audit struct {
	want  map[string]mark
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
