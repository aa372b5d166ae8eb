package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

type revokeCommand struct {
	Token      string `arg:"" name:"token|jti" optional:"" help:"A derived token, - for one on standard input, or a grant's jti: it and all below it."`
	Agent      string `placeholder:"PRINCIPAL" help:"What was granted to this agent so far; with --subject, for that subject."`
	Subject    string `placeholder:"PRINCIPAL" help:"What was granted for this subject so far."`
	Chain      string `placeholder:"TXN" help:"A chain, by its txn."`
	Key        string `placeholder:"THUMBPRINT" help:"A key, by its RFC 7638 thumbprint, and all that is bound to it. For good."`
	RootToken  string `placeholder:"FILE" help:"All that descends from this root token, - for standard input."`
	Everything bool   `help:"Whatever was granted in the tenant so far."`
	Reason     string `placeholder:"TEXT" help:"Why, for the ledger."`
	DryRun     bool   `help:"Revoke nothing, and show the tree that would die."`
	Yes        bool   `short:"y" help:"Do not ask before --everything."`

	Issuer string `env:"DEPUTY_ISSUER" placeholder:"URL" help:"Issuer of the Deputy tenant, byte for byte."`

	serverFlags `embed:""`
}

func (revokeCommand) Help() string {
	return `When it returns, the revocation is durable: no server accepts what it hits. Verifiers that are
connected refuse it within a second, verifiers that are cut off refuse everything within ten.

Examples:
  deputy revoke 01K9ZQ... --reason "sent to the wrong channel"
  deputy revoke - < token.jwt
  deputy revoke --agent agent:researcher --subject user:alice --dry-run
  deputy revoke --key 0ZcOCORZNYy... --reason "laptop lost"`
}

// Run revokes, or shows what would die.
func (cmd *revokeCommand) Run(a *app) error {
	target, name, err := cmd.target(a)
	if err != nil {
		return err
	}
	c, err := cmd.connect(cmd.Issuer)
	if err != nil {
		return err
	}
	defer c.Close()
	if cmd.Everything && !cmd.Yes && !cmd.DryRun {
		if !a.interactive {
			return usage("--everything needs --yes where nobody can be asked")
		}
		if err := cmd.confirm(a, c, target, name); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Timeout)
	defer cancel()
	revoked, err := c.Revoke(ctx, client.RevokeRequest{Target: target, Reason: cmd.Reason, DryRun: cmd.DryRun})
	if err != nil {
		return err
	}
	switch {
	case a.json:
		return a.writeJSON(revokedJSON(revoked))
	case cmd.DryRun:
		a.drawDoomed(revoked)
		return nil
	}
	a.stdout.line("%s %s%s", a.stdout.good("REVOKED"), name, entryOf(revoked))
	a.explainDeath(revoked)
	return nil
}

func (cmd *revokeCommand) confirm(a *app, c *client.Client, target client.Target, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Timeout)
	defer cancel()
	doomed, err := c.Revoke(ctx, client.RevokeRequest{Target: target, DryRun: true})
	if err != nil {
		return err
	}
	return a.confirm("Revoke %s? %s die.", name, doomedText(doomed))
}

// target reads the one thing that the arguments name, and how to speak of it.
func (cmd *revokeCommand) target(a *app) (client.Target, string, error) {
	named := 0
	for _, is := range []bool{
		cmd.Token != "", cmd.Agent != "" || cmd.Subject != "", cmd.Chain != "", cmd.Key != "", cmd.RootToken != "", cmd.Everything,
	} {
		if is {
			named++
		}
	}
	if named != 1 {
		return client.Target{}, "", usage("name one thing to revoke: a token, a jti, --agent and --subject, --chain, --key, --root-token or --everything")
	}
	switch {
	case cmd.Everything:
		return client.RevokeEverything(), "everything that was granted so far", nil
	case cmd.Chain != "":
		return client.RevokeChain(cmd.Chain), "chain " + cmd.Chain, nil
	case cmd.Key != "":
		return client.RevokeKey(cmd.Key), "key " + cmd.Key, nil
	case cmd.RootToken != "":
		token, err := a.readToken(cmd.RootToken)
		return client.RevokeRootToken(client.NewSecret(token)), "what descends from the root token", err
	case cmd.Token == "-" || strings.Contains(cmd.Token, "."):
		token, err := a.tokenArgument(cmd.Token)
		return client.RevokeToken(client.NewSecret(token)), "the token and all below it", err
	case cmd.Token != "":
		return client.RevokeGrant(cmd.Token), "grant " + cmd.Token + " and all below it", nil
	}
	return cmd.principals()
}

func (cmd *revokeCommand) principals() (client.Target, string, error) {
	var agent, subject delegation.Principal
	var err error
	if cmd.Agent != "" {
		if agent, err = delegation.ParsePrincipal(cmd.Agent); err != nil {
			return client.Target{}, "", usage("--agent: %v", err)
		}
	}
	if cmd.Subject != "" {
		if subject, err = delegation.ParsePrincipal(cmd.Subject); err != nil {
			return client.Target{}, "", usage("--subject: %v", err)
		}
	}
	switch {
	case subject == "":
		return client.RevokeAgent(agent), fmt.Sprintf("what was granted to %s so far", agent), nil
	case agent == "":
		return client.RevokeSubject(subject), fmt.Sprintf("what was granted for %s so far", subject), nil
	}
	return client.RevokeAgentFor(agent, subject), fmt.Sprintf("what was granted to %s for %s so far", agent, subject), nil
}

func entryOf(r *client.Revoked) string {
	if r.Revocation == nil {
		return ": there was nothing to revoke"
	}
	return fmt.Sprintf(", ledger entry %d", r.Revocation.Seq)
}

// doomedText counts tokens and chains. Nobody must take what was not counted for nothing.
func doomedText(r *client.Revoked) string {
	if !r.Counted {
		return "not counted in time: any number of live tokens"
	}
	return plural(r.Tokens, "live token") + " in " + plural(r.Chains, "chain")
}

func (a *app) explainDeath(r *client.Revoked) {
	p := a.stdout
	p.line("  died    %s", doomedText(r))
	if r.Revocation == nil {
		return
	}
	if r.Revocation.Until.IsZero() {
		p.line("  until   for good")
	} else {
		p.line("  until   %s: nothing that it could hit lives longer", a.when(r.Revocation.Until))
	}
}

type revokedReport struct {
	Entry   uint64         `json:"entry,omitzero"`
	Kind    string         `json:"kind,omitzero"`
	ID      string         `json:"id,omitzero"`
	Subject string         `json:"subject,omitzero"`
	Time    time.Time      `json:"time,omitzero"`
	Until   time.Time      `json:"until,omitzero"`
	Tokens  int            `json:"tokens"`
	Chains  int            `json:"chains"`
	Counted bool           `json:"counted"`
	Grants  []doomedReport `json:"grants,omitzero"`
}

type doomedReport struct {
	JTI      string               `json:"jti"`
	Parent   string               `json:"parent,omitzero"`
	Txn      string               `json:"txn"`
	Entry    uint64               `json:"entry"`
	Subject  delegation.Principal `json:"subject"`
	Actor    delegation.Principal `json:"actor"`
	Scope    delegation.Scopes    `json:"scope,omitzero"`
	Audience []string             `json:"audience,omitzero"`
	Expiry   time.Time            `json:"expires_at,omitzero"`
}

func revokedJSON(r *client.Revoked) revokedReport {
	report := revokedReport{Tokens: r.Tokens, Chains: r.Chains, Counted: r.Counted}
	if v := r.Revocation; v != nil {
		report.Entry, report.Kind, report.ID, report.Subject = v.Seq, string(v.Target.Kind), v.Target.ID, string(v.Target.Subject)
		report.Time, report.Until = v.At, v.Until
	}
	for _, g := range r.Grants {
		report.Grants = append(report.Grants, doomedReport(g))
	}
	return report
}

// drawDoomed draws what would die: for each chain its subject, and below it the grants as a tree.
func (a *app) drawDoomed(r *client.Revoked) {
	p := a.stdout
	p.line("%s %s; nothing was revoked", p.strong("WOULD DIE"), doomedText(r))
	below := make(map[string][]client.AffectedGrant)
	doomed := make(map[string]bool, len(r.Grants))
	for _, g := range r.Grants {
		doomed[g.JTI] = true
		below[g.Parent] = append(below[g.Parent], g)
	}
	var draw func(g client.AffectedGrant, indent string)
	draw = func(g client.AffectedGrant, indent string) {
		p.line("%s└─ %s  #%d  %s", styled(indent), p.strong(string(g.Actor)), g.Entry, g.JTI)
		p.line("%s   may %s until %s", styled(indent), orNone(g.Scope.String()), a.when(g.Expiry))
		for _, child := range below[g.JTI] {
			draw(child, indent+"   ")
		}
	}
	chain := ""
	for _, g := range r.Grants {
		if doomed[g.Parent] {
			continue // drawn below its parent
		}
		if g.Txn != chain {
			chain = g.Txn
			p.line("")
			p.line("%s  %s", p.strong(string(g.Subject)), p.faint("chain "+g.Txn))
		}
		draw(g, "")
	}
	if rest := r.Tokens - len(r.Grants); rest > 0 {
		p.line("")
		p.line("%s", p.faint("and "+plural(rest, "token")+" more"))
	}
}
