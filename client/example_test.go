package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"google.golang.org/grpc"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/internal/deputytest"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// newPlanner connects to a Deputy as the client "planner". In a program the key comes from
// client.LoadKey, and TLS is the default.
func newPlanner(deputy *deputytest.Server) *client.Client {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	key, err := client.NewKey(private, "planner-1")
	if err != nil {
		log.Fatal(err)
	}
	credential, err := client.NewAssertion(client.AssertionConfig{Issuer: deputy.Issuer, ClientID: "planner", Key: key})
	if err != nil {
		log.Fatal(err)
	}
	c, err := client.New(client.Config{Address: deputy.Address, Transport: client.PlaintextLoopback, Credential: credential})
	if err != nil {
		log.Fatal(err)
	}
	return c
}

func Example() {
	deputy := deputytest.Start()
	defer deputy.Close()
	ctx := context.Background()
	planner := newPlanner(deputy)
	defer planner.Close()

	// The planner takes the scopes that alice permits, and hands fewer to the researcher.
	own, err := planner.Exchange(ctx, client.ExchangeRequest{
		SubjectToken: client.NewSecret(deputy.RootToken("alice")),
		Child: client.Child{
			Scopes:   delegation.Scopes{"calendar.read", "calendar.write"},
			Audience: []string{"https://calendar.example"},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	token, err := planner.Exchange(ctx, client.ExchangeRequest{
		SubjectToken: own.AccessToken,
		Child: client.Child{
			RequestedActor: "agent:researcher",
			Scopes:         delegation.Scopes{"calendar.read"},
			Audience:       []string{"https://calendar.example"},
			Lifetime:       5 * time.Minute,
		},
	})
	if err != nil {
		log.Fatal(err)
	}

	// The calendar checks the researcher's token.
	calendar, err := client.NewVerifier(client.VerifierConfig{
		Issuer: deputy.Issuer, Audience: "https://calendar.example",
		Client: planner, // in a program, the calendar's own
	})
	if err != nil {
		log.Fatal(err)
	}
	defer calendar.Close()
	if err := calendar.Ready(ctx); err != nil {
		log.Fatal(err)
	}
	d, err := calendar.Verify(ctx, token.AccessToken.Reveal())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(d.Actor(), "acts for", d.Subject(), "through", d.Chain())
	fmt.Println("may", d.Scopes())
	fmt.Println("token:", token.AccessToken)
	// Output:
	// agent:researcher acts for user:alice through [agent:planner agent:researcher]
	// may calendar.read
	// token: [redacted]
}

func ExampleClient_Exchange_refused() {
	deputy := deputytest.Start()
	defer deputy.Close()
	planner := newPlanner(deputy)
	defer planner.Close()

	_, err := planner.Exchange(context.Background(), client.ExchangeRequest{
		SubjectToken: client.NewSecret(deputy.RootToken("alice")),
		Child:        client.Child{Scopes: delegation.Scopes{"admin"}, Audience: []string{"https://calendar.example"}},
	})
	if refusal, ok := errors.AsType[*delegation.Error](err); ok {
		fmt.Println(refusal.Reason, "in", refusal.Field)
	}
	// Output: scope_exceeds_parent in scope
}

func ExampleClient_TokenSource() {
	deputy := deputytest.Start()
	defer deputy.Close()
	planner := newPlanner(deputy)
	defer planner.Close()

	source := planner.TokenSource(func(context.Context) (client.ExchangeRequest, error) {
		return client.ExchangeRequest{
			SubjectToken: client.NewSecret(deputy.RootToken("alice")),
			Child:        client.Child{Scopes: delegation.Scopes{"calendar.read"}, Audience: []string{"https://calendar.example"}},
		}, nil
	})
	first, err := source.Token(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	second, err := source.Token(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(first.JTI == second.JTI)
	// Output: true
}

func ExampleVerifier_Handler() {
	deputy := deputytest.Start()
	defer deputy.Close()
	own := newPlanner(deputy) // in a program, the calendar's own client
	defer own.Close()
	verifier, err := client.NewVerifier(client.VerifierConfig{Issuer: deputy.Issuer, Audience: "https://calendar.example", Client: own})
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()
	if err := verifier.Ready(context.Background()); err != nil {
		log.Fatal(err)
	}
	events := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d, ok := client.FromContext(r.Context()); ok {
			fmt.Fprintf(w, "events of %s", d.Subject())
		}
	})
	handler := verifier.Handler(events, "calendar.read")

	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "/events", nil)
	handler.ServeHTTP(w, r)
	fmt.Println(w.Code, w.Header().Get("WWW-Authenticate"))

	w = httptest.NewRecorder()
	r.Header.Set("Authorization", "Bearer "+deputy.Token(deputy.Claims(time.Now())))
	handler.ServeHTTP(w, r)
	fmt.Println(w.Code, w.Body)
	// Output:
	// 401 Bearer realm="https://calendar.example"
	// 200 events of user:alice
}

func ExampleVerifier_UnaryServerInterceptor() {
	deputy := deputytest.Start()
	defer deputy.Close()
	own := newPlanner(deputy) // in a program, the calendar's own client
	defer own.Close()
	verifier, err := client.NewVerifier(client.VerifierConfig{
		Issuer:   deputy.Issuer,
		Audience: "https://calendar.example",
		Client:   own,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()
	methods := client.Methods{
		Scopes: map[string]delegation.Scopes{"/calendar.v1.Calendar/List": {"calendar.read"}},
		Public: []string{"/grpc.health.v1.Health/Check"},
	}
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(verifier.UnaryServerInterceptor(methods)),
		grpc.ChainStreamInterceptor(verifier.StreamServerInterceptor(methods)),
	)
	defer server.Stop()
	fmt.Println(len(server.GetServiceInfo()))
	// Output: 0
}

// A token that is bound to the agent's key is useless to a thief. In a program the key comes from
// LoadKey and ProofKey, and the tool is elsewhere.
func ExamplePresenter() {
	deputy := deputytest.Start()
	defer deputy.Close()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	key, err := client.NewKey(private, "planner-1")
	if err != nil {
		log.Fatal(err)
	}
	proofKey, err := key.ProofKey()
	if err != nil {
		log.Fatal(err)
	}
	credential, err := client.NewAssertion(client.AssertionConfig{Issuer: deputy.Issuer, ClientID: "planner", Key: key})
	if err != nil {
		log.Fatal(err)
	}
	planner, err := client.New(client.Config{
		Address: deputy.Address, Transport: client.PlaintextLoopback, Credential: credential, ProofKey: proofKey,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer planner.Close()

	// The tool is configured with the address by which callers reach it.
	tool := httptest.NewUnstartedServer(nil)
	defer tool.Close()
	address := "http://" + tool.Listener.Addr().String()
	verifier, err := client.NewVerifier(client.VerifierConfig{
		// In a program, Client is the calendar's own.
		Issuer: deputy.Issuer, Audience: "https://calendar.example", Client: planner,
		URLs: []string{address},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()
	if err := verifier.Ready(context.Background()); err != nil {
		log.Fatal(err)
	}
	tool.Config.Handler = verifier.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d, ok := client.FromContext(r.Context()); ok {
			fmt.Fprintf(w, "events of %s", d.Subject())
		}
	}), "calendar.read")
	tool.Start()

	source := planner.TokenSource(func(context.Context) (client.ExchangeRequest, error) {
		return client.ExchangeRequest{
			SubjectToken: client.NewSecret(deputy.RootToken("alice")),
			Child:        client.Child{Scopes: delegation.Scopes{"calendar.read"}, Audience: []string{"https://calendar.example"}},
		}, nil
	})
	presenter, err := client.NewPresenter(client.PresenterConfig{Origin: address, Token: source.Token, ProofKey: proofKey})
	if err != nil {
		log.Fatal(err)
	}
	response, err := (&http.Client{Transport: presenter}).Get(address + "/events")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(response.StatusCode, string(body))

	token, err := source.Token(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	_, err = verifier.Verify(context.Background(), token.AccessToken.Reveal())
	fmt.Println(token.TokenType, err)
	// Output:
	// 200 events of user:alice
	// DPoP invalid_token: the token is bound to a key, and this server takes no proof of it
}

// A responder checks what an agent can do, and an auditor what was requested in its name.
func ExampleClient_Reach() {
	deputy := deputytest.Start()
	defer deputy.Close()
	ctx := context.Background()
	c := newPlanner(deputy)
	defer c.Close()
	if _, err := c.Exchange(ctx, client.ExchangeRequest{
		SubjectToken: client.NewSecret(deputy.RootToken("alice")),
		Child:        client.Child{Scopes: delegation.Scopes{"calendar.read"}, Audience: []string{"https://calendar.example"}},
	}); err != nil {
		log.Fatal(err)
	}

	reach, err := c.Reach(ctx, "agent:planner", 0)
	if err != nil {
		log.Fatal(err)
	}
	for _, token := range reach.Tokens {
		fmt.Println("holds for", token.Subject, "the scopes", token.Scope)
	}
	for entry, err := range c.Search(ctx, client.SearchQuery{Actor: "agent:planner", Kind: client.KindGrant}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("entry", entry.Seq, "is", entry.State)
	}
	// Output:
	// holds for user:alice the scopes calendar.read
	// entry 41 is live
}

// A program that feeds a SIEM stores the last number that it delivered, and continues after it when
// it is started again.
func ExampleClient_Entries() {
	deputy := deputytest.Start()
	defer deputy.Close()
	deputy.RevokeNow(deputyv1.RevocationKind_REVOCATION_KIND_SUSPEND, "agent:researcher", "")
	c := newPlanner(deputy)
	defer c.Close()

	var last uint64
	// A service sets Follow: true.
	for entry, err := range c.Entries(context.Background(), client.EntriesRequest{After: last}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(entry.Seq, entry.Kind, entry.Revocation.Target.ID)
		last = entry.Seq
	}
	// Output: 41 revocation agent:researcher
}
