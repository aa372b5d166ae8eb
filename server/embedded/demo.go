package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// Demo plays the demo chain once against the running Deputy, over its public gRPC API and with the
// SDK, and prints the story to w. It leaves the tokens in Dir/demo, readable by their owner only.
//
// Where an earlier run has changed relationships, the story would end otherwise. Then it prints the
// changes in the story's place.
func (e *Embedded) Demo(ctx context.Context, w io.Writer) error {
	d := &demo{Embedded: e, narrator: narrator{w: w, now: time.Now}, transport: &http.Transport{}}
	defer d.transport.CloseIdleConnections()
	scenes := []func(context.Context) error{d.signIn, d.stepIn, d.handDown, d.verify, d.escalate, d.revoke, d.record, d.next}
	if len(e.changed) > 0 {
		scenes = []func(context.Context) error{d.differs, d.next}
	}
	for _, scene := range scenes {
		if err := scene(ctx); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
	}
	return d.err
}

// demo is one run of the story and the state that the scenes share.
type demo struct {
	*Embedded
	narrator
	transport                     *http.Transport
	root                          string // alice's own token
	plannerToken, researcherToken *client.Token
}

// mostDifferences is how many changed relationships are printed.
const mostDifferences = 10

func (d *demo) differs(context.Context) error {
	d.scene("The demo is not played", "Relationships were changed in an earlier run, and the story needs those that it began with.")
	for _, change := range d.changed[:min(len(d.changed), mostDifferences)] {
		d.line("     %s", change)
	}
	if more := len(d.changed) - mostDifferences; more > 0 {
		d.line("     and %d more", more)
	}
	d.line("  To play it, undo these changes, or begin with another folder (--data).")
	return nil
}

func (d *demo) signIn(ctx context.Context) error {
	d.scene("alice signs in", "Her token comes from the development issuer. It is the root of the chain and allows more than any agent needs.")
	var err error
	if d.root, err = d.fetchToken(ctx, "people", url.Values{"user": {alice.ID()}}); err != nil {
		return err
	}
	if err := d.claims(d.root); err != nil {
		return err
	}
	return d.keep("alice.jwt", d.root)
}

// fetchToken requests a token from the development issuer, as any local program can.
func (d *demo) fetchToken(ctx context.Context, from string, form url.Values) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.devAddress()+"/"+from+"/token", bytes.NewBufferString(form.Encode()))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := (&http.Client{Transport: d.transport}).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 2*delegation.MaxTokenBytes))
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("development issuer: %s: %s", response.Status, body)
	}
	return string(bytes.TrimSpace(body)), nil
}

func (d *demo) stepIn(ctx context.Context) error {
	d.scene("agent:planner acts for alice", "It exchanges alice's token for one that lets planner act for alice, at the calendar only, without her mail and her money.")
	return d.as(planner, func(c *client.Client) error {
		var err error
		d.plannerToken, err = c.Exchange(ctx, client.ExchangeRequest{
			SubjectToken: client.NewSecret(d.root),
			Child:        client.Child{Scopes: delegation.Scopes{"calendar.read", "calendar.write"}, Audience: []string{calendarAudience}},
		})
		if err != nil {
			return err
		}
		return d.granted("planner", d.plannerToken)
	})
}

func (d *demo) handDown(ctx context.Context) error {
	d.scene("agent:planner hands part of it to agent:researcher", "The researcher may read the calendar for half an hour, and may not hand that down. It names itself with a workload token of\n"+
		"audience "+delegation.ActorAudience(d.Issuer())+", with which the planner cannot authenticate as the researcher.")
	return d.as(planner, func(c *client.Client) error {
		var err error
		if d.researcherToken, err = d.toResearcher(ctx, c); err != nil {
			return err
		}
		return d.granted("researcher", d.researcherToken)
	})
}

// toResearcher hands the calendar from planner to researcher, with a new token for every call.
func (d *demo) toResearcher(ctx context.Context, c *client.Client) (*client.Token, error) {
	name, err := d.fetchToken(ctx, "workloads", url.Values{"agent": {researcher.ID()}, "audience": {"actor"}})
	if err != nil {
		return nil, err
	}
	noFurther := 0
	return c.Exchange(ctx, client.ExchangeRequest{
		SubjectToken: d.plannerToken.AccessToken,
		Child: client.Child{
			ActorToken: client.NewSecret(name),
			Scopes:     delegation.Scopes{"calendar.read"}, Audience: []string{calendarAudience},
			Lifetime: 30 * time.Minute, MaxDepth: &noFurther,
		},
	})
}

// granted prints a derived token and keeps it.
func (d *demo) granted(name string, token *client.Token) error {
	if err := d.claims(token.AccessToken.Reveal()); err != nil {
		return err
	}
	return d.keep(name+".jwt", token.AccessToken.Reveal())
}

func (d *demo) verify(ctx context.Context) error {
	d.scene("The calendar server receives the researcher's token", "It verifies the token offline, with the keys that Deputy publishes and the revocations that it follows.\nIt can also introspect the token at Deputy.")
	return d.asCalendar(ctx, func(c *client.Client, verifier *client.Verifier) error {
		accepted, err := verifier.Verify(ctx, d.researcherToken.AccessToken.Reveal())
		if err != nil {
			return err
		}
		d.good("verified offline: %s acts for %s, may %s", accepted.Actor(), accepted.Subject(), accepted.Claims().Scope)
		answer, err := c.Introspect(ctx, d.researcherToken.AccessToken)
		if err != nil {
			return err
		}
		if !answer.Active {
			return errors.New("introspection: the researcher's token is not active")
		}
		d.good("introspection: active until %s, hop %d of its chain", answer.Expiry.Format(time.TimeOnly), len(answer.Hops))
		return nil
	})
}

// asCalendar runs the calendar server: a client, and a verifier that follows revocations.
func (d *demo) asCalendar(ctx context.Context, serve func(*client.Client, *client.Verifier) error) error {
	return d.as(calendarServer, func(c *client.Client) error {
		verifier, err := client.NewVerifier(client.VerifierConfig{Issuer: d.Issuer(), Audience: calendarAudience, Client: c, HTTPTransport: d.transport})
		if err != nil {
			return err
		}
		if err = verifier.Ready(ctx); err == nil {
			err = serve(c, verifier)
		}
		return errors.Join(err, verifier.Close())
	})
}

// revoke hands out a second token and revokes it while the calendar server follows.
func (d *demo) revoke(ctx context.Context) error {
	d.scene("agent:planner hands out a second token and revokes it", "The calendar server receives the revocation and refuses the token, without a request per check. The first token stays valid.")
	return d.asCalendar(ctx, func(_ *client.Client, verifier *client.Verifier) error {
		return d.as(planner, func(c *client.Client) error {
			second, err := d.toResearcher(ctx, c)
			if err != nil {
				return err
			}
			if _, err := verifier.Verify(ctx, second.AccessToken.Reveal()); err != nil {
				return err
			}
			d.good("accepted: entry %d", second.Entry)
			if _, err := c.Revoke(ctx, client.RevokeRequest{Target: client.RevokeGrant(second.JTI), Reason: "the demo revokes it"}); err != nil {
				return err
			}
			revoked := time.Now()
			for {
				_, err = verifier.Verify(ctx, second.AccessToken.Reveal())
				if err != nil {
					break
				}
				if time.Since(revoked) > 10*time.Second {
					return errors.New("the calendar server accepts a revoked token")
				}
			}
			d.bad("refused within %d ms of the acknowledgement: %v", time.Since(revoked).Milliseconds()+1, err)
			_, err = verifier.Verify(ctx, d.researcherToken.AccessToken.Reveal())
			return err
		})
	})
}

// escalate requests too much, in the two possible ways.
func (d *demo) escalate(ctx context.Context) error {
	d.scene("Two requests for more are refused", "A request beyond the limit is refused, not filtered, and the refusal is recorded in the ledger.")
	err := d.refused(ctx, planner, d.root, "payments.send", delegation.ScopeNotPermitted,
		"agent:planner requests payments.send from alice's token, which alice holds")
	if err != nil {
		return err
	}
	return d.refused(ctx, planner, d.plannerToken.AccessToken.Reveal(), "mail.read", delegation.ScopeExceedsParent,
		"agent:planner requests mail.read from its own token, which alice and planner both hold")
}

func (d *demo) refused(ctx context.Context, who delegation.Principal, subject, scope string, want delegation.Reason, attempt string) error {
	return d.as(who, func(c *client.Client) error {
		_, err := c.Exchange(ctx, client.ExchangeRequest{
			SubjectToken: client.NewSecret(subject),
			Child:        client.Child{Scopes: delegation.Scopes{scope}, Audience: []string{calendarAudience}},
		})
		var refusal *delegation.Error
		if !errors.As(err, &refusal) || refusal.Reason != want {
			return fmt.Errorf("%s: got %v, want a refusal with reason %s", attempt, err, want)
		}
		d.bad("%s", attempt)
		d.line("    %s, %s: %s", refusal.Reason.Wire().OAuth, refusal.Reason, refusal.Description)
		return nil
	})
}

func (d *demo) record(ctx context.Context) error {
	d.scene("The ledger's record", "")
	return d.as(planner, func(c *client.Client) error {
		record, err := c.Chain(ctx, d.researcherToken.JTI)
		if err != nil {
			return err
		}
		d.chain(record)
		return nil
	})
}

// as connects as one of the clients.
func (d *demo) as(who delegation.Principal, call func(*client.Client) error) error {
	key, err := client.LoadKey(d.clientKeyPath(who))
	if err != nil {
		return err
	}
	credential, err := client.NewAssertion(client.AssertionConfig{Issuer: d.Issuer(), ClientID: string(who), Key: key})
	if err != nil {
		return err
	}
	c, err := client.New(client.Config{Address: d.config.GRPC, Transport: client.PlaintextLoopback, Credential: credential})
	if err != nil {
		return err
	}
	return errors.Join(call(c), c.Close())
}

// keep writes a file for the commands that follow.
func (d *demo) keep(name, content string) error {
	return os.WriteFile(d.path("demo", name), []byte(content), 0o600)
}
