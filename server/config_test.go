package server

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/server/internal/testservers"
	"deputy.example/deputy/server/internal/token/certtest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// scene is a directory with every file that a configuration can name. Configurations name it DIR.
type scene struct {
	t   testing.TB
	dir string
}

func newScene(t testing.TB) scene {
	t.Helper()
	s := scene{t, testservers.Dir(t)}
	client, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s.write("client.jwks.json", jwks(t, client.Public(), "client"))
	for _, name := range []string{"key.pem", "other.pem"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		s.writeKey(name, key)
	}
	s.write("ca.pem", certtest.PEM(certtest.NewCA(t, "authority").Certificate))
	s.writeCertificate("tls.crt", "tls.key")
	s.write("secret", []byte("canary-of-a-secret-file\n"))
	s.write("empty", nil)
	return s
}

func (s scene) write(name string, content []byte) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s scene) writeKey(name string, key any) {
	s.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func (s scene) writeCertificate(cert, key string) *x509.Certificate {
	s.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	s.writeKey(key, private)
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	return parsed
}

func (s scene) load(text string) (Config, error) {
	s.t.Helper()
	s.write("deputy.yaml", []byte(strings.ReplaceAll(text, "DIR", s.dir)))
	return Load(filepath.Join(s.dir, "deputy.yaml"))
}

// jwks returns a JWK Set with one public key.
func jwks(t testing.TB, public any, id string) []byte {
	t.Helper()
	b64 := base64.RawURLEncoding.EncodeToString
	key := map[string]string{"kid": id, "use": "sig"}
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		point, err := public.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		key["kty"], key["crv"], key["x"], key["y"] = "EC", "P-256", b64(point[1:33]), b64(point[33:])
	case ed25519.PublicKey:
		key["kty"], key["crv"], key["x"] = "OKP", "Ed25519", b64(public)
	case *rsa.PublicKey:
		key["kty"], key["n"], key["e"] = "RSA", b64(public.N.Bytes()), "AQAB"
	default:
		t.Fatalf("no JWK of a %T", public)
	}
	set, err := json.Marshal(map[string]any{"keys": []any{key}})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// good is a small configuration that loads. Each test changes a part of it.
const good = `database:
  dsn: sqlite://DIR/ledger.db
redis:
  url: redis://127.0.0.1:6379
tenants:
  - name: acme
    issuer: https://deputy.example
    default: true
    signing_keys:
      - path: DIR/key.pem
        algorithm: ES256
    trusted_issuers:
      - issuer: https://login.example
        keys: {discovery: true}
        algorithms: [ES256]
        audiences: [https://deputy.example/subject-tokens]
        principal: {type: user}
    clients:
      - id: agent:planner
        keys: {file: DIR/client.jwks.json}
        algorithms: [ES256]
    policy:
      url: http://127.0.0.1:8088
      store: 01ARZ3NDEKTSV4RRFFQ69G5FAV
      model: 01BX5ZZKBKACTAV9WEVGEMMVRZ
`

// second is another tenant, to append to good.
const second = `  - name: umbrella
    issuer: https://deputy.example/t/umbrella
    signing_keys:
      - path: DIR/other.pem
        algorithm: ES256
    trusted_issuers:
      - issuer: https://login.umbrella.example
        keys: {jwks_url: https://login.umbrella.example/keys}
        algorithms: [ES256]
        audiences: [https://deputy.example/subject-tokens]
        principal: {type: user}
    policy:
      url: http://127.0.0.1:8088
      store: 01CX5ZZKBKACTAV9WEVGEMMVRZ
      model: 01BX5ZZKBKACTAV9WEVGEMMVRZ
`

// mistakes separates, in a golden file, the changes from the expected messages.
const mistakes = "\n-- mistakes --\n"

// TestMistakesAreRefusedWithTheLineToMend runs testdata/config/*.txt. Each file holds the changes
// to the good configuration and the messages that they must cause, all at once.
func TestMistakesAreRefusedWithTheLineToMend(t *testing.T) {
	files, err := filepath.Glob("testdata/config/*.txt")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d golden files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			spoil, want, _ := strings.Cut(string(content), mistakes)
			s := newScene(t)
			_, err = s.load(apply(t, spoil))
			if err == nil {
				t.Fatal("it was loaded")
			}
			got := strings.ReplaceAll(err.Error(), s.dir, "DIR")
			if *update {
				if err := os.WriteFile(file, []byte(spoil+mistakes+got+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if strings.TrimSpace(got) != strings.TrimSpace(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			for i, line := range strings.Split(got, "\n")[1:] {
				if !regexp.MustCompile(`^line \d+: `).MatchString(line) {
					t.Errorf("message %d has no line: %s", i, line)
				}
			}
		})
	}
}

// apply changes the good configuration by hunks of whole lines, "- old" and "+ new", with empty
// lines between the hunks. The first line "second" appends the second tenant; "=" replaces the
// whole text.
func apply(t *testing.T, spoil string) string {
	t.Helper()
	if text, whole := strings.CutPrefix(spoil, "=\n"); whole {
		return text + "\n"
	}
	text := good
	if rest, both := strings.CutPrefix(spoil, "second\n"); both {
		text, spoil = good+second, rest
	}
	for _, hunk := range strings.Split(strings.TrimSpace(spoil), "\n\n") {
		var from, to string
		for _, line := range strings.Split(hunk, "\n") {
			old, isOld := strings.CutPrefix(line, "- ")
			added, isNew := strings.CutPrefix(line, "+ ")
			switch {
			case isOld:
				from += old + "\n"
			case isNew:
				to += added + "\n"
			case line != "":
				t.Fatalf("neither old nor new: %q", line)
			}
		}
		// The last occurrence: text that both tenants hold is changed in the second.
		at := strings.LastIndex("\n"+text, "\n"+from)
		if at < 0 {
			t.Fatalf("there is no %q to spoil", from)
		}
		text = text[:at] + to + text[at+len(from):]
	}
	return text
}

// TestGoodConfigurationsLoad is the control: the unchanged configuration has no mistake.
func TestGoodConfigurationsLoad(t *testing.T) {
	for name, text := range map[string]string{"one tenant": good, "two tenants": good + second} {
		if _, err := newScene(t).load(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDefaults(t *testing.T) {
	c, err := newScene(t).load(good)
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen.GRPC.Address != "127.0.0.1:9090" || c.Listen.HTTP.Address != "127.0.0.1:8080" || c.Listen.Ops.Address != "127.0.0.1:9091" ||
		c.Listen.DrainTimeout != 10*time.Second || c.Listen.DrainNotice != 0 {
		t.Errorf("listen: %+v", c.Listen)
	}
	limits := Limits{MaxLifetime: 15 * time.Minute, DefaultLifetime: 5 * time.Minute, MaxDepth: 8, MaxBatch: 100, CallerRate: 100, CallerBurst: 200}
	got := c.Tenants[0].Limits
	if got.ScopeTargets != nil {
		t.Errorf("scope_targets: %v", got.ScopeTargets)
	}
	if got.MaxLifetime != limits.MaxLifetime || got.DefaultLifetime != limits.DefaultLifetime || got.MaxDepth != limits.MaxDepth ||
		got.MaxBatch != limits.MaxBatch || got.ActorMayRecur || got.CallerRate != limits.CallerRate || got.CallerBurst != limits.CallerBurst {
		t.Errorf("limits: %+v, want %+v", got, limits)
	}
	if p := c.Tenants[0].Policy; p.Timeout != time.Second || p.MaxChecks != 50 ||
		p.Cache.Enabled || p.Cache.Entries != 100_000 || p.Cache.Overlap != 10*time.Second {
		t.Errorf("policy: %+v", p)
	}
	if c.Redis.Timeout != 500*time.Millisecond || c.Telemetry.LogLevel != "info" || c.Telemetry.LogFormat != "json" {
		t.Errorf("redis %+v, telemetry %+v", c.Redis, c.Telemetry)
	}
}

// TestValidateNamesPaths: a Config made in Go is checked by the same rules, without lines.
func TestValidateNamesPaths(t *testing.T) {
	c := Config{Tenants: []Tenant{{Name: "acme"}}}
	err := c.Validate()
	if err == nil {
		t.Fatal("it was accepted")
	}
	for _, want := range []string{"database.dsn: is missing", "redis.url: is missing", "tenants[0].issuer: is missing", "tenants[0].policy.store: must be"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "line ") {
		t.Errorf("a line of no file:\n%v", err)
	}
}

// TestRedisInProcessHasNoAddress: the state that instances share is in Redis or in this process. A
// file cannot choose the latter.
func TestRedisInProcessHasNoAddress(t *testing.T) {
	mistakes := func(r Redis) string {
		c := Config{Redis: r}
		return fmt.Sprint(c.Validate())
	}
	if found := mistakes(Redis{InProcess: true}); strings.Contains(found, "redis") {
		t.Errorf("without an address: %s", found)
	}
	for name, r := range map[string]Redis{
		"url": {InProcess: true, URL: "redis://localhost"}, "password_file": {InProcess: true, PasswordFile: "x"}, "insecure_plaintext": {InProcess: true, InsecurePlaintext: true},
	} {
		if found := mistakes(r); !strings.Contains(found, "redis.url: must be absent in a deployment of one process") {
			t.Errorf("with %s: %s", name, found)
		}
	}
	for _, key := range []string{"InProcess", "inprocess", "in_process"} {
		if c, found := parse([]byte("redis: {" + key + ": true}")); c.Redis.InProcess || !strings.Contains(fmt.Sprint(found.err()), "redis") {
			t.Errorf("%s: %v", key, found.err())
		}
	}
}

func TestShippedExampleLoads(t *testing.T) {
	example, err := os.ReadFile("../deputy.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s := newScene(t)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s.writeKey("keys/acme-2026.pem", ec)
	s.write("clients/orchestrator.jwks.json", jwks(t, ec.Public(), "orchestrator"))
	s.write("clients/ci.jwks.json", jwks(t, ed, "ci"))
	s.write("trust/cluster-jwks.json", jwks(t, rsaKey.Public(), "cluster"))
	for _, name := range []string{"trust/client-ca.pem", "trust/prod-bundle.json"} {
		s.write(name, certtest.PEM(certtest.NewCA(t, "authority").Certificate))
	}
	for _, name := range []string{"postgres-password", "redis-password", "openfga-token", "console-client-secret"} {
		s.write("secrets/"+name, []byte("long-and-random"))
	}
	s.writeCertificate("tls/tls.crt", "tls/tls.key")
	if _, err := CreateCheckpointKey(filepath.Join(s.dir, "keys/acme-checkpoint.key"), "https://deputy.example/t/acme"); err != nil {
		t.Fatal(err)
	}
	s.write("checkpoints/README", nil)
	local := strings.NewReplacer("/etc/deputy", "DIR", "/var/lib/deputy", "DIR").Replace(string(example))
	config, err := s.load(local)
	if err != nil || len(config.Warnings()) > 0 {
		t.Error(err, config.Warnings())
	}
	// The control: the files were read.
	s.write("clients/ci.jwks.json", jwks(t, ec.Public(), "ci"))
	if _, err := s.load(local); err == nil {
		t.Error("it loads with a client's key of another algorithm")
	}
}

func TestAuditSettings(t *testing.T) {
	s := newScene(t)
	if _, err := CreateCheckpointKey(filepath.Join(s.dir, "cp.key"), "https://deputy.example"); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateCheckpointKey(filepath.Join(s.dir, "foreign.key"), "https://other.example"); err != nil {
		t.Fatal(err)
	}
	for settings, want := range map[string]string{
		``:                                    "",
		`audit: {checkpoint_key: DIR/cp.key}`: "",
		`audit: {checkpoint_key: DIR/cp.key, checkpoint_file: DIR/cp}`:               "",
		`audit: {checkpoint_file: DIR/cp}`:                                           "audit.checkpoint_file: has no meaning without",
		`audit: {checkpoint_key: DIR/none}`:                                          "audit.checkpoint_key: ",
		`audit: {checkpoint_key: DIR/foreign.key}`:                                   "audit.checkpoint_key: is the key of other.example: a log",
		`audit: {checkpoint_key: DIR/cp.key, checkpoint_file: DIR/no/such/folder/x}`: "audit.checkpoint_file: must be in a directory",
	} {
		_, err := s.load(strings.Replace(good, "    policy:", "    "+settings+"\n    policy:", 1))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", settings, err, want)
		}
	}
}

// TestOptionalPartsOfTheExampleLoad: the parts of the example that are commented out are valid too.
func TestOptionalPartsOfTheExampleLoad(t *testing.T) {
	example, err := os.ReadFile("../deputy.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, before := parse(example)
	if len(before) > 0 {
		t.Fatal(before)
	}
	uncommented := regexp.MustCompile(`(?m)^(      )# ( *(?:mapping|scopes|details|document|documents\.read|object|relations|scope_targets|calendar\.read):)`).ReplaceAll(example, []byte("$1$2"))
	config, found := parse(uncommented)
	if len(found) > 0 {
		t.Fatal(found)
	}
	if tenant := config.Tenants[0]; len(tenant.Policy.Mapping.Scopes) != 1 || len(tenant.Policy.Mapping.Details) != 1 || len(tenant.Limits.ScopeTargets) != 1 {
		t.Errorf("not everything was uncommented: %+v %+v", tenant.Policy.Mapping, tenant.Limits)
	}
}

func TestSecretIsOneLine(t *testing.T) {
	s := newScene(t)
	for content, ok := range map[string]bool{"abc": true, "abc\n": true, "abc\r\n": true, " abc ": true, "": false, "\n": false, "a\nb": false, "a\x00b": false, strings.Repeat("x", 70_000): false} {
		s.write("one", []byte(content))
		value, err := secret(filepath.Join(s.dir, "one"))
		if ok != (err == nil) {
			t.Errorf("%.20q: %v", content, err)
		}
		if ok && value != strings.TrimRight(content, "\r\n") {
			t.Errorf("%q gave %q", content, value)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Add(good + second)
	for _, text := range []string{"", "a: &x 1\nb: *x\n", "tenants: [{name: a, name: b}]", "listen: {grpc: {tls: }}", "? {a: b}\n: c\n", "<<: {a: b}", "- !!binary x", "---\n---\n", "a: 010\n"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, found := parse([]byte(text))
		listed := c.locate(found, nil)
		if len(found) > 0 && len(listed) == 0 {
			t.Fatal("all mistakes were left out")
		}
		for _, p := range listed {
			if p.message == "" {
				t.Fatalf("nothing is said of %s", p.path)
			}
			if p.line > strings.Count(text, "\n")+2 {
				t.Fatalf("line %d of a text of %d", p.line, strings.Count(text, "\n")+1)
			}
		}
		if len(found) == 0 && (len(c.Tenants) == 0 || c.Database.DSN == "" || c.Tenants[0].Policy.Store == "") {
			t.Fatal("something indispensable is missing, and nothing was said")
		}
	})
}
