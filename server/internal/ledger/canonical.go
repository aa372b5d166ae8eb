package ledger

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"
	"time"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
)

// sealed holds one 32-byte value, a digest or a salt, for each personal field that is present.
type sealed struct {
	mask uint16
	sum  [audit.Fields][sha256.Size]byte
}

func (s *sealed) has(f audit.Field) bool { return s.mask&(1<<f) != 0 }

func (s *sealed) set(f audit.Field, sum [sha256.Size]byte) {
	s.mask |= 1 << f
	s.sum[f] = sum
}

// bytes is the stored form: the mask, big-endian, and the values of its set bits from low to high.
func (s *sealed) bytes() []byte {
	b := make([]byte, 2, 2+bits.OnesCount16(s.mask)*sha256.Size)
	binary.BigEndian.PutUint16(b, s.mask)
	for f := range audit.Fields {
		if s.has(f) {
			b = append(b, s.sum[f][:]...)
		}
	}
	return b
}

func parseSealed(b []byte) (s sealed, err error) {
	if len(b) < 2 {
		return s, errors.New("the seal of an entry is cut short")
	}
	s.mask = binary.BigEndian.Uint16(b)
	b = b[2:]
	if s.mask >= 1<<audit.Fields || len(b) != bits.OnesCount16(s.mask)*sha256.Size {
		return s, errors.New("the seal of an entry is malformed")
	}
	for f := range audit.Fields {
		if s.has(f) {
			b = b[copy(s.sum[f][:], b):]
		}
	}
	return s, nil
}

// values are the personal fields as they are hashed; "" means absent.
func (e *Entry) values() [audit.Fields]string {
	v := [audit.Fields]string{
		audit.FieldSubject: string(e.Subject), audit.FieldActor: string(e.Actor), audit.FieldCaller: string(e.Caller),
		audit.FieldActors: joinChain(e.Actors), audit.FieldPeer: e.Peer, audit.FieldDetail: e.Detail,
		audit.FieldDetails: joinDetails(e.Details), audit.FieldClaims: string(e.Claims), audit.FieldActorProof: e.ActorProof,
	}
	if e.Revocation != nil {
		_, v[audit.FieldTarget] = splitTarget(e.Revocation.Target)
		v[audit.FieldTargetSubject] = string(e.Revocation.Target.Subject)
	}
	return v
}

// splitTarget separates the part of a target that can be erased, a principal, from the rest.
func splitTarget(t delegation.Target) (plain, principal string) {
	switch t.Kind {
	case delegation.BanSuspend, delegation.Resume, delegation.CutSubject, delegation.CutAgent, delegation.CutAgentSubject:
		return "", t.ID
	}
	return t.ID, ""
}

// joinChain uses the one separator that cannot occur in a principal.
func joinChain(c delegation.Chain) string {
	size := max(len(c)-1, 0)
	for _, p := range c {
		size += len(p)
	}
	var b strings.Builder
	b.Grow(size)
	for i, p := range c {
		if i > 0 {
			b.WriteByte('|')
		}
		b.WriteString(string(p))
	}
	return b.String()
}

func splitChain(s string) delegation.Chain {
	if s == "" {
		return nil
	}
	var c delegation.Chain
	for p := range strings.SplitSeq(s, "|") {
		c = append(c, delegation.Principal(p))
	}
	return c
}

// joinDetails is a JSON array of the canonical elements, byte for byte.
func joinDetails(details []delegation.Detail) string {
	if len(details) == 0 {
		return ""
	}
	var b strings.Builder
	for i, d := range details {
		b.WriteByte("[,"[min(i, 1)])
		b.WriteString(d.String())
	}
	b.WriteByte(']')
	return b.String()
}

// seal draws a salt for each personal field that is present, and computes digests and leaf.
func (e *Entry) seal(rand io.Reader) error {
	values := e.values()
	present := 0
	for _, v := range values {
		if v != "" {
			present++
		}
	}
	var random [audit.Fields * sha256.Size]byte
	if _, err := io.ReadFull(rand, random[:present*sha256.Size]); err != nil {
		return fmt.Errorf("draw salts: %w", err)
	}
	e.digests, e.salts = sealed{}, sealed{}
	salts := random[:]
	for f, v := range values {
		if v == "" {
			continue
		}
		salt := [sha256.Size]byte(salts)
		salts = salts[sha256.Size:]
		e.salts.set(audit.Field(f), salt)
		e.digests.set(audit.Field(f), audit.Digest(salt[:], v))
	}
	r := e.Record()
	e.Leaf = r.Leaf()
	return nil
}

// Record is the whole entry as an auditor receives it.
func (e *Entry) Record() audit.Record {
	r := audit.Record{
		Tenant: e.Tenant, Seq: e.Seq, Kind: string(e.Kind), Time: e.Time, ID: e.ID, Parent: e.Parent, Txn: e.Txn, Root: e.Root,
		HolderKey: e.HolderKey, Outcome: string(e.Outcome), Reason: string(e.Reason), Scopes: e.Scopes, Audiences: e.Audiences,
		Expiry: e.Expiry, ModelID: e.ModelID, TraceID: e.TraceID, Voids: e.Voids, LeafHash: e.Leaf,
	}
	if v := e.Revocation; v != nil {
		r.Prev, r.TargetKind, r.Until = v.Prev, string(v.Target.Kind), v.Until
		r.TargetID, _ = splitTarget(v.Target)
	}
	for f, value := range e.values() {
		p := &r.Personal[f]
		p.Value = value
		if e.digests.has(audit.Field(f)) {
			p.Digest = e.digests.sum[f][:]
		}
		if e.salts.has(audit.Field(f)) {
			p.Salt = e.salts.sum[f][:]
		}
	}
	return r
}

// Canonical is the frozen form of the entry that its leaf hashes.
func (e *Entry) Canonical() []byte {
	r := e.Record()
	return r.Canonical()
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

// Erased names the personal fields that were erased from the entry.
func (e *Entry) Erased() []string {
	var names []string
	for f := range audit.Fields {
		if e.digests.has(f) && !e.salts.has(f) {
			names = append(names, f.String())
		}
	}
	return names
}

// Verify recomputes the leaf, and the digest of each personal field that has not been erased.
func (e *Entry) Verify() error {
	r := e.Record()
	return r.Verify()
}

// MatchesClaims reports whether the entry was recorded with these claims. It needs their salt,
// which remains until an erasure, even after the stored claims have expired.
func (e *Entry) MatchesClaims(canonical []byte) bool {
	const f = audit.FieldClaims
	return e.salts.has(f) && e.digests.has(f) && audit.Digest(e.salts.sum[f][:], string(canonical)) == e.digests.sum[f]
}

// Without is the entry as if some facts about the request had been erased: the peer, and the
// outcome in words. It is for callers who may not read them. Its record still gives the leaf.
func (e *Entry) Without(peer, detail bool) *Entry {
	kept := *e
	if peer {
		kept.Peer = ""
		kept.salts.mask &^= 1 << audit.FieldPeer
	}
	if detail {
		kept.Detail = ""
		kept.salts.mask &^= 1 << audit.FieldDetail
	}
	return &kept
}
