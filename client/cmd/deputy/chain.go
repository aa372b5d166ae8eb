package main

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

type chainCommand struct {
	Token string `arg:"" name:"token|jti" optional:"" help:"A token, - for one on standard input, or a grant's jti. Default: DEPUTY_TOKEN."`

	issuerFlags `embed:""`
	serverFlags `embed:""`
}

func (chainCommand) Help() string {
	return `A token is verified, and names the actors of its chain. The scope, the policy decision and the state of
each ancestor are in the ledger only. They are shown if the flags name a caller and Deputy is reachable. A jti is
always looked up in the ledger. A chain is visible to its subject, its actors, their operators, auditors and responders.

Examples:
  deputy chain --issuer http://127.0.0.1:8080 - < token.jwt
  deputy chain --plaintext --issuer http://127.0.0.1:8080 --client-id planner --client-key planner.jwk 01K9ZQ...`
}

// link is one grant of a chain. Fields that a token alone does not hold are absent.
type link struct {
	Entry    uint64               `json:"entry"`
	JTI      string               `json:"jti"`
	Actor    delegation.Principal `json:"actor"`
	State    client.GrantState    `json:"state,omitzero"`
	By       uint64               `json:"revoked_by,omitzero"`
	Key      string               `json:"key,omitzero"`
	Time     time.Time            `json:"time,omitzero"`
	Expiry   time.Time            `json:"expires_at,omitzero"`
	Scope    delegation.Scopes    `json:"scope,omitzero"`
	Dropped  delegation.Scopes    `json:"dropped_scope,omitzero"`
	Audience []string             `json:"audience,omitzero"`
	Outcome  client.EntryOutcome  `json:"outcome,omitzero"`
	Reason   delegation.Reason    `json:"reason,omitzero"`
	Detail   string               `json:"detail,omitzero"`
	Caller   delegation.Principal `json:"caller,omitzero"`
	Proof    string               `json:"actor_proof,omitzero"`
	ModelID  string               `json:"model_id,omitzero"`
	TraceID  string               `json:"trace_id,omitzero"`
	Erased   []string             `json:"erased,omitzero"`
	Known    bool                 `json:"details_known"`
}

// tree is a chain as it is shown.
type tree struct {
	Root     string               `json:"root"`
	Txn      string               `json:"txn"`
	Subject  delegation.Principal `json:"subject"`
	Imported delegation.Chain     `json:"-"`                      // actors from before the first grant
	Above    string               `json:"dropped_above,omitzero"` // the first grant's parent, which retention dropped
	Links    []link               `json:"grants"`
	Source   string               `json:"source"` // "token" or "ledger"
}

// Run shows a chain.
func (cmd *chainCommand) Run(a *app) error {
	argument, err := a.tokenArgument(cmd.Token)
	if err != nil {
		return err
	}
	var t *tree
	if strings.Contains(argument, ".") {
		t, err = cmd.fromToken(a, argument)
	} else {
		t, err = cmd.fromLedger(argument)
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.writeJSON(t)
	}
	a.draw(t)
	return nil
}

// fromToken verifies the token, and adds what the ledger holds about its chain.
func (cmd *chainCommand) fromToken(a *app, token string) (*tree, error) {
	v, err := cmd.verifier(ownAudience(token), a.now)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), decodeTimeout)
	defer cancel()
	in, err := v.Inspect(ctx, token)
	if err != nil {
		return nil, err
	}
	t := treeOf(in.Claims)
	if !cmd.authenticated() {
		return t, nil
	}
	recorded, err := cmd.fromLedger(in.Claims.ID)
	switch {
	case err != nil:
		a.stderr.line("the ledger was not read; only the claims of the token are shown: %v", err)
		return t, nil
	case !recorded.matches(t):
		return nil, delegation.Refuse(delegation.Internal, "", "the ledger and the token differ about this chain; report both to the operator of Deputy")
	}
	return recorded, nil
}

func (cmd *chainCommand) fromLedger(jti string) (*tree, error) {
	if !cmd.authenticated() {
		return nil, usage("a jti is looked up in the ledger, which needs an authenticated caller: name --client-id and --client-key, or --workload-token-file")
	}
	c, err := cmd.connect(cmd.Issuer)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Timeout)
	defer cancel()
	record, err := c.Chain(ctx, jti)
	if err != nil {
		return nil, err
	}
	t := &tree{Root: record.Root, Txn: record.Txn, Subject: record.Subject, Source: "ledger"}
	if len(record.Grants) > 0 {
		t.Above = record.Grants[0].Parent
	}
	for i, g := range record.Grants {
		l := link{
			Entry: g.Seq, JTI: g.JTI, Actor: g.Actor, State: g.State, By: g.RevokedBy, Key: g.Key, Time: g.Time, Expiry: g.Expiry,
			Scope: g.Scope, Audience: g.Audience, Outcome: g.Outcome, Reason: g.Reason, Detail: g.Detail, Caller: g.Caller,
			Proof: g.ActorProof, ModelID: g.ModelID, TraceID: g.TraceID, Erased: g.Erased, Known: true,
		}
		if i > 0 {
			l.Dropped = record.Grants[i-1].Scope.Without(g.Scope)
		}
		t.Links = append(t.Links, l)
	}
	return t, nil
}

func treeOf(c delegation.Claims) *tree {
	t := &tree{Root: c.Delegation.Root, Txn: c.Txn, Subject: c.Subject, Source: "token", Imported: c.Act[:c.Delegation.Hops[0].Actor]}
	for _, hop := range c.Delegation.Hops {
		t.Links = append(t.Links, link{Entry: hop.Seq, JTI: hop.ID, Actor: c.Act[hop.Actor], Key: hop.Key})
	}
	own := &t.Links[len(t.Links)-1]
	own.Time, own.Expiry = time.Unix(c.IssuedAt, 0), time.Unix(c.ExpiresAt, 0)
	own.Scope, own.Audience, own.Known = c.Scope, c.Audience, true
	return t
}

// matches reports whether the ledger and a token hold the same chain. Actors may have been erased
// from the ledger, and retention may have dropped the beginning of the chain.
func (t *tree) matches(token *tree) bool {
	links := token.Links
	if beginning := len(links) - len(t.Links); t.Above != "" && beginning > 0 && links[beginning-1].JTI == t.Above {
		links = links[beginning:]
	}
	return t.Txn == token.Txn && slices.EqualFunc(t.Links, links, func(a, b link) bool {
		return a.Entry == b.Entry && a.JTI == b.JTI && (a.Actor == b.Actor || slices.Contains(a.Erased, "actor"))
	})
}

func (a *app) draw(t *tree) {
	p := a.stdout
	p.line("%s", p.strong(cmp.Or(string(t.Subject), "(erased)")))
	p.line("│  %s", p.faint("chain "+t.Txn+", root token "+t.Root))
	for _, actor := range t.Imported {
		p.line("│  delegated to %s before Deputy", actor)
	}
	if t.Above != "" {
		p.line("│  %s", p.faint("retention dropped grant "+t.Above+" and all above it"))
	}
	indent := ""
	for i, l := range t.Links {
		last := i == len(t.Links)-1
		p.line("%s└─ %s  #%d  %s%s", styled(indent), p.strong(cmp.Or(string(l.Actor), "(erased)")), l.Entry, l.JTI, a.after("  ", l))
		indent += "   "
		rail := styled(indent + "│  ")
		if last {
			rail = styled(indent + "   ")
		}
		a.drawLink(rail, l)
	}
	if t.Source == "token" && len(t.Links) > 1 {
		p.line("")
		p.line("%s", p.faint("The ledger holds the scope of each ancestor: name --client-id and --client-key to see it."))
	}
}

func (a *app) drawLink(rail styled, l link) {
	p := a.stdout
	if l.Known {
		p.line("%sscope         %s", rail, orNone(l.Scope.String()))
		if len(l.Dropped) > 0 {
			p.line("%sremoved       %s", rail, l.Dropped)
		}
		p.line("%saudience      %s", rail, strings.Join(l.Audience, ", "))
		p.line("%sexpires       %s", rail, a.when(l.Expiry))
	}
	if l.Key != "" {
		p.line("%sbound to      %s", rail, l.Key)
	}
	if l.Caller != "" {
		p.line("%srequested by  %s at %s", rail, l.Caller, a.when(l.Time))
	}
	if l.Proof != "" {
		p.line("%sactor proof   %s", rail, l.Proof)
	}
	if l.Outcome != "" {
		p.line("%spolicy        %s", rail, l.decision())
	}
}

// decision is the outcome, the model that decided and the reason of a refusal.
func (l link) decision() string {
	text := string(l.Outcome)
	if l.ModelID != "" {
		text += " by OpenFGA model " + l.ModelID
	}
	if why := strings.Trim(string(l.Reason)+": "+l.Detail, ": "); why != "" {
		text += ": " + why
	}
	return text
}

// after appends the state of a grant, if it is known.
func (a *app) after(gap string, l link) styled {
	if l.State == "" {
		return ""
	}
	return styled(gap) + a.stdout.stateBy(l.State, l.By)
}
