package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

func post(path string, form url.Values, headers ...string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", mediaForm)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

func exchangeForm() url.Values {
	return url.Values{
		"grant_type":    {delegation.GrantTypeTokenExchange},
		"subject_token": {"subject-secret"}, "subject_token_type": {delegation.TokenTypeAccessToken},
		"client_assertion": {"assertion-secret"}, "client_assertion_type": {delegation.ClientAssertionTypeJWTBearer},
	}
}

func answerTo(t *testing.T, h http.Handler, r *http.Request) (*httptest.ResponseRecorder, map[string]any) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	body := make(map[string]any)
	if w.Body.Len() > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
			t.Fatalf("%d %q: %v", w.Code, w.Body, err)
		}
	}
	return w, body
}

// TestTokenResponse checks the whole answer, member by member (RFC 8693 §2.2.1, RFC 9396 §7).
func TestTokenResponse(t *testing.T) {
	h := newHandler(t, Config{Engine: granting(t)})
	w, got := answerTo(t, h, post("/t/acme/oauth2/token", exchangeForm()))
	want := map[string]any{
		"access_token": signedToken, "issued_token_type": delegation.TokenTypeAccessToken, "token_type": "Bearer",
		"expires_in": 300.0, "scope": "calendar.read calendar.write", "jti": "01JID", "txn": "01JTXN", "entry": 57.0,
		"authorization_details": []any{map[string]any{"type": "document", "actions": []any{"read"}}},
	}
	if w.Code != http.StatusOK || !reflect.DeepEqual(got, want) {
		t.Errorf("%d %v\nwant %v", w.Code, got, want)
	}
}

func TestTokenResponseVariants(t *testing.T) {
	t.Run("validate_only answers without a token", func(t *testing.T) {
		form := exchangeForm()
		form.Set("validate_only", "true")
		_, got := answerTo(t, newHandler(t, Config{Engine: granting(t)}), post("/oauth2/token", form))
		for _, absent := range []string{"access_token", "jti", "txn"} {
			if _, there := got[absent]; there {
				t.Errorf("%s is there: %v", absent, got)
			}
		}
		if got["validate_only"] != true || got["entry"] != 57.0 {
			t.Error(got)
		}
	})
	t.Run("no scope is an empty scope, not an absent one", func(t *testing.T) {
		engine := granting(t)
		grant := engine.exchange
		engine.exchange = func(ctx context.Context, c exchange.Call) ([]exchange.Outcome, error) {
			outcomes, err := grant(ctx, c)
			outcomes[0].Grant.Claims.Scope = nil
			return outcomes, err
		}
		_, got := answerTo(t, newHandler(t, Config{Engine: engine}), post("/oauth2/token", exchangeForm()))
		if scope, there := got["scope"]; !there || scope != "" {
			t.Errorf("scope %v", scope)
		}
	})
	t.Run("a bound token says that it needs a proof", func(t *testing.T) {
		engine := granting(t)
		grant := engine.exchange
		engine.exchange = func(ctx context.Context, c exchange.Call) ([]exchange.Outcome, error) {
			outcomes, err := grant(ctx, c)
			outcomes[0].Grant.Claims.Confirmation = &delegation.Confirmation{JKT: "thumb"}
			return outcomes, err
		}
		_, got := answerTo(t, newHandler(t, Config{Engine: engine}), post("/oauth2/token", exchangeForm()))
		if got["token_type"] != "DPoP" {
			t.Error(got)
		}
	})
}

// TestBrokenOutcomes: an engine that breaks its contract causes an internal error, never a success
// without a token.
func TestBrokenOutcomes(t *testing.T) {
	for name, outcomes := range map[string][]exchange.Outcome{
		"none":            nil,
		"two":             {{Grant: &exchange.Grant{AccessToken: "x"}}, {Grant: &exchange.Grant{AccessToken: "y"}}},
		"neither":         {{}},
		"an unsigned one": {{Grant: &exchange.Grant{}}},
	} {
		engine := &script{exchange: func(context.Context, exchange.Call) ([]exchange.Outcome, error) { return outcomes, nil }}
		w, got := answerTo(t, newHandler(t, Config{Engine: engine}), post("/oauth2/token", exchangeForm()))
		if w.Code != http.StatusInternalServerError || got["error"] != "server_error" || got["access_token"] != nil {
			t.Errorf("%s: %d %v", name, w.Code, got)
		}
	}
	form := exchangeForm()
	form.Set("validate_only", "true")
	engine := &script{exchange: func(context.Context, exchange.Call) ([]exchange.Outcome, error) {
		return []exchange.Outcome{{Grant: &exchange.Grant{AccessToken: "x"}}}, nil
	}}
	if w, got := answerTo(t, newHandler(t, Config{Engine: engine}), post("/oauth2/token", form)); w.Code != http.StatusInternalServerError || got["access_token"] != nil {
		t.Errorf("a token with validate_only: %d %v", w.Code, got)
	}
}

// TestEveryReasonOnTheWire: every reason is sent with the status, the error and the headers of its
// registration.
func TestEveryReasonOnTheWire(t *testing.T) {
	for _, reason := range registeredReasons(t) {
		refusal := delegation.Refuse(reason, "scope", "why").WithMetadata("object", "scope:a").WithCause(errors.New("cause-secret"))
		refusal.RetryAfter = 1500 * time.Millisecond
		engine := &script{exchange: func(context.Context, exchange.Call) ([]exchange.Outcome, error) {
			return []exchange.Outcome{{Err: refusal}}, nil
		}}
		w, got := answerTo(t, newHandler(t, Config{Engine: engine}), post("/oauth2/token", exchangeForm()))
		want := map[string]any{
			"error": reason.Wire().OAuth, "error_description": "why", "reason": string(reason), "field": "scope",
			"metadata": map[string]any{"object": "scope:a"},
		}
		if w.Code != reason.Wire().HTTP || !reflect.DeepEqual(got, want) || w.Header().Get("Retry-After") != "2" {
			t.Errorf("%s: %d %v %v", reason, w.Code, got, w.Header())
		}
		if (w.Code == http.StatusUnauthorized) != (w.Header().Get("WWW-Authenticate") != "") {
			t.Errorf("%s: %d with WWW-Authenticate %q", reason, w.Code, w.Header().Get("WWW-Authenticate"))
		}
	}
}

func TestPathsAreExact(t *testing.T) {
	h := newHandler(t, Config{Engine: granting(t)})
	for _, path := range []string{"/", "/t/acme", "/t/acme/", "/t/other/oauth2/token", "//oauth2/token", "/oauth2/token/", "/OAuth2/token", "/oauth2/%74oken", "/t/acme/../oauth2/token", "/console"} {
		w, got := answerTo(t, h, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != http.StatusNotFound || got["reason"] != "not_found" || w.Header().Get("Allow") != "" || w.Header().Get("Location") != "" {
			t.Errorf("%s: %d %v", path, w.Code, got)
		}
	}
	for _, path := range []string{"/oauth2/token", "/t/acme/oauth2/token"} {
		if w, _ := answerTo(t, h, post(path, exchangeForm())); w.Code != http.StatusOK {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

func TestNewRefusesTenantsThatCannotBeToldApart(t *testing.T) {
	keys := func() []byte { return nil }
	for name, all := range map[string][]Tenant{
		"same path":        {{Name: "a", Issuer: "https://a.example", JWKS: keys}, {Name: "b", Issuer: "https://b.example/", JWKS: keys}},
		"a query":          {{Name: "a", Issuer: "https://a.example?x", JWKS: keys}},
		"a fragment":       {{Name: "a", Issuer: "https://a.example#x", JWKS: keys}},
		"user info":        {{Name: "a", Issuer: "https://u@a.example", JWKS: keys}},
		"no scheme":        {{Name: "a", Issuer: "a.example", JWKS: keys}},
		"another scheme":   {{Name: "a", Issuer: "ftp://a.example", JWKS: keys}},
		"no keys":          {{Name: "a", Issuer: "https://a.example"}},
		"no name":          {{Issuer: "https://a.example", JWKS: keys}},
		"in another's way": {{Name: "a", Issuer: "https://a.example/.well-known/oauth-authorization-server/oauth2", JWKS: keys}, {Name: "b", Issuer: "https://a.example/oauth2/jwks", JWKS: keys}, {Name: "c", Issuer: "https://a.example/oauth2/jwks", JWKS: keys}},
	} {
		if _, err := New(Config{Engine: granting(t), Tenants: all}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(Config{Tenants: tenants()}); err == nil {
		t.Error("no engine: accepted")
	}
}

// TestMetadata checks the address, the exact issuer, and that nothing absent is offered (RFC 8414
// §2, §3).
func TestMetadata(t *testing.T) {
	h := newHandler(t, Config{Engine: granting(t)})
	w, got := answerTo(t, h, httptest.NewRequest(http.MethodGet, "/.well-known/oauth-authorization-server/t/acme", nil))
	want := map[string]any{
		"issuer": acmeIssuer, "token_endpoint": acmeIssuer + "/oauth2/token", "jwks_uri": acmeIssuer + "/oauth2/jwks",
		"introspection_endpoint": acmeIssuer + "/oauth2/introspect", "revocation_endpoint": acmeIssuer + "/oauth2/revoke",
		"grant_types_supported": []any{delegation.GrantTypeTokenExchange}, "response_types_supported": []any{},
		"authorization_details_types_supported":                    []any{"document"},
		"dpop_signing_alg_values_supported":                        []any{"ES256", "ES384", "ES512", "EdDSA", "Ed25519", "RS256", "PS256"},
		"token_endpoint_auth_methods_supported":                    []any{"private_key_jwt"},
		"token_endpoint_auth_signing_alg_values_supported":         []any{"ES256", "EdDSA"},
		"introspection_endpoint_auth_methods_supported":            []any{"private_key_jwt", "Bearer"},
		"introspection_endpoint_auth_signing_alg_values_supported": []any{"ES256", "EdDSA"},
		"revocation_endpoint_auth_methods_supported":               []any{"private_key_jwt", "Bearer"},
		"revocation_endpoint_auth_signing_alg_values_supported":    []any{"ES256", "EdDSA"},
	}
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" || !reflect.DeepEqual(got, want) {
		t.Errorf("%d %v\nwant %v", w.Code, got, want)
	}
	for _, name := range []string{"token_endpoint", "introspection_endpoint", "revocation_endpoint", "jwks_uri"} {
		u, err := url.Parse(got[name].(string))
		if err != nil || h.endpoints[u.Path] == nil {
			t.Errorf("%s is advertised and not there", name)
		}
	}
	_, root := answerTo(t, h, httptest.NewRequest(http.MethodGet, "/.well-known/oauth-authorization-server", nil))
	if root["issuer"] != rootIssuer || root["authorization_details_types_supported"] != nil {
		t.Error(root)
	}
}

// TestIssuerWithTrailingSlash: a trailing slash is part of the issuer's name and not of its
// addresses (RFC 8414 §3.1).
func TestIssuerWithTrailingSlash(t *testing.T) {
	h := newHandler(t, Config{Engine: granting(t), Tenants: []Tenant{{Name: "a", Issuer: "https://a.example/x/", JWKS: func() []byte { return nil }}}})
	_, got := answerTo(t, h, httptest.NewRequest(http.MethodGet, "/.well-known/oauth-authorization-server/x", nil))
	if got["issuer"] != "https://a.example/x/" || got["token_endpoint"] != "https://a.example/x/oauth2/token" {
		t.Error(got)
	}
}

// TestMetadataWithoutClients: without registered clients no assertion is possible, so none is
// offered.
func TestMetadataWithoutClients(t *testing.T) {
	h := newHandler(t, Config{Engine: granting(t), Tenants: []Tenant{{Name: "a", Issuer: rootIssuer, JWKS: func() []byte { return nil }}}})
	_, got := answerTo(t, h, httptest.NewRequest(http.MethodGet, "/.well-known/oauth-authorization-server", nil))
	if !reflect.DeepEqual(got["token_endpoint_auth_methods_supported"], []any{"none"}) ||
		!reflect.DeepEqual(got["introspection_endpoint_auth_methods_supported"], []any{"Bearer"}) ||
		got["token_endpoint_auth_signing_alg_values_supported"] != nil {
		t.Error(got)
	}
}

// TestMetadataOfCertificates: certificates are offered where some client has one, and binding to
// them where clients can present one (RFC 8705 §2.1.1, §2.2.1 and §3.3).
func TestMetadataOfCertificates(t *testing.T) {
	for name, c := range map[string]struct {
		tenant        Tenant
		token, others []any
		bound         any
	}{
		"certificates alone": {Tenant{CertificateMethods: []string{"tls_client_auth"}, CertificateBound: true}, []any{"tls_client_auth"}, []any{"tls_client_auth", "Bearer"}, true},
		"keys beside": {Tenant{CertificateMethods: []string{"self_signed_tls_client_auth", "tls_client_auth"}, AssertionAlgorithms: []string{"ES256"}, CertificateBound: true},
			[]any{"private_key_jwt", "self_signed_tls_client_auth", "tls_client_auth"}, []any{"private_key_jwt", "self_signed_tls_client_auth", "tls_client_auth", "Bearer"}, true},
		"binding alone": {Tenant{CertificateBound: true}, []any{"none"}, []any{"Bearer"}, true},
	} {
		c.tenant.Name, c.tenant.Issuer, c.tenant.JWKS = "a", rootIssuer, func() []byte { return nil }
		h := newHandler(t, Config{Engine: granting(t), Tenants: []Tenant{c.tenant}})
		_, got := answerTo(t, h, httptest.NewRequest(http.MethodGet, "/.well-known/oauth-authorization-server", nil))
		if !reflect.DeepEqual(got["token_endpoint_auth_methods_supported"], c.token) ||
			!reflect.DeepEqual(got["introspection_endpoint_auth_methods_supported"], c.others) ||
			!reflect.DeepEqual(got["revocation_endpoint_auth_methods_supported"], c.others) ||
			got["tls_client_certificate_bound_access_tokens"] != c.bound {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestJWKS(t *testing.T) {
	h := newHandler(t, Config{Engine: granting(t)})
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		w, _ := answerTo(t, h, httptest.NewRequest(method, "/t/acme/oauth2/jwks", nil))
		if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/jwk-set+json" || w.Header().Get("Cache-Control") != "public, max-age=30" {
			t.Errorf("%s: %d %v", method, w.Code, w.Header())
		}
	}
	if w, _ := answerTo(t, h, httptest.NewRequest(http.MethodPost, "/oauth2/jwks", nil)); w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %d %v", w.Code, w.Header())
	}
	empty := newHandler(t, Config{Engine: granting(t), Tenants: []Tenant{{Name: "a", Issuer: rootIssuer, JWKS: func() []byte { return nil }}}})
	if w, _ := answerTo(t, empty, httptest.NewRequest(http.MethodGet, "/oauth2/jwks", nil)); w.Code != http.StatusServiceUnavailable || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("no keys: %d %v", w.Code, w.Header())
	}
}

// TestPanic: a panic in an endpoint is an internal error without details, and the log has no text
// of the request.
func TestPanic(t *testing.T) {
	var log bytes.Buffer
	engine := &script{exchange: func(_ context.Context, c exchange.Call) ([]exchange.Outcome, error) { panic(c.SubjectToken) }}
	h := newHandler(t, Config{Engine: engine, Logger: slog.New(slog.NewJSONHandler(&log, nil))})
	w, got := answerTo(t, h, post("/oauth2/token", exchangeForm()))
	if w.Code != http.StatusInternalServerError || got["reason"] != "internal" || strings.Contains(w.Body.String(), "secret") {
		t.Errorf("%d %v", w.Code, got)
	}
	if !strings.Contains(log.String(), "panic") || strings.Contains(log.String(), "secret") {
		t.Error(log.String())
	}
}

// TestTimeout: the engine receives the handler's deadline.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := &script{exchange: func(ctx context.Context, _ exchange.Call) ([]exchange.Outcome, error) {
			<-ctx.Done()
			return nil, delegation.Unavailable("policy", ctx.Err())
		}}
		began := time.Now()
		h := newHandler(t, Config{Engine: engine, Timeout: 3 * time.Second})
		w, got := answerTo(t, h, post("/oauth2/token", exchangeForm()))
		if w.Code != http.StatusServiceUnavailable || got["error"] != "temporarily_unavailable" || w.Header().Get("Retry-After") != "1" || time.Since(began) != 3*time.Second {
			t.Errorf("%d %v after %s", w.Code, got, time.Since(began))
		}
	})
}

// TestTraceAndLog: the caller's trace is continued. Of the request, the log and the span hold only
// its route.
func TestTraceAndLog(t *testing.T) {
	var log bytes.Buffer
	spans := tracetest.NewSpanRecorder()
	h := newHandler(t, Config{
		Engine: granting(t), Logger: slog.New(slog.NewJSONHandler(&log, nil)),
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)),
	})
	const parent = "4bf92f3577b34da6a3ce929d0e0e4736"
	requests := []*http.Request{
		post("/t/acme/oauth2/token", exchangeForm(), "Traceparent", "00-"+parent+"-00f067aa0ba902b7-01"),
		post("/t/acme/oauth2/token?subject_token=query-secret", exchangeForm()),
		post("/t/acme/oauth2/token", exchangeForm(), "Authorization", "Basic header-secret"),
		post("/path-secret", exchangeForm()),
		httptest.NewRequest("METHOD-secret", "/oauth2/token", nil),
	}
	for _, r := range requests {
		w, _ := answerTo(t, h, r)
		if strings.Contains(w.Body.String(), "secret") {
			t.Errorf("answered %s", w.Body)
		}
	}
	if got := spans.Ended(); len(got) != len(requests) || got[0].SpanContext().TraceID().String() != parent {
		t.Errorf("%d spans", len(got))
	}
	for _, span := range spans.Ended() {
		for _, attr := range span.Attributes() {
			log.WriteString(attr.Value.String())
		}
		log.WriteString(span.Name())
	}
	if text := log.String(); strings.Contains(text, "secret") || strings.Contains(text, signedToken) || !strings.Contains(text, parent) {
		t.Error(text)
	}
}

func TestIntrospection(t *testing.T) {
	form := url.Values{"token": {"presented-token"}, "token_type_hint": {"anything"}}
	t.Run("the claims as they stand in the token", func(t *testing.T) {
		engine := granting(t)
		_, got := answerTo(t, newHandler(t, Config{Engine: engine}), post("/t/acme/oauth2/introspect", form, "Authorization", "bearer assertion"))
		claims, err := json.Marshal(sampleClaims(t))
		if err != nil {
			t.Fatal(err)
		}
		want := make(map[string]any)
		if err := json.Unmarshal(claims, &want); err != nil {
			t.Fatal(err)
		}
		want["active"], want["token_type"] = true, "Bearer"
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%v\nwant %v", got, want)
		}
		if act, nested := got["act"].(map[string]any); !nested || act["sub"] != "agent:researcher" {
			t.Error("act is not nested, current actor outermost")
		}
		if q := engine.inquiries[0]; q.Tenant != "acme" || q.Credentials.Bearer != "assertion" || q.Token != "presented-token" {
			t.Errorf("%+v", q)
		}
	})
	t.Run("client_assertion in the form", func(t *testing.T) {
		engine := granting(t)
		full := url.Values{"token": {"t"}, "client_assertion": {"a"}, "client_assertion_type": {"b"}, "client_id": {"c"}}
		answerTo(t, newHandler(t, Config{Engine: engine}), post("/oauth2/introspect", full))
		if want := (exchange.Credentials{Assertion: "a", AssertionType: "b", ClientID: "c"}); !reflect.DeepEqual(engine.inquiries[0].Credentials, want) {
			t.Errorf("%+v", engine.inquiries[0])
		}
	})
	t.Run("an inactive token has one member", func(t *testing.T) {
		engine := granting(t)
		engine.introspect = func(context.Context, exchange.Inquiry) (exchange.Introspection, error) {
			return exchange.Introspection{}, nil
		}
		w, _ := answerTo(t, newHandler(t, Config{Engine: engine}), post("/oauth2/introspect", form))
		if w.Code != http.StatusOK || w.Body.String() != `{"active":false}` || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
	for _, c := range []struct {
		name    string
		form    url.Values
		headers []string
		path    string
		reason  string
	}{
		{"two ways at once", url.Values{"token": {"t"}, "client_assertion": {"a"}}, []string{"Authorization", "Bearer x"}, "", "parameter_conflict"},
		{"two headers", form, []string{"Authorization", "Bearer x", "Authorization", "Bearer y"}, "", "client_unauthenticated"},
		{"client_secret_basic", form, []string{"Authorization", "Basic eDp5"}, "", "client_unauthenticated"},
		{"two credentials in one header", form, []string{"Authorization", "Bearer x, Bearer y"}, "", "client_unauthenticated"},
		{"no credential in the header", form, []string{"Authorization", "Bearer "}, "", "client_unauthenticated"},
		{"two proofs", form, []string{"DPoP", "x", "DPoP", "x"}, "", "parameter_repeated"},
		{"client_secret_post", url.Values{"token": {"t"}, "client_secret": {"s"}}, nil, "", "parameter_unsupported"},
		{"two tokens", url.Values{"token": {"t", "u"}}, nil, "", "parameter_repeated"},
		{"a query", form, nil, "?token=t", "parameter_invalid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			engine := granting(t)
			_, got := answerTo(t, newHandler(t, Config{Engine: engine}), post("/oauth2/introspect"+c.path, c.form, c.headers...))
			if got["reason"] != c.reason || len(engine.inquiries) > 0 {
				t.Errorf("%v", got)
			}
		})
	}
}

func TestOps(t *testing.T) {
	ok := func(context.Context) error { return nil }
	get := func(t *testing.T, checks map[string]func(context.Context) error, path string) (int, string) {
		t.Helper()
		w := httptest.NewRecorder()
		Ops(checks, prometheus.NewRegistry()).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	t.Run("everything is there", func(t *testing.T) {
		if code, body := get(t, map[string]func(context.Context) error{"redis": ok, "ledger": ok}, "/readyz"); code != 200 || body != `{"ready":true}` {
			t.Error(code, body)
		}
	})
	t.Run("what is missing is named, and only named", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			began, late := time.Now(), make(chan struct{})
			code, body := get(t, map[string]func(context.Context) error{
				"ledger": ok,
				"redis":  func(context.Context) error { return errors.New("dial redis-secret") },
				// This check answers only after the deadline, when no code waits for it.
				"openfga": func(ctx context.Context) error {
					<-ctx.Done()
					<-late
					return nil
				},
				"broken":  func(context.Context) error { panic("secret") },
				"nothing": nil,
			}, "/readyz")
			if code != http.StatusServiceUnavailable || body != `{"ready":false,"missing":["broken","nothing","openfga","redis"]}` || time.Since(began) != readyDeadline {
				t.Error(code, body, time.Since(began))
			}
			close(late)
			synctest.Wait() // the late check ends too
		})
	})
	t.Run("liveness does not ask anyone", func(t *testing.T) {
		if code, body := get(t, map[string]func(context.Context) error{"redis": nil}, "/healthz"); code != 200 || body != `{"status":"ok"}` {
			t.Error(code, body)
		}
	})
	t.Run("metrics", func(t *testing.T) {
		if code, _ := get(t, nil, "/metrics"); code != 200 {
			t.Error(code)
		}
	})
	t.Run("nothing else", func(t *testing.T) {
		if code, _ := get(t, nil, "/debug/pprof/"); code != 404 {
			t.Error(code)
		}
	})
}

// TestServerRefusesGiantBody: the bounds hold on a real connection too. The server closes the
// connection of a refused giant body.
func TestServerRefusesGiantBody(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	server.Config = NewServer(newHandler(t, Config{Engine: granting(t)}), nil, slog.New(slog.DiscardHandler))
	server.Start()
	defer server.Close()
	body := io.LimitReader(endless{}, 8<<20)
	response, err := server.Client().Post(server.URL+"/oauth2/token", mediaForm, body)
	if err != nil {
		return // the server closed the connection during the upload, which is a valid answer too
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusBadRequest {
		t.Error(response.Status)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}
