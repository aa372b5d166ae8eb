package httpapi

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

const pathToken = "/oauth2/token"

// tokenParameters holds every parameter of the token endpoint. docs/http-api.md has the same table
// for readers.
var tokenParameters = map[string]arity{
	// RFC 8693 §2.1.
	"grant_type":           single,
	"resource":             repeatable,
	"audience":             repeatable,
	"scope":                single,
	"requested_token_type": single,
	"subject_token":        single,
	"subject_token_type":   single,
	"actor_token":          single,
	"actor_token_type":     single,
	// RFC 7521 §4.2.
	"client_assertion_type": single,
	"client_assertion":      single,
	"client_id":             single,
	// RFC 9396 §6.
	"authorization_details": single,
	// Deputy's extensions.
	"requested_actor":    single,
	"actor_confirmation": single,
	"requested_lifetime": single,
	"max_depth":          single,
	"uses":               single,
	"validate_only":      single,
	"idempotency_key":    single,

	// Other ways to authenticate, other grants, and requests by reference.
	"client_secret": unsupported,
	"username":      unsupported,
	"password":      unsupported,
	"code":          unsupported,
	"code_verifier": unsupported,
	"redirect_uri":  unsupported,
	"refresh_token": unsupported,
	"device_code":   unsupported,
	"auth_req_id":   unsupported,
	"assertion":     unsupported,
	"request":       unsupported,
	"request_uri":   unsupported,
	"claims":        unsupported,
	"dpop_jkt":      unsupported,
	"req_cnf":       unsupported,
	// Parameters to which other token exchange services give a meaning that narrows or redirects
	// the token.
	"options":           unsupported,
	"requested_subject": unsupported,
	"requested_issuer":  unsupported,
	"subject_issuer":    unsupported,
}

// stsMembers are the members that a JSON body may have: only RFC 8693's parameters.
var stsMembers = map[string]bool{
	"grant_type": true, "resource": true, "audience": true, "scope": true, "requested_token_type": true,
	"subject_token": true, "subject_token_type": true, "actor_token": true, "actor_token_type": true,
}

func tokenEndpoint(e Engine, t *Tenant) *endpoint {
	return &endpoint{
		methods: []string{http.MethodPost},
		gates: []gate{
			{"query", refuseQuery},
			{"authorization", refuseAuthorization},
			{"proof", refuseSecondProof},
		},
		serve: func(w http.ResponseWriter, r *http.Request) error {
			p, err := readParameters(w, r, tokenParameters, t.AcceptJSONSTS)
			if err != nil {
				return err
			}
			call, err := newCall(p)
			if err != nil {
				return err
			}
			call.Tenant, call.Peer = t.Name, r.RemoteAddr
			hold(&call.Credentials, r, t, pathToken)
			outcomes, err := e.Exchange(r.Context(), call)
			if err != nil {
				return err
			}
			answer, err := newTokenResponse(call, outcomes)
			if err != nil {
				return err
			}
			writeJSON(w, http.StatusOK, answer)
			return nil
		},
	}
}

// refuseQuery keeps credentials out of addresses, and so out of the logs of proxies.
func refuseQuery(r *http.Request) error {
	if r.URL.RawQuery == "" && !r.URL.ForceQuery {
		return nil
	}
	return delegation.Refuse(delegation.ParameterInvalid, "", "this endpoint takes no query: send every parameter in the body")
}

// refuseAuthorization refuses every scheme. A client authenticates in the form, by private_key_jwt,
// and two ways at once are forbidden (RFC 6749 §2.3).
func refuseAuthorization(r *http.Request) error {
	if _, tried := r.Header["Authorization"]; !tried {
		return nil
	}
	return delegation.Refuse(delegation.ClientUnauthenticated, "Authorization", "the Authorization header is not accepted here: send client_assertion in the form")
}

// refuseSecondProof is the first check of RFC 9449 §4.3.
func refuseSecondProof(r *http.Request) error {
	if len(r.Header.Values("DPoP")) < 2 {
		return nil
	}
	return delegation.Refuse(delegation.ParameterRepeated, "DPoP", "it must not be sent more than once (RFC 9449 section 4.3)")
}

// hold adds what proves possession of a key: the DPoP proof of the request, which must be made for
// the endpoint's public address, and the certificates of the handshake.
func hold(c *exchange.Credentials, r *http.Request, t *Tenant, path string) {
	if r.TLS != nil {
		c.Certificates = r.TLS.PeerCertificates
	}
	if proofs := r.Header.Values("DPoP"); len(proofs) > 0 {
		c.Proof = &exchange.Proof{JWT: proofs[0], Method: r.Method, URI: strings.TrimSuffix(t.Issuer, "/") + path}
	}
}

// readParameters reads the body in one of the forms that the endpoint accepts.
func readParameters(w http.ResponseWriter, r *http.Request, known map[string]arity, acceptJSON bool) (parameters, error) {
	media, err := requestMediaType(r)
	if err != nil {
		return nil, err
	}
	if media != mediaForm && (media != mediaJSON || !acceptJSON) {
		return nil, delegation.Refuse(delegation.MediaTypeUnsupported, "Content-Type", "send %s", mediaForm)
	}
	body, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	parse := parseForm
	if media == mediaJSON {
		parse = parseSTS
	}
	p, err := parse(body, known)
	if err != nil {
		return nil, err
	}
	return p, p.fit(known)
}

// newCall turns the parameters into a call. It checks only the form of each parameter. The engine
// decides whether the request is granted.
func newCall(p parameters) (exchange.Call, error) {
	switch grant := p.text("grant_type"); grant {
	case delegation.GrantTypeTokenExchange:
	case "":
		return exchange.Call{}, delegation.Refuse(delegation.ParameterMissing, "grant_type", "it is missing: send %s", delegation.GrantTypeTokenExchange)
	default:
		return exchange.Call{}, delegation.Refuse(delegation.GrantUnsupported, "grant_type", "only %s is supported", delegation.GrantTypeTokenExchange)
	}
	if err := p.refuseUnsupported(tokenParameters); err != nil {
		return exchange.Call{}, err
	}
	child := exchange.Child{
		ActorToken:           p.text("actor_token"),
		ActorTokenType:       p.text("actor_token_type"),
		Resource:             p["resource"],
		Audience:             p["audience"],
		Scope:                p.optional("scope"),
		RequestedTokenType:   p.text("requested_token_type"),
		AuthorizationDetails: p.optional("authorization_details"),
		RequestedActor:       p.text("requested_actor"),
		ActorConfirmation:    p.text("actor_confirmation"),
	}
	call := exchange.Call{
		Credentials:      credentials(p),
		SubjectToken:     p.text("subject_token"),
		SubjectTokenType: p.text("subject_token_type"),
		IdempotencyKey:   p.text("idempotency_key"),
	}
	var err error
	if child.RequestedLifetime, err = p.seconds("requested_lifetime"); err != nil {
		return exchange.Call{}, err
	}
	if child.MaxDepth, err = p.number("max_depth"); err != nil {
		return exchange.Call{}, err
	}
	if child.Uses, err = p.number("uses"); err != nil {
		return exchange.Call{}, err
	}
	switch p.text("validate_only") {
	case "", "false":
	case "true":
		call.ValidateOnly = true
	default:
		return exchange.Call{}, delegation.Refuse(delegation.ParameterInvalid, "validate_only", "it must be true or false")
	}
	call.Children = []exchange.Child{child}
	return call, nil
}

func credentials(p parameters) exchange.Credentials {
	return exchange.Credentials{
		AssertionType: p.text("client_assertion_type"),
		Assertion:     p.text("client_assertion"),
		ClientID:      p.text("client_id"),
	}
}

// maxNumber bounds numbers in a form. Nine digits fit every integer type.
const maxNumber = 999_999_999

// number parses decimal digits: no sign, no space, no leading zero, no exponent.
func (p parameters) number(name string) (*uint32, error) {
	text := p.text(name)
	if text == "" {
		return nil, nil
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n > maxNumber || strings.TrimLeft(text, "0123456789") != "" || len(text) > 1 && text[0] == '0' {
		return nil, delegation.Refuse(delegation.ParameterInvalid, name, "it must be a whole number in decimal digits, at most %d", maxNumber)
	}
	number := uint32(n)
	return &number, nil
}

func (p parameters) seconds(name string) (*time.Duration, error) {
	n, err := p.number(name)
	if err != nil || n == nil {
		return nil, err
	}
	lifetime := time.Duration(*n) * time.Second
	return &lifetime, nil
}

// tokenResponse is the answer of RFC 8693 §2.2.1, with authorization_details of RFC 9396 §7 and
// three members of Deputy's. scope is always present: an absent scope would mean "as requested".
type tokenResponse struct {
	// AccessToken is absent only with validate_only.
	AccessToken     string              `json:"access_token,omitempty"`
	IssuedTokenType string              `json:"issued_token_type"`
	TokenType       string              `json:"token_type"`
	ExpiresIn       int64               `json:"expires_in"`
	Scope           string              `json:"scope"`
	Details         []delegation.Detail `json:"authorization_details,omitempty"`
	ID              string              `json:"jti,omitempty"`
	Txn             string              `json:"txn,omitempty"`
	Entry           uint64              `json:"entry"`
	ValidateOnly    bool                `json:"validate_only,omitempty"`
}

// newTokenResponse takes the one outcome of the call. Anything but one grant with a token (or, if
// only validated, without one) is a defect of the engine. It is sent as an internal error, never as
// success.
func newTokenResponse(call exchange.Call, outcomes []exchange.Outcome) (tokenResponse, error) {
	broken := delegation.Refuse(delegation.Internal, "", "internal error: nothing was issued")
	if len(outcomes) != 1 {
		return tokenResponse{}, broken
	}
	grant, refusal := outcomes[0].Grant, outcomes[0].Err
	switch {
	case refusal != nil:
		return tokenResponse{}, refusal
	case grant == nil || (grant.AccessToken == "") != call.ValidateOnly:
		return tokenResponse{}, broken
	}
	response := tokenResponse{
		AccessToken:     grant.AccessToken,
		IssuedTokenType: grant.IssuedTokenType,
		TokenType:       tokenType(grant.Claims),
		ExpiresIn:       int64(grant.ExpiresIn / time.Second),
		Scope:           grant.Claims.Scope.String(),
		Details:         grant.Claims.Details,
		Entry:           grant.Entry,
		ValidateOnly:    call.ValidateOnly,
	}
	if !call.ValidateOnly { // a validation records no grant that could be looked up
		response.ID, response.Txn = grant.Claims.ID, grant.Claims.Txn
	}
	return response, nil
}

// tokenType returns the scheme with which to present the token. A token that is bound to a key
// needs a proof (RFC 9449 §5). A token that is bound to a certificate is a Bearer token on a
// connection with that certificate (RFC 8705 §3).
func tokenType(c delegation.Claims) string {
	if c.Confirmation != nil && c.Confirmation.JKT != "" {
		return "DPoP"
	}
	return "Bearer"
}
