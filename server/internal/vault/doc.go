// Package vault keeps the private keys that Deputy manages itself: sealed under a key-encryption key, in a
// table that all instances share, on a schedule that all instances read from the same rows.
//
// It owns when a key is published, signs, verifies and is gone; that a successor is made once, however many
// instances find it due; and that a row opens only as what it was sealed as. Whether a key is in force
// follows from the row and the clock alone, so instances that have read the same rows agree without a
// message, and one that cannot read goes on with what it has, up to a stated bound.
//
// It must not know what is signed or how: a [Maker] makes and reads the keys of one use. It stands below
// the engines, so that those who sign tokens and those who sign checkpoints share one schedule, and the
// ledger keeps its rows.
package vault
