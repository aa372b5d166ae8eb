package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
)

// errorBody is RFC 6749 §5.2 with three members of Deputy's.
type errorBody struct {
	Error       string            `json:"error"`
	Description string            `json:"error_description"`
	Reason      delegation.Reason `json:"reason"`
	Field       string            `json:"field,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
}

// writeError writes the HTTP form of a delegation.Error. It does not send the cause.
func writeError(w http.ResponseWriter, r *http.Request, ep *endpoint, err error) {
	refusal := delegation.AsError(err)
	wire := refusal.Reason.Wire()
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	switch wire.HTTP {
	case http.StatusUnauthorized:
		header.Set("WWW-Authenticate", challenge(r, ep.tenant.Issuer))
	case http.StatusMethodNotAllowed:
		header.Set("Allow", strings.Join(ep.methods, ", "))
	}
	if nonce := refusal.Metadata[delegation.MetadataNonce]; nonce != "" {
		header.Set("DPoP-Nonce", nonce) // RFC 9449 §8
	}
	if refusal.RetryAfter > 0 {
		// Rounded up, so that a client that waits the whole seconds does not retry too early.
		seconds := (refusal.RetryAfter + time.Second - 1) / time.Second
		header.Set("Retry-After", strconv.FormatInt(int64(seconds), 10))
	}
	writeJSON(w, wire.HTTP, errorBody{
		Error: wire.OAuth, Description: refusal.Description, Reason: refusal.Reason,
		Field: refusal.Field, Metadata: refusal.Metadata,
	})
}

// challenge returns the scheme that the client tried, as RFC 6749 §5.2 requires, or Bearer. A
// client assertion counts as Bearer by RFC 7521, although it is in the form.
func challenge(r *http.Request, issuer string) string {
	scheme := "Bearer"
	tried, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	for _, known := range []string{"Basic", "DPoP", "Digest", "Negotiate", "HOBA", "Mutual", "PrivateToken"} {
		if strings.EqualFold(tried, known) {
			scheme = known
		}
	}
	return fmt.Sprintf("%s realm=%q", scheme, issuer)
}

// writeJSON sends a body that no cache keeps. RFC 6749 §5.1 requires Pragma too.
func writeJSON(w http.ResponseWriter, status int, body any) {
	encoded, err := json.Marshal(body)
	if err != nil {
		// No body holds a value that JSON cannot express. A broken body must not be sent as
		// success.
		status, encoded = http.StatusInternalServerError, []byte(`{"error":"server_error","error_description":"internal error","reason":"internal"}`)
	}
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Cache-Control", "no-store")
	header.Set("Pragma", "no-cache")
	header.Set("Content-Length", strconv.Itoa(len(encoded)))
	w.WriteHeader(status)
	_, _ = w.Write(encoded) // on an error the client has left: the access log has the status
}
