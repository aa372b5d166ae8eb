package rpc

import (
	"context"
	"crypto/x509"
	"net/http"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
)

// foreignCredentials are metadata that carry credentials or proofs in other systems. This server
// reads none of them, so none of them may appear to be accepted.
var foreignCredentials = []string{"cookie", "grpcgateway-authorization", "proxy-authorization", "x-api-key", "x-goog-iam-authorization-token"}

// credentialReader reads credentials and proofs. authority reports whether a name is one of the server's.
type credentialReader struct{ authority func(string) bool }

// credentialsOf returns what the caller authenticates with, from the one place where it is, the
// request or the metadata. It also returns what proves possession of a key: a DPoP proof in the
// metadata, a certificate in the handshake.
func (from credentialReader) credentialsOf(ctx context.Context, client *deputyv1.ClientAuthentication) (exchange.Credentials, error) {
	for _, key := range foreignCredentials {
		if len(metadata.ValueFromIncomingContext(ctx, key)) > 0 {
			return exchange.Credentials{}, delegation.Refuse(delegation.ParameterUnsupported, key, "it is not supported here and must not be sent")
		}
	}
	c := exchange.Credentials{
		AssertionType: client.GetClientAssertionType(),
		Assertion:     client.GetClientAssertion(),
		ClientID:      client.GetClientId(),
		Certificates:  certificatesOf(ctx),
	}
	var err error
	if c.Proof, err = from.proofOf(ctx); err != nil {
		return exchange.Credentials{}, err
	}
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) == 0 {
		return c, nil
	}
	scheme, credential, _ := strings.Cut(values[0], " ")
	switch {
	case len(values) > 1:
		return exchange.Credentials{}, delegation.Refuse(delegation.ParameterRepeated, "authorization", "it must not be sent more than once")
	case !strings.EqualFold(scheme, "Bearer") && !strings.EqualFold(scheme, "DPoP") || credential == "" || strings.ContainsAny(credential, " \t,"):
		return exchange.Credentials{}, delegation.Refuse(delegation.ClientUnauthenticated, "authorization", "send one credential of scheme Bearer or DPoP, or client in the request")
	case client != nil:
		return exchange.Credentials{}, delegation.Refuse(delegation.ParameterConflict, "client", "authenticate once: in the request or in the metadata")
	}
	if strings.EqualFold(scheme, "DPoP") {
		c.DPoP = credential
	} else {
		c.Bearer = credential
	}
	return c, nil
}

// metadataProof is the metadata key of a DPoP proof. docs/dpop.md has the profile of RFC 9449 for
// gRPC.
const metadataProof = "dpop"

// proofOf returns the one DPoP proof of the call, for the address of dpop.CallURI. A call to a name
// that is not this server's has no address. Otherwise a peer that received a proof for another
// server could use it here by calling this server under that server's name.
func (from credentialReader) proofOf(ctx context.Context) (*exchange.Proof, error) {
	proofs := metadata.ValueFromIncomingContext(ctx, metadataProof)
	switch len(proofs) {
	case 0:
		return nil, nil
	case 1:
	default:
		return nil, delegation.Refuse(delegation.ParameterRepeated, "dpop", "it must not be sent more than once (RFC 9449 section 4.3)")
	}
	proof := &exchange.Proof{JWT: proofs[0], Method: http.MethodPost}
	method, known := grpc.Method(ctx)
	if authority := metadata.ValueFromIncomingContext(ctx, ":authority"); known && len(authority) == 1 && from.authority(authority[0]) {
		proof.URI = dpop.CallURI(authority[0], method)
	}
	return proof, nil
}

// certificatesOf returns the certificates of the caller's handshake, its own certificate first.
func certificatesOf(ctx context.Context) []*x509.Certificate {
	p, known := peer.FromContext(ctx)
	if !known {
		return nil
	}
	if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
		return info.State.PeerCertificates
	}
	return nil
}

// peerOf returns the network address of the caller, for the record.
func peerOf(ctx context.Context) string {
	if p, known := peer.FromContext(ctx); known && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}
