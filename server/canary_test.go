package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc/metadata"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// canaries are secrets by where they were presented. What identifies a token are its payload and its
// signature; all headers are alike.
type canaries map[string]string

func (c canaries) token(where, token string) string {
	if parts := strings.Split(token, "."); len(parts) == 3 {
		c[where+" (payload)"], c[where+" (signature)"] = parts[1], parts[2]
	} else {
		c[where] = token
	}
	return token
}

// foundIn names the canaries that the text holds.
func (c canaries) foundIn(text string) []string {
	var found []string
	for where, secret := range c {
		if strings.Contains(text, secret) {
			found = append(found, where)
		}
	}
	return found
}

// TestCredentialsStayInside runs a server with a canary in every place where a credential can be,
// through both doors, accepted and refused, and then looks through all that it left behind.
func TestCredentialsStayInside(t *testing.T) {
	s := newSite(t)
	secrets := canaries{
		"Redis password": "canary-redis-password-7f1c", "OpenFGA token": "canary-openfga-token-93ab",
		"bearer": "canary-bearer-0d52", "password": "canary-basic-71e9", "garbage": "canary-garbage-4c1d", "unknown": "canary-unknown-88aa",
	}
	requirePass(t, s.redis.Addr, secrets["Redis password"])
	s.write("redis-password", []byte(secrets["Redis password"]+"\n"))
	s.write("openfga-token", []byte(secrets["OpenFGA token"]))
	key, err := os.ReadFile(filepath.Join(s.dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	secrets["signing key"] = strings.Split(string(key), "\n")[1]
	checkpointKey, checkpointFile := filepath.Join(s.dir, "checkpoint.key"), filepath.Join(s.dir, "checkpoint")
	if _, err := CreateCheckpointKey(checkpointKey, "https://deputy.example"); err != nil {
		t.Fatal(err)
	}
	private, err := os.ReadFile(checkpointKey)
	if err != nil {
		t.Fatal(err)
	}
	secrets["checkpoint key"] = strings.TrimSpace(string(private[len(private)-40:]))
	s.text = strings.NewReplacer("    policy:\n", "    audit: {checkpoint_key: DIR/checkpoint.key, checkpoint_file: DIR/checkpoint}\n    policy:\n").Replace(s.text)
	s.text = strings.NewReplacer(
		"redis:\n", "redis:\n  password_file: DIR/redis-password\n", "policy:\n", "policy:\n      token_file: DIR/openfga-token\n",
	).Replace(s.text)
	spans := tracetest.NewInMemoryExporter()
	traces := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans), sdktrace.WithSampler(sdktrace.AlwaysSample()))
	registry := prometheus.NewRegistry()
	s.options.TracerProvider, s.options.Registry = traces, registry
	i := s.start(t)

	s.presentByGRPC(t, i, secrets)
	s.presentByHTTP(t, i, secrets)
	var checkpoint []byte
	poll(t, func() bool { // it comes within a second
		checkpoint, err = os.ReadFile(checkpointFile)
		return err == nil && bytes.Contains([]byte(gathered(t, registry)), []byte("deputy_checkpoint_entries"))
	}, func() string { return fmt.Sprintf("no checkpoint: %v\n%s", err, s.log) })
	s.redis.Stop() // errors of dependencies are logged with their causes
	i.await(t, []string{"redis"})
	if _, err := i.exchange(t.Context(), t); err == nil {
		t.Error("granted without Redis")
	}
	documented(t, registry)
	left := map[string]string{"checkpoint": string(checkpoint), "metrics": gathered(t, registry), "traces": exported(t, spans)}
	i.stop(t)
	left["log"], left["ledger"] = s.log.String(), s.ledgerFiles(t)

	for place, text := range left {
		if found := secrets.foundIn(text); len(found) > 0 {
			t.Errorf("the %s hold: %v", place, found)
		}
	}
	// The controls: each place holds what it should, so it was really looked through, and would have
	// been seen to hold a canary.
	for place, mark := range map[string]string{
		"checkpoint": "deputy.example\n", "metrics": "deputy_exchange_outcomes_total", "traces": "record", "log": "client_unauthenticated", "ledger": "agent:planner",
	} {
		if !strings.Contains(left[place], mark) {
			t.Errorf("the %s do not even hold %q", place, mark)
		}
		for where, secret := range secrets {
			if found := secrets.foundIn(left[place] + secret); len(found) == 0 {
				t.Errorf("%s would not be found in the %s", where, place)
			}
		}
	}
	for _, needed := range []string{"subject (payload)", "assertion (signature)", "issued by gRPC (payload)", "issued by HTTP (signature)", "actor (payload)"} {
		if secrets[needed] == "" {
			t.Errorf("there was no canary for %s", needed)
		}
	}
}

func (s *site) presentByGRPC(t *testing.T, i *instance, secrets canaries) {
	t.Helper()
	service := deputyv1.NewTokenExchangeServiceClient(i.conn)
	r := s.request(t)
	secrets.token("subject", r.GetSubjectToken())
	secrets.token("assertion", r.GetClient().GetClientAssertion())
	grant, err := service.Exchange(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	secrets.token("issued by gRPC", grant.GetAccessToken())
	if _, err := service.Exchange(t.Context(), r); err == nil {
		t.Error("an assertion was accepted twice")
	}

	// Refusals, some with a token in a field that is for something else.
	actor := secrets.token("actor", s.root(t))
	refused := []func(*deputyv1.ExchangeRequest){
		func(*deputyv1.ExchangeRequest) {},
		func(r *deputyv1.ExchangeRequest) { r.Child.ActorTokenType = actor },
		func(r *deputyv1.ExchangeRequest) { r.SubjectTokenType = actor },
		func(r *deputyv1.ExchangeRequest) { r.Child.RequestedTokenType = actor },
		func(r *deputyv1.ExchangeRequest) { r.SubjectToken = secrets["garbage"] },
		func(r *deputyv1.ExchangeRequest) { r.SubjectToken = actor + "x" },
		func(r *deputyv1.ExchangeRequest) { r.Client.ClientAssertion = secrets["garbage"] },
	}
	for n, spoil := range refused {
		r := s.request(t)
		r.Child.ActorToken, r.Child.ActorTokenType = actor, delegation.TokenTypeJWT
		spoil(r)
		if _, err := service.Exchange(t.Context(), r); err == nil {
			t.Errorf("refusal %d was granted", n)
		}
	}
	bearer := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+secrets["bearer"])
	if _, err := service.Introspect(bearer, &deputyv1.IntrospectRequest{Token: grant.GetAccessToken()}); err == nil {
		t.Error("a bearer of nothing was accepted")
	}
}

func (s *site) presentByHTTP(t *testing.T, i *instance, secrets canaries) {
	t.Helper()
	form := func(set ...string) url.Values {
		v := url.Values{
			"grant_type": {delegation.GrantTypeTokenExchange}, "subject_token": {s.root(t)}, "subject_token_type": {delegation.TokenTypeAccessToken},
			"audience": {"https://calendar.example"}, "scope": {"calendar.read"},
			"client_assertion_type": {delegation.ClientAssertionTypeJWTBearer}, "client_assertion": {s.assertion(t)},
		}
		for n := 0; n < len(set); n += 2 {
			v.Set(set[n], set[n+1])
		}
		return v
	}
	accepted := form("unheard_of", secrets["unknown"])
	secrets.token("subject by HTTP", accepted.Get("subject_token"))
	secrets.token("assertion by HTTP", accepted.Get("client_assertion"))
	code, body := s.post(t, i, "", accepted, "")
	var granted struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(body), &granted); err != nil || code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	secrets.token("issued by HTTP", granted.AccessToken)
	for n, try := range []struct {
		query, authorization string
		form                 url.Values
	}{
		{"?client_assertion=" + secrets["garbage"], "", form()},
		{"", "Bearer " + secrets["bearer"], form()},
		{"", "Basic " + secrets["password"], form()},
		{"", "", form("subject_token", secrets["garbage"])},
		{"", "", form("client_secret", secrets["password"])},
		{"", "", form("password", secrets["password"])},
		{"", "", form("subject_token_type", granted.AccessToken)},
		// Credentials in fields that are recorded and repeated otherwise.
		{"", "", form("scope", granted.AccessToken)},
		{"", "", form("scope", "calendar.read "+granted.AccessToken)},
		{"", "", form("audience", granted.AccessToken)},
		{"", "", form("resource", "https://x.example/?t="+granted.AccessToken)},
		{"", "", form("authorization_details", `[{"type":"`+granted.AccessToken+`"}]`)},
		{"", "", form("requested_token_type", granted.AccessToken)},
		{"", "", form("requested_actor", granted.AccessToken)},
		{"", "", form("actor_confirmation", granted.AccessToken)},
		{"", "", form("idempotency_key", granted.AccessToken)},
	} {
		if code, _ := s.post(t, i, try.query, try.form, try.authorization); code == http.StatusOK {
			t.Errorf("refusal %d was granted", n)
		}
	}
}

func (s *site) post(t *testing.T, i *instance, query string, form url.Values, authorization string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+i.HTTPAddr()+"/oauth2/token"+query, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(response.Body); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, body.String()
}

// ledgerFiles are the bytes of the database and of what lies beside it: nothing that SQL does not show
// is missed.
func (s *site) ledgerFiles(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "ledger.db*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no ledger: %v", err)
	}
	var all strings.Builder
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(content)
	}
	return all.String()
}

func gathered(t *testing.T, registry *prometheus.Registry) string {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, family := range families {
		fmt.Fprintln(&all, family)
	}
	return all.String()
}

// documented compares the metrics that there are with those that docs/operations.md explains.
func documented(t *testing.T, registry *prometheus.Registry) {
	t.Helper()
	manual, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	there := make(map[string]bool)
	for _, family := range families {
		there[family.GetName()] = true
		if !bytes.Contains(manual, []byte("`"+family.GetName()+"`")) {
			t.Errorf("docs/operations.md does not explain %s", family.GetName())
		}
	}
	for _, name := range regexp.MustCompile("`(deputy_[a-z_]+)`").FindAllSubmatch(manual, -1) {
		if !there[string(name[1])] {
			t.Errorf("docs/operations.md explains %s, which does not exist", name[1])
		}
	}
}

func exported(t *testing.T, spans *tracetest.InMemoryExporter) string {
	t.Helper()
	text, err := json.Marshal(spans.GetSpans().Snapshots())
	if err != nil {
		t.Fatal(err)
	}
	return string(text) + fmt.Sprintf("%+v", spans.GetSpans())
}

// requirePass gives a Redis server a password.
func requirePass(t *testing.T, addr, password string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "CONFIG SET requirepass %s\r\n", password); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 5)
	if _, err := conn.Read(answer); err != nil || string(answer) != "+OK\r\n" {
		t.Fatalf("CONFIG SET: %q, %v", answer, err)
	}
}
