// Package dpop makes and judges DPoP proofs (RFC 9449): a small JWS, new for every request, by which
// whoever sends a token shows that it holds the key that the token is bound to.
//
// It owns what a proof is: its key ([Key]), its form, the rules of §4.3 that follow from the proof and
// the request alone, and how addresses are compared. Server and SDK judge by the same code. It must not
// know of headers, connections, what a token says or what was seen before: that a proof comes once,
// that it is used once, and that its key is the one that the token names are questions for whoever took
// the request (checks 1 and 12, and §11.1).
//
// gRPC has no address of its own, so Deputy gives it one: htm is POST, and htu is
// https://<authority>/<package.Service>/<Method>, see [CallURI].
package dpop
