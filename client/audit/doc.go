// Package audit verifies a tenant's log without the server that wrote it: the form of an exported
// entry, the bytes that its leaf hashes, signed checkpoints, and the rules that the entries of a whole
// log satisfy. docs/ledger.md describes all of it, for verifiers in other languages too.
//
// The log is a Merkle tree with the hashing of RFC 6962 §2.1; entry n is leaf n-1. Only a signed
// checkpoint is trusted, and everything else is recomputed from the entries up to it.
package audit
