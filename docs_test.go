package deputy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// pages are the documents for readers, from the root of the repository.
func pages(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, names...)
	}
	if len(found) < 40 || !slices.Contains(found, "README.md") || !slices.Contains(found, "docs/README.md") {
		t.Fatalf("%d pages", len(found))
	}
	return found
}

// TestLinksResolve: every relative link of a page leads to a file or folder, and to a heading in it.
func TestLinksResolve(t *testing.T) {
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, broken := range brokenLinks(page, string(text)) {
			t.Errorf("%s: the link %s leads nowhere", page, broken)
		}
	}
	for text, want := range map[string]int{
		"[a](docs/style.md) [b](docs/style.md#errors-logs-commits) [c](https://deputy.example/x) [d](#e)\n## E\n": 0,
		"[a](docs/missing.md)": 1, "[b](docs/style.md#missing)": 1, "[d](#e)": 1, "![p](docs/missing.svg)": 1,
		"```\n[a](docs/missing.md)\n## E\n```\n[d](#e)": 1,
	} {
		if got := brokenLinks("README.md", text); len(got) != want {
			t.Errorf("the control %q: %q are broken, want %d", text, got, want)
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func brokenLinks(page, text string) []string {
	var broken []string
	for _, found := range link.FindAllStringSubmatch(prose(text), -1) {
		path, anchor, _ := strings.Cut(found[1], "#")
		if strings.Contains(path, ":") {
			continue // another site
		}
		target := text
		if path != "" {
			file := filepath.Join(filepath.Dir(page), path)
			if _, err := os.Stat(file); err != nil {
				broken = append(broken, found[1])
				continue
			}
			if anchor == "" {
				continue
			}
			content, err := os.ReadFile(file)
			if err != nil {
				broken = append(broken, found[1])
				continue
			}
			target = string(content)
		}
		if !slices.Contains(anchors(target), anchor) {
			broken = append(broken, found[1])
		}
	}
	return broken
}

// prose is a page without its code blocks.
func prose(text string) string {
	var b strings.Builder
	code := false
	for line := range strings.Lines(text) {
		switch fence := strings.HasPrefix(strings.TrimLeft(line, " "), "```"); {
		case fence:
			code = !code
		case !code:
			b.WriteString(line)
		}
	}
	return b.String()
}

var (
	heading     = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	notInAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are the fragments of a page's headings, as code hosts make them.
func anchors(text string) []string {
	var found []string
	for _, h := range heading.FindAllStringSubmatch(prose(text), -1) {
		found = append(found, strings.ReplaceAll(notInAnchor.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-"))
	}
	return found
}

// TestReadmeCodeCompiles: every Go block of the README is part of a file that the compiler and an example check.
func TestReadmeCodeCompiles(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("client/example_readme_test.go")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	if len(blocks) != 2 {
		t.Errorf("%d Go blocks, want one that exchanges and one that verifies", len(blocks))
	}
	for _, block := range blocks {
		if !strings.Contains(string(source), block[1]) {
			t.Errorf("not in client/example_readme_test.go:\n%s", block[1])
		}
	}
	if lines := strings.Count(string(readme), "\n"); lines > 130 {
		t.Errorf("README.md has %d lines; move details to docs", lines)
	}
}

// TestAddingNamesWhatExists: the files and tests that docs/adding.md names exist.
func TestAddingNamesWhatExists(t *testing.T) {
	text, err := os.ReadFile("docs/adding.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := string(run(t, ".", "git", "grep", "-hoE", "^func Test[A-Za-z0-9]+", "--", "*_test.go"))
	files, functions := 0, 0
	for _, name := range regexp.MustCompile("`([^` ]+)`").FindAllStringSubmatch(string(text), -1) {
		switch {
		case strings.HasPrefix(name[1], "Test"):
			functions++
			if !strings.Contains(tests+"\n", "func "+name[1]+"\n") {
				t.Errorf("there is no test %s", name[1])
			}
		case strings.Contains(name[1], "/") && !strings.ContainsFunc(name[1], unicode.IsUpper):
			files++
			if _, err := os.Stat(name[1]); err != nil {
				t.Error(err)
			}
		}
	}
	if files < 15 || functions < 8 {
		t.Errorf("only %d files and %d tests were found", files, functions)
	}
}
