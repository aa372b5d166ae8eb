package server

import (
	"context"
	"encoding"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"unicode"
)

const redacted = "[redacted]"

// secretKeys in the name of an attribute remove its value from the log, whatever the value is.
var secretKeys = []string{"token", "assertion", "authorization", "secret", "password", "credential", "private_key", "cookie", "dsn"}

// harmlessKeys are names that match one of those and hold no secret.
var harmlessKeys = map[string]bool{"token_type": true, "issued_token_type": true, "subject_token_type": true, "actor_token_type": true}

// secretText is one form of a credential. Almost no logged text holds one. A cheap test for what
// each text of the form must hold avoids most searches.
type secretText struct {
	mayBeIn func(text string) bool // false: the text cannot hold the form
	form    *regexp.Regexp
}

// secretTexts are the forms of credentials anywhere in a text.
var secretTexts = []secretText{
	// A JWS: JSON objects begin with {" or with { and white space. Two parts are enough to
	// impersonate where a verifier accepts alg none, and a clipped JWS must not pass.
	{func(text string) bool {
		return strings.Contains(text, ".") && (strings.Contains(text, "ey") || strings.Contains(text, "ew"))
	}, regexp.MustCompile(`\be[yw][A-Za-z0-9_-]{8,}={0,2}\.[A-Za-z0-9_-]{8,}={0,2}(?:\.[A-Za-z0-9_=-]*)*`)},
	// Any other text in three long parts, such as a JWS in a broken encoding.
	{func(text string) bool {
		return len(text) >= 3*20+2 && strings.Count(text, ".") >= 2
	}, regexp.MustCompile(`[A-Za-z0-9_+/=-]{20,}\.[A-Za-z0-9_+/=-]{20,}\.[A-Za-z0-9_+/=-]{20,}`)},
	{aSchemeEnds, regexp.MustCompile(`(?i)\b(?:bearer|dpop|basic)\s+[A-Za-z0-9._~+/=-]{4,}`)},
	// A password in an address.
	{func(text string) bool {
		return strings.Contains(text, "://")
	}, regexp.MustCompile(`://[^/\s:@"']*:[^/\s@"']+@`)},
	{func(text string) bool {
		return strings.Contains(text, "-----BEGIN ")
	}, regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)`)},
}

// aSchemeEnds reports whether white space follows the last letters of Bearer, DPoP or Basic.
// Case-insensitive comparison matches no letter but these, in either case.
func aSchemeEnds(text string) bool {
	for i := 2; i < len(text); i++ {
		if unicode.IsSpace(rune(text[i])) {
			switch strings.ToLower(text[i-2 : i]) {
			case "er", "op", "ic":
				return true
			}
		}
	}
	return false
}

func redact(text string) string {
	if len(text) < 8 {
		return text
	}
	for _, secret := range secretTexts {
		if secret.mayBeIn(text) {
			text = secret.form.ReplaceAllString(text, redacted)
		}
	}
	return text
}

// redactor is a slog handler that removes every credential. It is the last line of defense: no
// package logs a credential, and the redactor protects against a future mistake.
type redactor struct{ slog.Handler }

func (h redactor) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, r.Level, redact(r.Message), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		clean.AddAttrs(redactAttr(a))
		return true
	})
	return h.Handler.Handle(ctx, clean)
}

func (h redactor) WithAttrs(attrs []slog.Attr) slog.Handler {
	clean := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		clean[i] = redactAttr(a)
	}
	return redactor{h.Handler.WithAttrs(clean)}
}

func (h redactor) WithGroup(name string) slog.Handler { return redactor{h.Handler.WithGroup(name)} }

func redactAttr(a slog.Attr) slog.Attr {
	value := a.Value.Resolve()
	switch value.Kind() {
	case slog.KindGroup:
		group := make([]slog.Attr, len(value.Group()))
		for i, member := range value.Group() {
			group[i] = redactAttr(member)
		}
		return slog.Attr{Key: a.Key, Value: slog.GroupValue(group...)}
	case slog.KindString:
		return slog.String(a.Key, redactNamed(a.Key, value.String()))
	case slog.KindAny:
		// Handlers print such values in their own ways. The redactor can search only text.
		return slog.String(a.Key, redactNamed(a.Key, textOfAny(value.Any())))
	}
	return a // numbers, times and booleans
}

func redactNamed(key, text string) string {
	name := strings.ToLower(key)
	for _, secret := range secretKeys {
		if strings.Contains(name, secret) && !harmlessKeys[name] && text != "" {
			return redacted
		}
	}
	return redact(text)
}

func textOfAny(v any) string {
	switch v := v.(type) {
	case error:
		return v.Error()
	case []byte:
		return string(v)
	case encoding.TextMarshaler:
		if text, err := v.MarshalText(); err == nil {
			return string(text)
		}
	}
	return fmt.Sprintf("%+v", v)
}
