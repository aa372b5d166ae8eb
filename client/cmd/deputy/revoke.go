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
	Token      string `arg:"" name:"token|jti" optional:"" help:"A derived token, - for one on standard input, or a grant's jti: revokes it and all tokens derived from it."`
	Agent      string `placeholder:"PRINCIPAL" help:"Tokens granted to this agent so far; with --subject, only those for that subject."`
	Subject    string `placeholder:"PRINCIPAL" help:"Tokens granted for this subject so far."`
	Chain      string `placeholder:"TXN" help:"All tokens of a chain, by its txn."`
	Key        string `placeholder:"THUMBPRINT" help:"A key, by its RFC 7638 thumbprint, and all tokens bound to it. Permanent."`
	RootToken  string `placeholder:"FILE" help:"All tokens derived from this root token, - for standard input."`
	Everything bool   `help:"All tokens granted in the tenant so far."`
	Reason     string `placeholder:"TEXT" help:"Reason, recorded in the ledger."`
	DryRun     bool   `help:"Revoke nothing, and show the tokens that would be revoked."`
	Yes        bool   `short:"y" help:"Do not ask for confirmation of --everything."`

	Issuer string `env:"DEPUTY_ISSUER" placeholder:"URL" help:"Issuer of the Deputy tenant, byte for byte."`

	serverFlags `embed:""`
}

func (revokeCommand) Help() string {
	return `When the command returns, the revocation is durable, and no server accepts the tokens that it covers.
Connected verifiers refuse them within one second. A verifier that is cut off refuses every token after ten seconds.

Examples:
  deputy revoke 01K9ZQ... --reason "sent to the wrong channel"
  deputy revoke - < token.jwt
  deputy revoke --agent agent:researcher --subject user:alice --dry-run
  deputy revoke --key 0ZcOCORZNYy... --reason "laptop lost"`
}

// Run revokes, or shows the tokens that would be revoked.
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
			return usage("--everything needs --yes where standard input is no terminal")
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
		a.drawAffected(revoked)
		return nil
	}
	a.stdout.line("%s %s%s", a.stdout.good("REVOKED"), name, entryOf(revoked))
	a.explainRevoked(revoked)
	return nil
}

func (cmd *revokeCommand) confirm(a *app, c *client.Client, target client.Target, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Timeout)
	defer cancel()
	affected, err := c.Revoke(ctx, client.RevokeRequest{Target: target, DryRun: true})
	if err != nil {
		return err
	}
	return a.confirm("Revoke %s? This revokes %s.", name, affectedText(affected))
}

// target reads the one target that the arguments name, and describes it.
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
		return client.Target{}, "", usage("name one target: a token, a jti, --agent and --subject, --chain, --key, --root-token or --everything")
	}
	switch {
	case cmd.Everything:
		return client.RevokeEverything(), "all tokens granted so far", nil
	case cmd.Chain != "":
		return client.RevokeChain(cmd.Chain), "chain " + cmd.Chain, nil
	case cmd.Key != "":
		return client.RevokeKey(cmd.Key), "key " + cmd.Key, nil
	case cmd.RootToken != "":
		token, err := a.readToken(cmd.RootToken)
		return client.RevokeRootToken(client.NewSecret(token)), "all tokens derived from the root token", err
	case cmd.Token == "-" || strings.Contains(cmd.Token, "."):
		token, err := a.tokenArgument(cmd.Token)
		return client.RevokeToken(client.NewSecret(token)), "the token and all tokens derived from it", err
	case cmd.Token != "":
		return client.RevokeGrant(cmd.Token), "grant " + cmd.Token + " and all grants derived from it", nil
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
		return client.RevokeAgent(agent), fmt.Sprintf("all tokens granted to %s so far", agent), nil
	case agent == "":
		return client.RevokeSubject(subject), fmt.Sprintf("all tokens granted for %s so far", subject), nil
	}
	return client.RevokeAgentFor(agent, subject), fmt.Sprintf("all tokens granted to %s for %s so far", agent, subject), nil
}

func entryOf(r *client.Revoked) string {
	if r.Revocation == nil {
		return ": no token matches, nothing was revoked"
	}
	return fmt.Sprintf(", ledger entry %d", r.Revocation.Seq)
}

// affectedText counts tokens and chains. A count that was not finished must not read as zero.
func affectedText(r *client.Revoked) string {
	if !r.Counted {
		return "an unknown number of live tokens (not counted in time)"
	}
	return plural(r.Tokens, "live token") + " in " + plural(r.Chains, "chain")
}

func (a *app) explainRevoked(r *client.Revoked) {
	p := a.stdout
	p.line("  revoked  %s", affectedText(r))
	switch {
	case r.Revocation == nil:
	case r.Revocation.Target.Kind == delegation.BanSuspend:
		p.line("  lasts    until deputy resume")
	case r.Revocation.Until.IsZero():
		p.line("  lasts    permanently")
	default:
		p.line("  lasts    until %s: every token that it covers has expired by then", a.when(r.Revocation.Until))
	}
}

type revokedReport struct {
	Entry   uint64           `json:"entry,omitzero"`
	Kind    string           `json:"kind,omitzero"`
	ID      string           `json:"id,omitzero"`
	Subject string           `json:"subject,omitzero"`
	Time    time.Time        `json:"time,omitzero"`
	Until   time.Time        `json:"until,omitzero"`
	Tokens  int              `json:"tokens"`
	Chains  int              `json:"chains"`
	Counted bool             `json:"counted"`
	Grants  []affectedReport `json:"grants,omitzero"`
}

type affectedReport struct {
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
		report.Grants = append(report.Grants, affectedReport(g))
	}
	return report
}

// drawAffected draws the grants that would be revoked: for each chain its subject, and below it the
// grants as a tree.
func (a *app) drawAffected(r *client.Revoked) {
	p := a.stdout
	p.line("%s %s would be revoked; nothing was changed", p.strong("DRY RUN"), affectedText(r))
	below := make(map[string][]client.AffectedGrant)
	affected := make(map[string]bool, len(r.Grants))
	for _, g := range r.Grants {
		affected[g.JTI] = true
		below[g.Parent] = append(below[g.Parent], g)
	}
	var draw func(g client.AffectedGrant, indent string)
	draw = func(g client.AffectedGrant, indent string) {
		p.line("%s└─ %s  #%d  %s", styled(indent), p.strong(string(g.Actor)), g.Entry, g.JTI)
		p.line("%s   scope %s, expires %s", styled(indent), orNone(g.Scope.String()), a.when(g.Expiry))
		for _, child := range below[g.JTI] {
			draw(child, indent+"   ")
		}
	}
	chain := ""
	for _, g := range r.Grants {
		if affected[g.Parent] {
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
