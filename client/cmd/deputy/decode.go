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
	Audience   string `placeholder:"NAME" help:"Judge it as this resource server would. Default: the token's own audience."`
	Unverified bool   `help:"Show what a token claims even though nobody can say whether it is true."`

	issuerFlags `embed:""`
}

func (decodeCommand) Help() string {
	return `The signature is checked with the issuer's keys before anything is said about the token. Whether it
was revoked is not known here, nor whether you hold the key that it is bound to. Exit code 1 means that a
resource server would refuse it now whoever presents it.

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
			a.stderr.line("%s nobody has checked who made this token", a.stderr.bad("NOT VERIFIED"))
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

// ownAudience takes the token's word for whom it is for, which is fit for showing a token and for
// nothing else. Where there is none the name stands for nobody, and the verifier says what is wrong.
func ownAudience(token string) string {
	const nobody = "nobody"
	u, err := delegation.Parse(token)
	if err != nil {
		return nobody
	}
	audience, err := u.StringsClaim("aud")
	if err != nil || len(audience) == 0 || audience[0] == "" {
		return nobody
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

// explain puts verified claims into words.
func (a *app) explain(in *client.Inspection, issuer string) {
	p, c := a.stdout, in.Claims
	p.line("%s signed by %s (key %s, %s)", p.good("VERIFIED"), issuer, in.Header.KeyID, in.Header.Algorithm)
	if in.Refusal != nil {
		p.line("%s %s", p.bad("NOT IN FORCE"), in.Refusal)
	}
	p.line("")
	p.line("  %s", p.strong(actsFor(c)))
	p.line("")
	p.line("  may     %s", orNone(c.Scope.String()))
	for _, d := range c.Details {
		p.line("          %s", d)
	}
	p.line("  where   %s", strings.Join(c.Audience, ", "))
	p.line("  until   %s", a.when(time.Unix(c.ExpiresAt, 0)))
	p.line("  since   %s", a.when(time.Unix(c.NotBefore, 0)))
	p.line("  deeper  %s", deeper(c))
	p.line("  bound   %s", boundText(c.Confirmation))
	if c.MayAct != nil {
		p.line("  may be  exchanged by %s without the holder's help", c.MayAct.Sub)
	}
	p.line("  chain   %s, from root token %s", c.Txn, c.Delegation.Root)
	p.line("  ledger  %s", ledgerNumbers(c))
	p.line("")
	p.line("%s", p.faint("Not checked: whether it was revoked."))
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
		return "to no key: whoever holds it can use it"
	case c.JKT != "":
		return "to the key " + c.JKT + ": useless without a DPoP proof of it"
	}
	return "to the certificate " + c.X5T + ": useless without a TLS connection that was opened with it"
}

func deeper(c delegation.Claims) string {
	text := "may be handed on " + plural(c.Delegation.DepthLeft, "more time")
	if c.Delegation.DepthLeft == 0 {
		return "may not be handed on"
	}
	if c.Delegation.Uses == 1 {
		text += ", and exchanged once at most"
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

// showUnverified shows a token for which nothing vouches, because the person asked for it.
func (a *app) showUnverified(token string, why error) error {
	u, err := delegation.Parse(token)
	if err != nil {
		return usage("that is not a token: %v", err)
	}
	var payload bytes.Buffer
	if err := json.Indent(&payload, u.Payload, "", "  "); err != nil {
		return usage("that is not a token: %v", err)
	}
	if a.json {
		return a.writeJSON(struct {
			Verified bool            `json:"verified"`
			Why      string          `json:"why"`
			Claims   json.RawMessage `json:"claims"`
		}{false, why.Error(), u.Payload})
	}
	p := a.stdout
	p.line("%s nobody has checked who made this token: believe nothing of it", p.bad("NOT VERIFIED"))
	p.line("  why: %s", why)
	p.line("")
	p.line("%s", p.strong("What it claims"))
	payload.WriteByte('\n')
	_, err = p.w.Write(inertJSON(payload.Bytes()))
	return err
}
