package embedded

import (
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/policy"
)

// The demo world: alice has a calendar, a mailbox and a bank account. An agent, the planner, organises
// her days and has another agent, the researcher, look things up. rita takes back what goes wrong and
// audrey looks on; both sign in to the console. Names are used the way that OpenFGA and tokens use them.
const (
	alice      = delegation.Principal("user:alice")
	rita       = delegation.Principal("user:rita")
	audrey     = delegation.Principal("user:audrey")
	planner    = delegation.Principal("agent:planner")
	researcher = delegation.Principal("agent:researcher")
	// calendarServer is the tool that the agents call. It holds a key because it introspects tokens.
	calendarServer = delegation.Principal("service:calendar")

	calendarAudience = "https://calendar.example"
	mailAudience     = "https://mail.example"
)

// aliceScopes is what alice's own token carries: more than she would hand to any agent.
var aliceScopes = delegation.Scopes{"calendar.read", "calendar.write", "mail.read", "payments.send"}

// worldTuples are the relationships of the demo world. Consent goes along the edges alice → planner →
// researcher; what each of them may be given at most is its own.
func worldTuples() []policy.Relation {
	tuples := []policy.Relation{
		{User: string(alice), Relation: "delegator", Object: string(planner)},
		{User: string(planner), Relation: "delegator", Object: string(researcher)},
		{User: string(rita), Relation: "responder", Object: "system:deputy"},
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
