package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExitCodesAndStreams(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("listen: {grcp: x}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	key, ledger := filepath.Join(dir, "key.pem"), "sqlite://"+filepath.Join(dir, "ledger.db")
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"--help", 0, "Commands:", ""},
		{"keys create --help", 0, "--algorithm", ""},
		{"version", 0, "deputyd ", ""},
		{"--version", 0, ", commit ", ""},
		{"", 2, "", "expected one of"},
		{"serve", 2, "", "--config=FILE"},
		{"serve --config x --verbose", 2, "", "unknown flag"},
		{"migrate", 2, "", "--config=FILE or --dsn=ADDRESS"},
		{"migrate --config x --dsn y", 2, "", "can't be used together"},
		{"keys create --out x --algorithm HS256", 2, "", "must be one of"},
		{"serve --config " + bad, 1, "", "line 1: listen.grcp: is not a key"},
		{"config check --config " + bad, 1, "", "line 1: tenants: is missing"},
		{"config check --config " + dir + "/none.yaml", 1, "", "no such file"},
		{"migrate --dsn mysql://db", 1, "", "database.dsn: must begin with"},
		{"migrate --dsn postgres://a:canary@localhost/b", 1, "", "holds a password"},
		{"migrate --dsn " + ledger, 0, "", ""},
		{"migrate --dsn " + ledger, 0, "", ""}, // again
		{"erase --config x --tenant acme", 2, "", "--subject=PRINCIPAL"},
		{"keys create --algorithm ES256 --out " + key, 0, "", ""},
		{"keys create --algorithm ES256 --out " + key, 1, "", "file already exists"},
		{"keys create --out x", 2, "", "--algorithm"},
		{"keys create --out x --algorithm ES256 --checkpoint https://deputy.example", 2, "", "can't be used together"},
		{"keys create --checkpoint https://deputy.example/t/acme --out " + key + ".cp", 0, "deputy.example/t/acme+", ""},
		{"keys create --checkpoint https://deputy.example/t/acme --out " + key + ".cp", 1, "", "file exists"},
		{"keys create --checkpoint acme --out " + key + ".x", 1, "", "gives no name for a key"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), strings.Fields(c.args), &stdout, &stderr)
		if code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
			t.Errorf("deputyd %s: code %d, want %d\nstdout: %s\nstderr: %s", c.args, code, c.code, &stdout, &stderr)
		}
		if code == 0 && stderr.Len() > 0 || code != 0 && stdout.Len() > 0 && c.code == 1 {
			t.Errorf("deputyd %s: wrong stream\nstdout: %s\nstderr: %s", c.args, &stdout, &stderr)
		}
		if strings.Contains(stderr.String(), "canary") {
			t.Errorf("deputyd %s repeats a password", c.args)
		}
	}
}

// TestCommandsOfAConfiguration: check, migrate and erase, and a server without a schema. signal_test.go serves.
func TestCommandsOfAConfiguration(t *testing.T) {
	config := writeConfig(t)
	deputyd := func(ctx context.Context, args ...string) (int, string) {
		var stdout, stderr bytes.Buffer
		code := run(ctx, args, &stdout, &stderr)
		return code, stdout.String() + stderr.String()
	}
	if code, said := deputyd(t.Context(), "config", "check", "--config", config); code != 0 || !strings.Contains(said, "no errors") {
		t.Fatal(code, said)
	}
	if code, said := deputyd(t.Context(), "serve", "--config", config); code != 1 || !strings.Contains(said, "deputyd migrate") {
		t.Errorf("an unmigrated database: %d %s", code, said)
	}
	if code, said := deputyd(t.Context(), "migrate", "--config", config); code != 0 {
		t.Fatal(said)
	}
	for _, c := range []struct {
		args, want string
		code       int
	}{
		{"--tenant acme --subject user:alice", "erased 0 fields of 0 entries", 0},
		{"--tenant acme --subject user:alice --dry-run", "would erase 0 fields", 0},
		{"--tenant acme --subject user:alice --json", `{"dry_run":false,"entries":0,"fields":0,"deferred":0,"kept":0}`, 0},
		{"--tenant umbrella --subject user:alice", "has no tenant", 1},
		{"--tenant acme --subject alice", "must be type:id", 1},
	} {
		if code, said := deputyd(t.Context(), append([]string{"erase", "--config", config}, strings.Fields(c.args)...)...); code != c.code || !strings.Contains(said, c.want) {
			t.Errorf("erase %s: %d %s", c.args, code, said)
		}
	}
}
