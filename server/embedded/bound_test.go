package embedded

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"testing"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
)

// TestBoundToTheHolder: the proofs of the SDK satisfy Deputy and a tool. A token that was exchanged
// with a key is bound to it, and useless without that key, at Deputy and at the tool.
func TestBoundToTheHolder(t *testing.T) {
	e, _ := start(t, Config{Dir: filepath.Join(t.TempDir(), "data")})
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	root, err := (&demo{Embedded: e, transport: transport}).fetchToken(t.Context(), "people", url.Values{"user": {alice.ID()}})
	if err != nil {
		t.Fatal(err)
	}
	holder, proofKey := connectAs(t, e, planner, true)
	thief, _ := connectAs(t, e, planner, false)
	request := client.ExchangeRequest{
		SubjectToken: client.NewSecret(root),
		Child:        client.Child{Scopes: delegation.Scopes{"calendar.read"}, Audience: []string{calendarAudience}},
	}
	token, err := holder.Exchange(t.Context(), request)
	if err != nil || token.TokenType != "DPoP" {
		t.Fatalf("%+v, %v", token, err)
	}
	in, err := thief.Introspect(t.Context(), token.AccessToken)
	if err != nil || in.Confirmation == nil || in.Confirmation.JKT != proofKey.Thumbprint() {
		t.Errorf("introspection: %+v, %v", in, err)
	}
	request.SubjectToken = token.AccessToken
	_, err = thief.Exchange(t.Context(), request)
	if refusal := delegation.AsError(err); err == nil || refusal.Reason != delegation.ProofRequired {
		t.Errorf("exchanged without the key: %v", err)
	}
	if _, err := holder.Exchange(t.Context(), request); err != nil {
		t.Errorf("negative control: the holder: %v", err)
	}

	// The tool follows revocations with a key of its own, also proven.
	own, _ := connectAs(t, e, calendarServer, true)
	tool := httptest.NewUnstartedServer(nil)
	defer tool.Close()
	address := "http://" + tool.Listener.Addr().String()
	v, err := client.NewVerifier(client.VerifierConfig{Issuer: e.Issuer(), Audience: calendarAudience, Client: own, HTTPTransport: transport, URLs: []string{address}})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if err := v.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	tool.Config.Handler = v.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, _ := client.FromContext(r.Context())
		io.WriteString(w, string(d.Actor()))
	}), "calendar.read")
	tool.Start()
	p, err := client.NewPresenter(client.PresenterConfig{
		Origin: address, ProofKey: proofKey, Transport: transport, Token: func(context.Context) (*client.Token, error) { return token, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Client{Transport: p}).Get(address + "/events")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil || response.StatusCode != http.StatusOK || string(body) != string(planner) {
		t.Errorf("%s: %s, %v", response.Status, body, err)
	}
	for _, scheme := range []string{"Bearer", "DPoP"} {
		stolen, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address+"/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		stolen.Header.Set("Authorization", scheme+" "+token.AccessToken.Reveal())
		response, err := (&http.Client{Transport: transport}).Do(stolen)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusUnauthorized {
			t.Errorf("stolen, and sent as %s: %s", scheme, response.Status)
		}
	}
}

// connectAs connects as one of the clients, whose registered key is also its DPoP key.
func connectAs(t *testing.T, e *Embedded, who delegation.Principal, proving bool) (*client.Client, *dpop.Key) {
	t.Helper()
	key, err := client.LoadKey(e.clientKeyPath(who))
	if err != nil {
		t.Fatal(err)
	}
	credential, err := client.NewAssertion(client.AssertionConfig{Issuer: e.Issuer(), ClientID: string(who), Key: key})
	if err != nil {
		t.Fatal(err)
	}
	cfg := client.Config{Address: e.config.GRPC, Transport: client.PlaintextLoopback, Credential: credential}
	if proving {
		if cfg.ProofKey, err = key.ProofKey(); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, cfg.ProofKey
}
