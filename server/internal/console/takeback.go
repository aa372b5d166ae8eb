package console

import (
	"net/http"
	"strings"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

// takeBackPage asks for the last word before something is revoked.
type takeBackPage struct {
	Heading, Effect, Button, Problem string
	Kind, ID, Reason, Back           string
	Mild                             bool // gives back rather than takes away
	Counted                          bool
	Tokens, Chains, Shown            int
	Grants                           []*ledger.Entry
}

// mostDoomed is how many grants that would die are listed.
const mostDoomed = 50

// readTarget reads what is aimed at; the engine decides whether this person may.
func readTarget(kind, id string) (delegation.Target, error) {
	t := delegation.Target{Kind: delegation.TargetKind(kind), ID: strings.TrimSpace(id)}
	switch t.Kind {
	case delegation.BanToken, delegation.BanChain, delegation.BanSuspend, delegation.Resume, delegation.CutAgent:
		return t, t.Check()
	}
	return t, delegation.Refuse(delegation.ParameterInvalid, "kind", "cannot be taken back here: use the command line")
}

func (h *console) confirm(c *call) error {
	query := c.r.URL.Query()
	return h.askConfirmation(c, http.StatusOK, query.Get("kind"), query.Get("id"), "", "")
}

// askConfirmation shows what would die, before it does.
func (h *console) askConfirmation(c *call, status int, kind, id, reason, mistake string) error {
	target, err := readTarget(kind, id)
	if err != nil {
		return err
	}
	p := takeBackPage{Kind: kind, ID: target.ID, Reason: reason, Problem: mistake}
	p.Heading, p.Effect, p.Button, p.Mild = words(target)
	p.Back = c.link("chain", "jti", target.ID)
	switch target.Kind {
	case delegation.BanSuspend, delegation.Resume, delegation.CutAgent:
		p.Back = c.link("agent", "agent", target.ID)
	case delegation.BanChain:
		p.Back = c.base
	}
	if !p.Mild {
		doomed, err := h.Engine.Revoke(c.r.Context(), exchange.RevokeCall{
			Tenant: c.Name, Credentials: exchange.Credentials{Person: c.person}, Peer: c.r.RemoteAddr, Target: target, DryRun: true,
		})
		if err != nil {
			return err
		}
		p.Counted, p.Tokens, p.Chains, p.Grants = true, doomed.Tokens, doomed.Chains, doomed.Grants
		if len(p.Grants) > mostDoomed {
			p.Grants, p.Shown = p.Grants[:mostDoomed], mostDoomed
		}
	}
	return c.show(status, "takeback", page{Title: p.Heading, Body: p})
}

// takeBack revokes, and leads to the entry that says so.
func (h *console) takeBack(c *call) error {
	kind, id := c.r.PostFormValue("kind"), c.r.PostFormValue("id")
	reason := strings.TrimSpace(c.r.PostFormValue("reason"))
	target, err := readTarget(kind, id)
	if err != nil {
		return err
	}
	if reason == "" {
		return h.askConfirmation(c, http.StatusBadRequest, kind, id, reason, "Say why: whoever reads the ledger later will want to know.")
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

// words are what a revocation means, for whoever is about to make it.
func words(t delegation.Target) (heading, effect, button string, mild bool) {
	switch t.Kind {
	case delegation.BanToken:
		return "Take back a token", "The token " + t.ID + " and everything that was derived from it are refused everywhere from now on. This cannot be undone.", "Take it back", false
	case delegation.BanChain:
		return "Take back a whole chain", "All tokens of the chain " + t.ID + ", from its first grant on, are refused everywhere from now on. This cannot be undone.", "Take it back", false
	case delegation.CutAgent:
		return "Cut off " + t.ID, "Every token that was granted to it until now, or below it, is refused everywhere. It may get new ones.", "Cut it off", false
	case delegation.Resume:
		return "Resume " + t.ID, "It may get tokens again. What it held before stays dead.", "Resume it", true
	}
	return "Contain " + t.ID, "Every token in whose chain it stands is refused everywhere from now on, and it gets no new one until somebody resumes it. What dies stays dead.", "Contain it", false
}

// targetText names what a revocation is aimed at.
func targetText(t delegation.Target) string {
	switch t.Kind {
	case delegation.BanToken:
		return "token " + t.ID
	case delegation.BanChain:
		return "chain " + t.ID
	case delegation.BanRoot:
		return "what descends from root token " + t.ID
	case delegation.BanKey:
		return "key " + t.ID
	case delegation.BanSuspend:
		return "suspends " + t.ID
	case delegation.Resume:
		return "resumes " + t.ID
	case delegation.CutSubject:
		return "all that was granted for " + t.ID
	case delegation.CutAgent:
		return "all that was granted to " + t.ID
	case delegation.CutAgentSubject:
		return "all that was granted to " + t.ID + " for " + string(t.Subject)
	}
	return "everything"
}
