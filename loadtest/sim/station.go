package sim

import "time"

// station is a number of servers with one queue, first come, first served: the processors of a
// machine, a thread of Redis. Jobs are given to it in the order of time, so when a job ends is
// known as soon as it comes, and its waiting costs no event.
type station struct {
	free []time.Duration // when each server has done all that it was given
	work time.Duration   // all that was ever given
	seen time.Duration   // work, when demand was asked last
}

func newStation(servers int) *station {
	return &station{free: make([]time.Duration, servers)}
}

// take returns when a job that comes now will be done.
func (s *station) take(now, job time.Duration) time.Duration {
	first := 0
	for i, free := range s.free {
		if free < s.free[first] {
			first = i
		}
	}
	s.work += job
	s.free[first] = max(now, s.free[first]) + job
	return s.free[first]
}

// share takes a large job in pieces that any server may do, as goroutines do, and returns when the
// first piece began and the last one was done.
func (s *station) share(now, job, piece time.Duration) (start, end time.Duration) {
	pieces := max(1, min(int64(job/max(piece, 1)), 64))
	each := job / time.Duration(pieces)
	for i := range pieces {
		done := s.take(now, each)
		if i == 0 {
			start = done - each
		}
		end = max(end, done)
	}
	return start, end
}

// demand is the work that came since it was asked last, as a share of what the servers could do in
// that time. Above 1 the queue grows.
func (s *station) demand(over time.Duration) float64 {
	work := s.work - s.seen
	s.seen = s.work
	return float64(work) / float64(over) / float64(len(s.free))
}

// disk makes durable what was written before a flush begins: a write during one waits for the next.
type disk struct {
	takes     time.Duration
	end, next time.Duration // of the flush under way, and of the next one if a write waits for it
}

func (d *disk) flush(now time.Duration) time.Duration {
	if now >= d.end && d.next > 0 {
		d.end, d.next = d.next, 0
	}
	switch {
	case now >= d.end:
		d.end = now + d.takes
		return d.end
	case d.next == 0:
		d.next = d.end + d.takes
	}
	return d.next
}
