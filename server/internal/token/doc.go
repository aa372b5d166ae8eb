// Package token decides whether a token is authentic, and signs Deputy's own tokens.
//
// It owns signatures and keys: the tenant's signing keys (Keyset), the sources of the keys of
// trusted issuers and registered clients and how long these keys are used (source, fetcher), and
// the rules that turn a presented token into a verified value for the exchange (Trust): a derived
// token of the tenant, a root token with the ceiling that its issuer's configuration grants, an
// actor, or an authenticated caller. Everything that it returns was verified. Everything else is an
// error.
//
// It must not depend on requests, OpenFGA, ledger entries or revocations. The exchange decides what
// a token may hand down, whether it was revoked or spent, and whether the holder of a bound token
// proved its key.
//
// One order holds for every token. The strict gate (delegation.Parse) comes first. Then the claim
// iss selects the keys from static configuration by exact match (or, for a JWT-SVID, the trust
// domain of sub). Then the kid selects the key, and its one algorithm checks the signature over
// exactly the bytes that the gate read. Only then is a claim used as true.
// github.com/lestrrat-go/jwx verifies the signatures and reads JWKs. Its own parsers of tokens are
// not used, and no part of it is in this package's API.
//
// Certificates (RFC 8705) and X.509-SVIDs come from handshakes that have proven possession of their
// keys. They are looked up by their names first, and then verified against the tenant's own files
// alone.
//
// No error text and no log line of this package holds any part of a presented token.
package token
