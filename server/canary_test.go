package server

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/testservers"
)

// canaries are secrets by the place where they were presented. A token is identified by its payload
// and its signature, because all headers are alike.
type canaries map[string]string

func (c canaries) token(where, token string) string {
	if parts := strings.Split(token, "."); len(parts) == 3 {
		c[where+" (payload)"], c[where+" (signature)"] = parts[1], parts[2]
	} else {
		c[where] = token
	}
	return token
}

// foundIn names the canaries that the text holds, as they are or encoded.
func (c canaries) foundIn(text string) []string {
	var found []string
	for where, secret := range c {
		if slices.ContainsFunc(disguises(secret), func(form string) bool { return strings.Contains(text, form) }) {
			found = append(found, where)
		}
	}
	return found
}

// disguises returns the forms in which a text can hold a secret: as it is, in an address, on a
// page, in hexadecimal, and in base64 after any number of other bytes.
func disguises(secret string) []string {
	forms := []string{secret, url.QueryEscape(secret), strings.ReplaceAll(html.EscapeString(secret), "+", "&#43;"), hex.EncodeToString([]byte(secret))}
	// own counts the characters that encode other bytes too.
	for before, own := range []int{0, 2, 3} {
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			form := encoding.EncodeToString([]byte(strings.Repeat("x", before) + secret))[own:]
			if (before+len(secret))%3 != 0 {
				form = form[:len(form)-1]
			}
			forms = append(forms, form)
		}
	}
	return forms
}

func TestCanariesAreFoundInDisguise(t *testing.T) {
	secret := "canary+of/secrets-7f1c"
	c := canaries{"it": secret}
	for _, text := range []string{
		secret, "https://x.example/?t=" + url.QueryEscape(secret), `<input value="canary&#43;of/secrets-7f1c">`, hex.EncodeToString([]byte("a" + secret + "b")),
		base64.StdEncoding.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte("a" + secret + "bc")),
		base64.URLEncoding.EncodeToString([]byte("ab" + secret + "c")), base64.RawURLEncoding.EncodeToString([]byte("abc" + secret)),
	} {
		if len(c.foundIn(text)) == 0 {
			t.Errorf("not found in %s", text)
		}
		if len(c.foundIn(text[:len(text)/2])) > 0 {
			t.Errorf("found in half of %s", text)
		}
	}
}

// planted looks like a secret and is none. It is the name of a scope, which goes where a leak would
// go.
const planted = "canary.planted-2b71"

// traces are what a server left behind, by place (left), and a text that each place must hold
// (marks). The default mark is planted. A mark proves that the place was searched and that a leak
// would have been found there.
type traces struct{ left, marks map[string]string }

func (l traces) leave(place, text, mark string) { l.left[place] += text; l.marks[place] = mark }

func (l traces) check(t *testing.T, secrets canaries) {
	t.Helper()
	for place, text := range l.left {
		if found := secrets.foundIn(text); len(found) > 0 {
			t.Errorf("the %s hold: %v", place, found)
		}
		if mark := l.marks[place]; len(canaries{"mark": mark}.foundIn(text)) == 0 {
			t.Errorf("the %s do not even hold %q: %.2000s", place, mark, text)
		}
	}
}

// TestCredentialsStayInside runs a server with a canary in every place where a credential can be,
// at every endpoint, accepted and refused. Then it searches everything that the server left behind
// and everything that it returns to callers who may read all entries.
func TestCredentialsStayInside(t *testing.T) {
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		t.Run(database, func(t *testing.T) { credentialsStayInside(t, database == "PostgreSQL") })
	}
}

func credentialsStayInside(t *testing.T, onPostgres bool) {
	s := newSite(t)
	secrets := canaries{
		"Redis password": "canary-redis-password-7f1c", "OpenFGA token": "canary-openfga-token-93ab", "database password": "canary-database-password-5e20",
		"bearer": "canary-bearer-0d52", "password": "canary-basic-71e9", "garbage": "canary-garbage-4c1d", "unknown": "canary-unknown-88aa",
		"idempotency key": "canary-idempotency-3a6d",
	}
	requirePass(t, s.redis.Addr, secrets["Redis password"])
	s.write("redis-password", []byte(secrets["Redis password"]+"\n"))
	s.write("openfga-token", []byte(secrets["OpenFGA token"]))
	s.write("database-password", []byte(secrets["database password"]))
	if _, err := CreateCheckpointKey(filepath.Join(s.dir, "checkpoint.key"), issuer); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateKEK(filepath.Join(s.dir, "kek")); err != nil {
		t.Fatal(err)
	}
	_, secrets["key-encryption key"], _ = strings.Cut(strings.TrimSpace(s.read(t, "kek")), ":")
	secrets["signing key"] = strings.Split(s.read(t, "key.pem"), "\n")[1]
	private := strings.TrimSpace(s.read(t, "checkpoint.key"))
	secrets["checkpoint key"] = private[len(private)-40:]
	provider := s.withConsole(secrets)
	s.text = strings.NewReplacer(
		"redis:\n", "redis:\n  password_file: DIR/redis-password\n",
		"policy:\n", "policy:\n      token_file: DIR/openfga-token\n      cache: {enabled: true}\n",
		"    clients:\n", "    audit: {checkpoint_key: DIR/checkpoint.key, managed_checkpoint_key: true, checkpoint_file: DIR/checkpoint}\n    clients:\n",
		"tenants:\n", "key_encryption: {key_file: DIR/kek}\ntenants:\n",
	).Replace(s.text)
	dsn := "sqlite://" + filepath.Join(s.dir, "ledger.db")
	var postgres *testservers.PostgresServer
	if onPostgres {
		postgres = testservers.NewPostgres(t)
		dsn = postgres.DSN
		s.text = strings.NewReplacer("sqlite://DIR/ledger.db\n", dsn+"\n  password_file: DIR/database-password\n").Replace(s.text)
	}
	spans := tracetest.NewInMemoryExporter()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans), sdktrace.WithSampler(sdktrace.AlwaysSample()))
	registry := prometheus.NewRegistry()
	s.options.TracerProvider, s.options.Registry = tracer, registry
	i := s.start(t)

	all := traces{left: map[string]string{}, marks: map[string]string{}}
	grant := s.plant(t, i, secrets)
	all.leave("refusals by gRPC", s.presentByGRPC(t, i, secrets), "Unauthenticated")
	all.leave("refusals by HTTP", s.presentByHTTP(t, i, secrets), "invalid_request")
	all.leave("refusals of proofs", s.presentProofs(t, i, secrets), "proof_replayed")
	s.openManaged(t, i, secrets)
	s.browse(t, i, provider, grant, all, secrets)
	poll(t, func() bool { // a checkpoint comes within a second
		return strings.Contains(gathered(t, registry), "deputy_checkpoint_entries")
	}, func() string { return fmt.Sprintf("no checkpoint\n%s", s.log) })
	s.ask(t, i, grant, all, secrets)
	if !onPostgres { // the command line produces the same with both databases
		s.askByCommandLine(t, i, grant, all)
	}
	all.leave("checkpoint", s.read(t, "checkpoint")+s.read(t, "checkpoint.history"), "deputy.example\n")
	all.leave("rows", rows(t, dsn), planted)

	missing := []string{"redis"}
	s.redis.Stop() // errors of dependencies are logged with their causes
	if onPostgres {
		postgres.Stop()
		missing = []string{"ledger", "redis"}
	}
	i.await(t, missing)
	if _, err := i.exchange(t.Context(), t); err == nil {
		t.Error("granted without Redis")
	}
	documented(t, registry)
	i.stop(t)
	if !onPostgres {
		all.leave("ledger's files", s.ledgerFiles(t), planted)
	}
	// The ledger and its readers repeat a scope, these places do not: the test leaks it to them.
	slog.New(slog.NewJSONHandler(s.log, nil)).Info("planted", "scope", planted)
	_, span := tracer.Tracer("planted").Start(t.Context(), planted)
	span.End()
	registry.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "planted", ConstLabels: prometheus.Labels{"scope": planted}}))
	for place, text := range map[string]string{"log": s.log.String(), "metrics": gathered(t, registry), "traces": exported(t, spans)} {
		all.leave(place, text, planted)
	}
	all.check(t, secrets)
	for place, mark := range map[string]string{"metrics": "deputy_exchange_outcomes_total", "traces": "record", "log": "client_unauthenticated"} {
		if !strings.Contains(all.left[place], mark) {
			t.Errorf("the %s do not even hold %q", place, mark)
		}
	}
	for _, needed := range []string{
		"subject (payload)", "assertion (signature)", "issued by gRPC (payload)", "issued by HTTP (signature)", "actor (payload)", "workload token (signature)",
		"proof (signature)", "proof 1 (payload)", "credential that is bound, over HTTP (signature)", "bound token, a bound credential (payload)",
		"key-encryption key", "seed of managed key 0", "ID token (payload)", "code", "session", "sign-in", "PKCE verifier", "client secret of the console", "reader's assertion (signature)",
	} {
		if secrets[needed] == "" {
			t.Errorf("there was no canary for %s", needed)
		}
	}
}

func (s *site) read(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// plant has a token issued whose scope is planted, with an idempotency key that names the request.
func (s *site) plant(t *testing.T, i *instance, secrets canaries) *deputyv1.ExchangeResponse {
	t.Helper()
	r := s.request(t)
	r.SubjectToken = secrets.token("subject of what was planted", s.people.Sign(t, "at+jwt", map[string]any{
		"sub": "alice", "aud": issuer + "/subject-tokens", "scope": planted, "jti": s.id(),
		"iat": time.Now().Unix(), "exp": time.Now().Add(10 * time.Minute).Unix(),
	}))
	r.Child.Scope, r.IdempotencyKey = planted, secrets["idempotency key"]
	grant, err := deputyv1.NewTokenExchangeServiceClient(i.conn).Exchange(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	secrets.token("issued with what was planted", grant.GetAccessToken())
	child := s.request(t)
	child.SubjectToken, child.Child.Scope = grant.GetAccessToken(), planted
	if _, err := deputyv1.NewTokenExchangeServiceClient(i.conn).Exchange(t.Context(), child); err != nil {
		t.Fatal(err)
	}
	return grant
}

// refusal returns everything that a refused caller receives.
func refusal(err error) string { return fmt.Sprintf("%+v\n%+v\n", err, status.Convert(err).Proto()) }

// presentByGRPC returns the texts of the refusals.
func (s *site) presentByGRPC(t *testing.T, i *instance, secrets canaries) (said string) {
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
	_, err = service.Exchange(t.Context(), r)
	if said += refusal(err); err == nil {
		t.Error("an assertion was accepted twice")
	}

	// Refusals, some with a token in a field of another meaning.
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
		_, err := service.Exchange(t.Context(), r)
		if said += refusal(err); err == nil {
			t.Errorf("refusal %d was granted", n)
		}
	}
	bearer := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+secrets["bearer"])
	_, err = service.Introspect(bearer, &deputyv1.IntrospectRequest{Token: grant.GetAccessToken()})
	if said += refusal(err); err == nil {
		t.Error("a bearer of nothing was accepted")
	}

	// An invalid proof of possession, a cookie of other endpoints, and a workload's token.
	proof := secrets.token("proof", s.planner.Sign(t, "dpop+jwt", map[string]any{"jti": s.id(), "htm": "POST", "htu": issuer, "iat": time.Now().Unix()}))
	_, err = service.Exchange(metadata.AppendToOutgoingContext(t.Context(), "dpop", proof, "cookie", "session="+secrets["garbage"]), s.request(t))
	said += refusal(err)
	workload := s.request(t)
	workload.Client = nil
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+secrets.token("workload token", s.workload(t)))
	if _, err := service.Exchange(ctx, workload); err != nil {
		t.Error(err)
	}
	revocations := deputyv1.NewRevocationServiceClient(i.conn)
	for n, r := range []*deputyv1.RevokeRequest{
		{Token: grant.GetAccessToken(), Reason: "drill", Client: s.request(t).GetClient()},
		{RootToken: secrets.token("root token that is revoked", s.root(t)), Reason: "drill", Client: s.request(t).GetClient()},
	} {
		if _, err := revocations.Revoke(t.Context(), r); err != nil {
			t.Errorf("revocation %d: %v", n, err)
		}
	}
	watch, err := revocations.WatchRevocations(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+secrets["bearer"]))
	if err != nil {
		t.Fatal(err)
	}
	_, err = watch.Recv()
	if said += refusal(err); err == nil {
		t.Error("a bearer of nothing may watch")
	}
	_, err = revocations.Revoke(t.Context(), &deputyv1.RevokeRequest{Token: actor + "x", Client: s.request(t).GetClient()})
	return said + refusal(err)
}

// presentByHTTP returns the texts of the refusals.
func (s *site) presentByHTTP(t *testing.T, i *instance, secrets canaries) (said string) {
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
		// Credentials in fields that are otherwise recorded and repeated.
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
		code, body := s.post(t, i, try.query, try.form, try.authorization)
		if said += body; code == http.StatusOK {
			t.Errorf("refusal %d was granted", n)
		}
	}
	return said
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
		r.Header.Set("DPoP", authorization)
		r.Header.Set("Cookie", "session="+authorization)
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

// ledgerFiles returns the bytes of the database file and of the files beside it, so that data that
// SQL does not show is searched too.
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

// documented compares the registered metrics with those that docs/tuning.md explains.
func documented(t *testing.T, registry *prometheus.Registry) {
	t.Helper()
	manual, err := os.ReadFile("../docs/tuning.md")
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
			t.Errorf("docs/tuning.md does not explain %s", family.GetName())
		}
	}
	for _, name := range regexp.MustCompile("`(deputy_[a-z_]+)`").FindAllSubmatch(manual, -1) {
		if !there[string(name[1])] {
			t.Errorf("docs/tuning.md explains %s, which does not exist", name[1])
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
