// Package token decides whether a token is what it says it is, and signs Deputy's own.
//
// It owns signatures and keys: the tenant's signing keys (Keyset), where the keys of trusted issuers
// and registered clients come from and how long they are believed (source, fetcher), and the rules
// that turn a presented token into something the exchange may reason about (Trust): a derived token
// of ours, a root token with the ceiling that its issuer's configuration grants, an actor, or an
// authenticated caller. Everything it hands out was verified; everything else is an error.
//
// It must not know of requests, OpenFGA, ledger entries or revocations. What a token allows to be
// handed on, whether it was revoked or spent, and whether the holder of a bound token proved its key
// are questions for the exchange.
//
// One order holds for every token: the strict gate (delegation.Parse), then the claim iss picks the
// keys from static configuration by exact match (or, of a JWT-SVID, the trust domain of sub), then the key is found by kid, then its one
// algorithm checks the signature over exactly the bytes that the gate read, and only then is a claim
// believed. github.com/lestrrat-go/jwx does the arithmetic and reads JWKs; its own parsers of tokens
// see nothing, and no part of it shows in this package's API.
//
// Certificates (RFC 8705) and X.509-SVIDs come from handshakes that have proven possession of their
// keys. They are looked up by their names first, and then verified against the tenant's own files alone.
//
// No error text and no log line of this package holds any part of a presented token.
package token
