package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// connections is how many each agent has by default, as if it ran in so many places.
const connections = 4

// session is one tenant of a running Deputy, as its clients see it.
type session struct {
	grpc, issuer, jwks string
	credentials        *credentials
	users              int
	connections        int  // of each agent
	assert             bool // the agent at depth 3 signs an assertion for every call, instead of showing a workload JWT

	mu    sync.Mutex
	pools map[delegation.Principal][]*client.Client
	calls int
}

// as is a client that calls as the principal and never repeats a call.
func (s *session) as(who delegation.Principal) (*client.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pools == nil {
		s.pools = make(map[delegation.Principal][]*client.Client)
	}
	s.calls++
	if pool := s.pools[who]; len(pool) == s.connections {
		return pool[s.calls%s.connections], nil
	}
	credential, err := s.credential(who)
	if err != nil {
		return nil, err
	}
	c, err := client.New(client.Config{Address: s.grpc, Transport: client.PlaintextLoopback, Credential: credential, Attempts: 1, Timeout: readyWithin})
	if err != nil {
		return nil, err
	}
	s.pools[who] = append(s.pools[who], c)
	return c, nil
}

func (s *session) credential(who delegation.Principal) (client.Credential, error) {
	var signed *signer
	switch {
	case who == responder:
		signed = s.credentials.responder
	case who == line(depth) && s.assert:
		signed = s.credentials.agent
	default:
		return func(context.Context) (string, error) { return s.credentials.of(who, false) }, nil
	}
	key, err := client.NewKey(signed.key, keyID)
	if err != nil {
		return nil, err
	}
	return client.NewAssertion(client.AssertionConfig{Issuer: s.issuer, ClientID: string(who), Key: key})
}

func (s *session) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, pool := range s.pools {
		for _, c := range pool {
			errs = append(errs, c.Close())
		}
	}
	s.pools = nil
	return errors.Join(errs...)
}

// everything is a child with all that its parent has.
func everything() client.Child { return client.Child{Scopes: scopes, Audience: audiences} }

// to is a child for another actor, named by its workload's identity document.
func (s *session) to(actor delegation.Principal) (client.Child, error) {
	name, err := s.credentials.of(actor, true)
	child := everything()
	child.ActorToken = client.NewSecret(name)
	return child, err
}

// handDown is one exchange by the holder of the parent: the child is for the actor.
func (s *session) handDown(ctx context.Context, holder delegation.Principal, parent client.Secret, actor delegation.Principal) (*client.Token, error) {
	c, err := s.as(holder)
	if err != nil {
		return nil, err
	}
	child, err := s.to(actor)
	if err != nil {
		return nil, err
	}
	return c.Exchange(ctx, client.ExchangeRequest{SubjectToken: parent, Child: child})
}

// chain makes a token of the given depth for the user: the agents of the line hand it on. Depth 0
// is the user's own token.
func (s *session) chain(ctx context.Context, who delegation.Principal, depth int) (client.Secret, error) {
	token, err := s.credentials.root(s.credentials.tenant, who)
	if err != nil || depth == 0 {
		return token, err
	}
	first, err := s.as(line(1))
	if err != nil {
		return token, err
	}
	granted, err := first.Exchange(ctx, client.ExchangeRequest{SubjectToken: token, Child: everything()})
	for n := 1; err == nil && n < depth; n++ {
		granted, err = s.handDown(ctx, line(n), granted.AccessToken, line(n+1))
	}
	if err != nil {
		return client.Secret{}, err
	}
	return granted.AccessToken, nil
}

// parents makes n new tokens of the given depth, of all users in turn. They are made in batches
// from one token for each user, so their cost is not measured.
func (s *session) parents(ctx context.Context, depth, n int) ([]client.Secret, error) {
	perBatch := min(perBatch, n)
	batches := (n + perBatch - 1) / perBatch
	tokens := make([]client.Secret, batches*perBatch)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for b := range batches {
		group.Go(func() error {
			return patiently(ctx, func() error {
				above, err := s.chain(ctx, person(b%s.users), depth-1)
				if err != nil {
					return err
				}
				holder, child := line(max(depth-1, 1)), everything()
				if depth > 1 {
					if child, err = s.to(line(depth)); err != nil {
						return err
					}
				}
				c, err := s.as(holder)
				if err != nil {
					return err
				}
				children := make([]client.Child, perBatch)
				for i := range children {
					children[i] = child
				}
				outcomes, err := c.BatchExchange(ctx, client.BatchRequest{SubjectToken: above, Children: children})
				if err != nil {
					return err
				}
				for i, o := range outcomes {
					if o.Err != nil {
						return o.Err
					}
					tokens[i*batches+b] = o.Token.AccessToken
				}
				return nil
			})
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("parents of depth %d: %w", depth, err)
	}
	return tokens[:n], nil
}

// patiently prepares what is not measured: a busy target is given time.
func patiently(ctx context.Context, prepare func() error) error {
	for attempt := 1; ; attempt++ {
		err := prepare()
		if refusal, refused := errors.AsType[*delegation.Error](err); !refused || !refusal.Temporary() || attempt == 20 {
			return err
		}
		if !sleepUntil(ctx, time.Now().Add(time.Duration(attempt)*100*time.Millisecond)) {
			return err
		}
	}
}
