package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	openfga "github.com/openfga/go-sdk"

	"deputy.example/deputy/client/delegation"
)

// maxListed is how many results OpenFGA lists by default. It does not report whether it left some
// out, so a list of that length may be incomplete.
const maxListed = 1000

type listObjectsRequest struct {
	ModelID     string `json:"authorization_model_id"`
	Type        string `json:"type"`
	Relation    string `json:"relation"`
	User        string `json:"user"`
	Consistency string `json:"consistency"`
}

type listObjectsResponse struct {
	Objects *[]string `json:"objects"`
}

// values lists the scopes or audiences, by the rule that maps them to objects, for which the user
// has the relation. Names that no token can hold are left out, pairs of a scope and an audience
// among them.
func (c *Checker) values(ctx context.Context, user delegation.Principal, rule ObjectRule) (values []string, all bool, err error) {
	if rule == (ObjectRule{}) {
		return nil, true, nil
	}
	began := time.Now()
	body, err := c.execute(ctx, "/list-objects", listObjectsRequest{
		ModelID: c.model, Type: rule.Type, Relation: rule.Relation, User: string(user),
		Consistency: string(openfga.CONSISTENCYPREFERENCE_HIGHER_CONSISTENCY),
	})
	var response listObjectsResponse
	if err == nil {
		err = json.Unmarshal(body, &response)
	}
	if err == nil && response.Objects == nil {
		err = errors.New("OpenFGA: malformed ListObjects response")
	}
	c.metrics.observe(0, time.Since(began), err)
	if err != nil {
		return nil, false, delegation.Unavailable("OpenFGA", err)
	}
	for _, object := range *response.Objects {
		id, ours := strings.CutPrefix(object, rule.Type+":")
		if !ours {
			return nil, false, delegation.Unavailable("OpenFGA", fmt.Errorf("the list of objects of type %s holds another type", rule.Type))
		}
		if value := delegation.DecodeID(id); delegation.EncodeID(value) == id {
			values = append(values, value)
		}
	}
	slices.Sort(values)
	return slices.Compact(values), len(*response.Objects) < maxListed, nil
}

type listUsersRequest struct {
	ModelID     string       `json:"authorization_model_id"`
	Object      object       `json:"object"`
	Relation    string       `json:"relation"`
	Filters     []userFilter `json:"user_filters"`
	Consistency string       `json:"consistency"`
}

type object struct {
	Type string `json:"type"`
	ID   string `json:"id"`
}

type userFilter struct {
	Type string `json:"type"`
}

type listUsersResponse struct {
	Users *[]struct {
		Object   *object   `json:"object"`
		Wildcard *struct{} `json:"wildcard"`
	} `json:"users"`
}

// delegators lists the principals that may hand authority to the agent. all is false if there may
// be more: a wildcard in the model makes every principal a delegator.
func (c *Checker) delegators(ctx context.Context, m *model, agent delegation.Principal) (who []delegation.Principal, all bool, err error) {
	all = true
	for _, typ := range m.users { // OpenFGA accepts one type at a time
		found, whole, err := c.delegatorsOf(ctx, agent, typ)
		if err != nil {
			return nil, false, delegation.Unavailable("OpenFGA", err)
		}
		who, all = append(who, found...), all && whole
	}
	slices.Sort(who)
	return slices.Compact(who), all, nil
}

func (c *Checker) delegatorsOf(ctx context.Context, agent delegation.Principal, typ string) (who []delegation.Principal, all bool, err error) {
	began := time.Now()
	defer func() { c.metrics.observe(0, time.Since(began), err) }()
	body, err := c.execute(ctx, "/list-users", listUsersRequest{
		ModelID: c.model, Object: object{agent.Type(), agent.ID()}, Relation: c.rules.delegator, Filters: []userFilter{{typ}},
		Consistency: string(openfga.CONSISTENCYPREFERENCE_HIGHER_CONSISTENCY),
	})
	if err != nil {
		return nil, false, err
	}
	var response listUsersResponse
	if err := json.Unmarshal(body, &response); err != nil {
		return nil, false, err
	}
	if response.Users == nil {
		return nil, false, errors.New("OpenFGA: malformed ListUsers response")
	}
	all = len(*response.Users) < maxListed
	for _, user := range *response.Users {
		if user.Object == nil {
			all = false
			continue
		}
		if p, err := delegation.ParsePrincipal(user.Object.Type + ":" + user.Object.ID); err == nil { // no token holds the others
			who = append(who, p)
		}
	}
	return who, all, nil
}
