package httpapi

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"deputy.example/deputy/client/delegation"
)

func document(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../../../docs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// documentedParameters collects the names in the first cells of all tables in one section.
func documentedParameters(t *testing.T, heading string) map[string]bool {
	t.Helper()
	_, section, found := strings.Cut(document(t, "http-api.md"), heading+"\n")
	if !found {
		t.Fatalf("docs/http-api.md has no %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	names := make(map[string]bool)
	for line := range strings.Lines(section) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cell, _, _ := strings.Cut(line[2:], " |")
		for _, name := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(cell, -1) {
			names[name[1]] = true
		}
	}
	return names
}

func TestInquiryParametersAreDocumented(t *testing.T) {
	for heading, parameters := range map[string]map[string]arity{"## Introspection": introspectParameters, "## Revocation": revokeParameters} {
		rows := documentedParameters(t, heading)
		for name := range parameters {
			if !rows[name] {
				t.Errorf("docs/http-api.md has no row for %s under %s", name, heading)
			}
		}
	}
}

// registeredReasons reads the reasons from the source that registers them, so that a new reason
// cannot be absent from the documentation.
func registeredReasons(t *testing.T) []delegation.Reason {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../../client/delegation/reasons.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var reasons []delegation.Reason
	ast.Inspect(file, func(n ast.Node) bool {
		spec, isValue := n.(*ast.ValueSpec)
		if !isValue {
			return true
		}
		if typ, named := spec.Type.(*ast.Ident); !named || typ.Name != "Reason" {
			return true
		}
		for _, value := range spec.Values {
			text, err := strconv.Unquote(value.(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			reasons = append(reasons, delegation.Reason(text))
		}
		return true
	})
	return reasons
}

// reasonRow is a row of docs/errors.md: reason, OAuth error, HTTP status, gRPC code, meaning.
var reasonRow = regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| `([a-z_]+)` \\| ([0-9]{3}) \\| ([A-Za-z]+) \\| (.+) \\|$")

func TestEveryReasonIsDocumented(t *testing.T) {
	reasons := registeredReasons(t)
	if len(reasons) < 30 {
		t.Fatalf("only %d reasons found in the source", len(reasons))
	}
	rows := make(map[delegation.Reason][]string)
	for _, row := range reasonRow.FindAllStringSubmatch(document(t, "errors.md"), -1) {
		if rows[delegation.Reason(row[1])] != nil {
			t.Errorf("docs/errors.md has two rows for %s", row[1])
		}
		rows[delegation.Reason(row[1])] = row[2:5]
	}
	for _, reason := range reasons {
		wire := reason.Wire()
		want := []string{wire.OAuth, strconv.Itoa(wire.HTTP), wire.GRPC.String()}
		switch got := rows[reason]; {
		case !reason.Known():
			t.Errorf("%s has no place on the wires", reason)
		case got == nil:
			t.Errorf("docs/errors.md has no row: | `%s` | `%s` | %s | %s | … |", reason, want[0], want[1], want[2])
		case !slices.Equal(got, want):
			t.Errorf("docs/errors.md says %s is %v, it is %v", reason, got, want)
		}
		delete(rows, reason)
	}
	for reason := range rows {
		t.Errorf("docs/errors.md documents %s, which is not a reason", reason)
	}
}
