package client

import (
	"errors"
	"fmt"
	"time"

	"deputy.example/deputy/client/dpop"
)

const (
	// forgetMargin is how long a revocation is kept after its expiry by the ledger's time. It
	// exceeds clockSkew: a token that expires with a revocation is expired by the ledger's time
	// before the revocation is forgotten.
	forgetMargin = time.Minute
	// feedDrift bounds how much faster than the monotonic clock the ledger's time may run: one part
	// in feedDrift.
	feedDrift = 1000
)

var (
	errNoFeedTime = errors.New("ledger_time: must be in every echo of the feed; without it no revocation is forgotten here")
	errHorizon    = errors.New("forgotten_through: must not be ahead of the ledger's time; tokens that expire by it are refused: compare the clock of the server")
	errTimeJumped = errors.New("ledger_time: must not run ahead of both clocks of this machine; it is ignored: compare the clock of the server")
)

// feedTime is the ledger's time from an echo. The ledger was read after the mark was sent and
// before the echo was received. A nil feedTime is an unknown time.
type feedTime struct {
	ledger   time.Time
	sent     instant
	received instant

	// The lowest upper bound of the ledger's time by the echoes so far. A newer time is credible up
	// to clockSkew and the drift above it.
	ceiling     time.Time
	ceilingFrom instant
}

// earliest returns the lower bound of the ledger's time at the instant: the echo took no time.
func (t *feedTime) earliest(at instant) time.Time { return t.ledger.Add(at.ran(t.received)) }

// latest returns the upper bound of the ledger's time at the instant: the mark took no time.
func (t *feedTime) latest(at instant) time.Time { return t.ledger.Add(at.ran(t.sent)) }

// highest returns the ceiling at the instant.
func (t *feedTime) highest(at instant) time.Time {
	ran := at.ran(t.ceilingFrom)
	return t.ceiling.Add(ran + ran/feedDrift)
}

// offset returns the lower bound of how far the wall clock is ahead of the ledger's time; negative:
// behind. It is zero where the two can be equal.
func (t *feedTime) offset(at instant) time.Duration {
	if ahead := at.wall.Sub(t.latest(at)); ahead > 0 {
		return ahead
	}
	return min(at.wall.Sub(t.earliest(at)), 0)
}

// checkOffset returns an error if the wall clock is off by more than clockSkew.
func (t *feedTime) checkOffset(at instant) error {
	offset := t.offset(at)
	if offset.Abs() <= clockSkew {
		return nil
	}
	direction := "ahead of"
	if offset < 0 {
		direction = "behind"
	}
	return fmt.Errorf("clock: must be within %v of the ledger's; this machine's is %v %s it: set the wrong one",
		clockSkew, offset.Abs().Round(time.Second), direction)
}

// checkHorizon returns an error if the set may lack revocations that have not expired.
func (t *feedTime) checkHorizon(k *knowledge, at instant) error {
	if k != nil && k.set.Horizon().After(t.latest(at).Add(clockSkew)) {
		return errHorizon
	}
	return nil
}

// past reports whether a token with the given expiry has expired: the ledger's time is beyond it by
// clockSkew or more, at the lower bound.
func (t *feedTime) past(expires time.Time, at instant) bool {
	return t != nil && !t.earliest(at).Before(expires.Add(clockSkew))
}

// disputes reports whether a proof with the given iat cannot be fresh by the ledger's time (RFC
// 9449 §11.1).
func (t *feedTime) disputes(issued time.Time, at instant) bool {
	return t != nil && (!issued.Add(dpop.MaxAge+proofSkew).After(t.earliest(at)) || issued.After(t.latest(at).Add(proofSkew)))
}

// next judges the time of a newer echo. A time too far above the ceiling is credible only if the
// wall clock confirms it, as after a suspension of the machine. Otherwise next returns an error,
// and t remains in use. A time that goes back is credible: with it this process forgets less.
func (t *feedTime) next(ledger time.Time, sent, received instant) (*feedTime, error) {
	n := &feedTime{ledger: ledger, sent: sent, received: received, ceiling: ledger, ceilingFrom: sent}
	if t == nil || n.offset(received).Abs() <= clockSkew {
		return n, nil
	}
	ceiling := t.highest(received)
	if ahead := ledger.Sub(ceiling); ahead > clockSkew {
		return nil, fmt.Errorf("%w: %v ahead", errTimeJumped, ahead.Round(time.Second))
	}
	if ceiling.Before(n.latest(received)) {
		n.ceiling, n.ceilingFrom = ceiling, received
	}
	return n, nil
}
