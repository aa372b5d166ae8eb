package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	openfga "github.com/openfga/go-sdk"

	"deputy.example/deputy/client/delegation"
)

// Mapping names the relationship of a tenant's OpenFGA model behind each thing that an exchange can
// ask for. The zero value fits the shipped model (fga-models/deputy.fga), where no
// authorization_details type is mapped. A mapping cannot omit a question: a name that is not mapped
// is refused.
type Mapping struct {
	// Delegator names the relation "may hand authority to" on the type of every actor.
	Delegator EdgeRule `yaml:"delegator"`
	// Scope names the object of a scope: <type>:<scope>. Default scope, holder. If Scopes maps
	// single scopes and Scope is empty, those are all scopes, and any other is refused.
	Scope ObjectRule `yaml:"scope"`
	// Resource names the object of an audience: <type>:<audience>. Default resource, accessor.
	Resource ObjectRule `yaml:"resource"`
	// Scopes maps single scopes, by exact name, to objects of the operator's own model.
	Scopes map[string]ScopeRule `yaml:"scopes"`
	// Details maps each type of authorization_details that can be requested. Default none.
	Details map[string]DetailRule `yaml:"details"`
}

// EdgeRule maps the edges of a chain. The object is always the actor itself.
type EdgeRule struct {
	Relation string `yaml:"relation"` // default delegator
}

// ObjectRule maps every value of one kind to objects of one type, whose id is the percent-encoded
// value.
type ObjectRule struct {
	Type     string `yaml:"type"`
	Relation string `yaml:"relation"`
}

// ScopeRule maps one scope to one relation.
type ScopeRule struct {
	// Object is a fixed object such as app:documents, or holds {audience} once: app:{audience}. A
	// fixed object does not distinguish audiences, so its scope is refused in a token with several.
	Object   string `yaml:"object"`
	Relation string `yaml:"relation"`
}

// DetailRule maps one type of authorization_details.
type DetailRule struct {
	// Object is the object that an element is about. It may hold one of the element's text fields
	// in braces: document:{identifier}. An element without that field is refused.
	Object string `yaml:"object"`
	// Relations maps each action to its relation. An element must list at least one action, and
	// each must be mapped.
	Relations map[string]string `yaml:"relations"`
	// Unchecked names fields that an element may have without a check by OpenFGA, because they give
	// no authority of their own. An element with any other field, except type, actions and the one
	// in Object, is refused.
	Unchecked []string `yaml:"unchecked"`
}

// The shipped model's names.
const (
	defaultDelegator        = "delegator"
	defaultScopeType        = "scope"
	defaultScopeRelation    = "holder"
	defaultResourceType     = "resource"
	defaultResourceRelation = "accessor"
)

// Limits of OpenFGA's API, in characters; all text that is sent is ASCII.
const (
	maxObjectLength   = 256
	maxUserLength     = 512
	maxRelationLength = 50
)

// rules is a Mapping with its defaults filled in, checked, and its templates taken apart.
type rules struct {
	delegator string
	scope     ObjectRule // zero where only mapped scopes exist
	resource  ObjectRule
	scopes    map[string]scopeRule
	details   map[string]detailRule
}

type scopeRule struct {
	object   template
	relation string
}

type detailRule struct {
	object    template
	relations map[string]string
	known     map[string]bool // the fields that an element may have
}

// compile reports every mistake at once, each with the path of its configuration key.
func (m Mapping) compile() (rules, error) {
	r := rules{
		delegator: m.Delegator.Relation,
		resource:  m.Resource.or(defaultResourceType, defaultResourceRelation),
		scopes:    make(map[string]scopeRule, len(m.Scopes)),
		details:   make(map[string]detailRule, len(m.Details)),
	}
	if r.delegator == "" {
		r.delegator = defaultDelegator
	}
	errs := []error{
		checkRelation("delegator.relation", r.delegator),
		checkType("resource.type", r.resource.Type), checkRelation("resource.relation", r.resource.Relation),
	}
	if m.Scope != (ObjectRule{}) || len(m.Scopes) == 0 {
		r.scope = m.Scope.or(defaultScopeType, defaultScopeRelation)
		errs = append(errs, checkType("scope.type", r.scope.Type), checkRelation("scope.relation", r.scope.Relation))
	}
	if r.scope == r.resource {
		errs = append(errs, errors.New("mapping scope, resource: must name different objects; with the same object a scope would open an audience"))
	}
	for _, name := range slices.Sorted(maps.Keys(m.Scopes)) {
		rule, at := m.Scopes[name], "scopes."+name
		object, err := parseTemplate(at+".object", rule.Object)
		if err == nil && object.field != "" && object.field != "audience" {
			err = fmt.Errorf("mapping %s.object: must hold no field but {audience}, not {%s}", at, object.field)
		}
		if _, notAScope := delegation.NewScopes(name); notAScope != nil {
			errs = append(errs, fmt.Errorf("mapping %s: %w", at, notAScope))
		}
		errs = append(errs, err, checkRelation(at+".relation", rule.Relation))
		r.scopes[name] = scopeRule{object, rule.Relation}
	}
	for _, name := range slices.Sorted(maps.Keys(m.Details)) {
		rule, at := m.Details[name], "details."+name
		object, err := parseTemplate(at+".object", rule.Object)
		errs = append(errs, err)
		if len(rule.Relations) == 0 {
			errs = append(errs, fmt.Errorf("mapping %s.relations: must map at least one action; without one every element is refused", at))
		}
		for _, action := range slices.Sorted(maps.Keys(rule.Relations)) {
			errs = append(errs, checkRelation(at+".relations."+action, rule.Relations[action]))
		}
		known := map[string]bool{"type": true, "actions": true}
		if object.field != "" {
			known[object.field] = true
		}
		for _, field := range rule.Unchecked {
			known[field] = true
		}
		r.details[name] = detailRule{object, maps.Clone(rule.Relations), known}
	}
	return r, errors.Join(errs...)
}

func (o ObjectRule) or(typ, relation string) ObjectRule {
	if o.Type == "" {
		o.Type = typ
	}
	if o.Relation == "" {
		o.Relation = relation
	}
	return o
}

// template is an object name with at most one variable. With one value between fixed ends, two
// different values never make the same object. With two they could ("a/b"+"c", "a"+"b/c").
type template struct {
	before, field, after string // field is "" where the object is fixed
}

func parseTemplate(at, text string) (template, error) {
	before, rest, found := strings.Cut(text, "{")
	field, after, closed := strings.Cut(rest, "}")
	t := template{before, field, after}
	typ, id, typed := strings.Cut(text, ":")
	switch {
	case found && (!closed || field == ""), strings.ContainsAny(before+after, "{}"):
		return template{}, fmt.Errorf("mapping %s: must hold at most one {field}, not %q", at, text)
	case !typed || id == "" || found && !strings.Contains(before, ":") || !isName(typ):
		return template{}, fmt.Errorf("mapping %s: must be type:id, not %q", at, text)
	case !found && !isID(id), !isID("x" + strings.TrimPrefix(before, typ+":") + after):
		return template{}, fmt.Errorf("mapping %s: must hold only characters that OpenFGA accepts in an id, not %q", at, text)
	}
	return t, nil
}

func (t template) typ() string { typ, _, _ := strings.Cut(t.before, ":"); return typ }

// fill inserts the percent-encoded value.
func (t template) fill(value string) string {
	if t.field == "" {
		return t.before
	}
	return t.before + delegation.EncodeID(value) + t.after
}

func checkType(at, s string) error {
	if !isName(s) {
		return fmt.Errorf("mapping %s: must be the name of a type, not %q", at, s)
	}
	return nil
}

func checkRelation(at, s string) error {
	if !isName(s) {
		return fmt.Errorf("mapping %s: must be the name of a relation, not %q", at, s)
	}
	return nil
}

// isName accepts the names that models use, a subset of OpenFGA's ([^:#@\s]{1,50}).
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			return false
		}
	}
	return s != "" && len(s) <= maxRelationLength
}

// isID accepts OpenFGA's object ids, restricted to ASCII and without the wildcard.
func isID(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || strings.IndexByte(":#*{}", c) >= 0 {
			return false
		}
	}
	return s != ""
}

// fit returns an error unless the model has every type and relation that the rules name. The
// delegator relation belongs to the types of the tenant's actors, which the rules do not name: at
// least one type must have it.
func (r *rules) fit(model openfga.AuthorizationModel) error {
	relations := make(map[string]map[string]openfga.Userset, len(model.TypeDefinitions))
	delegated := false
	for _, t := range model.TypeDefinitions {
		relations[t.Type] = t.GetRelations()
		_, has := relations[t.Type][r.delegator]
		delegated = delegated || has
	}
	var errs []error
	need := func(at, typ, relation string) {
		if _, there := relations[typ][relation]; !there {
			errs = append(errs, fmt.Errorf("mapping %s: must be in the model; it has no relation %s on a type %s", at, relation, typ))
		}
	}
	if !delegated {
		errs = append(errs, fmt.Errorf("mapping delegator: must be in the model; no type has a relation %s", r.delegator))
	}
	if r.scope != (ObjectRule{}) {
		need("scope", r.scope.Type, r.scope.Relation)
	}
	need("resource", r.resource.Type, r.resource.Relation)
	for _, name := range slices.Sorted(maps.Keys(r.scopes)) {
		need("scopes."+name, r.scopes[name].object.typ(), r.scopes[name].relation)
	}
	for _, name := range slices.Sorted(maps.Keys(r.details)) {
		for _, action := range slices.Sorted(maps.Keys(r.details[name].relations)) {
			need("details."+name+".relations."+action, r.details[name].object.typ(), r.details[name].relations[action])
		}
	}
	return errors.Join(errs...)
}

// holds returns an error unless the model has the types of principals.
func holds(model openfga.AuthorizationModel, principals []string) error {
	var errs []error
	for _, typ := range principals {
		if !slices.ContainsFunc(model.TypeDefinitions, func(t openfga.TypeDefinition) bool { return t.Type == typ }) {
			errs = append(errs, fmt.Errorf("the model has no type %s, which trusted_issuers or clients use for principals; every exchange of theirs would fail", typ))
		}
	}
	return errors.Join(errs...)
}
