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

// rule is what a method requires of a caller before its handler runs. A rule permits nothing: the
// engine decides what a caller may do, and every handler calls it.
type rule int

const (
	// unlisted is the rule of a method that the map does not name.
	unlisted rule = iota
	// forAnyone takes no credential. A credential is refused, because no code would check it and it
	// must not appear to be accepted.
	forAnyone
	// forCaller takes a credential in the request or in the metadata, or the certificate of the
	// connection.
	forCaller
	// forNewActor is forCaller, but an actor_token may authenticate too.
	forNewActor
	// forVerifier is forCaller, but its messages have no field for a credential.
	forVerifier
)

// methods names every method that can be reached, and its rule. A registered method that is not
// listed here answers as one that does not exist.
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

// gate holds methods to their rules and fields to their bounds, before any handler runs.
type gate struct {
	// unauthenticated refuses a caller without anything that could authenticate it.
	unauthenticated func(context.Context) error
}

// admitMethod checks what is known before a message has been read.
func (g gate) admitMethod(ctx context.Context, method string) error {
	switch methods[method] {
	case unlisted:
		return delegation.Refuse(delegation.MethodNotAllowed, "", "there is no such method")
	case forAnyone:
		if key := cmp.Or(credentialIn(ctx), proofIn(ctx)); key != "" {
			return delegation.Refuse(delegation.ParameterUnsupported, key, "must not be sent, because this method authenticates no caller")
		}
	case forVerifier:
		if credentialIn(ctx) == "" && !certified(ctx) {
			return g.unauthenticated(ctx)
		}
	}
	return nil
}

// admitMessage checks the message too.
func (g gate) admitMessage(ctx context.Context, method string, message any) error {
	m, isMessage := message.(proto.Message)
	if !isMessage {
		return broken("a request that is no message")
	}
	if r := methods[method]; (r == forCaller || r == forNewActor) && credentialIn(ctx) == "" && !certified(ctx) && !g.bringsCredential(r, m) {
		return g.unauthenticated(ctx)
	}
	return fits(m)
}

func (g gate) bringsCredential(r rule, m proto.Message) bool {
	if with, has := m.(interface {
		GetClient() *deputyv1.ClientAuthentication
	}); has && with.GetClient() != nil {
		return true
	}
	if r != forNewActor {
		return false
	}
	// The engine uses the first child's actor token of a batch.
	switch request := m.(type) {
	case *deputyv1.ExchangeRequest:
		return request.GetChild().GetActorToken() != ""
	case *deputyv1.BatchExchangeRequest:
		return len(request.GetChildren()) > 0 && request.GetChildren()[0].GetActorToken() != ""
	}
	return false
}

// credentialIn returns the name of the metadata that carry a credential or appear to, or "". The
// handler checks the credential.
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

// proofIn returns the name of the metadata of a DPoP proof, or "". A proof by itself is no
// credential.
func proofIn(ctx context.Context) string {
	if len(metadata.ValueFromIncomingContext(ctx, metadataProof)) > 0 {
		return metadataProof
	}
	return ""
}

// certified reports whether the connection has a client's certificate.
func certified(ctx context.Context) bool {
	p, known := peer.FromContext(ctx)
	if !known {
		return false
	}
	info, isTLS := p.AuthInfo.(credentials.TLSInfo)
	return isTLS && len(info.State.PeerCertificates) > 0
}

// admitted is a stream whose every message is checked against the rule and the bounds.
type admitted struct {
	grpc.ServerStream
	ctx    context.Context
	gate   gate
	method string
}

// Context returns the stream's context, with its trace.
func (a admitted) Context() context.Context { return a.ctx }

func (a admitted) RecvMsg(message any) error {
	refusal, err := receive(a.ServerStream.RecvMsg, message)
	// grpc-go has answered INTERNAL, but the fault is the caller's.
	if status.Code(err) == codes.Internal {
		return delegation.Refuse(delegation.ParameterInvalid, "", "must be whole messages; send each with its length and without unknown flags").WithCause(err)
	}
	if err != nil {
		return err
	}
	openingOf(a.Context()).messageCame()
	if refusal != nil {
		return refusal
	}
	return a.gate.admitMessage(a.Context(), a.method, message)
}
