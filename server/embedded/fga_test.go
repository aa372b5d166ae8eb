package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/openfga/language/pkg/go/transformer"
	openfgaserver "github.com/openfga/openfga/pkg/server"
	"github.com/openfga/openfga/pkg/storage"

	"deputy.example/deputy/client/delegation"
	fgamodels "deputy.example/deputy/fga-models"
	"deputy.example/deputy/server/embedded/internal/tuples"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/policy/policytest"
)

// store is one store of an FGA with a model in it, as the policy suite needs it.
type store struct {
	fga       *FGA
	transport http.RoundTripper // how questions reach the server
	id, model string
}

func newStore(t testing.TB, f *FGA, modelJSON []byte) *store {
	t.Helper()
	s := &store{fga: f, transport: f}
	var err error
	if s.id, err = f.CreateStore(t.Context(), t.Name()); err != nil {
		t.Fatal(err)
	}
	if s.model, err = f.WriteModel(t.Context(), s.id, modelJSON); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *store) RoundTrip(r *http.Request) (*http.Response, error) { return s.transport.RoundTrip(r) }
func (s *store) IDs() (string, string)                             { return s.id, s.model }
func (s *store) Write(ctx context.Context, r ...policy.Relation) error {
	return s.fga.WriteTuples(ctx, s.id, r...)
}
func (s *store) Delete(ctx context.Context, r ...policy.Relation) error {
	return s.fga.DeleteTuples(ctx, s.id, r...)
}

func (s *store) checker(t testing.TB, mapping policy.Mapping) *policy.Checker {
	t.Helper()
	c, err := policy.New(policy.Config{URL: "http://openfga.test", StoreID: s.id, ModelID: s.model, Transport: s, Mapping: mapping, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func startFGA(t testing.TB) *FGA {
	t.Helper()
	f, err := NewFGA(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

// startWith starts a server with options of OpenFGA's own, on a datastore.
func startWith(t testing.TB, datastore storage.OpenFGADatastore, options ...openfgaserver.OpenFGAServiceV1Option) *FGA {
	t.Helper()
	server, err := openfgaserver.NewServerWithOpts(append(options, openfgaserver.WithDatastore(datastore))...)
	if err != nil {
		t.Fatal(err)
	}
	f, err := newFGA(t.Context(), server, datastore)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

// A real server answers every question like the fake of the policy tests, in process and over TCP.
func TestPolicyConformance(t *testing.T) {
	f := startFGA(t)
	policytest.Run(t, func(t *testing.T) policytest.Backend { return newStore(t, f, fgamodels.DeputyJSON) })
}

func TestPolicyConformanceOverTCP(t *testing.T) {
	f := startFGA(t)
	server := httptest.NewServer(f)
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	policytest.Run(t, func(t *testing.T) policytest.Backend {
		s := newStore(t, f, fgamodels.DeputyJSON)
		s.transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			r = r.Clone(r.Context())
			r.URL.Host = address
			return http.DefaultTransport.RoundTrip(r)
		})
		return s
	})
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Negative control of the freshness test (I11): a server that caches checks, asked without higher
// consistency, returns relationships that were deleted. With the consistency that the checker
// demands, the same server does not.
func TestCachedChecksWouldBeStale(t *testing.T) {
	f := startWith(t, tuples.New(),
		openfgaserver.WithCheckQueryCacheEnabled(true),
		openfgaserver.WithCheckQueryCacheTTL(time.Hour),
		openfgaserver.WithCheckCacheLimit(10_000))
	var downgraded atomic.Int32
	careless := roundTripper(func(r *http.Request) (*http.Response, error) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		changed := bytes.Replace(body, []byte("HIGHER_CONSISTENCY"), []byte("MINIMIZE_LATENCY"), 1)
		if !bytes.Equal(body, changed) {
			downgraded.Add(1)
		}
		r = r.Clone(r.Context())
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(changed)), int64(len(changed))
		return f.RoundTrip(r)
	})
	t.Run("careless", func(t *testing.T) {
		if stale := policytest.StaleAnswers(t, newStore(t, f, fgamodels.DeputyJSON), careless, 20); stale == 0 || downgraded.Load() == 0 {
			t.Errorf("%d stale answers in %d downgraded requests: the freshness test could not fail", stale, downgraded.Load())
		}
	})
	t.Run("as asked", func(t *testing.T) {
		if stale := policytest.StaleAnswers(t, newStore(t, f, fgamodels.DeputyJSON), f, 20); stale != 0 {
			t.Errorf("%d stale answers although higher consistency was asked for", stale)
		}
	})
}

// The checker's bound is OpenFGA's: one check more is refused by the server, so a higher bound
// would turn a refusal that names the remedy into an outage.
func TestServerRefusesMoreChecksThanTheBound(t *testing.T) {
	s := newStore(t, startFGA(t), fgamodels.DeputyJSON)
	q := policy.Question{Subject: "agent:planner", Actor: "agent:planner", Audiences: []string{"calendar"}}
	for i := range policy.DefaultMaxChecks {
		q.Scopes = append(q.Scopes, fmt.Sprintf("s%02d", i))
	}
	for bound, want := range map[int]delegation.Reason{0: delegation.TooManyChecks, policy.DefaultMaxChecks + 1: delegation.DependencyDown} {
		c, err := policy.New(policy.Config{URL: "http://openfga.test", StoreID: s.id, ModelID: s.model, Transport: s, MaxChecks: bound, Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Ask(t.Context(), q); err == nil || delegation.AsError(err).Reason != want {
			t.Errorf("bound %d: %v, want %s", bound, err, want)
		}
	}
}

// A principal of a type that the model does not know makes its own question unanswerable, not its
// siblings'.
func TestUnknownTypeConcernsItsQuestionAlone(t *testing.T) {
	s := newStore(t, startFGA(t), fgamodels.DeputyJSON)
	q, needed := policytest.Exchange()
	if err := s.Write(t.Context(), needed...); err != nil {
		t.Fatal(err)
	}
	unknown := q
	unknown.Edges = append(unknown.Edges[:1:1], policy.Edge{From: "agent:planner", To: "bot:x"})
	unknown.Actor = "bot:x"
	answers := s.checker(t, policy.Mapping{}).AskAll(t.Context(), []policy.Question{q, unknown})
	if answers[0].Err != nil || !answers[0].Decision.Allowed {
		t.Errorf("the sound question: %+v", answers[0])
	}
	if e := delegation.AsError(answers[1].Err); e == nil || e.Reason != delegation.DependencyDown || answers[1].Decision.Allowed {
		t.Errorf("the question of an unknown type: %+v", answers[1])
	}
}

// storeFile is the part of OpenFGA's store-file format that the model tests use.
type storeFile struct {
	Name      string            `yaml:"name"`
	ModelFile string            `yaml:"model_file"`
	Tuples    []policy.Relation `yaml:"tuples"`
	Tests     []struct {
		Name  string `yaml:"name"`
		Check []struct {
			User       string          `yaml:"user"`
			Object     string          `yaml:"object"`
			Assertions map[string]bool `yaml:"assertions"`
		} `yaml:"check"`
	} `yaml:"tests"`
}

// loadStoreFile reads a store file and the model that it names.
func loadStoreFile(t *testing.T, path string) (storeFile, []byte) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file storeFile
	if err := yaml.UnmarshalWithOptions(text, &file, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	dsl, err := os.ReadFile(filepath.Join(filepath.Dir(path), file.ModelFile))
	if err != nil {
		t.Fatal(err)
	}
	model, err := transformer.TransformDSLToJSON(string(dsl))
	if err != nil {
		t.Fatal(err)
	}
	return file, []byte(model)
}

// The models answer as their store files demand.
func TestModels(t *testing.T) {
	f := startFGA(t)
	for _, path := range []string{"../../fga-models/deputy.fga.yaml", "../../fga-models/testdata/documents.fga.yaml"} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			file, model := loadStoreFile(t, path)
			s := newStore(t, f, model)
			if err := s.Write(t.Context(), file.Tuples...); err != nil {
				t.Fatal(err)
			}
			c := s.checker(t, policy.Mapping{})
			assertions := 0
			for _, test := range file.Tests {
				for _, check := range test.Check {
					for relation, want := range check.Assertions {
						assertions++
						r := policy.Relation{User: check.User, Relation: relation, Object: check.Object}
						if got, err := c.Has(t.Context(), r); err != nil || got != want {
							t.Errorf("%s: %s is %v, %v; want %v", test.Name, r, got, err, want)
						}
					}
				}
			}
			if assertions < 6 {
				t.Errorf("only %d assertions were read", assertions)
			}
		})
	}
}

// The shipped model takes no wildcard, and no machine where only people decide.
func TestShippedModelRefusesTuples(t *testing.T) {
	s := newStore(t, startFGA(t), fgamodels.DeputyJSON)
	refused := []policy.Relation{
		{User: "user:*", Relation: "holder", Object: "scope:calendar.read"},
		{User: "agent:*", Relation: "delegator", Object: "agent:planner"},
		{User: "user:*", Relation: "accessor", Object: "resource:calendar"},
		{User: "user:*", Relation: "member", Object: "group:all"},
		{User: "user:*", Relation: "admin", Object: "system:deputy"},
		{User: "agent:planner", Relation: "approver", Object: "scope:calendar.read"},
		{User: "service:ci", Relation: "approver", Object: "scope:calendar.read"},
		{User: "agent:planner", Relation: "operator", Object: "agent:planner"},
		{User: "agent:planner", Relation: "auditor", Object: "system:deputy"},
		{User: "agent:planner", Relation: "responder", Object: "system:deputy"},
		{User: "agent:planner", Relation: "admin", Object: "system:deputy"},
		{User: "user:alice", Relation: "delegator", Object: "user:bob"},
	}
	for _, r := range refused {
		if err := s.Write(t.Context(), r); err == nil {
			t.Errorf("%s was accepted", r)
		}
	}
	// Negative control: the same writes with what the model does accept.
	for _, r := range []policy.Relation{
		{User: "user:alice", Relation: "holder", Object: "scope:calendar.read"},
		{User: "user:alice", Relation: "approver", Object: "scope:calendar.read"},
		{User: "user:alice", Relation: "operator", Object: "agent:planner"},
		{User: "user:alice", Relation: "delegator", Object: "agent:planner"},
	} {
		if err := s.Write(t.Context(), r); err != nil {
			t.Errorf("%s: %v", r, err)
		}
	}
}

// documentsMapping reads the mapping that docs/policy.md shows for the documents-and-folders model.
func documentsMapping(t *testing.T) policy.Mapping {
	t.Helper()
	page, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(page), "```yaml\npolicy:")
	text, _, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatal("docs/policy.md shows no policy section")
	}
	var config struct {
		Policy struct {
			URL       string         `yaml:"url"`
			Store     string         `yaml:"store"`
			Model     string         `yaml:"model"`
			Timeout   string         `yaml:"timeout"`
			MaxChecks int            `yaml:"max_checks"`
			Mapping   policy.Mapping `yaml:"mapping"`
		} `yaml:"policy"`
	}
	if err := yaml.UnmarshalWithOptions([]byte("policy:"+text), &config, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	return config.Policy.Mapping
}

// An application's own model decides, unchanged, through the mapping that the documentation shows.
func TestDocumentsAndFolders(t *testing.T) {
	file, model := loadStoreFile(t, "../../fga-models/testdata/documents.fga.yaml")
	s := newStore(t, startFGA(t), model)
	if err := s.Write(t.Context(), file.Tuples...); err != nil {
		t.Fatal(err)
	}
	c := s.checker(t, documentsMapping(t))
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	ask := func(scope, details string) (policy.Decision, error) {
		t.Helper()
		q := policy.Question{
			Edges: []policy.Edge{{From: "user:alice", To: "agent:planner"}}, Subject: "user:alice", Actor: "agent:planner",
			Audiences: []string{"https://documents.example"},
		}
		if scope != "" {
			q.Scopes = delegation.Scopes{scope}
		}
		if details != "" {
			var err error
			if q.Details, err = delegation.ParseDetails([]byte(details)); err != nil {
				t.Fatal(err)
			}
		}
		return c.Ask(t.Context(), q)
	}
	const read, write = `[{"type":"document","identifier":"q1","actions":["read"]}]`, `[{"type":"document","identifier":"q1","actions":["read","write"]}]`
	// The scope and the audience need the same relation here, so it is checked once for each party.
	if d, err := ask("documents.use", read); err != nil || !d.Allowed || d.Checks != 5 {
		t.Errorf("reading through two folders and a team: %+v %v, %v", d, d.Missing, err)
	}
	d, err := ask("documents.use", write)
	if err != nil || d.Allowed || d.Missing.Relation != (policy.Relation{User: "agent:planner", Relation: "can_write", Object: "document:q1"}) {
		t.Errorf("writing: %+v %v, %v", d, d.Missing, err)
	}
	if d, err := ask("", `[{"type":"document","identifier":"diary","actions":["read"]}]`); err != nil || d.Allowed || d.Missing.Party != policy.PartyActor {
		t.Errorf("the diary: %+v %v, %v", d, d.Missing, err)
	}
	if d, err := ask("documents.admin", read); err == nil || delegation.AsError(err).Reason != delegation.ScopeNotPermitted || d.Allowed {
		t.Errorf("an unmapped scope: %+v, %v", d, err)
	}
	// The folder's sharing ends: the next answer reflects it.
	if err := s.Delete(t.Context(), policy.Relation{User: "team:assistants#member", Relation: "viewer", Object: "folder:plans"}); err != nil {
		t.Fatal(err)
	}
	if d, err := ask("documents.use", read); err != nil || d.Allowed {
		t.Errorf("after the folder was unshared: %+v, %v", d, err)
	}
}

// Ids follow from content, so that what the ledger recorded before a restart means the same after
// it.
func TestIDsSurviveARestart(t *testing.T) {
	ids := func(name string, model []byte) [2]string {
		f := startFGA(t)
		id, err := f.CreateStore(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		m, err := f.WriteModel(t.Context(), id, model)
		if err != nil {
			t.Fatal(err)
		}
		return [2]string{id, m}
	}
	edited := bytes.Replace(fgamodels.DeputyJSON, []byte("approver"), []byte("confirmer"), -1)
	first := ids("acme", fgamodels.DeputyJSON)
	if again := ids("acme", fgamodels.DeputyJSON); again != first {
		t.Errorf("%v, then %v", first, again)
	}
	if other := ids("globex", edited); other[0] == first[0] || other[1] == first[1] {
		t.Errorf("another store and model have the ids %v too", other)
	}
}

func TestWriteModelRefusesAnInvalidModel(t *testing.T) {
	f := startFGA(t)
	for name, model := range map[string]string{
		"no JSON":      "model",
		"no schema":    `{"type_definitions":[{"type":"user"}]}`,
		"unknown type": strings.Replace(string(fgamodels.DeputyJSON), `"type": "user"`, `"type": "person"`, 1),
	} {
		if id, err := f.WriteModel(t.Context(), "01ARZ3NDEKTSV4RRFFQ69G5FAV", []byte(model)); err == nil {
			t.Errorf("%s: written as %s", name, id)
		}
	}
}

// A panic inside OpenFGA is an error of the request, and an expired request is not started.
func TestRoundTripFails(t *testing.T) {
	f := &FGA{handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("inside") })}
	r := httptest.NewRequest(http.MethodGet, "/stores", nil)
	if response, err := f.RoundTrip(r); err == nil || response != nil {
		t.Errorf("panic: %v, %v", response, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.RoundTrip(r.WithContext(ctx)); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// BenchmarkAsk asks the question of one exchange (eight checks) of a server in the same process:
// the checker's and OpenFGA's work together. "checker" gets its answer at once, which leaves the
// checker and the SDK.
func BenchmarkAsk(b *testing.B) {
	q, needed := policytest.Exchange()
	for _, other := range []int{0, 400, 4000} {
		b.Run(fmt.Sprintf("openfga/tuples=%d", other), func(b *testing.B) {
			s := newStore(b, startFGA(b), fgamodels.DeputyJSON)
			if err := s.Write(b.Context(), needed...); err != nil {
				b.Fatal(err)
			}
			for i := range other {
				if err := s.Write(b.Context(), policy.Relation{User: "user:other", Relation: "holder", Object: fmt.Sprintf("scope:s%d", i)}); err != nil {
					b.Fatal(err)
				}
			}
			benchmark(b, s.checker(b, policy.Mapping{}), q)
		})
	}
	b.Run("checker", func(b *testing.B) {
		answer := []string{}
		for i := range needed {
			answer = append(answer, fmt.Sprintf(`"%d":{"allowed":true}`, i))
		}
		body := `{"result":{` + strings.Join(answer, ",") + `}}`
		benchmark(b, policytest.NewChecker(b, &policytest.Fake{Answer: func(*http.Request, http.RoundTripper) (*http.Response, error) {
			return policytest.Response(http.StatusOK, body), nil
		}}), q)
	})
}

func benchmark(b *testing.B, c *policy.Checker, q policy.Question) {
	b.ReportAllocs()
	for b.Loop() {
		if d, err := c.Ask(b.Context(), q); err != nil || !d.Allowed {
			b.Fatal(d, err)
		}
	}
}
