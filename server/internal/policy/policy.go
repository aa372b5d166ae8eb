// Package policy asks OpenFGA the one question of an exchange: is it permitted? It owns what is
// asked (the relationships behind the edges of a chain, a scope, an audience, an authorization
// detail), how it is asked (one bounded BatchCheck, a pinned model, no stale answers, a deadline)
// and what an answer means: an exchange is permitted only if every single check has an explicit
// yes.
//
// It must not depend on tokens, on the ledger or on what a caller may see: the exchange decides how
// much of a [Decision] goes on the wire. docs/policy.md describes the model and the questions for
// operators.
package policy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	openfga "github.com/openfga/go-sdk"
	"github.com/openfga/go-sdk/telemetry"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"deputy.example/deputy/client/delegation"
)

// Defaults of Config.
const (
	DefaultTimeout = time.Second
	// DefaultMaxChecks is OpenFGA's own default limit for one BatchCheck.
	DefaultMaxChecks = 50
)

// callsAtOnce bounds the requests that one AskAll has under way at the same time.
const callsAtOnce = 4

// Config names the OpenFGA store and model that answer for one tenant.
type Config struct {
	URL     string // of OpenFGA's HTTP API, for instance https://openfga.internal:8080
	StoreID string
	// ModelID pins the authorization model. It is never "the latest": a new model must not change
	// what is granted before an operator has configured it.
	ModelID string
	Token   string // preshared key that OpenFGA requires, or "". It is sent as it is: use https
	// Transport carries the requests. Default: a transport of its own that keeps connections. The
	// embedded deployment sets an OpenFGA that runs in the same process.
	Transport http.RoundTripper
	Timeout   time.Duration // bounds one Ask, AskAll, Has or Ready as a whole; default DefaultTimeout
	// MaxChecks bounds one question and one request to OpenFGA. The server's own limit must not be
	// lower. Default DefaultMaxChecks.
	MaxChecks int
	Mapping   Mapping
	// Principals are the types of the principals in questions. OpenFGA answers no question about a
	// type that the model lacks, so Ready requires each of them.
	Principals []string
	Cache      Cache
	// Registerer takes the metrics; nil: none. With several checkers, wrap it in one label for
	// each.
	Registerer prometheus.Registerer
}

// Checker asks the questions of one tenant. An answer reflects every write that OpenFGA
// acknowledged before the question, whether decisions are remembered or not.
type Checker struct {
	store, model string
	timeout      time.Duration
	maxChecks    int
	rules        rules
	principals   []string
	api          *openfga.APIClient // for rare requests
	client       *http.Client       // for the questions
	stores       string             // address of the store
	headers      http.Header        // of every question
	closeIdle    func()
	metrics      metrics
	known        atomic.Pointer[model] // nil until the model was read for the first time
	memory       *memory               // nil where nothing is remembered
}

// openFGAID is how OpenFGA writes the ids of stores and models.
var openFGAID = regexp.MustCompile(`^[0-9A-HJKMNP-TV-Z]{26}$`)

// New checks the configuration and reports every mistake in it at once. It does not connect: see
// [Checker.Ready].
func New(config Config) (*Checker, error) {
	rules, errMapping := config.Mapping.compile()
	errs := []error{errMapping}
	if u, err := url.Parse(config.URL); err != nil || u.Host == "" || u.User != nil || strings.ContainsAny(config.URL, "?#") || u.Scheme != "http" && u.Scheme != "https" {
		errs = append(errs, errors.New("url: must be an http or https address without credentials, query and fragment"))
	}
	if !openFGAID.MatchString(config.StoreID) {
		errs = append(errs, fmt.Errorf("store: must be the id of an OpenFGA store, not %q", config.StoreID))
	}
	if !openFGAID.MatchString(config.ModelID) {
		errs = append(errs, fmt.Errorf("model: must be the id of a pinned OpenFGA model, not %q", config.ModelID))
	}
	if config.Timeout < 0 || config.MaxChecks < 0 {
		errs = append(errs, errors.New("timeout, max_checks: must not be negative"))
	}
	cache, err := config.Cache.complete()
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	c := &Checker{
		store: config.StoreID, model: config.ModelID,
		timeout: config.Timeout, maxChecks: config.MaxChecks,
		rules: rules, principals: config.Principals,
		closeIdle: func() {},
	}
	if c.timeout == 0 {
		c.timeout = DefaultTimeout
	}
	if c.maxChecks == 0 {
		c.maxChecks = DefaultMaxChecks
	}
	transport := config.Transport
	if transport == nil {
		own := newTransport()
		transport, c.closeIdle = own, own.CloseIdleConnections
	}
	c.client = &http.Client{
		Transport:     boundedTransport{transport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	c.stores = strings.TrimSuffix(config.URL, "/") + "/stores/" + config.StoreID
	c.headers = http.Header{
		"Accept": {"application/json"}, "Content-Type": {"application/json"}, "User-Agent": {"deputy"},
		"Cache-Control": {"no-store"}, // no proxy answers from its cache
	}
	headers := make(map[string]string, 1)
	if config.Token != "" {
		headers["Authorization"] = "Bearer " + config.Token
		c.headers.Set("Authorization", headers["Authorization"])
	}
	sdk, err := openfga.NewConfiguration(openfga.Configuration{
		ApiUrl:         config.URL,
		DefaultHeaders: headers,
		UserAgent:      "deputy",
		HTTPClient:     c.client,
		// The SDK sleeps between tries without regard to the deadline. Callers retry.
		RetryParams: &openfga.RetryParams{MaxRetry: 0, MinWaitInMs: 1},
		Telemetry:   &telemetry.Configuration{Metrics: &telemetry.MetricsConfiguration{}},
	})
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	c.api = openfga.NewAPIClient(sdk)
	if c.metrics, err = newMetrics(config.Registerer, cache.Enabled); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if cache.Enabled {
		c.memory = newMemory(cache)
	}
	return c, nil
}

// newTransport keeps as many connections as requests usually run at once. With the standard
// library's default of two, every third request would open one.
func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		MaxIdleConns:        64,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     90 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true,
	}
}

// Close closes idle connections. Questions that are under way complete.
func (c *Checker) Close() { c.closeIdle() }

// Ask puts one question. The error is a *delegation.Error, and means that there is no decision.
// TooManyChecks, DetailsUnknownType, AudienceMissing, AudienceNotSingle or a name that OpenFGA
// cannot hold: the request is at fault. DependencyDown: OpenFGA gave no usable answer in time.
// Internal: the calling code is at fault. The Decision beside an error is the zero value, which
// allows nothing.
func (c *Checker) Ask(ctx context.Context, q Question) (Decision, error) {
	answer := c.AskAll(ctx, []Question{q})[0]
	return answer.Decision, answer.Err
}

// Answer is the result of Ask for one of many questions.
type Answer struct {
	Decision Decision
	Err      error // a *delegation.Error, or nil
}

// AskAll puts many questions in as few requests as OpenFGA's limit allows, and each relation once.
// The answers are in the order of the questions. Each question is answered by itself: neither a
// refusal of one nor a check that OpenFGA could not evaluate affects the others.
func (c *Checker) AskAll(ctx context.Context, questions []Question) []Answer {
	if c.memory == nil {
		return c.askAll(ctx, questions, nil, c.checkAll)
	}
	keys := keysOf(questions)
	if answers := c.recollect(ctx, keys); answers != nil {
		return answers
	}
	return c.askAll(ctx, questions, keys, c.remember)
}

// askAll determines the relations and has them checked. Questions with keys are remembered under
// them.
func (c *Checker) askAll(ctx context.Context, questions []Question, keys []string, check func(context.Context, []Relation) []result) []Answer {
	answers := make([]Answer, len(questions))
	plans := make([][]Missing, len(questions))
	index := make(map[Relation]int)
	var relations []Relation
	for i, q := range questions {
		checks, refused := c.rules.expand(q, c.maxChecks)
		if refused != nil {
			answers[i].Err = refused
			continue
		}
		plans[i] = checks
		for _, check := range checks {
			if _, there := index[check.Relation]; !there {
				index[check.Relation] = len(relations)
				relations = append(relations, check.Relation)
			}
		}
	}
	results := check(ctx, relations)
	for i, checks := range plans {
		if checks == nil {
			continue
		}
		answers[i] = c.answer(checks, func(r Relation) result { return results[index[r]] })
		if keys != nil && answers[i].Decision.Allowed {
			c.memory.grant(keys[i], checks)
		}
	}
	return answers
}

// answer decides one question. An unusable result anywhere leaves it undecided, even if another
// check was answered no. So the relation that is named does not depend on what failed.
func (c *Checker) answer(checks []Missing, of func(Relation) result) Answer {
	d := Decision{Allowed: true, ModelID: c.model, Checks: len(checks)}
	for i := range checks {
		switch r := of(checks[i].Relation); {
		case r.verdict == unanswered:
			return Answer{Err: delegation.Unavailable("OpenFGA", r.cause)}
		case r.verdict == missing && d.Missing == nil:
			d.Allowed, d.Missing = false, &checks[i]
		}
	}
	return Answer{Decision: d}
}

// Has asks for one relation, for Deputy's own access control: is this caller an auditor? The error
// is a *delegation.Error; with an error the answer is no. It always asks OpenFGA, so that its
// duration does not reveal what was asked before.
func (c *Checker) Has(ctx context.Context, r Relation) (bool, error) {
	has, err := c.HasEach(ctx, []Relation{r})
	if err != nil {
		return false, err
	}
	return has[0], nil
}

// HasEach asks for several relations at once, and answers in their order. A relation that the model
// lacks is held by no principal. One relation that cannot be answered is an error for all.
func (c *Checker) HasEach(ctx context.Context, relations []Relation) ([]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	m, err := c.readModel(ctx)
	if err != nil {
		return nil, err
	}
	var asked []Relation
	var at []int
	for i, r := range relations {
		if err := r.check(); err != nil {
			return nil, delegation.Refuse(delegation.Internal, "", "internal error: nothing was decided").WithCause(err)
		}
		if m.has(typeOf(r.Object), r.Relation) && m.types[typeOf(r.User)] != nil {
			asked, at = append(asked, r), append(at, i)
		}
	}
	has := make([]bool, len(relations))
	for i, result := range c.checkAll(ctx, asked) {
		if result.verdict == unanswered {
			return nil, delegation.Unavailable("OpenFGA", result.cause)
		}
		has[at[i]] = result.verdict == held
	}
	return has, nil
}

// checkAll returns a result for each relation. It never returns an error: the result of a relation
// that was not answered holds the cause.
func (c *Checker) checkAll(ctx context.Context, relations []Relation) []result {
	results := make([]result, len(relations))
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if len(relations) <= c.maxChecks {
		c.batchCheck(ctx, relations, results)
		return results
	}
	var calls errgroup.Group
	calls.SetLimit(callsAtOnce)
	for from := 0; from < len(relations); from += c.maxChecks {
		to := min(from+c.maxChecks, len(relations))
		calls.Go(func() error { c.batchCheck(ctx, relations[from:to], results[from:to]); return nil })
	}
	_ = calls.Wait() // no call returns an error
	return results
}

// Ready returns nil if questions can be answered: OpenFGA is reachable, the store exists, the
// pinned model exists in it and has every type and relation that the mapping names, and every type
// of principal.
func (c *Checker) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if _, _, err := c.api.OpenFgaApi.GetStore(ctx, c.store).Execute(); err != nil {
		return fmt.Errorf("OpenFGA store %s: %w", c.store, err)
	}
	answer, _, err := c.api.OpenFgaApi.ReadAuthorizationModel(ctx, c.store, c.model).Execute()
	if err != nil {
		return fmt.Errorf("OpenFGA model %s: %w", c.model, err)
	}
	model := answer.GetAuthorizationModel()
	if model.Id != c.model {
		return fmt.Errorf("OpenFGA model %s: the server returned a different model", c.model)
	}
	if err := errors.Join(c.rules.fit(model), holds(model, c.principals)); err != nil {
		return fmt.Errorf("OpenFGA model %s: %w", c.model, err)
	}
	return nil
}
