package e2e

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestLoadtestSmoke makes loadtest measure every scenario, with so few requests that the figures
// have no meaning. The measured programs run in processes of their own.
func TestLoadtestSmoke(t *testing.T) {
	dir, loadtest := t.TempDir(), built(t, rootModule, "./loadtest")
	for _, program := range []string{built(t, rootModule, "./server/cmd/deputyd"), built(t, embeddedModule, "./cmd/deputy-target")} {
		check(t, os.Symlink(program, filepath.Join(dir, filepath.Base(program))))
	}
	run := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute) // in case it hangs
		defer cancel()
		cmd := exec.CommandContext(ctx, loadtest, append(args, "--binaries", dir, "--out", dir, "--requests", "60", "--at-once", "2", "--rounds", "1")...)
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		said, err := cmd.CombinedOutput()
		return string(said), err
	}
	if said, err := run("run", "--setups", "embedded,distributed", "--storm", "3", "--no-bounds", "--name", "smoke",
		"--scenarios", "deep-chain,assertions,fan-out,batch,mixed,half-rate,storm,cold-start,sdk"); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	text, err := os.ReadFile(filepath.Join(dir, "smoke.json"))
	check(t, err)
	var report struct {
		Runs []struct {
			Setup, Scenario string
			CPU             map[string]float64 `json:"cpu_ms_per_exchange"`
			Outcomes        map[string]int
			Failures        map[string]int
			Floor           float64 `json:"floor_cpu_ms"`
		} `json:"closed_loop"`
		Open   []any `json:"open_loop"`
		Storms []struct {
			Accepted int `json:"accepted_after_acknowledgement"`
			Unheard  int
		} `json:"revocation_storms"`
		ColdStarts []any `json:"cold_starts"`
		SDK        []any `json:"sdk"`
	}
	check(t, json.Unmarshal(text, &report))
	if len(report.Runs) != 10 || len(report.Open) != 2 || len(report.Storms) != 2 || len(report.ColdStarts) != 2 || len(report.SDK) != 2 {
		t.Errorf("scenarios are missing: %s", text)
	}
	processes := map[string][]string{"embedded": {"deputy"}, "distributed": {"deputyd", "openfga", "postgres", "redis-server"}}
	for _, r := range report.Runs {
		for _, name := range processes[r.Setup] {
			if _, counted := r.CPU[name]; !counted {
				t.Errorf("%s, %s: the CPU time of %s was not counted", r.Setup, r.Scenario, name)
			}
		}
		if len(r.CPU) != len(processes[r.Setup]) || r.Floor <= 0 || len(r.Failures) > 0 || r.Outcomes["granted"] == 0 {
			t.Errorf("%+v", r)
		}
	}
	for _, s := range report.Storms {
		if s.Accepted > 0 || s.Unheard > 0 {
			t.Errorf("%d exchanges of revoked tokens were granted, %d times a verifier did not hear of a revocation", s.Accepted, s.Unheard)
		}
	}
	// Bounds count unless they are switched off. The machine determines whether a goal is missed,
	// so the exit status is compared with the figures of the report.
	said, err := run("run", "--setups", "embedded", "--scenarios", "batch", "--name", "bounded")
	text, readErr := os.ReadFile(filepath.Join(dir, "bounded.json"))
	check(t, readErr)
	var judged struct {
		Figures []struct {
			Setup, Name  string
			Value, Bound float64
			Bounded      bool
		}
	}
	check(t, json.Unmarshal(text, &judged))
	bounds, missed := 0, 0
	for _, f := range judged.Figures {
		if !f.Bounded {
			continue
		}
		bounds++
		if f.Value > f.Bound {
			missed++
			if !strings.Contains(said, f.Setup+", "+f.Name+":") {
				t.Errorf("%s, %s: a missed goal is not named:\n%s", f.Setup, f.Name, said)
			}
		}
	}
	if bounds == 0 || (err != nil) != (missed > 0) {
		t.Errorf("%d of %d goals are missed, and the command ends with %v\n%s", missed, bounds, err, said)
	}
}

// raced reports whether this test binary was built with the race detector.
func raced() bool {
	info, read := debug.ReadBuildInfo()
	return read && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
