package delegation

import (
	"strconv"
	"strings"
	"time"
)

// ForkMargin is how long, in seconds, a tenant issues nothing after its CutFork was recorded. The
// clocks of instances that issued tokens before may differ by less.
const ForkMargin = 5

// forkedAt returns the entry number that a CutFork aims at.
func (t Target) forkedAt() (after uint64, fork bool) {
	if t.Kind != CutFork {
		return 0, false
	}
	after, err := strconv.ParseUint(t.ID, 10, 63)
	return after, err == nil && strconv.FormatUint(after, 10) == t.ID
}

// lost finds a hop of a ledger that was given up. A recovery assigns numbers again, so the number
// alone does not decide: a hop is lost if its number is above the fork and it is older than the
// recovery. A jti without a readable time counts as old.
func (s *RevocationSet) lost(l Lineage) (Revocation, bool) {
	for after, m := range s.forks {
		for _, hop := range l.Hops {
			if made, dated := madeAt(hop.ID); hop.Seq > after && (!dated || made.Before(time.Unix(m.at+ForkMargin, 0))) {
				return Revocation{Seq: m.seq, Target: Target{Kind: CutFork, ID: strconv.FormatUint(after, 10)}}, true
			}
		}
	}
	return Revocation{}, false
}

// madeAt reads the time from a jti of Deputy's. The jti is a ULID: 48 bits of milliseconds in ten
// digits of Crockford's base 32, then random bits.
func madeAt(jti string) (time.Time, bool) {
	if len(jti) != 26 || jti[0] > '7' {
		return time.Time{}, false
	}
	var ms int64
	for _, digit := range []byte(jti[:10]) {
		value := strings.IndexByte("0123456789ABCDEFGHJKMNPQRSTVWXYZ", digit)
		if value < 0 {
			return time.Time{}, false
		}
		ms = ms<<5 | int64(value)
	}
	return time.UnixMilli(ms), true
}
