package httpapi

import (
	"encoding/json"
	"net/http"
	"strings"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

const pathIntrospect = "/oauth2/introspect"

// introspectParameters holds every parameter of the introspection endpoint (RFC 7662 §2.1).
// token_type_hint may be ignored, and is: Deputy issues one type of token.
var introspectParameters = map[string]arity{
	"token":                 single,
	"token_type_hint":       single,
	"client_assertion_type": single,
	"client_assertion":      single,
	"client_id":             single,

	"client_secret": unsupported,
	"username":      unsupported,
	"password":      unsupported,
}

func introspectEndpoint(e Engine, t *Tenant) *endpoint {
	return &endpoint{
		methods: []string{http.MethodPost},
		gates:   []gate{{"query", refuseQuery}, {"proof", refuseSecondProof}},
		serve: func(w http.ResponseWriter, r *http.Request) error {
			who, p, err := readInquiry(w, r, t, pathIntrospect, introspectParameters)
			if err != nil {
				return err
			}
			inquiry := exchange.Inquiry{Tenant: t.Name, Credentials: who, Token: p.text("token"), Peer: r.RemoteAddr}
			found, err := e.Introspect(r.Context(), inquiry)
			if err != nil {
				return err
			}
			answer, err := introspectionResponse(found)
			if err != nil {
				return err
			}
			writeJSON(w, http.StatusOK, answer)
			return nil
		},
	}
}

// readInquiry reads the form of a question about a token, and the caller's credentials. The caller
// authenticates by an assertion in the form or by a credential in the Authorization header, which
// may come with a proof of its key.
func readInquiry(w http.ResponseWriter, r *http.Request, t *Tenant, path string, known map[string]arity) (exchange.Credentials, parameters, error) {
	scheme, credential, err := authorization(r)
	if err != nil {
		return exchange.Credentials{}, nil, err
	}
	p, err := readParameters(w, r, known, false)
	if err == nil {
		err = p.refuseUnsupported(known)
	}
	if err != nil {
		return exchange.Credentials{}, nil, err
	}
	who := credentials(p)
	if credential != "" && who.AssertionType+who.Assertion+who.ClientID != "" {
		return exchange.Credentials{}, nil, delegation.Refuse(delegation.ParameterConflict, "client_assertion", "authenticate once: in the form or in the Authorization header")
	}
	if strings.EqualFold(scheme, schemeDPoP) {
		who.DPoP = credential
	} else {
		who.Bearer = credential
	}
	hold(&who, r, t, path)
	return who, p, nil
}

// Schemes of the Authorization header (RFC 6750 §2.1, RFC 9449 §7.1). They are case-insensitive
// (RFC 9110 §11.1).
const (
	schemeBearer = "Bearer"
	schemeDPoP   = "DPoP"
)

// authorization returns scheme and credential of the one Authorization header, or nothing if there
// is none.
func authorization(r *http.Request) (scheme, credential string, err error) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return "", "", nil
	}
	scheme, credential, _ = strings.Cut(values[0], " ")
	known := strings.EqualFold(scheme, schemeBearer) || strings.EqualFold(scheme, schemeDPoP)
	if len(values) > 1 || !known || credential == "" || strings.ContainsAny(credential, " \t,") {
		return "", "", delegation.Refuse(delegation.ClientUnauthenticated, "Authorization", "send one Authorization header of scheme Bearer or DPoP, or client_assertion in the form")
	}
	return scheme, credential, nil
}

// introspectionResponse is the answer of RFC 7662 §2.2: the claims as the token holds them, act
// nested, and active beside them. For a token that is not active the answer has one member and no
// explanation.
func introspectionResponse(found exchange.Introspection) (any, error) {
	if found.Claims == nil {
		return map[string]bool{"active": false}, nil
	}
	claims, err := json.Marshal(found.Claims)
	if err != nil {
		return nil, err
	}
	members := make(map[string]json.RawMessage)
	if err := json.Unmarshal(claims, &members); err != nil {
		return nil, err
	}
	members["active"] = json.RawMessage("true")
	members["token_type"] = json.RawMessage(`"` + tokenType(*found.Claims) + `"`)
	return members, nil
}
