package sim

import (
	"fmt"
	"math/rand/v2"
	"sort"
	"time"
)

// world is everything that is simulated, and what has been seen of it.
type world struct {
	agenda
	plan   Plan
	costs  Costs
	random *rand.Rand

	cells     []*cell
	instances []*instance
	tenants   []*tenant // of the cells that are simulated, the largest first
	upTo      []float64 // of the tenants' shares, summed up: determines the tenant of the next call
	verifiers []verifier

	closed  bool    // no more calls come
	severed bool    // the third region reaches neither databases nor instances of other regions
	rate    float64 // exchanges a second that come now, of the cells that are simulated
	arrival event
	idle    []*request // to be used again

	seen observer
}

// cell is a deployment: one database, and what works with it.
type cell struct {
	database  *station
	disk      disk
	redis     []*station
	openfga   *station
	instances []*instance
	tenants   int
}

type instance struct {
	cell    *cell
	number  int // in its cell
	region  int
	cpu     *station
	streams int // of watchers
	cut     bool
	healed  time.Duration // when it last got its database back
	listed  bool          // the load balancer sends it calls
	desks   []*desk
}

type tenant struct {
	w      *world
	cell   *cell
	number int // in its cell
	share  float64
	redis  *station
	first  int // the instance that its exchanges go to first, if they don't go to all
	live   int // revocations in force at the beginning
	head   head
	desks  []*desk // in each instance of the cell

	revoked []revocation // since the beginning, in the order of the ledger
	acked   int          // how many of them were acknowledged long enough ago for the observer
}

// revocation is an entry of the ledger that every verifier must receive.
type revocation struct{ acked time.Duration } // 0: not yet

// newWorld builds what a plan describes. Nothing has happened in it.
func newWorld(plan Plan, costs Costs) *world {
	w := &world{plan: plan, costs: costs, random: rand.New(rand.NewPCG(plan.Seed, 0x6465707574790000))}
	simulated := plan.Simulated
	if simulated == 0 {
		simulated = plan.Databases
	}
	for range simulated {
		w.cells = append(w.cells, w.newCell())
	}
	whole := 0.0
	homes := plan.placed()
	for k, share := range plan.shares() {
		if homes[k] >= simulated {
			continue
		}
		whole += share
		w.upTo = append(w.upTo, whole)
		w.newTenant(w.cells[homes[k]], nameOf(k), share)
	}
	w.rate = plan.Rate * whole
	w.arrival.what = doing(w.arrive)
	w.verifiers = make([]verifier, int(float64(plan.Verifiers)*whole+0.5))
	for i := range w.verifiers {
		w.verifiers[i].begin(w, i)
	}
	w.seen.begin(w)
	return w
}

func (w *world) newCell() *cell {
	c := &cell{
		database: newStation(w.plan.DatabaseCores),
		openfga:  newStation(w.plan.OpenFGACores),
		disk:     disk{takes: w.costs.Flush.time()},
	}
	for range w.plan.RedisShards {
		c.redis = append(c.redis, newStation(1))
	}
	for n := range w.plan.Instances {
		i := &instance{cell: c, number: n, region: n % regions, cpu: newStation(w.plan.Cores), listed: true}
		c.instances = append(c.instances, i)
		w.instances = append(w.instances, i)
		w.tail(i)
	}
	return c
}

// nameOf is a tenant's name, by which its keys find their slot.
func nameOf(k int) string { return fmt.Sprintf("t%d", k+1) }

func (w *world) newTenant(c *cell, name string, share float64) {
	t := &tenant{
		w: w, cell: c, number: c.tenants, share: share, redis: c.redis[slot(name)*len(c.redis)/slots],
		first: slot(name) % len(c.instances), live: int(share * float64(w.plan.Live)),
	}
	c.tenants++
	for _, i := range c.instances {
		d := &desk{w: w, tenant: t, instance: i}
		i.desks = append(i.desks, d)
		t.desks = append(t.desks, d)
	}
	w.tenants = append(w.tenants, t)
}

// pick chooses a tenant by its share of the load.
func (w *world) pick() *tenant {
	at := w.random.Float64() * w.upTo[len(w.upTo)-1]
	return w.tenants[min(sort.SearchFloat64s(w.upTo, at), len(w.tenants)-1)]
}

// desk picks an instance that is listed, of those that take the tenant's exchanges; nil: there is
// none.
func (t *tenant) desk() *desk {
	n := len(t.desks)
	width := t.w.plan.width()
	for range 8 {
		d := t.desks[(t.first+t.w.random.IntN(width))%n]
		if d.instance.listed {
			return d
		}
	}
	for i := range n { // most of them are gone: take the next one
		if d := t.desks[(t.first+i)%n]; d.instance.listed {
			return d
		}
	}
	return nil
}

// about varies a mean: half of it is fixed and the rest exponential, so that jobs differ as they
// do.
func (w *world) about(mean time.Duration) time.Duration {
	return time.Duration(float64(mean) * (0.5 + 0.5*w.random.ExpFloat64()))
}

// tail charges what an instance reads for every one of its tenants every 250 ms, in ten portions.
func (w *world) tail(i *instance) {
	const portions = 10
	every := tailEvery / portions
	var round func()
	round = func() {
		if !i.cut {
			n := float64(i.cell.tenants) / portions
			i.cell.database.share(w.now, time.Duration(tailReads*n*float64(w.costs.Read.time())), time.Millisecond)
			i.cpu.share(w.now, time.Duration(tailReads*n*float64(w.costs.ReadCall.time())+n*float64(w.costs.RedisCall.time())), time.Millisecond)
			for _, shard := range i.cell.redis {
				shard.take(w.now, time.Duration(n/float64(len(i.cell.redis))*float64(w.costs.RedisCommand.time())))
			}
		}
		w.call(w.now+every, round)
	}
	w.call(time.Duration(w.random.Int64N(int64(every))), round)
}

// arrive has one call come, and plans the next one: independent callers, so a Poisson process.
func (w *world) arrive() {
	if w.closed {
		return
	}
	w.add(w.now+time.Duration(w.random.ExpFloat64()/(w.rate*w.plan.calls())*float64(time.Second)), &w.arrival)
	children := 1
	if w.random.Float64() < w.plan.batches() {
		children = w.plan.BatchSize
	}
	w.begin(w.pick(), children, false)
}
