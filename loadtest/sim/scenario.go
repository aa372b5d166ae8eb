package sim

import (
	"fmt"
	"math"
	"time"
)

// Scenarios are the names that Run accepts, each with its purpose.
var Scenarios = map[string]string{
	"needs":  "no simulation: the resources that the load needs, by the model",
	"steady": "the load as it is",
	"ramp":   "one deployment, more and more load until something saturates",
	"tenant": "one tenant alone, more and more load until its head saturates, with group commit and without",
	"storm":  "many revocations in ten seconds, and then every instance restarts its feed at once",
	"cutoff": "a third of instances and verifiers loses the databases for twenty seconds",
}

// Result is what a scenario showed.
type Result struct {
	Scenario   string       `json:"scenario"`
	Plan       Plan         `json:"plan"`
	Costs      Costs        `json:"costs"`
	Simulated  float64      `json:"simulated_share"` // of the whole load
	Rows       []Row        `json:"rows"`
	Saturation []Saturation `json:"saturation,omitempty"`
	Notes      []Note       `json:"notes,omitempty"`
	Needs      *Needs       `json:"needs,omitempty"`
	Events     uint64       `json:"events"`
	Series     []Sample     `json:"series"`
	Broken     []string     `json:"broken"` // what must hold and did not: a defect of the simulation, or of Deputy's design
}

// Row is one phase of a scenario. Rates are of the part that was simulated.
type Row struct {
	Phase       string             `json:"phase"`
	Seconds     float64            `json:"seconds"`
	Calls       float64            `json:"calls_per_second"`   // that began
	Offered     float64            `json:"offered_per_second"` // exchanges of them
	Entries     float64            `json:"entries_per_second"` // exchanges that were granted or refused
	Unavailable float64            `json:"unavailable_share"`  // of calls that ended, all tries included
	P50         float64            `json:"p50_ms"`             // from the caller's first try
	P99         float64            `json:"p99_ms"`
	Max         float64            `json:"max_ms"`
	Demand      map[string]float64 `json:"demand"` // of the machine that is asked the most, over the phase
	Batch       float64            `json:"rows_per_transaction"`
	TopBatch    float64            `json:"rows_per_transaction_of_largest_tenant"`
	Commits     float64            `json:"transactions_per_second"`
	Reads       float64            `json:"reads_per_second"` // of marks and wakes; the regular ones are not counted here
	Revokes     float64            `json:"revoke_p99_ms"`
	NewsP50     float64            `json:"revocation_p50_ms"` // from acknowledgement to verifiers
	NewsP99     float64            `json:"revocation_p99_ms"`
	NewsMax     float64            `json:"revocation_max_ms"`
	Stalest     float64            `json:"stalest_seconds"`
	Accepting   float64            `json:"least_accepting_share"`
	Feed        float64            `json:"feed_megabytes_per_second"`
	Little      float64            `json:"little"` // requests that were there, over rate times time: 1
}

// Saturation is where a ramp ended.
type Saturation struct {
	Of        string  `json:"of"`
	Resource  string  `json:"resource"`
	Rate      float64 `json:"exchanges_per_second"`
	Predicted float64 `json:"predicted_per_second"` // by the model, for the resource that saturates first
	By        string  `json:"predicted_resource"`
}

// Note is a moment worth a line.
type Note struct {
	What    string  `json:"what"`
	Seconds float64 `json:"seconds"`
}

// Run runs a scenario and reports its progress. It returns an error for an invalid plan.
func Run(scenario string, plan Plan, costs Costs, progress func(format string, args ...any)) (*Result, error) {
	if err := plan.Check(); err != nil {
		return nil, err
	}
	if Scenarios[scenario] == "" {
		return nil, fmt.Errorf("no scenario %q", scenario)
	}
	r := &runner{progress: progress, result: &Result{Scenario: scenario, Plan: plan, Costs: costs, Broken: []string{}, Rows: []Row{}, Series: []Sample{}}}
	switch scenario {
	case "needs":
		needs := Model(plan, costs)
		r.result.Needs, r.result.Simulated = &needs, 0
	case "steady":
		r.open(plan, costs)
		r.steady()
		r.close()
	case "ramp":
		r.ramp(plan, costs)
	case "tenant":
		r.tenant(plan, costs)
	case "storm":
		r.open(fewer(plan), costs)
		r.storm()
		r.close()
	case "cutoff":
		r.open(fewer(plan), costs)
		r.cutoff()
		r.close()
	}
	return r.result, nil
}

// fewer simulates two deployments unless the plan sets a number: all are alike.
func fewer(plan Plan) Plan {
	if plan.Simulated == 0 {
		plan.Simulated = min(2, plan.Databases)
	}
	return plan
}

type runner struct {
	*world
	progress func(string, ...any)
	result   *Result
}

const warmUp = 2 * time.Second

func (r *runner) open(plan Plan, costs Costs) {
	r.world = newWorld(plan, costs)
	r.result.Simulated = r.upTo[len(r.upTo)-1]
	r.arrive()
	r.progress("%s: %d instances, %d tenants, %d verifiers, %.0f exchanges/s", r.result.Scenario, len(r.instances), len(r.tenants), len(r.verifiers), r.rate)
	r.pass("", warmUp)
}

// pass runs a phase, reports it, and returns its row.
func (r *runner) pass(name string, takes time.Duration) Row {
	r.seen.enter(name)
	for end := r.now + takes; r.now < end; {
		r.until(min(end, r.now+time.Second))
		r.progress("%6.1f s  %-10s %9d calls, %9d events", r.now.Seconds(), name, r.seen.begun, r.happens)
	}
	row := r.row()
	if name != "" {
		r.result.Rows = append(r.result.Rows, row)
	}
	return row
}

// close waits for all calls that are under way, and checks what must hold of the whole run.
func (r *runner) close() {
	r.closed = true
	r.result.Series = append(r.result.Series, r.seen.samples...)
	r.seen.enter("")
	for end := r.now + time.Minute; r.seen.alive > 0 && r.now < end; {
		r.until(r.now + time.Second)
	}
	r.result.Events += r.happens
	r.result.Broken = append(r.result.Broken, r.seen.broken()...)
}

// broken lists the rules that must hold and do not.
func (o *observer) broken() []string {
	var broken []string
	say := func(is bool, format string, args ...any) {
		if is {
			broken = append(broken, fmt.Sprintf(format, args...))
		}
	}
	ended := o.over[granted] + o.over[refused] + o.over[unavailable]
	say(o.begun != ended || o.alive != 0, "conservation: %d calls began and %d ended", o.begun, ended)
	say(o.twice > 0, "conservation: %d calls ended twice", o.twice)
	say(o.unsound > 0, "I10: %d times a verifier would have judged without an echo in ten seconds", o.unsound)
	say(o.late > 0, "I9: %d times a verifier would have accepted what had been revoked for ten seconds", o.late)
	return broken
}

func (r *runner) steady() {
	row := r.pass("steady", r.plan.Duration)
	switch {
	case row.Unavailable > 0:
		r.note("not steady: some tenant has more than its head can do, and its callers receive unavailable", 0)
	case math.Abs(row.Little-1) > 0.05:
		r.result.Broken = append(r.result.Broken, fmt.Sprintf("Little's law: %.3f", row.Little))
	}
}

// ramp raises the load of one deployment by 7 % each second.
func (r *runner) ramp(plan Plan, costs Costs) {
	plan.Simulated, plan.Attempts = 1, 1 // tries again would hide what was offered
	r.open(plan, costs)
	r.climb("a deployment", r.rate/4, 1.07, time.Second)
	r.close()
}

// tenant raises the load of a tenant that has a deployment to itself, by 4 % every two seconds.
func (r *runner) tenant(plan Plan, costs Costs) {
	plan.Tenants, plan.Databases, plan.Simulated, plan.Verifiers, plan.Attempts = 1, 1, 1, 0, 1
	for _, rows := range []int{1, plan.Rows} {
		plan.Rows = rows
		plan.Rate = Ceiling(plan, costs) / 4
		r.open(plan, costs)
		r.climb(fmt.Sprintf("a tenant, %d rows a transaction", rows), r.rate, 1.04, 2*time.Second)
		r.close()
	}
	r.result.Plan = plan
}

// climb ends when something saturates: work comes faster than it can be done, or calls do not end.
func (r *runner) climb(of string, from, by float64, step time.Duration) {
	first, predicted := Saturates(r.plan, r.costs)
	var last Row
	for r.rate = from; ; r.rate *= by {
		row := r.pass(fmt.Sprintf("%.0f/s", r.rate), step)
		resource, over := "", 0.0
		for i, name := range resourceNames {
			if d := row.Demand[name]; d > over && (i != headLock || r.headIsFull(row)) {
				resource, over = name, d
			}
		}
		if over < 0.995 {
			last = row
			continue
		}
		rate := r.rate
		if before := last.Demand[resource]; resource != resourceNames[headLock] && before > 0 && over > 1 {
			rate -= (over - 1) / (over - before) * (r.rate - r.rate/by) // between the two steps
		} else if resource == resourceNames[headLock] {
			// What the largest tenant gets is what its head can do.
			rate = float64(r.seen.phase.largest) / row.Seconds / r.tenants[0].share * r.result.Simulated
		}
		r.result.Saturation = append(r.result.Saturation, Saturation{Of: of, Resource: resource, Rate: math.Round(rate), Predicted: math.Round(predicted), By: first})
		return
	}
}

// headIsFull distinguishes a saturated head from one that is only always busy, as every head with
// queued callers is: its transactions are full, or its callers wait for a second.
func (r *runner) headIsFull(row Row) bool {
	return r.plan.Rows > 1 && row.TopBatch >= 0.9*float64(r.plan.Rows) || row.P99 > 1000 || row.Unavailable > 0.001
}

// storm has many revocations come, and then every instance end its streams.
func (r *runner) storm() {
	const lasts = 10 * time.Second
	r.pass("before", 2*time.Second)
	struck := r.plan.Struck
	if struck == 0 {
		struck = r.plan.Tenants
	}
	all := 0.0
	for _, share := range r.plan.shares()[:struck] {
		all += share
	}
	// The largest tenants of the plan are the largest of those that are simulated, too.
	here, targets := 0.0, 0
	least := r.plan.shares()[struck-1]
	for targets < len(r.tenants) && r.tenants[targets].share >= least {
		here += r.tenants[targets].share
		targets++
	}
	n := int(float64(r.plan.Storm) * here / all)
	strike := func() {
		at := r.random.Float64() * here
		for i, sum := range r.upTo[:targets] {
			if at <= sum || i == targets-1 {
				r.begin(r.tenants[i], 1, true)
				return
			}
		}
	}
	for i := range n {
		r.call(r.now+lasts*time.Duration(i)/time.Duration(n), strike)
	}
	r.pass("storm", lasts)
	r.pass("after", 2*time.Second)
	r.note(fmt.Sprintf("revocations in the simulated part: %d", n), 0)
	restarted := r.now
	for _, i := range r.instances {
		r.restart(i)
	}
	following := func() bool {
		for i := range r.verifiers {
			if r.verifiers[i].desk == nil || r.verifiers[i].asOf < restarted {
				return false
			}
		}
		return true
	}
	r.watchFor("restart: until every verifier follows again", following)
	r.pass("restart", 5*time.Second)
	r.pass("recovered", 2*time.Second)
}

// cutoff takes the databases from the third region, and gives them back.
func (r *runner) cutoff() {
	var trickle func() // of revocations, so that there is something to miss
	trickle = func() {
		r.begin(r.pick(), 1, true)
		if !r.closed {
			r.call(r.now+50*time.Millisecond, trickle)
		}
	}
	trickle()
	r.pass("before", 2*time.Second)
	r.severed = true
	theirs := r.region(regions - 1)
	for _, i := range theirs {
		i.cut = true
		r.call(r.now+noticesGone, func() { i.listed = false })
	}
	r.watchFor("cut: until the last verifier there refuses", func() bool { return r.thirdAccepts() == 0 })
	r.pass("cut", noticesGone+2*time.Second)
	r.pass("absorbed", 16*time.Second)
	r.severed = false
	for _, i := range theirs {
		i.cut, i.healed = false, r.now
		r.call(r.now+noticesBack, func() { i.listed = true })
	}
	r.watchFor("back: until the last verifier there accepts", func() bool { return r.thirdAccepts() == 1 })
	r.pass("back", 5*time.Second)
	r.pass("recovered", 2*time.Second)
}

func (w *world) region(n int) []*instance {
	var list []*instance
	for _, i := range w.instances {
		if i.region == n {
			list = append(list, i)
		}
	}
	return list
}

// thirdAccepts is the share of the third region's verifiers that accept.
func (w *world) thirdAccepts() float64 {
	all, accept := 0, 0
	for i := range w.verifiers {
		if v := &w.verifiers[i]; v.region == regions-1 {
			all++
			if v.accepts() {
				accept++
			}
		}
	}
	return float64(accept) / float64(max(1, all))
}

// watchFor looks every 50 ms whether something has come about, and notes when.
func (r *runner) watchFor(what string, is func() bool) {
	from := r.now
	var look func()
	look = func() {
		switch {
		case is():
			r.note(what, (r.now - from).Seconds())
		case !r.closed:
			r.call(r.now+50*time.Millisecond, look)
		}
	}
	r.call(r.now+50*time.Millisecond, look)
}

func (r *runner) note(what string, seconds float64) {
	r.result.Notes = append(r.result.Notes, Note{what, math.Round(seconds*100) / 100})
}

// row sums the phase up that ends now.
func (r *runner) row() Row {
	o := &r.seen
	o.settle()
	p := o.phase
	took := (r.now - p.from).Seconds()
	rate := func(n int) float64 { return round(float64(n)/took, 1) }
	row := Row{
		Phase: p.name, Seconds: took, Calls: rate(o.begun - p.counted.begun), Offered: rate(p.offered), Entries: rate(p.entries),
		P50: ms(p.calls.quantile(0.5)), P99: ms(p.calls.quantile(0.99)), Max: ms(p.calls.max),
		Demand: map[string]float64{}, Commits: rate(o.transactions - p.counted.transactions), Reads: rate(o.reads - p.counted.reads),
		Revokes: ms(p.revokes.quantile(0.99)), NewsP50: ms(p.news.quantile(0.5)), NewsP99: ms(p.news.quantile(0.99)), NewsMax: ms(p.news.max),
		Stalest: round(p.stalest.Seconds(), 2), Accepting: round(p.accepting, 4),
	}
	if p.left > 0 {
		row.Unavailable = round(float64(p.over[unavailable])/float64(p.left), 5)
		row.Little = round((o.area-p.counted.area)/p.sojourn.Seconds(), 3)
	}
	if n := o.transactions - p.counted.transactions; n > 0 {
		row.Batch = round(float64(o.rows-p.counted.rows)/float64(n), 2)
	}
	if p.batches > 0 {
		row.TopBatch = round(p.fill/float64(p.batches), 1)
	}
	for i, name := range resourceNames {
		for _, sum := range p.demands[i] {
			row.Demand[name] = max(row.Demand[name], round(sum/float64(max(1, p.samples)), 3))
		}
	}
	c := &r.costs
	row.Feed = round((float64(o.marks-p.counted.marks)*c.MarkBytes.Value+
		float64(o.events-p.counted.events+o.snapshots-p.counted.snapshots)*c.EventBytes.Value)/took/1e6, 2)
	return row
}

func round(v float64, digits int) float64 {
	unit := math.Pow10(digits)
	return math.Round(v*unit) / unit
}
