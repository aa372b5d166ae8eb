package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/token/certtest"
)

// TestForeignHoldersOfKeys makes libraries from npm create the proofs of RFC 9449: oauth4webapi
// over HTTP, dpop and grpc-js over gRPC. Deputy and a tool accept the proofs of the holder, and
// refuse the tokens in the hands of others.
func TestForeignHoldersOfKeys(t *testing.T) {
	for name, nonces := range map[string]bool{"without nonces": false, "with nonces": true} {
		t.Run(name, func(t *testing.T) {
			d := deploy(t, plan{reachable: true, grpcTLS: true, bound: true, tenant: fmt.Sprintf("require_dpop_nonce: %t\n", nonces)})
			i := d.start()
			overHTTP, overGRPC := d.boundTools(t, i, nonces)
			job := d.holdersJob(t)
			job["algorithms"] = []string{"ES256", "Ed25519"}
			job["naming"] = d.naming(researcher).Reveal()
			t.Run("oauth4webapi", func(t *testing.T) {
				job["tool"] = overHTTP
				d.keysOverHTTP(t, i, job, nonces)
			})
			t.Run("grpc-js", func(t *testing.T) {
				job["tool"], job["deputy"] = overGRPC, i.grpc
				d.keysOverGRPC(t, i, job, nonces)
			})
		})
	}
}

func (d *deployment) keysOverHTTP(t *testing.T, i *instance, job map[string]any, nonces bool) {
	var result struct {
		Algorithms []string
		Nonces     int
		Results    map[string]struct {
			TokenType, Thumbprint, Bound, Parent, Child, Said string
			Steps                                             map[string]string
		}
	}
	runNode(t, "dpop-oauth4webapi.mjs", job, &result)
	// A tool that has just started requires a nonce of each holder once, also where it requires
	// none later.
	if nonces && result.Nonces < 8 || len(result.Results) != 2 {
		t.Errorf("%d nonces in %d runs", result.Nonces, len(result.Results))
	}
	for algorithm, r := range result.Results {
		if !slices.Contains(result.Algorithms, algorithm) || r.TokenType != "dpop" || r.Bound != r.Thumbprint || r.Said != "agent:researcher" {
			t.Errorf("%s: %+v, of %v", algorithm, r, result.Algorithms)
		}
		d.bindings(t, i, algorithm, job, map[string]delegation.Confirmation{r.Parent: {JKT: r.Thumbprint}}, r.Child)
		same(t, algorithm, r.Steps, map[string]string{
			"the replayed proof":             string(delegation.ProofReplayed),
			"own child":                      "accepted",
			"own child, no proof":            string(delegation.ProofRequired),
			"own child, another key":         string(delegation.ProofRequired),
			"no proof at all":                string(delegation.BearerNotIssued),
			"grandchild":                     "accepted",
			"grandchild, the parent's key":   string(delegation.ProofRequired),
			"child without a key":            string(delegation.BearerNotIssued),
			"tool, the replayed proof":       "invalid_dpop_proof",
			"tool, a proof for another path": "invalid_dpop_proof",
			"tool, another token's proof":    "invalid_dpop_proof",
			"tool, as Bearer":                "invalid_token",
			"tool, the parent's key":         "invalid_token",
		})
	}
}

func (d *deployment) keysOverGRPC(t *testing.T, i *instance, job map[string]any, nonces bool) {
	var result struct {
		Nonces  []string
		Results map[string]struct {
			Thumbprint    string
			Parent, Child called
			Steps         map[string]called
		}
	}
	runNode(t, "dpop-grpc.mjs", job, &result)
	if nonces != slices.Contains(result.Nonces, i.grpc) || len(result.Results) != 2 {
		t.Errorf("nonces of %v in %d runs", result.Nonces, len(result.Results))
	}
	for algorithm, r := range result.Results {
		if r.Parent.Answer.TokenType != "DPoP" || r.Parent.Answer.ExpiresIn != 120 || r.Child.Answer.TokenType != "DPoP" {
			t.Fatalf("%s: %v", algorithm, outcomes(t, map[string]called{"parent": r.Parent, "child": r.Child}))
		}
		d.bindings(t, i, algorithm, job, map[string]delegation.Confirmation{r.Parent.Answer.AccessToken: {JKT: r.Thumbprint}}, r.Child.Answer.AccessToken)
		same(t, algorithm, outcomes(t, r.Steps), map[string]string{
			"the replayed proof":               string(delegation.ProofReplayed),
			"own child":                        "accepted",
			"own child, no proof":              string(delegation.ProofRequired),
			"own child, another key":           string(delegation.ProofRequired),
			"a proof for another method":       string(delegation.ProofInvalid),
			"a proof for another server":       string(delegation.ProofInvalid),
			"another server's name":            string(delegation.ProofInvalid),
			"grandchild":                       "accepted",
			"grandchild, the parent's key":     string(delegation.ProofRequired),
			"tool":                             "accepted",
			"tool, the replayed proof":         "invalid_dpop_proof",
			"tool, no proof":                   "invalid_dpop_proof",
			"tool, as Bearer":                  "invalid_token",
			"tool, the parent's key":           "invalid_token",
			"tool, no ath":                     "invalid_dpop_proof",
			"tool, a proof for another method": "invalid_dpop_proof",
		})
	}
}

// TestForeignHoldersOfCertificates makes openid-client and grpc-js authenticate by certificates
// (RFC 8705), self-signed ones or those of SPIFFE, and use the tokens that are bound to them.
func TestForeignHoldersOfCertificates(t *testing.T) {
	prod := certtest.NewCA(t, "prod")
	certificates := map[string]tls.Certificate{"registered": certtest.SelfSigned(t), "SVID": prod.SVID(t, "spiffe://prod.example/planner")}
	bundle := filepath.Join(t.TempDir(), "prod.pem")
	certtest.Write(t, bundle, certtest.PEM(prod.Certificate))
	d := deploy(t, plan{reachable: true, grpcTLS: true, bound: true,
		tenant: fmt.Sprintf("spiffe:\n  - {trust_domain: prod.example, bundle_file: %q, principal: {type: agent, prefix: prod/}, shared_principals: true}\n", bundle)})
	d.certificates[planner] = filepath.Join(d.dir, "planner-certificate.pem")
	certtest.Write(t, d.certificates[planner], certtest.PEM(certificates["registered"].Leaf))
	principals := map[string]delegation.Principal{"registered": planner, "SVID": "agent:prod/planner"}
	d.admitLike(t, planner, principals["SVID"])
	i := d.start()
	overHTTP, overGRPC := d.boundTools(t, i, false)
	job := d.holdersJob(t)
	job["other"] = keyPair(t, certtest.SelfSigned(t))
	accepted := map[string]string{"own child": "accepted", "a child for the researcher": "accepted"}

	t.Run("openid-client", func(t *testing.T) {
		job["tool"], job["certificate"] = overHTTP, keyPair(t, certificates["registered"])
		var result struct {
			BoundTokens            bool
			Methods                []string
			TokenType, Bound, Said string
			Steps                  map[string]string
		}
		runNode(t, "mtls-openid-client.mjs", job, &result)
		if !result.BoundTokens || !slices.Contains(result.Methods, "self_signed_tls_client_auth") || result.TokenType != "bearer" ||
			result.Bound != certificateThumbprint(certificates["registered"]) || result.Said != string(planner) {
			t.Errorf("%+v", result)
		}
		same(t, "registered", result.Steps, joined(accepted, map[string]string{
			"another certificate":       "401",
			"no certificate":            string(delegation.ParameterMissing),
			"tool, another certificate": "invalid_token",
			"tool, no certificate":      "invalid_token",
		}))
	})
	t.Run("grpc-js", func(t *testing.T) {
		pairs := make(map[string]any)
		for name, certificate := range certificates {
			pairs[name] = keyPair(t, certificate)
		}
		job["tool"], job["deputy"], job["certificates"] = overGRPC, i.grpc, pairs
		var results map[string]struct {
			Parent       called
			Introspected struct {
				Answer struct {
					Active bool
					Cnf    struct {
						X5T string `json:"x5t_s256"`
					}
				}
			}
			Steps map[string]called
		}
		runNode(t, "mtls-grpc.mjs", job, &results)
		for name, certificate := range certificates {
			r, thumbprint := results[name], certificateThumbprint(certificate)
			if r.Parent.Answer.TokenType != "Bearer" || r.Parent.Answer.ExpiresIn != 120 || !r.Introspected.Answer.Active || r.Introspected.Answer.Cnf.X5T != thumbprint {
				t.Fatalf("%s: %s: %+v", name, outcomes(t, map[string]called{"parent": r.Parent}), r)
			}
			claims := d.claims(t, i, r.Parent.Answer.AccessToken)
			if claims.Act.Current() != principals[name] || claims.Confirmation == nil || claims.Confirmation.X5T != thumbprint {
				t.Errorf("%s: %+v", name, claims)
			}
			same(t, name, outcomes(t, r.Steps), joined(accepted, map[string]string{
				"another certificate":       string(delegation.ClientUnauthenticated),
				"no certificate":            string(delegation.ClientUnauthenticated),
				"tool":                      "accepted",
				"tool, another certificate": "invalid_token",
				"tool, no certificate":      "invalid_token",
				"tool, no token":            "a token is needed",
			}))
		}
	})
}

// bindings requires tokens with the given bindings, and a child that is bound to the researcher's
// registered key.
func (d *deployment) bindings(t *testing.T, i *instance, name string, job map[string]any, want map[string]delegation.Confirmation, child string) {
	t.Helper()
	want[child] = delegation.Confirmation{JKT: job["researcher"].(map[string]string)["thumbprint"]}
	for token, binding := range want {
		if claims := d.claims(t, i, token); claims.Confirmation == nil || *claims.Confirmation != binding || claims.Subject != alice {
			t.Errorf("%s: %+v, want it bound to %+v", name, claims, binding)
		}
	}
}

// claims returns the claims of a token with a good signature, without a proof of possession.
func (d *deployment) claims(t *testing.T, i *instance, token string) delegation.Claims {
	t.Helper()
	inspection, err := d.verifier(i).Inspect(t.Context(), token)
	check(t, err)
	return inspection.Claims
}

// boundTools starts two servers that the SDK guards, one for HTTP and one for gRPC, and returns
// their addresses as https:// and host:port.
func (d *deployment) boundTools(t *testing.T, i *instance, nonces bool) (overHTTP, overGRPC string) {
	t.Helper()
	certificate, err := tls.LoadX509KeyPair(d.certFile, d.keyFile)
	check(t, err)
	config := &tls.Config{Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequestClientCert}
	var listeners [2]net.Listener
	for n := range listeners {
		listeners[n], err = net.Listen("tcp", "127.0.0.1:0")
		check(t, err)
	}
	overHTTP, overGRPC = "https://"+listeners[0].Addr().String(), listeners[1].Addr().String()
	v, err := client.NewVerifier(client.VerifierConfig{
		Issuer: d.issuer, Audience: calendarAudience, JWKS: d.jwks(i), IgnoreRevocations: true,
		URLs: []string{overHTTP, "https://" + overGRPC}, RequireProofNonce: nonces,
	})
	check(t, err)
	t.Cleanup(func() { check(t, v.Close()) })

	web := &http.Server{Handler: v.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, _ := client.FromContext(r.Context())
		_, _ = io.WriteString(w, string(d.Actor()))
	}), "calendar.read")}
	calls := grpc.NewServer(grpc.Creds(credentials.NewTLS(config.Clone())), grpc.UnaryInterceptor(v.UnaryServerInterceptor(client.Methods{
		Scopes: map[string]delegation.Scopes{healthpb.Health_Check_FullMethodName: {"calendar.read"}},
	})))
	healthpb.RegisterHealthServer(calls, health.NewServer())
	ended := make(chan error, 2)
	go func() { ended <- web.Serve(tls.NewListener(listeners[0], config)) }()
	go func() { ended <- calls.Serve(listeners[1]) }()
	t.Cleanup(func() {
		_ = web.Close()
		calls.Stop()
		for range listeners {
			if err := <-ended; err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, grpc.ErrServerStopped) {
				t.Error(err)
			}
		}
	})
	return overHTTP, overGRPC
}

// holdersJob returns the input of all scripts about bound tokens.
func (d *deployment) holdersJob(t *testing.T) map[string]any {
	t.Helper()
	roots, err := os.ReadFile(authority.file)
	check(t, err)
	protos, err := filepath.Abs(filepath.Join("..", "..", "..", "proto"))
	check(t, err)
	job := map[string]any{"issuer": d.issuer, "audience": calendarAudience, "root": d.root().Reveal(), "roots": string(roots), "protos": protos}
	for _, who := range []delegation.Principal{planner, researcher} {
		content, err := os.ReadFile(d.keyPath(who))
		check(t, err)
		key, err := client.LoadKey(d.keyPath(who))
		check(t, err)
		job[who.ID()] = map[string]string{
			"clientId": string(who), "privateKey": string(content), "keyId": d.keys[who].ID(), "thumbprint": key.Thumbprint(),
		}
	}
	return job
}

// admitLike gives the second principal everything that the first has in OpenFGA.
func (d *deployment) admitLike(t *testing.T, first, second delegation.Principal) {
	t.Helper()
	var tuples []policy.Relation
	for _, tuple := range worldTuples() {
		if tuple.User == string(first) {
			tuple.User = string(second)
			tuples = append(tuples, tuple)
		} else if tuple.Object == string(first) {
			tuple.Object = string(second)
			tuples = append(tuples, tuple)
		}
	}
	check(t, d.relations.fga.WriteTuples(t.Context(), d.relations.store, tuples...))
}

// keyPair returns a certificate with its key, as Node.js reads them.
func keyPair(t *testing.T, c tls.Certificate) map[string]string {
	t.Helper()
	dir := t.TempDir()
	certtest.WritePair(t, filepath.Join(dir, "cert"), filepath.Join(dir, "key"), c)
	cert, err := os.ReadFile(filepath.Join(dir, "cert"))
	check(t, err)
	key, err := os.ReadFile(filepath.Join(dir, "key"))
	check(t, err)
	return map[string]string{"cert": string(cert), "key": string(key)}
}

// called is the result of a call by grpc-js.
type called struct {
	Answer struct {
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
		ExpiresIn   int    `json:"expires_in"`
	} `json:"-"`
	Code    int
	Says    string // grpc-message
	Details string // google.rpc.Status in base64
}

// UnmarshalJSON decodes an answer that is a message, or bytes in hexadecimal.
func (c *called) UnmarshalJSON(text []byte) error {
	type fields called
	var raw struct {
		fields
		Answer json.RawMessage
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return err
	}
	*c = called(raw.fields)
	if strings.HasPrefix(string(raw.Answer), "{") {
		return json.Unmarshal(raw.Answer, &c.Answer)
	}
	return nil
}

// outcomes returns for each call "accepted", or the reason of its refusal.
func outcomes(t *testing.T, calls map[string]called) map[string]string {
	t.Helper()
	said := make(map[string]string)
	for name, c := range calls {
		said[name] = "accepted"
		if c.Code != 0 {
			said[name] = c.reason(t)
		}
	}
	return said
}

// reason returns the reason of a refusal: Deputy sends it in the details, a tool in its message.
func (c called) reason(t *testing.T) string {
	t.Helper()
	if c.Details == "" {
		code, _, _ := strings.Cut(c.Says, ":")
		return code
	}
	wire, err := base64.StdEncoding.DecodeString(c.Details)
	check(t, err)
	s := status.New(codes.Unknown, "").Proto()
	check(t, proto.Unmarshal(wire, s))
	return string(delegation.FromStatus(status.ErrorProto(s)).Reason)
}

// certificateThumbprint returns the x5t#S256 of RFC 8705 §3.1.
func certificateThumbprint(c tls.Certificate) string {
	sum := sha256.Sum256(c.Certificate[0])
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func joined(first, second map[string]string) map[string]string {
	all := maps.Clone(first)
	maps.Copy(all, second)
	return all
}

func same(t *testing.T, name string, got, want map[string]string) {
	t.Helper()
	for step, outcome := range want {
		if got[step] != outcome {
			t.Errorf("%s, %s: %q, want %q", name, step, got[step], outcome)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d steps, want %d", name, len(got), len(want))
	}
}
