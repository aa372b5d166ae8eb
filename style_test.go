package deputy_test

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// forbidden are words that docs/style.md does not permit.
var forbidden = regexp.MustCompile(`(?i)\b(whoever|nobody|somebody|anybody|whom|anew|stands|says|shall|knocks?|doors?|strangers?)\b`)

// unclean are pages whose language is not clean yet. No page is added.
var unclean = []string{"docs/style.md"}

// clean are the packages whose comments hold no forbidden word, tests included, nor do the texts of the
// product in them, such as --help and errors. The list only grows.
var clean = []string{
	"client/cmd/deputy", "server/cmd/deputyd", "server/embedded/cmd/deputy-embedded", "server/embedded/cmd/deputy-target", "internal/version",
	".", "client", "client/audit", "client/delegation", "client/dpop", "client/internal/deputytest", "docs/proof", "fga-models", "loadtest",
	"loadtest/sim", "server/embedded", "server/embedded/internal/fgajson", "server/embedded/internal/tuples",
	"server/fill", "server/internal/gather", "server/internal/guard/guardtest", "server/internal/peers",
	"server/internal/policy", "server/internal/policy/policytest", "server/internal/testservers",
	"server/internal/token/certtest", "server/internal/token/tokentest", "server/internal/vault", "tools/mutants",
	"server/internal/ledger", "server/internal/ledger/ledgertest", "server/internal/guard", "server/internal/exchange",
	"server/internal/exchange/exchangetest", "server/internal/clock", "server/internal/token",
	"server", "server/internal/rpc", "server/internal/httpapi", "server/internal/httpapi/conformance",
	"server/internal/console", "server/embedded/e2e", "server/internal/panics",
}

// TestStyleOfPages: README, docs and the unreleased part of the changelog hold no forbidden word.
func TestStyleOfPages(t *testing.T) {
	checked := 0
	for _, page := range pages(t) {
		if slices.ContainsFunc(unclean, func(pattern string) bool { match, _ := filepath.Match(pattern, page); return match }) {
			continue
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		checked++
		for _, word := range forbiddenIn(unreleased(page, string(text))) {
			t.Errorf("%s, %s: docs/style.md does not permit the word", page, word)
		}
	}
	templates, err := filepath.Glob("server/internal/console/templates/*.html")
	if err != nil || len(templates) == 0 {
		t.Errorf("%d templates, %v", len(templates), err)
	}
	for _, page := range templates {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range forbiddenIn(string(text)) {
			t.Errorf("%s, %s: docs/style.md does not permit the word", page, word)
		}
	}
	if checked < 25 {
		t.Errorf("only %d pages were checked", checked)
	}
	if found := forbiddenIn("A line.\nWhoever says so, `says`\n"); len(found) != 2 || found[0] != "line 2: Whoever" {
		t.Errorf("the control: %q", found)
	}
}

// unreleased is the text of a page. Of the changelog, sections of releases are history and stay as they are.
func unreleased(page, text string) string {
	if page != "CHANGELOG.md" {
		return text
	}
	begin := strings.Index(text, "## Unreleased\n")
	if begin < 0 {
		return text
	}
	if end := strings.Index(text[begin+3:], "\n## "); end >= 0 {
		text = text[:begin+3+end]
	}
	return text
}

var code = regexp.MustCompile("`[^`\n]*`")

// forbiddenIn lists the forbidden words of a text that are not in code marks, with their lines.
func forbiddenIn(text string) []string {
	var found []string
	for i, line := range strings.Split(text, "\n") {
		for _, word := range forbidden.FindAllString(code.ReplaceAllString(line, "``"), -1) {
			found = append(found, fmt.Sprintf("line %d: %s", i+1, word))
		}
	}
	return found
}

// TestStyleOfPackages: no comment of a clean package, and no text of a program, holds a forbidden word.
func TestStyleOfPackages(t *testing.T) {
	for _, dir := range clean {
		files := 0
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() && path != dir {
				return cmp.Or(err, fs.SkipDir)
			}
			if entry.IsDir() || filepath.Ext(path) != ".go" {
				return nil
			}
			files++
			source, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, word := range forbiddenInSource(t, path, source, dir != "tools/mutants" && !isTestOnly(dir) && !strings.HasSuffix(path, "_test.go")) {
				t.Errorf("%s: docs/style.md does not permit the word", word)
			}
			return nil
		})
		if err != nil || files == 0 {
			t.Errorf("%s: %d files, %v; a package that moved is listed under its new directory", dir, files, err)
		}
	}
	const source = "// Package a says.\npackage a\n\nvar says = \"a stranger\"\n"
	if found := forbiddenInSource(t, "a.go", []byte(source), true); len(found) != 2 {
		t.Errorf("the control: %q", found)
	}
	if found := forbiddenInSource(t, "a.go", []byte(source), false); len(found) != 1 {
		t.Errorf("the control of comments: %q", found)
	}
}

// forbiddenInSource lists the forbidden words in the comments of a Go file, and in its string literals if texts is set.
func forbiddenInSource(t *testing.T, path string, source []byte, texts bool) []string {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	check := func(at token.Pos, text string) {
		for _, word := range forbidden.FindAllString(text, -1) {
			found = append(found, fmt.Sprintf("%s, %s", files.Position(at), word))
		}
	}
	for _, group := range file.Comments {
		check(group.Pos(), group.Text())
	}
	if texts {
		ast.Inspect(file, func(node ast.Node) bool {
			if literal, is := node.(*ast.BasicLit); is && literal.Kind == token.STRING {
				check(literal.Pos(), literal.Value)
			}
			return true
		})
	}
	return found
}
