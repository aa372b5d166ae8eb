package sim

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// JSON writes the result with everything that went into it.
func (r *Result) JSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}

// Print writes the result as tables in Markdown.
func (r *Result) Print(w io.Writer) error {
	var b strings.Builder
	if r.Needs != nil {
		r.Needs.print(&b, &r.Plan)
		r.Costs.print(&b)
	}
	if len(r.Rows) > 0 {
		fmt.Fprintf(&b, "%.1f %% of the load, %d events.\n\n", 100*r.Simulated, r.Events)
		r.calls(&b)
		if r.Plan.Verifiers > 0 && r.Scenario != "ramp" && r.Scenario != "tenant" {
			r.feed(&b)
		}
	}
	if len(r.Saturation) > 0 {
		fmt.Fprint(&b, "\n| what | saturates first | exchanges/s | predicted first | at |\n|---|---|---|---|---|\n")
		for _, s := range r.Saturation {
			fmt.Fprintf(&b, "| %s | %s | %.0f | %s | %.0f |\n", s.Of, s.Resource, s.Rate, s.By, s.Predicted)
		}
	}
	if len(r.Notes) > 0 {
		b.WriteString("\n")
	}
	for _, n := range r.Notes {
		if n.Seconds > 0 {
			fmt.Fprintf(&b, "- %s: %.2f s\n", n.What, n.Seconds)
		} else {
			fmt.Fprintf(&b, "- %s\n", n.What)
		}
	}
	for _, broken := range r.Broken {
		fmt.Fprintf(&b, "\n**Broken:** %s\n", broken)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Result) calls(b *strings.Builder) {
	b.WriteString("| phase | calls/s | exchanges/s | unavailable | p50 ms | p99 ms |")
	for _, name := range resourceNames {
		b.WriteString(" " + name + " |")
	}
	b.WriteString(" rows a transaction | of the largest |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, row := range r.Rows {
		fmt.Fprintf(b, "| %s | %.0f | %.0f | %.2f %% | %.1f | %.1f |", row.Phase, row.Calls, row.Entries, 100*row.Unavailable, row.P50, row.P99)
		for _, name := range resourceNames {
			fmt.Fprintf(b, " %.0f %% |", 100*row.Demand[name])
		}
		fmt.Fprintf(b, " %.1f | %.1f |\n", row.Batch, row.TopBatch)
	}
}

func (r *Result) feed(b *strings.Builder) {
	b.WriteString("\n| phase | acknowledged p99 ms | known to verifiers p50 ms | p99 ms | slowest ms | stalest s | accepting at least | feed MB/s |\n|---|---|---|---|---|---|---|---|\n")
	for _, row := range r.Rows {
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %.1f | %.1f %% | %.1f |\n", row.Phase, dash(row.Revokes), dash(row.NewsP50), dash(row.NewsP99), dash(row.NewsMax),
			row.Stalest, 100*row.Accepting, row.Feed)
	}
}

func dash(v float64) string {
	if v == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f", v)
}

func (n *Needs) print(b *strings.Builder, p *Plan) {
	fmt.Fprintf(b, "| for %.0f exchanges/s, %d agents, %d verifiers, %d tenants | |\n|---|---|\n", p.Rate, p.Agents, p.Verifiers, p.Tenants)
	line := func(what, format string, args ...any) {
		fmt.Fprintf(b, "| %s | "+format+" |\n", append([]any{what}, args...)...)
	}
	line("exchanges of an agent in an hour", "%.0f", n.AgentRate)
	line("instances for exchanges, a third of them gone", "%d with %d processors", n.ForExchanges, p.Cores)
	line("instances for verifiers, directly, a third of them gone", "%d", n.ForWatchers)
	line("instances", "%d", n.Instances)
	line("databases", "%d with %d processors", n.Databases, p.DatabaseCores)
	line("ceiling of one tenant", "%.0f/s; %.0f/s without group commit", n.Ceiling, n.WithoutGroups)
	line("the largest tenant", "%.0f/s", n.Largest)
	line("Redis masters", "%d in all, at least one for each deployment", n.RedisShards)
	line("OpenFGA", "%d processors", n.OpenFGACores)
	line("relays, if instances for exchanges must suffice", "%d in %d levels", n.Relays, n.RelayLevels)
	line("the ledgers grow by", "%.0f MB/s", n.LedgerBytes)
	line("marks and echoes", "%.0f MB/s", n.FeedBytes)
	line("a storm, all messages", "%.0f MB", n.StormBytes)
	line("memory of a verifier of the largest tenant", "%.1f MB", n.VerifierBytes)
}

// print lists what was measured and what is assumed.
func (c Costs) print(b *strings.Builder) {
	b.WriteString("\n| cost | | | from |\n|---|---|---|---|\n")
	for name, cost := range c.all() {
		how := "assumed"
		if cost.Measured {
			how = "measured"
		}
		fmt.Fprintf(b, "| `%s` | %g %s | %s | %s |\n", name, cost.Value, cost.Unit, how, cost.Source)
	}
}
