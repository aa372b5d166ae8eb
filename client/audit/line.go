package audit

import (
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/sumdb/tlog"
)

// recordWire is a line of an export. What is absent is left out.
type recordWire struct {
	Version    string                  `json:"version"`
	Tenant     string                  `json:"tenant"`
	Seq        uint64                  `json:"seq"`
	Kind       string                  `json:"kind"`
	Time       time.Time               `json:"time,omitzero"`
	ID         string                  `json:"jti,omitzero"`
	Parent     string                  `json:"parent,omitzero"`
	Txn        string                  `json:"txn,omitzero"`
	Root       string                  `json:"root,omitzero"`
	HolderKey  string                  `json:"holder_key,omitzero"`
	Outcome    string                  `json:"outcome,omitzero"`
	Reason     string                  `json:"reason,omitzero"`
	Scopes     []string                `json:"scopes,omitempty"`
	Audiences  []string                `json:"audiences,omitempty"`
	Expiry     time.Time               `json:"expiry,omitzero"`
	ModelID    string                  `json:"model_id,omitzero"`
	TraceID    string                  `json:"trace_id,omitzero"`
	Voids      uint64                  `json:"voids,omitzero"`
	Prev       uint64                  `json:"prev,omitzero"`
	TargetKind string                  `json:"target_kind,omitzero"`
	TargetID   string                  `json:"target_id,omitzero"`
	Until      time.Time               `json:"until,omitzero"`
	Personal   map[string]personalWire `json:"personal,omitempty"`
	Leaf       []byte                  `json:"leaf"`
}

type personalWire struct {
	Value  string `json:"value,omitzero"`
	Salt   []byte `json:"salt,omitempty"`
	Digest []byte `json:"digest,omitempty"`
}

// MarshalJSON writes the record as one line of an export, without the line's end. Text that is not UTF-8,
// which only tampering can bring about, is replaced and so no longer gives its leaf.
func (r *Record) MarshalJSON() ([]byte, error) {
	wire := recordWire{
		Version: Version, Tenant: r.Tenant, Seq: r.Seq, Kind: r.Kind, Time: r.Time, ID: r.ID, Parent: r.Parent, Txn: r.Txn,
		Root: r.Root, HolderKey: r.HolderKey, Outcome: r.Outcome, Reason: r.Reason, Scopes: r.Scopes, Audiences: r.Audiences,
		Expiry: r.Expiry, ModelID: r.ModelID, TraceID: r.TraceID, Voids: r.Voids, Prev: r.Prev, TargetKind: r.TargetKind,
		TargetID: r.TargetID, Until: r.Until, Personal: make(map[string]personalWire), Leaf: r.LeafHash[:],
	}
	for f, p := range r.Personal {
		if p.Value != "" || p.Salt != nil || p.Digest != nil {
			wire.Personal[fieldNames[f]] = personalWire(p)
		}
	}
	return json.Marshal(wire, json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
}

// ParseRecord reads one line of an export strictly: no unknown and no repeated members. It does not
// verify anything.
func ParseRecord(line []byte) (Record, error) {
	var wire recordWire
	if err := json.Unmarshal(line, &wire, json.RejectUnknownMembers(true)); err != nil {
		return Record{}, fmt.Errorf("not an entry of an export: %w", err)
	}
	switch {
	case wire.Version != Version:
		return Record{}, fmt.Errorf("version %q is not %q", wire.Version, Version)
	case len(wire.Leaf) != tlog.HashSize:
		return Record{}, errors.New("leaf is not 32 bytes in base64")
	}
	r := Record{
		Tenant: wire.Tenant, Seq: wire.Seq, Kind: wire.Kind, Time: wire.Time.UTC(), ID: wire.ID, Parent: wire.Parent, Txn: wire.Txn,
		Root: wire.Root, HolderKey: wire.HolderKey, Outcome: wire.Outcome, Reason: wire.Reason, Scopes: wire.Scopes,
		Audiences: wire.Audiences, Expiry: wire.Expiry.UTC(), ModelID: wire.ModelID, TraceID: wire.TraceID, Voids: wire.Voids,
		Prev: wire.Prev, TargetKind: wire.TargetKind, TargetID: wire.TargetID, Until: wire.Until.UTC(), LeafHash: tlog.Hash(wire.Leaf),
	}
	for name, t := range map[string]time.Time{"time": r.Time, "expiry": r.Expiry, "until": r.Until} {
		if !t.Equal(t.Truncate(time.Microsecond)) {
			return Record{}, fmt.Errorf("%s is finer than microseconds", name)
		}
	}
	for f, name := range fieldNames {
		if p, there := wire.Personal[name]; there {
			r.Personal[f] = Personal(p)
			delete(wire.Personal, name)
		}
	}
	if len(wire.Personal) > 0 {
		return Record{}, errors.New("personal has an unknown member")
	}
	return r, nil
}

// Dropped is in the first line of an export whose beginning was dropped by retention. The hashes are
// those of the full subtrees of the dropped entries, the largest and oldest first. With them every
// root can be recomputed from the remaining entries.
type Dropped struct {
	Through uint64 // the last entry that was dropped
	Hashes  []tlog.Hash
}

type droppedWire struct {
	Dropped struct {
		Through uint64   `json:"through"`
		Hashes  [][]byte `json:"hashes"`
	} `json:"dropped"`
}

// MarshalJSON writes the line, without its end.
func (d Dropped) MarshalJSON() ([]byte, error) {
	var wire droppedWire
	wire.Dropped.Through = d.Through
	for _, h := range d.Hashes {
		wire.Dropped.Hashes = append(wire.Dropped.Hashes, h[:])
	}
	return json.Marshal(wire)
}

// ParseDropped reads the line strictly.
func ParseDropped(line []byte) (Dropped, error) {
	var wire droppedWire
	if err := json.Unmarshal(line, &wire, json.RejectUnknownMembers(true)); err != nil {
		return Dropped{}, fmt.Errorf("not the line of dropped entries: %w", err)
	}
	d := Dropped{Through: wire.Dropped.Through}
	for _, h := range wire.Dropped.Hashes {
		if len(h) != tlog.HashSize {
			return Dropped{}, errors.New("a hash of the dropped entries is not 32 bytes in base64")
		}
		d.Hashes = append(d.Hashes, tlog.Hash(h))
	}
	if d.Through == 0 {
		return Dropped{}, errors.New("no entry was dropped: leave the line out")
	}
	return d, (&Edge{Size: d.Through, Hashes: d.Hashes}).Check()
}
