package exchange

import "deputy.example/deputy/client/delegation"

// trusted refuses, as unavailable, what only an instance with a trusted clock may answer: exchanges, introspection, status
// lists and the freshness of the feed. Revocations go on.
func (e *Engine) trusted() error {
	if err := e.config.Ledger.Trusted(); err != nil {
		return delegation.Unavailable("the clock", err)
	}
	return nil
}
