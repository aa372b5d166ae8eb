package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Version opens the canonical form of every entry. Version, order of the fields and their encoding are
// frozen.
const Version = "deputy-ledger-entry-v1"

// Field numbers the personal fields of an entry: those that can name or describe a person and that may
// be erased. The order is part of the canonical form.
type Field int

const (
	FieldSubject Field = iota
	FieldActor
	FieldCaller
	FieldActors // oldest first, joined by |
	FieldPeer
	FieldDetail
	FieldDetails // authorization_details, a JSON array of canonical elements
	FieldClaims  // exactly as signed; the value is gone once the grant has expired
	FieldActorProof
	FieldTarget        // of a revocation, where it is a principal
	FieldTargetSubject // of a revocation of kind agent_subject
	Fields             // how many there are
)

var fieldNames = [Fields]string{"subject", "actor", "caller", "actors", "peer", "detail",
	"authorization_details", "claims", "actor_proof", "target", "target_subject"}

// String is the field's name in an export.
func (f Field) String() string { return fieldNames[f] }

// Personal is one personal field. Absent from the start: all empty. Erased: the digest alone.
type Personal struct {
	Value  string
	Salt   []byte // 32 random bytes
	Digest []byte // SHA-256(Salt ‖ Value), which is what the leaf covers
}

// Erased reports whether the field had a value that was erased.
func (p Personal) Erased() bool { return len(p.Digest) > 0 && len(p.Salt) == 0 }

// Digest is what the canonical form holds of a personal value.
func Digest(salt []byte, value string) [sha256.Size]byte {
	b := make([]byte, 0, 1024)
	return sha256.Sum256(append(append(b, salt...), value...))
}

// Record is one whole entry of the log, one line of an export. Times are whole microseconds of UTC;
// the zero time means none.
type Record struct {
	Tenant string
	Seq    uint64 // its number: 1, 2, 3, …
	Kind   string // grant, refusal, check, void or revocation
	Time   time.Time

	ID     string // jti of a grant
	Parent string // jti of the parent grant; "" where the parent is a root token
	Txn    string // the chain
	Root   string // digest that identifies the root token

	HolderKey string // thumbprint of the key that the grant is bound to, or ""
	Outcome   string // granted, refused or done
	Reason    string // of a refusal
	Scopes    []string
	Audiences []string
	Expiry    time.Time // of a grant
	ModelID   string    // OpenFGA model that decided
	TraceID   string
	Voids     uint64 // number of the grant that a void takes back

	// Of a revocation.
	Prev       uint64 // number of the tenant's revocation before it, or 0
	TargetKind string
	TargetID   string // the target, unless it is a principal
	Until      time.Time

	Personal [Fields]Personal

	LeafHash tlog.Hash // as recorded; Verify compares it with Leaf
}

// Canonical is the frozen form of the entry that its leaf hashes. It holds digests of the personal
// fields, never their values, so it outlives their erasure.
func (r *Record) Canonical() []byte {
	w := canonicalWriter(make([]byte, 0, 1024))
	w.text(Version)
	w.text(r.Tenant)
	w.number(r.Seq)
	w.text(r.Kind)
	w.time(r.Time)
	w.text(r.ID)
	w.text(r.Parent)
	w.text(r.Txn)
	w.text(r.Root)
	w.text(r.HolderKey)
	w.text(r.Outcome)
	w.text(r.Reason)
	w.list(r.Scopes)
	w.list(r.Audiences)
	w.time(r.Expiry)
	w.text(r.ModelID)
	w.text(r.TraceID)
	w.number(r.Voids)
	w.number(r.Prev)
	w.text(r.TargetKind)
	w.text(r.TargetID)
	w.time(r.Until)
	for i := range r.Personal {
		w.text(string(r.Personal[i].Digest))
	}
	return w
}

// Leaf is the entry's leaf hash, recomputed (RFC 6962 §2.1).
func (r *Record) Leaf() tlog.Hash { return tlog.RecordHash(r.Canonical()) }

// Verify recomputes the leaf, and the digest of each personal field that has not been erased. What it
// finds is a *BadEntry.
func (r *Record) Verify() error {
	if r.LeafHash != r.Leaf() {
		return r.bad("leaf", "its fields do not give its leaf hash")
	}
	for f := range Fields {
		p := r.Personal[f]
		switch {
		case len(p.Digest) == 0 && len(p.Salt) == 0 && p.Value == "":
		case len(p.Digest) != sha256.Size:
			return r.bad("digest", "%s has no digest", f)
		case len(p.Salt) == 0 && p.Value == "": // erased
		case len(p.Salt) != sha256.Size:
			return r.bad("digest", "%s is there without its salt", f)
		case f == FieldClaims && p.Value == "":
			// Claims are deleted when the grant expires or is voided. The salt stays, so that a
			// holder of the token can still prove what was recorded.
		case Digest(p.Salt, p.Value) != [sha256.Size]byte(p.Digest):
			return r.bad("digest", "%s does not give its digest", f)
		}
	}
	return nil
}

func (r *Record) bad(rule, format string, args ...any) *BadEntry {
	return &BadEntry{Entry: r.Seq, Through: r.Seq, Rule: rule, Detail: fmt.Sprintf(format, args...)}
}

// canonicalWriter writes fields as a 32-bit big-endian length and that many bytes.
type canonicalWriter []byte

func (w *canonicalWriter) text(s string) {
	*w = append(binary.BigEndian.AppendUint32(*w, uint32(len(s))), s...)
}

func (w *canonicalWriter) number(n uint64) {
	*w = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(*w, 8), n)
}

// time writes microseconds since 1970; 0 means no time.
func (w *canonicalWriter) time(t time.Time) {
	if t.IsZero() {
		w.number(0)
		return
	}
	w.number(uint64(t.UnixMicro()))
}

// list writes its elements as fields inside one field.
func (w *canonicalWriter) list(items []string) {
	size := 0
	for _, s := range items {
		size += 4 + len(s)
	}
	*w = binary.BigEndian.AppendUint32(*w, uint32(size))
	for _, s := range items {
		w.text(s)
	}
}
