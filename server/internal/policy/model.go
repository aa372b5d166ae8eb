package policy

import (
	"context"
	"fmt"
	"strings"

	openfga "github.com/openfga/go-sdk"

	"deputy.example/deputy/client/delegation"
)

// model holds what questions about more than single relations need of the pinned model. A model
// never changes, so it is read once.
type model struct {
	types map[string]map[string]openfga.Userset // relations by type
	users []string                              // types that a tuple can name as its user
	*influences
}

func (m *model) has(typ, relation string) bool {
	_, there := m.types[typ][relation]
	return there
}

func typeOf(object string) string { typ, _, _ := strings.Cut(object, ":"); return typ }

// readModel returns the model, or DependencyDown.
func (c *Checker) readModel(ctx context.Context) (*model, error) {
	if m := c.known.Load(); m != nil {
		return m, nil
	}
	fetched, err := c.fetchModel(ctx)
	if err != nil {
		return nil, delegation.Unavailable("OpenFGA", err)
	}
	m := newModel(fetched)
	c.known.Store(m)
	return m, nil
}

func newModel(fetched openfga.AuthorizationModel) *model {
	m := &model{types: make(map[string]map[string]openfga.Userset, len(fetched.TypeDefinitions)), influences: newInfluences(fetched)}
	users := make(map[string]bool)
	for _, t := range fetched.TypeDefinitions {
		m.types[t.Type] = t.GetRelations()
		if m.types[t.Type] == nil {
			m.types[t.Type] = map[string]openfga.Userset{}
		}
		metadata := t.GetMetadata()
		for _, relation := range metadata.GetRelations() {
			for _, user := range relation.GetDirectlyRelatedUserTypes() {
				if user.GetRelation() == "" {
					users[user.GetType()] = true
				}
			}
		}
	}
	for _, t := range fetched.TypeDefinitions { // in the model's order
		if users[t.Type] {
			m.users = append(m.users, t.Type)
		}
	}
	return m
}

func (c *Checker) fetchModel(ctx context.Context) (openfga.AuthorizationModel, error) {
	answer, _, err := c.api.OpenFgaApi.ReadAuthorizationModel(ctx, c.store, c.model).Execute()
	if err != nil {
		return openfga.AuthorizationModel{}, fmt.Errorf("OpenFGA model %s: %w", c.model, err)
	}
	fetched := answer.GetAuthorizationModel()
	if fetched.Id != c.model {
		return openfga.AuthorizationModel{}, fmt.Errorf("OpenFGA model %s: the server returned a different model", c.model)
	}
	return fetched, nil
}
