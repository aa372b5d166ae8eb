// Package exchange is the engine. It decides whether a caller may hand a part of a token on,
// records the decision and mints the child. Exchange takes the seven steps of
// docs/exchange-cycle.md in one direction. A single exchange and a batch take the same walk.
//
// The package owns the order of the steps, the rules about callers and the plan, which is a pure
// function. It does not depend on a wire format: endpoints turn gRPC messages and HTTP forms into a
// Call, and an Outcome back into their format. The packages below own the verification of tokens,
// the questions to the policy, the storage of entries and the rates of callers.
package exchange
