package server

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/vault"
)

// presentProofs presents proofs of possession and tokens bound to a key at both endpoints:
// accepted, used twice, and wrong in every way. It returns the texts of the refusals.
func (s *site) presentProofs(t *testing.T, i *instance, secrets canaries) (said string) {
	t.Helper()
	holder, other := exchangetest.NewProver(t), exchangetest.NewProver(t)
	n := 0
	prove := func(by *exchangetest.Prover, uri, token string) string {
		n++
		return secrets.token(fmt.Sprintf("proof %d", n), by.Prove(t, dpop.Request{Method: http.MethodPost, URI: uri, AccessToken: token}, time.Now()))
	}
	bound := func(name string) string {
		return secrets.token("credential that is bound, "+name, s.workloads.Sign(t, "JWT", map[string]any{
			"sub": "planner", "aud": issuer, "jti": s.id(), "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(), "cnf": holder.Binding(),
		}))
	}
	exchanges := dpop.CallURI(i.GRPCAddr(), deputyv1.TokenExchangeService_Exchange_FullMethodName)
	good, credential := prove(holder, exchanges, ""), bound("over gRPC")
	once := prove(holder, exchanges, credential)
	for name, call := range map[string]struct {
		may bool
		md  []string
	}{
		"a proof":                             {true, []string{"dpop", good}},
		"no proof":                            {false, []string{"dpop", secrets["garbage"]}},
		"another address":                     {false, []string{"dpop", prove(holder, "https://elsewhere.example/x", "")}},
		"two proofs":                          {false, []string{"dpop", prove(holder, exchanges, ""), "dpop", prove(other, exchanges, "")}},
		"a bound credential":                  {true, []string{"authorization", "DPoP " + credential, "dpop", once}},
		"a bound credential as Bearer":        {false, []string{"authorization", "Bearer " + credential, "dpop", prove(holder, exchanges, "")}},
		"a bound credential without a proof":  {false, []string{"authorization", "DPoP " + credential}},
		"a bound credential, another's proof": {false, []string{"authorization", "DPoP " + credential, "dpop", prove(other, exchanges, credential)}},
		"a proof of no token":                 {false, []string{"authorization", "DPoP " + credential, "dpop", prove(holder, exchanges, "")}},
	} {
		for again := range 2 {
			r := s.request(t)
			if call.md[0] == "authorization" {
				r.Client = nil
			}
			granted, err := deputyv1.NewTokenExchangeServiceClient(i.conn).Exchange(metadata.AppendToOutgoingContext(t.Context(), call.md...), r)
			if may := call.may && again == 0; (err == nil) != may {
				t.Errorf("%s, %d times before: %v", name, again, err)
			} else if !may {
				said += refusal(err)
			}
			if err == nil {
				secrets.token("bound token, "+name, granted.GetAccessToken())
				unproven := s.request(t)
				unproven.SubjectToken, unproven.SubjectTokenType = granted.GetAccessToken(), delegation.TokenTypeAccessToken
				_, err := deputyv1.NewTokenExchangeServiceClient(i.conn).Exchange(t.Context(), unproven)
				if said += refusal(err); err == nil {
					t.Errorf("%s: exchanged again without its key", name)
				}
			}
		}
	}

	credential = bound("over HTTP")
	introspects := issuer + "/oauth2/introspect"
	for name, header := range map[string][2]string{
		"good":            {"DPoP " + credential, prove(holder, introspects, credential)},
		"as Bearer":       {"Bearer " + credential, prove(holder, introspects, credential)},
		"another's proof": {"DPoP " + credential, prove(other, introspects, credential)},
		"garbage":         {"DPoP " + credential, secrets["garbage"]},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+i.HTTPAddr()+"/oauth2/introspect", strings.NewReader(url.Values{"token": {secrets["garbage"]}}.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Authorization", header[0])
		r.Header.Set("DPoP", header[1])
		response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil || response.Body.Close() != nil || (response.StatusCode == http.StatusOK) != (name == "good") {
			t.Errorf("%s: %d %s %v", name, response.StatusCode, body, err)
		}
		said += fmt.Sprint(response.Header) + string(body)
	}
	return said
}

// openManaged makes canaries of the managed private keys.
func (s *site) openManaged(t *testing.T, i *instance, secrets canaries) {
	t.Helper()
	kms, err := vault.OpenFileKMS(filepath.Join(s.dir, "kek"))
	if err != nil {
		t.Fatal(err)
	}
	config, err := s.load(s.text)
	if err != nil {
		t.Fatal(err)
	}
	parts, _ := config.open(Options{})
	for _, tenant := range parts.tenants {
		defer tenant.Policy.Close()
	}
	spy := &opener{KMS: kms}
	if _, err := vault.Open(t.Context(), vault.Config{Store: i.ledger, KMS: spy}, parts.managed...); err != nil {
		t.Fatal(err)
	}
	for n, plain := range spy.seen {
		secrets[fmt.Sprintf("managed key %d", n)] = plain
		secrets[fmt.Sprintf("seed of managed key %d", n)] = plain[len(plain)-32:]
	}
}
