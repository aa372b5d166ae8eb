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

// Mapping says which relationship of a tenant's OpenFGA model stands behind each thing an exchange can ask for. Its zero
// value fits the shipped model (fga-models/deputy.fga), where no authorization_details type is known. Nothing in a mapping
// can leave a question out: a name that is not mapped is refused.
type Mapping struct {
	// Delegator names the relation "may hand authority to" on the type of every actor.
	Delegator EdgeRule `yaml:"delegator"`
	// Scope names the object that stands for a scope: <type>:<scope>. Default scope, holder; but where Scopes maps single
	// scopes and this is left out, those are all the scopes there are and any other is refused.
	Scope ObjectRule `yaml:"scope"`
	// Resource names the object that stands for an audience: <type>:<audience>. Default resource, accessor.
	Resource ObjectRule `yaml:"resource"`
	// Scopes maps single scopes, by exact name, to objects of an own model instead.
	Scopes map[string]ScopeRule `yaml:"scopes"`
	// Details maps each type of authorization_details that may be asked for. Default none.
	Details map[string]DetailRule `yaml:"details"`
}

// EdgeRule maps the edges of a chain. The object is always the actor itself.
type EdgeRule struct {
	Relation string `yaml:"relation"` // default delegator
}

// ObjectRule maps every value of one kind to objects of one type, whose id is the percent-encoded value.
type ObjectRule struct {
	Type     string `yaml:"type"`
	Relation string `yaml:"relation"`
}

// ScopeRule maps one scope to one relation.
type ScopeRule struct {
	// Object is a fixed object such as app:documents, or holds {audience} once: app:{audience}. A scope with a fixed
	// object says nothing about single audiences, so it is refused in a token that has several.
	Object   string `yaml:"object"`
	Relation string `yaml:"relation"`
}

// DetailRule maps one type of authorization_details.
type DetailRule struct {
	// Object is the object that an element is about. One of the element's text fields may stand in braces:
	// document:{identifier}. An element without that field is refused.
	Object string `yaml:"object"`
	// Relations gives the relation behind each action. An element lists at least one action; each of them must be here.
	Relations map[string]string `yaml:"relations"`
	// Unchecked names fields that an element may carry without OpenFGA being asked about them, because they give no
	// authority of their own. An element with any other field beyond type, actions and the one in Object is refused.
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

// Limits of OpenFGA's API, in characters; everything that is sent is ASCII.
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

// compile reports every mistake at once, each with the path of the configuration key at fault.
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
		errs = append(errs, errors.New("mapping scope and resource: both name the same objects, so holding a scope would open an audience"))
	}
	for _, name := range slices.Sorted(maps.Keys(m.Scopes)) {
		rule, at := m.Scopes[name], "scopes."+name
		object, err := parseTemplate(at+".object", rule.Object)
		if err == nil && object.field != "" && object.field != "audience" {
			err = fmt.Errorf("mapping %s.object: a scope has no %s, only {audience} can be put in", at, object.field)
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
			errs = append(errs, fmt.Errorf("mapping %s.relations: no action is mapped, so every element would be refused", at))
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

// template is an object name with at most one value to put in. With one value between fixed ends, two different values
// never make the same object; with two they could ("a/b"+"c", "a"+"b/c").
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
		return template{}, fmt.Errorf("mapping %s: %q must hold at most one {field}", at, text)
	case !typed || id == "" || found && !strings.Contains(before, ":") || !isName(typ):
		return template{}, fmt.Errorf("mapping %s: %q is not type:id", at, text)
	case !found && !isID(id), !isID("x" + strings.TrimPrefix(before, typ+":") + after):
		return template{}, fmt.Errorf("mapping %s: %q has a character that OpenFGA does not accept in an id", at, text)
	}
	return t, nil
}

func (t template) typ() string { typ, _, _ := strings.Cut(t.before, ":"); return typ }

// fill puts the percent-encoded value in.
func (t template) fill(value string) string {
	if t.field == "" {
		return t.before
	}
	return t.before + delegation.EncodeID(value) + t.after
}

func checkType(at, s string) error {
	if !isName(s) {
		return fmt.Errorf("mapping %s: %q is not the name of a type", at, s)
	}
	return nil
}

func checkRelation(at, s string) error {
	if !isName(s) {
		return fmt.Errorf("mapping %s: %q is not the name of a relation", at, s)
	}
	return nil
}

// isName accepts less than OpenFGA does ([^:#@\s]{1,50}): what people write in models.
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			return false
		}
	}
	return s != "" && len(s) <= maxRelationLength
}

// isID accepts what OpenFGA takes as an object id, in ASCII and without the wildcard.
func isID(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || strings.IndexByte(":#*{}", c) >= 0 {
			return false
		}
	}
	return s != ""
}

// fit says whether the model has every type and relation that the rules name. The delegator relation belongs on the types of
// the tenant's actors, which are not named here: at least one type must have it.
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
			errs = append(errs, fmt.Errorf("mapping %s: the model has no relation %s on a type %s", at, relation, typ))
		}
	}
	if !delegated {
		errs = append(errs, fmt.Errorf("mapping delegator: the model has no type with a relation %s", r.delegator))
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

// holds says whether the model has the types of principals.
func holds(model openfga.AuthorizationModel, principals []string) error {
	var errs []error
	for _, typ := range principals {
		if !slices.ContainsFunc(model.TypeDefinitions, func(t openfga.TypeDefinition) bool { return t.Type == typ }) {
			errs = append(errs, fmt.Errorf("the model has no type %s, which trusted_issuers or clients make principals of: every exchange of theirs would fail", typ))
		}
	}
	return errors.Join(errs...)
}
