package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/internal/deputytest"
)

// README.md shows this function and the next one.

// delegate exchanges alice's token for one that lets the researcher read her calendar.
// The planner calls with its own key: client.LoadKey("planner.pem").
func delegate(ctx context.Context, issuer, address string, key *client.Key, alice, researcher string) (*client.Token, error) {
	credential, err := client.NewAssertion(client.AssertionConfig{Issuer: issuer, ClientID: "agent:planner", Key: key})
	if err != nil {
		return nil, err
	}
	deputy, err := client.New(client.Config{Address: address, Credential: credential, Transport: client.PlaintextLoopback})
	if err != nil {
		return nil, err
	}
	defer deputy.Close()
	return deputy.Exchange(ctx, client.ExchangeRequest{
		SubjectToken: client.NewSecret(alice),
		Child: client.Child{
			ActorToken: client.NewSecret(researcher), // a workload token that names agent:researcher
			Scopes:     delegation.Scopes{"calendar.read"},
			Audience:   []string{"https://calendar.example"},
			Lifetime:   5 * time.Minute,
		},
	})
}

// protect lets requests through whose token holds calendar.read and is not revoked.
func protect(ctx context.Context, issuer string, deputy *client.Client, events http.Handler) (http.Handler, error) {
	verifier, err := client.NewVerifier(client.VerifierConfig{Issuer: issuer, Audience: "https://calendar.example", Client: deputy})
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { verifier.Close() })
	return verifier.Handler(events, "calendar.read"), verifier.Ready(ctx)
}

// Example_readme runs the two functions of README.md.
func Example_readme() {
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
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	token, err := delegate(ctx, deputy.Issuer, deputy.Address, key, deputy.RootToken("alice"), "a workload token")
	if err != nil {
		log.Fatal(err)
	}
	calendar := newPlanner(deputy) // in a program, the calendar's own client
	defer calendar.Close()
	handler, err := protect(ctx, deputy.Issuer, calendar, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, _ := client.FromContext(r.Context())
		fmt.Fprintf(w, "events of %s for %s", d.Subject(), d.Scopes())
	}))
	if err != nil {
		log.Fatal(err)
	}
	request := httptest.NewRequest(http.MethodGet, "/events", nil)
	request.Header.Set("Authorization", "Bearer "+token.AccessToken.Reveal())
	response := httptest.NewRecorder()
	handler.ServeHTTP(response, request)
	fmt.Println(response.Code, response.Body)
	// Output: 200 events of user:alice for calendar.read
}
