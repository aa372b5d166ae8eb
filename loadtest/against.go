package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// against drives a Deputy that runs elsewhere. The CPU time of its processes cannot be read from
// here, so there are latencies and no ratios.
type against struct {
	GRPC             string   `required:"" placeholder:"ADDRESS" help:"The gRPC listener."`
	CA               string   `type:"existingfile" placeholder:"FILE" help:"Certificates to trust (PEM). Default: the system's."`
	Plaintext        bool     `help:"No TLS: for loopback addresses only."`
	Issuer           string   `placeholder:"ADDRESS" help:"The tenant's issuer, for --client."`
	Client           string   `placeholder:"ID" help:"The caller, which signs assertions with --key."`
	Key              string   `type:"existingfile" placeholder:"FILE" help:"Private key of --client: PEM or a JWK."`
	WorkloadFile     string   `type:"existingfile" placeholder:"FILE" help:"In place of --client: the caller's workload JWT."`
	SubjectTokens    string   `required:"" type:"existingfile" placeholder:"FILE" help:"Parents, one on each line; requests use them in turn. The caller must be allowed to exchange them."`
	SubjectTokenType string   `placeholder:"URN" help:"Their type. Default: access token."`
	ActorTokenFile   string   `type:"existingfile" placeholder:"FILE" help:"Names the new actor. Default: the caller narrows its own token, or steps in."`
	Scope            []string `placeholder:"SCOPE,…" help:"Scopes to request."`
	Audience         []string `required:"" placeholder:"NAME,…" help:"Services that the token is for."`
	ValidateOnly     bool     `help:"Validate only: no token is issued. Each request is a ledger entry nevertheless."`
	Requests         int      `default:"1000" placeholder:"N" help:"Number of requests. Each grant is a ledger entry. Default ${default}."`
	AtOnce           int      `default:"64" placeholder:"N" help:"Maximum number of concurrent requests. Default ${default}."`
	Rate             float64  `placeholder:"N" help:"Requests per second, whether or not they are answered in time. Default: as fast as they are answered."`
	Out              string   `default:"loadtest/results" placeholder:"FOLDER" help:"Folder of the report. Default ${default}."`
	Name             string   `placeholder:"NAME" help:"Name of the report's files. Default: against and the time."`
}

// elsewhere is the set-up of a report about a Deputy that this program did not start.
const elsewhere = "elsewhere"

// Run drives, and reports. It fails where a request does.
func (a against) Run(ctx context.Context, stdout io.Writer) (err error) {
	if a.Requests < 1 || a.AtOnce < 1 || a.Rate < 0 {
		return errors.New("--requests and --at-once must be positive, --rate not negative")
	}
	do, closeAll, err := a.operation()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	r := &report{
		Command: "go run ./loadtest against", At: time.Now(), Machine: thisMachine(), AtOnce: a.AtOnce, Rounds: 1,
		Commit: "of the target: unknown",
	}
	b := &bench{progress: os.Stderr}
	measured, err := b.observe(nil, 1, a.GRPC, func(r *recorder) {
		if a.Rate > 0 {
			openLoop(ctx, r, schedule{rate: a.Rate, requests: a.Requests, atOnce: a.AtOnce}, do)
			return
		}
		closedLoop(ctx, r, a.Requests, a.AtOnce, do)
	})
	if err != nil {
		return err
	}
	measured.Setup, measured.Scenario, measured.Round, measured.Rate = elsewhere, "exchange", 1, a.Rate
	if a.Rate > 0 {
		r.Open = []run{measured}
	} else {
		r.Runs = []run{measured}
	}
	if a.Name == "" {
		a.Name = "against-" + r.At.UTC().Format("20060102-150405")
	}
	if err := r.write(a.Out, a.Name); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s\n", r.markdown(a.Name))
	return errors.Join(ctx.Err(), r.verdict(true))
}

// operation is one exchange. closeAll ends the connections.
func (a against) operation() (do operation, closeAll func() error, err error) {
	text, err := os.ReadFile(a.SubjectTokens)
	if err != nil {
		return nil, nil, err
	}
	var parents []client.Secret
	for _, token := range strings.Fields(string(text)) {
		parents = append(parents, client.NewSecret(token))
	}
	if len(parents) == 0 {
		return nil, nil, fmt.Errorf("%s: must hold a token on each line", a.SubjectTokens)
	}
	child := client.Child{Scopes: slices.Clone(a.Scope), Audience: a.Audience}
	if a.ActorTokenFile != "" {
		name, err := os.ReadFile(a.ActorTokenFile)
		if err != nil {
			return nil, nil, err
		}
		child.ActorToken = client.NewSecret(strings.TrimSpace(string(name)))
	}
	config, err := a.config()
	if err != nil {
		return nil, nil, err
	}
	pool := make([]*client.Client, connections)
	for i := range pool {
		if pool[i], err = client.New(config); err != nil {
			return nil, nil, err
		}
	}
	closeAll = func() error {
		var errs []error
		for _, c := range pool {
			errs = append(errs, c.Close())
		}
		return errors.Join(errs...)
	}
	return func(ctx context.Context, i int) (string, error) {
		_, err := pool[i%connections].Exchange(ctx, client.ExchangeRequest{
			SubjectToken: parents[i%len(parents)], SubjectTokenType: a.SubjectTokenType, Child: child, ValidateOnly: a.ValidateOnly,
		})
		// A refusal is an outcome here: the expected outcome of these tokens is unknown.
		if refusal, refused := errors.AsType[*delegation.Error](err); refused && !refusal.Temporary() && refusal.Reason != delegation.Internal {
			return string(refusal.Reason), nil
		}
		return granted, err
	}, closeAll, nil
}

func (a against) config() (client.Config, error) {
	config := client.Config{Address: a.GRPC, Attempts: 1}
	switch {
	case (a.Client == "") == (a.WorkloadFile == ""):
		return config, errors.New("--client: must be set, with --key and --issuer; or set --workload-file")
	case a.WorkloadFile != "":
		config.Credential = client.WorkloadFile(a.WorkloadFile)
	default:
		key, err := client.LoadKey(a.Key)
		if err != nil {
			return config, err
		}
		if config.Credential, err = client.NewAssertion(client.AssertionConfig{Issuer: a.Issuer, ClientID: a.Client, Key: key}); err != nil {
			return config, err
		}
	}
	switch {
	case a.Plaintext && a.CA != "":
		return config, errors.New("--ca: must not be set with --plaintext")
	case a.Plaintext:
		config.Transport = client.PlaintextLoopback
	case a.CA != "":
		pem, err := os.ReadFile(a.CA)
		if err != nil {
			return config, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return config, fmt.Errorf("%s: must hold a certificate (PEM)", a.CA)
		}
		config.TLSConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	return config, nil
}
