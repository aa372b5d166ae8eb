package sim

import "math"

// target is the utilization that the model plans for: what is left is for bursts, and for a third
// of the machines that may be gone.
const target = 0.6

// Needs is what a load needs, by formulas without queues.
type Needs struct {
	Instances     int     `json:"instances"`     // by whichever of the next two is more, with a third of them gone
	ForExchanges  int     `json:"for_exchanges"` // all deployments
	ForWatchers   int     `json:"for_watchers"`
	Databases     int     `json:"databases"` // at their processors' target; a tenant is never split
	RedisShards   int     `json:"redis_shards"`
	OpenFGACores  int     `json:"openfga_cores"`
	Relays        int     `json:"relays"`       // of all levels
	RelayLevels   int     `json:"relay_levels"` // that verifiers need beyond the instances that exchanges need anyway
	Ceiling       float64 `json:"tenant_ceiling_per_second"`
	WithoutGroups float64 `json:"tenant_ceiling_without_group_commit"`
	Largest       float64 `json:"largest_tenant_per_second"`
	LedgerBytes   float64 `json:"ledger_megabytes_per_second"`
	FeedBytes     float64 `json:"feed_megabytes_per_second"`
	StormBytes    float64 `json:"storm_feed_megabytes"` // all verifiers, all revocations of the storm
	AgentRate     float64 `json:"exchanges_per_agent_and_hour"`
	VerifierBytes float64 `json:"verifier_megabytes"` // revocations in the memory of a verifier of the largest tenant
}

// work is the demand of one second of the plan's load on each kind of machine, in processor
// seconds, with the present number of machines.
type work struct{ instances, databases, openfga, redis float64 }

// held is how long a transaction keeps the head, without its rows, and what each row adds, in
// seconds.
func held(c Costs) (transaction, row float64) {
	transaction = c.RoundTrip.time().Seconds() + c.Transaction.time().Seconds() + c.Flush.time().Seconds() + c.HandOver.time().Seconds()
	return transaction, c.RowInstance.time().Seconds() + c.RowDatabase.time().Seconds()
}

// Ceiling is how many entries a second one tenant can have at most: one sequence, one head, one
// transaction after the other, each with as many rows as fit.
func Ceiling(p Plan, c Costs) float64 {
	transaction, row := held(c)
	rows := float64(p.Rows)
	if p.Rows == 1 { // a batch is never split
		rows = p.children()
	}
	return rows / (transaction + rows*row)
}

// children is how many exchanges a call brings, on average.
func (p *Plan) children() float64 { return 1 / p.calls() }

// works adds up what every call, every second's marks and every regular read cost.
func works(p Plan, c Costs) work {
	s := func(c Cost) float64 { return c.time().Seconds() }
	calls := p.Rate * p.calls()
	perCall := p.children()
	pairs := float64(p.Tenants) * float64(p.Instances) // tenants of a deployment times its instances, over all deployments
	tails := pairs / tailEvery.Seconds()
	verifiers := float64(p.Verifiers)

	// Requests that arrive during a transaction or a question of theirs share the next one.
	transaction, row := held(c)
	transactions, questions := 0.0, 0.0
	for _, share := range p.shares() {
		at := calls * share / float64(p.width())
		transactions += float64(p.width()) * at / (1 + at*(transaction-s(c.HandOver)+row*perCall))
		asking := at * (1 - p.Misses)
		questions += float64(p.width()) * asking / (1 + asking*(s(c.Changes)+s(c.RoundTrip)))
	}
	// So do marks of one tenant at one instance.
	reads := verifiers
	if pairs > 0 && verifiers > 0 {
		reads = 0
		for _, share := range p.shares() {
			at := verifiers * share / float64(p.Instances) / markEvery.Seconds()
			reads += float64(p.Instances) * at / (1 + at*(s(c.Read)+s(c.RoundTrip)))
		}
	}
	batch := p.batches() * float64(p.BatchSize) * (s(c.BatchChild) - s(c.RowInstance) - s(c.Mint))
	return work{
		instances: calls*(s(c.Front)+s(c.PolicyCall)+s(c.RedisCall)+batch) + p.Rate*(s(c.RowInstance)+s(c.Mint)) -
			calls*p.Refusals*s(c.Mint) +
			verifiers/float64(p.through())*s(c.Echo)/markEvery.Seconds() + reads*s(c.ReadCall) + tails*(tailReads*s(c.ReadCall)+s(c.RedisCall)),
		databases: transactions*s(c.Transaction) + p.Rate*s(c.RowDatabase) + reads*s(c.Read) + tails*tailReads*s(c.Read),
		openfga:   calls*p.Misses*s(c.Check) + questions*s(c.Changes),
		redis:     calls*s(c.RedisCommand) + tails*s(c.RedisCommand),
	}
}

// Model computes what a plan's load needs.
func Model(p Plan, c Costs) Needs {
	w := works(p, c)
	up := func(v float64) int { return int(math.Ceil(v - 1e-9)) }
	n := Needs{
		ForExchanges: up(w.instances / float64(p.Cores) / target * regions / (regions - 1)),
		ForWatchers:  up(float64(p.Verifiers) / float64(mostWatchers) * regions / (regions - 1)),
		Databases:    up(w.databases / float64(p.DatabaseCores) / target),
		RedisShards:  up(w.redis / target),
		OpenFGACores: up(w.openfga / target),
		Ceiling:      math.Round(Ceiling(p, c)),
		Largest:      math.Round(p.Rate * p.shares()[0]),
		LedgerBytes:  p.Rate * c.RowBytes.Value / 1e6,
		FeedBytes:    float64(p.Verifiers) * c.MarkBytes.Value / markEvery.Seconds() / 1e6,
		AgentRate:    round(p.Rate/float64(p.Agents)*3600, 1),
	}
	n.Instances = max(n.ForExchanges, n.ForWatchers)
	alone := p
	alone.Rows = 1
	n.WithoutGroups = math.Round(Ceiling(alone, c))
	// Each revocation goes to the verifiers of its tenant.
	same := 0.0
	for _, share := range p.shares() {
		same += share * share
	}
	n.StormBytes = math.Round(float64(p.Storm) * float64(p.Verifiers) * same * c.EventBytes.Value / 1e6)
	n.VerifierBytes = round(float64(p.Live)*p.shares()[0]*c.RevocationMemory.Value/1e6, 2)
	// Levels of relays until the instances that exchanges need anyway have places for what is left.
	streams := float64(p.Verifiers)
	for room := float64(n.ForExchanges) * mostWatchers * (regions - 1) / regions; streams > room; n.RelayLevels++ {
		streams = math.Ceil(streams / float64(p.Degree))
		n.Relays += int(streams)
	}
	return n
}

// Saturates returns the resource of a plan that saturates first when the load grows, and at how
// many exchanges a second of the simulated part. Marks and regular reads do not grow with it.
func Saturates(p Plan, c Costs) (resource string, rate float64) {
	share, busiest := 0.0, 0.0
	shares, homes := p.shares(), p.placed()
	shards, fullest := make([]float64, p.Databases*p.RedisShards), 0.0
	for k, home := range homes {
		if p.Simulated == 0 || home < p.Simulated {
			share += shares[k]
			busiest = max(busiest, shares[k])
			shard := &shards[home*p.RedisShards+slot(nameOf(k))*p.RedisShards/slots]
			*shard += shares[k]
			fullest = max(fullest, *shard)
		}
	}
	cells := float64(p.Databases)
	limits := func(rate float64) map[string]float64 {
		at := p
		at.Rate = rate
		w := works(at, c)
		return map[string]float64{
			resourceNames[instanceCPU]: w.instances / (cells * float64(p.Instances*p.Cores)),
			resourceNames[databaseCPU]: w.databases / (cells * float64(p.DatabaseCores)),
			resourceNames[openfgaCPU]:  w.openfga / (cells * float64(p.OpenFGACores)),
			resourceNames[redisCPU]:    w.redis * fullest,
			resourceNames[headLock]:    rate * busiest / Ceiling(p, c),
		}
	}
	low, high := 0.0, 1e9
	for range 60 {
		middle := (low + high) / 2
		over := false
		for _, name := range resourceNames {
			if limits(middle)[name] >= 1 {
				over, resource = true, name
			}
		}
		if over {
			high = middle
		} else {
			low = middle
		}
	}
	for _, name := range resourceNames {
		if limits(high)[name] >= 1 {
			resource = name
		}
	}
	return resource, high * share
}
