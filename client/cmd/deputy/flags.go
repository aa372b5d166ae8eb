package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// issuerFlags name the issuer whose tokens are accepted.
type issuerFlags struct {
	Issuer string `env:"DEPUTY_ISSUER" placeholder:"URL" help:"Issuer of the Deputy tenant, byte for byte."`
	JWKS   string `name:"jwks" env:"DEPUTY_JWKS" placeholder:"URL|FILE" help:"Key set of the issuer. Default: the issuer followed by /oauth2/jwks."`
}

// verifier checks tokens as the resource server of the given name would.
func (f issuerFlags) verifier(audience string, now func() time.Time) (*client.Verifier, error) {
	if f.Issuer == "" {
		return nil, usage("name the expected issuer with --issuer or DEPUTY_ISSUER: the token's own iss claim proves nothing")
	}
	cfg := client.VerifierConfig{Issuer: f.Issuer, Audience: audience, IgnoreRevocations: true, Now: now}
	if strings.Contains(f.JWKS, "://") {
		cfg.JWKSURL = f.JWKS
	} else if f.JWKS != "" {
		document, err := os.ReadFile(f.JWKS)
		if err != nil {
			return nil, usage("--jwks: %v", err)
		}
		cfg.JWKS = document
	}
	v, err := client.NewVerifier(cfg)
	if err != nil {
		return nil, usage("%v", err)
	}
	return v, nil
}

// serverFlags hold Deputy's address and the caller's credentials.
type serverFlags struct {
	Addr          string        `env:"DEPUTY_ADDR" default:"127.0.0.1:9090" placeholder:"HOST:PORT" help:"Deputy's gRPC address (${default})."`
	Plaintext     bool          `env:"DEPUTY_PLAINTEXT" help:"Connect without TLS; to this machine only."`
	CAFile        string        `name:"ca-file" env:"DEPUTY_CA_FILE" placeholder:"FILE" help:"PEM roots for Deputy's certificate. Default: the system's."`
	ClientID      string        `env:"DEPUTY_CLIENT_ID" placeholder:"ID" help:"Authenticate as this client, with --client-key."`
	ClientKey     string        `env:"DEPUTY_CLIENT_KEY" placeholder:"FILE" help:"Private key of the client: JWK or PEM."`
	WorkloadToken string        `name:"workload-token-file" env:"DEPUTY_WORKLOAD_TOKEN_FILE" placeholder:"FILE" help:"Authenticate with this workload JWT instead of a key."`
	DPoPKey       string        `name:"dpop-key" env:"DEPUTY_DPOP_KEY" placeholder:"FILE" help:"Private key to which tokens are bound; each call carries a DPoP proof of it. JWK or PEM."`
	TLSCert       string        `name:"tls-cert" env:"DEPUTY_TLS_CERT" placeholder:"FILE" help:"Client certificate for mutual TLS: PEM."`
	TLSKey        string        `name:"tls-key" env:"DEPUTY_TLS_KEY" placeholder:"FILE" help:"Private key of --tls-cert: PEM."`
	Timeout       time.Duration `default:"15s" placeholder:"DURATION" help:"Give up after this long (${default})."`
}

// authenticated reports whether the flags name a credential.
func (f serverFlags) authenticated() bool {
	return f.ClientID != "" || f.ClientKey != "" || f.WorkloadToken != "" || f.TLSCert != ""
}

func (f serverFlags) credential(issuer string) (client.Credential, error) {
	switch {
	case f.WorkloadToken != "" && f.ClientKey != "":
		return nil, usage("--workload-token-file and --client-key name two callers: use one of them")
	case f.WorkloadToken != "":
		return client.WorkloadFile(f.WorkloadToken), nil
	case f.ClientKey == "" && f.ClientID == "":
		return nil, nil
	case f.ClientKey == "" || f.ClientID == "" || issuer == "":
		return nil, usage("to call as a client, all of --client-id, --client-key and --issuer are needed")
	}
	key, err := client.LoadKey(f.ClientKey)
	if err != nil {
		return nil, usage("--client-key: %v", err)
	}
	return client.NewAssertion(client.AssertionConfig{Issuer: issuer, ClientID: f.ClientID, Key: key})
}

func (f serverFlags) connect(issuer string) (*client.Client, error) {
	credential, err := f.credential(issuer)
	if err != nil {
		return nil, err
	}
	cfg := client.Config{Address: f.Addr, Credential: credential}
	if f.Plaintext {
		cfg.Transport = client.PlaintextLoopback
	}
	if cfg.TLSConfig, err = f.tlsConfig(); err != nil {
		return nil, err
	}
	if f.DPoPKey != "" {
		if cfg.ProofKey, err = loadProofKey(f.DPoPKey); err != nil {
			return nil, err
		}
	}
	c, err := client.New(cfg)
	if err != nil {
		return nil, usage("%v", err)
	}
	return c, nil
}

// readToken reads a token from a file, or from standard input for "-".
func (a *app) readToken(from string) (string, error) {
	in := a.stdin
	if from != "-" {
		f, err := os.Open(from)
		if err != nil {
			return "", usage("%v", err)
		}
		defer f.Close()
		in = f
	}
	content, err := io.ReadAll(io.LimitReader(in, 2*delegation.MaxTokenBytes))
	if err != nil {
		return "", fmt.Errorf("reading the token: %w", err)
	}
	token := strings.TrimSpace(string(content))
	if token == "" {
		return "", usage("there is no token in %s", source(from))
	}
	return token, nil
}

func source(from string) string {
	if from == "-" {
		return "standard input"
	}
	return from
}

// tokenArgument reads the token of decode and chain: an argument, "-", or else the environment.
func (a *app) tokenArgument(argument string) (string, error) {
	switch argument {
	case "":
		if token := os.Getenv("DEPUTY_TOKEN"); token != "" {
			return token, nil
		}
		return "", usage("there is no token: pass it on standard input with -, or in DEPUTY_TOKEN")
	case "-":
		return a.readToken("-")
	}
	return argument, nil
}
