package delegation_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
)

// reasons returns all constants of type Reason in the source.
func reasons(t *testing.T) []delegation.Reason {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "reasons.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []delegation.Reason
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); !ok || typ.Name != "Reason" {
			return true
		}
		for _, value := range spec.Values {
			text, err := strconv.Unquote(value.(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, delegation.Reason(text))
		}
		return true
	})
	if len(all) < 40 {
		t.Fatalf("only %d reasons were found", len(all))
	}
	return all
}

func TestEveryReasonIsRegisteredAndDocumented(t *testing.T) {
	manual, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	// RFC 6749 §5.2, RFC 8707 §2, RFC 9396 §5, RFC 9449 §5 and §8; RFC 6749 §4.1.2.1 for the rest
	oauth := []string{
		"invalid_request", "invalid_client", "unsupported_grant_type", "invalid_scope", "invalid_target",
		"invalid_authorization_details", "invalid_dpop_proof", "use_dpop_nonce", "access_denied", "temporarily_unavailable", "server_error",
	}
	seen := map[delegation.Reason]bool{}
	for _, r := range reasons(t) {
		if seen[r] {
			t.Errorf("%s has two names", r)
		}
		seen[r] = true
		wire := r.Wire()
		if !r.Known() || r != delegation.Internal && wire == delegation.Internal.Wire() {
			t.Errorf("%s is not registered", r)
		}
		if !slices.Contains(oauth, wire.OAuth) || wire.GRPC == codes.OK || wire.HTTP < 400 {
			t.Errorf("%s has the wire %+v", r, wire)
		}
		row := fmt.Sprintf("| `%s` | `%s` | %d | %s |", r, wire.OAuth, wire.HTTP, wire.GRPC)
		if !strings.Contains(string(manual), row) {
			t.Errorf("docs/errors.md has no row that begins %s", row)
		}
	}
	if unknown := delegation.Reason("made_up"); unknown.Known() || unknown.Wire() != delegation.Internal.Wire() {
		t.Error("a reason that nobody registered has a wire of its own")
	}
}

// RFC 8693 §2.2.2: an invalid subject or actor token is invalid_request. Deputy never returns
// invalid_grant.
func TestTokenFaultsAreInvalidRequest(t *testing.T) {
	for _, r := range reasons(t) {
		if r.Wire().OAuth == "invalid_grant" {
			t.Errorf("%s is invalid_grant", r)
		}
	}
	for _, r := range []delegation.Reason{
		delegation.SubjectTokenInvalid, delegation.ActorTokenInvalid, delegation.TokenTypeUnsupported, delegation.ProofRequired,
		delegation.TokenRevoked, delegation.TokenSpent, delegation.ForeignActorChain, delegation.RootTooLong,
	} {
		if w := r.Wire(); w.OAuth != "invalid_request" || w.HTTP != http.StatusBadRequest {
			t.Errorf("%s: %+v", r, w)
		}
	}
	if w := delegation.ClientUnauthenticated.Wire(); w.HTTP != http.StatusUnauthorized || w.OAuth != "invalid_client" {
		t.Errorf("%+v", w)
	}
}

func TestErrorSurvivesTheWire(t *testing.T) {
	for _, r := range reasons(t) {
		cause := errors.New("secret cause")
		e := delegation.Refuse(r, "scope", "rule %q broken", "x").WithMetadata("relation", "holder").WithCause(cause)
		e.RetryAfter = 3 * time.Second
		wire := e.GRPCStatus()
		if strings.Contains(wire.String(), "secret") || strings.Contains(e.Error(), "secret") {
			t.Errorf("%s shows its cause: %s", r, wire)
		}
		if !errors.Is(e, cause) {
			t.Errorf("%s forgot its cause", r)
		}
		back := delegation.FromStatus(wire.Err())
		if back.Reason != r || back.Field != e.Field || back.Description != e.Description || back.RetryAfter != e.RetryAfter || len(back.Metadata) != 1 || back.Metadata["relation"] != "holder" {
			t.Errorf("%+v comes back as %+v", e, back)
		}
	}
	if delegation.FromStatus(nil) != nil || delegation.AsError(nil) != nil {
		t.Error("no error becomes one")
	}
	for code, want := range map[codes.Code]delegation.Reason{
		codes.Unavailable: delegation.DependencyDown, codes.DeadlineExceeded: delegation.DependencyDown, codes.Unknown: delegation.Internal, codes.OK: delegation.Internal,
	} {
		err := status.Error(code, "x")
		if code == codes.OK {
			err = errors.New("no status at all")
		}
		if got := delegation.FromStatus(err); got.Reason != want {
			t.Errorf("%s becomes %s", code, got.Reason)
		}
	}
}

func TestErrorsAreValues(t *testing.T) {
	plain := errors.New("disk full: /secret/path")
	if e := delegation.AsError(plain); e.Reason != delegation.Internal || strings.Contains(e.Error(), "secret") || !errors.Is(e, plain) {
		t.Errorf("%v", e)
	}
	first := delegation.Refuse(delegation.ScopeExceedsParent, "", "x")
	second := first.WithMetadata("a", "1")
	third := second.WithMetadata("b", "2").WithCause(plain)
	if first.Metadata != nil || len(second.Metadata) != 1 || len(third.Metadata) != 2 || errors.Unwrap(second) != nil {
		t.Error("With changes what it was called on")
	}
	if wrapped := fmt.Errorf("while exchanging: %w", third); delegation.AsError(wrapped) != third {
		t.Error("a wrapped refusal is not found")
	}
	down := delegation.Unavailable("OpenFGA", plain)
	if !down.Temporary() || down.RetryAfter == 0 || strings.Contains(down.Error(), "secret") || first.Temporary() {
		t.Errorf("%+v", down)
	}
	for _, r := range delegation.Refuse(delegation.ParameterInvalid, "", "%s", "a\"b\\c\nd\x00é\u2028\x7f<ok>").Description {
		if r < 0x20 || r > 0x7e || r == '"' || r == '\\' {
			t.Errorf("a description holds %q, which RFC 6749 §5.2 forbids", r)
		}
	}
	if e := delegation.Refuse(delegation.ScopeMalformed, "", "see RFC 6749 §3.3"); e.Description != "see RFC 6749 section 3.3" {
		t.Errorf("a section sign becomes %q", e.Description)
	}
}
