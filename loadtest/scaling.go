package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"deputy.example/deputy/server/fill"
)

// scaling are the questions whether the cost of an exchange stays flat while something else grows.
type scaling struct {
	common
	Only        []string `placeholder:"NAME,…" help:"Run only these: depth, relationships, ledger, tenants, revocations, instances. Default all."`
	Tuples      int      `default:"100000" placeholder:"N" help:"Relationships, against 1,000. Default ${default}."`
	Entries     int      `default:"1000000" placeholder:"N" help:"Ledger entries, against 10,000. Default ${default}."`
	Tenants     int      `default:"1000" placeholder:"N" help:"Tenants, against 1. Default ${default}."`
	Revocations int      `default:"100000" placeholder:"N" help:"Live revocations, against none. Default ${default}."`
}

// Run compares each large world with its small base. Both exist side by side and are measured in
// turn.
func (a scaling) Run(ctx context.Context, stdout io.Writer) error {
	names := []string{"depth", "relationships", "ledger", "tenants", "revocations", "instances"}
	for _, name := range a.Only {
		if !slices.Contains(names, name) {
			return fmt.Errorf("--only: %q is none of %s", name, strings.Join(names, ", "))
		}
	}
	return a.measured(ctx, stdout, "scale", func(ctx context.Context, b *bench, programs binaries, r *report) error {
		for _, kind := range a.Setups {
			c := &comparison{scaling: a, bench: b, programs: programs, report: r, kind: kind}
			for _, question := range []struct {
				name string
				ask  func(context.Context) error
			}{
				{"depth", c.depth}, {"relationships", c.relationships}, {"ledger", c.ledger}, {"tenants", c.tenants},
				{"revocations", c.revocations}, {"instances", c.instances},
			} {
				if len(a.Only) > 0 && !slices.Contains(a.Only, question.name) {
					continue
				}
				if err := question.ask(ctx); err != nil {
					return fmt.Errorf("%s, %s: %w", kind, question.name, err)
				}
			}
		}
		return nil
	})
}

// comparison measures in one set-up.
type comparison struct {
	scaling
	*bench
	programs binaries
	report   *report
	kind     string
}

func (c *comparison) plan() plan { return plan{kind: c.kind, users: c.Users, tenants: 1} }

// figure is what the scaled cost is in that of the base, both as ratios to the floors that were
// measured with them.
func (c *comparison) figure(name string, base, scaled []run) {
	of := func(runs []run) float64 { return medianOf(runs, run.ratio) }
	f := withBound(figure{Setup: c.kind, Name: name, Value: of(scaled) / of(base), Unit: ofBase})
	c.report.Others = append(c.report.Others, f)
	fmt.Fprintf(c.progress, "%s, %s: %.2f %s\n", c.kind, name, f.Value, f.Unit)
}

// measureIn is the deep chain in one of the worlds, under a name of its own.
func (c *comparison) measureIn(ctx context.Context, s *setup, name string, round int, on ...*session) (run, error) {
	renamed := deepChain
	renamed.name = name
	return c.closed(ctx, s, renamed, round, on...)
}

// compare measures a base and a scaled world in turn.
func (c *comparison) compare(ctx context.Context, name, of, to string, base, scaled plan) (err error) {
	small, err := open(ctx, c.programs, base)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, small.close()) }()
	began := time.Now()
	large, err := open(ctx, c.programs, scaled)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, large.close()) }()
	fmt.Fprintf(c.progress, "%s, %s: made in %v\n", c.kind, to, time.Since(began).Round(time.Second))
	var before, after []run
	for round := range c.Rounds {
		b, err := c.measureIn(ctx, small, of, round)
		if err != nil {
			return err
		}
		s, err := c.measureIn(ctx, large, to, round)
		if err != nil {
			return err
		}
		before, after = append(before, b), append(after, s)
	}
	c.figure(name, before, after)
	return nil
}

const deepest = 8

func (c *comparison) depth(ctx context.Context) (err error) {
	s, err := open(ctx, c.programs, c.plan())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var runs [deepest + 1][]run
	for round := range c.Rounds {
		for n := 1; n <= deepest; n++ {
			r, err := c.closed(ctx, s, ofDepth(n), round)
			if err != nil {
				return err
			}
			runs[n] = append(runs[n], r)
		}
	}
	for n := 2; n <= deepest; n++ {
		c.figure(fmt.Sprintf("chain depth %d against 1", n), runs[1], runs[n])
	}
	return nil
}

func (c *comparison) relationships(ctx context.Context) error {
	scaled := c.plan()
	scaled.idle = max(0, c.Tuples-len(tuplesOfAgents()))/len(tuplesOfUsers(0, 1)) - c.Users
	if scaled.idle <= 0 {
		return fmt.Errorf("%d relationships are no more than the base has", c.Tuples)
	}
	return c.compare(ctx, "relationships", "1,000 relationships", fmt.Sprintf("%d relationships", c.Tuples), c.plan(), scaled)
}

func (c *comparison) ledger(ctx context.Context) error {
	filled := func(entries int) plan {
		p := c.plan()
		p.before = func(ctx context.Context, dsn, tenant string) error {
			_, err := fill.Run(ctx, dsn, fill.Options{Tenant: tenant, Entries: entries, Seed: 1, Progress: c.written("entries", entries)})
			return err
		}
		return p
	}
	const few = 10_000
	return c.compare(ctx, "ledger entries", fmt.Sprintf("%d entries", few), fmt.Sprintf("%d entries", c.Entries), filled(few), filled(c.Entries))
}

func (c *comparison) revocations(ctx context.Context) error {
	scaled := c.plan()
	scaled.before = func(ctx context.Context, dsn, tenant string) error {
		return fill.Revoke(ctx, dsn, tenant, c.Revocations, c.written("revocations", c.Revocations))
	}
	return c.compare(ctx, "live revocations", "no revocations", fmt.Sprintf("%d revocations", c.Revocations), c.plan(), scaled)
}

// written reports the progress of a filling.
func (c *comparison) written(what string, all int) func(int) {
	told := time.Now()
	return func(n int) {
		if time.Since(told) > time.Second {
			told = time.Now()
			fmt.Fprintf(c.progress, "%d of %d %s written\n", n, all, what)
		}
	}
}

// tenants compares one tenant with many of which one is busy, and with many that all are. Their
// worlds are small, so that there is room for all of them.
func (c *comparison) tenants(ctx context.Context) (err error) {
	p := c.plan()
	p.users = 2
	small, err := open(ctx, c.programs, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, small.close()) }()
	p.tenants = c.Tenants
	large, err := open(ctx, c.programs, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, large.close()) }()
	var base, one, all []run
	for round := range c.Rounds {
		for _, m := range []struct {
			name  string
			in    *setup
			busy  int
			among *[]run
		}{{"1 tenant", small, 1, &base}, {fmt.Sprintf("%d tenants, one busy", c.Tenants), large, 1, &one}, {fmt.Sprintf("%d tenants, all busy", c.Tenants), large, c.Tenants, &all}} {
			on := make([]*session, m.busy)
			for t := range on {
				on[t] = m.in.session(m.in.deputies[0], t)
				if m.busy > 1 {
					on[t].connections = 1
				}
			}
			r, err := c.measureIn(ctx, m.in, m.name, round, on...)
			if err != nil {
				return err
			}
			*m.among = append(*m.among, r)
		}
	}
	for _, m := range []struct {
		name string
		in   *setup
	}{{"idle, 1 tenant", small}, {fmt.Sprintf("idle, %d tenants", c.Tenants), large}} {
		f, err := c.idle(ctx, m.in, m.name)
		if err != nil {
			return err
		}
		c.report.Others = append(c.report.Others, f)
	}
	c.figure("tenants, one busy", base, one)
	c.figure("tenants, all busy", base, all)
	return nil
}

// instances compares two that share PostgreSQL, Redis and OpenFGA with one.
func (c *comparison) instances(ctx context.Context) (err error) {
	if c.kind == embedded {
		return nil // there is only ever one
	}
	single, err := open(ctx, c.programs, c.plan())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, single.close()) }()
	double, err := open(ctx, c.programs, c.plan())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, double.close()) }()
	if err := double.addDeputy(ctx); err != nil {
		return err
	}
	var one, two []run
	for round := range c.Rounds {
		a, err := c.measureIn(ctx, single, "one instance", round)
		if err != nil {
			return err
		}
		b, err := c.measureIn(ctx, double, "two instances", round, double.session(double.deputies[0], 0), double.session(double.deputies[1], 0))
		if err != nil {
			return err
		}
		one, two = append(one, a), append(two, b)
	}
	c.figure("two instances", one, two)
	c.report.Others = append(c.report.Others, figure{
		Setup: c.kind, Name: "throughput of two instances, on the same cores", Value: medianOf(two, run.perSecond) / medianOf(one, run.perSecond), Unit: ofBase,
	})
	return nil
}
