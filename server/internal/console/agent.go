package console

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

const (
	// reachDepth is how many edges of consent the agent's page follows upwards.
	reachDepth = 3
	// mostListed is the number of agents in each list of the agents' page.
	mostListed = 50
)

// agentPage shows what an agent can do now.
type agentPage struct {
	Agent          delegation.Principal
	Raw            string // the name in tokens, where the page shows it otherwise
	Reach          *exchange.Reach
	Never          bool // no entry names it, and relationships give it nothing
	MayContain     bool // contain it or, if it is suspended, resume it
	Live, Subjects int
}

// agentsPage is the list of agents.
type agentsPage struct {
	Agent     delegation.Principal // always empty: the page shares the form with agentPage
	Listed    bool                 // the person may read the lists
	Window    ledger.Window
	Recent    []ledger.Activity
	Refused   []ledger.Activity
	Suspended []exchange.Suspension
	More      bool // more agents are suspended than listed
	Before    uint64
	MayResume bool
}

func (h *console) agent(c *call) error {
	name := strings.TrimSpace(c.r.URL.Query().Get("agent"))
	if name == "" {
		return h.agents(c)
	}
	agent, err := readPrincipal("agent", name)
	if err != nil {
		return err
	}
	reach, err := h.Engine.Reach(c.r.Context(), c.inquiry(), agent, reachDepth)
	if err != nil {
		return err
	}
	p := agentPage{Agent: agent, Reach: &reach, Live: reach.Live, Subjects: subjectsOf(reach.Tokens)}
	if nameOf(agent) != string(agent) {
		p.Raw = string(agent)
	}
	p.Never = reach.Live+reach.Below+len(reach.Obtainable) == 0 && reach.Seen == 0 && !reach.Suspended
	kind := delegation.BanSuspend
	if reach.Suspended {
		kind = delegation.Resume
	}
	p.MayContain = h.may(c, delegation.Target{Kind: kind, ID: string(agent)})[0]
	return c.show(http.StatusOK, "agent", page{Title: nameOf(agent), Body: p})
}

func subjectsOf(tokens []exchange.Recorded) int {
	subjects := map[delegation.Principal]bool{}
	for _, t := range tokens {
		subjects[t.Subject] = true
	}
	return len(subjects)
}

// agents lists the agents of the newest entries. A person who may not read everything gets only the
// form, and the engine is not called.
func (h *console) agents(c *call) error {
	p := agentsPage{Listed: c.role.Audits, MayResume: c.role.Responds}
	if !p.Listed {
		return c.show(http.StatusOK, "agents", page{Title: "Agents", Body: p})
	}
	var err error
	if p.Window, err = h.Engine.Agents(c.r.Context(), c.inquiry()); err != nil {
		return err
	}
	var next uint64
	if p.Suspended, next, err = h.Engine.Suspensions(c.r.Context(), c.inquiry(), 0); err != nil {
		return err
	}
	p.More = next > 0 || len(p.Suspended) > mostListed
	p.Suspended = p.Suspended[:min(len(p.Suspended), mostListed)]
	p.Recent = p.Window.Agents[:min(len(p.Window.Agents), mostListed)]
	p.Refused = mostRefused(p.Window.Agents)
	return c.show(http.StatusOK, "agents", page{Title: "Agents", Body: p})
}

// mostRefused returns the agents with refusals, the most refusals first.
func mostRefused(all []ledger.Activity) []ledger.Activity {
	list := slices.DeleteFunc(slices.Clone(all), func(a ledger.Activity) bool { return a.Refused == 0 })
	slices.SortStableFunc(list, func(a, b ledger.Activity) int { return cmp.Compare(b.Refused, a.Refused) })
	return list[:min(len(list), mostListed)]
}

// suspensionsPage lists the suspended agents.
type suspensionsPage struct {
	Suspended []exchange.Suspension
	MayResume bool
	Before    uint64
	Older     string
}

func (h *console) suspensions(c *call) error {
	before, err := readNumber("before", c.r.URL.Query().Get("before"))
	if err != nil {
		return err
	}
	list, next, err := h.Engine.Suspensions(c.r.Context(), c.inquiry(), before)
	if err != nil {
		return err
	}
	p := suspensionsPage{Suspended: list, MayResume: c.role.Responds, Before: before}
	if next > 0 {
		p.Older = c.link("suspensions", "before", next)
	}
	return c.show(http.StatusOK, "suspensions", page{Title: "Suspensions", Body: p})
}
