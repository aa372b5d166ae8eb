package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// common are the flags of the commands that start servers of their own.
type common struct {
	Setups   []string `default:"embedded,distributed" enum:"embedded,distributed" help:"Set-ups to start. Default ${default}."`
	Requests int      `default:"2000" placeholder:"N" help:"Exchanges of one measurement. Default ${default}."`
	AtOnce   int      `default:"64" placeholder:"N" help:"Number of concurrent requests. Default ${default}."`
	Rounds   int      `default:"3" placeholder:"N" help:"Measurements of each kind; the median counts. Default ${default}."`
	Users    int      `default:"60" placeholder:"N" help:"People whose tokens start the chains. 60 make about a thousand relationships. Default ${default}."`
	Out      string   `default:"loadtest/results" placeholder:"FOLDER" help:"Folder of the report. Default ${default}."`
	Name     string   `placeholder:"NAME" help:"Name of the report's files. Default: the command and the time."`
	Binaries string   `placeholder:"FOLDER" type:"existingdir" help:"Measure deputyd and deputy-target from there instead of building them."`
	NoBounds bool     `help:"Report only: no bound makes the command fail."`
}

type running struct {
	common
	Scenarios []string `placeholder:"NAME,…" help:"Run only these scenarios: deep-chain, assertions, fan-out, batch, mixed, half-rate, storm, cold-start, sdk, idle. Default all."`
	Profile   bool     `help:"Also write a CPU profile of Deputy, and of OpenFGA where it has a process of its own, under the deep chain. Deputy then runs with a profiler, whose cost is in the figures."`
	Storm     int      `default:"100" placeholder:"N" help:"Revocations of a storm. Default ${default}."`
}

// Run measures all scenarios in all set-ups, round by round.
func (a running) Run(ctx context.Context, stdout io.Writer) error {
	for _, name := range a.Scenarios {
		if !slices.Contains(scenarioNames, name) {
			return fmt.Errorf("--scenarios: %q is none of %s", name, strings.Join(scenarioNames, ", "))
		}
	}
	if slices.Contains(a.Scenarios, "half-rate") && !a.wants("deep-chain") {
		return errors.New("--scenarios: half-rate must come with deep-chain, which measures the whole rate")
	}
	return a.measured(ctx, stdout, "run", func(ctx context.Context, b *bench, programs binaries, r *report) error {
		for _, kind := range a.Setups {
			s, err := open(ctx, programs, plan{kind: kind, users: a.Users, tenants: 1, profiled: a.Profile})
			if err != nil {
				return err
			}
			if err := errors.Join(a.all(ctx, b, s, r), s.close()); err != nil {
				return fmt.Errorf("%s: %w", kind, err)
			}
		}
		return nil
	})
}

// scenarioNames are what --scenarios takes.
var scenarioNames = []string{"deep-chain", "assertions", "fan-out", "batch", "mixed", "half-rate", "storm", "cold-start", "sdk", "idle"}

// wants returns whether a scenario was selected.
func (a running) wants(name string) bool {
	return len(a.Scenarios) == 0 || slices.Contains(a.Scenarios, name)
}

// all runs every scenario once in each round, so that drift falls on all of them.
func (a running) all(ctx context.Context, b *bench, s *setup, r *report) error {
	var saturation []float64
	for round := range a.Rounds {
		for _, c := range []struct {
			flag string
			scenario
		}{
			{"deep-chain", deepChain}, {"assertions", assertions}, {"fan-out", fanOut}, {"batch", batch}, {"mixed", mixed},
		} {
			if !a.wants(c.flag) {
				continue
			}
			measured, err := b.closed(ctx, s, c.scenario, round)
			if err != nil {
				return err
			}
			if c.name == deepChain.name {
				saturation = append(saturation, measured.perSecond())
			}
		}
		if a.wants("storm") {
			measured, err := b.revocationStorm(ctx, s, round, a.Storm)
			if err != nil {
				return err
			}
			r.Storms = append(r.Storms, measured)
		}
		if a.wants("cold-start") {
			measured, err := b.coldStart(ctx, s, round)
			if err != nil {
				return err
			}
			r.ColdStarts = append(r.ColdStarts, measured)
		}
		if a.wants("sdk") {
			measured, err := b.verify(ctx, s, round)
			if err != nil {
				return err
			}
			r.SDK = append(r.SDK, measured)
		}
	}
	if len(saturation) > 0 && a.wants("half-rate") {
		for round := range a.Rounds {
			measured, err := b.atHalf(ctx, s, round, median(saturation)/2)
			if err != nil {
				return err
			}
			r.Open = append(r.Open, measured)
		}
	}
	if a.wants("idle") {
		f, err := b.idle(ctx, s, "idle")
		if err != nil {
			return err
		}
		r.Others = append(r.Others, f)
	}
	if a.Profile {
		return a.profile(ctx, b, s)
	}
	return nil
}

// atHalf is the deep chain at half of the rate that the target can do at most.
func (b *bench) atHalf(ctx context.Context, s *setup, round int, rate float64) (run, error) {
	c := deepChain
	c.name = fmt.Sprintf("%s at half of the rate", c.name)
	before := len(b.runs)
	measured, err := b.pair(ctx, s, c, round, []*session{s.session(s.deputies[0], 0)}, func(r *recorder, do operation) {
		openLoop(ctx, r, schedule{rate: rate, requests: b.requests, atOnce: 512}, do)
	})
	b.runs = b.runs[:before] // it has a table of its own
	measured.Rate = rate
	return measured, err
}

// measured does what all measuring commands have in common: it builds, starts the floor, reports,
// and fails when a bound is exceeded.
func (a common) measured(ctx context.Context, stdout io.Writer, command string, measure func(context.Context, *bench, binaries, *report) error) error {
	if a.Requests < 1 || a.AtOnce < 1 || a.Rounds < 1 || a.Users < 2 {
		return errors.New("--requests, --at-once and --rounds must be positive, --users at least 2")
	}
	r := &report{
		Command: strings.Join(append([]string{"go run ./loadtest"}, os.Args[1:]...), " "), At: time.Now(), Machine: thisMachine(), AtOnce: a.AtOnce, Rounds: a.Rounds,
	}
	root, err := repository()
	if err != nil {
		return err
	}
	r.Commit = commit(root)
	dir, err := os.MkdirTemp("", "deputy-loadtest-bin-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	programs := binariesIn(a.Binaries)
	if a.Binaries == "" {
		fmt.Fprintln(os.Stderr, "Building Deputy and OpenFGA. The first time takes some minutes.")
		programs = binariesIn(dir)
		if err := programs.build(ctx, root); err != nil {
			return err
		}
	}
	floor, err := startFloor(dir)
	if err != nil {
		return err
	}
	b := &bench{atOnce: a.AtOnce, requests: a.Requests, rounds: a.Rounds, floor: floor, progress: os.Stderr}
	measuring := measure(ctx, b, programs, r)
	floor.client.CloseIdleConnections()
	r.Runs = b.runs
	failed := errors.Join(measuring, floor.stop())
	if failed != nil && len(r.Runs)+len(r.Others) == 0 {
		return failed
	}
	name := a.Name
	if name == "" {
		name = command + "-" + r.At.UTC().Format("20060102-150405")
	}
	if err := r.write(a.Out, name); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s\n", r.markdown(name))
	fmt.Fprintln(os.Stderr, "Report:", filepath.Join(a.Out, name+".md"))
	return errors.Join(failed, r.verdict(a.NoBounds)) // what was measured before it failed is in the report
}

// verdict is an error where a bound is exceeded or a request failed that should not have.
func (r *report) verdict(noBounds bool) error {
	var wrong []string
	for _, m := range slices.Concat(r.Runs, r.Open) {
		if len(m.Failures) > 0 {
			wrong = append(wrong, fmt.Sprintf("%s, %s, round %d: failed requests: %s", m.Setup, m.Scenario, m.Round, counts(m.Failures)))
		}
	}
	for _, s := range r.Storms {
		if len(s.Failures) > 0 {
			wrong = append(wrong, fmt.Sprintf("%s, revocation storm, round %d: failed requests: %s", s.Setup, s.Round, counts(s.Failures)))
		}
	}
	for _, c := range r.ColdStarts {
		if len(c.Failures) > 0 {
			wrong = append(wrong, fmt.Sprintf("%s, cold start, round %d: failed requests: %s", c.Setup, c.Round, counts(c.Failures)))
		}
	}
	if !noBounds {
		wrong = append(wrong, exceeded(r.Figures)...)
	}
	if len(wrong) == 0 {
		return nil
	}
	return errors.New("the load test failed:\n" + strings.Join(wrong, "\n"))
}

// repository is the folder of the module that this program is part of.
func repository() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "deputy.example/deputy").Output()
	if err != nil {
		return "", fmt.Errorf("run this inside the repository: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// profile runs the deep chain once more while profilers look on, and leaves their files beside the
// report.
func (a running) profile(ctx context.Context, b *bench, s *setup) error {
	if err := os.MkdirAll(a.Out, 0o755); err != nil {
		return err
	}
	const seconds = 8
	addresses := map[string]string{"deputy": s.deputies[0].pprof}
	if s.fgaPprof != "" {
		addresses["openfga"] = s.fgaPprof
	}
	var profilers errgroup.Group
	on := s.session(s.deputies[0], 0)
	defer on.close()
	do, err := deepChain.prepare(ctx, on, 4*b.requests)
	if err != nil {
		return err
	}
	r := newRecorder()
	stop := b.showProgress(s.kind+", profile", r)
	for name, address := range addresses {
		profilers.Go(func() error {
			text, err := get(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", address, seconds))
			if err != nil {
				return fmt.Errorf("profile of %s: %w", name, err)
			}
			return os.WriteFile(filepath.Join(a.Out, fmt.Sprintf("%s-%s.pprof", s.kind, name)), text, 0o644)
		})
	}
	loop, cancel := context.WithTimeout(ctx, seconds*time.Second)
	defer cancel()
	// Should the parents not last that long, they come again.
	closedLoop(loop, r, 1<<40, b.atOnce, func(ctx context.Context, i int) (string, error) {
		return do(context.WithoutCancel(ctx), i%(4*b.requests))
	})
	stop()
	return profilers.Wait()
}
