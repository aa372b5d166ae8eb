package main

import (
	"context"
	"os"
	"strings"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

type exchangeCommand struct {
	SubjectTokenFile  string        `placeholder:"FILE" help:"The token to exchange, - for standard input. Default: DEPUTY_TOKEN."`
	SubjectTokenType  string        `default:"access_token" placeholder:"TYPE" help:"access_token, id_token, jwt or a URN (${default})."`
	Scope             []string      `sep:"none" placeholder:"SCOPES" help:"Scopes of the new token; may repeat. Default: none."`
	Audience          []string      `sep:"none" placeholder:"NAME" help:"Service that the token is for."`
	Resource          []string      `sep:"none" placeholder:"URI" help:"Service that the token is for, by address (RFC 8707)."`
	Details           string        `placeholder:"JSON|@FILE" help:"authorization_details, a JSON array (RFC 9396)."`
	ActorTokenFile    string        `placeholder:"FILE" help:"The new actor's own token, - for standard input."`
	ActorTokenType    string        `placeholder:"TYPE" help:"Type of the actor token. Default: jwt."`
	RequestedActor    string        `placeholder:"PRINCIPAL" help:"Principal of the new actor; needs --actor-confirmation."`
	ActorConfirmation string        `placeholder:"THUMBPRINT" help:"RFC 7638 thumbprint of a key registered for the new actor."`
	Lifetime          time.Duration `placeholder:"DURATION" help:"Lifetime of the token. Default: the tenant's."`
	MaxDepth          *int          `placeholder:"N" help:"How many more times the token may be delegated; 0: not at all."`
	Uses              int           `placeholder:"1" help:"1: the token may be exchanged only once."`
	IdempotencyKey    string        `placeholder:"KEY" help:"A repeated request with the same key, caller and content returns the same grant."`
	ValidateOnly      bool          `help:"Record the decision, but issue no token."`

	Issuer string `env:"DEPUTY_ISSUER" placeholder:"URL" help:"Issuer of the Deputy tenant, byte for byte."`

	serverFlags `embed:""`
}

func (exchangeCommand) Help() string {
	return `Standard output holds the token only, so that it can be piped. On a terminal, standard error holds an
explanation. Without --requested-actor and --actor-token-file the actor does not change.

Examples:
  # delegate calendar.read to agent:researcher for five minutes
  deputy exchange --plaintext --issuer http://127.0.0.1:8080 --client-id planner --client-key planner.jwk \
    --subject-token-file alice.jwt --actor-token-file researcher.jwt \
    --scope calendar.read --audience https://calendar.example --lifetime 5m

  # check whether an exchange would be permitted
  deputy exchange --validate-only --subject-token-file - --scope mail.read --audience mail < alice.jwt

  # a token that is bound to your own key: it cannot be used without that key
  deputy exchange --dpop-key agent.pem --subject-token-file alice.jwt --scope calendar.read --audience calendar

  # exchange and explain
  deputy exchange --scope calendar.read --audience calendar | deputy decode -`
}

// Run makes the exchange.
func (cmd *exchangeCommand) Run(a *app) error {
	request, err := cmd.request(a)
	if err != nil {
		return err
	}
	c, err := cmd.connect(cmd.Issuer)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Timeout)
	defer cancel()
	token, err := c.Exchange(ctx, request)
	if err != nil {
		return err
	}
	if a.json {
		return cmd.printJSON(a, token)
	}
	if !token.AccessToken.IsZero() {
		a.stdout.line("%s", token.AccessToken.Reveal())
	}
	if a.terminal || token.AccessToken.IsZero() {
		cmd.explain(a, token)
	}
	return nil
}

func (cmd *exchangeCommand) request(a *app) (client.ExchangeRequest, error) {
	request := client.ExchangeRequest{
		SubjectTokenType: tokenTypeURN(cmd.SubjectTokenType),
		IdempotencyKey:   cmd.IdempotencyKey,
		ValidateOnly:     cmd.ValidateOnly,
		Child: client.Child{
			ActorTokenType: tokenTypeURN(cmd.ActorTokenType),
			Confirmation:   cmd.ActorConfirmation,
			Audience:       cmd.Audience,
			Resource:       cmd.Resource,
			Lifetime:       cmd.Lifetime,
			MaxDepth:       cmd.MaxDepth,
			Uses:           cmd.Uses,
		},
	}
	if cmd.SubjectTokenFile == "-" && cmd.ActorTokenFile == "-" {
		return request, usage("standard input holds one token: read the other from a file")
	}
	subject, err := cmd.subjectToken(a)
	if err != nil {
		return request, err
	}
	request.SubjectToken = client.NewSecret(subject)
	if cmd.ActorTokenFile != "" {
		actor, err := a.readToken(cmd.ActorTokenFile)
		if err != nil {
			return request, err
		}
		request.Child.ActorToken = client.NewSecret(actor)
	}
	if cmd.RequestedActor != "" {
		if request.Child.RequestedActor, err = delegation.ParsePrincipal(cmd.RequestedActor); err != nil {
			return request, usage("--requested-actor: %v", err)
		}
	}
	if request.Child.Scopes, err = delegation.NewScopes(strings.Fields(strings.Join(cmd.Scope, " "))...); err != nil {
		return request, usage("--scope: %v", err)
	}
	request.Child.Details, err = cmd.details()
	return request, err
}

func (cmd *exchangeCommand) subjectToken(a *app) (string, error) {
	if cmd.SubjectTokenFile != "" {
		return a.readToken(cmd.SubjectTokenFile)
	}
	if token := os.Getenv("DEPUTY_TOKEN"); token != "" {
		return token, nil
	}
	return "", usage("subject token: is missing; name --subject-token-file (- for standard input), or set DEPUTY_TOKEN")
}

func (cmd *exchangeCommand) details() ([]delegation.Detail, error) {
	if cmd.Details == "" {
		return nil, nil
	}
	document := []byte(cmd.Details)
	if path, named := strings.CutPrefix(cmd.Details, "@"); named {
		var err error
		if document, err = os.ReadFile(path); err != nil {
			return nil, usage("--details: %v", err)
		}
	}
	details, err := delegation.ParseDetails(document)
	if err != nil {
		return nil, usage("--details: %v", err)
	}
	return details, nil
}

// tokenTypeURN completes the last part of a token type URN of RFC 8693.
func tokenTypeURN(name string) string {
	if name == "" || strings.Contains(name, ":") {
		return name
	}
	return strings.TrimSuffix(delegation.TokenTypeJWT, "jwt") + name
}

// printJSON writes the response of RFC 8693 §2.2.1 and the identity of the grant.
func (cmd *exchangeCommand) printJSON(a *app, token *client.Token) error {
	return a.writeJSON(struct {
		AccessToken     string              `json:"access_token,omitzero"`
		IssuedTokenType string              `json:"issued_token_type"`
		TokenType       string              `json:"token_type"`
		ExpiresIn       int64               `json:"expires_in"`
		Scope           string              `json:"scope,omitzero"`
		Details         []delegation.Detail `json:"authorization_details,omitzero"`
		JTI             string              `json:"jti"`
		Txn             string              `json:"txn"`
		Entry           uint64              `json:"entry"`
	}{
		token.AccessToken.Reveal(), token.IssuedTokenType, token.TokenType,
		int64(max(token.Expiry.Sub(a.now()), 0) / time.Second),
		token.Scope.String(), token.Details, token.JTI, token.Txn, token.Entry,
	})
}

func (cmd *exchangeCommand) explain(a *app, token *client.Token) {
	p := a.stderr
	if token.AccessToken.IsZero() {
		p.line("%s no token was issued; ledger entry %d records the decision", p.good("PERMITTED"), token.Entry)
	} else {
		p.line("%s as grant %s, ledger entry %d", p.good("ISSUED"), token.JTI, token.Entry)
	}
	p.line("  scope     %s", orNone(token.Scope.String()))
	p.line("  audience  %s", strings.Join(append(cmd.Audience, cmd.Resource...), ", "))
	p.line("  expires   %s", a.when(token.Expiry))
	if token.TokenType == "DPoP" {
		p.line("  send as   Authorization: DPoP, with a proof of its key: see deputy proof --help")
	}
}
