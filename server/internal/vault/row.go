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

// Row is a key as it is stored. All but Lifetime, Retired and Sealed with SealedBy stays as it was made, and
// is bound into Sealed: a row that was moved or edited does not open.
type Row struct {
	Tenant    string
	Use       Use
	Number    uint64 // 1, 2, … within tenant and use; later keys succeed earlier ones
	ID        string // kid
	Algorithm string
	Published time.Time // in the table, and so to verifiers, since then; all times are whole microseconds
	SignsFrom time.Time

	Lifetime time.Duration // the longest life of what it may have signed
	Retired  time.Time     // zero: not
	Sealed   []byte        // the private key; empty once it was retired
	SealedBy string        // id of the key-encryption key
}

// Store is the table, which all instances share.
type Store interface {
	// SealedKeys returns the keys of all tenants and uses, of each the earliest first.
	SealedKeys(ctx context.Context) ([]Row, error)
	// AddSealedKey adds a key, unless there is one of that number: then it says no.
	AddSealedKey(ctx context.Context, r Row) (bool, error)
	// AmendSealedKey changes Lifetime, Sealed and SealedBy of a key that is as it was before.
	AmendSealedKey(ctx context.Context, before, after Row) (bool, error)
	// RetireSealedKey notes when a key was retired and forgets its private part for good. It does so only to
	// a key that does not sign at that time, or while a later one does too.
	RetireSealedKey(ctx context.Context, r Row, at time.Time) (bool, error)
}

// bound is what a row is sealed with. Length prefixes keep different rows from giving the same bytes.
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
