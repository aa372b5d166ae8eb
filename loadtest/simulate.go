package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"deputy.example/deputy/loadtest/sim"
)

type simulating struct {
	Scenario string `arg:"" enum:"needs,steady,ramp,tenant,storm,cutoff" default:"steady" help:"needs, steady, ramp, tenant, storm or cutoff. Default ${default}."`
	sim.Plan `embed:""`
	Costs    string `type:"existingfile" placeholder:"FILE" help:"What each step costs, as in loadtest/sim/costs.json, which is the default."`
	JSON     string `placeholder:"FILE" help:"Write the result as JSON, too."`
	SVG      string `placeholder:"FILE" help:"Draw what happened over time."`
}

// Help is shown below the flags' summary.
func (simulating) Help() string {
	return `No process is started: everything happens in virtual time, and the same seed gives the same bytes.

  loadtest simulate needs                     what a million agents need, by the model
  loadtest simulate                           their steady state
  loadtest simulate ramp                      what saturates first in one deployment
  loadtest simulate tenant --instances 4      the ceiling of one tenant
  loadtest simulate storm --struck 1          10,000 revocations of the largest tenant, then all feeds restart
  loadtest simulate storm --depth 1           the same with relays between instances and verifiers
  loadtest simulate cutoff --svg cutoff.svg   a region loses the databases

docs/capacity.md lists what is left out, and which costs are assumptions. Exit code 1: a rule that must hold was broken.`
}

// Run reports progress on standard error and prints tables in Markdown.
func (s simulating) Run(stdout io.Writer) error {
	costs := sim.DefaultCosts()
	if s.Costs != "" {
		f, err := os.Open(s.Costs)
		if err != nil {
			return err
		}
		defer f.Close()
		if costs, err = sim.ReadCosts(f); err != nil {
			return fmt.Errorf("%s: %w", s.Costs, err)
		}
	}
	result, err := sim.Run(s.Scenario, s.Plan, costs, func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	})
	if err != nil {
		return err
	}
	if err := result.Print(stdout); err != nil {
		return err
	}
	for file, write := range map[string]func(io.Writer) error{s.JSON: result.JSON, s.SVG: result.Chart} {
		if file == "" {
			continue
		}
		if err := writeFile(file, write); err != nil {
			return err
		}
	}
	if len(result.Broken) > 0 {
		return errors.New("something that must hold did not")
	}
	return nil
}

func writeFile(name string, write func(io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
