package console

import (
	"net/http"
	"strings"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

// reachDepth is how many edges of consent the agent's page follows upwards.
const reachDepth = 3

// agentPage is what an agent can do now.
type agentPage struct {
	Agent          delegation.Principal
	Reach          *exchange.Reach // nil: nobody has been named yet
	Live, Subjects int
}

func (h *console) agent(c *call) error {
	name := strings.TrimSpace(c.r.URL.Query().Get("agent"))
	if name == "" {
		return c.show(http.StatusOK, "agent", page{Title: "Agents", Body: agentPage{}})
	}
	agent, err := delegation.ParsePrincipal(name)
	if err != nil {
		return delegation.Refuse(delegation.ParameterInvalid, "agent", "write type:id, such as agent:researcher")
	}
	reach, err := h.Engine.Reach(c.r.Context(), c.inquiry(), agent, reachDepth)
	if err != nil {
		return err
	}
	p := agentPage{Agent: agent, Reach: &reach, Live: reach.Live}
	subjects := map[delegation.Principal]bool{}
	for _, t := range reach.Tokens {
		subjects[t.Subject] = true
	}
	p.Subjects = len(subjects)
	return c.show(http.StatusOK, "agent", page{Title: string(agent), Body: p})
}
