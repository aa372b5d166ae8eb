// Package dpop makes and verifies DPoP proofs (RFC 9449): a small JWS, new for every request, by
// which the sender of a token proves possession of the key that the token is bound to.
//
// It owns what a proof is: its key ([Key]), its form, the rules of §4.3 that follow from the proof
// and the request alone, and the comparison of addresses. Server and SDK use the same code. It must
// not depend on headers, connections, the contents of a token or earlier requests. The caller
// ensures that there is one proof, that it is used once, and that its key is the one in the token
// (checks 1 and 12, and §11.1).
//
// gRPC has no address of its own, so Deputy defines one: htm is POST, and htu is
// https://<authority>/<package.Service>/<Method>, see [CallURI].
package dpop
