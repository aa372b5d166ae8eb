package sim

import "time"

// request is a call on its way through the seven steps. It has one event at a time: the end of what
// it waits for.
type request struct {
	event
	w        *world
	tenant   *tenant
	desk     *desk
	step     step
	began    time.Duration // when the caller sent it for the first time
	tried    time.Duration // and for this time
	attempt  int
	children int
	refuses  bool
	revokes  bool
	number   int  // of the revocation, among its tenant's
	kept     bool // an earlier try was recorded, and only its answer came too late: the idempotency key finds it
	ended    bool
}

// step is what the request's event is the end of.
type step uint8

const (
	pausing step = iota // before the caller tries (again)
	front               // front, verify, plan
	admitting
	authorizing
	minting
	failing // the database does not answer
)

type outcome uint8

const (
	granted outcome = iota
	refused
	unavailable
	outcomes
)

// begin makes a request, which begins at once.
func (w *world) begin(t *tenant, children int, revokes bool) {
	var r *request
	if last := len(w.idle) - 1; last >= 0 {
		r, w.idle = w.idle[last], w.idle[:last]
	} else {
		r = &request{}
	}
	*r = request{w: w, tenant: t, began: w.now, children: children, revokes: revokes, refuses: !revokes && w.random.Float64() < w.plan.Refusals}
	r.what = r
	w.seen.started(r)
	r.try()
}

func (r *request) wait(s step, until time.Duration) {
	r.step = s
	r.w.add(until, &r.event)
}

// try sends the request to an instance.
func (r *request) try() {
	r.attempt++
	r.tried = r.w.now
	if r.desk = r.tenant.desk(); r.desk == nil {
		r.unavailable()
		return
	}
	c := &r.w.costs
	work := c.Front.time() + c.PolicyCall.time() + c.RedisCall.time()
	if r.children > 1 { // what is left of a child when its row and its signature are taken away
		work += time.Duration(r.children) * max(0, c.BatchChild.time()-c.RowInstance.time()-c.Mint.time())
	}
	r.wait(front, r.desk.instance.cpu.take(r.w.now, r.w.about(work)))
}

func (r *request) happen() {
	w, c := r.w, &r.w.costs
	if r.step != pausing && w.now-r.tried > answersWithin {
		r.unavailable()
		return
	}
	switch r.step {
	case pausing:
		r.try()
	case front:
		r.wait(admitting, r.tenant.redis.take(w.now, c.RedisCommand.time())+c.RoundTrip.time())
	case admitting:
		r.desk.authorize(r)
	case authorizing:
		r.desk.append(r)
	case minting:
		if r.refuses {
			r.end(refused)
		} else {
			r.end(granted)
		}
	case failing:
		r.unavailable()
	}
}

// recorded goes on when the entry is durable.
func (r *request) recorded() {
	w, c := r.w, &r.w.costs
	r.kept = true
	switch {
	case r.revokes:
		r.desk.publish(r)
	case r.refuses:
		r.wait(minting, w.now)
	case r.children > 1:
		r.wait(minting, r.desk.instance.cpu.take(w.now, time.Duration(r.children)*c.Mint.time()))
	default:
		r.wait(minting, r.desk.instance.cpu.take(w.now, w.about(c.Mint.time())))
	}
}

// unavailable ends an attempt. The caller tries again after a pause that grows and varies, as the
// SDK does.
func (r *request) unavailable() {
	if r.attempt >= r.w.plan.Attempts {
		r.end(unavailable)
		return
	}
	r.wait(pausing, r.w.now+r.w.pause(r.attempt))
}

// pause is client.retryDelay.
func (w *world) pause(attempt int) time.Duration {
	step := min(100*time.Millisecond<<min(attempt-1, 10), maxPause)
	return step/2 + time.Duration(w.random.Int64N(int64(step/2+1)))
}

func (r *request) end(o outcome) {
	r.w.seen.ended(r, o)
	r.w.idle = append(r.w.idle, r)
}
