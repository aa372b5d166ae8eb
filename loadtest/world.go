package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	fgamodels "deputy.example/deputy/fga-models"
)

// The world of a load test. Users hand authority to the first agent of a line, each agent of the
// line to the next one, and all of them to workers. Every token carries three scopes that mean
// something at two audiences.
const (
	lineLength = 9  // agents c1, c2, … that a chain goes along
	workers    = 10 // agents w0, w1, … that work is handed to
	responder  = delegation.Principal("service:responder")
	// unauthorized is an agent that may be handed authority and holds nothing.
	unauthorized = delegation.Principal("agent:unauthorized")
)

var (
	scopes    = delegation.Scopes{"calendar.read", "calendar.write", "mail.read"}
	audiences = []string{"https://calendar.example", "https://mail.example"}
)

func person(i int) delegation.Principal { return delegation.Principal(fmt.Sprintf("user:u%d", i)) }
func line(n int) delegation.Principal   { return delegation.Principal(fmt.Sprintf("agent:c%d", n)) }
func worker(i int) delegation.Principal {
	return delegation.Principal(fmt.Sprintf("agent:w%d", i%workers))
}

// tuple is a relationship as OpenFGA's API has it.
type tuple struct {
	User     string `json:"user"`
	Relation string `json:"relation"`
	Object   string `json:"object"`
}

// holdings are what a principal must have for a token: each scope, each of them at each audience,
// and the audiences.
func holdings(who delegation.Principal) []tuple {
	var all []tuple
	for _, scope := range scopes {
		object := "scope:" + delegation.EncodeID(scope)
		all = append(all, tuple{string(who), "holder", object})
		for _, audience := range audiences {
			all = append(all, tuple{string(who), "holder", object + "|" + delegation.EncodeID(audience)})
		}
	}
	for _, audience := range audiences {
		all = append(all, tuple{string(who), "accessor", "resource:" + delegation.EncodeID(audience)})
	}
	return all
}

// tuplesOfAgents are those of a world without users.
func tuplesOfAgents() []tuple {
	all := []tuple{{string(responder), "responder", "system:deputy"}}
	for n := 1; n <= lineLength; n++ {
		all = append(all, holdings(line(n))...)
		if n < lineLength {
			all = append(all, tuple{string(line(n)), "delegator", string(line(n + 1))})
		}
		for w := range workers {
			all = append(all, tuple{string(line(n)), "delegator", string(worker(w))})
		}
		all = append(all, tuple{string(line(n)), "delegator", string(unauthorized)})
	}
	for w := range workers {
		all = append(all, holdings(worker(w))...)
	}
	return all
}

// tuplesOfUsers are what the users from first to last, without it, hold and consent to.
func tuplesOfUsers(first, last int) []tuple {
	var all []tuple
	for i := first; i < last; i++ {
		all = append(all, tuple{string(person(i)), "delegator", string(line(1))})
		all = append(all, holdings(person(i))...)
	}
	return all
}

// relationships is OpenFGA's HTTP API.
type relationships struct {
	url    string
	client *http.Client
}

func (r *relationships) post(ctx context.Context, path string, body, answer any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := r.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	said, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return err
	case response.StatusCode >= 300:
		return fmt.Errorf("OpenFGA: %s: %s", response.Status, said)
	case answer == nil:
		return nil
	}
	return json.Unmarshal(said, answer)
}

// createStore makes a store with the shipped model.
func (r *relationships) createStore(ctx context.Context, name string) (store, model string, err error) {
	var created struct {
		ID string `json:"id"`
	}
	if err := r.post(ctx, "/stores", map[string]string{"name": name}, &created); err != nil {
		return "", "", err
	}
	var written struct {
		ID string `json:"authorization_model_id"`
	}
	err = r.post(ctx, "/stores/"+created.ID+"/authorization-models", json.RawMessage(fgamodels.DeputyJSON), &written)
	return created.ID, written.ID, err
}

// tuplesPerWrite is OpenFGA's default limit for one Write.
const tuplesPerWrite = 100

func (r *relationships) write(ctx context.Context, store string, tuples []tuple) error {
	for chunk := range slices.Chunk(tuples, tuplesPerWrite) {
		body := map[string]any{"writes": map[string]any{"tuple_keys": chunk}}
		if err := r.post(ctx, "/stores/"+store+"/write", body, nil); err != nil {
			return err
		}
	}
	return nil
}

// parties are the signers of credentials: the provider of people, the platform of workloads, the
// responder, and the agent at depth 3 of each chain, which has a registered key too. They are
// independent of any server.
type parties struct {
	people, workloads, responder, agent *signer
}

func newParties() (p parties, err error) {
	for _, s := range []**signer{&p.people, &p.workloads, &p.responder, &p.agent} {
		if *s, err = newSigner(); err != nil {
			return p, err
		}
	}
	return p, nil
}

// The addresses in tokens. They receive no requests: all keys are in the configuration.
func peopleIssuer(tenant string) string    { return "https://people.example/" + tenant }
func workloadsIssuer(tenant string) string { return "https://workloads.example/" + tenant }

const credentialLife = time.Hour

// root is a fresh access token of a user.
func (p parties) root(tenant string, who delegation.Principal) (client.Secret, error) {
	now := time.Now()
	token, err := p.people.sign("at+jwt", map[string]any{
		"iss": peopleIssuer(tenant), "sub": who.ID(), "aud": peopleIssuer(tenant), "client_id": "loadtest", "jti": rand.Text(),
		"iat": now.Unix(), "exp": now.Add(credentialLife).Unix(), "scope": strings.Join(scopes, " "), "targets": audiences,
	})
	return client.NewSecret(token), err
}

// workload is the identity document of an agent. Addressed to the tenant it authenticates the
// agent; with naming it only names it.
func (p parties) workload(tenant, issuer string, agent delegation.Principal, naming bool) (string, error) {
	if naming {
		issuer = delegation.ActorAudience(issuer)
	}
	now := time.Now()
	return p.workloads.sign("JWT", map[string]any{
		"iss": workloadsIssuer(tenant), "sub": agent.ID(), "aud": issuer, "jti": rand.Text(),
		"iat": now.Unix(), "exp": now.Add(credentialLife).Unix(),
	})
}

// credentials keeps what agents show again and again, as they do with documents that a platform
// gives them: one that authenticates and one that names each agent.
type credentials struct {
	parties
	tenant, issuer string

	mu    sync.Mutex
	kept  map[delegation.Principal]*[2]string
	since time.Time
}

func (c *credentials) of(agent delegation.Principal, naming bool) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.since) > credentialLife/2 {
		c.kept, c.since = make(map[delegation.Principal]*[2]string), time.Now()
	}
	if c.kept[agent] == nil {
		var pair [2]string
		for i := range pair {
			var err error
			if pair[i], err = c.workload(c.tenant, c.issuer, agent, i == 1); err != nil {
				return "", err
			}
		}
		c.kept[agent] = &pair
	}
	if naming {
		return c.kept[agent][1], nil
	}
	return c.kept[agent][0], nil
}
