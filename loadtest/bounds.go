package main

import (
	"cmp"
	"fmt"
	"slices"
)

// figure is one number of a report: the median over the rounds.
type figure struct {
	Setup string  `json:"setup"`
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Bound float64 `json:"bound,omitempty"`
	// Bounded means that Value must not exceed Bound; a figure without one is for information.
	Bounded bool `json:"bounded"`
}

// Units of figures.
const (
	floors       = "× floor" // CPU time of all processes per exchange, in those of the floor
	milliseconds = "ms"
	microseconds = "µs"
	idleCPU      = "ms CPU/s" // while there are no requests
	ofBare       = "× bare ES256"
	ofBase       = "× base"
	allocations  = "allocations"
	tokens       = "tokens"
)

func (f figure) holds() bool { return !f.Bounded || f.Value <= f.Bound }

// bound is a goal: the named figure must not exceed it, in its unit. In the set-up, or in every
// one.
type bound struct {
	setup, name, unit string
	most              float64
}

// The names of figures that have bounds; scenarios give the others theirs.
const (
	halfRate    = "p99 at half of the saturation rate"
	lastRefusal = "slowest refusal after a revocation"
	accepted    = "accepted after a revocation"
	sdkUncached = "SDK Verify, uncached"
	sdkCached   = "SDK Verify, cached"
	sdkAllocs   = "SDK Verify, cached: allocations"
)

// bounds are the goals of the project. Ratios are medians over the rounds.
var bounds = []bound{
	{distributed, deepChain.name, floors, 2.5},
	{embedded, deepChain.name, floors, 2},
	{"", fanOut.name, floors, 1.5},
	{"", batch.name, floors, 0.6},
	{"", halfRate, milliseconds, 25},
	{"", lastRefusal, milliseconds, 1000},
	{"", accepted, tokens, 0},
	{"", sdkUncached, ofBare, 1.5},
	{"", sdkCached, microseconds, 2},
	{"", sdkAllocs, allocations, 0},
	{"", "chain depth 8 against 1", ofBase, 1.4},
	{"", "relationships", ofBase, 1.15},
	{"", "ledger entries", ofBase, 1.15},
	{"", "tenants, one busy", ofBase, 1.15},
	{"", "tenants, all busy", ofBase, 1.15},
	{"", "live revocations", ofBase, 1.15},
	// Two instances make 1.6 times the throughput of one if they cost at most this much more and
	// have twice the cores.
	{"", "two instances", ofBase, 2 / 1.6},
}

// withBound looks up what a figure must not exceed.
func withBound(f figure) figure {
	for _, b := range bounds {
		if b.name == f.Name && b.unit == f.Unit && (b.setup == "" || b.setup == f.Setup) {
			f.Bound, f.Bounded = b.most, true
		}
	}
	return f
}

// exceeded lists the figures that are over their bounds.
func exceeded(figures []figure) (over []string) {
	for _, f := range figures {
		if !f.holds() {
			over = append(over, fmt.Sprintf("%s, %s: %.3g %s, at most %.3g", f.Setup, f.Name, f.Value, f.Unit, f.Bound))
		}
	}
	return over
}

// median of values, which must not be empty; of an even number the mean of the two in the middle.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// medians groups values and keeps the order in which the groups came.
func medians[T any](list []T, group func(T) figure) []figure {
	var order []figure
	values := make(map[figure][]float64)
	for _, item := range list {
		f := group(item)
		value := f.Value
		f.Value = 0
		if values[f] == nil {
			order = append(order, f)
		}
		values[f] = append(values[f], value)
	}
	for i, f := range order {
		f.Value = median(values[f])
		order[i] = withBound(f)
	}
	return order
}

// figures are the medians of everything that was measured.
func (r *report) figures() []figure {
	started := slices.DeleteFunc(slices.Clone(r.Runs), func(m run) bool { return m.Floor == 0 }) // elsewhere there is none
	all := medians(started, func(m run) figure { return figure{Setup: m.Setup, Name: m.Scenario, Value: m.ratio(), Unit: floors} })
	all = append(all, medians(r.Open, func(m run) figure {
		return figure{Setup: m.Setup, Name: halfRate, Value: m.Latency.P99, Unit: milliseconds}
	})...)
	for _, part := range []struct {
		name, unit string
		value      func(storm) float64
	}{
		{lastRefusal, milliseconds, func(s storm) float64 { return s.Refusal.Max }},
		{accepted, tokens, func(s storm) float64 { return float64(s.Accepted) }},
	} {
		worst := make(map[string]float64) // one is too many: no median
		var setups []string
		for _, s := range r.Storms {
			if _, there := worst[s.Setup]; !there {
				setups = append(setups, s.Setup)
			}
			worst[s.Setup] = max(worst[s.Setup], part.value(s))
		}
		for _, name := range setups {
			all = append(all, withBound(figure{Setup: name, Name: part.name, Value: worst[name], Unit: part.unit}))
		}
	}
	all = append(all, medians(r.ColdStarts, func(c coldStart) figure {
		return figure{Setup: c.Setup, Name: "start to first grant", Value: c.FirstGrant, Unit: milliseconds}
	})...)
	all = append(all, medians(r.ColdStarts, func(c coldStart) figure {
		return figure{Setup: c.Setup, Name: "p99 of the first hundred", Value: c.First.P99, Unit: milliseconds}
	})...)
	all = append(all, medians(r.SDK, func(s sdk) figure {
		return figure{Setup: s.Setup, Name: sdkUncached, Value: s.Uncached / s.Bare, Unit: ofBare}
	})...)
	all = append(all, medians(r.SDK, func(s sdk) figure {
		return figure{Setup: s.Setup, Name: sdkCached, Value: s.Cached, Unit: microseconds}
	})...)
	all = append(all, medians(r.SDK, func(s sdk) figure {
		// Rounded: the feed in the background allocates too.
		return figure{Setup: s.Setup, Name: sdkAllocs, Value: float64(int(s.Allocs + 0.5)), Unit: allocations}
	})...)
	all = append(all, r.Others...)
	slices.SortStableFunc(all, func(a, b figure) int { return cmp.Compare(a.Setup, b.Setup) })
	return all
}
