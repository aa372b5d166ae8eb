package client

import (
	"fmt"
	"io"
)

const redacted = "[redacted]"

// Secret holds a token and does not print it: fmt with any verb, slog with any handler and
// encoding/json write "[redacted]". The zero value holds no token and prints as nothing.
//
// Secrets cannot be compared with ==: a token's identity is its issuer and jti, never its bytes.
type Secret struct {
	_ [0]func() // not comparable
	// A pointer, because fmt reads values in unexported fields without a call of their methods, but
	// prints a pointer in them as an address.
	value *string
}

// NewSecret wraps a token.
func NewSecret(token string) Secret {
	if token == "" {
		return Secret{}
	}
	return Secret{value: &token}
}

// Reveal returns the token. Call it only where the token is sent.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero reports whether there is no token.
func (s Secret) IsZero() bool { return s.value == nil }

// Format implements fmt.Formatter for every verb.
func (s Secret) Format(f fmt.State, _ rune) {
	if !s.IsZero() {
		io.WriteString(f, redacted)
	}
}

// MarshalText serves slog, encoding/json and every other encoder of text.
func (s Secret) MarshalText() ([]byte, error) {
	if s.IsZero() {
		return nil, nil
	}
	return []byte(redacted), nil
}
