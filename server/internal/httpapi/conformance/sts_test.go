package conformance

import (
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/sts"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/httpapi"
)

// TestGRPCSTSCredential uses a client of another project: grpc-go's STS credential posts JSON over
// TLS. An agent steps in with its workload JWT, and the credential keeps the token while it is
// valid.
func TestGRPCSTSCredential(t *testing.T) {
	w := newEngine(t)
	tenant := w.Tenant()
	handler, err := httpapi.New(httpapi.Config{Engine: w.Engine, Tenants: []httpapi.Tenant{front(tenant)}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(handler)
	defer server.Close()
	file := func(name, content string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// The credential trusts only the system's roots.
	t.Setenv("SSL_CERT_FILE", file("roots.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))))
	options := sts.Options{
		TokenExchangeServiceURI: server.URL + "/t/acme/oauth2/token",
		Audience:                exchangetest.Calendar,
		Scope:                   "calendar.read",
		SubjectTokenPath:        file("subject", tenant.Root(t, nil)), SubjectTokenType: delegation.TokenTypeAccessToken,
		ActorTokenPath: file("actor", tenant.Workload(t, "builder", tenant.Issuer)), ActorTokenType: delegation.TokenTypeJWT,
	}
	ctx := credentials.NewContextWithRequestInfo(t.Context(), credentials.RequestInfo{
		AuthInfo: credentials.TLSInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}},
	})
	agent, err := sts.NewCredentials(options)
	if err != nil {
		t.Fatal(err)
	}
	first, err := agent.GetRequestMetadata(ctx)
	if err != nil {
		t.Fatal(err)
	}
	token, isBearer := strings.CutPrefix(first["Authorization"], "Bearer ")
	claims, err := decode(token, 1)
	if err != nil || !isBearer || at(claims, "act.sub") != "agent:wl/builder" || claims["sub"] != "user:alice" || claims["scope"] != "calendar.read" {
		t.Errorf("%v %v", claims, err)
	}
	if again, err := agent.GetRequestMetadata(ctx); err != nil || again["Authorization"] != first["Authorization"] {
		t.Errorf("the token was not kept: %v", err)
	}

	options.Scope = "" // the credential then requests its own default scope
	greedy, err := sts.NewCredentials(options)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := greedy.GetRequestMetadata(ctx); err == nil || !strings.Contains(err.Error(), "scope_exceeds_parent") {
		t.Errorf("a scope that alice does not hold: %v", err)
	}
}
