package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

type reachCommand struct {
	Agent string `arg:"" help:"The agent, for instance agent:researcher."`
	Depth int    `placeholder:"N" help:"How many delegation edges to follow toward the subject, at most 8. Default: 3."`

	ledgerFlags `embed:""`
}

func (reachCommand) Help() string {
	return `Shows what an agent can do right now: the live tokens that it holds, and the tokens that it could obtain
because OpenFGA permits the exchange.

Examples:
  deputy reach agent:researcher
  deputy reach agent:researcher --depth 8 --json
  deputy contain agent:researcher --dry-run    # the tokens that a suspension would revoke`
}

// Run shows what an agent can do.
func (cmd *reachCommand) Run(a *app) error {
	agent, err := delegation.ParsePrincipal(cmd.Agent)
	if err != nil {
		return usage("the agent %v", err)
	}
	c, err := cmd.open()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Timeout)
	defer cancel()
	r, err := c.Reach(ctx, agent, cmd.Depth)
	if err != nil {
		return err
	}
	if a.json {
		return a.writeJSON(reachJSON(agent, r))
	}
	a.showReach(agent, r)
	return nil
}

type reachReport struct {
	Agent               delegation.Principal `json:"agent"`
	Time                time.Time            `json:"time"`
	Entry               uint64               `json:"entry"`
	Suspended           bool                 `json:"suspended"`
	LiveTokens          int                  `json:"live_tokens"`
	LiveBelow           int                  `json:"live_below"`
	Truncated           bool                 `json:"truncated"`
	Tokens              []entryReport        `json:"tokens"`
	Obtainable          []obtainableReport   `json:"obtainable"`
	ObtainableTruncated bool                 `json:"obtainable_truncated"`
}

type obtainableReport struct {
	Subject  delegation.Principal `json:"subject"`
	Path     []string             `json:"path"`
	Scope    delegation.Scopes    `json:"scope,omitzero"`
	Audience []string             `json:"audience,omitzero"`
}

func reachJSON(agent delegation.Principal, r *client.Reach) reachReport {
	report := reachReport{
		Agent: agent, Time: r.Time, Entry: r.Entry, Suspended: r.Suspended, LiveTokens: r.LiveTokens, LiveBelow: r.LiveBelow,
		Truncated: r.Truncated, ObtainableTruncated: r.ObtainableTruncated, Tokens: []entryReport{}, Obtainable: []obtainableReport{},
	}
	for _, e := range r.Tokens {
		report.Tokens = append(report.Tokens, entryJSON(e))
	}
	for _, o := range r.Obtainable {
		report.Obtainable = append(report.Obtainable, obtainableReport{o.Subject, names(o.Path), o.Scope, o.Audience})
	}
	return report
}

func (a *app) showReach(agent delegation.Principal, r *client.Reach) {
	p := a.stdout
	p.line("%s  %s", p.strong(string(agent)), p.faint(fmt.Sprintf("as of %s, ledger entry %d", a.when(r.Time), r.Entry)))
	if r.Suspended {
		p.line("%s every request and every token of it is refused until deputy resume", p.bad("SUSPENDED"))
	}
	p.line("")
	p.line("%s %s%s", p.strong("HOLDS NOW"), plural(r.LiveTokens, "live token"), atLeast(r.Truncated))
	for _, e := range r.Tokens {
		p.line("  for %s  #%d  %s", name(e.Subject, e, "subject"), e.Seq, e.JTI)
		if len(e.Actors) > 1 {
			p.line("      through %s", strings.Join(names(e.Actors[:len(e.Actors)-1]), ", then "))
		}
		p.line("      scope    %s", scopeAt(e))
		p.line("      expires  %s", a.when(e.Expiry))
	}
	if rest := r.LiveTokens - len(r.Tokens); rest > 0 {
		p.line("  %s", p.faint("and "+plural(rest, "older token")))
	}
	if r.LiveBelow > 0 {
		p.line("  %s derived from these%s, held by other agents", plural(r.LiveBelow, "live token"), atLeast(r.Truncated))
	}
	p.line("")
	p.line("%s %s", p.strong("COULD OBTAIN"), p.faint("by exchanges that OpenFGA permits now"))
	for _, o := range r.Obtainable {
		p.line("  for %s  by %s", o.Subject, strings.Join(names(o.Path), " → "))
		p.line("      scope     %s", orNone(o.Scope.String()))
		p.line("      audience  %s", orNone(strings.Join(o.Audience, ", ")))
	}
	switch {
	case r.ObtainableTruncated:
		p.line("  %s", p.bad("and more: not every path was followed"))
	case len(r.Obtainable) == 0:
		p.line("  nothing")
	}
}

// atLeast marks a count that stopped early.
func atLeast(truncated bool) string {
	if truncated {
		return " or more (not all were read in time)"
	}
	return ""
}
