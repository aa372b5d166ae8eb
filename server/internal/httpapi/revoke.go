package httpapi

import (
	"errors"
	"net/http"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

const pathRevoke = "/oauth2/revoke"

// revokeParameters is every parameter that the revocation endpoint knows (RFC 7009 §2.1).
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

// revokeEndpoint bans a derived token, and with it all that was made from it. 200 says that the token
// is of no use to anybody who was not to have it: it is revoked, durably, or it was nothing that this
// caller could have revoked (RFC 7009 §2.2). Every other kind of failure says so.
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
