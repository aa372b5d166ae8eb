package client

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

const canary = "eyJjYW5hcnkiOiJjYW5hcnkifQ"

// TestSecretsDoNotPrint prints every value that holds a token in every way that a program prints.
func TestSecretsDoNotPrint(t *testing.T) {
	token := Token{AccessToken: NewSecret(canary), JTI: "jti-1"}
	request := ExchangeRequest{SubjectToken: NewSecret(canary), Child: Child{ActorToken: NewSecret(canary)}}
	type inside struct {
		token   Token // unexported: fmt cannot call its methods
		request ExchangeRequest
	}
	values := map[string]any{
		"secret": NewSecret(canary), "token": token, "*token": &token, "request": request, "*request": &request,
		"batch":   BatchRequest{SubjectToken: NewSecret(canary), Children: []Child{request.Child}},
		"outcome": []Outcome{{Token: &token}}, "unexported": inside{token, request}, "*unexported": &inside{token, request},
		"map":    map[string]any{"t": token},
		"revoke": RevokeRequest{Target: RevokeToken(NewSecret(canary))}, "target": RevokeRootToken(NewSecret(canary)),
		"verifier": remembering(t), "in a verifier": struct{ v *Verifier }{remembering(t)},
	}
	for name, value := range values {
		if printed := printings(value); strings.Contains(printed, canary) {
			t.Errorf("%s prints the token:\n%s", name, printed)
		}
	}
	if !strings.Contains(printings(struct{ AccessToken string }{canary}), canary) {
		t.Error("negative control: a plain string is not found in what is printed")
	}
	if NewSecret(canary).Reveal() != canary || !NewSecret("").IsZero() || fmt.Sprint(NewSecret(canary)) != redacted || fmt.Sprint(Secret{}) != "" {
		t.Error("a secret that does not keep its token")
	}
}

// remembering returns a verifier that has accepted the canary.
func remembering(t *testing.T) *Verifier {
	v := fixedVerifier(t, startDeputy(t))
	v.verdicts.put(canary, &verdict{})
	return v
}

func printings(v any) string {
	var b bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&b, verb+"\n", v)
	}
	slog.New(slog.NewTextHandler(&b, nil)).Info("text", "v", v)
	slog.New(slog.NewJSONHandler(&b, nil)).Info("json", "v", v)
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		fmt.Fprintln(&b, err)
	}
	return b.String()
}
