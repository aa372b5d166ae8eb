package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// asDeputyd makes the binary of the tests run as deputyd.
const asDeputyd = "DEPUTYD_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asDeputyd) != "" {
		main()
	}
	os.Exit(m.Run())
}

// TestHangup: the server starts without Redis and OpenFGA. SIGHUP does not end it, and SIGTERM after it drains and
// ends it without an error.
func TestHangup(t *testing.T) {
	config := writeConfig(t)
	deputyd := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), os.Args[0], append(args, "--config", config)...)
		cmd.Env = append(os.Environ(), asDeputyd+"=1")
		return cmd
	}
	if out, err := deputyd("migrate").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	serving := deputyd("serve")
	log, err := serving.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := serving.Start(); err != nil {
		t.Fatal(err)
	}
	var events []string
	for lines := bufio.NewScanner(log); lines.Scan(); {
		events = append(events, lines.Text())
		if !strings.Contains(lines.Text(), `"msg":"serving"`) {
			continue
		}
		for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGTERM} {
			if err := serving.Process.Signal(s); err != nil {
				t.Error(err)
			}
		}
	}
	if err := serving.Wait(); err != nil || !strings.Contains(strings.Join(events, "\n"), `"msg":"draining"`) {
		t.Errorf("%v\n%s", err, strings.Join(events, "\n"))
	}
}

// writeConfig writes a configuration with a signing key, for a server without Redis and OpenFGA.
func writeConfig(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if code := run(t.Context(), []string{"keys", "create", "--out", filepath.Join(dir, "key.pem"), "--algorithm", "EdDSA"}, os.Stdout, os.Stderr); code != 0 {
		t.Fatal("no signing key")
	}
	text := strings.ReplaceAll(`listen:
  grpc: {address: 127.0.0.1:0}
  http: {address: 127.0.0.1:0}
  ops: {address: 127.0.0.1:0}
  drain_notice: 1ms
database: {dsn: "sqlite://DIR/ledger.db"}
redis: {url: "redis://127.0.0.1:1"}
tenants:
  - name: acme
    issuer: https://deputy.example
    default: true
    signing_keys: [{path: DIR/key.pem, algorithm: EdDSA}]
    policy: {url: "http://127.0.0.1:1", store: 01ARZ3NDEKTSV4RRFFQ69G5FAV, model: 01BX5ZZKBKACTAV9WEVGEMMVRZ}
`, "DIR", dir)
	config := filepath.Join(dir, "deputy.yaml")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return config
}
