// Package delegation is the vocabulary that Deputy's server, SDK and tools share: principals, actor
// chains, scopes, authorization details, the claims of a derived token, the strict form that every
// token must have before its signature is verified, the targets of revocations, and the one error
// type with its two wire forms.
//
// The package defines meaning and form. It must not depend on keys, clocks, networks, databases or
// OpenFGA: every function is a pure function of its arguments, and none decides whether a token may
// be trusted. Words are used as docs/exchange-cycle.md defines them.
package delegation
