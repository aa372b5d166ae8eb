package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// sample is a report of two rounds in both set-ups.
func sample() *report {
	cost := func(setup, name string, round int, floor float64, cpu map[string]float64) run {
		return run{
			Setup: setup, Scenario: name, Round: round, Requests: 100, Units: 100, Seconds: 2, CPU: cpu, Floor: floor,
			Latency: latency{P50: 2, P90: 5, P99: 20, P999: 90, Max: 120}, Steps: map[string]float64{"authorize": 1.5},
		}
	}
	half := cost(embedded, "deep chain at half of the rate", 1, 0.3, map[string]float64{"deputy": 0.7})
	half.Latency.P99 = 30
	return &report{
		Command: "go run ./loadtest run", Rounds: 2,
		Runs: []run{
			cost(embedded, deepChain.name, 1, 0.3, map[string]float64{"deputy": 0.45}),
			cost(distributed, deepChain.name, 1, 0.3, map[string]float64{"deputyd": 0.3, "openfga": 0.3, `<"&>`: 0.06}),
			cost(embedded, deepChain.name, 2, 0.4, map[string]float64{"deputy": 0.8}),
			cost(distributed, deepChain.name, 2, 0.25, map[string]float64{"deputyd": 0.5, "openfga": 0.5, `<"&>`: 0.1}),
		},
		Open:       []run{half},
		Storms:     []storm{{Setup: embedded, Round: 1, Refusal: latency{Max: 3}}, {Setup: embedded, Round: 2, Refusal: latency{Max: 1500}, Accepted: 1}},
		ColdStarts: []coldStart{{Setup: embedded, FirstGrant: 900, First: latency{P99: 40}}},
		SDK:        []sdk{{Setup: embedded, Bare: 80, Uncached: 100, Cached: 0.3, Allocs: 0.002}},
		Others:     []figure{withBound(figure{Setup: distributed, Name: "ledger entries", Value: 1.1, Unit: ofBase})},
	}
}

func TestFiguresAreMediansAgainstTheirOwnFloors(t *testing.T) {
	r := sample()
	r.Figures = r.figures()
	want := map[[2]string]float64{
		{embedded, deepChain.name}:      (0.45/0.3 + 0.8/0.4) / 2,
		{distributed, deepChain.name}:   (0.66/0.3 + 1.1/0.25) / 2,
		{embedded, halfRate}:            30,
		{embedded, lastRefusal}:         1500, // the worst, not the median
		{embedded, accepted}:            1,
		{embedded, sdkUncached}:         1.25,
		{embedded, sdkAllocs}:           0,
		{distributed, "ledger entries"}: 1.1,
	}
	for _, f := range r.Figures {
		key := [2]string{f.Setup, f.Name}
		if value, listed := want[key]; listed && math.Abs(f.Value-value) > 1e-9 {
			t.Errorf("%v: %v, want %v", key, f.Value, value)
		}
		delete(want, key)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	over := strings.Join(exceeded(r.Figures), "\n")
	for _, f := range []string{"distributed, deep chain: 3.3", halfRate, lastRefusal, accepted} {
		if !strings.Contains(over, f) {
			t.Errorf("%s is not among what exceeds its bound:\n%s", f, over)
		}
	}
	if strings.Contains(over, "embedded, deep chain:") || strings.Contains(over, "ledger entries") || strings.Contains(over, "SDK") {
		t.Errorf("what holds is called exceeded:\n%s", over)
	}
}

func TestBoundsAreOfOneFigureEach(t *testing.T) {
	// A scenario that has a bound's name and another unit is another figure.
	if f := withBound(figure{Setup: distributed, Name: "two instances", Value: 17, Unit: floors}); f.Bounded {
		t.Error("a bound of another unit was applied")
	}
	if f := withBound(figure{Setup: distributed, Name: "two instances", Value: 1.26, Unit: ofBase}); f.holds() || !f.Bounded {
		t.Error("1.26 times the cost for twice the cores is within the bound")
	}
	if f := withBound(figure{Setup: embedded, Name: deepChain.name, Value: 2.2, Unit: floors}); f.holds() {
		t.Error("the embedded set-up has the bound of the distributed one")
	}
}

func TestVerdict(t *testing.T) {
	r := sample()
	r.Figures = r.figures()
	if err := r.verdict(false); err == nil || !strings.Contains(err.Error(), halfRate) {
		t.Errorf("with bounds: %v", err)
	}
	if err := r.verdict(true); err != nil {
		t.Errorf("only to look: %v", err)
	}
	r.Runs[0].Failures = map[string]int{string(delegation.DependencyDown): 2}
	if err := r.verdict(true); err == nil {
		t.Error("requests that failed are no failure")
	}
}

// A verifier that is cut off refuses too. That must not count as a received revocation, and a
// refusal because of the revocation must count.
func TestOnlyRefusalsOfTheTokenCount(t *testing.T) {
	if !knowsBetter(fmt.Errorf("wrapped: %w", &client.AccessError{Code: client.AccessInvalidToken})) {
		t.Error("a refused token was overlooked")
	}
	for _, err := range []error{nil, &client.AccessError{Code: client.AccessUnavailable}, delegation.Refuse(delegation.TokenRevoked, "", "")} {
		if knowsBetter(err) {
			t.Errorf("%v passes for a refused token", err)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(c.values); got != c.want {
			t.Errorf("median of %v is %v", c.values, got)
		}
	}
}

func TestReportIsWellFormed(t *testing.T) {
	dir := t.TempDir()
	if err := sample().write(dir, "sample"); err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	decoder := xml.NewDecoder(bytes.NewReader(read("sample.svg")))
	elements := 0
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if start, is := token.(xml.StartElement); is {
			elements++
			for _, a := range start.Attr {
				if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
					t.Errorf("%s has %s=%s", start.Name.Local, a.Name.Local, a.Value)
				}
			}
		}
	}
	if elements < 40 {
		t.Errorf("the chart has %d elements", elements)
	}
	var back report
	if err := json.Unmarshal(read("sample.json"), &back); err != nil || len(back.Runs) != 4 || len(back.Figures) == 0 {
		t.Errorf("%d runs and %d figures: %v", len(back.Runs), len(back.Figures), err)
	}
	for line := range strings.Lines(string(read("sample.md"))) {
		if strings.Contains(line, "NaN") || strings.Contains(line, "%!") {
			t.Error(line)
		}
	}
	// What runs elsewhere has neither processes nor a floor.
	far := &report{Runs: []run{{Setup: elsewhere, Scenario: "exchange", Seconds: 1}}}
	if text := string(far.chart()) + string(far.markdown("far")); strings.Contains(text, "NaN") {
		t.Errorf("%s", text)
	}
	if len(far.figures()) > 0 {
		t.Error("a ratio without a floor")
	}
}

func TestParseSteps(t *testing.T) {
	steps := parseSteps(`# HELP deputy_exchange_step_seconds Time of each step.
deputy_exchange_step_seconds_bucket{step="mint",le="2.5e-05"} 3
deputy_exchange_step_seconds_sum{step="mint"} 0.25
deputy_exchange_step_seconds_count{step="mint"} 100
deputy_exchange_step_seconds_count{step="front"} 7
`)
	if got := meanSteps(map[string]step{"mint": {50, 0.05}, "front": {7, 0}}, steps); len(got) != 1 || math.Abs(got["mint"]-4) > 1e-9 {
		t.Errorf("%v", got)
	}
}

func TestWishesAreTwenty(t *testing.T) {
	seen := make(map[delegation.Reason]int)
	for i := range 40 {
		seen[wished(i).want]++
	}
	for _, w := range wishes {
		if seen[w.want] != 2*w.of {
			t.Errorf("%q comes %d times of forty", w.want, seen[w.want])
		}
	}
	if _, err := expected(delegation.TokenRevoked, nil); err == nil {
		t.Error("a grant of what must be refused is no fault")
	}
	if _, err := expected(delegation.TokenRevoked, delegation.Refuse(delegation.ScopeExceedsParent, "", "no")); err == nil {
		t.Error("another reason is no fault")
	}
	if outcome, err := expected(delegation.TokenRevoked, delegation.Refuse(delegation.TokenRevoked, "", "no")); err != nil || outcome != "token_revoked" {
		t.Errorf("%q, %v", outcome, err)
	}
}
