package client

import (
	"errors"
	"fmt"
	"time"

	"deputy.example/deputy/client/dpop"
)

const (
	// forgetMargin is how long a revocation is kept after it has ended by the ledger's time. It is longer than
	// clockSkew, so that the tokens which end with it are expired by the ledger's time before they are forgotten.
	forgetMargin = time.Minute
	// feedDrift bounds how much faster than the monotonic clock the ledger's time may run: one part in so many.
	feedDrift = 1000
)

var (
	errNoFeedTime = errors.New("the feed: must carry ledger_time; without it no revocation is forgotten here")
	errTimeJumped = errors.New("the feed: ledger_time runs ahead of this process and of this machine's clock, and is ignored; compare the server's clock")
)

// feedTime is the ledger's time as an echo brought it. It was read between the sending of the mark and the arrival of the
// echo.
type feedTime struct {
	ledger   time.Time
	sent     instant
	received instant

	// No ledger time is believed that is ahead of this line by more than clockSkew and the drift: the lowest of the
	// latest times that the ledger can have had by the echoes so far.
	ceiling     time.Time
	ceilingFrom instant
}

// earliest is the ledger's time at the instant, if the echo was as late as possible: at least that late it is by now.
func (t *feedTime) earliest(at instant) time.Time { return t.ledger.Add(at.ran(t.received)) }

// latest is the ledger's time at the instant, if the ledger was read as soon as the mark was sent.
func (t *feedTime) latest(at instant) time.Time { return t.ledger.Add(at.ran(t.sent)) }

// highest is what the ceiling has become by the instant.
func (t *feedTime) highest(at instant) time.Time {
	ran := at.ran(t.ceilingFrom)
	return t.ceiling.Add(ran + ran/feedDrift)
}

// offset is how far the wall clock is ahead of the ledger's time, at least; negative: behind. It is zero where the two
// can be equal.
func (t *feedTime) offset(at instant) time.Duration {
	if ahead := at.wall.Sub(t.latest(at)); ahead > 0 {
		return ahead
	}
	return min(at.wall.Sub(t.earliest(at)), 0)
}

// past tells whether a token that expires at the given time is over: the ledger's time is beyond it by clockSkew or more,
// however late the echo was. It is not known of a nil feedTime.
func (t *feedTime) past(expires time.Time, at instant) bool {
	return t != nil && !t.earliest(at).Before(expires.Add(clockSkew))
}

// disputes tells whether a proof that was made at the given time cannot be fresh by the ledger's time (RFC 9449 §11.1).
// It is not known of a nil feedTime.
func (t *feedTime) disputes(issued time.Time, at instant) bool {
	return t != nil && (!issued.Add(dpop.MaxAge+proofSkew).After(t.earliest(at)) || issued.After(t.latest(at).Add(proofSkew)))
}

// next judges the time of a newer echo. A time that is too far ahead of the ceiling is believed only if the wall clock
// confirms it, as after a suspension of the machine: otherwise next is an error, and t stays. A time that goes back is
// believed: it makes this process forget less.
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

// checkOffset is an error if the wall clock is off by more than clockSkew.
func (t *feedTime) checkOffset(at instant) error {
	offset := t.offset(at)
	if offset.Abs() <= clockSkew {
		return nil
	}
	direction := "ahead of"
	if offset < 0 {
		direction = "behind"
	}
	return fmt.Errorf("this machine's clock: must be within %v of the ledger's; it is %v %s it: set right the one that is wrong", clockSkew, offset.Abs().Round(time.Second), direction)
}
