package embedded

import (
	"fmt"
	"slices"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/policy"
)

// The demo world: alice has a calendar, a mailbox and a bank account. An agent, the planner,
// organizes her days and has another agent, the researcher, look things up. rita can contain
// agents, audrey can audit; both sign in to the console. Names are those of OpenFGA and of tokens.
const (
	alice      = delegation.Principal("user:alice")
	rita       = delegation.Principal("user:rita")
	audrey     = delegation.Principal("user:audrey")
	planner    = delegation.Principal("agent:planner")
	researcher = delegation.Principal("agent:researcher")
	// calendarServer is the tool that the agents call. It has a key because it introspects tokens.
	calendarServer = delegation.Principal("service:calendar")
	// security is a responder without a browser: it contains agents from the command line.
	security = delegation.Principal("service:security")

	calendarAudience = "https://calendar.example"
	mailAudience     = "https://mail.example"
)

// aliceScopes are the scopes of alice's own token, more than she hands to any agent.
var aliceScopes = delegation.Scopes{"calendar.read", "calendar.write", "mail.read", "payments.send"}

// differences describes what was deleted from the demo world and what was added to it, in a store
// with that history.
func differences(had map[policy.Relation]bool) (list []string) {
	world := worldTuples()
	for r, held := range had {
		switch began := slices.Contains(world, r); {
		case began && !held:
			list = append(list, fmt.Sprintf("deleted: %s %s %s", r.User, r.Relation, r.Object))
		case held && !began:
			list = append(list, fmt.Sprintf("written: %s %s %s", r.User, r.Relation, r.Object))
		}
	}
	slices.Sort(list)
	return list
}

// worldTuples are the relationships of the demo world. Consent leads along the edges alice →
// planner → researcher. What each of them holds at most is separate.
func worldTuples() []policy.Relation {
	tuples := []policy.Relation{
		{User: string(alice), Relation: "delegator", Object: string(planner)},
		{User: string(planner), Relation: "delegator", Object: string(researcher)},
		{User: string(rita), Relation: "responder", Object: "system:deputy"},
		{User: string(security), Relation: "responder", Object: "system:deputy"},
		{User: string(audrey), Relation: "auditor", Object: "system:deputy"},
	}
	holders := map[delegation.Principal]delegation.Scopes{
		alice:      aliceScopes,
		planner:    {"calendar.read", "calendar.write", "mail.read"},
		researcher: {"calendar.read", "mail.read"},
	}
	for _, who := range []delegation.Principal{alice, planner, researcher} {
		for _, scope := range holders[who] {
			tuples = append(tuples, policy.Relation{User: string(who), Relation: "holder", Object: "scope:" + delegation.EncodeID(scope)})
		}
		for _, audience := range []string{calendarAudience, mailAudience} {
			tuples = append(tuples, policy.Relation{User: string(who), Relation: "accessor", Object: "resource:" + delegation.EncodeID(audience)})
		}
	}
	return tuples
}
