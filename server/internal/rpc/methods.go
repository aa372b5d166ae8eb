package rpc

import (
	"cmp"
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// rule says who can reach a method, as far as the door sees it. It allows nothing: who may what is the
// engine's to say, and every handler asks it.
type rule int

const (
	// forNobody is the rule of a method that the map does not name.
	forNobody rule = iota
	// forAnyone takes no credential. One that comes all the same is refused: nobody would look at it, so
	// it must not look as if it had been accepted.
	forAnyone
	// forCaller takes a credential in the request or in the metadata, or the certificate of the
	// connection.
	forCaller
	// forNewActor is forCaller, but that an actor_token may authenticate too.
	forNewActor
	// forVerifier is forCaller, but that no message has room for a credential.
	forVerifier
)

// methods names every method that can be reached, and the rule for it. A method that is registered and
// stands not here answers as one that does not exist.
var methods = map[string]rule{
	deputyv1.TokenExchangeService_Exchange_FullMethodName:      forNewActor,
	deputyv1.TokenExchangeService_BatchExchange_FullMethodName: forNewActor,
	deputyv1.TokenExchangeService_Introspect_FullMethodName:    forCaller,

	deputyv1.RevocationService_Revoke_FullMethodName:           forCaller,
	deputyv1.RevocationService_Suspend_FullMethodName:          forCaller,
	deputyv1.RevocationService_Resume_FullMethodName:           forCaller,
	deputyv1.RevocationService_GetReceipts_FullMethodName:      forCaller,
	deputyv1.RevocationService_WatchRevocations_FullMethodName: forVerifier,

	deputyv1.AuditService_GetEntry_FullMethodName:        forCaller,
	deputyv1.AuditService_GetChain_FullMethodName:        forCaller,
	deputyv1.AuditService_ListDescendants_FullMethodName: forCaller,
	deputyv1.AuditService_SearchEntries_FullMethodName:   forCaller,
	deputyv1.AuditService_Reach_FullMethodName:           forCaller,
	deputyv1.AuditService_StreamEntries_FullMethodName:   forCaller,
	deputyv1.AuditService_GetCheckpoint_FullMethodName:   forCaller,
	deputyv1.AuditService_GetProofs_FullMethodName:       forCaller,

	"/grpc.health.v1.Health/Check": forAnyone,
	"/grpc.health.v1.Health/List":  forAnyone,
	"/grpc.health.v1.Health/Watch": forAnyone,

	// Reachable only where Config.Reflection registers them.
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      forAnyone,
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": forAnyone,
}

// doorkeeper holds methods to their rules and fields to their bounds, before any handler runs.
type doorkeeper struct {
	stranger func(context.Context) error // refuses a caller without anything that could authenticate it
}

// knock is about what is known before a message has been read.
func (d doorkeeper) knock(ctx context.Context, method string) error {
	switch methods[method] {
	case forNobody:
		return delegation.Refuse(delegation.MethodNotAllowed, "", "there is no such method")
	case forAnyone:
		if key := cmp.Or(credentialIn(ctx), proofIn(ctx)); key != "" {
			return delegation.Refuse(delegation.ParameterUnsupported, key, "this method authenticates nobody: it must not be sent")
		}
	case forVerifier:
		if credentialIn(ctx) == "" && !certified(ctx) {
			return d.stranger(ctx)
		}
	}
	return nil
}

// enter is about the message too.
func (d doorkeeper) enter(ctx context.Context, method string, message any) error {
	m, isMessage := message.(proto.Message)
	if !isMessage {
		return broken("a request that is no message")
	}
	if r := methods[method]; (r == forCaller || r == forNewActor) && credentialIn(ctx) == "" && !certified(ctx) && !d.bringsCredential(r, m) {
		return d.stranger(ctx)
	}
	return fits(m)
}

func (d doorkeeper) bringsCredential(r rule, m proto.Message) bool {
	if with, has := m.(interface {
		GetClient() *deputyv1.ClientAuthentication
	}); has && with.GetClient() != nil {
		return true
	}
	if r != forNewActor {
		return false
	}
	// Of a batch the first child's, as the engine takes it.
	switch request := m.(type) {
	case *deputyv1.ExchangeRequest:
		return request.GetChild().GetActorToken() != ""
	case *deputyv1.BatchExchangeRequest:
		return len(request.GetChildren()) > 0 && request.GetChildren()[0].GetActorToken() != ""
	}
	return false
}

// credentialIn names the metadata, if there are any, that carry a credential or look like it. What it is
// worth is for the handler to find out.
func credentialIn(ctx context.Context) string {
	const own = "authorization"
	if len(metadata.ValueFromIncomingContext(ctx, own)) > 0 {
		return own
	}
	for _, key := range foreignCredentials {
		if len(metadata.ValueFromIncomingContext(ctx, key)) > 0 {
			return key
		}
	}
	return ""
}

// proofIn names the metadata of a DPoP proof, if there is one. A proof by itself is no credential.
func proofIn(ctx context.Context) string {
	if len(metadata.ValueFromIncomingContext(ctx, metadataProof)) > 0 {
		return metadataProof
	}
	return ""
}

// certified says whether the connection came with a client's certificate.
func certified(ctx context.Context) bool {
	p, known := peer.FromContext(ctx)
	if !known {
		return false
	}
	info, isTLS := p.AuthInfo.(credentials.TLSInfo)
	return isTLS && len(info.State.PeerCertificates) > 0
}

// admitted is a stream whose every message passes the door.
type admitted struct {
	grpc.ServerStream
	ctx    context.Context
	door   doorkeeper
	method string
}

// Context is the stream's, with its trace.
func (a admitted) Context() context.Context { return a.ctx }

func (a admitted) RecvMsg(message any) error {
	refusal, err := receive(a.ServerStream.RecvMsg, message)
	if status.Code(err) == codes.Internal { // grpc-go has answered so, but the fault is the caller's
		return delegation.Refuse(delegation.ParameterInvalid, "", "must be whole messages; send each with its length and without unknown flags").WithCause(err)
	}
	if err != nil {
		return err
	}
	openingOf(a.Context()).messageCame()
	if refusal != nil {
		return refusal
	}
	return a.door.enter(a.Context(), a.method, message)
}
