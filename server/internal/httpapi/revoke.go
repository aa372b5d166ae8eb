package httpapi

import (
	"errors"
	"net/http"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

const pathRevoke = "/oauth2/revoke"

// revokeParameters holds every parameter of the revocation endpoint (RFC 7009 §2.1).
// token_type_hint may be ignored, and is: Deputy issues one type of token.
var revokeParameters = map[string]arity{
	"token":                 single,
	"token_type_hint":       single,
	"client_assertion_type": single,
	"client_assertion":      single,
	"client_id":             single,

	"client_secret": unsupported,
	"username":      unsupported,
	"password":      unsupported,
}

// revokeEndpoint bans a derived token, and with it every token that was derived from it. 200 means
// that the token is durably revoked, or that it was no token that this caller could have revoked
// (RFC 7009 §2.2). Every other failure is an error.
func revokeEndpoint(e Engine, t *Tenant) *endpoint {
	return &endpoint{
		methods: []string{http.MethodPost},
		gates:   []gate{{"query", refuseQuery}, {"proof", refuseSecondProof}},
		serve: func(w http.ResponseWriter, r *http.Request) error {
			who, p, err := readInquiry(w, r, t, pathRevoke, revokeParameters)
			if err != nil {
				return err
			}
			if p.text("token") == "" {
				return delegation.Refuse(delegation.ParameterMissing, "token", "it is required")
			}
			done, err := e.Revoke(r.Context(), exchange.RevokeCall{Tenant: t.Name, Credentials: who, Peer: r.RemoteAddr, Token: p.text("token")})
			refusal := delegation.AsError(err)
			switch {
			case refusal != nil && refusal.Reason != delegation.NotFound:
				return err
			case refusal == nil && done.Revocation == nil:
				return delegation.Refuse(delegation.Internal, "", "internal error: nothing was revoked").WithCause(errors.New("a revocation that is not recorded"))
			}
			w.Header().Set("Pragma", "no-cache")
			w.Header().Set("Content-Length", "0")
			w.WriteHeader(http.StatusOK)
			return nil
		},
	}
}
