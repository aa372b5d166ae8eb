package sim

import "time"

// observer counts what happens, by phases and in samples of a quarter of a second, and checks the
// rules that must hold for the simulation.
type observer struct {
	w *world

	begun, twice int
	over         [outcomes]int
	alive        int
	area         float64 // under alive, in request seconds
	since        time.Duration

	questions, transactions, rows, reads, marks, events, snapshots, full int

	unsound int // verifiers that would have judged without an echo within their bound
	late    int // verifiers that would have accepted what was revoked ten seconds before

	phase   *phase
	window  histogram // of calls that were answered since the last sample
	news    histogram // delay of revocations since then
	gone    int       // calls that ended unavailable since then
	samples []Sample
}

// sampleEvery is how often the observer looks.
const sampleEvery = 250 * time.Millisecond

// The resources, as tables and charts name them.
const (
	instanceCPU = iota
	databaseCPU
	openfgaCPU
	redisCPU
	headLock
	resources
)

var resourceNames = [resources]string{"instances", "databases", "OpenFGA", "Redis", "busiest head"}

// phase is a part of a scenario, with a row of its own in the table.
type phase struct {
	name             string
	from             time.Duration
	calls, revokes   histogram
	news             histogram
	over             [outcomes]int
	sojourn          time.Duration
	left             int
	demands          [resources][]float64 // sums over samples, of each machine
	fill             float64              // rows of a transaction of the busiest head, at most 256
	samples          int
	accepting        float64 // the smallest share of verifiers that accept
	stalest          time.Duration
	counted          observer // the counters at its beginning
	batches          int
	offered, entries int // exchanges
	largest          int // of entries, the largest tenant's
}

func (o *observer) begin(w *world) {
	o.w = w
	o.enter("")
	var look func()
	look = func() { o.sample(); w.call(w.now+sampleEvery, look) }
	w.call(sampleEvery, look)
}

// enter begins a phase, and returns the one that ends.
func (o *observer) enter(name string) *phase {
	o.settle()
	last := o.phase
	o.phase = &phase{name: name, from: o.w.now, accepting: 1}
	for r, n := range [resources]int{len(o.w.instances), len(o.w.cells), len(o.w.cells), len(o.w.cells) * o.w.plan.RedisShards, len(o.w.tenants)} {
		o.phase.demands[r] = make([]float64, n)
	}
	o.phase.counted = observer{questions: o.questions, transactions: o.transactions, rows: o.rows, reads: o.reads,
		marks: o.marks, events: o.events, snapshots: o.snapshots, full: o.full, area: o.area, begun: o.begun}
	return last
}

// settle adds to the area under the number of requests that are alive.
func (o *observer) settle() {
	o.area += float64(o.alive) * (o.w.now - o.since).Seconds()
	o.since = o.w.now
}

func (o *observer) started(r *request) {
	o.settle()
	if !r.revokes {
		o.phase.offered += r.children
	}
	o.begun++
	o.alive++
}

func (o *observer) ended(r *request, how outcome) {
	o.settle()
	if r.ended {
		o.twice++
		return
	}
	r.ended = true
	o.alive--
	o.over[how]++
	p := o.phase
	p.over[how]++
	took := o.w.now - r.began
	p.left++
	p.sojourn += took
	if how == unavailable {
		o.gone++
		return
	}
	if r.revokes {
		p.revokes.add(took, 1)
		return
	}
	p.calls.add(took, 1)
	o.window.add(took, 1)
	p.entries += r.children
	if r.tenant == o.w.tenants[0] {
		p.largest += r.children
	}
}

// delivered records how long revocations took from their acknowledgement to the desk's verifiers,
// which the messages reach one after the other.
func (o *observer) delivered(d *desk, from, upTo int, start, end time.Duration) {
	n := len(d.members)
	ranks := min(n, 16)
	for i := from; i < upTo; i++ {
		acked := d.tenant.revoked[i].acked
		if acked != 0 && acked < d.instance.healed {
			continue // its verifiers refused everything meanwhile
		}
		if acked == 0 {
			acked = end // they know it before it is acknowledged
		}
		for rank := range ranks {
			at := start + (end-start)*time.Duration(rank+1)/time.Duration(ranks)
			share := uint64((rank+1)*n/ranks - rank*n/ranks)
			o.phase.news.add(max(0, at-acked), share)
			o.news.add(max(0, at-acked), share)
		}
	}
}

// Sample is the state of a quarter of a second.
type Sample struct {
	At          float64            `json:"at_seconds"`
	Demand      map[string]float64 `json:"demand"` // mean over the machines; of the busiest head
	Calls       int                `json:"calls"`
	Unavailable int                `json:"unavailable"`
	P50         float64            `json:"p50_ms"`
	P99         float64            `json:"p99_ms"`
	News        float64            `json:"revocation_p99_ms"`
	Accepting   float64            `json:"accepting_share"`
}

func (o *observer) sample() {
	w, p := o.w, o.phase
	s := Sample{At: w.now.Seconds(), Demand: map[string]float64{}, Calls: int(o.window.count), Unavailable: o.gone,
		P50: ms(o.window.quantile(0.5)), P99: ms(o.window.quantile(0.99)), News: ms(o.news.quantile(0.99))}
	o.window, o.news, o.gone = histogram{}, histogram{}, 0
	note := func(resource, machine int, demand float64) {
		p.demands[resource][machine] += demand
		s.Demand[resourceNames[resource]] += demand / float64(len(p.demands[resource]))
	}
	for i, instance := range w.instances {
		note(instanceCPU, i, instance.cpu.demand(sampleEvery))
	}
	for i, c := range w.cells {
		note(databaseCPU, i, c.database.demand(sampleEvery))
		note(openfgaCPU, i, c.openfga.demand(sampleEvery))
		for j, shard := range c.redis {
			note(redisCPU, i*len(c.redis)+j, shard.demand(sampleEvery))
		}
	}
	busiest := 0.0
	for i, t := range w.tenants {
		h := &t.head
		if h.holder != nil {
			h.held += w.now - h.since
			h.since = w.now
		}
		busy := min(1, float64(h.held)/float64(sampleEvery))
		p.demands[headLock][i] += busy
		busiest = max(busiest, busy)
		if h.commits > 0 && i == 0 {
			p.batches += h.commits
			p.fill += float64(h.rows)
		}
		h.held, h.commits, h.rows = 0, 0, 0
	}
	s.Demand[resourceNames[headLock]] = busiest
	s.Accepting = o.verifiers()
	p.accepting = min(p.accepting, s.Accepting)
	p.samples++
	o.samples = append(o.samples, s)
}

// verifiers holds every verifier to its promise, and returns the share that accepts.
func (o *observer) verifiers() float64 {
	w := o.w
	for _, t := range w.tenants {
		for t.acked < len(t.revoked) && t.revoked[t.acked].acked != 0 && t.revoked[t.acked].acked < w.now-bound {
			t.acked++
		}
	}
	accepting := 0
	for i := range w.verifiers {
		v := &w.verifiers[i]
		o.phase.stalest = max(o.phase.stalest, w.now-v.asOf)
		if !v.accepts() {
			continue
		}
		accepting++
		if w.now-v.truth > bound {
			o.unsound++
		}
		if v.applied < v.tenant.acked {
			o.late++
		}
	}
	if len(w.verifiers) == 0 {
		return 1
	}
	return float64(accepting) / float64(len(w.verifiers))
}

// ms is in milliseconds, to a hundredth.
func ms(d time.Duration) float64 {
	return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
}
