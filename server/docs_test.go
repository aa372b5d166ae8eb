package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"deputy.example/deputy/server/internal/token/certtest"
)

// notConfiguration marks, on its fence, a YAML block of a page that is no configuration.
const notConfiguration = "yaml tuples"

// TestDocumentedConfigurationLoads: every YAML block of the README and of docs loads. A block is a
// whole file, which has tenants; or sections of a tenant; or a list of trusted issuers.
func TestDocumentedConfigurationLoads(t *testing.T) {
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil || len(pages) < 10 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	seen := 0
	for _, page := range append(pages, "../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for line, block := range yamlBlocks(string(text)) {
			seen++
			t.Run(fmt.Sprintf("%s:%d", filepath.Base(page), line), func(t *testing.T) {
				s := newScene(t)
				whole := complete(t, block)
				if _, err := s.load(s.withFiles(whole)); err != nil {
					t.Errorf("%v\n%s", err, whole)
				}
			})
		}
	}
	if seen < 8 {
		t.Errorf("only %d blocks were found", seen)
	}
	if _, err := newScene(t).load(complete(t, "limits: {max_dept: 3}\n")); err == nil {
		t.Error("the control: a key that does not exist is not noticed")
	}
}

// yamlBlocks returns the blocks of a page that are configuration, without the indent of their
// fence, by line.
func yamlBlocks(page string) map[int]string {
	blocks := map[int]string{}
	begin, indent, inside, kept := 0, "", false, false
	for i, line := range strings.Split(page, "\n") {
		text, fence := strings.CutPrefix(strings.TrimLeft(line, " "), "```")
		switch {
		case fence && inside:
			inside = false
		case fence:
			begin, inside, kept = i+1, true, strings.HasPrefix(text, "yaml") && text != notConfiguration
			indent = line[:len(line)-len(strings.TrimLeft(line, " "))]
		case inside && kept:
			blocks[begin] += strings.TrimPrefix(line, indent) + "\n"
		}
	}
	return blocks
}

var section = regexp.MustCompile(`(?m)^([a-z_]+):`)

// sections splits the text of a mapping by its keys.
func sections(text string) map[string]string {
	found := map[string]string{}
	at := section.FindAllStringSubmatchIndex(text, -1)
	for i, m := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		found[text[m[2]:m[3]]] = text[m[0]:end]
	}
	return found
}

// complete puts a block into the good configuration, in place of the sections of the same names.
func complete(t *testing.T, block string) string {
	t.Helper()
	given := sections(block)
	if _, whole := given["tenants"]; whole {
		return block
	}
	if len(given) == 0 {
		given = map[string]string{"trusted_issuers": "trusted_issuers:\n" + indented(block)}
	}
	rest, tenant, _ := strings.Cut(good, "  - name: acme\n")
	parts := sections(strings.ReplaceAll("\n"+tenant, "\n    ", "\n")[1:])
	maps.Copy(parts, given)
	text := rest + "  - name: acme\n"
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		text += indented(indented(parts[name]))
	}
	return text
}

func indented(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  ") + "\n"
}

var namedFile = regexp.MustCompile(`/(?:etc|var)/[A-Za-z0-9_./-]+`)

// withFiles makes the files that a configuration names. The name of a file determines its content.
func (s scene) withFiles(text string) string {
	s.t.Helper()
	for _, path := range namedFile.FindAllString(text, -1) {
		switch name := strings.TrimPrefix(path, "/"); {
		case strings.HasSuffix(path, ".db"):
		case strings.HasSuffix(path, "jwks.json"):
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				s.t.Fatal(err)
			}
			s.write(name, jwks(s.t, key.Public(), "key"))
		case strings.Contains(path, "/keys/") && strings.HasSuffix(path, ".pem"):
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				s.t.Fatal(err)
			}
			s.writeKey(name, key)
		case strings.HasSuffix(path, ".pem"), strings.HasSuffix(path, ".crt"):
			s.write(name, certtest.PEM(certtest.NewCA(s.t, "authority").Certificate))
		default:
			s.write(name, []byte("long-and-random"))
		}
	}
	return namedFile.ReplaceAllString(text, "DIR$0")
}
