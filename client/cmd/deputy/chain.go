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
	return `A token is verified, and shows by itself who is in its chain. What each ancestor was allowed, who decided
it and what has become of it is in the ledger only: it is added where the flags name a caller and Deputy answers. A jti is always looked up
there; a chain is shown to its subject, its actors and auditors.

Examples:
  deputy chain --issuer http://127.0.0.1:8080 - < token.jwt
  deputy chain --plaintext --issuer http://127.0.0.1:8080 --client-id planner --client-key planner.jwk 01K9ZQ...`
}

// link is one grant of a chain. What a token alone does not tell is absent.
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

// fromToken believes the token where it speaks for itself and asks the ledger for the rest.
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
		a.stderr.line("the ledger was not read, so this is what the token says: %v", err)
		return t, nil
	case !recorded.matches(t):
		return nil, delegation.Refuse(delegation.Internal, "", "the ledger and the token disagree about this chain: show both to whoever runs Deputy")
	}
	return recorded, nil
}

func (cmd *chainCommand) fromLedger(jti string) (*tree, error) {
	if !cmd.authenticated() {
		return nil, usage("a jti is looked up in the ledger, which answers callers it knows: name --client-id and --client-key, or --workload-token-file")
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

// matches says whether what the ledger and a token tell of one chain is the same. Actors may have been
// erased from the ledger, and the chain's beginning dropped.
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
		p.line("│  handed to %s before Deputy", actor)
	}
	if t.Above != "" {
		p.line("│  %s", p.faint("the ledger begins below grant "+t.Above+", which retention dropped"))
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
		p.line("%s", p.faint("What the ancestors were allowed is in the ledger: name --client-id and --client-key to see it."))
	}
}

func (a *app) drawLink(rail styled, l link) {
	p := a.stdout
	if l.Known {
		p.line("%smay    %s", rail, orNone(l.Scope.String()))
		if len(l.Dropped) > 0 {
			p.line("%sless   %s", rail, l.Dropped)
		}
		p.line("%swhere  %s", rail, strings.Join(l.Audience, ", "))
		p.line("%suntil  %s", rail, a.when(l.Expiry))
	}
	if l.Key != "" {
		p.line("%sbound  to the key %s", rail, l.Key)
	}
	if l.Caller != "" {
		p.line("%sasked  by %s at %s", rail, l.Caller, a.when(l.Time))
	}
	if l.Proof != "" {
		p.line("%sproof  %s", rail, l.Proof)
	}
	if l.Outcome != "" {
		p.line("%sruled  %s", rail, l.ruling())
	}
}

// ruling is the decision, and on what it rests.
func (l link) ruling() string {
	text := string(l.Outcome)
	if l.ModelID != "" {
		text += " by OpenFGA model " + l.ModelID
	}
	if why := strings.Trim(string(l.Reason)+": "+l.Detail, ": "); why != "" {
		text += ": " + why
	}
	return text
}

// after puts a grant's state behind what is there already.
func (a *app) after(gap string, l link) styled {
	if l.State == "" {
		return ""
	}
	return styled(gap) + a.stdout.fate(l.State, l.By)
}
