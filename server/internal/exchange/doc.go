// Package exchange is the engine: it decides whether a caller may hand part of a token on, records
// the decision and mints the child. Exchange.walk is the seven steps of docs/exchange-cycle.md,
// straight down and back; one exchange and a batch take the same walk.
//
// It owns the order of the steps, the caller rules and the plan, which is a pure function. It must
// not know of wires: fronts turn gRPC messages and HTTP forms into a Call and an Outcome back into
// theirs. How tokens are verified, policy is asked, entries are kept and callers are limited belongs
// to the packages below.
package exchange
