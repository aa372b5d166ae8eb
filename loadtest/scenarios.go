package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// scenario is one kind of traffic. Prepare makes what the requests need, at no measured cost, and
// returns the request.
type scenario struct {
	name    string
	about   string
	perCall int // exchanges that one request makes
	prepare func(ctx context.Context, s *session, requests int) (operation, error)
}

// depth of the parents in all scenarios that set no other.
const depth = 3

const perBatch = 50

var (
	deepChain = scenario{
		"deep chain", "each exchange hands on, to a worker, a new parent of depth 3", 1,
		func(ctx context.Context, s *session, requests int) (operation, error) {
			return freshParents(ctx, s, depth, requests)
		},
	}
	assertions = scenario{
		"deep chain, signed assertions", "the same by callers that sign an assertion for every call (private_key_jwt)", 1,
		func(ctx context.Context, s *session, requests int) (operation, error) {
			s.assert = true
			return freshParents(ctx, s, depth, requests)
		},
	}
	fanOut = scenario{
		"fan-out", "one parent of depth 3 is handed to ten workers again and again", 1,
		func(ctx context.Context, s *session, requests int) (operation, error) {
			parent, err := s.chain(ctx, person(0), depth)
			return func(ctx context.Context, i int) (string, error) {
				_, err := s.handDown(ctx, line(depth), parent, worker(i))
				return granted, err
			}, err
		},
	}
	batch = scenario{
		"batch", "BatchExchange of 50 children of one parent of depth 3, for ten workers; figures are per child", perBatch,
		prepareBatch,
	}
	mixed = scenario{
		"mixed with refusals", "of twenty, fourteen are granted; two ask for a scope and one for an audience beyond the parent, two are for an agent that holds nothing, one has a revoked parent", 1,
		prepareMixed,
	}
)

// ofDepth is the deep chain with parents of another depth.
func ofDepth(n int) scenario {
	return scenario{fmt.Sprintf("depth %d", n), "new parents", 1, func(ctx context.Context, s *session, requests int) (operation, error) {
		return freshParents(ctx, s, n, requests)
	}}
}

func freshParents(ctx context.Context, s *session, depth, requests int) (operation, error) {
	parents, err := s.parents(ctx, depth, requests)
	return func(ctx context.Context, i int) (string, error) {
		_, err := s.handDown(ctx, line(depth), parents[i], worker(i))
		return granted, err
	}, err
}

func prepareBatch(ctx context.Context, s *session, _ int) (operation, error) {
	parent, err := s.chain(ctx, person(0), depth)
	if err != nil {
		return nil, err
	}
	children := make([]client.Child, perBatch)
	for i := range children {
		if children[i], err = s.to(worker(i)); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context, _ int) (string, error) {
		c, err := s.as(line(depth))
		if err != nil {
			return "", err
		}
		outcomes, err := c.BatchExchange(ctx, client.BatchRequest{SubjectToken: parent, Children: children})
		if err != nil {
			return "", err
		}
		for _, o := range outcomes {
			if o.Err != nil {
				return "", o.Err
			}
		}
		return granted, nil
	}, nil
}

// wish is one kind of request of the mixed scenario, and the reason that it must be refused with.
type wish struct {
	of   int // requests of twenty
	want delegation.Reason
	ask  func(child *client.Child)
}

var wishes = []wish{
	{14, "", func(*client.Child) {}},
	{2, delegation.ScopeExceedsParent, func(c *client.Child) { c.Scopes = append(slices.Clone(c.Scopes), "payments.send") }},
	{1, delegation.AudienceExceedsParent, func(c *client.Child) { c.Audience = []string{"https://bank.example"} }},
	{2, delegation.ScopeNotPermitted, nil}, // for the unauthorized agent
	{1, delegation.TokenRevoked, func(*client.Child) {}},
}

// wished spreads the wishes over twenty requests.
func wished(i int) wish {
	i = i * 7 % 20 // 7 and 20 have no common divisor: every wish gets its share
	for _, w := range wishes {
		if i < w.of {
			return w
		}
		i -= w.of
	}
	panic("the wishes are fewer than twenty")
}

func prepareMixed(ctx context.Context, s *session, requests int) (operation, error) {
	parents, err := s.parents(ctx, depth, requests)
	if err != nil {
		return nil, err
	}
	revoked, err := s.chain(ctx, person(1), depth)
	if err != nil {
		return nil, err
	}
	c, err := s.as(responder)
	if err != nil {
		return nil, err
	}
	if _, err := c.Revoke(ctx, client.RevokeRequest{Target: client.RevokeToken(revoked), Reason: "load test"}); err != nil {
		return nil, err
	}
	return func(ctx context.Context, i int) (string, error) {
		w, parent, actor := wished(i), parents[i], worker(i)
		switch w.want {
		case delegation.TokenRevoked:
			parent = revoked
		case delegation.ScopeNotPermitted:
			actor = unauthorized
		}
		child, err := s.to(actor)
		if err != nil {
			return "", err
		}
		if w.ask != nil {
			w.ask(&child)
		}
		c, err := s.as(line(depth))
		if err != nil {
			return "", err
		}
		_, err = c.Exchange(ctx, client.ExchangeRequest{SubjectToken: parent, Child: child})
		return expected(w.want, err)
	}, nil
}

// expected returns an error unless a request ended as it must.
func expected(want delegation.Reason, err error) (string, error) {
	refusal, refused := errors.AsType[*delegation.Error](err)
	switch {
	case want == "":
		return granted, err
	case err == nil:
		return "", fmt.Errorf("granted what must be refused with %s", want)
	case refused && refusal.Reason == want:
		return string(want), nil
	}
	return "", err
}
