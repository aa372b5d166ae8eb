package main

import (
	"testing"

	"github.com/alecthomas/kong"

	"deputy.example/deputy/loadtest/sim"
)

// TestSimulateDefaults: without flags the command runs the plan of the documentation.
func TestSimulateDefaults(t *testing.T) {
	var a arguments
	parser, err := kong.New(&a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse([]string{"simulate"}); err != nil {
		t.Fatal(err)
	}
	if a.Simulate.Plan != sim.DefaultPlan() || a.Simulate.Scenario != "steady" {
		t.Errorf("%+v", a.Simulate)
	}
}
