package policy

import (
	"context"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"deputy.example/deputy/client/delegation"
)

// Obtainable is what an agent could be handed along one path of consent. Each audience can be had
// by itself, and each scope at one of the audiences at least. An exchange decides what can be had
// together.
type Obtainable struct {
	Path      []delegation.Principal // from the subject to the agent: each may hand authority to the next
	Scopes    delegation.Scopes
	Audiences []string
}

// Limits of one search for what is obtainable. A search that reaches one is reported incomplete.
const (
	maxPaths     = 64  // paths of consent
	maxExpanded  = 64  // agents whose delegators are listed
	maxValues    = 100 // scopes, and audiences, of one subject
	maxQuestions = 4000
)

// Search names where to look for what an agent could obtain.
type Search struct {
	Agent delegation.Principal
	// Depth is the maximum number of edges of a path.
	Depth int
	// Begins returns whether a principal can be the subject of a chain, Usable whether it can be in
	// one.
	Begins, Usable func(delegation.Principal) bool
}

// Obtainable finds what an exchange could give to the agent now, as far as OpenFGA decides. It
// follows the delegation edges upwards, takes what both ends of each path hold, and puts the
// questions of those exchanges. [Checker.Ask] allowed what it lists at that moment. complete is
// false if there may be more: OpenFGA's lists are bounded, and so is this search.
// authorization_details are not enumerated. The error is a *delegation.Error; then the list is
// unknown.
func (c *Checker) Obtainable(ctx context.Context, s Search) (list []Obtainable, complete bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	m, err := c.readModel(ctx)
	if err != nil {
		return nil, false, err
	}
	o := obtaining{Checker: c, model: m, search: s, complete: true}
	if !m.has(s.Agent.Type(), c.rules.delegator) || !s.Usable(s.Agent) {
		return nil, true, nil // no path leads there
	}
	if err := o.follow(ctx); err != nil {
		return nil, false, err
	}
	if err := o.hold(ctx); err != nil {
		return nil, false, err
	}
	if err := o.confirm(ctx); err != nil {
		return nil, false, err
	}
	return o.list, o.complete, nil
}

type obtaining struct {
	*Checker
	model  *model
	search Search

	paths    [][]delegation.Principal
	held     map[delegation.Principal]holdings
	list     []Obtainable
	complete bool
}

// holdings are the values that the relations of the mapping give to a principal.
type holdings struct{ scopes, audiences []string }

// follow finds the paths, the shortest first.
func (o *obtaining) follow(ctx context.Context) error {
	delegators := make(map[delegation.Principal][]delegation.Principal)
	level := [][]delegation.Principal{{o.search.Agent}}
	for range o.search.Depth {
		if err := o.expand(ctx, level, delegators); err != nil {
			return err
		}
		var above [][]delegation.Principal
		for _, path := range level {
			for _, from := range delegators[path[0]] {
				if !o.search.Usable(from) {
					continue
				}
				longer := append([]delegation.Principal{from}, path...)
				if o.search.Begins(from) {
					o.paths = append(o.paths, longer)
				}
				if o.model.has(from.Type(), o.rules.delegator) && !slices.Contains(path, from) {
					above = append(above, longer)
				}
			}
		}
		if len(o.paths) > maxPaths || len(above) > maxPaths {
			o.complete = false
			o.paths, above = o.paths[:min(len(o.paths), maxPaths)], above[:min(len(above), maxPaths)]
		}
		level = above
	}
	o.complete = o.complete && len(level) == 0
	return nil
}

// expand lists the delegators of the first principal of each path, each once.
func (o *obtaining) expand(ctx context.Context, level [][]delegation.Principal, delegators map[delegation.Principal][]delegation.Principal) error {
	var calls errgroup.Group
	calls.SetLimit(callsAtOnce)
	var mu sync.Mutex
	asked := len(delegators)
	for _, path := range level {
		agent := path[0]
		mu.Lock()
		_, known := delegators[agent]
		if !known {
			delegators[agent] = nil
		}
		mu.Unlock()
		if known {
			continue
		}
		if asked++; asked > maxExpanded {
			mu.Lock()
			o.complete = false
			mu.Unlock()
			break
		}
		calls.Go(func() error {
			who, all, err := o.delegators(ctx, o.model, agent)
			mu.Lock()
			defer mu.Unlock()
			delegators[agent], o.complete = who, o.complete && all
			return err
		})
	}
	return calls.Wait()
}

// hold lists what the agent and each subject hold. A value that only one of them holds needs no
// question.
func (o *obtaining) hold(ctx context.Context) error {
	o.held = map[delegation.Principal]holdings{o.search.Agent: {}}
	for _, path := range o.paths {
		o.held[path[0]] = holdings{}
	}
	var calls errgroup.Group
	calls.SetLimit(callsAtOnce)
	var mu sync.Mutex
	for _, p := range slices.Sorted(maps.Keys(o.held)) {
		calls.Go(func() error {
			scopes, allScopes, err := o.values(ctx, p, o.rules.scope)
			if err != nil {
				return err
			}
			audiences, allAudiences, err := o.values(ctx, p, o.rules.resource)
			mu.Lock()
			defer mu.Unlock()
			o.held[p], o.complete = holdings{scopes, audiences}, o.complete && allScopes && allAudiences
			return err
		})
	}
	return calls.Wait()
}

// both returns the values that the agent and a subject hold, up to the limit.
func (o *obtaining) both(agents, subjects []string) []string {
	var common []string
	for _, v := range agents {
		if _, there := slices.BinarySearch(subjects, v); there {
			common = append(common, v)
		}
	}
	if len(common) > maxValues {
		o.complete, common = false, common[:maxValues]
	}
	return common
}

// confirm puts the questions of the exchanges that each path allows: first for the audiences, then
// for the scopes at them.
func (o *obtaining) confirm(ctx context.Context) error {
	found := make([]Obtainable, len(o.paths))
	agent := o.held[o.search.Agent]
	var asked inquiries
	for i, path := range o.paths {
		found[i].Path = path
		for _, audience := range o.both(agent.audiences, o.held[path[0]].audiences) {
			asked.add(path, "", audience, func() { found[i].Audiences = append(found[i].Audiences, audience) })
		}
	}
	if err := asked.put(ctx, o); err != nil {
		return err
	}
	asked = inquiries{}
	for i, path := range o.paths {
		if len(found[i].Audiences) == 0 {
			continue
		}
		have := func(scope string) func() { return func() { found[i].Scopes = append(found[i].Scopes, scope) } }
		for _, scope := range o.both(agent.scopes, o.held[path[0]].scopes) {
			if _, mapped := o.rules.scopes[scope]; !mapped {
				asked.add(path, scope, found[i].Audiences[0], have(scope)) // the same at every audience
			}
		}
		for _, scope := range slices.Sorted(maps.Keys(o.rules.scopes)) {
			audiences := found[i].Audiences
			if o.rules.scopes[scope].object.field == "" {
				audiences = audiences[:1]
			}
			for _, audience := range audiences {
				asked.add(path, scope, audience, have(scope))
			}
		}
	}
	if err := asked.put(ctx, o); err != nil {
		return err
	}
	for _, f := range found {
		if len(f.Audiences) == 0 {
			continue // an exchange needs an audience
		}
		slices.Sort(f.Scopes)
		f.Scopes = slices.Compact(f.Scopes)
		o.list = append(o.list, f)
	}
	return nil
}

// inquiries are questions, each with the action for a yes.
type inquiries struct {
	questions []Question
	yes       []func()
}

func (q *inquiries) add(path []delegation.Principal, scope, audience string, yes func()) {
	question := Question{Subject: path[0], Actor: path[len(path)-1], Audiences: []string{audience}}
	for i := range len(path) - 1 {
		question.Edges = append(question.Edges, Edge{From: path[i], To: path[i+1]})
	}
	if scope != "" {
		scopes, err := delegation.NewScopes(scope)
		if err != nil {
			return // the name of an object, but not of a scope
		}
		question.Scopes = scopes
	}
	q.questions, q.yes = append(q.questions, question), append(q.yes, yes)
}

// put asks the questions. What an exchange would be refused for counts as a no.
func (q *inquiries) put(ctx context.Context, o *obtaining) error {
	if len(q.questions) > maxQuestions {
		o.complete, q.questions = false, q.questions[:maxQuestions]
	}
	for i, answer := range o.askAll(ctx, q.questions, nil, o.checkAll) {
		switch {
		case answer.Err == nil && answer.Decision.Allowed:
			q.yes[i]()
		case answer.Err != nil && delegation.AsError(answer.Err).Temporary():
			return answer.Err
		}
	}
	return nil
}
