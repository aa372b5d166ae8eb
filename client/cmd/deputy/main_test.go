package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/internal/deputytest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"deputy": main})
}

// TestScripts runs each script against a server of its own. Besides Deputy's environment a script
// finds in its directory: planner.pem, the caller's key; alice.jwt, a root token; researcher.jwt, a
// derived token; expired.jwt; stranger.jwt, signed by somebody else; evil.jwt, whose claims try to
// write on the terminal; keys.json.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			s, stranger := deputytest.Start(), deputytest.Start()
			env.Defer(s.Close)
			env.Defer(stranger.Close)
			for name, value := range map[string]string{
				"DEPUTY_ADDR": s.Address, "DEPUTY_ISSUER": s.Issuer, "DEPUTY_PLAINTEXT": "true",
				"DEPUTY_CLIENT_ID": "planner", "DEPUTY_KEY": "planner.pem",
			} {
				env.Setenv(name, value)
			}
			return writeFiles(env.WorkDir, s, stranger)
		},
	})
}

func writeFiles(dir string, s, stranger *deputytest.Server) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	claims := s.Claims(time.Now())
	claims.ExpiresAt = claims.IssuedAt + 30*24*3600 // so that relative times do not hang on the second
	for name, content := range map[string]string{
		"planner.pem":    string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})),
		"alice.jwt":      s.RootToken("alice"),
		"researcher.jwt": s.Token(claims),
		"expired.jwt":    s.Token(s.Claims(time.Unix(1_700_000_000, 0))),
		"stranger.jwt":   stranger.Token(claims),
		"evil.jwt": s.Sign(map[string]any{"alg": "ES256"}, map[string]any{
			"iss": "https://idp.example", "exp": time.Now().Unix() + 60, "sub": "\x1b[2J\u009b31m\u202eecila",
		}),
		"keys.json":    string(s.JWKS()),
		"details.json": `[{"type":"calendar","actions":["read"],"identifier":"team"}]`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// runApp runs a command in this process as a person at a terminal would see it.
func runApp(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(args, &app{
		stdin: strings.NewReader(stdin), stdout: newPrinter(&out, true), stderr: newPrinter(&errs, true),
		terminal: true, now: time.Now,
	})
	return code, out.String(), errs.String()
}

// TestTerminal: colour and an explanation for a person, and no colour where NO_COLOR asks for none.
func TestTerminal(t *testing.T) {
	s := deputytest.Start()
	defer s.Close()
	dir := t.TempDir()
	if err := writeFiles(dir, s, s); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"exchange", "--addr", s.Address, "--plaintext", "--issuer", s.Issuer, "--client-id", "planner", "--key", filepath.Join(dir, "planner.pem"),
		"--subject-token-file", "-", "--scope", "calendar.read", "--audience", "calendar", "--lifetime", "1h30m",
	}
	t.Setenv("NO_COLOR", "")
	code, stdout, stderr := runApp(t, s.RootToken("alice"), args...)
	if code != 0 || strings.Count(stdout, "\n") != 1 || strings.Contains(stdout, "\x1b") {
		t.Errorf("%d: %q", code, stdout)
	}
	for _, want := range []string{"\x1b[1;32mISSUED\x1b[0m as grant jti-41", "may    calendar.read", "where  calendar", "(in 1h"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %q in\n%s", want, stderr)
		}
	}
	t.Setenv("NO_COLOR", "1")
	if _, _, stderr = runApp(t, s.RootToken("alice"), args...); strings.Contains(stderr, "\x1b") || !strings.Contains(stderr, "ISSUED") {
		t.Errorf("with NO_COLOR: %q", stderr)
	}
}

// TestInert: whatever comes from outside, no byte of it steers a terminal.
func TestInert(t *testing.T) {
	hostile := "\x1b[31mred\x1b]0;title\a\r\n\u009b2J\u202eabc\u2066\x7f\xff\u00a0é日"
	for _, text := range []string{inert(hostile), string(inertJSON([]byte(hostile)))} {
		for _, r := range text {
			if r != '\n' && (r < 0x20 || 0x7f <= r && r < 0xa0 || r == 0x202e || r == 0x2066) {
				t.Errorf("%U gets through in %q", r, text)
			}
		}
		if !strings.HasSuffix(text, "é日") {
			t.Errorf("what prints is lost: %q", text)
		}
	}
	var out bytes.Buffer
	p := newPrinter(&out, true)
	p.line("%s %v %d", hostile, delegation.Principal(hostile), 7)
	if strings.Contains(out.String(), "\x1b") || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("line writes %q", out.String())
	}
	if out.Reset(); out.Len() == 0 {
		if p.line("%s", styled(hostile)); !strings.Contains(out.String(), "\x1b") {
			t.Error("negative control: styled text is changed too")
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		59 * time.Second: "59s", 90 * time.Second: "1m30s", time.Hour + 59*time.Second: "1h0m", 49 * time.Hour: "2d1h",
	} {
		if got := span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
