package sim

import "time"

// watch is a desk's side of the revocation feed: its verifiers, and the reads of the ledger that
// all waiting marks share.
type watch struct {
	members []*verifier
	known   int // how many of the tenant's revocations the instance has in memory and is sending

	sentBy  time.Duration // when what is known will have arrived
	reading bool
	waiting []mark // for the next read
	again   bool   // a read without a mark is due: Redis woke the instance
}

// mark is what a verifier sends once a second.
type mark struct {
	from *verifier
	sent time.Duration
}

// verifier follows its tenant's revocations over one stream. It has one event: its next mark, or
// its next try to open a stream.
type verifier struct {
	w      *world
	next   *event
	tenant *tenant
	region int
	desk   *desk // nil: no stream
	at     int   // in desk.members

	asOf    time.Duration // sending time of the newest mark that came back and whose number is applied
	truth   time.Duration // when the ledger was read for it; only the observer looks at this
	applied int
	attempt int
	opening time.Duration
	joined  time.Duration // when the stream began
}

// begin places a verifier where it has been for a while.
func (v *verifier) begin(w *world, n int) {
	*v = verifier{w: w, tenant: w.pick(), region: n % regions}
	v.next = &event{what: v}
	if d := v.place(); d != nil {
		v.join(d)
	}
	w.add(time.Duration(w.random.Int64N(int64(markEvery))), v.next)
}

// accepts returns whether the verifier would verify a token now, and not refuse it because its
// state is stale.
func (v *verifier) accepts() bool { return v.w.now-v.asOf <= bound }

func (v *verifier) happen() {
	w := v.w
	switch {
	case v.desk == nil:
		v.open()
	case w.now-max(v.asOf, v.joined) > patience:
		v.leave()
		v.retry(0)
	default:
		hops := time.Duration(w.plan.Depth+1) * w.costs.RoundTrip.time() / 2
		v.desk.answer(mark{v, w.now - hops})
		w.add(w.now+markEvery, v.next)
	}
}

// place is an instance of the verifier's region that has room, or of another one; nil: there is
// none.
func (v *verifier) place() *desk {
	desks := v.tenant.desks
	from := v.w.random.IntN(len(desks))
	var other *desk
	for i := range desks {
		d := desks[(from+i)%len(desks)]
		if d.instance.streams/v.w.plan.through() >= mostWatchers {
			continue
		}
		if d.instance.region == v.region {
			return d
		}
		if other == nil && !d.instance.cut {
			other = d
		}
	}
	if v.w.severed && v.region == regions-1 {
		return nil // its region is cut off: it reaches no other
	}
	return other
}

func (v *verifier) join(d *desk) {
	v.desk, v.at, v.applied, v.attempt, v.joined = d, len(d.members), d.known, 0, v.w.now
	d.members = append(d.members, v)
	d.instance.streams++
}

func (v *verifier) leave() {
	d := v.desk
	last := d.members[len(d.members)-1]
	d.members[v.at], last.at = last, v.at
	d.members = d.members[:len(d.members)-1]
	d.instance.streams--
	v.desk = nil
}

// retry comes back after a pause, which is at least what the server demanded.
func (v *verifier) retry(asked time.Duration) {
	v.attempt++
	v.w.add(v.w.now+max(v.w.pause(v.attempt), asked), v.next)
}

// open authenticates, and gets what it has missed or a snapshot.
func (v *verifier) open() {
	w := v.w
	d := v.place()
	switch {
	case d == nil:
		w.seen.full++
		v.retry(time.Second)
	case d.instance.cut:
		w.call(w.now+commitsWithin, func() { v.retry(0) }) // there is no snapshot without the ledger
	default:
		c := &w.costs
		v.opening = w.now
		rows := d.known - v.applied
		if w.plan.Snapshots || rows < 0 || v.applied == 0 && v.asOf == 0 {
			rows = v.tenant.live + len(v.tenant.revoked)
		}
		w.seen.snapshots += rows
		_, end := d.instance.cpu.share(w.now, w.about(c.OpenStream.time())+time.Duration(rows)*c.SnapshotRow.time(), 10*time.Millisecond)
		w.call(end+c.RoundTrip.time(), func() {
			if w.now-v.opening > snapshotMost || d.instance.cut {
				v.retry(0) // it has given up, and all that work was for nothing
				return
			}
			v.join(d)
			v.happen() // the first mark
		})
	}
}

// answer has a mark wait for a read of the ledger that begins after it came.
func (d *desk) answer(m mark) {
	d.waiting = append(d.waiting, m)
	d.read()
}

// read reads the tenant's newest revocations, at once or after the read that is under way.
func (d *desk) read() {
	if d.reading {
		d.again = true
		return
	}
	w, c := d.w, &d.w.costs
	d.reading, d.again = true, false
	asked := d.waiting
	d.waiting = nil
	began, last := w.now, len(d.tenant.revoked)
	w.seen.reads++
	cut := d.instance.cut
	if cut {
		last = 0 // unknown
	}
	done := w.now + commitsWithin
	if !cut {
		d.instance.cpu.take(w.now, c.ReadCall.time())
		done = d.instance.cell.database.take(w.now, w.about(c.Read.time())) + c.RoundTrip.time()
	}
	w.call(done, func() {
		d.reading = false
		if !cut && !d.instance.cut {
			d.deliver(last)
			d.echo(asked, began, last)
		}
		if d.again || len(d.waiting) > 0 {
			d.read()
		}
	})
}

// streams is the number of streams that serve n verifiers.
func (d *desk) streams(n int) int { return (n + d.w.plan.through() - 1) / d.w.plan.through() }

// echo answers marks. What the number counts has been sent before.
func (d *desk) echo(asked []mark, began time.Duration, last int) {
	if len(asked) == 0 {
		return
	}
	w := d.w
	w.seen.marks += len(asked)
	_, end := d.instance.cpu.share(w.now, time.Duration(d.streams(len(asked)))*w.costs.Echo.time(), time.Millisecond)
	hops := time.Duration(w.plan.Depth+1) * w.costs.RoundTrip.time() / 2
	w.call(max(end+hops, d.sentBy)+w.plan.holds, func() {
		for _, m := range asked {
			v := m.from
			if v.desk != d || v.applied < last {
				continue
			}
			v.asOf = max(v.asOf, m.sent)
			v.truth = max(v.truth, began)
		}
	})
}

// deliver sends what is new to all verifiers of the desk, one message for each and each.
func (d *desk) deliver(upTo int) {
	from := d.known
	if upTo <= from {
		return
	}
	d.known = upTo
	if len(d.members) == 0 {
		return
	}
	w, c := d.w, &d.w.costs
	news := time.Duration(upTo - from)
	start, end := d.instance.cpu.share(w.now, news*time.Duration(d.streams(len(d.members)))*c.Event.time(), time.Millisecond)
	w.seen.events += int(news) * len(d.members)
	// A relay sends the news to one stream after the other; it has two processors and nothing else
	// to do.
	relay := news * time.Duration(min(w.plan.Degree, len(d.members))) * c.Event.time() / 2
	hops := c.RoundTrip.time()/2 + time.Duration(w.plan.Depth)*(c.RoundTrip.time()/2+relay)
	d.sentBy = max(d.sentBy, end+hops)
	w.call(end+hops, func() {
		for _, v := range d.members {
			v.applied = max(v.applied, upTo)
		}
		w.seen.delivered(d, from, upTo, start+hops, end+hops)
	})
}

// publish has Redis take the revocation, acknowledges it, and wakes the other instances.
func (d *desk) publish(r *request) {
	w, c, t := d.w, &d.w.costs, d.tenant
	w.call(t.redis.take(w.now, c.RedisCommand.time())+c.RoundTrip.time(), func() {
		t.revoked[r.number].acked = w.now
		r.end(granted)
		for _, other := range t.desks {
			if other == d || other.instance.cut {
				continue
			}
			if w.plan.NoWake {
				w.call(w.now+time.Duration(w.random.Int64N(int64(tailEvery))), other.read)
			} else {
				other.read()
			}
		}
	})
}

// restart ends all streams of an instance, as a new process does.
func (w *world) restart(i *instance) {
	for _, d := range i.desks {
		for len(d.members) > 0 {
			v := d.members[len(d.members)-1]
			v.leave()
			v.attempt = 1
			v.next.what = doing(func() {}) // the mark that it would have sent
			v.next = &event{what: v}
			w.add(w.now+w.plan.Jitter/2+time.Duration(w.random.Int64N(int64(w.plan.Jitter/2+1))), v.next)
		}
	}
}
