package httpapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
)

const (
	pathJWKS     = "/oauth2/jwks"
	pathMetadata = "/.well-known/oauth-authorization-server"
)

// publicCaching is how long any cache may keep keys and metadata. A removed key must be refused
// within a minute, so a client behind a cache needs time to read again.
const publicCaching = "public, max-age=30"

// metadata is the document of RFC 8414 §2. An absent member is not offered.
type metadata struct {
	Issuer        string `json:"issuer"`
	TokenEndpoint string `json:"token_endpoint"`
	JWKS          string `json:"jwks_uri"`
	Introspection string `json:"introspection_endpoint"`
	Revocation    string `json:"revocation_endpoint"`

	GrantTypes []string `json:"grant_types_supported"`
	// ResponseTypes is REQUIRED by §2, while §3.2 requires empty lists to be absent. There is no
	// authorization endpoint, and clients read the member.
	ResponseTypes []string `json:"response_types_supported"`
	DetailTypes   []string `json:"authorization_details_types_supported,omitempty"`

	// ProofAlgorithms are the algorithms of DPoP proofs (RFC 9449 §5.1).
	ProofAlgorithms []string `json:"dpop_signing_alg_values_supported"`

	TokenAuth            []string `json:"token_endpoint_auth_methods_supported"`
	TokenAlgorithms      []string `json:"token_endpoint_auth_signing_alg_values_supported,omitempty"`
	IntrospectAuth       []string `json:"introspection_endpoint_auth_methods_supported"`
	IntrospectAlgorithms []string `json:"introspection_endpoint_auth_signing_alg_values_supported,omitempty"`
	RevokeAuth           []string `json:"revocation_endpoint_auth_methods_supported"`
	RevokeAlgorithms     []string `json:"revocation_endpoint_auth_signing_alg_values_supported,omitempty"`

	// CertificateBound reports that tokens can be bound to client certificates (RFC 8705 §3.3).
	CertificateBound bool `json:"tls_client_certificate_bound_access_tokens,omitempty"`
}

// metadataDocument is made once, because nothing in it changes while the server runs.
func metadataDocument(t *Tenant) ([]byte, error) {
	base := strings.TrimSuffix(t.Issuer, "/")
	// Where no client has a key or a certificate, an actor token or a workload JWT is the only way
	// to authenticate. The method must be named in this case too: absent, it would mean
	// client_secret_basic (§2).
	methods := slices.Clone(t.CertificateMethods)
	if len(t.AssertionAlgorithms) > 0 {
		methods = append([]string{"private_key_jwt"}, methods...)
	}
	tokenAuth, inquiryAuth := methods, append(slices.Clone(methods), "Bearer")
	if len(methods) == 0 {
		tokenAuth = []string{"none"}
	}
	return json.Marshal(metadata{
		Issuer:               t.Issuer,
		TokenEndpoint:        base + pathToken,
		JWKS:                 base + pathJWKS,
		Introspection:        base + pathIntrospect,
		Revocation:           base + pathRevoke,
		GrantTypes:           []string{delegation.GrantTypeTokenExchange},
		ResponseTypes:        []string{},
		DetailTypes:          t.DetailTypes,
		ProofAlgorithms:      dpop.Algorithms(),
		TokenAuth:            tokenAuth,
		TokenAlgorithms:      t.AssertionAlgorithms,
		IntrospectAuth:       inquiryAuth,
		IntrospectAlgorithms: t.AssertionAlgorithms,
		RevokeAuth:           inquiryAuth,
		RevokeAlgorithms:     t.AssertionAlgorithms,
		CertificateBound:     t.CertificateBound,
	})
}

func metadataEndpoint(document []byte) *endpoint {
	return publicEndpoint("application/json", func() []byte { return document })
}

func jwksEndpoint(t *Tenant) *endpoint {
	return publicEndpoint("application/jwk-set+json", t.JWKS)
}

// publicEndpoint serves a public document by GET or HEAD. It ignores the query.
func publicEndpoint(mediaType string, document func() []byte) *endpoint {
	return &endpoint{
		methods: []string{http.MethodGet, http.MethodHead},
		serve: func(w http.ResponseWriter, r *http.Request) error {
			body := document()
			if len(body) == 0 {
				return delegation.Unavailable("this document", errors.New("it is empty"))
			}
			header := w.Header()
			header.Set("Content-Type", mediaType)
			header.Set("Cache-Control", publicCaching)
			header.Set("Content-Length", strconv.Itoa(len(body)))
			_, _ = w.Write(body) // on an error the client has left
			return nil
		},
	}
}
