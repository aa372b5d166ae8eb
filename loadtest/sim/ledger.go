package sim

import (
	"slices"
	"time"
)

// desk is the part of one instance for one tenant: the shared question to OpenFGA, the sequencer
// with its queue, and the verifiers that follow (feed.go).
type desk struct {
	w        *world
	tenant   *tenant
	instance *instance

	asking        bool
	asked, askers []*request // those whose question is under way, and those of the next

	queue   []*request // for the ledger
	running bool
	batch   []*request
	rows    int
	done    event // of whatever the batch does
	doing   turn

	watch
}

// authorize asks OpenFGA: directly if the decision is not in memory, and otherwise only for
// changes, in a question that begins after the request arrived and that all waiting requests share.
func (d *desk) authorize(r *request) {
	w := d.w
	switch {
	case r.revokes:
		d.append(r) // one cached relation, or the caller's own grant
	case w.random.Float64() < w.plan.Misses:
		r.wait(authorizing, d.instance.cell.openfga.take(w.now, w.about(w.costs.Check.time()))+w.costs.RoundTrip.time())
	default:
		d.askers = append(d.askers, r)
		if !d.asking {
			d.ask()
		}
	}
}

func (d *desk) ask() {
	w := d.w
	d.asking = true
	d.asked, d.askers = d.askers, d.asked[:0]
	w.seen.questions++
	w.call(d.instance.cell.openfga.take(w.now, w.about(w.costs.Changes.time()))+w.costs.RoundTrip.time(), func() {
		for _, r := range d.asked {
			d.append(r)
		}
		if d.asking = len(d.askers) > 0; d.asking {
			d.ask()
		}
	})
}

// append queues a request for the ledger.
func (d *desk) append(r *request) {
	w := d.w
	switch {
	case d.instance.cut:
		r.wait(failing, w.now+commitsWithin)
	case len(d.queue) >= mostQueued:
		r.unavailable()
	default:
		d.queue = append(d.queue, r)
		if !d.running {
			d.turn()
		}
	}
}

// turn is what a batch waits for.
type turn uint8

const (
	locking turn = iota
	writing
	flushing
)

// turn takes what is queued, as sequencer.take does, and requests the tenant's head.
func (d *desk) turn() {
	w := d.w
	d.take()
	if d.running = len(d.batch) > 0; !d.running {
		return
	}
	if d.instance.cut {
		for _, r := range d.batch {
			r.wait(failing, w.now+commitsWithin)
		}
		d.batch = d.batch[:0]
		w.call(w.now+commitsWithin, d.turn)
		return
	}
	if d.done.what == nil {
		d.done.what = batchOf{d}
	}
	d.tenant.head.lock(d)
}

// take moves requests from the queue to the batch: revocations first and alone, and no more rows
// than fit. What has waited too long is answered without.
func (d *desk) take() {
	d.batch, d.rows = d.batch[:0], 0
	only := slices.ContainsFunc(d.queue, func(r *request) bool { return r.revokes })
	rest := d.queue[:0]
	drafts := 0
	for _, r := range d.queue {
		switch {
		case d.w.now-r.tried > queuesWithin:
			r.unavailable()
		case only == r.revokes && (drafts == 0 || drafts < d.w.plan.Rows):
			d.batch = append(d.batch, r)
			drafts += r.children
			if !r.kept {
				d.rows += r.children
			}
		default:
			rest = append(rest, r)
		}
	}
	d.queue = rest
}

// batchOf gives a desk's batch a name as an event.
type batchOf struct{ *desk }

func (b batchOf) happen() {
	d := b.desk
	w := d.w
	switch d.doing {
	case locking: // the head is ours: look up, decide, write
		c := &w.costs
		here := time.Duration(d.rows) * c.RowInstance.time()
		d.instance.cpu.take(w.now, here) // its processor; it is held while the database waits for it
		d.doing = writing
		work := w.about(c.Transaction.time()) + time.Duration(d.rows)*c.RowDatabase.time()
		w.add(d.instance.cell.database.take(w.now, work)+here+c.RoundTrip.time(), &d.done)
	case writing:
		d.doing = flushing
		w.add(d.instance.cell.disk.flush(w.now), &d.done)
	case flushing:
		d.committed()
	}
}

func (d *desk) committed() {
	w := d.w
	w.seen.transactions++
	w.seen.rows += d.rows
	d.tenant.head.commits++
	d.tenant.head.rows += d.rows
	d.tenant.head.release()
	if d.batch[0].revokes {
		for range d.batch {
			d.tenant.revoked = append(d.tenant.revoked, revocation{})
		}
		d.deliver(len(d.tenant.revoked))
	}
	for i, r := range d.batch {
		if r.revokes {
			r.number = len(d.tenant.revoked) - len(d.batch) + i
		}
		r.recorded()
	}
	d.turn()
}

// head is the row that orders a tenant's transactions, across instances, first come, first served.
type head struct {
	holder  *desk
	waiting []*desk

	since, held   time.Duration // of the holder; of all since demand was asked last
	commits, rows int           // since then
}

func (h *head) lock(d *desk) {
	if h.holder != nil {
		h.waiting = append(h.waiting, d)
		return
	}
	h.grant(d, d.w.costs.RoundTrip.time()/2)
}

func (h *head) grant(d *desk, after time.Duration) {
	h.holder, h.since = d, d.w.now
	d.doing = locking
	d.w.add(d.w.now+after, &d.done)
}

func (h *head) release() {
	w := h.holder.w
	h.held += w.now - h.since
	h.holder = nil
	if len(h.waiting) > 0 {
		next := h.waiting[0]
		h.waiting = append(h.waiting[:0], h.waiting[1:]...)
		h.grant(next, w.costs.HandOver.time())
	}
}
