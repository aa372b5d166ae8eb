package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// report is everything that one command measured, and on what.
type report struct {
	Command    string      `json:"command"`
	At         time.Time   `json:"at"`
	Commit     string      `json:"commit"`
	Machine    machine     `json:"machine"`
	AtOnce     int         `json:"at_once"`
	Rounds     int         `json:"rounds"`
	Runs       []run       `json:"closed_loop,omitempty"`
	Open       []run       `json:"open_loop,omitempty"`
	Storms     []storm     `json:"revocation_storms,omitempty"`
	ColdStarts []coldStart `json:"cold_starts,omitempty"`
	SDK        []sdk       `json:"sdk,omitempty"`
	Others     []figure    `json:"others,omitempty"` // scales and idle times
	Figures    []figure    `json:"figures"`
}

// machine is what the figures hold for.
type machine struct {
	Model    string `json:"model"`
	Cores    int    `json:"cores"`
	MemoryGB int    `json:"memory_gb"`
	Kernel   string `json:"kernel"`
	Go       string `json:"go"`
	Load     string `json:"load_before"` // average over the last minute, before anything was started
}

func thisMachine() machine {
	first := func(file, key string) string {
		text, _ := os.ReadFile(file)
		for line := range strings.Lines(string(text)) {
			if name, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == key {
				return strings.TrimSpace(value)
			}
		}
		return "unknown"
	}
	m := machine{Model: first("/proc/cpuinfo", "model name"), Cores: runtime.NumCPU(), Kernel: "unknown", Go: runtime.Version(), Load: "unknown"}
	if kb, err := strconv.Atoi(strings.TrimSuffix(first("/proc/meminfo", "MemTotal"), " kB")); err == nil {
		m.MemoryGB = int(math.Round(float64(kb) / (1 << 20)))
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(text))
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load, _, _ = strings.Cut(string(text), " ")
	}
	return m
}

// commit names the measured commit, and marks one with later changes.
func commit(root string) string {
	git := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir = root
		out, err := cmd.Output()
		if err != nil {
			return "unknown"
		}
		return strings.TrimSpace(string(out))
	}
	name := git("rev-parse", "--short=12", "HEAD")
	if git("status", "--porcelain", "--untracked-files=no") != "" {
		name += " with changes"
	}
	return name
}

// write leaves the report in three forms, under the same name.
func (r *report) write(dir, name string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r.Figures = r.figures()
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	for extension, content := range map[string][]byte{".json": append(text, '\n'), ".md": r.markdown(name), ".svg": r.chart()} {
		if err := os.WriteFile(filepath.Join(dir, name+extension), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (r *report) markdown(name string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s\n\n`%s`, %s, commit %s.\n", name, r.Command, r.At.UTC().Format(time.DateTime), r.Commit)
	fmt.Fprintf(&b, "%d × %s, %d GB, Linux %s, %s; load average before: %s. %d at once, medians of %d rounds.\n\n",
		r.Machine.Cores, r.Machine.Model, r.Machine.MemoryGB, r.Machine.Kernel, r.Machine.Go, r.Machine.Load, r.AtOnce, r.Rounds)
	fmt.Fprintf(&b, "![latency and CPU](%s.svg)\n\n## Figures\n\n| set-up | figure | median | bound | |\n|---|---|---|---|---|\n", name)
	for _, f := range r.Figures {
		limit, verdict := "", ""
		if f.Bounded {
			limit, verdict = fmt.Sprintf("%.3g", f.Bound), "holds"
			if !f.holds() {
				verdict = "**exceeded**"
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %.3g %s | %s | %s |\n", f.Setup, f.Name, f.Value, f.Unit, limit, verdict)
	}
	r.table(&b, "Closed loop", r.Runs)
	r.table(&b, "Open loop, latency from the intended time", r.Open)
	r.steps(&b)
	for _, s := range r.Storms {
		fmt.Fprintf(&b, "\nRevocation storm, %s, round %d: %d revocations at %.0f/s beside %d exchanges (p99 %.1f ms); call p50 %.1f p99 %.1f ms; "+
			"%d verifiers refused after p50 %.2f p99 %.2f max %.2f ms; accepted after the acknowledgement: %d.\n", s.Setup, s.Round, s.Revocations, s.PerSecond, s.Exchanges,
			s.Exchange.P99, s.Revoke.P50, s.Revoke.P99, s.Verifiers, s.Refusal.P50, s.Refusal.P99, s.Refusal.Max, s.Accepted)
	}
	for _, c := range r.ColdStarts {
		fmt.Fprintf(&b, "\nCold start, %s, round %d: ready %.0f ms, first grant %.0f ms, first hundred p50 %.1f p99 %.1f ms.\n", c.Setup, c.Round, c.Ready, c.FirstGrant, c.First.P50, c.First.P99)
	}
	return b.Bytes()
}

// table has a line for each set-up and scenario.
func (r *report) table(b *bytes.Buffer, title string, runs []run) {
	if len(runs) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## %s\n\nCPU in ms per exchange; latency in ms.\n\n", title)
	b.WriteString("| set-up | scenario | exchanges/s | p50 | p99 | p99.9 | CPU by process | all | floor | ratio | generator | failures |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, group := range grouped(runs) {
		of := func(value func(run) float64) float64 { return medianOf(group, value) }
		var processes []string
		for _, name := range slices.Sorted(maps.Keys(group[0].CPU)) {
			processes = append(processes, fmt.Sprintf("%s %.3f", name, of(func(m run) float64 { return m.CPU[name] })))
		}
		failed := 0
		for _, m := range group {
			for _, n := range m.Failures {
				failed += n
			}
		}
		fmt.Fprintf(b, "| %s | %s | %.0f | %.1f | %.1f | %.1f | %s | %.3f | %.3f | %.2f | %.3f | %d |\n", group[0].Setup, group[0].Scenario,
			of(run.perSecond), of(func(m run) float64 { return m.Latency.P50 }), of(func(m run) float64 { return m.Latency.P99 }),
			of(func(m run) float64 { return m.Latency.P999 }), strings.Join(processes, ", "), of(run.total),
			of(func(m run) float64 { return m.Floor }), of(run.ratio), of(func(m run) float64 { return m.Client }), failed)
	}
}

// exchangeSteps in their order.
var exchangeSteps = []string{"front", "admit", "verify", "plan", "authorize", "record", "mint"}

// steps are the mean wall times of deputy_exchange_step_seconds: of a call, which waits for others
// too.
func (r *report) steps(b *bytes.Buffer) {
	if len(r.Runs) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## Steps\n\nMean wall time of each step in ms, waiting for others included.\n\n| set-up | scenario | %s |\n|---|---|%s\n",
		strings.Join(exchangeSteps, " | "), strings.Repeat("---|", len(exchangeSteps)))
	for _, group := range grouped(r.Runs) {
		fmt.Fprintf(b, "| %s | %s |", group[0].Setup, group[0].Scenario)
		for _, name := range exchangeSteps {
			fmt.Fprintf(b, " %.2f |", medianOf(group, func(m run) float64 { return m.Steps[name] }))
		}
		b.WriteString("\n")
	}
}

// grouped puts the rounds of a set-up's scenario together, in the order in which they came first.
func grouped(runs []run) (groups [][]run) {
	for _, m := range runs {
		at := slices.IndexFunc(groups, func(g []run) bool { return g[0].Setup == m.Setup && g[0].Scenario == m.Scenario })
		if at < 0 {
			groups = append(groups, []run{m})
		} else {
			groups[at] = append(groups[at], m)
		}
	}
	return groups
}

func medianOf(runs []run, value func(run) float64) float64 {
	values := make([]float64, len(runs))
	for i, m := range runs {
		values[i] = value(m)
	}
	return median(values)
}
