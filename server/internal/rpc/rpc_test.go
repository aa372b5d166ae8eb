package rpc

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dial serves the configuration in memory and connects to it.
func dial(t *testing.T, c Config, options ...grpc.DialOption) (*Server, *grpc.ClientConn) {
	t.Helper()
	server, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return server, redial(t, server, options...)
}

// redial returns one more connection to a server, through a listener of its own.
func redial(t *testing.T, server *Server, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	transport := grpc.WithTransportCredentials(insecure.NewCredentials())
	connect := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) })
	conn, err := grpc.NewClient("passthrough:///deputy.example", append([]grpc.DialOption{
		transport, connect, grpc.WithUnaryInterceptor(authenticatedCall), grpc.WithStreamInterceptor(authenticatedStream),
	}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A test may have closed it.
		if err := conn.Close(); err != nil && status.Code(err) != codes.Canceled {
			t.Error(err)
		}
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return conn
}

// bare marks calls that bring no credential but their own. All other calls get one if they have
// none, because the server refuses them without.
func bare(ctx context.Context) context.Context { return context.WithValue(ctx, bareKey{}, true) }

type bareKey struct{}

func authenticated(ctx context.Context, request any) context.Context {
	own, _ := metadata.FromOutgoingContext(ctx)
	with, has := request.(interface {
		GetClient() *deputyv1.ClientAuthentication
	})
	if ctx.Value(bareKey{}) != nil || len(own.Get("authorization")) > 0 || has && with.GetClient() != nil {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer somebody")
}

func authenticatedCall(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if strings.HasPrefix(method, ownMethods) {
		ctx = authenticated(ctx, request)
	}
	return invoke(ctx, method, request, reply, conn, options...)
}

func authenticatedStream(ctx context.Context, d *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	if strings.HasPrefix(method, ownMethods) {
		ctx = authenticated(ctx, nil)
	}
	return open(ctx, d, conn, method, options...)
}

func stubs(t *testing.T, engine Engine) (deputyv1.TokenExchangeServiceClient, deputyv1.AuditServiceClient) {
	t.Helper()
	_, conn := dial(t, Config{Engine: engine})
	return deputyv1.NewTokenExchangeServiceClient(conn), deputyv1.NewAuditServiceClient(conn)
}

func revocations(t *testing.T, c Config) deputyv1.RevocationServiceClient {
	t.Helper()
	_, conn := dial(t, c)
	return deputyv1.NewRevocationServiceClient(conn)
}

func with(ctx context.Context, pairs ...string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, pairs...)
}

func TestExchangeResponse(t *testing.T) {
	engine := granting()
	tokens, _ := stubs(t, engine)
	got, err := tokens.Exchange(t.Context(), &deputyv1.ExchangeRequest{SubjectToken: "subject", Child: &deputyv1.Child{}})
	if err != nil {
		t.Fatal(err)
	}
	want := &deputyv1.ExchangeResponse{
		AccessToken: "signed-secret", IssuedTokenType: delegation.TokenTypeAccessToken, TokenType: "DPoP", ExpiresIn: 300, Scope: "calendar.read",
		AuthorizationDetails: `[{"actions":["read"],"type":"document"}]`, Jti: "01JID", Txn: "01JTXN", Entry: 57,
	}
	if !proto.Equal(got, want) {
		t.Errorf("%v\nwant %v", got, want)
	}
	checked, err := tokens.Exchange(t.Context(), &deputyv1.ExchangeRequest{ValidateOnly: true})
	if err != nil || checked.GetAccessToken() != "" || checked.GetJti() != "" || checked.GetTxn() != "" || checked.GetEntry() != 57 {
		t.Errorf("%v %v", checked, err)
	}
	if call := engine.calls[1]; !call.ValidateOnly || call.Batch || len(call.Children) != 1 || call.Tenant != "" || call.Peer == "" {
		t.Errorf("%+v", call)
	}
}

// TestPresence: in a field with presence, zero is a value. The empty string means absent.
func TestPresence(t *testing.T) {
	engine := granting()
	tokens, _ := stubs(t, engine)
	none := uint32(0)
	for _, child := range []*deputyv1.Child{
		nil,
		{MaxDepth: &none, Uses: &none, RequestedLifetime: durationpb.New(0), Resource: []string{""}, Audience: []string{"", "a"}},
	} {
		if _, err := tokens.Exchange(t.Context(), &deputyv1.ExchangeRequest{Child: child}); err != nil {
			t.Fatal(err)
		}
	}
	absent, zero := engine.calls[0].Children[0], engine.calls[1].Children[0]
	if absent.MaxDepth != nil || absent.Uses != nil || absent.RequestedLifetime != nil || absent.Scope != nil || absent.AuthorizationDetails != nil {
		t.Errorf("%+v", absent)
	}
	if zero.MaxDepth == nil || zero.Uses == nil || zero.RequestedLifetime == nil || zero.Scope != nil || zero.Resource != nil || !slices.Equal(zero.Audience, []string{"a"}) {
		t.Errorf("%+v", zero)
	}
}

func TestBatch(t *testing.T) {
	refusal := delegation.Refuse(delegation.ScopeExceedsParent, "scope", "too much").WithMetadata("scope", "admin")
	refusal.RetryAfter = time.Second
	engine := granting()
	grant := engine.exchange
	engine.exchange = func(ctx context.Context, c exchange.Call) ([]exchange.Outcome, error) {
		outcomes, err := grant(ctx, c)
		if len(outcomes) == 3 {
			outcomes[1] = exchange.Outcome{Err: refusal}
		}
		return outcomes, err
	}
	tokens, _ := stubs(t, engine)
	children := func(n int) *deputyv1.BatchExchangeRequest {
		r := &deputyv1.BatchExchangeRequest{SubjectToken: "subject", IdempotencyKey: "k"}
		for range n {
			r.Children = append(r.Children, &deputyv1.Child{Scope: "a"})
		}
		return r
	}
	got, err := tokens.BatchExchange(t.Context(), children(3))
	if err != nil {
		t.Fatal(err)
	}
	want := &deputyv1.Refusal{
		Error: "invalid_scope", Reason: "scope_exceeds_parent", Description: "too much", Field: "scope",
		Metadata: map[string]string{"scope": "admin"}, RetryAfter: durationpb.New(time.Second),
	}
	if len(got.GetOutcomes()) != 3 || got.Outcomes[0].GetGrant().GetJti() != "01JID" || got.Outcomes[2].GetGrant() == nil || !proto.Equal(got.Outcomes[1].GetRefusal(), want) {
		t.Error(got)
	}
	if call := engine.calls[0]; !call.Batch || len(call.Children) != 3 || call.IdempotencyKey != "k" {
		t.Errorf("%+v", call)
	}
	for _, n := range []int{0, 101} {
		_, err := tokens.BatchExchange(t.Context(), children(n))
		if e := delegation.FromStatus(err); e == nil || e.Reason != delegation.ParameterInvalid || e.Field != "children" {
			t.Errorf("%d children: %v", n, err)
		}
	}
	if _, err := tokens.BatchExchange(t.Context(), children(100)); err != nil {
		t.Errorf("100 children: %v", err)
	}
}

// TestBrokenOutcomes: an engine that breaks its contract causes an internal error, never a success
// without a token.
func TestBrokenOutcomes(t *testing.T) {
	for name, outcomes := range map[string][]exchange.Outcome{
		"none": nil, "two": {{Err: delegation.Refuse(delegation.Internal, "", "")}, {}}, "neither": {{}}, "unsigned": {{Grant: &exchange.Grant{}}},
	} {
		tokens, _ := stubs(t, &script{exchange: func(context.Context, exchange.Call) ([]exchange.Outcome, error) { return outcomes, nil }})
		if _, err := tokens.Exchange(t.Context(), &deputyv1.ExchangeRequest{}); status.Code(err) != codes.Internal {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := tokens.BatchExchange(t.Context(), &deputyv1.BatchExchangeRequest{Children: []*deputyv1.Child{{}}}); status.Code(err) != codes.Internal {
			t.Errorf("%s, batch: %v", name, err)
		}
	}
	_, audit := stubs(t, &script{chain: func(context.Context, exchange.Inquiry) ([]exchange.Recorded, error) { return nil, nil }})
	if _, err := audit.GetChain(t.Context(), &deputyv1.GetChainRequest{}); status.Code(err) != codes.Internal {
		t.Errorf("an empty chain: %v", err)
	}
}

func TestIntrospect(t *testing.T) {
	engine := granting()
	tokens, _ := stubs(t, engine)
	got, err := tokens.Introspect(with(t.Context(), "authorization", "bearer assertion"), &deputyv1.IntrospectRequest{Token: "presented"})
	if err != nil {
		t.Fatal(err)
	}
	want := &deputyv1.IntrospectResponse{
		Active: true, Scope: "calendar.read", ClientId: "agent:researcher", TokenType: "DPoP", Exp: 1795305900, Iat: 1795305600, Nbf: 1795305601,
		Sub: "user:alice", Aud: []string{"https://calendar.example"}, Iss: "https://deputy.example", Jti: "01JID", Txn: "01JTXN",
		Act: []string{"agent:researcher", "agent:planner"}, AuthorizationDetails: `[{"actions":["read"],"type":"document"}]`, DepthLeft: 2,
		Hops: []*deputyv1.Hop{{Jti: "01JP", Entry: 41, Actor: "agent:planner"}, {Jti: "01JID", Entry: 57, Actor: "agent:researcher", Key: "thumb"}},
		Cnf:  &deputyv1.Confirmation{Jkt: "thumb"},
	}
	if !proto.Equal(got, want) {
		t.Errorf("%v\nwant %v", got, want)
	}
	if q := engine.inquiries[0]; !reflect.DeepEqual(q.Credentials, exchange.Credentials{Bearer: "assertion"}) || q.Token != "presented" || q.Peer == "" {
		t.Errorf("%+v", q)
	}
	engine.introspect = func(context.Context, exchange.Inquiry) (exchange.Introspection, error) {
		return exchange.Introspection{}, nil
	}
	if got, err := tokens.Introspect(t.Context(), &deputyv1.IntrospectRequest{}); err != nil || !proto.Equal(got, &deputyv1.IntrospectResponse{}) {
		t.Errorf("inactive: %v %v", got, err)
	}
}

func TestGetChain(t *testing.T) {
	engine := granting()
	_, audit := stubs(t, engine)
	got, err := audit.GetChain(t.Context(), &deputyv1.GetChainRequest{Jti: "01JID", Client: &deputyv1.ClientAuthentication{ClientAssertion: "a", ClientAssertionType: "b", ClientId: "c"}})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1795305600, 0)
	want := &deputyv1.GetChainResponse{Root: "9f2c", Txn: "01JTXN", Subject: "user:alice", Entries: []*deputyv1.Entry{
		{
			Jti: "01JP", Entry: 41, Kind: deputyv1.EntryKind_ENTRY_KIND_GRANT, Outcome: deputyv1.EntryOutcome_ENTRY_OUTCOME_GRANTED,
			Time: timestamppb.New(at), Txn: "01JTXN", Root: "9f2c", Subject: "user:alice", Actor: "agent:planner", Caller: "agent:planner",
			ExpiresAt: timestamppb.New(at.Add(time.Hour)), ActorProof: "caller", State: deputyv1.GrantState_GRANT_STATE_LIVE, LeafHash: make([]byte, 32),
		},
		{
			Jti: "01JID", Parent: "01JP", Entry: 57, Kind: deputyv1.EntryKind_ENTRY_KIND_GRANT, Outcome: deputyv1.EntryOutcome_ENTRY_OUTCOME_GRANTED,
			Time: timestamppb.New(at), Txn: "01JTXN", Root: "9f2c", Subject: "user:alice", Actor: "agent:researcher", Caller: "agent:planner",
			Actors: []string{"agent:planner", "agent:researcher"}, ExpiresAt: timestamppb.New(at.Add(time.Hour)),
			Scope: []string{"calendar.read"}, Audience: []string{"https://calendar.example"}, ActorProof: "actor_jwt", ModelId: "model", TraceId: "trace", Key: "thumb",
			State: deputyv1.GrantState_GRANT_STATE_REVOKED, RevokedBy: 58, LeafHash: make([]byte, 32),
		},
	}}
	if !proto.Equal(got, want) {
		t.Errorf("%v\nwant %v", got, want)
	}
	if q := engine.inquiries[0]; q.ID != "01JID" || !reflect.DeepEqual(q.Credentials, exchange.Credentials{Assertion: "a", AssertionType: "b", ClientID: "c"}) {
		t.Errorf("%+v", q)
	}
}

func TestInvalidDuration(t *testing.T) {
	tokens, _ := stubs(t, granting())
	for _, d := range []*durationpb.Duration{{Seconds: 1, Nanos: -1}, {Nanos: 1_000_000_000}, {Seconds: 1 << 60}} {
		_, err := tokens.Exchange(t.Context(), &deputyv1.ExchangeRequest{Child: &deputyv1.Child{RequestedLifetime: d}})
		if e := delegation.FromStatus(err); e == nil || e.Reason != delegation.ParameterInvalid || e.Field != "requested_lifetime" {
			t.Errorf("%v: %v", d, err)
		}
	}
}

// TestErrors: every kind of error reaches the client without its cause.
func TestErrors(t *testing.T) {
	refusal := delegation.Refuse(delegation.ScopeNotPermitted, "scope", "no").WithMetadata("object", "scope:a")
	for name, c := range map[string]struct {
		err  error
		want delegation.Error
		code codes.Code
	}{
		"typed":     {refusal.WithCause(errors.New("cause-secret")), *refusal, codes.PermissionDenied},
		"wrapped":   {fmt.Errorf("outer-secret: %w", refusal), *refusal, codes.PermissionDenied},
		"untyped":   {errors.New("cause-secret"), delegation.Error{Reason: delegation.Internal}, codes.Internal},
		"a status":  {status.Error(codes.NotFound, "cause-secret"), delegation.Error{Reason: delegation.Internal}, codes.Internal},
		"temporary": {delegation.Unavailable("policy", errors.New("cause-secret")), delegation.Error{Reason: delegation.DependencyDown, RetryAfter: time.Second}, codes.Unavailable},
	} {
		tokens, _ := stubs(t, &script{exchange: func(context.Context, exchange.Call) ([]exchange.Outcome, error) { return nil, c.err }})
		_, err := tokens.Exchange(t.Context(), &deputyv1.ExchangeRequest{})
		got := delegation.FromStatus(err)
		if status.Code(err) != c.code || got.Reason != c.want.Reason || got.Field != c.want.Field || got.RetryAfter != c.want.RetryAfter || !maps.Equal(got.Metadata, c.want.Metadata) {
			t.Errorf("%s: %v %+v", name, err, got)
		}
		if strings.Contains(fmt.Sprint(status.Convert(err).Proto()), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPanicTraceAndLog: a panic is an internal error without details, and neither log nor spans
// hold a credential.
func TestPanicTraceAndLog(t *testing.T) {
	var log bytes.Buffer
	spans := tracetest.NewSpanRecorder()
	engine := granting()
	grant := engine.exchange
	engine.exchange = func(ctx context.Context, c exchange.Call) ([]exchange.Outcome, error) {
		if c.SubjectToken == "panic-secret" {
			panic(c.SubjectToken)
		}
		return grant(ctx, c)
	}
	server, conn := dial(t, Config{
		Engine: engine, Logger: slog.New(slog.NewJSONHandler(&log, nil)),
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)),
	})
	tokens := deputyv1.NewTokenExchangeServiceClient(conn)
	const parent = "4bf92f3577b34da6a3ce929d0e0e4736"
	ctx := with(t.Context(), "traceparent", "00-"+parent+"-00f067aa0ba902b7-01", "authorization", "Bearer assertion-secret")
	if _, err := tokens.Exchange(ctx, &deputyv1.ExchangeRequest{SubjectToken: "subject-secret"}); err != nil {
		t.Fatal(err)
	}
	_, err := tokens.Exchange(ctx, &deputyv1.ExchangeRequest{SubjectToken: "panic-secret"})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
	server.Drain(t.Context()) // the log and the traces are complete
	text := log.String()
	for _, span := range spans.Ended() {
		text += fmt.Sprint(span.Name(), span.Attributes(), span.Events())
		if span.SpanContext().TraceID().String() != parent {
			t.Errorf("trace %s", span.SpanContext().TraceID())
		}
	}
	if strings.Contains(text, "secret") || !strings.Contains(text, parent) || !strings.Contains(text, `"reason":"internal"`) || len(spans.Ended()) != 2 {
		t.Error(text)
	}
}

func TestHealthAndReflection(t *testing.T) {
	server, conn := dial(t, Config{Engine: granting()})
	health := healthpb.NewHealthClient(conn)
	check := func(service string) healthpb.HealthCheckResponse_ServingStatus {
		r, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetStatus()
	}
	services := []string{"", "deputy.v1.TokenExchangeService", "deputy.v1.AuditService", "deputy.v1.RevocationService"}
	for _, serving := range []bool{false, true, false} {
		server.SetServing(serving)
		for _, service := range services {
			if got := check(service); (got == healthpb.HealthCheckResponse_SERVING) != serving {
				t.Errorf("%q: %v", service, got)
			}
		}
	}
	if err := reflects(t, conn); status.Code(err) != codes.Unimplemented {
		t.Errorf("reflection answers: %v", err)
	}
	_, open := dial(t, Config{Engine: granting(), Reflection: true})
	if err := reflects(t, open); err != nil {
		t.Errorf("reflection was configured: %v", err)
	}
}

func reflects(t *testing.T, conn *grpc.ClientConn) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		return err
	}
	// After io.EOF, Recv returns the cause.
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_, err = stream.Recv()
	return err
}

// TestDrain: a running call is waited for. A call that does not end is cut off at the deadline.
func TestDrain(t *testing.T) {
	started, finish := make(chan struct{}, 1), make(chan struct{})
	engine := granting()
	grant := engine.exchange
	engine.exchange = func(ctx context.Context, c exchange.Call) ([]exchange.Outcome, error) {
		started <- struct{}{}
		select {
		case <-finish:
		case <-ctx.Done():
			return nil, delegation.Unavailable("policy", ctx.Err())
		}
		return grant(ctx, c)
	}
	run := func(t *testing.T, patience context.Context, meanwhile func()) error {
		server, conn := dial(t, Config{Engine: engine})
		result := make(chan error, 1)
		go func() {
			_, err := deputyv1.NewTokenExchangeServiceClient(conn).Exchange(t.Context(), &deputyv1.ExchangeRequest{})
			result <- err
		}()
		<-started
		go meanwhile()
		server.Drain(patience)
		return <-result
	}
	cut, giveUp := context.WithCancel(t.Context())
	if err := run(t, cut, giveUp); status.Code(err) != codes.Unavailable {
		t.Errorf("cut off: %v", err)
	}
	if err := run(t, t.Context(), func() { close(finish) }); err != nil {
		t.Errorf("waited for: %v", err)
	}
}

func TestBounds(t *testing.T) {
	tokens, _ := stubs(t, granting())
	_, err := tokens.Exchange(t.Context(), &deputyv1.ExchangeRequest{SubjectToken: strings.Repeat("a", maxMessageBytes)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message of a mebibyte: %v", err)
	}
	batch := &deputyv1.BatchExchangeRequest{SubjectToken: strings.Repeat("a", delegation.MaxTokenBytes)}
	for range maxChildren {
		batch.Children = append(batch.Children, &deputyv1.Child{ActorToken: strings.Repeat("a", delegation.MaxTokenBytes)})
	}
	if _, err := tokens.BatchExchange(t.Context(), batch); err != nil {
		t.Errorf("the largest batch: %v", err)
	}
	if _, err := tokens.Exchange(with(t.Context(), "x", strings.Repeat("a", maxMetadataBytes)), &deputyv1.ExchangeRequest{}); err == nil {
		t.Error("metadata beyond the bound are accepted")
	}
}

// TestTimeout: of the client's deadline and the server's, the earlier one reaches the engine.
func TestTimeout(t *testing.T) {
	left := make(chan time.Duration, 1)
	engine := granting()
	grant := engine.exchange
	engine.exchange = func(ctx context.Context, c exchange.Call) ([]exchange.Outcome, error) {
		deadline, bounded := ctx.Deadline()
		if !bounded {
			t.Error("no deadline")
		}
		left <- time.Until(deadline)
		return grant(ctx, c)
	}
	_, conn := dial(t, Config{Engine: engine, Timeout: time.Minute})
	tokens := deputyv1.NewTokenExchangeServiceClient(conn)
	for _, given := range []time.Duration{time.Hour, 20 * time.Second} {
		ctx, cancel := context.WithTimeout(t.Context(), given)
		if _, err := tokens.Exchange(ctx, &deputyv1.ExchangeRequest{}); err != nil {
			t.Error(err)
		}
		cancel()
		if got := <-left; got > min(given, time.Minute) || got < min(given, time.Minute)-10*time.Second {
			t.Errorf("%s given, %s left", given, got)
		}
	}
}

func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"deputy.example"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	config := Config{Engine: granting(), TLS: credentials.NewServerTLSFromCert(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})}
	_, conn := dial(t, config, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots})))
	if _, err := deputyv1.NewTokenExchangeServiceClient(conn).Exchange(t.Context(), &deputyv1.ExchangeRequest{}); err != nil {
		t.Error(err)
	}
	_, plain := dial(t, config)
	if _, err := deputyv1.NewTokenExchangeServiceClient(plain).Exchange(t.Context(), &deputyv1.ExchangeRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("without TLS: %v", err)
	}
}

func TestNewNeedsAnEngine(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("accepted")
	}
}
