package e2e

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/sts"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// TestSTSCredentialStepsIn makes grpc-go's own STS credential get its tokens from Deputy, over TLS.
// An agent steps in with its workload token and calls a tool that the SDK guards. The credential
// sends JSON, requests no lifetime, and caches no token that lives for less than five minutes.
func TestSTSCredentialStepsIn(t *testing.T) {
	d := deploy(t, plan{reachable: true, tls: true, tenant: "accept_json_sts: true\nlimits: {default_lifetime: 10m}\n"})
	i := d.start()
	tool := d.tool(t, i, "calendar.read")
	calls := healthpb.NewHealthClient(d.dialSTS(t, i, tool, "calendar.read"))
	for range 3 {
		_, err := calls.Check(t.Context(), &healthpb.HealthCheckRequest{})
		check(t, err)
	}
	_, err := healthpb.NewHealthClient(d.dialSTS(t, i, tool, "mail.read")).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err == nil || !strings.Contains(err.Error(), "insufficient_scope") {
		t.Errorf("a token with another scope: %v", err)
	}
	i.stop()
	// One exchange for three calls, and one for the other credential.
	check(t, withLedger(d, func(l *ledger.Ledger) error {
		entries, err := l.Entries(t.Context(), "acme", 0, 10)
		if len(entries) != 2 || entries[0].Actor != planner || entries[0].Subject != alice || entries[0].Scopes.String() != "calendar.read" {
			t.Errorf("the ledger holds %d entries: %+v", len(entries), entries)
		}
		return err
	}))
}

// TestSTSCredentialNeedsTheTenantsLeave is the control: the same without accept_json_sts, and with
// a lifetime that the credential does not cache.
func TestSTSCredentialNeedsTheTenantsLeave(t *testing.T) {
	d := deploy(t, plan{reachable: true, tls: true})
	i := d.start()
	tool := d.tool(t, i, "calendar.read")
	_, err := healthpb.NewHealthClient(d.dialSTS(t, i, tool, "calendar.read")).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err == nil || !strings.Contains(err.Error(), "http status 415") {
		t.Errorf("without accept_json_sts: %v", err)
	}

	d = deploy(t, plan{reachable: true, tls: true, tenant: "accept_json_sts: true\nlimits: {default_lifetime: 4m}\n"})
	i = d.start()
	calls := healthpb.NewHealthClient(d.dialSTS(t, i, d.tool(t, i, "calendar.read"), "calendar.read"))
	for range 2 {
		_, err := calls.Check(t.Context(), &healthpb.HealthCheckRequest{})
		check(t, err)
	}
	i.stop()
	check(t, withLedger(d, func(l *ledger.Ledger) error {
		entries, err := l.Entries(t.Context(), "acme", 0, 10)
		if len(entries) != 2 {
			t.Errorf("two calls with short-lived tokens left %d entries", len(entries))
		}
		return err
	}))
}

// tool is a gRPC server with TLS whose one method needs the scope.
func (d *deployment) tool(t *testing.T, i *instance, scope string) (address string) {
	t.Helper()
	v := d.verifier(i)
	certFile, keyFile := certificate(t)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	check(t, err)
	server := grpc.NewServer(
		grpc.Creds(credentials.NewServerTLSFromCert(&pair)),
		grpc.UnaryInterceptor(v.UnaryServerInterceptor(client.Methods{
			Scopes: map[string]delegation.Scopes{healthpb.Health_Check_FullMethodName: {scope}},
		})),
	)
	healthpb.RegisterHealthServer(server, health.NewServer())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

// dialSTS connects to the tool with an STS credential, which reads a root token and a workload
// token from files.
func (d *deployment) dialSTS(t *testing.T, i *instance, tool, scope string) *grpc.ClientConn {
	t.Helper()
	dir := t.TempDir()
	subject, actor := filepath.Join(dir, "subject.jwt"), filepath.Join(dir, "actor.jwt")
	check(t, os.WriteFile(subject, []byte(d.root().Reveal()), 0o600))
	workload, err := d.identities.WorkloadToken(planner.ID(), false)
	check(t, err)
	check(t, os.WriteFile(actor, []byte(workload), 0o600))
	exchange, err := sts.NewCredentials(sts.Options{
		TokenExchangeServiceURI: "https://" + i.http + "/oauth2/token",
		Audience:                calendarAudience, Scope: scope, RequestedTokenType: delegation.TokenTypeAccessToken,
		SubjectTokenPath: subject, SubjectTokenType: delegation.TokenTypeAccessToken,
		ActorTokenPath: actor, ActorTokenType: delegation.TokenTypeJWT,
	})
	check(t, err)
	conn, err := grpc.NewClient(tool, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{})), grpc.WithPerRPCCredentials(exchange))
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
