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
	// Behind a pointer, because fmt walks into values in unexported fields without asking their
	// methods, but prints a pointer that it meets there as an address.
	value *string
}

// NewSecret wraps a token.
func NewSecret(token string) Secret {
	if token == "" {
		return Secret{}
	}
	return Secret{value: &token}
}

// Reveal returns the token. Call it where the token is sent, and nowhere else.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero says whether there is no token.
func (s Secret) IsZero() bool { return s.value == nil }

// Format implements fmt.Formatter for every verb.
func (s Secret) Format(f fmt.State, _ rune) {
	if !s.IsZero() {
		io.WriteString(f, redacted)
	}
}

// MarshalText serves slog, encoding/json and whatever else encodes text.
func (s Secret) MarshalText() ([]byte, error) {
	if s.IsZero() {
		return nil, nil
	}
	return []byte(redacted), nil
}
