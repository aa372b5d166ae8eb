package ledger

import (
	"encoding/binary"
	"hash/crc32"
	"iter"
	"math/bits"
	"slices"
)

// The search index maps terms to entries, in blocks of 512 consecutive entries. It only proposes.
// Each proposal is compared with the entry's own columns, and a block whose rows are not complete
// and undamaged is read entry by entry. The index may therefore lag, be damaged or be deleted
// without losing a result.
const (
	blockSize = 512
	buckets   = 64 // rows of one block; a term's hash selects one of them
)

// blockOf is the block that an entry belongs to: block 0 has the numbers 1 to 512.
func blockOf(seq uint64) uint64 { return (seq - 1) / blockSize }

// firstOf is the lowest number of a block.
func firstOf(block uint64) uint64 { return block*blockSize + 1 }

// facet is a property by which entries are found. The names are part of the index: a renamed facet
// finds nothing until the index is built again.
type facet string

const (
	facetSubject  facet = "subject"
	facetActor    facet = "actor" // all actors, and the requested one
	facetCaller   facet = "caller"
	facetAudience facet = "audience"
	facetScope    facet = "scope"
	facetKind     facet = "kind"
	facetOutcome  facet = "outcome"
	facetReason   facet = "reason"
	facetTrace    facet = "trace"
	facetKey      facet = "key"
	facetPeer     facet = "peer" // without its port
)

// facets are all values by which the entry can be found. The index is built from them, and filters
// are compared with them. A value may occur twice.
func (e *Entry) facets() iter.Seq2[facet, string] {
	return func(yield func(facet, string) bool) {
		one := func(f facet, value string) bool { return value == "" || yield(f, value) }
		if !one(facetSubject, string(e.Subject)) || !one(facetActor, string(e.Actor)) || !one(facetCaller, string(e.Caller)) ||
			!one(facetKind, string(e.Kind)) || !one(facetOutcome, string(e.Outcome)) || !one(facetReason, string(e.Reason)) ||
			!one(facetTrace, e.TraceID) || !one(facetKey, e.HolderKey) || !one(facetPeer, hostOf(e.Peer)) {
			return
		}
		for _, p := range e.Actors {
			if !one(facetActor, string(p)) {
				return
			}
		}
		for _, s := range e.Scopes {
			if !one(facetScope, s) {
				return
			}
		}
		for _, a := range e.Audiences {
			if !one(facetAudience, a) {
				return
			}
		}
	}
}

// has reports whether the entry can be found by the value.
func (e *Entry) has(f facet, value string) bool {
	for g, v := range e.facets() {
		if f == g && v == value {
			return true
		}
	}
	return false
}

// term identifies one value of one facet in the index.
type term [16]byte

// termOf is the beginning of the SHA-256 over facet and value with their lengths.
func termOf(f facet, value string) term {
	name := nameDigest(string(f), value)
	return term(name[:])
}

// termKey is how much of a term a row stores. Two terms that share it, which takes an effort to
// construct, propose each other's entries, which the comparison then rejects.
const termKey = 8

func (t term) key() string { return string(t[:termKey]) }

func (t term) bucket() int { return int(t[len(t)-1]) % buckets }

// members is a set of entries of one block, by their place in it.
type members [blockSize / 64]uint64

var everyone = members{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}

func (m *members) add(place uint64)      { m[place/64] |= 1 << (place % 64) }
func (m *members) has(place uint64) bool { return m[place/64]&(1<<(place%64)) != 0 }

func (m *members) intersect(other members) {
	for i := range m {
		m[i] &= other[i]
	}
}

func (m *members) unite(other members) {
	for i := range m {
		m[i] |= other[i]
	}
}

func (m *members) count() (n int) {
	for _, w := range m {
		n += bits.OnesCount64(w)
	}
	return n
}

// numbers are the members as entries of the block, the newest first, from low to below high.
func (m *members) numbers(block, low, high uint64) []uint64 {
	var list []uint64
	for seq := min(high, firstOf(block+1)) - 1; seq >= max(low, firstOf(block)); seq-- {
		if m.has(seq - firstOf(block)) {
			list = append(list, seq)
		}
	}
	return list
}

// bitmapFrom is the number of members from which a bitmap takes less room than a list.
const bitmapFrom = blockSize / 8

// A row of postings is its terms in order: the key of each, the number of its members as a varint,
// and the members. These are the distances from one to the next as varints, or 64 bytes with a bit
// for each place. A checksum over the row and its place in the index ends the row.

func (m *members) append(b []byte) []byte {
	n := m.count()
	b = binary.AppendUvarint(b, uint64(n))
	if n >= bitmapFrom {
		for _, w := range m {
			b = binary.BigEndian.AppendUint64(b, w)
		}
		return b
	}
	next := uint64(0)
	for place := range uint64(blockSize) {
		if m.has(place) {
			b = binary.AppendUvarint(b, place-next)
			next = place + 1
		}
	}
	return b
}

// parseMembers reads what append wrote and returns the rest; nil if it is malformed.
func parseMembers(b []byte) (m members, rest []byte) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > blockSize {
		return m, nil
	}
	b = b[size:]
	if n >= bitmapFrom {
		if len(b) < blockSize/8 {
			return m, nil
		}
		for i := range m {
			m[i] = binary.BigEndian.Uint64(b[8*i:])
		}
		return m, b[blockSize/8:]
	}
	next := uint64(0)
	for range n {
		gap, size := binary.Uvarint(b)
		if size <= 0 || gap >= blockSize-next {
			return m, nil
		}
		m.add(next + gap)
		next += gap + 1
		b = b[size:]
	}
	return m, b
}

// rowsOf makes the rows of a block from its entries.
func rowsOf(tenant string, block uint64, entries []*Entry) [buckets][]byte {
	values := map[want]*members{} // far fewer than there are places: each one is hashed once
	for _, e := range entries {
		for f, value := range e.facets() {
			w := want{f, value}
			if values[w] == nil {
				values[w] = new(members)
			}
			values[w].add(e.Seq - firstOf(block))
		}
	}
	var terms [buckets]map[string]*members
	for i := range terms {
		terms[i] = map[string]*members{}
	}
	for w, m := range values {
		t := termOf(w.facet, w.value)
		in := terms[t.bucket()]
		if same := in[t.key()]; same != nil {
			m.unite(*same)
		}
		in[t.key()] = m
	}
	var list [buckets][]byte
	for i, in := range terms {
		keys := make([]string, 0, len(in))
		for key := range in {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		var row []byte
		for _, key := range keys {
			row = in[key].append(append(row, key...))
		}
		list[i] = binary.BigEndian.AppendUint32(row, checksum(row, tenant, i, block))
	}
	return list
}

// indexFormat rises with every added facet. A row of an older format may lack a term, so it must
// count as damaged: a search then reads the block's entries, and the row is written again.
const indexFormat = 2

// checksum detects accidental damage. An attacker can recompute it; against attackers there are the
// proofs of the log.
func checksum(row []byte, tenant string, bucket int, block uint64) uint32 {
	place := binary.BigEndian.AppendUint64([]byte{indexFormat, byte(bucket)}, block)
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Update(crc32.Checksum(place, table), table, []byte(tenant)), table, row)
}

// find returns the members of a term in a row. whole is false if the row is damaged.
func find(row []byte, tenant string, block uint64, t term) (m members, whole bool) {
	end := len(row) - crc32.Size
	if end < 0 || binary.BigEndian.Uint32(row[end:]) != checksum(row[:end], tenant, t.bucket(), block) {
		return m, false
	}
	for rest := row[:end]; len(rest) > 0; {
		if len(rest) < termKey {
			return members{}, false
		}
		key := string(rest[:termKey])
		if m, rest = parseMembers(rest[termKey:]); rest == nil {
			return members{}, false
		}
		if key == t.key() {
			return m, true
		}
	}
	return members{}, true
}
