package vault

import "time"

// Bounds behind the guarantees of a rotation.
const (
	// Stale is how long an instance continues with its keys while it cannot read the table.
	Stale = 5 * time.Minute
	// Soon is the delay before a key signs that an operator rotates immediately: by then every
	// instance that reads the table has it.
	Soon = 5 * time.Second
	// margin is added to the longest life of what a key signed. It covers what an instance that
	// could not read the table may have signed later, and a minute for clocks that differ.
	margin = Stale + time.Minute
)

// Plan is the life of the keys of one tenant and use.
type Plan struct {
	Tenant    string
	Use       Use
	Algorithm string        // of the next key
	Rotate    time.Duration // how long a key signs before its successor does; zero: until an operator rotates
	Ahead     time.Duration // how long a key is published before it signs
	Lifetime  time.Duration // the longest life of what a key signs
	// Together lets every key sign until an operator retires it. It fits signatures of which one of
	// several suffices, and verifiers that learn a new key by hand.
	Together bool
}

// Phase is a stage in the life of a key.
type Phase string

// The phases, in order. A key is in force, so it verifies and is published, in all but the last.
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
	Until time.Time // zero: no known end
}

// states depends on the rows and the time, and on nothing else. The rows are those of the plan, the
// earliest first. Between the returned times, each of which may be zero, no state changes.
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

// succeeded is when another key takes over from r: the earliest time at which a later key signs. A
// key that was retired before it signed never takes over. One that was retired afterwards did, so
// that a key never returns.
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
	case now.Before(r.SignsFrom) && r.Number > 1: // the first one waits for no verifier, and clocks may differ
		return State{r, Published, r.Published, earlier(r.SignsFrom, succeeded)}
	}
	return State{r, Signing, r.SignsFrom, succeeded}
}

// earlier ignores a zero b.
func earlier(a, b time.Time) time.Time {
	if !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// due returns whether the next key must be made now, so that it is published long enough before the
// newest has signed for its time.
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

// next returns the row of the next key, without the key.
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
