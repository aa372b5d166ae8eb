package vault

import (
	"context"
	"encoding/binary"
	"time"
)

// Use is what a key signs.
type Use string

// The uses of managed keys.
const (
	Tokens      Use = "tokens"
	Checkpoints Use = "checkpoints"
)

// Row is a key as it is stored. Lifetime, Retired, Sealed and SealedBy can change. Everything else
// is fixed and bound into Sealed: a row that was moved or edited does not open.
type Row struct {
	Tenant    string
	Use       Use
	Number    uint64 // 1, 2, … within tenant and use; later keys succeed earlier ones
	ID        string // kid
	Algorithm string
	Published time.Time // in the table, and to verifiers, since then; all times are whole microseconds
	SignsFrom time.Time

	Lifetime time.Duration // the longest life of tokens that it may have signed
	Retired  time.Time     // zero: not retired
	Sealed   []byte        // the private key; empty after it was retired
	SealedBy string        // id of the key-encryption key
}

// Store is the table, which all instances share.
type Store interface {
	// SealedKeys returns the keys of all tenants and uses, the earliest first within each use.
	SealedKeys(ctx context.Context) ([]Row, error)
	// AddSealedKey adds a key. It returns false if there is one of that number.
	AddSealedKey(ctx context.Context, r Row) (bool, error)
	// AmendSealedKey changes Lifetime, Sealed and SealedBy of a key that still equals before.
	AmendSealedKey(ctx context.Context, before, after Row) (bool, error)
	// RetireSealedKey records when a key was retired and deletes its private part for good. It does
	// so only if the key does not sign at that time, or a later one does too.
	RetireSealedKey(ctx context.Context, r Row, at time.Time) (bool, error)
}

// bound is the data that a row is sealed with. Length prefixes keep different rows from having the
// same bytes.
func (r Row) bound() []byte {
	b := []byte("deputy managed key 1\n")
	for _, part := range []string{r.Tenant, string(r.Use), r.ID, r.Algorithm} {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(part))), part...)
	}
	for _, n := range []uint64{r.Number, uint64(r.Published.UnixMicro()), uint64(r.SignsFrom.UnixMicro())} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}
