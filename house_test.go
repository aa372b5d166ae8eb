// Package deputy_test holds the rules of the house that no compiler checks: which package may
// import which, which versions are in use, and what must not be in a tracked file.
package deputy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const modulePath = "deputy.example/deputy"

// modules are the folders with a go.mod that ships.
var modules = []string{".", "server/embedded"}

// The floors of the house. A package belongs to the longest of these paths that it lies under.
var (
	ground   = []string{"client/delegation", "gen", "fga-models"}
	proofs   = []string{"client/audit", "client/dpop"}
	cellar   = []string{"server/internal/vault", "server/internal/gather", "server/internal/peers", "server/internal/clock", "server/internal/panics"}
	engines  = []string{"server/internal/token", "server/internal/policy", "server/internal/guard", "server/internal/ledger"}
	exchange = []string{"server/internal/exchange"}
	fronts   = []string{"server/internal/rpc", "server/internal/httpapi", "server/internal/console"}
	server   = []string{"server"}
	sdk      = []string{"client"}
)

// mayImport lists which packages of this repository each part may import, besides itself. A package
// that is not listed is refused.
var mayImport = func() map[string][]string {
	rules := map[string][]string{
		"client":                      {"client/delegation", "client/audit", "client/dpop", "gen"},
		"client/cmd":                  {"client", "client/delegation", "client/audit", "client/dpop", "gen", "internal/version"},
		"client/internal/deputytest":  {"client/delegation", "client/audit", "client/dpop", "gen"},
		"loadtest":                    {"client", "client/delegation", "fga-models", "server/fill", "loadtest/sim"}, // drives from outside
		"loadtest/sim":                nil,
		"internal/version":            nil,
		"server/internal/testservers": nil,
		"server/fill":                 {"client/delegation", "server/internal/ledger"},
		"server/cmd":                  slices.Concat(ground, proofs, cellar, engines, exchange, fronts, server, []string{"internal/version"}),
		"server/embedded":             slices.Concat(ground, proofs, cellar, engines, exchange, fronts, server, sdk, []string{"internal/version"}),
	}
	below := []string{}
	for _, floor := range [][]string{ground, proofs, cellar, engines, exchange, fronts, server} {
		for _, part := range floor {
			rules[part] = slices.Clone(below) // siblings don't import each other
		}
		below = append(below, floor...)
	}
	return rules
}()

// onlyIn keeps a foreign module inside the parts that are there to wrap it.
var onlyIn = map[string][]string{
	"github.com/lestrrat-go/jwx":  {"server/internal/token", "client"},
	"github.com/redis/go-redis":   {"server/internal/guard", "server"},
	"github.com/openfga/openfga":  {"server/embedded"},
	"github.com/openfga/go-sdk":   {"server/internal/policy", "server/embedded"},
	"github.com/jackc/pgx":        {"server/internal/ledger", "server/internal/testservers"},
	"modernc.org/sqlite":          {"server/internal/ledger", "server/embedded"},
	"github.com/pressly/goose/v3": {"server/internal/ledger"},
	"github.com/coreos/go-oidc":   {"server/internal/console"},
	"github.com/HdrHistogram":     {"loadtest"},
	"golang.org/x/oauth2":         {"server/internal/console"},
	"github.com/spiffe/go-spiffe": {"server/internal/token"},
}

// An edge is one import of a package that is not a test.
type edge struct{ from, to string }

// brokenRule returns which rule the edge breaks, or "".
func brokenRule(e edge) string {
	from, known := part(strings.TrimPrefix(e.from, modulePath+"/"))
	if !known {
		return "has no place in the house"
	}
	ours, isOurs := strings.CutPrefix(e.to, modulePath+"/")
	if !isOurs {
		for module, parts := range onlyIn {
			if under(e.to, module) && !slices.Contains(parts, from) {
				return fmt.Sprintf("only %s may import %s", strings.Join(parts, " and "), module)
			}
		}
		return ""
	}
	to, known := part(ours)
	switch {
	case !known:
		return "imports what has no place in the house"
	case isTestOnly(ours) && !isTestOnly(e.from):
		return "is not a test and imports what is for tests only"
	case to == "server/internal/testservers":
		return "" // what is for tests may start servers
	case from != to && !slices.Contains(mayImport[from], to):
		return fmt.Sprintf("%s may not import %s", from, to)
	}
	return ""
}

func part(path string) (string, bool) {
	best := ""
	for p := range mayImport {
		if under(path, p) && len(p) > len(best) {
			best = p
		}
	}
	// The root of a part with sub-parts does not take in whatever lies beside them.
	if (best == "server" || best == "client") && path != best {
		return "", false
	}
	return best, best != ""
}

func under(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}

// isTestOnly tells packages such as guardtest, which hold what several packages' tests share.
func isTestOnly(path string) bool {
	name := filepath.Base(path)
	return name == "testservers" || strings.HasSuffix(name, "test")
}

func TestImportsGoDownOnly(t *testing.T) {
	var edges []edge
	for _, dir := range modules {
		edges = append(edges, imports(t, dir)...)
	}
	for _, e := range edges {
		if rule := brokenRule(e); rule != "" {
			t.Errorf("%s imports %s: %s", e.from, e.to, rule)
		}
	}
	// The control of what was read: an edge that is there.
	if there := (edge{modulePath + "/server/internal/guard", modulePath + "/client/delegation"}); !slices.Contains(edges, there) {
		t.Errorf("%v was not seen among %d imports", there, len(edges))
	}
}

func TestForbiddenImportsAreNoticed(t *testing.T) {
	for _, e := range [][2]string{
		{"server/internal/token", "server/internal/ledger"},    // siblings
		{"server/internal/rpc", "server/internal/httpapi"},     // siblings
		{"server/internal/ledger", "server/internal/exchange"}, // upwards
		{"server/internal/guard/guardtest", "server/internal/policy"},
		{"client/delegation", "gen/deputy/v1"}, // the lowest level imports nothing
		{"client/delegation", "client/audit"},
		{"server/internal/vault", "server/internal/ledger"}, // it does not know where its rows are
		{"client/audit", "server/internal/ledger"},          // who verifies believes no server
		{"client/audit", "client"},
		{"client/dpop", "client"},           // who judges a proof keeps nothing
		{"client", "server/internal/token"}, // the SDK and the server
		{"server", "client"},                // and back
		{"server", "server/embedded"},       // would add OpenFGA to every server
		{"server/internal/exchange", "server/internal/testservers"},
		{"server/internal/exchange", "server/internal/guard/guardtest"},
		{"server", "server/fill"}, // not for production
		{"loadtest", "server/internal/ledger"},
		{"loadtest/sim", "server/fill"}, // who simulates runs nothing
		{"loadtest", "server"},          // what it measures are other processes
		{"loadtest", "server/embedded"},
		{"server/internal/exchange", "server/internal/util"}, // a part that is not listed
		{"server/util", "client/delegation"},
	} {
		if brokenRule(edge{modulePath + "/" + e[0], modulePath + "/" + e[1]}) == "" {
			t.Errorf("%s may import %s", e[0], e[1])
		}
	}
	for from, to := range map[string]string{
		"server/internal/exchange": "github.com/lestrrat-go/jwx/v2/jwt",
		"server":                   "github.com/openfga/openfga/pkg/server",
		"server/internal/httpapi":  "github.com/spiffe/go-spiffe/v2/spiffeid",
	} {
		if brokenRule(edge{modulePath + "/" + from, to}) == "" {
			t.Errorf("%s may import %s", from, to)
		}
	}
}

// imports lists what the packages of a module import outside their tests.
func imports(t *testing.T, dir string) []edge {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(run(t, dir, "go", "list", "-json=ImportPath,Imports", "./...")))
	var edges []edge
	for {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return edges
		} else if err != nil {
			t.Fatal(err)
		}
		for _, to := range p.Imports {
			edges = append(edges, edge{p.ImportPath, to})
		}
	}
}

// versions that were chosen with care and that a stray `go get` may move, per module.
var versions = map[string]map[string]string{
	".": {
		"google.golang.org/grpc":          "v1.85.0",
		"github.com/lestrrat-go/jwx/v2":   "v2.1.7",
		"github.com/redis/go-redis/v9":    "v9.23.0",
		"github.com/openfga/go-sdk":       "v0.8.2",
		"modernc.org/sqlite":              "v1.60.1",
		"github.com/jackc/pgx/v5":         "v5.12.0",
		"google.golang.org/protobuf":      "v1.36.12",
		"github.com/pressly/goose/v3":     "v3.28.0",
		"golang.org/x/mod":                "v0.41.0",
		"pgregory.net/rapid":              "v1.3.0",
		"github.com/rogpeppe/go-internal": "v1.14.1",
		"github.com/coreos/go-oidc/v3":    "v3.21.0",
		"golang.org/x/oauth2":             "v0.37.0",
		"github.com/spiffe/go-spiffe/v2":  "v2.9.0",

		"github.com/HdrHistogram/hdrhistogram-go": "v1.4.0",
	},
	"server/embedded": {
		"google.golang.org/grpc":       "v1.85.0",
		"github.com/openfga/go-sdk":    "v0.8.2",
		"github.com/openfga/openfga":   "v1.22.1",
		"github.com/chromedp/chromedp": "v0.23.0",
	},
}

func TestVersionsArePinned(t *testing.T) {
	for dir, want := range versions {
		for module, version := range want {
			got := strings.TrimSpace(string(run(t, dir, "go", "list", "-m", "-f", "{{.Version}}", module)))
			if got != version {
				t.Errorf("%s uses %s %s, want %s", dir, module, got, version)
			}
		}
	}
}

// banned are traces of one machine or of where its packages came from. They are put together
// here, or this file would be the first to be reported.
var banned = []*regexp.Regexp{
	regexp.MustCompile(`registry\.` + `npmjs|proxy\.` + `golang\.org|sum\.` + `golang\.org|deb\.` + `debian\.org`),
	regexp.MustCompile(`"resolved":` + ` *"http`),
	regexp.MustCompile(`(^|[\s"'` + "`" + `=(:])/(work|root|home|Users)/`),
}

// traces returns the lines that hold something banned.
func traces(content []byte) []string {
	var found []string
	if bytes.IndexByte(content, 0) >= 0 {
		return nil // not text
	}
	for n, line := range strings.Split(string(content), "\n") {
		if slices.ContainsFunc(banned, func(re *regexp.Regexp) bool { return re.MatchString(line) }) {
			found = append(found, fmt.Sprintf("%d: %s", n+1, line))
		}
	}
	return found
}

func TestTrackedFilesHoldNoTraceOfAMachine(t *testing.T) {
	files := strings.Split(strings.Trim(string(run(t, ".", "git", "ls-files", "-z")), "\x00"), "\x00")
	if !slices.Contains(files, "go.mod") {
		t.Fatalf("go.mod is not among %d tracked files", len(files))
	}
	for _, name := range files {
		content, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed, and not committed yet
		} else if err != nil {
			t.Fatal(err)
		}
		for _, line := range traces(content) {
			t.Errorf("%s:%s", name, line)
		}
	}
}

func TestTracesAreNoticed(t *testing.T) {
	for _, line := range []string{
		`"resolved": ` + `"https://example.com/a.tgz"`,
		"see /" + "work/shared/notes",
		`dir := "/` + `home/alice/deputy"`,
		"https://proxy." + "golang.org/x",
	} {
		if len(traces([]byte("fine\n"+line))) != 1 {
			t.Errorf("not noticed: %s", line)
		}
	}
	if found := traces([]byte("/usr/lib, https://issuer.example/home/x, docs/work/plan.md")); len(found) > 0 {
		t.Errorf("wrongly reported: %v", found)
	}
}

func run(t *testing.T, dir, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s in %s: %v\n%s", strings.Join(cmd.Args, " "), dir, err, &stderr)
	}
	return out
}

// TestPanicsKeepTheirValues: what a panic holds may repeat a credential, so every recovery passes its
// value to panics, or drops it.
func TestPanicsKeepTheirValues(t *testing.T) {
	recovered := regexp.MustCompile(`(?s)(\w+) := recover\(\); \w+ != nil \{(.*?)\n\t+\}`)
	found := 0
	for _, file := range strings.Split(strings.Trim(string(run(t, ".", "git", "ls-files", "-z")), "\x00"), "\x00") {
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") || strings.HasPrefix(file, "tools/") {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		handled := 0
		for _, m := range recovered.FindAllSubmatch(source, -1) {
			uses := regexp.MustCompile(`\b`+string(m[1])+`\b`).FindAll(m[2], -1)
			if passed := regexp.MustCompile(`panics\.(Of|Caught)\([^\n]*\b`+string(m[1])+`\b`).FindAll(m[2], -1); len(uses) == 1 && len(passed) == 1 {
				handled++
			}
		}
		handled += bytes.Count(source, []byte("_ = recover()"))
		if n := bytes.Count(source, []byte("recover()")); n != handled {
			t.Errorf("%s: %d of %d recoveries pass the value of the panic to panics", file, handled, n)
		}
		found += handled
	}
	if found < 8 {
		t.Errorf("%d recoveries were found: the test looks at the wrong files", found)
	}
}
