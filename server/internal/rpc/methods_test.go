package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// registered returns the full names of all methods of a server, and whether the client streams.
func registered(s *Server) map[string]grpc.MethodInfo {
	all := make(map[string]grpc.MethodInfo)
	for service, info := range s.grpc.GetServiceInfo() {
		for _, method := range info.Methods {
			all["/"+service+"/"+method.Name] = method
		}
	}
	return all
}

// unruled returns methods without a rule, and rules without a method.
func unruled(s *Server) []string {
	var odd []string
	there := registered(s)
	for method := range there {
		if methods[method] == unlisted {
			odd = append(odd, method+" has no rule")
		}
	}
	for method := range methods {
		if _, exists := there[method]; !exists {
			odd = append(odd, method+" is not registered")
		}
	}
	return odd
}

// TestEveryMethodHasARule: a method that is added without a rule fails here, and so does a rule
// that is left behind.
func TestEveryMethodHasARule(t *testing.T) {
	reflecting, err := New(Config{Engine: granting(), Reflection: true})
	if err != nil {
		t.Fatal(err)
	}
	defer reflecting.Stop()
	if odd := unruled(reflecting); len(odd) > 0 {
		t.Error(odd)
	}
	plain, err := New(Config{Engine: granting()})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Stop()
	odd := unruled(plain)
	if len(odd) != 2 || slices.ContainsFunc(odd, func(s string) bool { return !strings.HasPrefix(s, "/grpc.reflection.") }) {
		t.Errorf("without reflection: %v", odd)
	}
	plain.grpc.RegisterService(&extra, nil)
	if odd := unruled(plain); !slices.Contains(odd, "/deputy.v1.Extra/Unary has no rule") {
		t.Errorf("a service that was added was not noticed: %v", odd)
	}
}

// extra is a service without a rule.
var extra = grpc.ServiceDesc{
	ServiceName: "deputy.v1.Extra",
	Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		request := new(deputyv1.GetCheckpointRequest)
		if err := decode(request); err != nil {
			return nil, err
		}
		return intercept(ctx, request, &grpc.UnaryServerInfo{FullMethod: "/deputy.v1.Extra/Unary"}, func(context.Context, any) (any, error) {
			return new(deputyv1.GetCheckpointResponse), nil
		})
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Stream", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
		return stream.SendMsg(new(deputyv1.GetCheckpointResponse))
	}}},
}

// TestMethodWithoutARule: the method is registered, and no caller reaches it, with any credential.
func TestMethodWithoutARule(t *testing.T) {
	server, err := New(Config{Engine: granting()})
	if err != nil {
		t.Fatal(err)
	}
	server.grpc.RegisterService(&extra, nil)
	conn := redial(t, server)
	unary := conn.Invoke(t.Context(), "/deputy.v1.Extra/Unary", &deputyv1.GetCheckpointRequest{}, new(deputyv1.GetCheckpointResponse))
	stream, err := conn.NewStream(t.Context(), &extra.Streams[0], "/deputy.v1.Extra/Stream")
	if err != nil {
		t.Fatal(err)
	}
	streamed := stream.RecvMsg(new(deputyv1.GetCheckpointResponse))
	if status.Code(unary) != codes.Unimplemented || status.Code(streamed) != codes.Unimplemented {
		t.Errorf("%v, %v", unary, streamed)
	}
}

// TestDoor checks what each rule requires of a caller, for every method that has the rule. A call
// that is refused does not reach the engine.
func TestDoor(t *testing.T) {
	engine := granting()
	engine.watch, engine.tail = following(newLedgerFeed()), engine.tails
	config := Config{Engine: engine, Reflection: true}
	server, conn := dial(t, config)
	for method, info := range registered(server) {
		before := engine.asked()
		nothing := ask(t, conn, method, info, nil)
		if engine.asked() != before {
			t.Errorf("%s without a credential reaches the engine", method)
		}
		credential, odd := ask(t, conn, method, info, []string{"authorization", "Bearer x"}), ask(t, conn, method, info, []string{"x-api-key", "x"})
		switch methods[method] {
		case forAnyone:
			if is(nothing, delegation.ClientUnauthenticated) || !is(credential, delegation.ParameterUnsupported) || !is(odd, delegation.ParameterUnsupported) {
				t.Errorf("%s: %v, %v, %v", method, nothing, credential, odd)
			}
		default:
			if !is(nothing, delegation.ClientUnauthenticated) || is(credential, delegation.ClientUnauthenticated) || odd == nil || is(odd, delegation.ClientUnauthenticated) {
				t.Errorf("%s: %v, %v, %v", method, nothing, credential, odd)
			}
		}
	}
}

func is(err error, reason delegation.Reason) bool {
	e := delegation.FromStatus(err)
	return e != nil && e.Reason == reason
}

// ask sends an empty message of the method's own type and returns the beginning of the answer.
func ask(t *testing.T, conn *grpc.ClientConn, method string, info grpc.MethodInfo, pairs []string) error {
	t.Helper()
	request, _ := messagesOf(t, method)
	if r, reflects := request.(*reflectionpb.ServerReflectionRequest); reflects {
		r.MessageRequest = &reflectionpb.ServerReflectionRequest_ListServices{}
	}
	return send(t, conn, method, info, request, pairs)
}

func send(t *testing.T, conn *grpc.ClientConn, method string, info grpc.MethodInfo, request proto.Message, pairs []string) error {
	t.Helper()
	ctx, cancel := context.WithCancel(bare(with(t.Context(), pairs...)))
	defer cancel()
	_, reply := messagesOf(t, method)
	if !info.IsClientStream && !info.IsServerStream {
		return conn.Invoke(ctx, method, request, reply)
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	_ = stream.SendMsg(request) // the server may have answered already
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return stream.RecvMsg(reply)
}

// TestBatchByItsFirstChild: the engine uses the first child's actor token, and so do the rules of
// the methods.
func TestBatchByItsFirstChild(t *testing.T) {
	tokens, _ := stubs(t, granting())
	with, without := &deputyv1.Child{ActorToken: "x"}, &deputyv1.Child{}
	if _, err := tokens.BatchExchange(bare(t.Context()), &deputyv1.BatchExchangeRequest{Children: []*deputyv1.Child{with, without}}); err != nil {
		t.Error(err)
	}
	for _, children := range [][]*deputyv1.Child{nil, {without, with}} {
		_, err := tokens.BatchExchange(bare(t.Context()), &deputyv1.BatchExchangeRequest{Children: children})
		if !is(err, delegation.ClientUnauthenticated) {
			t.Errorf("%d children: %v", len(children), err)
		}
	}
}

// TestCertificateAtTheDoor: a certificate is a credential for the methods that take one. A public
// method accepts a connection with a certificate.
func TestCertificateAtTheDoor(t *testing.T) {
	certificate := credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{{}}}}
	checks := gate{unauthenticated: granting().Unauthenticated}
	for _, info := range []credentials.AuthInfo{nil, credentials.TLSInfo{}, certificate} {
		ctx := peer.NewContext(metadata.NewIncomingContext(t.Context(), nil), &peer.Peer{AuthInfo: info})
		for method, rule := range methods {
			request := proto.Message(&deputyv1.GetCheckpointRequest{})
			err := checks.admitMethod(ctx, method)
			if err == nil {
				err = checks.admitMessage(ctx, method, request)
			}
			with := certified(ctx) || rule == forAnyone
			if e := delegation.AsError(err); (e == nil) != with {
				t.Errorf("%s with %v: %v", method, info, err)
			}
		}
	}
}

// messagesOf returns a method's request and response.
func messagesOf(t *testing.T, method string) (request, reply proto.Message) {
	t.Helper()
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(method[1:], "/", ".")))
	if err != nil {
		t.Fatal(err)
	}
	instance := func(d protoreflect.MessageDescriptor) proto.Message {
		kind, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
		if err != nil {
			t.Fatal(err)
		}
		return kind.New().Interface()
	}
	d := found.(protoreflect.MethodDescriptor)
	return instance(d.Input()), instance(d.Output())
}
