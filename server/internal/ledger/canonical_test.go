package ledger_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

var update = flag.Bool("update", false, "write testdata/canonical-v1.txt again; the format is frozen, so only before a first release")

// counting gives the bytes 0, 1, 2, …: salts that a reader can compute.
type counting struct{ next byte }

func (c *counting) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = c.next
		c.next++
	}
	return len(p), nil
}

// fieldNames are those of docs/ledger.md, in order.
var fieldNames = strings.Fields(`version tenant seq kind time jti parent txn root holder_key outcome reason scopes audiences expiry
	model_id trace_id voids prev target_kind target_id until subject actor caller actors peer detail authorization_details
	claims actor_proof target_principal target_subject`)

// splitFields reads length-prefixed fields, as a reader would who has only the documentation.
func splitFields(b []byte) ([][]byte, error) {
	var fields [][]byte
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, fmt.Errorf("%d bytes left over", len(b))
		}
		n := binary.BigEndian.Uint32(b)
		if uint64(n) > uint64(len(b)-4) {
			return nil, fmt.Errorf("a field of %d bytes in %d", n, len(b)-4)
		}
		fields, b = append(fields, b[4:4+n]), b[4+n:]
	}
	return fields, nil
}

// TestCanonicalIsFrozen appends fixed drafts and compares their canonical form, field by field,
// with what was written down once and for all.
func TestCanonicalIsFrozen(t *testing.T) {
	const golden = "testdata/canonical-v1.txt"
	now := time.Date(2026, 11, 22, 1, 2, 3, 456789000, time.UTC)
	l := opened(t, databases["sqlite"](t), ledger.Config{Timeout: patient.Timeout, Now: func() time.Time { return now }, Rand: &counting{}})
	details, err := delegation.ParseDetails([]byte(`[{"type":"document","actions":["read"]}]`))
	if err != nil {
		t.Fatal(err)
	}
	claims := []byte(`{"canonical":"claims"}`)
	for _, d := range []*ledger.Draft{
		{
			Kind: ledger.KindGrant, ID: "01JD0000000000000000000001", Txn: "01JD0000000000000000000002", Root: "9f2c",
			Subject: "user:alice", Actor: "agent:planner", Caller: "agent:planner", Actors: delegation.Chain{"agent:planner"},
			HolderKey: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I", Scopes: delegation.Scopes{"calendar.read", "calendar.write"},
			Audiences: []string{"https://calendar.example", "urn:two"}, Details: details, Expiry: now.Add(5 * time.Minute),
			ModelID: "01MODEL", Peer: "192.0.2.7:4711", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", ActorProof: "actor_token",
			Detail: "for people", Claims: func(uint64) ([]byte, error) { return claims, nil },
		},
		{Kind: ledger.KindRefusal, Caller: "agent:planner", Reason: delegation.ScopeNotPermitted},
		{Kind: ledger.KindVoid, Caller: "agent:planner", Voids: 1},
		{Kind: ledger.KindRevocation, Caller: "user:responder", Revocation: &delegation.Revocation{
			Target: delegation.Target{Kind: delegation.BanToken, ID: "01JD0000000000000000000001"}, Until: now.Add(time.Hour)}},
		{Kind: ledger.KindRevocation, Caller: "user:responder", Revocation: &delegation.Revocation{
			Target: delegation.Target{Kind: delegation.CutAgentSubject, ID: "agent:planner", Subject: "user:alice"}}},
	} {
		if _, err := l.Append(t.Context(), tenant, d); err != nil {
			t.Fatal(err)
		}
	}
	list, err := l.Entries(t.Context(), tenant, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, e := range list {
		fields, err := splitFields(e.Canonical())
		if err != nil || len(fields) != len(fieldNames) {
			t.Fatalf("entry %d: %d fields, want %d (%v)", e.Seq, len(fields), len(fieldNames), err)
		}
		for i, f := range fields {
			fmt.Fprintf(&got, "%-21s %x\n", fieldNames[i], f)
		}
		leaf := sha256.Sum256(append([]byte{0}, e.Canonical()...))
		fmt.Fprintf(&got, "%-21s %x\n\n", "leaf", leaf)
		if leaf != e.Leaf {
			t.Errorf("entry %d: its leaf is not SHA-256(0x00 || canonical)", e.Seq)
		}
	}
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the canonical form has changed; it is frozen.\ngot\n%swant\n%s", got.String(), want)
	}

	// The salted digest, computed as documented.
	fields, err := splitFields(list[0].Canonical())
	if err != nil {
		t.Fatal(err)
	}
	for field, value := range map[int]string{0: "user:alice", 6: `[{"actions":["read"],"type":"document"}]`, 7: string(claims)} {
		salt := list[0].Salt(field)
		if sum := sha256.Sum256(append(salt[:], value...)); !bytes.Equal(sum[:], fields[22+field]) {
			t.Errorf("%s = %x, want SHA-256(%x || %q)", fieldNames[22+field], fields[22+field], salt, value)
		}
	}
}

// TestCanonicalIsInjective moves text from one field to the next, which must never give equal
// bytes.
func TestCanonicalIsInjective(t *testing.T) {
	text := rapid.StringN(0, 6, 12)
	list := rapid.SliceOfN(text, 0, 3)
	draw := rapid.Custom(func(t *rapid.T) ledger.Entry {
		return ledger.Entry{
			Tenant: text.Draw(t, "tenant"), Seq: rapid.Uint64().Draw(t, "seq"), ID: text.Draw(t, "id"), Parent: text.Draw(t, "parent"),
			Txn: text.Draw(t, "txn"), Root: text.Draw(t, "root"), HolderKey: text.Draw(t, "key"), ModelID: text.Draw(t, "model"),
			Scopes: list.Draw(t, "scopes"), Audiences: list.Draw(t, "audiences"), Voids: rapid.Uint64().Draw(t, "voids"),
		}
	})
	describe := func(e ledger.Entry) string {
		return fmt.Sprintf("%q %d %q %q %q %q %q %q %q %q %d", e.Tenant, e.Seq, e.ID, e.Parent, e.Txn, e.Root, e.HolderKey, e.ModelID,
			[]string(e.Scopes), e.Audiences, e.Voids)
	}
	rapid.Check(t, func(t *rapid.T) {
		a := draw.Draw(t, "a")
		b := a
		switch rapid.IntRange(0, 3).Draw(t, "change") {
		case 0: // shift a boundary between two neighbours
			if a.ID != "" {
				b.ID, b.Parent = a.ID[:len(a.ID)-1], a.ID[len(a.ID)-1:]+a.Parent
			}
		case 1:
			b.Scopes, b.Audiences = append(delegation.Scopes(nil), a.Audiences...), append([]string(nil), a.Scopes...)
		case 2:
			b.Scopes = delegation.Scopes{strings.Join(a.Scopes, "")}
		case 3:
			b = draw.Draw(t, "b")
		}
		if same, equal := describe(a) == describe(b), bytes.Equal(a.Canonical(), b.Canonical()); same != equal {
			t.Fatalf("equal entries: %t, equal bytes: %t\n%s\n%s\n%s", same, equal, describe(a), describe(b), hex.EncodeToString(a.Canonical()))
		}
	})
}
