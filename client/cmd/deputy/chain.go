package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
)

type chainCommand struct {
	Token string `arg:"" name:"token|jti" optional:"" help:"A token, - for one on standard input, or a grant's jti. Default: DEPUTY_TOKEN."`

	issuerFlags `embed:""`
	serverFlags `embed:""`
}

func (chainCommand) Help() string {
	return `A token is verified, and shows by itself who is in its chain. What each ancestor was allowed is in the
ledger only: it is added where the flags name a caller and Deputy answers. A jti is always looked up
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
	Key      string               `json:"key,omitzero"`
	Time     time.Time            `json:"time,omitzero"`
	Expiry   time.Time            `json:"expires_at,omitzero"`
	Scope    delegation.Scopes    `json:"scope,omitzero"`
	Dropped  delegation.Scopes    `json:"dropped_scope,omitzero"`
	Audience []string             `json:"audience,omitzero"`
	Proof    string               `json:"actor_proof,omitzero"`
	Known    bool                 `json:"details_known"`
}

// tree is a chain as it is shown.
type tree struct {
	Root     string               `json:"root"`
	Txn      string               `json:"txn"`
	Subject  delegation.Principal `json:"subject"`
	Imported delegation.Chain     `json:"-"` // actors from before the first grant
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
	for i, g := range record.Grants {
		l := link{
			Entry: g.Entry, JTI: g.JTI, Actor: g.Actor, Key: g.Key, Time: g.Time, Expiry: g.Expiry,
			Scope: g.Scope, Audience: g.Audience, Proof: g.ActorProof, Known: true,
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

// matches says whether two accounts of one chain name the same grants.
func (t *tree) matches(other *tree) bool {
	return t.Txn == other.Txn && slices.EqualFunc(t.Links, other.Links, func(a, b link) bool {
		return a.Entry == b.Entry && a.JTI == b.JTI && a.Actor == b.Actor
	})
}

func (a *app) draw(t *tree) {
	p := a.stdout
	p.line("%s", p.strong(string(t.Subject)))
	p.line("│  %s", p.faint("chain "+t.Txn+", root token "+t.Root))
	for _, actor := range t.Imported {
		p.line("│  handed to %s before Deputy", actor)
	}
	indent := ""
	for i, l := range t.Links {
		last := i == len(t.Links)-1
		p.line("%s└─ %s  #%d  %s", styled(indent), p.strong(string(l.Actor)), l.Entry, l.JTI)
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
	if l.Proof != "" {
		p.line("%sproof  %s", rail, l.Proof)
	}
}
