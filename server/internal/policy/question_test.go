package policy_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"pgregory.net/rapid"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/policy/policytest"
)

func jsonUnmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

func ask(t *testing.T, fake *policytest.Fake, mapping policy.Mapping, q policy.Question) (policy.Decision, *delegation.Error) {
	t.Helper()
	c, err := policy.New(policy.Config{URL: "http://openfga.test", StoreID: policytest.FakeStore, ModelID: policytest.FakeModel, Transport: fake, Mapping: mapping, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.Ask(t.Context(), q)
	return d, delegation.AsError(err)
}

func details(t *testing.T, text string) []delegation.Detail {
	t.Helper()
	d, err := delegation.ParseDetails([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

var documents = policy.Mapping{
	Delegator: policy.EdgeRule{Relation: "trusts"},
	Scope:     policy.ObjectRule{Type: "permission"},
	Resource:  policy.ObjectRule{Relation: "caller"},
	Scopes: map[string]policy.ScopeRule{
		"documents.read": {Object: "app:{audience}", Relation: "reader"},
		"admin":          {Object: "system:main", Relation: "admin"},
	},
	Details: map[string]policy.DetailRule{
		"document": {Object: "document:{identifier}", Relations: map[string]string{"read": "can_read", "write": "can_write"}, Unchecked: []string{"locations"}},
	},
}

// The mapping renames every part of the question and nothing else.
func TestMappedQuestion(t *testing.T) {
	q := policy.Question{
		Edges:     []policy.Edge{{From: "user:alice", To: "agent:planner"}},
		Subject:   "user:alice",
		Actor:     "agent:planner",
		Scopes:    delegation.Scopes{"documents.read", "other"},
		Audiences: []string{"https://a.example"},
		Details:   details(t, `[{"type":"document","identifier":"plan: Q1","actions":["read","write"],"locations":["x"]}]`),
	}
	both := func(relation, object string) []policy.Relation {
		return []policy.Relation{{User: "user:alice", Relation: relation, Object: object}, {User: "agent:planner", Relation: relation, Object: object}}
	}
	for _, test := range []struct {
		audiences []string
		want      [][]policy.Relation
	}{
		{[]string{"https://a.example"}, [][]policy.Relation{
			{{User: "user:alice", Relation: "trusts", Object: "agent:planner"}},
			both("reader", "app:https%3A//a.example"), both("holder", "permission:other"),
			both("caller", "resource:https%3A//a.example"),
			both("can_read", "document:plan%3A%20Q1"), both("can_write", "document:plan%3A%20Q1"),
		}},
		{[]string{"a", "b"}, [][]policy.Relation{
			{{User: "user:alice", Relation: "trusts", Object: "agent:planner"}},
			both("reader", "app:a"), both("reader", "app:b"),
			both("holder", "permission:other"), both("holder", "permission:other|a"), both("holder", "permission:other|b"),
			both("caller", "resource:a"), both("caller", "resource:b"),
			both("can_read", "document:plan%3A%20Q1"), both("can_write", "document:plan%3A%20Q1"),
		}},
	} {
		q.Audiences = test.audiences
		var want []policy.Relation
		for _, part := range test.want {
			want = append(want, part...)
		}
		fake := new(policytest.Fake)
		if d, err := ask(t, fake, documents, q); err != nil || d.Allowed {
			t.Fatalf("an empty store: %+v, %v", d, err)
		}
		if got := fake.Calls(); len(got) != 1 || !reflect.DeepEqual(got[0], want) {
			t.Errorf("audiences %v: asked\n%v\nwant\n%v", test.audiences, got, want)
		}
	}
}

// If single scopes are mapped and no rule for the others is given, any other scope is refused. With
// neither, the shipped model's rule holds, and the same scope is asked for: the negative control.
func TestOnlyMappedScopes(t *testing.T) {
	q := policy.Question{Subject: "agent:p", Actor: "agent:p", Scopes: delegation.Scopes{"other"}, Audiences: []string{"a"}}
	yes := &policytest.Fake{Judge: func(policy.Relation) (bool, bool) { return true, true }}
	if d, err := ask(t, yes, policy.Mapping{Scopes: documents.Scopes}, q); err == nil || err.Reason != delegation.ScopeNotPermitted || d.Allowed {
		t.Errorf("an unmapped scope: %+v, %v", d, err)
	}
	if d, err := ask(t, yes, policy.Mapping{}, q); err != nil || !d.Allowed || d.Checks != 2 {
		t.Errorf("the shipped rule: %+v, %v", d, err)
	}
}

// Missing names the party and what it lacks, in every dimension.
func TestMissingNamesPartyAndDimension(t *testing.T) {
	q := policy.Question{
		Edges: []policy.Edge{{From: "user:alice", To: "agent:planner"}}, Subject: "user:alice", Actor: "agent:planner",
		Scopes: delegation.Scopes{"s"}, Audiences: []string{"a", "b"},
		Details: details(t, `[{"type":"document","identifier":"plan","actions":["read"]}]`),
	}
	for refused, want := range map[policy.Relation]policy.Missing{
		{User: "user:alice", Relation: "trusts", Object: "agent:planner"}:     {Party: policy.PartyEdge, Reason: delegation.EdgeNotPermitted, Value: "agent:planner"},
		{User: "user:alice", Relation: "holder", Object: "permission:s"}:      {Party: policy.PartySubject, Reason: delegation.ScopeNotPermitted, Value: "s"},
		{User: "agent:planner", Relation: "holder", Object: "permission:s|b"}: {Party: policy.PartyActor, Reason: delegation.ScopeNotPermitted, Value: "s", Audience: "b"},
		{User: "agent:planner", Relation: "caller", Object: "resource:b"}:     {Party: policy.PartyActor, Reason: delegation.AudienceNotPermitted, Value: "b"},
		{User: "user:alice", Relation: "can_read", Object: "document:plan"}:   {Party: policy.PartySubject, Reason: delegation.DetailsNotPermitted, Value: "document read"},
	} {
		fake := &policytest.Fake{Judge: func(r policy.Relation) (bool, bool) { return r != refused, true }}
		want.Relation = refused
		if d, err := ask(t, fake, documents, q); err != nil || d.Allowed || d.Missing == nil || *d.Missing != want {
			t.Errorf("without %s: %+v %+v, %v", refused, d, d.Missing, err)
		}
	}
}

// What cannot be put as a question is refused without a request, even with a store that answers yes
// to everything. The same store allows the well-formed question, which is the negative control.
func TestRefusedBeforeAsking(t *testing.T) {
	long := strings.Repeat("x", 256)
	for name, test := range map[string]struct {
		reason delegation.Reason
		change func(*policy.Question)
	}{
		"well-formed":    {"", func(q *policy.Question) {}},
		"self-narrowing": {"", func(q *policy.Question) { q.Edges, q.Subject = nil, q.Actor }},
		"no audience":    {delegation.AudienceMissing, func(q *policy.Question) { q.Audiences = nil }},
		"empty audience": {delegation.AudienceNotPermitted, func(q *policy.Question) { q.Audiences = []string{""} }},
		"long audience":  {delegation.AudienceNotPermitted, func(q *policy.Question) { q.Audiences = []string{long} }},
		"long scope":     {delegation.ScopeNotPermitted, func(q *policy.Question) { q.Scopes = delegation.Scopes{long} }},
		"long pair": {delegation.ScopeNotPermitted, func(q *policy.Question) {
			q.Scopes, q.Audiences = delegation.Scopes{long[:128]}, []string{long[:128], "b"}
		}},
		"empty scope":           {delegation.ScopeNotPermitted, func(q *policy.Question) { q.Scopes = delegation.Scopes{""} }},
		"fixed scope, many":     {delegation.AudienceNotSingle, func(q *policy.Question) { q.Scopes, q.Audiences = delegation.Scopes{"admin"}, []string{"a", "b"} }},
		"no subject":            {delegation.Internal, func(q *policy.Question) { q.Subject = "" }},
		"no actor":              {delegation.Internal, func(q *policy.Question) { q.Actor = "" }},
		"no edges":              {delegation.Internal, func(q *policy.Question) { q.Edges = nil }},
		"edges start elsewhere": {delegation.Internal, func(q *policy.Question) { q.Edges = []policy.Edge{{From: "agent:x", To: "agent:planner"}} }},
		"edges end elsewhere":   {delegation.Internal, func(q *policy.Question) { q.Edges = []policy.Edge{{From: "user:alice", To: "agent:x"}} }},
		"gap":                   {delegation.Internal, func(q *policy.Question) { q.Edges = append(q.Edges, policy.Edge{From: "agent:x", To: "agent:planner"}) }},
		"wildcard as subject":   {delegation.Internal, func(q *policy.Question) { q.Edges[0].From, q.Subject = "user:*", "user:*" }},
		"group as actor":        {delegation.Internal, func(q *policy.Question) { q.Edges[0].To, q.Actor = "group:x#member", "group:x#member" }},
		"zero detail":           {delegation.DetailsUnknownType, func(q *policy.Question) { q.Details = make([]delegation.Detail, 1) }},
		"unknown detail type":   {delegation.DetailsUnknownType, func(q *policy.Question) { q.Details = details(t, `[{"type":"payment","actions":["read"]}]`) }},
		"type in other case": {delegation.DetailsUnknownType, func(q *policy.Question) {
			q.Details = details(t, `[{"type":"Document","identifier":"x","actions":["read"]}]`)
		}},
		"unknown action": {delegation.DetailsUnknownType, func(q *policy.Question) {
			q.Details = details(t, `[{"type":"document","identifier":"x","actions":["read","share"]}]`)
		}},
		"no actions":    {delegation.DetailsUnknownType, func(q *policy.Question) { q.Details = details(t, `[{"type":"document","identifier":"x"}]`) }},
		"no identifier": {delegation.DetailsUnknownType, func(q *policy.Question) { q.Details = details(t, `[{"type":"document","actions":["read"]}]`) }},
		"empty identifier": {delegation.DetailsUnknownType, func(q *policy.Question) {
			q.Details = details(t, `[{"type":"document","identifier":"","actions":["read"]}]`)
		}},
		"identifier is a list": {delegation.DetailsUnknownType, func(q *policy.Question) {
			q.Details = details(t, `[{"type":"document","identifier":["x"],"actions":["read"]}]`)
		}},
		"field without a check": {delegation.DetailsUnknownType, func(q *policy.Question) {
			q.Details = details(t, `[{"type":"document","identifier":"x","actions":["read"],"privileges":["admin"]}]`)
		}},
		"field declared as such": {"", func(q *policy.Question) {
			q.Details = details(t, `[{"type":"document","identifier":"x","actions":["read"],"locations":["y"]}]`)
		}},
		"second detail unknown": {delegation.DetailsUnknownType, func(q *policy.Question) {
			q.Details = details(t, `[{"type":"document","identifier":"x","actions":["read"]},{"type":"payment"}]`)
		}},
	} {
		q := policy.Question{
			Edges: []policy.Edge{{From: "user:alice", To: "agent:planner"}}, Subject: "user:alice", Actor: "agent:planner",
			Audiences: []string{"a"},
		}
		test.change(&q)
		fake := &policytest.Fake{Judge: func(policy.Relation) (bool, bool) { return true, true }}
		d, err := ask(t, fake, documents, q)
		switch {
		case test.reason == "" && (err != nil || !d.Allowed):
			t.Errorf("%s: %+v, %v", name, d, err)
		case test.reason != "" && (err == nil || err.Reason != test.reason || d != policy.Decision{} || len(fake.Calls()) != 0):
			t.Errorf("%s: %+v, %v, calls %v", name, d, err, fake.Calls())
		}
	}
}

// Two different values are never the same object: no scope, audience, pair or document can be asked
// for under the name of another.
func TestObjectsAreInjective(t *testing.T) {
	objects := func(s, a, id string) []policy.Relation {
		fake := new(policytest.Fake)
		raw, err := json.Marshal([]map[string]any{{"type": "document", "identifier": id, "actions": []string{"read"}}})
		if err != nil {
			t.Fatal(err)
		}
		_, refused := ask(t, fake, documents, policy.Question{Subject: "agent:p", Actor: "agent:p",
			Scopes: delegation.Scopes{s}, Audiences: []string{a, "b"}, Details: details(t, string(raw))})
		if refused != nil {
			t.Fatalf("%q %q %q: %v", s, a, id, refused)
		}
		return fake.Calls()[0]
	}
	value := rapid.StringOfN(rapid.RuneFrom([]rune(`a|%:#*/ 7C`)), 1, 4, -1)
	rapid.Check(t, func(rt *rapid.T) {
		s1, a1, id1 := value.Draw(rt, "s1"), value.Draw(rt, "a1"), value.Draw(rt, "id1")
		s2, a2, id2 := value.Draw(rt, "s2"), value.Draw(rt, "a2"), value.Draw(rt, "id2")
		same := s1 == s2 && a1 == a2 && id1 == id2
		if reflect.DeepEqual(objects(s1, a1, id1), objects(s2, a2, id2)) != same {
			rt.Fatalf("%q at %q, %q and %q at %q, %q", s1, a1, id1, s2, a2, id2)
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	valid := policy.Config{URL: "https://openfga.test:8080", StoreID: policytest.FakeStore, ModelID: policytest.FakeModel, Mapping: documents}
	for name, test := range map[string]struct {
		want   string // "" where the configuration is accepted
		change func(*policy.Config)
	}{
		"valid":               {"", func(c *policy.Config) {}},
		"zero mapping":        {"", func(c *policy.Config) { c.Mapping = policy.Mapping{} }},
		"no address":          {"url", func(c *policy.Config) { c.URL = "" }},
		"other scheme":        {"url", func(c *policy.Config) { c.URL = "ftp://openfga.test" }},
		"password in address": {"url", func(c *policy.Config) { c.URL = "https://u:p@openfga.test" }},
		"query in address":    {"url", func(c *policy.Config) { c.URL += "/?a" }},
		"fragment in address": {"url", func(c *policy.Config) { c.URL += "/#a" }},
		"no store":            {"store", func(c *policy.Config) { c.StoreID = "" }},
		"no model":            {"pinned", func(c *policy.Config) { c.ModelID = "" }},
		"path as model":       {"model", func(c *policy.Config) { c.ModelID = "../../../stores/aaaaaaaaaaaa" }},
		"negative timeout":    {"timeout", func(c *policy.Config) { c.Timeout = -1 }},
		"negative bound":      {"max_checks", func(c *policy.Config) { c.MaxChecks = -1 }},
		"scope is resource": {"open an audience", func(c *policy.Config) {
			c.Mapping.Scope = policy.ObjectRule{Type: "t", Relation: "r"}
			c.Mapping.Resource = c.Mapping.Scope
		}},
		"relation with a hash": {"delegator.relation", func(c *policy.Config) { c.Mapping.Delegator.Relation = "a#b" }},
		"type with a colon":    {"scope.type", func(c *policy.Config) { c.Mapping.Scope.Type = "a:b" }},
		"wildcard resource":    {"resource.type", func(c *policy.Config) { c.Mapping.Resource.Type = "*" }},
		"scope without object": {"scopes.s.object", scope(policy.ScopeRule{Relation: "r"})},
		"scope for everything": {"scopes.s.object", scope(policy.ScopeRule{Object: "app:*", Relation: "r"})},
		"scope with no id":     {"scopes.s.object", scope(policy.ScopeRule{Object: "app:", Relation: "r"})},
		"scope by identifier":  {"{audience}", scope(policy.ScopeRule{Object: "app:{identifier}", Relation: "r"})},
		"scope by two":         {"at most one", scope(policy.ScopeRule{Object: "app:{audience}{audience}", Relation: "r"})},
		"scope, open brace":    {"at most one", scope(policy.ScopeRule{Object: "app:{audience", Relation: "r"})},
		"scope chooses type":   {"type:id", scope(policy.ScopeRule{Object: "{audience}:x", Relation: "r"})},
		"scope, userset":       {"scopes.s.object", scope(policy.ScopeRule{Object: "app:{audience}#member", Relation: "r"})},
		"scope, no relation":   {"scopes.s.relation", scope(policy.ScopeRule{Object: "app:x"})},
		"scope name": {"scopes.a b", func(c *policy.Config) {
			c.Mapping.Scopes = map[string]policy.ScopeRule{"a b": {Object: "app:x", Relation: "r"}}
		}},
		"detail without action": {"details.d.relations", detail(policy.DetailRule{Object: "d:{id}"})},
		"detail without object": {"details.d.object", detail(policy.DetailRule{Relations: map[string]string{"a": "r"}})},
		"detail bad relation":   {"details.d.relations.a", detail(policy.DetailRule{Object: "d:{id}", Relations: map[string]string{"a": ""}})},
		"detail, fixed object":  {"", detail(policy.DetailRule{Object: "d:x", Relations: map[string]string{"a": "r"}})},
	} {
		config := valid
		test.change(&config)
		_, err := policy.New(config)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func scope(rule policy.ScopeRule) func(*policy.Config) {
	return func(c *policy.Config) { c.Mapping.Scopes = map[string]policy.ScopeRule{"s": rule} }
}

func detail(rule policy.DetailRule) func(*policy.Config) {
	return func(c *policy.Config) { c.Mapping.Details = map[string]policy.DetailRule{"d": rule} }
}

// The mapping's YAML, as docs/policy.md shows it, read strictly.
func TestMappingYAML(t *testing.T) {
	const text = `
delegator: {relation: trusts}
scope: {type: permission}
resource: {relation: caller}
scopes:
  documents.read: {object: "app:{audience}", relation: reader}
  admin: {object: system:main, relation: admin}
details:
  document:
    object: document:{identifier}
    relations: {read: can_read, write: can_write}
    unchecked: [locations]
`
	var got policy.Mapping
	if err := yaml.UnmarshalWithOptions([]byte(text), &got, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, documents) {
		t.Errorf("got %+v, want %+v", got, documents)
	}
	if err := yaml.UnmarshalWithOptions([]byte(text+"detials: {}\n"), &got, yaml.Strict()); err == nil {
		t.Error("a misspelt key is ignored")
	}
}
