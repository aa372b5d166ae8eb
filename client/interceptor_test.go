package client

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
)

const (
	healthCheck = "/grpc.health.v1.Health/Check"
	healthWatch = "/grpc.health.v1.Health/Watch"
)

// TestInterceptors uses gRPC's health service as the tool: it has a unary and a streaming method.
func TestInterceptors(t *testing.T) {
	s := startDeputy(t)
	v := fixedVerifier(t, s)
	token := "Bearer " + s.Token(s.Claims(time.Now()))
	tests := map[string]struct {
		methods       Methods
		authorization []string
		want          codes.Code
	}{
		"a good token":         {scoped("calendar.read"), []string{token}, codes.OK},
		"no scope needed":      {scoped(), []string{token}, codes.OK},
		"no scope, no token":   {scoped(), nil, codes.Unauthenticated},
		"a scope it lacks":     {scoped("mail.read"), []string{token}, codes.PermissionDenied},
		"nonsense":             {scoped(), []string{"Bearer x"}, codes.Unauthenticated},
		"two tokens":           {scoped(), []string{token, token}, codes.InvalidArgument},
		"no rule":              {Methods{}, []string{token}, codes.PermissionDenied},
		"a rule for a sibling": {Methods{Public: []string{healthCheck + "s"}}, nil, codes.PermissionDenied},
		"public":               {Methods{Public: []string{healthCheck, healthWatch}}, nil, codes.OK},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			tool := startTool(t, v, test.methods)
			ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(t.Context(), metadata.MD{"authorization": test.authorization}), 10*time.Second)
			defer cancel()
			_, err := tool.Check(ctx, &healthpb.HealthCheckRequest{})
			if status.Code(err) != test.want {
				t.Errorf("unary: %v, want %v", err, test.want)
			}
			stream, err := tool.Watch(ctx, &healthpb.HealthCheckRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			if status.Code(err) != test.want {
				t.Errorf("stream: %v, want %v", err, test.want)
			}
		})
	}
}

// TestStreamEndsOnTheWire: the caller gets the ends of streams that TestStreamEnds checks inside.
func TestStreamEndsOnTheWire(t *testing.T) {
	s := startDeputy(t)
	v := knowing(t, s, time.Now)
	tool := startTool(t, v, scoped("calendar.read"))
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+s.Token(s.Claims(time.Now()))), 10*time.Second)
	defer cancel()
	stream, err := tool.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	v.feed.known.Load().set.Apply(ban(100, "jti-1"))
	v.feed.advance(100)
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied || !strings.Contains(status.Convert(err).Message(), "revoked") {
		t.Errorf("err = %v", err)
	}
}

func scoped(scopes ...string) Methods {
	return Methods{Scopes: map[string]delegation.Scopes{healthCheck: scopes, healthWatch: scopes}}
}

// startTool serves behind the interceptors and checks the delegation there.
func startTool(t *testing.T, v *Verifier, methods Methods) healthpb.HealthClient {
	t.Helper()
	public := len(methods.Public) > 0
	look := func(ctx context.Context) {
		if d, ok := FromContext(ctx); ok == public || ok && d.Subject() != "user:alice" {
			t.Errorf("behind the interceptor: %v, %v", d, ok)
		}
	}
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(v.UnaryServerInterceptor(methods), func(ctx context.Context, r any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			look(ctx)
			return next(ctx, r)
		}),
		grpc.ChainStreamInterceptor(v.StreamServerInterceptor(methods), func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			look(stream.Context())
			return next(srv, stream)
		}),
	)
	healthpb.RegisterHealthServer(server, health.NewServer())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return healthpb.NewHealthClient(conn)
}
