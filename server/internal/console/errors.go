package console

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/trace"

	"deputy.example/deputy/client/delegation"
)

// Refusals of the console itself.
var (
	errSignedOut   = delegation.Refuse(delegation.ClientUnauthenticated, "", "a session is missing: sign in")
	errForeignForm = delegation.Refuse(delegation.AccessDenied, "csrf", "the form does not come from a page of this session")
	errOtherSignIn = delegation.Refuse(delegation.AccessDenied, "state", "the provider's answer does not belong to a sign-in of this browser")
	errNotBelieved = delegation.Refuse(delegation.SubjectTokenInvalid, "id_token", "the provider's token does not permit to sign in here")
	errNotThere    = delegation.Refuse(delegation.NotFound, "", "there is nothing at this address")
)

// problem is a page that explains what failed and what to do.
type problem struct {
	Heading, Text, Remedy, Trace string
	Link                         *link
}

type link struct{ Href, Text string }

// fail shows what an error means to a person. Without a session it redirects to the sign-in, which
// returns to the page afterwards.
func (h *console) fail(c *call, err error) {
	if errors.Is(err, errSignedOut) && c.r.Method != http.MethodPost && !c.fragment {
		c.redirect("sign-in", "next", c.r.URL.RequestURI())
		return
	}
	h.recognize(c, err)
	refusal := delegation.AsError(err)
	status := refusal.Reason.Wire().HTTP
	p := describe(refusal, c.r.Method)
	if errors.Is(err, errSignedOut) {
		p.Link = &link{c.link("sign-in"), "Sign in"}
	} else if c.who != "" {
		p.Link = &link{c.base, "To the ledger's entries"}
	}
	if id := trace.SpanContextFromContext(c.r.Context()).TraceID(); id.IsValid() && status >= 500 {
		p.Trace = id.String()
	}
	if refusal.RetryAfter > 0 {
		seconds := (refusal.RetryAfter + time.Second - 1) / time.Second
		c.w.Header().Set("Retry-After", strconv.FormatInt(int64(seconds), 10))
	}
	c.w.Header().Del("Content-Disposition")
	c.w.Header().Del("Deputy-Last-Entry")
	if shown := c.show(status, "problem", page{Title: p.Heading, Narrow: true, Body: p}); shown != nil {
		h.Logger.ErrorContext(c.r.Context(), "a problem could not be shown", "cause", shown)
		http.Error(c.w, "internal error", http.StatusInternalServerError)
	}
}

// recognize authenticates a request that was refused before authentication, so that its page has
// the navigation too. It changes nothing else of the answer.
func (h *console) recognize(c *call, err error) {
	if c.who == "" && !c.fragment && !errors.Is(err, errSignedOut) {
		_ = h.authenticate(c) // an error leaves the page without navigation
	}
}

// describe explains a reason to people. The description names field and rule, and repeats no
// credential. After a POST only the description tells whether anything was done.
func describe(refusal *delegation.Error, method string) problem {
	switch refusal.Reason {
	case delegation.NotFound:
		return problem{Heading: "Nothing there", Text: "There is no such thing, or none that you may see. Both look the same on purpose.",
			Remedy: "Check the number or the name. If you need it, ask an administrator of Deputy for the relation auditor."}
	case delegation.ClientUnauthenticated:
		return problem{Heading: "Signed out", Text: "Your session has ended, and what you sent was not done.", Remedy: "Sign in and do it again."}
	case delegation.AccessDenied:
		return problem{Heading: "Refused", Text: "What arrived was not made by a page of your session: " + refusal.Description + ".",
			Remedy: "If it was you, go back, reload the page and try once more."}
	case delegation.RateLimited:
		return problem{Heading: "Too fast", Text: "You asked for more than one person may in so short a time.", Remedy: "Wait a moment and reload."}
	case delegation.DependencyDown:
		if method == http.MethodPost {
			return problem{Heading: "No answer", Text: "A dependency of Deputy did not answer: " + refusal.Description + ".",
				Remedy: "Check the ledger for a new entry before you repeat it. If this persists, check /readyz."}
		}
		return problem{Heading: "No answer", Text: "Something that Deputy depends on did not answer. Nothing was shown and nothing was done: " + refusal.Description + ".",
			Remedy: "Reload. If it stays like this, look at /readyz."}
	case delegation.Internal:
		return problem{Heading: "Internal error", Text: "Deputy failed to do this.", Remedy: "The log has the cause."}
	case delegation.SubjectTokenInvalid:
		return problem{Heading: "Not signed in", Text: "The provider knows you, and Deputy did not accept what it said.",
			Remedy: "The log has the cause: the console's settings may not fit the provider's, or your sign-ins are revoked."}
	}
	text := refusal.Description
	if refusal.Field != "" {
		text = refusal.Field + ": " + text
	}
	return problem{Heading: "That cannot be asked", Text: text + ".", Remedy: "Go back and change it."}
}
