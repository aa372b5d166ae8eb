package server

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

const (
	canaryJWS    = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
	canaryOpaque = "canary-0123456789"
)

type stringer string

func (s stringer) String() string { return string(s) }

type valuer string

func (v valuer) LogValue() slog.Value { return slog.StringValue(string(v)) }

// leaky logs credentials in every way that slog has.
func leaky(logger *slog.Logger) {
	logger.Info("refused " + canaryJWS)
	logger.Info("x", "note", canaryJWS)
	logger.Info("x", "note", "Bearer "+canaryOpaque)
	logger.Info("x", "note", "authorization: bearer\t"+canaryOpaque)
	logger.Info("x", "dial", "postgres://deputy:"+canaryOpaque+"@db/deputy")
	logger.Info("x", "error", fmt.Errorf("parse %w", errors.New(canaryJWS)))
	logger.Info("x", "any", map[string]string{"a": canaryJWS})
	logger.Info("x", "any", []byte(canaryJWS))
	logger.Info("x", "any", struct{ Raw string }{canaryJWS})
	logger.Info("x", "any", stringer(canaryJWS))
	logger.Info("x", "any", valuer(canaryJWS))
	logger.Info("x", "headers", []string{"Bearer " + canaryOpaque})
	logger.Info("x", slog.Group("request", slog.Group("form", slog.String("client_assertion", canaryOpaque))))
	logger.With("subject_token", canaryOpaque).Info("x")
	logger.With(slog.Group("g", slog.String("Authorization", canaryOpaque))).Info("x")
	logger.WithGroup("g").With("note", canaryJWS).Info("x", "db_password", canaryOpaque)
	logger.Info("x", "client_secret", stringer(canaryOpaque))
	logger.Info("x", "pem", "-----BEGIN PRIVATE KEY-----\n"+canaryOpaque)
	// Such a JWS has alg none or is clipped.
	logger.Info("x", "cut", canaryJWS[:strings.LastIndexByte(canaryJWS, '.')])
}

func TestNoCredentialPassesTheLogger(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		var out bytes.Buffer
		leaky(NewLogger(Telemetry{LogLevel: "debug", LogFormat: format}, &out))
		for n, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
			if strings.Contains(line, canaryOpaque) || strings.Contains(line, "eyJzdWIiOiJhbGljZSJ9") || !strings.Contains(line, redacted) {
				t.Errorf("%s line %d: %s", format, n+1, line)
			}
		}
	}
}

// TestWithoutRedactorCredentialsPass is the control: without the redactor every one of these lines
// holds a credential.
func TestWithoutRedactorCredentialsPass(t *testing.T) {
	var out bytes.Buffer
	leaky(slog.New(slog.NewTextHandler(&out, nil)))
	for n, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		printed := strings.Contains(line, canaryOpaque) || strings.Contains(line, "eyJzdWIiOiJhbGljZSJ9") || strings.Contains(line, "101 121 74")
		if !printed {
			t.Errorf("line %d proves nothing: %s", n+1, line)
		}
	}
}

func TestOrdinaryTextPasses(t *testing.T) {
	var out bytes.Buffer
	NewLogger(Telemetry{}, &out).Info("exchange recorded",
		"issuer", "https://deputy.example/t/acme", "host", "openfga.internal.example.com:8080", "trace_id", "4bf92f3577b34da6a3ce929d0e0e4736",
		"jti", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "token_type", "urn:ietf:params:oauth:token-type:access_token", "tokens", 3,
		"actor", "agent:k8s/system%3Aserviceaccount", "route", "/oauth2/token", "package", "deputy.example/deputy/server/internal/exchange",
		"thumbprint", "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I")
	if strings.Contains(out.String(), redacted) {
		t.Errorf("taken for a credential: %s", out.String())
	}
	if strings.Contains(out.String(), `"level":"DEBUG"`) || !strings.Contains(out.String(), `"tokens":3`) {
		t.Errorf("not as it was logged: %s", out.String())
	}
}

// TestALookSparesNoCredential: the cheap test changes no result. With and without it, the redactor
// leaves the same of any text.
func TestALookSparesNoCredential(t *testing.T) {
	found := 0
	for _, a := range crumbs {
		for _, b := range crumbs {
			for _, c := range crumbs {
				text := a + b + c
				if got, want := redact(text), searched(text); got != want {
					t.Fatalf("%q became %q, want %q", text, got, want)
				} else if got != text {
					found++
				}
			}
		}
	}
	if found < 500 {
		t.Errorf("only %d texts held a credential", found)
	}
}

func FuzzALookSparesNoCredential(f *testing.F) {
	for _, crumb := range crumbs {
		f.Add(crumb + crumbs[0])
	}
	f.Fuzz(func(t *testing.T, text string) {
		if got, want := redact(text), searched(text); got != want {
			t.Fatalf("%q became %q, want %q", text, got, want)
		}
	})
}

// crumbs are the parts of credentials and of the text around them.
var crumbs = []string{
	"eyJhbGciOiJFUzI1NiJ9", "ewogImFsZyI", ".", "=", "aaaaaaaaaaaaaaaaaaaa.", "ZZZZZZZZZZZZZZZZZZZ", "é",
	"bearer", "BeaRER", "DPoP", "dpop", "basic", "BASIC", "ba\u017fic", "BAS\u0130C", "bas\u0131c", " ", "\t", "\r\n", "\f", "\v", "\u00a0", "abcd",
	"://", "user:", "x@", "-----BEGIN ", "-----BEGIN", "PRIVATE KEY-----", "\xff",
}

// searched returns what is left of a text after a search for every form.
func searched(text string) string {
	if len(text) < 8 {
		return text
	}
	for _, secret := range secretTexts {
		text = secret.form.ReplaceAllString(text, redacted)
	}
	return text
}
