package vault

import "time"

// Bounds that the promises of a rotation are made of.
const (
	// Stale is how long an instance goes on with the keys that it has while it cannot read the table.
	Stale = 5 * time.Minute
	// Soon is when a key signs that is wanted at once: by then every instance that reads has it.
	Soon = 5 * time.Second
	// margin is added to the longest life of what a key signed: what an instance that could not read the
	// table may have signed with it afterwards, and a minute for clocks that differ.
	margin = Stale + time.Minute
)

// Plan is the life of the keys of one tenant and use.
type Plan struct {
	Tenant    string
	Use       Use
	Algorithm string        // of the next key
	Rotate    time.Duration // how long a key signs before another does; zero: until somebody rotates
	Ahead     time.Duration // how long a key is published before it signs
	Lifetime  time.Duration // the longest life of what a key signs
	// Together lets every key sign until somebody retires it: for what is believed with one signature of
	// several, by people who take their time to learn a new key.
	Together bool
}

// Phase is where in its life a key is.
type Phase string

// The phases, in order. A key is in force, which is to verify and be published, in all but the last.
const (
	Published Phase = "published" // waits to sign
	Signing   Phase = "signing"
	Verifying Phase = "verifying" // a later one signs
	Retired   Phase = "retired"
)

// State is a key with its phase at one time.
type State struct {
	Row
	Phase Phase
	Since time.Time
	Until time.Time // zero: nothing is known that ends it
}

// states is a function of the rows and the time, and of nothing else. The rows are those of the plan, the
// earliest first. Between the returned times, each of which may be zero, they all stay as they are.
func (p Plan) states(rows []Row, now time.Time) (list []State, from, until time.Time) {
	for i, r := range rows {
		s := p.state(r, p.succeeded(r, rows[i+1:]), now)
		if !s.Since.After(now) && s.Since.After(from) {
			from = s.Since
		}
		if s.Phase != Retired && !s.Until.IsZero() && (until.IsZero() || s.Until.Before(until)) {
			until = s.Until
		}
		list = append(list, s)
	}
	return list, from, until
}

// succeeded is when another key takes over from r: the earliest time that one of the later keys signs. What
// was retired before it signed takes over from nobody; what was retired afterwards did, so that a key never
// comes back.
func (p Plan) succeeded(r Row, later []Row) (at time.Time) {
	for _, s := range later {
		never := !s.Retired.IsZero() && !s.Retired.After(s.SignsFrom)
		if !p.Together && !never && (at.IsZero() || s.SignsFrom.Before(at)) {
			at = s.SignsFrom
		}
	}
	return at
}

func (p Plan) state(r Row, succeeded, now time.Time) State {
	end := succeeded.Add(max(r.Lifetime, p.Lifetime) + margin)
	switch {
	case !r.Retired.IsZero():
		return State{r, Retired, r.Retired, time.Time{}}
	case !succeeded.IsZero() && !now.Before(end):
		return State{r, Retired, end, time.Time{}}
	case !succeeded.IsZero() && !now.Before(succeeded):
		return State{r, Verifying, succeeded, end}
	case now.Before(r.SignsFrom) && r.Number > 1: // the first one has nobody to wait for, and clocks may differ
		return State{r, Published, r.Published, earlier(r.SignsFrom, succeeded)}
	}
	return State{r, Signing, r.SignsFrom, succeeded}
}

// earlier passes over a zero b.
func earlier(a, b time.Time) time.Time {
	if !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// due says whether the next key has to be made now, so that it is published long enough before the newest
// has signed its time.
func (p Plan) due(rows []Row, now time.Time) bool {
	newest, found := p.newest(rows)
	return found && p.Rotate > 0 && !now.Before(newest.SignsFrom.Add(p.Rotate-p.Ahead))
}

// newest is the last key that was not retired.
func (p Plan) newest(rows []Row) (newest Row, found bool) {
	for _, r := range rows {
		if r.Retired.IsZero() {
			newest, found = r, true
		}
	}
	return newest, found
}

// next is the row of the key that follows, to be filled with a key.
func (p Plan) next(rows []Row, now time.Time, ahead time.Duration) Row {
	number := uint64(1)
	if len(rows) > 0 {
		number = rows[len(rows)-1].Number + 1
	}
	now = now.UTC().Truncate(time.Microsecond)
	return Row{
		Tenant: p.Tenant, Use: p.Use, Number: number, Algorithm: p.Algorithm,
		Published: now, SignsFrom: now.Add(ahead), Lifetime: p.Lifetime,
	}
}
