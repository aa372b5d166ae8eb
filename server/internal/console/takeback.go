package console

import (
	"context"
	"net/http"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

// takeBackPage asks for confirmation before something is revoked.
type takeBackPage struct {
	Heading, Effect, Button, Problem string
	Target                           delegation.Target
	Raw                              string // the name in tokens, where the page shows it otherwise
	Reason, Back                     string
	Repeat                           string // text that the person must type to confirm; "": none
	Mild                             bool   // the act restores authority
	Counted                          bool
	Tokens, Chains, Shown            int
	Grants                           []*ledger.Entry
}

const (
	// mostDoomed is how many of the grants are listed.
	mostDoomed = 50
	// countPatience is how long the page waits for the number of grants. A revocation must not
	// depend on it.
	countPatience = 4 * time.Second
)

// readTarget reads the target of a revocation. The engine decides whether this person may make it.
func readTarget(value func(string) string) (delegation.Target, error) {
	t := delegation.Target{
		Kind: delegation.TargetKind(value("kind")), ID: strings.TrimSpace(value("id")), Subject: delegation.Principal(strings.TrimSpace(value("subject"))),
	}
	var err error
	if named(t.Kind) {
		var p delegation.Principal
		if p, err = readPrincipal("id", t.ID); err != nil {
			return t, err
		}
		t.ID = string(p)
	}
	if t.Subject != "" {
		if t.Subject, err = readPrincipal("subject", string(t.Subject)); err != nil {
			return t, err
		}
	}
	return t, t.Check()
}

// named reports whether targets of the kind are principals.
func named(kind delegation.TargetKind) bool {
	switch kind {
	case delegation.BanSuspend, delegation.Resume, delegation.CutSubject, delegation.CutAgent, delegation.CutAgentSubject:
		return true
	}
	return false
}

func (h *console) confirm(c *call) error {
	target, err := readTarget(c.r.URL.Query().Get)
	if err != nil {
		return err
	}
	return h.askConfirmation(c, http.StatusOK, target, "", "")
}

// askConfirmation shows the tokens that the revocation hits, and the form that makes it.
func (h *console) askConfirmation(c *call, status int, target delegation.Target, reason, mistake string) error {
	p := takeBackPage{Target: target, Reason: reason, Problem: mistake, Back: c.backFrom(target)}
	p.Heading, p.Effect, p.Button, p.Mild = words(target)
	if target.Kind == delegation.CutTenant {
		p.Repeat = c.Name
	}
	if raw := target.ID; named(target.Kind) && nameOf(delegation.Principal(raw)) != raw {
		p.Raw = raw
	}
	doomed, err := h.preview(c, target)
	if err != nil {
		return err
	}
	p.Counted = !p.Mild && doomed.Counted
	p.Tokens, p.Chains, p.Grants = doomed.Tokens, doomed.Chains, doomed.Grants
	if len(p.Grants) > mostDoomed {
		p.Grants, p.Shown = p.Grants[:mostDoomed], mostDoomed
	}
	return c.show(status, "takeback", page{Title: p.Heading, Body: p})
}

// preview is the engine's dry run. If there is no time to count, a person who may revoke gets the
// form without the count.
func (h *console) preview(c *call, target delegation.Target) (exchange.Revoked, error) {
	ctx, cancel := context.WithTimeout(c.r.Context(), countPatience)
	defer cancel()
	doomed, err := h.Engine.Revoke(ctx, exchange.RevokeCall{
		Tenant: c.Name, Credentials: exchange.Credentials{Person: c.person}, Peer: c.r.RemoteAddr, Target: target, DryRun: true,
	})
	if err != nil && delegation.AsError(err).Temporary() {
		if h.may(c, target)[0] {
			return exchange.Revoked{}, nil
		}
	}
	return doomed, err
}

// may reports which of the targets the person may revoke, so that a page offers no other.
// Engine.Revoke decides. After an error nothing is offered, and the page is shown all the same.
func (h *console) may(c *call, targets ...delegation.Target) []bool {
	may, err := h.Engine.MayRevoke(c.r.Context(), c.inquiry(), targets...)
	if err != nil {
		return make([]bool, len(targets))
	}
	return may
}

// backFrom returns the address of Cancel.
func (c *call) backFrom(t delegation.Target) string {
	switch t.Kind {
	case delegation.BanToken:
		return c.link("chain", "jti", t.ID)
	case delegation.BanSuspend, delegation.Resume, delegation.CutAgent, delegation.CutAgentSubject:
		return c.link("agent", "agent", t.ID)
	case delegation.CutSubject:
		return c.link("", "subject", t.ID)
	case delegation.BanKey:
		return c.link("", "key", t.ID)
	case delegation.BanChain:
		return c.link("", "txn", t.ID)
	}
	return c.link("revoke")
}

// takeBack revokes, and redirects to the entry of the revocation.
func (h *console) takeBack(c *call) error {
	reason := strings.TrimSpace(c.r.PostFormValue("reason"))
	target, err := readTarget(c.r.PostFormValue)
	if err != nil {
		return err
	}
	if reason == "" {
		return h.askConfirmation(c, http.StatusBadRequest, target, reason, "Reason: must not be empty; those who read the ledger later need it.")
	}
	if target.Kind == delegation.CutTenant && strings.TrimSpace(c.r.PostFormValue("repeat")) != c.Name {
		return h.askConfirmation(c, http.StatusBadRequest, target, reason, "Tenant: must be "+c.Name+"; type its name to confirm.")
	}
	done, err := h.Engine.Revoke(c.r.Context(), exchange.RevokeCall{
		Tenant: c.Name, Credentials: exchange.Credentials{Person: c.person}, Peer: c.r.RemoteAddr, Target: target, Reason: reason,
	})
	switch {
	case err != nil:
		return err
	case done.Revocation == nil:
		return delegation.Refuse(delegation.Internal, "", "nothing was revoked")
	}
	c.redirect("entry", "entry", done.Revocation.Seq)
	return nil
}

// revokePage has a form for each kind of target.
type revokePage struct{ Kinds []revokable }

// revokable is one kind of target with its form.
type revokable struct {
	Kind                                 delegation.TargetKind
	Heading, Text, Label, Example, Value string
	For                                  bool // the form has a subject too
}

// revokables are the targets without a page of their own that leads to the revocation, the
// narrowest first.
var revokables = []revokable{
	{Kind: delegation.CutSubject, Heading: "A subject", Label: "Subject", Example: "user:alice",
		Text: "Everything that was granted on behalf of one person until now. What the person grants later is not affected."},
	{Kind: delegation.CutAgentSubject, Heading: "An agent for one subject", Label: "Agent", Example: "agent:planner", For: true,
		Text: "Everything that an agent was granted for one subject until now, and what it handed on."},
	{Kind: delegation.BanSuspend, Heading: "An agent", Label: "Agent", Example: "agent:planner",
		Text: "Contains it: all of its tokens, and everything new until it is resumed."},
	{Kind: delegation.BanKey, Heading: "A key", Label: "Thumbprint (RFC 7638)", Example: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I",
		Text: "Every token in whose chain the key is bound, and every caller that authenticates with it. It stays banned."},
	{Kind: delegation.BanChain, Heading: "A chain", Label: "Chain (txn)", Example: "01M80MB5RFPHKK75VZ9J4PFTG6",
		Text: "Every token of one chain, from its first grant on."},
	{Kind: delegation.BanRoot, Heading: "A root token", Label: "Digest of the root token", Example: "nIAZ9QOTEX_2xQ3rdm9T4SH7hZEZq0ORIBtI8MgGkfY",
		Text: "Everything that descends from one token of an identity provider."},
	{Kind: delegation.CutTenant, Heading: "The whole tenant",
		Text: "Everything that was granted in this tenant until now, of all subjects and agents."},
}

func (h *console) revoke(c *call) error {
	return c.show(http.StatusOK, "revoke", page{Title: "Revoke", Body: revokePage{Kinds: revokables}})
}

const forever = " are refused everywhere from now on. This cannot be undone."

// words returns what a revocation means, for the person who is about to make it.
func words(t delegation.Target) (heading, effect, button string, mild bool) {
	name := t.ID
	if named(t.Kind) {
		name = nameOf(delegation.Principal(t.ID))
	}
	switch t.Kind {
	case delegation.BanToken:
		return "Revoke a token", "The token " + name + " and everything that was derived from it" + forever, "Revoke it", false
	case delegation.BanChain:
		return "Revoke a whole chain", "All tokens of the chain " + name + ", from its first grant on," + forever, "Revoke it", false
	case delegation.BanRoot:
		return "Revoke what descends from a root token", "All tokens that descend from the root token " + name + forever, "Revoke it", false
	case delegation.BanKey:
		return "Ban a key", "All tokens in whose chain the key " + name + " is bound, and all callers that authenticate with it," + forever, "Ban it", false
	case delegation.CutAgent:
		return "Cut off " + name, "Every token that was granted to it until now, or below it, is refused everywhere. It may get new ones.", "Cut it off", false
	case delegation.CutSubject:
		return "Revoke all for " + name, "Every token that was granted on behalf of " + name + " until now is refused everywhere, and sessions at this console end. New tokens need a sign-in after this.", "Revoke them", false
	case delegation.CutAgentSubject:
		return "Cut off " + name + " for " + nameOf(t.Subject), "Every token that was granted to it until now on behalf of " + nameOf(t.Subject) + ", or below it, is refused everywhere. It may get new ones.", "Cut it off", false
	case delegation.CutTenant:
		return "Revoke everything", "Every token that was granted in this tenant until now is refused everywhere: all agents stop until their subjects have signed in again. This cannot be undone.", "Revoke everything", false
	case delegation.Resume:
		return "Resume " + name, "It may get tokens again. The tokens that it held before stay revoked.", "Resume it", true
	}
	return "Contain " + name, "Every token in whose chain it is an actor is refused everywhere from now on, and it gets no new one until it is resumed. To resume it restores none of them.", "Contain it", false
}

// targetText returns the target of a revocation in one line, with names as in tokens.
func targetText(t delegation.Target) string { return aimAt(t).Text(string(t.ID), string(t.Subject)) }

// aim is what an entry is about.
type aim struct {
	Verb string
	Who  delegation.Principal // the target, if it is a principal
	ID   string               // the target otherwise
	For  delegation.Principal
}

// Text returns the aim in one line, with the given names.
func (a aim) Text(name, subject string) string {
	text := strings.TrimSpace(a.Verb + " " + name)
	if a.For != "" {
		text += " for " + subject
	}
	return text
}

// Readable returns the aim in one line, with readable names.
func (a aim) Readable() string {
	if a.Who != "" {
		return a.Text(nameOf(a.Who), nameOf(a.For))
	}
	return a.Text(a.ID, "")
}

func aimAt(t delegation.Target) aim {
	verb := map[delegation.TargetKind]string{
		delegation.BanToken: "token", delegation.BanChain: "chain", delegation.BanRoot: "what descends from root token", delegation.BanKey: "key",
		delegation.BanSuspend: "suspends", delegation.Resume: "resumes", delegation.CutSubject: "all that was granted for",
		delegation.CutAgent: "all that was granted to", delegation.CutAgentSubject: "all that was granted to", delegation.CutTenant: "everything",
	}[t.Kind]
	if named(t.Kind) {
		return aim{Verb: verb, Who: delegation.Principal(t.ID), For: t.Subject}
	}
	return aim{Verb: verb, ID: t.ID}
}
