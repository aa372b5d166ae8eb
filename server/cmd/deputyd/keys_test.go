package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/server"
)

// TestManagedKeysByCommand goes through what an operator does with the keys of two tenants.
func TestManagedKeysByCommand(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "deputy.yaml")
	tenant := func(name string) string {
		return strings.ReplaceAll(`  - name: NAME
    issuer: https://deputy.example/t/NAME
    managed_keys: {algorithm: EdDSA}
    audit: {managed_checkpoint_key: true}
    policy: {url: "http://127.0.0.1:1", store: 01ARZ3NDEKTSV4RRFFQ69G5FAV, model: 01BX5ZZKBKACTAV9WEVGEMMVRZ}
`, "NAME", name)
	}
	text := strings.ReplaceAll(`listen:
  grpc: {address: 127.0.0.1:0}
  http: {address: 127.0.0.1:0}
  ops: {address: 127.0.0.1:0}
database: {dsn: "sqlite://DIR/ledger.db"}
redis: {url: "redis://127.0.0.1:1"}
key_encryption: {key_file: DIR/kek}
tenants:
`, "DIR", dir) + tenant("acme") + tenant("globex")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	deputyd := func(line string) (int, string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), strings.Fields(strings.ReplaceAll(line, "CONFIG", "--config "+config)), &stdout, &stderr)
		return code, stdout.String() + stderr.String()
	}
	step := func(line string, code int, text string) string {
		t.Helper()
		got, said := deputyd(line)
		if got != code || !strings.Contains(said, text) {
			t.Errorf("deputyd %s: %d, want %d and %q\n%s", line, got, code, text, said)
		}
		return said
	}
	keys := func(line string) (list []server.Key) {
		t.Helper()
		for line := range strings.Lines(step(line, 0, "")) {
			var key server.Key
			if err := json.Unmarshal([]byte(line), &key); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			list = append(list, key)
		}
		return list
	}

	step("keys list CONFIG", 1, "kek: no such file")
	kek := strings.TrimSpace(step("keys create --kek --out "+dir+"/kek", 0, ""))
	step("keys create --kek --out "+dir+"/kek", 1, "file exists")
	step("keys create --kek --algorithm ES256 --out x", 2, "can't be used together")
	step("keys list CONFIG", 1, "deputyd migrate")
	step("migrate CONFIG", 0, "")
	step("keys list CONFIG", 0, "KID")
	if list := keys("keys list CONFIG --json"); len(list) != 0 {
		t.Errorf("a list makes keys: %+v", list)
	}
	for _, which := range []string{"acme", "acme --checkpoints", "globex", "globex --checkpoints"} {
		step("keys rotate CONFIG --tenant "+which, 0, "signing") // the first needs no publication ahead
	}

	list := keys("keys list CONFIG --tenant acme --json")
	if len(list) != 2 || list[0].Use != "tokens" || list[1].Use != "checkpoints" || list[0].State != "signing" || list[0].SealedBy != kek ||
		list[0].Algorithm != "EdDSA" || !strings.HasPrefix(list[1].Verifier, "deputy.example/t/acme+"+list[1].ID+"+") {
		t.Fatalf("%+v", list)
	}
	if all := keys("keys list CONFIG --json"); len(all) != 4 || all[3].Tenant != "globex" || all[2].ID == list[0].ID {
		t.Errorf("%+v", all)
	}
	step("keys list CONFIG", 0, "verifier key of acme for auditors: "+list[1].Verifier)
	step("keys list CONFIG --tenant umbrella", 1, `no tenant "umbrella"`)
	step("keys list --help", 0, "deputyd keys list --config deputy.yaml")
	step("keys rotate --help", 0, "After the theft of a key")

	step("keys rotate CONFIG", 1, "name one with --tenant")
	step("keys retire CONFIG --tenant acme -- "+list[0].ID, 1, "keys rotate --immediately")
	step("keys retire CONFIG --tenant globex -- "+list[0].ID, 1, "has no managed key")
	next := keys("keys rotate CONFIG --tenant acme --json")
	if len(next) != 1 || next[0].State != "published" || next[0].Until.Sub(next[0].Since) != time.Hour {
		t.Fatalf("%+v", next)
	}
	step("keys rotate CONFIG --tenant acme", 1, "wait, or rotate immediately")
	step("keys retire CONFIG --tenant acme -- "+list[0].ID, 1, "keys rotate --immediately")
	if now := keys("keys rotate CONFIG --tenant acme --immediately --json"); now[0].Until.Sub(now[0].Since) > 6*time.Second {
		t.Errorf("immediately is %+v", now)
	}
	step("keys retire CONFIG --tenant acme -- "+list[0].ID, 1, "wait until")
	step("keys retire CONFIG --tenant acme -- "+next[0].ID, 0, "retired")
	step("keys retire CONFIG --tenant acme -- "+next[0].ID, 1, "was retired already")
	if made := keys("keys rotate CONFIG --tenant acme --checkpoints --json"); made[0].Verifier == "" || made[0].Use != "checkpoints" {
		t.Errorf("%+v", made)
	}

	if err := os.Rename(dir+"/kek", dir+"/former"); err != nil {
		t.Fatal(err)
	}
	step("keys create --kek --out "+dir+"/kek", 0, "")
	step("serve CONFIG", 1, "key-encryption key "+kek+" is not in the file")
	step("keys list CONFIG", 1, "key-encryption key "+kek+" is not in the file")
}
