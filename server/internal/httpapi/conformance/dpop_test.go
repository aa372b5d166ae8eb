package conformance

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/httpapi"
	"deputy.example/deputy/server/internal/rpc"
)

// holderDoor is an endpoint at which a caller proves possession: with DPoP proofs, each sent as a
// header or metadata of its own, and with a certificate in the handshake.
type holderDoor struct {
	address string // the address in proofs
	ask     func(ctx context.Context, form url.Values, proofs []string, cert *exchangetest.Certified) (answer, error)
}

// holderDoors opens the token endpoint, introspection and their gRPC equivalents over real TLS.
func holderDoors(t *testing.T, w *exchangetest.World) map[string]holderDoor {
	t.Helper()
	n, site := w.Tenant(), exchangetest.NewCertified(t, "deputy")
	serving := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{site.TLS}, ClientAuth: tls.RequestClientCert}
	roots := x509.NewCertPool()
	roots.AddCert(site.Certificate)
	connecting := func(cert *exchangetest.Certified) *tls.Config {
		c := &tls.Config{RootCAs: roots}
		if cert != nil {
			c.Certificates = []tls.Certificate{cert.TLS}
		}
		return c
	}

	handler, err := httpapi.New(httpapi.Config{Engine: w.Engine, Tenants: []httpapi.Tenant{{Name: n.Name, Issuer: n.Issuer, JWKS: n.Keys.JWKS}}})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewUnstartedServer(handler)
	web.TLS = serving
	web.StartTLS()
	t.Cleanup(web.Close)

	listener := loopback(t)
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	authority := net.JoinHostPort("localhost", port)
	server, err := rpc.New(rpc.Config{Engine: rpc.For(w.Engine), TLS: credentials.NewTLS(serving), Authority: func(name string) bool { return name == authority }})
	if err != nil {
		t.Fatal(err)
	}
	serveGRPC(t, server, listener)

	post := func(path string) holderDoor {
		return holderDoor{n.Issuer + path, func(ctx context.Context, form url.Values, proofs []string, cert *exchangetest.Certified) (answer, error) {
			transport := &http.Transport{TLSClientConfig: connecting(cert)}
			transport.TLSClientConfig.ServerName = "localhost"
			defer transport.CloseIdleConnections()
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, web.URL+path, strings.NewReader(form.Encode()))
			if err != nil {
				return nil, err
			}
			r.Header["Dpop"] = proofs
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			response, err := transport.RoundTrip(r)
			if err != nil {
				return nil, err
			}
			defer response.Body.Close()
			got := make(answer)
			if err := json.NewDecoder(response.Body).Decode(&got); err != nil {
				return nil, err
			}
			if nonce := response.Header.Get("DPoP-Nonce"); nonce != "" {
				got["nonce"] = nonce
			}
			if reason, refused := got["reason"].(string); refused && response.StatusCode != delegation.Reason(reason).Wire().HTTP {
				return nil, fmt.Errorf("%s for %s", response.Status, reason)
			}
			return got, nil
		}}
	}
	call := func(method string, do func(context.Context, *grpc.ClientConn, url.Values, grpc.CallOption) (answer, error)) holderDoor {
		return holderDoor{dpop.CallURI(authority, method), func(ctx context.Context, form url.Values, proofs []string, cert *exchangetest.Certified) (answer, error) {
			options := []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(connecting(cert))), grpc.WithAuthority(authority)}
			conn, err := grpc.NewClient("passthrough:///"+listener.Addr().String(), options...)
			if err != nil {
				return nil, err
			}
			defer conn.Close()
			for _, proof := range proofs {
				ctx = metadata.AppendToOutgoingContext(ctx, "dpop", proof)
			}
			var trailer metadata.MD
			got, err := do(ctx, conn, form, grpc.Trailer(&trailer))
			if err != nil {
				e := delegation.FromStatus(err)
				got = refusal(e)
				if nonce := trailer.Get("dpop-nonce"); len(nonce) == 1 && nonce[0] == e.Metadata[delegation.MetadataNonce] {
					got["nonce"] = nonce[0]
				}
			}
			return got, nil
		}}
	}
	client := func(form url.Values) *deputyv1.ClientAuthentication {
		return &deputyv1.ClientAuthentication{ClientAssertionType: form.Get("client_assertion_type"), ClientAssertion: form.Get("client_assertion")}
	}
	return map[string]holderDoor{
		"HTTP token":      post("/oauth2/token"),
		"HTTP introspect": post("/oauth2/introspect"),
		"gRPC Exchange": call(deputyv1.TokenExchangeService_Exchange_FullMethodName, func(ctx context.Context, conn *grpc.ClientConn, form url.Values, trailer grpc.CallOption) (answer, error) {
			child, err := childMessage(params(form))
			if err != nil {
				return nil, err
			}
			r, err := deputyv1.NewTokenExchangeServiceClient(conn).Exchange(ctx, &deputyv1.ExchangeRequest{
				SubjectToken: form.Get("subject_token"), SubjectTokenType: form.Get("subject_token_type"), Child: child, Client: client(form),
			}, trailer)
			return answer{"access_token": r.GetAccessToken(), "token_type": r.GetTokenType()}, err
		}),
		"gRPC Introspect": call(deputyv1.TokenExchangeService_Introspect_FullMethodName, func(ctx context.Context, conn *grpc.ClientConn, form url.Values, trailer grpc.CallOption) (answer, error) {
			r, err := deputyv1.NewTokenExchangeServiceClient(conn).Introspect(ctx, &deputyv1.IntrospectRequest{Token: form.Get("token"), Client: client(form)}, trailer)
			got := answer{"active": r.GetActive(), "token_type": r.GetTokenType()}
			if cnf := r.GetCnf(); cnf != nil {
				got["cnf"] = map[string]any{"jkt": cnf.GetJkt(), "x5t#S256": cnf.GetX5TS256()}
			}
			return got, err
		}),
	}
}

// question returns what the planner needs for an introspection or an exchange of parent, without
// the proof of possession.
func question(t *testing.T, n *exchangetest.Tenant, parent string) url.Values {
	t.Helper()
	return url.Values{
		"client_assertion": {n.Assertion(t, exchangetest.Planner)}, "client_assertion_type": {delegation.ClientAssertionTypeJWTBearer},
		"grant_type": {delegation.GrantTypeTokenExchange}, "subject_token": {parent}, "subject_token_type": {delegation.TokenTypeAccessToken},
		"scope": {"calendar.read"}, "audience": {exchangetest.Calendar}, "token": {parent},
	}
}

// TestProofClauses checks at every endpoint the checks of RFC 9449 §4.3, and the ways to violate
// each.
func TestProofClauses(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n, key, other := w.Tenant(), exchangetest.NewProver(t), exchangetest.NewProver(t)
	now := func() int64 { return w.Clock().Now().Unix() }
	type m = map[string]any
	ofOther := func() (jwk m) {
		var set struct{ Keys []m }
		if err := json.Unmarshal([]byte(other.JWKS()), &set); err != nil {
			t.Fatal(err)
		}
		return m{"kty": "EC", "crv": "P-256", "x": set.Keys[0]["x"], "y": set.Keys[0]["y"]}
	}()
	ours := func(member string, value any) m {
		var set struct{ Keys []m }
		if err := json.Unmarshal([]byte(key.JWKS()), &set); err != nil {
			t.Fatal(err)
		}
		jwk := m{"kty": "EC", "crv": "P-256", "x": set.Keys[0]["x"], "y": set.Keys[0]["y"]}
		jwk[member] = value
		return m{"jwk": jwk}
	}
	// The proof is made when the row is used, which on a busy machine is late.
	made := func(ahead int64) func(string) []string {
		return func(htu string) []string {
			return []string{key.Forge(t, nil, m{"htu": htu, "iat": now() + ahead})}
		}
	}
	forge := func(header, claims m) func(string) []string {
		return func(htu string) []string {
			all := m{"htu": htu, "iat": now()}
			for name, value := range claims {
				all[name] = value
			}
			return []string{key.Forge(t, header, all)}
		}
	}
	rows := []struct {
		clause, name string
		proofs       func(htu string) []string
		want         delegation.Reason
	}{
		{"", "a good proof", forge(nil, nil), ""},
		{"1", "two proofs", func(htu string) []string { return append(forge(nil, nil)(htu), forge(nil, nil)(htu)...) }, delegation.ParameterRepeated},
		{"1", "two proofs in one value", func(htu string) []string {
			return []string{forge(nil, nil)(htu)[0] + ", " + forge(nil, nil)(htu)[0]}
		}, delegation.ProofInvalid},
		{"2", "no JWT", func(string) []string { return []string{"x"} }, delegation.ProofInvalid},
		{"2", "an empty value", func(string) []string { return []string{""} }, delegation.ProofInvalid},
		{"2", "padding", func(htu string) []string { return []string{forge(nil, nil)(htu)[0] + "="} }, delegation.ProofInvalid},
		{"3", "no jti", forge(nil, m{"jti": nil}), delegation.ProofInvalid},
		{"3", "an empty jti", forge(nil, m{"jti": ""}), delegation.ProofInvalid},
		{"3", "a jti that is endless", forge(nil, m{"jti": strings.Repeat("x", 257)}), delegation.ProofInvalid},
		{"3", "no htm", forge(nil, m{"htm": nil}), delegation.ProofInvalid},
		{"3", "no htu", forge(nil, m{"htu": nil}), delegation.ProofInvalid},
		{"3", "no iat", forge(nil, m{"iat": nil}), delegation.ProofInvalid},
		{"3", "an iat that is text", forge(nil, m{"iat": "1"}), delegation.ProofInvalid},
		{"4", "typ JWT", forge(m{"typ": "JWT"}, nil), delegation.ProofInvalid},
		{"4", "typ of access tokens", forge(m{"typ": "at+jwt"}, nil), delegation.ProofInvalid},
		{"4", "no typ", forge(m{"typ": nil}, nil), delegation.ProofInvalid},
		{"5", "alg none", forge(m{"alg": "none"}, nil), delegation.ProofInvalid},
		{"5", "alg HS256", forge(m{"alg": "HS256"}, nil), delegation.ProofInvalid},
		{"5", "an alg of another kind of key", forge(m{"alg": "RS256"}, nil), delegation.ProofInvalid},
		{"6", "another's key", forge(m{"jwk": ofOther}, nil), delegation.ProofInvalid},
		{"6", "no key", forge(m{"jwk": nil}, nil), delegation.ProofInvalid},
		{"6", "a key by name", forge(m{"jwk": nil, "kid": key.KeyID}, nil), delegation.ProofInvalid},
		{"6", "a critical extension", forge(m{"crit": []string{"x"}, "x": 1}, nil), delegation.ProofInvalid},
		{"7", "a private key", forge(ours("d", "AQAB"), nil), delegation.ProofInvalid},
		{"7", "a shared key", forge(ours("k", "AQAB"), nil), delegation.ProofInvalid},
		{"8", "htm GET", forge(nil, m{"htm": "GET"}), delegation.ProofInvalid},
		{"8", "htm in another case", forge(nil, m{"htm": "post"}), delegation.ProofInvalid},
		{"9", "another host", forge(nil, m{"htu": "https://other.example/oauth2/token"}), delegation.ProofInvalid},
		{"9", "another endpoint", func(htu string) []string { return forge(nil, m{"htu": htu + "x"})(htu) }, delegation.ProofInvalid},
		{"9", "http", func(htu string) []string {
			return forge(nil, m{"htu": "http" + strings.TrimPrefix(htu, "https")})(htu)
		}, delegation.ProofInvalid},
		{"9", "with query and fragment", func(htu string) []string { return forge(nil, m{"htu": htu + "?a=b#c"})(htu) }, ""},
		{"9", "host in another case", func(htu string) []string {
			u, _ := url.Parse(htu)
			return forge(nil, m{"htu": "HTTPS://" + strings.ToUpper(u.Host) + u.Path})(htu)
		}, ""},
		{"11", "a minute old", made(-60), ""},
		{"11", "too old", made(-70), delegation.ProofInvalid},
		{"11", "from the future, within the skew", made(4), ""},
		{"11", "from the future", made(60), delegation.ProofInvalid},
		{"12", "an ath where no access token came", forge(nil, m{"ath": "x"}), delegation.ProofInvalid},
		{"12", "an ath that is a number", forge(nil, m{"ath": 1}), delegation.ProofInvalid},
	}
	for name, door := range holderDoors(t, w) {
		for _, row := range rows {
			t.Run(name+"/"+row.clause+" "+row.name, func(t *testing.T) {
				got, err := door.ask(t.Context(), question(t, n, n.Root(t, nil)), row.proofs(door.address), nil)
				if err != nil {
					t.Fatal(err)
				}
				if reason, _ := got["reason"].(string); delegation.Reason(reason) != row.want {
					t.Fatalf("%v, want %q", got, row.want)
				}
				if row.want == "" && strings.Contains(name, "ntrospect") == (got["token_type"] == "DPoP") {
					t.Errorf("%v", got)
				}
			})
		}
		t.Run(name+"/replay", func(t *testing.T) {
			proof := forge(nil, nil)(door.address)
			for i, want := range []any{nil, string(delegation.ProofReplayed)} {
				if got, err := door.ask(t.Context(), question(t, n, n.Root(t, nil)), proof, nil); err != nil || got["reason"] != want {
					t.Errorf("call %d: %v, %v", i, got, err)
				}
			}
		})
	}
}

// TestProofsAreForOneAddress: a proof for one endpoint or one tenant is refused at another (check
// 9).
func TestProofsAreForOneAddress(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n, key := w.Tenant(), exchangetest.NewProver(t)
	all := holderDoors(t, w)
	for name, door := range all {
		for otherName, other := range all {
			proof := key.Prove(t, dpop.Request{Method: "POST", URI: other.address}, w.Clock().Now())
			got, err := door.ask(t.Context(), question(t, n, n.Root(t, nil)), []string{proof}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if (got["reason"] == nil) != (name == otherName) {
				t.Errorf("%s with a proof for %s: %v", name, otherName, got)
			}
		}
	}
}

// TestNonceChallenges: at every endpoint the challenge of RFC 9449 §8 brings the nonce, in the
// place where clients read it.
func TestNonceChallenges(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{RequireNonce: true})
	n, key := w.Tenant(), exchangetest.NewProver(t)
	for name, door := range holderDoors(t, w) {
		request := dpop.Request{Method: "POST", URI: door.address}
		ask := func() answer {
			t.Helper()
			got, err := door.ask(t.Context(), question(t, n, n.Root(t, nil)), []string{key.Prove(t, request, w.Clock().Now())}, nil)
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		challenged := ask()
		if challenged["error"] != "use_dpop_nonce" || challenged["nonce"] == nil {
			t.Errorf("%s: %v", name, challenged)
			continue
		}
		request.Nonce = challenged["nonce"].(string)
		if got := ask(); got["reason"] != nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestBindingMatrixOverTheDoors is the matrix of the parent's binding, the presenter's proof of
// possession and the result, at every endpoint that issues or checks tokens: RFC 9449 §5 and §7,
// RFC 8705 §3. exchange.TestBindingMatrix has the rest.
func TestBindingMatrixOverTheDoors(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	key, cert := exchangetest.NewProver(t), exchangetest.NewCertified(t, "planner")
	otherKey, otherCert := exchangetest.NewProver(t), exchangetest.NewCertified(t, "planner")
	type shows struct {
		key  *exchangetest.Prover
		cert *exchangetest.Certified
	}
	kinds := map[string]shows{"bearer": {}, "DPoP": {key: key}, "mTLS": {cert: cert}}
	presenters := map[string]shows{
		"bearer": {}, "DPoP": {key: key}, "mTLS": {cert: cert}, "another key": {key: otherKey}, "another certificate": {cert: otherCert},
	}
	doors := holderDoors(t, w)
	ask := func(door holderDoor, subject string, s shows) answer {
		t.Helper()
		var proofs []string
		if s.key != nil {
			proofs = []string{s.key.Prove(t, dpop.Request{Method: "POST", URI: door.address}, w.Clock().Now())}
		}
		got, err := door.ask(t.Context(), question(t, n, subject), proofs, s.cert)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, name := range []string{"HTTP token", "gRPC Exchange"} {
		for kind, parent := range kinds {
			made := ask(doors[name], n.Root(t, nil), parent)
			token, _ := made["access_token"].(string)
			if wantType := map[bool]string{true: "DPoP", false: "Bearer"}[kind == "DPoP"]; made["token_type"] != wantType || token == "" {
				t.Errorf("%s, %s: %v", name, kind, made)
			}
			wantBound := map[string]any{"DPoP": key.Binding().Key(), "mTLS": cert.Binding().Key()}[kind]
			for _, introspect := range []string{"HTTP introspect", "gRPC Introspect"} {
				found := ask(doors[introspect], token, shows{})
				cnf, _ := found["cnf"].(map[string]any)
				if member := map[string]string{"DPoP": "jkt", "mTLS": "x5t#S256"}[kind]; found["active"] != true || wantBound != nil && cnf[member] != wantBound || (cnf == nil) != (wantBound == nil) {
					t.Errorf("%s of a token by %s, %s: %v", introspect, name, kind, found)
				}
			}
			for presenter, s := range presenters {
				got := ask(doors[name], token, s)
				want := any(nil)
				if kind != "bearer" && presenter != kind {
					want = string(delegation.ProofRequired)
				}
				if got["reason"] != want {
					t.Errorf("%s: a token bound by %s, presented with %s: %v, want %v", name, kind, presenter, got, want)
				}
			}
		}
	}
}

// TestProofsForTheNameOfAnotherServer: a call to this server under another server's name cannot use
// that server's proofs. The name of a call must be this server's.
func TestProofsForTheNameOfAnotherServer(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	for name, ours := range map[string]bool{"deputy.internal:9090": true, "evil.example:9090": false} {
		server, err := rpc.New(rpc.Config{Engine: rpc.For(w.Engine), Authority: func(name string) bool { return name == "deputy.internal:9090" }})
		if err != nil {
			t.Fatal(err)
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- server.Serve(listener) }()
		conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithAuthority(name), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		proof := exchangetest.NewProver(t).Prove(t, dpop.Request{Method: "POST", URI: dpop.CallURI(name, deputyv1.TokenExchangeService_Introspect_FullMethodName)}, time.Now())
		ctx := metadata.AppendToOutgoingContext(t.Context(), "dpop", proof, "authorization", "Bearer "+w.Tenant().Assertion(t, exchangetest.Planner))
		_, err = deputyv1.NewTokenExchangeServiceClient(conn).Introspect(ctx, &deputyv1.IntrospectRequest{Token: "x"})
		if refused := delegation.FromStatus(err); ours != (refused == nil) || refused != nil && refused.Reason != delegation.ProofInvalid {
			t.Errorf("called by the name %s: %v", name, err)
		}
		conn.Close()
		server.Stop()
		<-served
	}
}
