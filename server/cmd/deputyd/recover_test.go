package main

import (
	"bytes"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"deputy.example/deputy/server"
)

// TestRecoverByCommand follows an operator with a ledger that no instance accepts.
func TestRecoverByCommand(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "deputy.yaml")
	text := strings.ReplaceAll(`listen:
  grpc: {address: 127.0.0.1:0}
  http: {address: 127.0.0.1:0}
  ops: {address: 127.0.0.1:0}
database: {dsn: "sqlite://DIR/ledger.db"}
redis: {url: "redis://127.0.0.1:1"}
key_encryption: {key_file: DIR/kek}
tenants:
  - name: acme
    issuer: https://deputy.example/t/acme
    managed_keys: {algorithm: EdDSA}
    policy: {url: "http://127.0.0.1:1", store: 01ARZ3NDEKTSV4RRFFQ69G5FAV, model: 01BX5ZZKBKACTAV9WEVGEMMVRZ}
`, "DIR", dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	step := func(line string, code int, texts ...string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		args := strings.Fields(strings.ReplaceAll(line, "CONFIG", "--config "+config))
		got, said := run(t.Context(), args, &stdout, &stderr), ""
		said = stdout.String() + stderr.String()
		for _, want := range texts {
			if got != code || !strings.Contains(said, want) {
				t.Errorf("deputyd %s: %d, want %d and %q\n%s", line, got, code, want, said)
			}
		}
	}
	step("keys create --kek --out "+filepath.Join(dir, "kek"), 0, "")
	step("migrate CONFIG", 0, "")
	db, err := sql.Open("sqlite", filepath.Join(dir, "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	// The backup is older than the first entry of acme, which is cut off all the same.
	if _, err := db.Exec(`UPDATE incarnation SET id = 'first', doubt = 'entry 9 was acknowledged and is missing'`); err != nil {
		t.Fatal(err)
	}
	step("ledger recover --help", 0, "Examples:", "--cut-off")
	step("ledger recover CONFIG", 0, "entry 9 was acknowledged", "Redis does not answer", "acme: the ledger has no entry", "repeat       suspensions", "nothing was changed")
	step("ledger recover CONFIG --yes --reason drill", 1, "the decision is missing")
	step("ledger recover CONFIG --yes --cut-off", 1, "--reason")
	step("ledger recover CONFIG --yes --cut-off --intact --reason drill", 1, "must be the only option of its kind")
	step("ledger recover CONFIG --yes --intact --reason drill", 1, "must have lost nothing")
	step("ledger recover CONFIG --yes --dry-run --cut-off --reason drill", 0, "nothing was changed")
	step("ledger recover CONFIG --yes --cut-off --reason drill", 0, "has begun")
	var doubt string
	var recorded int
	if err := db.QueryRow(`SELECT doubt, (SELECT count(*) FROM entries WHERE kind = 'admin' OR target_kind IN ('fork', 'tenant')) FROM incarnation`).
		Scan(&doubt, &recorded); err != nil || doubt != "" || recorded != 3 {
		t.Errorf("doubt %q, %d entries, %v", doubt, recorded, err)
	}
	step("ledger recover CONFIG", 0, "nothing was changed")

	// Rotation replaces the one key that a restored table has.
	loaded, err := server.Load(config)
	if err != nil {
		t.Fatal(err)
	}
	before, err := server.RotateKey(t.Context(), loaded, "acme", false, true)
	if err != nil {
		t.Fatal(err)
	}
	step("ledger recover CONFIG --yes --rotate-keys --reason drill", 0, "has begun")
	// Root tokens are not signed with it: where Redis does not have the revocations, those are cut off as well.
	if err := db.QueryRow(`SELECT count(*) FROM entries WHERE target_kind = 'tenant'`).Scan(&recorded); err != nil || recorded != 2 {
		t.Errorf("%d cut-offs of the tenant, %v", recorded, err)
	}
	keys, err := server.Keys(t.Context(), loaded, "acme")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		if (key.ID == before.ID) != (key.State == "retired") {
			t.Errorf("key %+v", key)
		}
	}
}
