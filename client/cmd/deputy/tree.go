package main

import (
	"context"
	"strconv"
	"strings"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

type treeCommand struct {
	Token string `arg:"" name:"token|jti" optional:"" help:"A grant's jti, a token, or - for one on standard input. Default: DEPUTY_TOKEN."`
	Limit int    `default:"1000" placeholder:"N" help:"Show at most this many descendants; 0: all (${default})."`

	ledgerFlags `embed:""`
}

func (treeCommand) Help() string {
	return `Draws a grant and all grants derived from it, each with its state: live, expired, revoked or voided. Only
the jti of a token is used. Its signature is not verified, because all facts come from the ledger.

Examples:
  deputy tree 01K9ZQ...
  deputy tree - < token.jwt
  deputy tree 01K9ZQ... --limit 0 --json`
}

// family is a grant with its descendants.
type family struct {
	top     *client.Entry
	below   map[string][]*client.Entry // by their parent's jti
	count   int
	states  map[client.GrantState]int // of those below
	atLimit bool
}

// Run draws a tree.
func (cmd *treeCommand) Run(a *app) error {
	if cmd.Limit < 0 {
		return usage("--limit must not be negative")
	}
	argument, err := a.tokenArgument(cmd.Token)
	if err != nil {
		return err
	}
	jti, err := jtiOf(argument)
	if err != nil {
		return err
	}
	c, err := cmd.open()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Timeout)
	defer cancel()
	f, err := cmd.read(ctx, c, jti)
	if err != nil {
		return err
	}
	if a.json {
		return a.writeJSON(f.json())
	}
	a.drawFamily(f)
	return nil
}

// jtiOf returns the jti that a token claims.
func jtiOf(argument string) (string, error) {
	if !strings.Contains(argument, ".") {
		return argument, nil
	}
	u, err := delegation.Parse(argument)
	if err != nil {
		return "", usage("that is neither a jti nor a token: %v", err)
	}
	r, err := u.Registered()
	if err != nil || r.ID == "" {
		return "", usage("the token has no jti")
	}
	return r.ID, nil
}

func (cmd *treeCommand) read(ctx context.Context, c *client.Client, jti string) (*family, error) {
	top, err := c.GrantEntry(ctx, jti)
	if err != nil {
		return nil, err
	}
	f := &family{top: top, below: make(map[string][]*client.Entry), states: make(map[client.GrantState]int)}
	for d, err := range c.Descendants(ctx, jti) {
		if err != nil {
			return nil, err
		}
		if f.count == cmd.Limit && cmd.Limit > 0 {
			f.atLimit = true
			break
		}
		f.below[d.Parent] = append(f.below[d.Parent], d.Entry)
		f.count++
		f.states[d.State]++
	}
	return f, nil
}

// branch is a grant with its children for programs.
type branch struct {
	entryReport
	Children []branch `json:"children,omitzero"`
}

func (f *family) json() any {
	var grow func(e *client.Entry) branch
	grow = func(e *client.Entry) branch {
		b := branch{entryReport: entryJSON(e)}
		for _, child := range f.below[e.JTI] {
			b.Children = append(b.Children, grow(child))
		}
		return b
	}
	return struct {
		Grant       branch `json:"grant"`
		Descendants int    `json:"descendants"`
		Truncated   bool   `json:"truncated"`
	}{grow(f.top), f.count, f.atLimit}
}

func (a *app) drawFamily(f *family) {
	p := a.stdout
	p.line("%s", p.strong(name(f.top.Subject, f.top, "subject")))
	p.line("│  %s", p.faint("chain "+f.top.Txn+", root token "+f.top.Root))
	if f.top.Parent != "" {
		p.line("│  %s", p.faint("below grant "+f.top.Parent))
	}
	var draw func(e *client.Entry, indent string, last bool)
	draw = func(e *client.Entry, indent string, last bool) {
		fork, rail := "├─ ", "│  "
		if last {
			fork, rail = "└─ ", "   "
		}
		p.line("%s%s  %s  #%d  %s", styled(indent+fork), p.strong(name(e.Actor, e, "actor")), p.stateBy(e.State, e.RevokedBy), e.Seq, e.JTI)
		children := f.below[e.JTI]
		inner := indent + rail
		if len(children) > 0 {
			inner += "│"
		}
		p.line("%s  scope %s, %s", styled(pad(inner, len([]rune(indent))+4)), scopeAt(e), p.faint("expires "+a.when(e.Expiry)))
		for i, child := range children {
			draw(child, indent+rail, i == len(children)-1)
		}
	}
	draw(f.top, "", true)
	p.line("")
	p.line("%s derived from it%s", plural(f.count, "grant"), f.stateCounts())
	if f.atLimit {
		p.line("%s", p.faint("There are more grants: raise --limit."))
	}
}

func (f *family) stateCounts() string {
	text, sep := "", ": "
	for _, state := range []client.GrantState{client.StateLive, client.StateExpired, client.StateRevoked, client.StateVoided} {
		if n := f.states[state]; n > 0 {
			text += sep + strconv.Itoa(n) + " " + string(state)
			sep = ", "
		}
	}
	return text
}
