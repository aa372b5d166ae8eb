package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

type decodeCommand struct {
	Token      string `arg:"" optional:"" help:"The token, or - for standard input. Default: DEPUTY_TOKEN."`
	Audience   string `placeholder:"NAME" help:"Verify the token as the resource server of this name does. Default: the token's own audience."`
	Unverified bool   `help:"Show the claims even if the signature cannot be verified."`

	issuerFlags `embed:""`
}

func (decodeCommand) Help() string {
	return `The signature is verified with the issuer's keys before any claim is shown. Revocations and the proof of
the key to which the token is bound are not checked. Exit code 1 means that a resource server would refuse the token
now, whichever client presents it.

Examples:
  deputy decode --issuer http://127.0.0.1:8080 - < token.jwt
  DEPUTY_TOKEN=... deputy decode --audience https://calendar.example
  deputy decode --jwks keys.json --issuer https://deputy.example/t/acme --json - < token.jwt
  deputy decode --unverified - < from-another-provider.jwt`
}

// decodeTimeout bounds the fetch of the issuer's keys.
const decodeTimeout = 10 * time.Second

// Run verifies and explains a token.
func (cmd *decodeCommand) Run(a *app) error {
	token, err := a.tokenArgument(cmd.Token)
	if err != nil {
		return err
	}
	inspection, err := cmd.inspect(a, token)
	if err != nil {
		if cmd.Unverified {
			return a.showUnverified(token, err)
		}
		if !a.json {
			a.stderr.line("%s the signature of this token was not verified", a.stderr.bad("NOT VERIFIED"))
		}
		return err
	}
	if a.json {
		err = a.writeJSON(inspectionJSON(inspection))
	} else {
		a.explain(inspection, cmd.Issuer)
		err = a.showClaims(inspection.Claims)
	}
	if err == nil && inspection.Refusal != nil {
		return errReported
	}
	return err
}

func (cmd *decodeCommand) inspect(a *app, token string) (*client.Inspection, error) {
	audience := cmd.Audience
	if audience == "" {
		audience = ownAudience(token)
	}
	v, err := cmd.verifier(audience, a.now)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), decodeTimeout)
	defer cancel()
	return v.Inspect(ctx, token)
}

// ownAudience returns the token's own first audience. That is enough to show a token, and for
// nothing else. Without one it returns a name that no token has, and the verifier names the fault.
func ownAudience(token string) string {
	const none = "none"
	u, err := delegation.Parse(token)
	if err != nil {
		return none
	}
	audience, err := u.StringsClaim("aud")
	if err != nil || len(audience) == 0 || audience[0] == "" {
		return none
	}
	return audience[0]
}

func inspectionJSON(in *client.Inspection) any {
	refusal := ""
	if in.Refusal != nil {
		refusal = in.Refusal.Error()
	}
	return struct {
		Verified bool              `json:"verified"`
		InForce  bool              `json:"in_force"`
		Refusal  string            `json:"refusal,omitzero"`
		KeyID    string            `json:"kid"`
		Alg      string            `json:"alg"`
		Claims   delegation.Claims `json:"claims"`
	}{true, in.Refusal == nil, refusal, in.Header.KeyID, in.Header.Algorithm, in.Claims}
}

// explain shows verified claims.
func (a *app) explain(in *client.Inspection, issuer string) {
	p, c := a.stdout, in.Claims
	p.line("%s signed by %s (key %s, %s)", p.good("VERIFIED"), issuer, in.Header.KeyID, in.Header.Algorithm)
	if in.Refusal != nil {
		p.line("%s %s", p.bad("NOT IN FORCE"), in.Refusal)
	}
	p.line("")
	p.line("  %s", p.strong(actsFor(c)))
	p.line("")
	p.line("  scope         %s", orNone(c.Scope.String()))
	for _, d := range c.Details {
		p.line("                %s", d)
	}
	p.line("  audience      %s", strings.Join(c.Audience, ", "))
	p.line("  issued        %s", a.when(time.Unix(c.IssuedAt, 0)))
	p.line("  expires       %s", a.when(time.Unix(c.ExpiresAt, 0)))
	p.line("  may delegate  %s", mayDelegate(c))
	p.line("  bound to      %s", boundText(c.Confirmation))
	if c.MayAct != nil {
		p.line("  may act       %s may exchange it without the holder", c.MayAct.Sub)
	}
	p.line("  chain         %s, root token %s", c.Txn, c.Delegation.Root)
	p.line("  ledger        %s", ledgerNumbers(c))
	p.line("")
	p.line("%s", p.faint("Revocations were not checked."))
	p.line("")
}

func actsFor(c delegation.Claims) string {
	text := fmt.Sprintf("%s acts for %s", c.Act.Current(), c.Subject)
	if earlier := len(c.Act) - 1; earlier > 0 {
		names := make([]string, earlier)
		for i, actor := range c.Act[:earlier] {
			names[i] = string(actor)
		}
		text += ", through " + strings.Join(names, ", then ")
	}
	return text
}

func boundText(c *delegation.Confirmation) string {
	switch {
	case c == nil:
		return "no key: any holder can use it"
	case c.JKT != "":
		return "the key " + c.JKT + ": each use needs a DPoP proof of it"
	}
	return "the certificate " + c.X5T + ": each use needs a TLS connection with it"
}

func mayDelegate(c delegation.Claims) string {
	if c.Delegation.DepthLeft == 0 {
		return "no"
	}
	text := plural(c.Delegation.DepthLeft, "more hop")
	if c.Delegation.Uses == 1 {
		text += ", by one exchange only"
	}
	return text
}

func ledgerNumbers(c delegation.Claims) string {
	numbers := make([]string, len(c.Delegation.Hops))
	for i, hop := range c.Delegation.Hops {
		numbers[i] = fmt.Sprintf("#%d %s", hop.Seq, c.Act[hop.Actor])
	}
	return strings.Join(numbers, " > ")
}

func (a *app) showClaims(claims any) error {
	a.stdout.line("%s", a.stdout.strong("Claims"))
	return a.writeJSON(claims)
}

// showUnverified shows the claims of a token that was not verified, because --unverified is set.
func (a *app) showUnverified(token string, why error) error {
	u, err := delegation.Parse(token)
	if err != nil {
		return usage("token: must be a JWT in compact form: %v", err)
	}
	var payload bytes.Buffer
	if err := json.Indent(&payload, u.Payload, "", "  "); err != nil {
		return usage("token: must be a JWT in compact form: %v", err)
	}
	if a.json {
		return a.writeJSON(struct {
			Verified bool            `json:"verified"`
			Why      string          `json:"why"`
			Claims   json.RawMessage `json:"claims"`
		}{false, why.Error(), u.Payload})
	}
	p := a.stdout
	p.line("%s the signature of this token was not verified: trust none of its claims", p.bad("NOT VERIFIED"))
	p.line("  why: %s", why)
	p.line("")
	p.line("%s", p.strong("Unverified claims"))
	payload.WriteByte('\n')
	_, err = p.w.Write(inertJSON(payload.Bytes()))
	return err
}
