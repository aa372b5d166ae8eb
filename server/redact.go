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

// secretKeys in the name of an attribute take its value out of the log, whatever it looks like.
var secretKeys = []string{"token", "assertion", "authorization", "secret", "password", "credential", "private_key", "cookie", "dsn"}

// harmlessKeys are names that would be taken for one of those.
var harmlessKeys = map[string]bool{"token_type": true, "issued_token_type": true, "subject_token_type": true, "actor_token_type": true}

// secretText is what a credential looks like. Nearly all that is logged holds none, so looking for what every
// one of its form must hold saves most searches.
type secretText struct {
	mayBeIn func(text string) bool // false: the form is not in it
	form    *regexp.Regexp
}

// secretTexts are what credentials look like, wherever they stand.
var secretTexts = []secretText{
	// A JWS: JSON objects begin with {" or { and white space. Two parts are enough to impersonate
	// where a verifier takes alg none, and a cut-off text must not pass.
	{func(text string) bool {
		return strings.Contains(text, ".") && (strings.Contains(text, "ey") || strings.Contains(text, "ew"))
	}, regexp.MustCompile(`\be[yw][A-Za-z0-9_-]{8,}={0,2}\.[A-Za-z0-9_-]{8,}={0,2}(?:\.[A-Za-z0-9_=-]*)*`)},
	// Anything else in three long parts, such as a JWS in a broken encoding.
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

// aSchemeEnds says whether white space stands behind the last letters of Bearer, DPoP or Basic. No letter but
// these, in either case, is taken for one of them where case does not matter.
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

// redactor is a slog handler that lets no credential through. It is the last line of defence: no
// package logs one, and this one sees to it should one begin to.
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
		// Handlers print such values in ways of their own; text is the one that can be looked through.
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
