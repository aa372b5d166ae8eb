// Package audit verifies a tenant's log without the server that wrote it: the form of an exported
// entry, the bytes that its leaf hashes, signed checkpoints, and the rules that the entries of a whole
// log keep among themselves. docs/ledger.md describes all of it for those who verify in other languages.
//
// The log is a Merkle tree with the hashing of RFC 6962 §2.1; entry n is leaf n-1. What is believed is a
// signed checkpoint, and everything else is recomputed from the entries up to it.
package audit
