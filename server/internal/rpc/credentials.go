package rpc

import (
	"context"
	"strings"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
)

// foreignCredentials are metadata that carry credentials or proofs elsewhere. None of them is looked
// at here, so none of them may look as if it had been accepted.
var foreignCredentials = []string{"cookie", "dpop", "grpcgateway-authorization", "proxy-authorization", "x-api-key", "x-goog-iam-authorization-token"}

// credentialsOf takes what the caller presented to authenticate itself, from the one place where it
// is: the request or the metadata.
func credentialsOf(ctx context.Context, client *deputyv1.ClientAuthentication) (exchange.Credentials, error) {
	incoming, _ := metadata.FromIncomingContext(ctx)
	for _, key := range foreignCredentials {
		if len(incoming.Get(key)) > 0 {
			return exchange.Credentials{}, delegation.Refuse(delegation.ParameterUnsupported, key, "it is not supported here and must not be sent")
		}
	}
	c := exchange.Credentials{
		AssertionType: client.GetClientAssertionType(),
		Assertion:     client.GetClientAssertion(),
		ClientID:      client.GetClientId(),
	}
	values := incoming.Get("authorization")
	if len(values) == 0 {
		return c, nil
	}
	scheme, credential, _ := strings.Cut(values[0], " ")
	switch {
	case len(values) > 1:
		return exchange.Credentials{}, delegation.Refuse(delegation.ParameterRepeated, "authorization", "it must not be sent more than once")
	case !strings.EqualFold(scheme, "Bearer") || credential == "" || strings.ContainsAny(credential, " \t,"):
		return exchange.Credentials{}, delegation.Refuse(delegation.ClientUnauthenticated, "authorization", "send one credential of scheme Bearer, or client in the request")
	case client != nil:
		return exchange.Credentials{}, delegation.Refuse(delegation.ParameterConflict, "client", "authenticate once: in the request or in the metadata")
	}
	c.Bearer = credential
	return c, nil
}

// peerOf is the network address of the caller, for the record.
func peerOf(ctx context.Context) string {
	if p, known := peer.FromContext(ctx); known && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}
