package sim

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// The constants of Deputy and its SDK. See server/internal/ledger, server/internal/rpc,
// server/internal/exchange and client/feed.go.
const (
	mostQueued   = 4096 // ledger.Config.MaxQueue: items of one tenant that wait in one instance
	mostWatchers = 2000 // rpc.maxWatchers: of one instance

	answersWithin = 2 * time.Second         // a call that is not decided then ends as unavailable
	queuesWithin  = 1800 * time.Millisecond // what the ledger is given of that
	commitsWithin = time.Second             // a transaction that gets no answer from the database

	tailEvery    = 250 * time.Millisecond // an instance reads each tenant's newest revocations
	tailReads    = 2                      // times: once for its memory, once for the lists in Redis
	markEvery    = time.Second
	bound        = 10 * time.Second // a verifier without news for this long refuses everything
	patience     = bound / 2        // and opens another stream before that
	maxPause     = 2 * time.Second
	snapshotMost = 5 * time.Second // a verifier gives up a stream that does not begin

	noticesGone = 2 * time.Second // a load balancer, that an instance is not ready
	noticesBack = time.Second
	regions     = 3
)

// Plan is a deployment and its load. Databases are deployments of their own: each has its share of
// the tenants and its own instances, Redis and OpenFGA, because a deployment of Deputy has one
// database.
type Plan struct {
	Seed      uint64  `json:"seed" default:"1" placeholder:"N" help:"Chooses everything random. The same seed gives the same output. Default ${default}."`
	Rate      float64 `json:"rate" default:"100000" placeholder:"N" help:"Exchanges a second of the whole system; each child of a batch is one. Default ${default}."`
	Agents    int     `json:"agents" default:"1000000" placeholder:"N" help:"Agents of the whole system. Default ${default}."`
	Verifiers int     `json:"verifiers" default:"100000" placeholder:"N" help:"Verifiers that follow revocations. Default ${default}."`
	Tenants   int     `json:"tenants" default:"2000" placeholder:"N" help:"Tenants; the k-th has a share of the load in proportion to 1/k^skew. Default ${default}."`
	Skew      float64 `json:"skew" default:"0.6" placeholder:"X" help:"Exponent of that law (Zipf). Default ${default}."`

	Databases     int `json:"databases" default:"8" placeholder:"N" help:"Deployments, each with one database, its own tenants, instances, Redis and OpenFGA. Default ${default}."`
	Simulated     int `json:"simulated" default:"0" placeholder:"N" help:"Simulate only so many of the deployments: they share nothing. 0: all, or two where a scenario is long. Default ${default}."`
	Instances     int `json:"instances" default:"12" placeholder:"N" help:"Instances of each deployment, over three regions. Default ${default}."`
	Cores         int `json:"cores" default:"4" placeholder:"N" help:"Processors of an instance. Default ${default}."`
	Spread        int `json:"spread" default:"0" placeholder:"N" help:"Instances that take a tenant's exchanges. 0: all of its deployment, as nothing routes by tenant. Default ${default}."`
	DatabaseCores int `json:"database_cores" default:"16" placeholder:"N" help:"Processors of a database. Default ${default}."`
	RedisShards   int `json:"redis_shards" default:"3" placeholder:"N" help:"Masters of each deployment's Redis Cluster; a tenant is in one. Default ${default}."`
	OpenFGACores  int `json:"openfga_cores" name:"openfga-cores" default:"12" placeholder:"N" help:"Processors of each deployment's OpenFGA replicas together. Default ${default}."`

	Misses     float64 `json:"misses" default:"0.1" placeholder:"X" help:"Share of exchanges whose policy decision is not in memory. Default ${default}."`
	BatchShare float64 `json:"batch_share" default:"0.2" placeholder:"X" help:"Share of exchanges that come in batches. Default ${default}."`
	BatchSize  int     `json:"batch_size" default:"20" placeholder:"N" help:"Children of a batch. Default ${default}."`
	Refusals   float64 `json:"refusals" default:"0.05" placeholder:"X" help:"Share of calls that are refused, which the ledger records too. Default ${default}."`
	Rows       int     `json:"rows" default:"256" placeholder:"N" help:"Rows that one transaction takes at most; 1: no group commit. Default ${default}, as it is built."`
	Attempts   int     `json:"attempts" default:"4" placeholder:"N" help:"Attempts of a caller that receives unavailable. Default ${default}, as the SDK does."`

	Degree    int           `json:"degree" default:"1000" placeholder:"N" help:"Streams of a relay, where there are relays. Default ${default}."`
	Depth     int           `json:"depth" default:"0" placeholder:"N" help:"Levels of relays between instances and verifiers. 0: none, as relays are not built. Default ${default}."`
	NoWake    bool          `json:"no_wake" help:"Redis wakes no instance: each learns of revocations by its reads every 250 ms."`
	Live      int           `json:"live" default:"1000000" placeholder:"N" help:"Revocations in force, of all tenants. Default ${default}."`
	Storm     int           `json:"storm" default:"10000" placeholder:"N" help:"Revocations of the storm, within ten seconds. Default ${default}."`
	Struck    int           `json:"struck" default:"0" placeholder:"N" help:"The storm strikes only so many of the largest tenants. 0: all, by their load. Default ${default}."`
	Snapshots bool          `json:"snapshots" help:"Verifiers that come back need a snapshot. Otherwise they go on where they were, as they can after a restart of moments."`
	Jitter    time.Duration `json:"jitter" default:"100ms" placeholder:"DURATION" help:"Verifiers whose stream ended come back within the second half of this, at first. Default ${default}, as the SDK does."`
	Duration  time.Duration `json:"duration" default:"5s" placeholder:"DURATION" help:"How long steady lasts, in virtual time. Default ${default}."`

	holds time.Duration // how long a proxy delays every echo; no flag sets it
}

// DefaultPlan holds the defaults of the command's flags.
func DefaultPlan() Plan {
	return Plan{
		Seed: 1, Rate: 100_000, Agents: 1_000_000, Verifiers: 100_000, Tenants: 2000, Skew: 0.6,
		Databases: 8, Instances: 12, Cores: 4, DatabaseCores: 16, RedisShards: 3, OpenFGACores: 12,
		Misses: 0.1, BatchShare: 0.2, BatchSize: 20, Refusals: 0.05, Rows: 256, Attempts: 4,
		Degree: 1000, Live: 1_000_000, Storm: 10_000, Jitter: 100 * time.Millisecond, Duration: 5 * time.Second,
	}
}

// Check returns what is wrong with a plan, by the names of the flags.
func (p *Plan) Check() error {
	var wrong []error
	within := func(name string, v, least, most float64) {
		if !(v >= least && v <= most) {
			wrong = append(wrong, fmt.Errorf("--%s: must be from %g to %g", name, least, most))
		}
	}
	within("rate", p.Rate, 1, 1e7)
	within("agents", float64(p.Agents), 1, 1e9)
	within("verifiers", float64(p.Verifiers), 0, 1e6)
	within("tenants", float64(p.Tenants), float64(max(1, p.Databases)), 1e5)
	within("skew", p.Skew, 0, 3)
	within("databases", float64(p.Databases), 1, 1000)
	within("simulated", float64(p.Simulated), 0, float64(p.Databases))
	within("instances", float64(p.Instances), 1, 1000)
	within("cores", float64(p.Cores), 1, 256)
	within("spread", float64(p.Spread), 0, float64(p.Instances))
	within("database-cores", float64(p.DatabaseCores), 1, 256)
	within("redis-shards", float64(p.RedisShards), 1, slots)
	within("openfga-cores", float64(p.OpenFGACores), 1, 1024)
	within("misses", p.Misses, 0, 1)
	within("batch-share", p.BatchShare, 0, 1)
	within("batch-size", float64(p.BatchSize), 1, 100)
	within("refusals", p.Refusals, 0, 1)
	within("rows", float64(p.Rows), 1, 4096)
	within("attempts", float64(p.Attempts), 1, 10)
	within("degree", float64(p.Degree), 2, mostWatchers)
	within("depth", float64(p.Depth), 0, 4)
	within("live", float64(p.Live), 0, 1e8)
	within("storm", float64(p.Storm), 1, 1e6)
	within("struck", float64(p.Struck), 0, float64(p.Tenants))
	within("jitter", p.Jitter.Seconds(), 0, bound.Seconds())
	within("duration", p.Duration.Seconds(), 0.5, 600)
	return errors.Join(wrong...)
}

// shares of the tenants in the load, the largest first.
func (p *Plan) shares() []float64 {
	shares, sum := make([]float64, p.Tenants), 0.0
	for k := range shares {
		shares[k] = math.Pow(float64(k+1), -p.Skew)
		sum += shares[k]
	}
	for k := range shares {
		shares[k] /= sum
	}
	return shares
}

// calls is how many calls bring one exchange, on average.
func (p *Plan) calls() float64 { return 1 - p.BatchShare + p.BatchShare/float64(p.BatchSize) }

// batches is the share of calls that are batches.
func (p *Plan) batches() float64 { return p.BatchShare / float64(p.BatchSize) / p.calls() }

// placed assigns each tenant to a database: the largest first, to the one with the least load.
func (p *Plan) placed() []int {
	loads, homes := make([]float64, p.Databases), make([]int, p.Tenants)
	for k, share := range p.shares() {
		least := 0
		for d := range loads {
			if loads[d] < loads[least] {
				least = d
			}
		}
		homes[k] = least
		loads[least] += share
	}
	return homes
}

// width is how many instances take a tenant's exchanges.
func (p *Plan) width() int {
	if p.Spread == 0 {
		return p.Instances
	}
	return p.Spread
}

// through is how many verifiers share one stream of an instance.
func (p *Plan) through() int {
	n := 1
	for range p.Depth {
		n *= p.Degree
	}
	return n
}

const slots = 16384 // hash slots of a Redis Cluster

// slot is the hash slot of a key with the hash tag {tenant}: CRC-16 (XMODEM) of what is between the
// braces.
func slot(tenant string) int {
	var crc uint16
	for _, b := range []byte(tenant) {
		crc ^= uint16(b) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc) % slots
}
