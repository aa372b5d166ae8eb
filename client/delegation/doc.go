// Package delegation is the vocabulary that Deputy's server, SDK and tools share: principals, actor
// chains, scopes, authorization details, the claims of a derived token, the strict form that every
// token must have before anyone looks at its signature, what a revocation can aim at, and the one
// error type with its two wire forms.
//
// It owns meaning and form. It must not know of keys, clocks, networks, databases or OpenFGA: every
// function here is a pure function of its arguments, and nothing in it decides whether a token may
// be trusted. Words are used as docs/exchange-cycle.md defines them.
package delegation
