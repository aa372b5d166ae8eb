package sim

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// small is one deployment that a test simulates in a moment.
func small() Plan {
	p := DefaultPlan()
	p.Rate, p.Verifiers, p.Tenants, p.Databases, p.Instances, p.Live, p.Storm = 2000, 600, 30, 1, 3, 10_000, 500
	p.Cores, p.DatabaseCores, p.OpenFGACores = 2, 2, 2 // a ramp ends soon
	p.Duration = 3 * time.Second
	return p
}

func run(t *testing.T, scenario string, p Plan) *Result {
	t.Helper()
	return runWith(t, scenario, p, DefaultCosts())
}

func runWith(t *testing.T, scenario string, p Plan, c Costs) *Result {
	t.Helper()
	r, err := Run(scenario, p, c, func(string, ...any) {})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSameSeedSameBytes(t *testing.T) {
	for _, scenario := range []string{"needs", "steady", "ramp", "storm", "cutoff"} {
		bytesOf := func(seed uint64) string {
			p := small()
			p.Seed, p.Rate, p.Verifiers = seed, 800, 200
			r := run(t, scenario, p)
			var b bytes.Buffer
			if err := errors.Join(r.Print(&b), r.JSON(&b), r.Chart(&b)); err != nil {
				t.Fatal(err)
			}
			return b.String()
		}
		one := bytesOf(1)
		if one != bytesOf(1) {
			t.Errorf("%s: the same seed gives other bytes", scenario)
		}
		if one == bytesOf(2) {
			t.Errorf("%s: another seed gives the same bytes", scenario)
		}
	}
}

// TestWhatMustHold runs every scenario: no rule that the observer checks is broken, also not where
// a proxy delays every echo.
func TestWhatMustHold(t *testing.T) {
	for _, scenario := range []string{"steady", "ramp", "storm", "cutoff"} {
		holdsTrue(t, scenario, small())
	}
	delayed := small()
	delayed.holds = 4 * time.Second
	holdsTrue(t, "cutoff", delayed)
}

func holdsTrue(t *testing.T, scenario string, p Plan) {
	t.Helper()
	if r := run(t, scenario, p); len(r.Broken) > 0 {
		t.Errorf("%s, echoes delayed by %s: %s", scenario, p.holds, strings.Join(r.Broken, "; "))
	}
}

// TestModelAgrees compares the model's saturation point with the simulation's, for each resource:
// within 10 %.
func TestModelAgrees(t *testing.T) {
	plan := func(change func(*Plan)) Plan {
		p := DefaultPlan()
		p.Databases, p.Rate, p.Verifiers, p.Tenants, p.Skew = 1, 4000, 1000, 200, 0
		change(&p)
		return p
	}
	for resource, p := range map[string]Plan{
		resourceNames[instanceCPU]: plan(func(p *Plan) { p.Instances, p.Cores = 3, 2 }),
		resourceNames[databaseCPU]: plan(func(p *Plan) { p.DatabaseCores = 3 }),
		resourceNames[openfgaCPU]:  plan(func(p *Plan) { p.OpenFGACores = 2 }),
		resourceNames[redisCPU]:    plan(func(p *Plan) { p.RedisShards, p.Tenants = 1, 20 }),
		resourceNames[headLock]:    plan(func(p *Plan) { p.Skew = 1.2 }),
	} {
		costs := DefaultCosts()
		if resource == resourceNames[redisCPU] {
			costs.RedisCommand.Value *= 10 // or it would take a larger deployment than a test should simulate
		}
		r := runWith(t, "ramp", p, costs)
		s := r.Saturation[0]
		t.Logf("%+v", s)
		if s.Resource != resource || s.By != resource || !near(s.Rate, s.Predicted, 0.1) {
			t.Errorf("want %s: %+v", resource, s)
		}
	}
	for _, s := range run(t, "tenant", DefaultPlan()).Saturation {
		if s.Resource != resourceNames[headLock] || !near(s.Rate, s.Predicted, 0.1) {
			t.Errorf("a tenant alone: %+v", s)
		}
	}
	// The control: a model whose rows cost nothing is noticed.
	wrong := DefaultCosts()
	wrong.RowDatabase.Value /= 100
	wrong.RowInstance.Value /= 100
	alone := DefaultPlan()
	alone.Tenants = 1
	if s := run(t, "tenant", DefaultPlan()).Saturation[1]; near(s.Rate, Ceiling(alone, wrong), 0.1) {
		t.Error("a wrong model agrees")
	}
}

// TestNeedsGrow holds the model to what every plan relies on: more load never needs less.
func TestNeedsGrow(t *testing.T) {
	c := DefaultCosts()
	p := DefaultPlan()
	before := Model(p, c)
	p.Rate, p.Verifiers = 2*p.Rate, 2*p.Verifiers
	after := Model(p, c)
	if after.ForExchanges <= before.ForExchanges || after.ForWatchers != 2*before.ForWatchers || after.Databases <= before.Databases ||
		after.OpenFGACores <= before.OpenFGACores || after.RedisShards <= before.RedisShards {
		t.Errorf("%+v\n%+v", before, after)
	}
	if before.Ceiling < 6*before.WithoutGroups || before.Largest > before.Ceiling {
		t.Errorf("%+v", before)
	}
}

// TestStorm: every verifier receives everything well within a second, also through relays and
// without Redis.
func TestStorm(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Plan)
		most   float64
	}{
		"direct":  {func(*Plan) {}, 100},
		"relays":  {func(p *Plan) { p.Depth, p.Degree = 2, 10 }, 100},
		"no wake": {func(p *Plan) { p.NoWake = true }, 400},
	} {
		p := small()
		c.change(&p)
		r := run(t, "storm", p)
		storm := r.Rows[1]
		if storm.NewsP50 <= 0 || storm.NewsMax > c.most || storm.NewsP50 > storm.NewsP99 || storm.NewsP99 > storm.NewsMax {
			t.Errorf("%s: %+v", name, storm)
		}
		if back := r.Notes[len(r.Notes)-1]; !strings.HasPrefix(back.What, "restart: ") || back.Seconds <= 0 || back.Seconds > bound.Seconds() {
			t.Errorf("%s: %+v", name, r.Notes)
		}
	}
}

// TestCutOff: a third refuses within ten seconds, no other verifier does, and all come back.
func TestCutOff(t *testing.T) {
	r := run(t, "cutoff", small())
	if len(r.Notes) != 2 || r.Notes[0].Seconds > bound.Seconds()+0.1 || r.Notes[0].Seconds < 8 {
		t.Errorf("%+v", r.Notes)
	}
	absorbed, recovered := r.Rows[2], r.Rows[len(r.Rows)-1]
	if math.Abs(absorbed.Accepting-2.0/3) > 0.001 || absorbed.Unavailable > 0.001 {
		t.Errorf("%+v", absorbed)
	}
	if recovered.Accepting != 1 || recovered.Unavailable > 0 {
		t.Errorf("%+v", recovered)
	}
}

func TestChartIsXML(t *testing.T) {
	var b bytes.Buffer
	if err := run(t, "steady", small()).Chart(&b); err != nil {
		t.Fatal(err)
	}
	lines := 0
	for d := xml.NewDecoder(&b); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == "polyline" {
			lines++
		}
	}
	if lines != resources+5 {
		t.Errorf("%d lines", lines)
	}
}

func TestPlanIsChecked(t *testing.T) {
	for flag, change := range map[string]func(*Plan){
		"--rate":      func(p *Plan) { p.Rate = math.NaN() },
		"--tenants":   func(p *Plan) { p.Tenants = 3 },
		"--spread":    func(p *Plan) { p.Spread = 13 },
		"--simulated": func(p *Plan) { p.Simulated = 9 },
		"--misses":    func(p *Plan) { p.Misses = 1.1 },
	} {
		p := DefaultPlan()
		change(&p)
		if _, err := Run("steady", p, DefaultCosts(), nil); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
	if _, err := Run("picnic", DefaultPlan(), DefaultCosts(), nil); err == nil {
		t.Error("any scenario will do")
	}
}

func TestCostsAreChecked(t *testing.T) {
	for broken, want := range map[string]string{
		strings.Replace(string(defaultCosts), `"mint"`, `"mnit"`, 1):                            "mnit",
		strings.Replace(string(defaultCosts), `"value": 0.025`, `"value": 0`, 1):                "mint",
		strings.Replace(string(defaultCosts), `"value": 1, "unit": "ms"`, `"value": 1`, 1):      "flush",
		strings.Replace(string(defaultCosts), `"source": "ES256 signature"`, `"source": ""`, 1): "mint",
		"{}": "front",
	} {
		if _, err := ReadCosts(strings.NewReader(broken)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %s: %v", want, err)
		}
	}
}

// TestBuiltAsSimulated compares the constants with those of Deputy: change both together.
func TestBuiltAsSimulated(t *testing.T) {
	for file, lines := range map[string][]string{
		"server/internal/exchange/places.go": {`MaxWatchers = 2000\b`},
		"server/internal/ledger/ledger.go":   {`c\.MaxBatch = 256\b`, `c\.MaxQueue = 4096\b`},
		"server/internal/exchange/follow.go": {`tailEvery +\= 250 \* time\.Millisecond`},
		"client/feed.go":                     {`markInterval +\= time\.Second`, `maxFeedPause +\= 2 \* time\.Second`},
		"client/verify.go":                   {`maxMaxStaleness +\= 10 \* time\.Second`},
		"client/client.go":                   {`c\.attempts = 4\b`, `min\(100\*time\.Millisecond<<min\(attempt-1, 10\), 2\*time\.Second\)`},
	} {
		text, err := os.ReadFile("../../" + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range lines {
			if !regexp.MustCompile(line).Match(text) {
				t.Errorf("%s does not say %s any more", file, line)
			}
		}
	}
}
