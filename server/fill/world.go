package fill

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"

	"deputy.example/deputy/client/delegation"
)

// world holds the principals and what they can be given. A few are busy and most are not.
type world struct {
	rng           *rand.Rand
	users, agents []delegation.Principal
	busyUser      *rand.Zipf
	busyAgent     *rand.Zipf
	keys          map[delegation.Principal]int // generation of each agent's key
}

var (
	roles     = []string{"planner", "researcher", "writer", "calendar", "mailer", "buyer", "reviewer", "coder", "tester", "reporter"}
	resources = []string{"calendar", "mail", "files", "wiki", "tickets", "payments", "travel", "crm", "repo", "search", "billing", "chat"}
	verbs     = []string{"delete", "list", "read", "write"} // sorted
)

func newWorld(seed uint64, entries int) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 0)), keys: make(map[delegation.Principal]int)}
	for i := range min(max(entries/400, 20), 5000) {
		w.users = append(w.users, delegation.Principal(fmt.Sprintf("user:u-%04d", i)))
	}
	for i := range min(max(entries/2500, 20), 400) {
		w.agents = append(w.agents, delegation.Principal(fmt.Sprintf("agent:%s-%d", roles[i%len(roles)], i/len(roles))))
	}
	w.busyUser = rand.NewZipf(w.rng, 1.1, 8, uint64(len(w.users)-1))
	w.busyAgent = rand.NewZipf(w.rng, 1.2, 8, uint64(len(w.agents)-1))
	return w
}

// chance is true once in so many times.
func (w *world) chance(oneIn int) bool { return w.rng.IntN(oneIn) == 0 }

// user draws a subject; some are agents that work for themselves.
func (w *world) user() delegation.Principal {
	if w.chance(40) {
		return w.agents[w.busyAgent.Uint64()]
	}
	return w.users[w.busyUser.Uint64()]
}

// agent draws one that is not in the chain yet.
func (w *world) agent(chain delegation.Chain) delegation.Principal {
	for {
		if a := w.agents[w.busyAgent.Uint64()]; !chain.Contains(a) {
			return a
		}
	}
}

// key is the thumbprint of the agent's key at the moment.
func (w *world) key(agent delegation.Principal) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s#%d", agent, w.keys[agent]))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// grantable draws what a root token may be exchanged for: a resource, and scopes that mean
// something there.
func (w *world) grantable() (audience string, scopes delegation.Scopes) {
	resource := resources[w.rng.IntN(len(resources))]
	for _, verb := range verbs {
		if verb == "read" || w.chance(2) {
			scopes = append(scopes, resource+"."+verb)
		}
	}
	return "https://" + resource + ".example", scopes
}

// narrowed drops some of the scopes, never all.
func (w *world) narrowed(scopes delegation.Scopes) delegation.Scopes {
	kept := make(delegation.Scopes, 0, len(scopes))
	for i, s := range scopes {
		if !w.chance(4) || len(kept) == 0 && i == len(scopes)-1 {
			kept = append(kept, s)
		}
	}
	return kept
}

func (w *world) trace() string { return fmt.Sprintf("%016x%016x", w.rng.Uint64()|1, w.rng.Uint64()) }

func (w *world) peer() string {
	return fmt.Sprintf("192.0.2.%d:%d", 1+w.rng.IntN(254), 1024+w.rng.IntN(60_000))
}

// hexDigest makes a digest in place of that of a root token.
func hexDigest(of string) string {
	sum := sha256.Sum256([]byte(of))
	return hex.EncodeToString(sum[:])
}

// details is one element of authorization_details.
func details(audience, owner string) []delegation.Detail {
	text, err := json.Marshal([]map[string]any{{
		"type": "record", "locations": []string{audience}, "actions": []string{"read"}, "identifier": owner,
	}})
	if err != nil {
		panic(err) // strings alone
	}
	parsed, err := delegation.ParseDetails(text)
	if err != nil {
		panic(err)
	}
	return parsed
}
