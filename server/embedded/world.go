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

// differences are the relationships that only one of two worlds has.
func differences(began, now []policy.Relation) (list []string) {
	only := func(in, not []policy.Relation, what string) {
		for _, r := range in {
			if !slices.Contains(not, r) {
				list = append(list, fmt.Sprintf("%s: %s %s %s", what, r.User, r.Relation, r.Object))
			}
		}
	}
	only(began, now, "deleted")
	only(now, began, "written")
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
