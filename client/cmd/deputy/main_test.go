package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protojson"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/internal/deputytest"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"deputy": main})
}

// TestScripts runs each script against a server of its own. Besides Deputy's environment a script
// finds in its directory: planner.pem, the caller's key; other.pem, another; alice.jwt, a root token;
// researcher.jwt, a derived token; bound.jwt, one that is bound to planner.pem; certified.jwt, one that is
// bound to a certificate; expired.jwt; foreign.jwt, signed with another key; evil.jwt, whose claims try to
// write on the terminal; tls.pem and tls-key.pem, a certificate and its key; keys.json; log.vkey, the log's verifier key, and
// other.vkey, another one. "follow" starts a verifier that follows revocations, "receipt ID
// VERIFIER ENTRY AGE" pretends that one was last heard of a while ago; "record JSON" appends an entry to
// the ledger, "obtainable JSON..." sets what agents could obtain.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			s, foreign := deputytest.Start(), deputytest.Start()
			env.Defer(s.Close)
			env.Defer(foreign.Close)
			env.Values[deputy{}] = s
			for name, value := range map[string]string{
				"DEPUTY_ADDR": s.Address, "DEPUTY_ISSUER": s.Issuer, "DEPUTY_PLAINTEXT": "true",
				"DEPUTY_CLIENT_ID": "planner", "DEPUTY_CLIENT_KEY": "planner.pem",
			} {
				env.Setenv(name, value)
			}
			return writeFiles(env.WorkDir, s, foreign)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"follow": follow, "receipt": receipt, "record": record, "obtainable": obtainable},
	})
}

// deputy is the key of a script's server.
type deputy struct{}

func follow(ts *testscript.TestScript, _ bool, _ []string) {
	s := ts.Value(deputy{}).(*deputytest.Server)
	key, err := client.LoadKey(ts.MkAbs("planner.pem"))
	ts.Check(err)
	credential, err := client.NewAssertion(client.AssertionConfig{Issuer: s.Issuer, ClientID: "calendar", Key: key})
	ts.Check(err)
	c, err := client.New(client.Config{Address: s.Address, Transport: client.PlaintextLoopback, Credential: credential})
	ts.Check(err)
	v, err := client.NewVerifier(client.VerifierConfig{Issuer: s.Issuer, Audience: "https://calendar.example", Client: c})
	ts.Check(err)
	ts.Defer(func() { v.Close(); c.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ts.Check(v.Ready(ctx))
}

func receipt(ts *testscript.TestScript, _ bool, args []string) {
	entry, err := strconv.ParseUint(args[2], 10, 64)
	ts.Check(err)
	age, err := time.ParseDuration(args[3])
	ts.Check(err)
	ts.Value(deputy{}).(*deputytest.Server).AddReceipt(args[0], args[1], entry, time.Now().Add(-age))
}

func record(ts *testscript.TestScript, _ bool, args []string) {
	e := &deputyv1.Entry{}
	ts.Check(protojson.Unmarshal([]byte(args[0]), e))
	ts.Value(deputy{}).(*deputytest.Server).Record(e)
}

func obtainable(ts *testscript.TestScript, _ bool, args []string) {
	all := make([]*deputyv1.Obtainable, len(args))
	for i, arg := range args {
		all[i] = &deputyv1.Obtainable{}
		ts.Check(protojson.Unmarshal([]byte(arg), all[i]))
	}
	ts.Value(deputy{}).(*deputytest.Server).SetObtainable(all...)
}

func writeFiles(dir string, s, foreign *deputytest.Server) error {
	planner, plannerPEM, err := newKey()
	if err != nil {
		return err
	}
	_, otherPEM, err := newKey()
	if err != nil {
		return err
	}
	certificate, err := selfSigned(planner)
	if err != nil {
		return err
	}
	key, err := client.NewKey(planner, "")
	if err != nil {
		return err
	}
	claims := s.Claims(time.Now())
	claims.ExpiresAt = claims.IssuedAt + 30*24*3600 // so that relative times do not hang on the second
	bound := func(c delegation.Confirmation) string {
		b := claims
		b.Confirmation, b.Delegation.Hops = &c, slices.Clone(claims.Delegation.Hops)
		b.Delegation.Hops[1].Key = c.Key()
		return s.Token(b)
	}
	for name, content := range map[string]string{
		"planner.pem":    plannerPEM,
		"other.pem":      otherPEM,
		"tls.pem":        certificate,
		"tls-key.pem":    plannerPEM,
		"bound.jwt":      bound(delegation.Confirmation{JKT: key.Thumbprint()}),
		"certified.jwt":  bound(delegation.Confirmation{X5T: strings.Repeat("A", 43)}),
		"alice.jwt":      s.RootToken("alice"),
		"researcher.jwt": s.Token(claims),
		"expired.jwt":    s.Token(s.Claims(time.Unix(1_700_000_000, 0))),
		"foreign.jwt":    foreign.Token(claims),
		"evil.jwt": s.Sign(map[string]any{"alg": "ES256"}, map[string]any{
			"iss": "https://idp.example", "exp": time.Now().Unix() + 60, "sub": "\x1b[2J\u009b31m\u202eecila",
		}),
		"keys.json":    string(s.JWKS()),
		"log.vkey":     s.CheckpointKey() + "\n",
		"other.vkey":   foreign.CheckpointKey() + "\n",
		"details.json": `[{"type":"calendar","actions":["read"],"identifier":"team"}]`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func newKey() (*ecdsa.PrivateKey, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})), err
}

// selfSigned is a certificate for 127.0.0.1.
func selfSigned(key *ecdsa.PrivateKey) (string, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), err
}

// TestMutualTLS: a token that is issued over a connection with a client certificate is bound to it.
func TestMutualTLS(t *testing.T) {
	key, keyPEM, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := selfSigned(key)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(certificate), []byte(keyPEM))
	if err != nil {
		t.Fatal(err)
	}
	s := deputytest.Start(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13})))
	defer s.Close()
	dir := t.TempDir()
	if err := writeFiles(dir, s, s); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), []byte(certificate), 0o600); err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	exchange := func(subject string, flags ...string) (int, string, string) {
		return runApp(t, subject, slices.Concat([]string{
			"exchange", "--addr", s.Address, "--ca-file", file("ca.pem"), "--issuer", s.Issuer, "--client-id", "planner", "--client-key", file("planner.pem"),
			"--subject-token-file", "-", "--scope", "calendar.read", "--audience", "calendar",
		}, flags)...)
	}
	own := []string{"--tls-cert", file("tls.pem"), "--tls-key", file("tls-key.pem")}
	code, token, stderr := exchange(s.RootToken("alice"), own...)
	if code != 0 {
		t.Fatal(stderr)
	}
	_, thumbprint, _ := runApp(t, "", "thumbprint", file("tls.pem"))
	if _, out, _ := runApp(t, token, "decode", "--issuer", s.Issuer, "-"); !strings.Contains(out, "bound to      the certificate "+strings.TrimSpace(thumbprint)) {
		t.Errorf("%s is not in %s", thumbprint, out)
	}
	if code, _, stderr := exchange(token, own...); code != 0 {
		t.Errorf("the holder: %s", stderr)
	}
	if code, _, stderr := exchange(token); code != exitRefused || !strings.Contains(stderr, "proof_required") || !strings.Contains(stderr, "--tls-cert and --tls-key") {
		t.Errorf("without the certificate: %d %s", code, stderr)
	}
	if code, _, stderr := exchange(token, own[:2]...); code != exitUsage {
		t.Errorf("a certificate without its key: %d %s", code, stderr)
	}
}

// runApp runs a command in this process as if at a terminal.
func runApp(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(args, &app{
		stdin: strings.NewReader(stdin), stdout: newPrinter(&out, true), stderr: newPrinter(&errs, true),
		terminal: true, now: time.Now, interactive: true,
	})
	return code, out.String(), errs.String()
}

// TestTerminal: a terminal gets color and an explanation, and no color where NO_COLOR is set.
func TestTerminal(t *testing.T) {
	s := deputytest.Start()
	defer s.Close()
	dir := t.TempDir()
	if err := writeFiles(dir, s, s); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"exchange", "--addr", s.Address, "--plaintext", "--issuer", s.Issuer, "--client-id", "planner", "--client-key", filepath.Join(dir, "planner.pem"),
		"--subject-token-file", "-", "--scope", "calendar.read", "--audience", "calendar", "--lifetime", "1h30m",
	}
	t.Setenv("NO_COLOR", "")
	code, stdout, stderr := runApp(t, s.RootToken("alice"), args...)
	if code != 0 || strings.Count(stdout, "\n") != 1 || strings.Contains(stdout, "\x1b") {
		t.Errorf("%d: %q", code, stdout)
	}
	for _, want := range []string{"\x1b[1;32mISSUED\x1b[0m as grant jti-41", "scope     calendar.read", "audience  calendar", "(in 1h"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %q in\n%s", want, stderr)
		}
	}
	t.Setenv("NO_COLOR", "1")
	if _, _, stderr = runApp(t, s.RootToken("alice"), args...); strings.Contains(stderr, "\x1b") || !strings.Contains(stderr, "ISSUED") {
		t.Errorf("with NO_COLOR: %q", stderr)
	}
}

// TestConfirm: a command that revokes much shows how much and asks first; only "yes" confirms.
func TestConfirm(t *testing.T) {
	s := deputytest.Start()
	defer s.Close()
	dir := t.TempDir()
	if err := writeFiles(dir, s, s); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--addr", s.Address, "--plaintext", "--issuer", s.Issuer, "--client-id", "planner", "--client-key", filepath.Join(dir, "planner.pem")}
	for _, command := range [][]string{{"contain", "agent:researcher"}, {"revoke", "--everything"}} {
		for _, test := range []struct {
			answer string
			flags  []string
			asks   bool
			done   bool
		}{
			{"yes\n", nil, true, true}, {"yes", nil, true, true}, {"y\n", nil, true, false}, {"no\n", nil, true, false},
			{"", nil, true, false}, {"", []string{"--yes"}, false, true}, {"", []string{"--dry-run"}, false, false},
		} {
			before := s.LastRevocation()
			code, _, stderr := runApp(t, test.answer, slices.Concat(command, flags, test.flags)...)
			if done := s.LastRevocation() > before; done != test.done || (code == 0) != (test.done || !test.asks) {
				t.Errorf("%v %q %v: code %d, done %v", command, test.answer, test.flags, code, done)
			}
			if asked := strings.Contains(stderr, "This revokes 0 live tokens in 0 chains."); asked != test.asks {
				t.Errorf("%v %q %v: %s", command, test.answer, test.flags, stderr)
			}
		}
	}
}

// TestContainedWithoutReceipts: a suspension in force is reported, and receipts that cannot be read are a warning.
func TestContainedWithoutReceipts(t *testing.T) {
	s := deputytest.Start()
	defer s.Close()
	dir := t.TempDir()
	if err := writeFiles(dir, s, s); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--addr", s.Address, "--plaintext", "--issuer", s.Issuer, "--client-id", "planner", "--client-key", filepath.Join(dir, "planner.pem"), "--yes"}
	down := delegation.Refuse(delegation.RateLimited, "", "the receipts are not available")
	for name, test := range map[string]struct {
		flags  []string
		err    *delegation.Error
		code   int
		stdout string
	}{
		"text":              {nil, down, 0, "CONTAINED"},
		"JSON":              {[]string{"--json"}, down, 0, `"all_caught_up": null`},
		"what will not end": {[]string{"--json"}, delegation.Refuse(delegation.NotFound, "entry", "no such revocation"), 1, `"verifiers": null`},
	} {
		before := s.LastRevocation()
		s.FailNext(nil, test.err)
		code, stdout, stderr := runApp(t, "", slices.Concat([]string{"contain", "agent:researcher"}, flags, test.flags)...)
		if code != test.code || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, "the agent is suspended") || s.LastRevocation() == before {
			t.Errorf("%s: code %d\n%s\n%s", name, code, stdout, stderr)
		}
		if strings.Contains(stderr, "nothing was") || strings.Contains(stderr, "warning: ") != (test.code == 0) {
			t.Errorf("%s: %s", name, stderr)
		}
	}
}

// TestContainedWithPartialReceipts: without Redis the verifiers of one instance are listed, and it is not claimed that all
// have applied the suspension.
func TestContainedWithPartialReceipts(t *testing.T) {
	s := deputytest.Start()
	defer s.Close()
	dir := t.TempDir()
	if err := writeFiles(dir, s, s); err != nil {
		t.Fatal(err)
	}
	s.SetPartial(true)
	s.AddReceipt("a", "service:calendar", 1<<40, time.Now())
	flags := []string{"--addr", s.Address, "--plaintext", "--issuer", s.Issuer, "--client-id", "planner", "--client-key", filepath.Join(dir, "planner.pem"), "--yes"}
	for want, more := range map[string][]string{"service:calendar": nil, `"all_caught_up": null`: {"--json"}} {
		code, stdout, stderr := runApp(t, "", slices.Concat([]string{"contain", "agent:researcher"}, flags, more)...)
		if code != 0 || !strings.Contains(stdout, want) || !strings.Contains(stdout, "service:calendar") || strings.Contains(stdout, "Every connected") ||
			!strings.Contains(stderr, "Redis does not answer") {
			t.Errorf("code %d\n%s\n%s", code, stdout, stderr)
		}
	}
}

// TestChainMatches: the ledger's chain is shown only if it equals the token's, except for what
// erasure and retention removed.
func TestChainMatches(t *testing.T) {
	token := func() *tree {
		return &tree{Txn: "txn-1", Links: []link{{Entry: 1, JTI: "a", Actor: "agent:a"}, {Entry: 2, JTI: "b", Actor: "agent:b"}}}
	}
	for name, test := range map[string]struct {
		change func(*tree)
		same   bool
	}{
		"the same":           {func(*tree) {}, true},
		"erased":             {func(t *tree) { t.Links[0].Actor, t.Links[0].Erased = "", []string{"actor"} }, true},
		"beginning dropped":  {func(t *tree) { t.Above, t.Links = "a", t.Links[1:] }, true},
		"another chain":      {func(t *tree) { t.Txn = "txn-2" }, false},
		"another number":     {func(t *tree) { t.Links[1].Entry = 3 }, false},
		"another grant":      {func(t *tree) { t.Links[1].JTI = "c" }, false},
		"another actor":      {func(t *tree) { t.Links[1].Actor = "agent:c" }, false},
		"no actor":           {func(t *tree) { t.Links[1].Actor = "" }, false},
		"beginning missing":  {func(t *tree) { t.Links = t.Links[1:] }, false},
		"below another":      {func(t *tree) { t.Above, t.Links = "z", t.Links[1:] }, false},
		"longer":             {func(t *tree) { t.Above, t.Links = "z", append(t.Links, t.Links...) }, false},
		"nothing of it left": {func(t *tree) { t.Above, t.Links = "a", nil }, false},
	} {
		recorded := token()
		test.change(recorded)
		if recorded.matches(token()) != test.same {
			t.Errorf("%s: %v", name, !test.same)
		}
	}
}

// TestCountOf: a count that takes too long does not prevent a suspension, and every other error does.
func TestCountOf(t *testing.T) {
	if count, err := countOf(nil, delegation.Unavailable("ledger", nil)); err != nil || !strings.Contains(count, "not counted") {
		t.Errorf("while the ledger is slow: %q, %v", count, err)
	}
	if _, err := countOf(nil, delegation.Refuse(delegation.NotFound, "target", "nothing there")); err == nil {
		t.Error("a caller that may not contain is asked to confirm")
	}
	if count, err := countOf(&client.Revoked{Counted: true, Tokens: 2, Chains: 1}, nil); err != nil || !strings.Contains(count, "2 live tokens") {
		t.Errorf("%q, %v", count, err)
	}
}

func TestJudgeReceipts(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	r := &delegation.Revocation{Seq: 7, At: at}
	first := make(map[string]time.Time)
	judge := func(receipts ...client.Receipt) (string, int) {
		report, pending := judgeReceipts(receipts, r, first)
		states := make([]string, len(report))
		for i, line := range report {
			states[i] = string(line.State)
		}
		return strings.Join(states, " "), pending
	}
	states, pending := judge(
		client.Receipt{ID: "a", Applied: 6, SeenAt: at}, client.Receipt{ID: "b", Applied: 7, SeenAt: at.Add(time.Second)},
		client.Receipt{ID: "c", Applied: 6, SeenAt: at.Add(-11 * time.Second)}, client.Receipt{ID: "d", Applied: 6, SeenAt: at.Add(-9 * time.Second)},
	)
	if states != "behind caught_up gone behind" || pending != 2 {
		t.Errorf("%s, %d pending", states, pending)
	}
	if states, pending = judge(client.Receipt{ID: "b", Applied: 9, SeenAt: at.Add(5 * time.Second)}); states != "caught_up" || pending != 0 || !first["b"].Equal(at.Add(time.Second)) {
		t.Errorf("%s, %d pending, first at %v", states, pending, first["b"])
	}
}

// TestInert: no byte of a text from outside controls a terminal.
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
