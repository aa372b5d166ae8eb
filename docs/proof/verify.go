//go:build ignore

// This page verifies, with nothing but Go's standard library, that one entry is in a tenant's log:
//
//	deputy log prove JTI > proof.json
//	go run docs/proof/verify.go VERIFIER-KEY < proof.json
//
// It shares no code with Deputy. docs/ledger.md describes the forms that it reads. Have the verifier key
// from somewhere else than the proof.
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// proof is what "deputy log prove" writes. encoding/json reads []byte from base64.
type proof struct {
	Record struct {
		Version, Tenant string
		Seq             uint64
		Kind            string
		Time            time.Time
		JTI             string
		Parent, Txn     string
		Root            string
		HolderKey       string `json:"holder_key"`
		Outcome, Reason string
		Scopes          []string
		Audiences       []string
		Expiry          time.Time
		ModelID         string `json:"model_id"`
		TraceID         string `json:"trace_id"`
		Voids, Prev     uint64
		TargetKind      string `json:"target_kind"`
		TargetID        string `json:"target_id"`
		Until           time.Time
		Personal        map[string]struct {
			Value        string
			Salt, Digest []byte
		}
		Leaf []byte
	}
	Inclusion  [][]byte
	Checkpoint string
}

// personal are the fields that can be erased, in the order of the canonical form.
var personal = []string{"subject", "actor", "caller", "actors", "peer", "detail", "authorization_details", "claims",
	"actor_proof", "target", "target_subject"}

func main() {
	if len(os.Args) != 2 {
		fail("usage: verify VERIFIER-KEY < proof.json")
	}
	var p proof
	decoder := json.NewDecoder(os.Stdin)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&p); err != nil {
		fail("the proof cannot be read: %v", err)
	}
	size, root := checkpoint(p.Checkpoint, os.Args[1])
	leaf := sha256.Sum256(append([]byte{0}, canonical(&p)...))
	if !bytes.Equal(leaf[:], p.Record.Leaf) {
		fail("the fields of the entry do not give its leaf hash")
	}
	for name, f := range p.Record.Personal {
		if f.Value == "" { // erased, or claims that have expired
			continue
		}
		if sum := sha256.Sum256(append(f.Salt, f.Value...)); len(f.Salt) != 32 || !bytes.Equal(sum[:], f.Digest) {
			fail("%s does not give its digest", name)
		}
	}
	if p.Record.Seq == 0 || p.Record.Seq > size || !bytes.Equal(climb(leaf[:], p.Record.Seq-1, size, p.Inclusion), root) {
		fail("the hashes do not lead from the entry to the root of the checkpoint")
	}
	fmt.Printf("entry %d (%s %s) is in the log of %d entries that the key signed\n", p.Record.Seq, p.Record.Kind, p.Record.JTI, size)
}

// canonical writes the entry as in docs/ledger.md: each field is its length in four bytes, and its bytes.
func canonical(p *proof) []byte {
	r := &p.Record
	var b []byte
	field := func(value []byte) { b = append(binary.BigEndian.AppendUint32(b, uint32(len(value))), value...) }
	texts := func(values ...string) {
		for _, v := range values {
			field([]byte(v))
		}
	}
	number := func(n uint64) { field(binary.BigEndian.AppendUint64(nil, n)) }
	moment := func(t time.Time) {
		if t.IsZero() {
			number(0)
		} else {
			number(uint64(t.UnixMicro()))
		}
	}
	list := func(values []string) {
		var inner []byte
		for _, v := range values {
			inner = append(binary.BigEndian.AppendUint32(inner, uint32(len(v))), v...)
		}
		field(inner)
	}
	texts(r.Version, r.Tenant)
	number(r.Seq)
	texts(r.Kind)
	moment(r.Time)
	texts(r.JTI, r.Parent, r.Txn, r.Root, r.HolderKey, r.Outcome, r.Reason)
	list(r.Scopes)
	list(r.Audiences)
	moment(r.Expiry)
	texts(r.ModelID, r.TraceID)
	number(r.Voids)
	number(r.Prev)
	texts(r.TargetKind, r.TargetID)
	moment(r.Until)
	for _, name := range personal {
		field(r.Personal[name].Digest)
	}
	return b
}

// climb goes from a leaf to the root (RFC 9162 section 2.1.3.2, the hashing is that of RFC 6962).
func climb(hash []byte, index, size uint64, path [][]byte) []byte {
	last := size - 1
	for _, sibling := range path {
		if last == 0 || len(sibling) != 32 {
			return nil
		}
		if index&1 == 1 || index == last {
			hash = node(sibling, hash)
			for index&1 == 0 && index != 0 {
				index, last = index>>1, last>>1
			}
		} else {
			hash = node(hash, sibling)
		}
		index, last = index>>1, last>>1
	}
	if last != 0 {
		return nil
	}
	return hash
}

func node(left, right []byte) []byte {
	sum := sha256.Sum256(append(append([]byte{1}, left...), right...))
	return sum[:]
}

// checkpoint verifies a signed note (https://c2sp.org/signed-note) and reads the head in it.
func checkpoint(text, key string) (size uint64, root []byte) {
	parts := strings.SplitN(key, "+", 3) // name+hash+data, where the data are 1 for Ed25519 and the public key
	if len(parts) != 3 {
		fail("the verifier key is not one")
	}
	name := parts[0]
	data, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(data) != 33 || data[0] != 1 {
		fail("the verifier key is not one of Ed25519")
	}
	id := sha256.Sum256(append([]byte(name+"\n"), data...))
	body, signatures, _ := strings.Cut(text, "\n\n")
	body += "\n"
	signed := false
	for _, line := range strings.Split(signatures, "\n") {
		encoded, ours := strings.CutPrefix(line, "— "+name+" ")
		signature, err := base64.StdEncoding.DecodeString(encoded)
		if ours && err == nil && len(signature) == 68 && bytes.Equal(signature[:4], id[:4]) {
			signed = signed || ed25519.Verify(data[1:], []byte(body), signature[4:])
		}
	}
	lines := strings.Split(body, "\n")
	if !signed || len(lines) < 4 || lines[0] != name {
		fail("the checkpoint is not signed by this key")
	}
	if size, err = strconv.ParseUint(lines[1], 10, 63); err == nil {
		root, err = base64.StdEncoding.DecodeString(lines[2])
	}
	if err != nil || len(root) != 32 {
		fail("the checkpoint cannot be read")
	}
	return size, root
}

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "NOT PROVEN: "+format+"\n", args...)
	os.Exit(1)
}
