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

	"deputy.example/deputy/client/delegation"
)

// canonicalTag opens every canonical entry of this version. The version, the order of the fields
// and their encoding are frozen: docs/ledger.md describes them for those who verify elsewhere.
const canonicalTag = "deputy-ledger-entry-v1"

// personal numbers the fields that may be erased. The order is part of the canonical form.
type personal int

const (
	fieldSubject personal = iota
	fieldActor
	fieldCaller
	fieldActors
	fieldPeer
	fieldDetail
	fieldDetails
	fieldClaims
	fieldActorProof
	fieldTarget // of a revocation, where it is a principal
	fieldTargetSubject
	personalFields
)

var personalNames = [personalFields]string{"subject", "actor", "caller", "actors", "peer", "detail",
	"authorization_details", "claims", "actor_proof", "target", "target_subject"}

// sealed holds one 32-byte value for each personal field that is there: its digest, or its salt.
type sealed struct {
	mask uint16
	sum  [personalFields][sha256.Size]byte
}

func (s *sealed) has(f personal) bool { return s.mask&(1<<f) != 0 }

func (s *sealed) set(f personal, sum [sha256.Size]byte) {
	s.mask |= 1 << f
	s.sum[f] = sum
}

// bytes is the stored form: the mask, big-endian, and the values of its set bits from low to high.
func (s *sealed) bytes() []byte {
	b := make([]byte, 2, 2+bits.OnesCount16(s.mask)*sha256.Size)
	binary.BigEndian.PutUint16(b, s.mask)
	for f := range personalFields {
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
	if s.mask >= 1<<personalFields || len(b) != bits.OnesCount16(s.mask)*sha256.Size {
		return s, errors.New("the seal of an entry is malformed")
	}
	for f := range personalFields {
		if s.has(f) {
			b = b[copy(s.sum[f][:], b):]
		}
	}
	return s, nil
}

// values are the personal fields as they are hashed; "" stands for absent.
func (e *Entry) values() [personalFields]string {
	v := [personalFields]string{
		fieldSubject: string(e.Subject), fieldActor: string(e.Actor), fieldCaller: string(e.Caller),
		fieldActors: joinChain(e.Actors), fieldPeer: e.Peer, fieldDetail: e.Detail,
		fieldDetails: joinDetails(e.Details), fieldClaims: string(e.Claims), fieldActorProof: e.ActorProof,
	}
	if e.Revocation != nil {
		_, v[fieldTarget] = splitTarget(e.Revocation.Target)
		v[fieldTargetSubject] = string(e.Revocation.Target.Subject)
	}
	return v
}

// splitTarget separates what may be erased of a target, a principal, from what may not.
func splitTarget(t delegation.Target) (plain, principal string) {
	switch t.Kind {
	case delegation.BanSuspend, delegation.Resume, delegation.CutSubject, delegation.CutAgent, delegation.CutAgentSubject:
		return "", t.ID
	}
	return t.ID, ""
}

// joinChain uses the one separator that no principal contains.
func joinChain(c delegation.Chain) string {
	var b strings.Builder
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

// seal draws a salt for each personal field that is there, and computes digests and leaf.
func (e *Entry) seal(rand io.Reader) error {
	values := e.values()
	present := 0
	for _, v := range values {
		if v != "" {
			present++
		}
	}
	var random [personalFields * sha256.Size]byte
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
		e.salts.set(personal(f), salt)
		e.digests.set(personal(f), saltedDigest(salt, v))
	}
	e.Leaf = leafHash(e.Canonical())
	return nil
}

func saltedDigest(salt [sha256.Size]byte, value string) [sha256.Size]byte {
	b := make([]byte, 0, 1024)
	return sha256.Sum256(append(append(b, salt[:]...), value...))
}

// leafHash is the leaf hash of RFC 6962 §2.1.
func leafHash(canonical []byte) [sha256.Size]byte {
	b := make([]byte, 0, 2048)
	return sha256.Sum256(append(append(b, 0), canonical...))
}

// Canonical is the frozen form of the entry that its leaf hashes. It holds digests of the personal
// fields, never their values, so it outlives their erasure.
func (e *Entry) Canonical() []byte {
	w := canonicalWriter(make([]byte, 0, 1024))
	w.text(canonicalTag)
	w.text(e.Tenant)
	w.number(e.Seq)
	w.text(string(e.Kind))
	w.time(e.Time)
	w.text(e.ID)
	w.text(e.Parent)
	w.text(e.Txn)
	w.text(e.Root)
	w.text(e.HolderKey)
	w.text(string(e.Outcome))
	w.text(string(e.Reason))
	w.list(e.Scopes)
	w.list(e.Audiences)
	w.time(e.Expiry)
	w.text(e.ModelID)
	w.text(e.TraceID)
	w.number(e.Voids)
	var r delegation.Revocation
	if e.Revocation != nil {
		r = *e.Revocation
	}
	w.number(r.Prev)
	w.text(string(r.Target.Kind))
	plain, _ := splitTarget(r.Target)
	w.text(plain)
	w.time(r.Until)
	for f := range personalFields {
		if e.digests.has(f) {
			w.text(string(e.digests.sum[f][:]))
		} else {
			w.text("")
		}
	}
	return w
}

// canonicalWriter writes fields as a 32-bit big-endian length and that many bytes.
type canonicalWriter []byte

func (w *canonicalWriter) text(s string) {
	*w = append(binary.BigEndian.AppendUint32(*w, uint32(len(s))), s...)
}

func (w *canonicalWriter) number(n uint64) {
	*w = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(*w, 8), n)
}

// time writes microseconds since 1970; 0 stands for no time.
func (w *canonicalWriter) time(t time.Time) { w.number(uint64(micros(t))) }

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

// Erased names the personal fields that the entry had and that were erased.
func (e *Entry) Erased() []string {
	var names []string
	for f := range personalFields {
		if e.digests.has(f) && !e.salts.has(f) {
			names = append(names, personalNames[f])
		}
	}
	return names
}

// Verify recomputes the leaf, and the digest of each personal field that has not been erased.
func (e *Entry) Verify() error {
	if e.Leaf != leafHash(e.Canonical()) {
		return fmt.Errorf("entry %d: its fields do not give its leaf hash", e.Seq)
	}
	values := e.values()
	for f := range personalFields {
		value := values[f]
		switch {
		case e.salts.has(f) && f == fieldClaims && value == "":
			// Claims go when the grant expires or is voided. The salt stays, so that whoever
			// holds the token can still show what was recorded.
		case e.salts.has(f) && e.digests.has(f):
			if saltedDigest(e.salts.sum[f], value) != e.digests.sum[f] {
				return fmt.Errorf("entry %d: %s does not give its digest", e.Seq, personalNames[f])
			}
		case e.salts.has(f):
			return fmt.Errorf("entry %d: %s has a salt and no digest", e.Seq, personalNames[f])
		case value != "":
			return fmt.Errorf("entry %d: %s is there without its salt", e.Seq, personalNames[f])
		}
	}
	return nil
}

// MatchesClaims says whether these are the claims that the entry was recorded with. It needs the
// salt, which is there until the claims are erased, also after the stored claims have expired.
func (e *Entry) MatchesClaims(canonical []byte) bool {
	return e.salts.has(fieldClaims) && e.digests.has(fieldClaims) &&
		saltedDigest(e.salts.sum[fieldClaims], string(canonical)) == e.digests.sum[fieldClaims]
}
