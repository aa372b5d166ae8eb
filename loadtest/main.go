// Command loadtest measures what Deputy costs: it starts Deputy with what it depends on, drives it
// through the SDK, and reads the CPU time of every process from the operating system. It also fills
// ledgers, and measures what Deputy does with many entries. docs/performance.md explains the
// figures.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/alecthomas/kong"

	"deputy.example/deputy/server/fill"
)

type arguments struct {
	Run     running   `cmd:"" help:"Measure every scenario in both set-ups, and fail where a goal is missed."`
	Scale   scaling   `cmd:"" help:"Measure whether the cost of an exchange stays flat while chains, relationships, ledger, tenants, revocations and instances grow."`
	Against against   `cmd:"" help:"Drive a Deputy that runs elsewhere, and report latencies."`
	Floor   flooring  `cmd:"" hidden:"" help:"Be the floor that the costs are compared with."`
	Measure measuring `cmd:"" help:"Measure the queries of auditors on a ledger that was filled."`
	Fill    filling   `cmd:"" help:"Write a ledger like that of months of service. The tenant must have no entries; the database must be migrated (deputyd migrate)."`

	Simulate simulating `cmd:"" help:"Simulate a deployment past one machine: a million agents, 100,000 exchanges a second, 100,000 verifiers."`
}

type filling struct {
	DSN     string        `required:"" placeholder:"ADDRESS" help:"The database: postgres:// or sqlite:///. Never a database in service."`
	Tenant  string        `required:"" placeholder:"NAME" help:"The tenant of the ledger."`
	Entries int           `default:"1000000" placeholder:"N" help:"Number of entries. Default ${default}."`
	Seed    uint64        `default:"1" placeholder:"N" help:"Chooses everything random. Default ${default}."`
	Span    time.Duration `default:"720h" placeholder:"DURATION" help:"From the first entry to now. Default ${default}."`
}

type measuring struct {
	DSN     string `required:"" placeholder:"ADDRESS" help:"The database."`
	Tenant  string `required:"" placeholder:"NAME" help:"Whose ledger."`
	Summary string `required:"" type:"existingfile" placeholder:"FILE" help:"What fill printed."`
	Rounds  int    `default:"200" placeholder:"N" help:"Number of runs of each query. Default ${default}."`
	Seed    uint64 `default:"1" placeholder:"N" help:"Seed of the queries. Default ${default}."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	command := kong.Parse(&arguments{}, kong.Name("loadtest"), kong.BindTo(ctx, (*context.Context)(nil)),
		kong.BindTo(os.Stdout, (*io.Writer)(nil)))
	command.FatalIfErrorf(command.Run())
}

// Run measures, and prints a table.
func (m measuring) Run(ctx context.Context, stdout io.Writer) error {
	text, err := os.ReadFile(m.Summary)
	if err != nil {
		return err
	}
	var summary fill.Summary
	if err := json.Unmarshal(text, &summary); err != nil {
		return fmt.Errorf("%s: %w", m.Summary, err)
	}
	figures, err := fill.Measure(ctx, m.DSN, fill.Measuring{Tenant: m.Tenant, Summary: summary, Rounds: m.Rounds, Seed: m.Seed})
	if err != nil {
		return err
	}
	return fill.Print(stdout, figures)
}

// Run fills, reports progress on standard error and prints the summary as JSON.
func (f filling) Run(ctx context.Context, stdout io.Writer) error {
	start, told := time.Now(), time.Now()
	summary, err := fill.Run(ctx, f.DSN, fill.Options{
		Tenant: f.Tenant, Entries: f.Entries, Seed: f.Seed, Span: f.Span, Progress: func(entries int) {
			if now := time.Now(); now.Sub(told) >= time.Second || entries == f.Entries {
				told = now
				fmt.Fprintf(os.Stderr, "%d of %d entries, %.0f a second\n", entries, f.Entries, float64(entries)/now.Sub(start).Seconds())
			}
		},
	})
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(summary)
}
