// Package vault keeps the private keys that Deputy manages itself. They are sealed under a
// key-encryption key, in a table that all instances share, on a schedule that all instances read
// from the same rows.
//
// It owns when a key is published, signs, verifies and is retired. It ensures that one successor is
// made, however many instances find it due, and that a row opens only as what it was sealed as.
// Whether a key is in force follows from the row and the clock alone. So instances that have read
// the same rows agree without a message, and an instance that cannot read continues with its keys,
// up to a stated bound.
//
// It must not depend on what is signed or how: a [Maker] makes and reads the keys of one use. It is
// below the engines, so that signers of tokens and of checkpoints share one schedule. The ledger
// stores its rows.
package vault
