// Package server assembles Deputy's server. It reads the configuration, opens the files and
// services that it names, configures the packages below, and serves until its context ends.
//
// The package owns the configuration file, the order of starting and draining, readiness, and all
// logs, metrics and traces that leave the process. It must not know how a token is verified, what
// policy asks or what an exchange decides. Those packages have a Config and a New each, and this
// package only calls them.
package server

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/token"
)

// Config is the whole configuration. In a file it is YAML with exactly the keys that the yaml tags
// name. Secrets are in separate files that it refers to, never in it. Relative paths start at the
// working directory.
type Config struct {
	Listen    Listen    `yaml:"listen"`
	Database  Database  `yaml:"database"`
	Redis     Redis     `yaml:"redis"`
	Telemetry Telemetry `yaml:"telemetry"`
	Clock     Clock     `yaml:"clock"`
	// KeyEncryption seals the keys that Deputy manages. Default none.
	KeyEncryption KeyEncryption `yaml:"key_encryption"`
	// Tenants share the process, the database and Redis, and nothing else. Required, at least one.
	Tenants []Tenant `yaml:"tenants"`

	lines *document // positions in the file; nil for a Config that was made in Go
}

// Listen holds the addresses of Deputy's listeners and the times of its shutdown.
type Listen struct {
	// GRPC serves the gRPC API. Default 127.0.0.1:9090.
	GRPC Listener `yaml:"grpc"`
	// HTTP serves the OAuth endpoints of all tenants. Default 127.0.0.1:8080.
	HTTP Listener `yaml:"http"`
	// Ops serves /healthz, /readyz and /metrics. Default 127.0.0.1:9091. Danger: it authenticates
	// no caller. Let only the orchestrator and the monitoring reach it.
	Ops Listener `yaml:"ops"`
	// DrainNotice is how long Deputy continues to serve after it reports that it is not ready: the
	// time that a load balancer needs to notice. Default none, at most 1m.
	DrainNotice time.Duration `yaml:"drain_notice"`
	// DrainTimeout is how long running requests may take after the notice before they are cut off.
	// Default 10s, at most 5m.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
}

// Listener is one address that Deputy listens on.
type Listener struct {
	// Address is host:port. Port 0 selects a free port.
	Address string `yaml:"address"`
	// TLS encrypts the connections. Default none.
	TLS *TLS `yaml:"tls"`
	// Authorities are the names by which clients reach a gRPC listener, each host or host:port as
	// clients dial it. DPoP proofs are made for such a name. A proof for any other name is refused,
	// because it was made for another server. gRPC only: HTTP has the tenants' issuers for that.
	// Default: this machine's own names where the listener is on a loopback address, and otherwise
	// none, so that no proof is accepted.
	Authorities []string `yaml:"authorities"`
	// Proxies are the addresses or networks of the proxies of this listener, such as 10.0.0.7 or
	// 10.0.0.0/24. They append the address of each client to x-forwarded-for, and the bounds of
	// unauthenticated callers then hold for that client. Not for listen.ops. Default none: a proxy
	// counts as one client. Danger: a peer that connects from these addresses chooses the client
	// that its calls count against.
	Proxies []string `yaml:"proxies"`
	// InsecurePlaintext allows connections without TLS from other machines. Default false. Danger:
	// anyone on the network path can read and use a bearer token. Set it only where another layer,
	// such as a service mesh, encrypts.
	InsecurePlaintext bool `yaml:"insecure_plaintext"`
}

// Database holds the address of the ledger.
type Database struct {
	// DSN is postgres://user@host/database?sslmode=verify-full or sqlite:///path/of/file.db.
	// Required. SQLite is for one instance on one machine. Several instances need PostgreSQL.
	DSN string `yaml:"dsn"`
	// PasswordFile holds the password of the DSN's user. Default none.
	PasswordFile string `yaml:"password_file"`
	// InsecurePlaintext allows PostgreSQL on another machine without sslmode=verify-full. Default
	// false. Danger: anyone on the network path can read the ledger and answer in its place.
	InsecurePlaintext bool `yaml:"insecure_plaintext"`
}

// Redis limits rates and refuses replays early. It is not the source of truth: its data may be lost
// at any time.
type Redis struct {
	// URL is redis://[user@]host:port/db, rediss:// with TLS, or unix://. Required. Danger: a
	// client that can write to Redis can lift rate limits or cause refusals.
	URL string `yaml:"url"`
	// PasswordFile holds the password. Default none.
	PasswordFile string `yaml:"password_file"`
	// InsecurePlaintext allows redis:// to another machine. Default false.
	InsecurePlaintext bool `yaml:"insecure_plaintext"`
	// Timeout bounds each request to Redis. A slower Redis counts as down, and requests are
	// refused. Default 500ms, 10ms to 1s.
	Timeout time.Duration `yaml:"timeout"`
	// InProcess keeps in the memory of this process what is otherwise in Redis, and excludes URL.
	// It is for a deployment of one instance that a program makes. No configuration file sets it.
	InProcess bool
}

// Telemetry configures logs and traces. Credentials are removed from both.
type Telemetry struct {
	// OTLPEndpoint receives traces by OTLP over gRPC: https://collector:4317, or http:// for a
	// plaintext collector. Default none: trace ids are made for ledger entries, and no trace is
	// sent. Danger: traces show which principal requested what, and when.
	OTLPEndpoint string `yaml:"otlp_endpoint"`
	// LogLevel is debug, info, warn or error. Default info.
	LogLevel string `yaml:"log_level"`
	// LogFormat is json or text. Default json.
	LogFormat string `yaml:"log_format"`
}

// Clock bounds the effect of wrong clocks (docs/incidents.md).
type Clock struct {
	// Bound is how far the clocks of this machine, of PostgreSQL and of Redis may be apart. An
	// instance whose clock is further off issues and forgets nothing until it is right again.
	// Default 2s, or the shortest skew of a tenant where that is less. 100ms to the shortest skew.
	// Danger: a longer bound lets tokens live that much longer at an instance whose clock is
	// behind.
	Bound time.Duration `yaml:"bound"`
}

// Tenant is one isolated unit with its own issuer address, keys, trust, relationships and limits.
type Tenant struct {
	// Name is the tenant's name in logs, metrics and the ledger: lower-case letters, digits and
	// dashes. Required. Danger: ledger entries are found by it, so a renamed tenant starts an empty
	// ledger.
	Name string `yaml:"name"`
	// Issuer is the iss of the tenant's tokens and the audience that authenticates a caller: https,
	// no query, fragment or trailing slash. Its path is where the tenant's endpoints are. Required.
	// Danger: every verifier holds it. A change makes all issued tokens unverifiable.
	Issuer string `yaml:"issuer"`
	// Default is true for the one tenant whose issuer has no path, so that its endpoints are at the
	// root. All others have a path, such as /t/acme. Default false.
	Default bool `yaml:"default"`
	// SigningKeys sign the tenant's tokens: the first key signs, all keys verify and are published.
	// Required, unless there are managed_keys. Make them with "deputyd keys create".
	SigningKeys []token.KeyFile `yaml:"signing_keys"`
	// ManagedKeys are made, kept and replaced by Deputy, in place of signing_keys. Default none.
	ManagedKeys *ManagedKeys `yaml:"managed_keys"`
	// TrustedIssuers are the issuers whose tokens start chains or name actors. Default none: no
	// chain can start.
	TrustedIssuers []token.TrustedIssuer `yaml:"trusted_issuers"`
	// Clients authenticate with keys registered here (private_key_jwt), or with certificates (tls).
	// Default none.
	Clients []token.Client `yaml:"clients"`
	// ResourceServers are the principals that serve an audience, by audience. They may introspect
	// tokens for it. Default none: then only the token's own chain, a principal whose name is the
	// audience, and the introspectors and auditors of OpenFGA may. Danger: a listed principal sees
	// the claims of each such token that is presented to it.
	ResourceServers map[string][]delegation.Principal `yaml:"resource_servers"`
	// ClientCAFile holds the certificate authorities, as PEM, that are trusted where a client is
	// known by a name (clients[].tls). Default none. Danger: each of them can issue a certificate
	// in any client's name.
	ClientCAFile string `yaml:"client_ca_file"`
	// SPIFFE lists trust domains whose workloads authenticate and name actors. Default none.
	// Danger: a holder of a key of a bundle can act as every workload of its trust domain.
	SPIFFE []token.TrustDomain `yaml:"spiffe"`
	// Skew is how far in the future nbf and iat may be. Default 5s, at most 1m. exp has no leeway.
	Skew time.Duration `yaml:"skew"`
	// AllowInsecureLoopback permits http:// for issuer addresses and keys on this machine, for
	// development. Default false. Danger: any program that listens on that port decides which
	// issuers Deputy trusts.
	AllowInsecureLoopback bool   `yaml:"allow_insecure_loopback"`
	Policy                Policy `yaml:"policy"`
	Limits                Limits `yaml:"limits"`
	// RequireDPoPNonce requires a nonce of Deputy's in each DPoP proof (RFC 9449 section 8). The
	// first answer gives clients the nonce, and they try again. With it, no one can make proofs in
	// advance with a key that is accessible only now. Default false: a proof is valid for a minute.
	RequireDPoPNonce bool `yaml:"require_dpop_nonce"`
	// EmergencyResponders count as responders while OpenFGA does not answer. They revoke, suspend
	// and read everything of the tenant, and resume nothing. Default none: then, during an outage
	// of OpenFGA, each caller can revoke only what it may revoke by itself. The rule applies only
	// if both the question and OpenFGA's readiness fail. Danger: OpenFGA is not asked whether they
	// still are responders. To delete a principal's tuples does not remove this power. To remove
	// the principal here does.
	EmergencyResponders []delegation.Principal `yaml:"emergency_responders"`
	// AcceptJSONSTS makes the token endpoint accept a JSON object of RFC 8693's string members too,
	// which grpc-go's STS credential sends. Default false: OAuth requires a form.
	AcceptJSONSTS bool `yaml:"accept_json_sts"`
	// Audit configures how the tenant's record is kept.
	Audit Audit `yaml:"audit"`
	// Console serves pages for auditors and responders below the issuer, at /console. Default none.
	Console *Console `yaml:"console"`
}

// Audit configures the tenant's record and how outsiders can verify it.
type Audit struct {
	// CheckpointKey is the file of a key of its own, which signs the heads of the tenant's log.
	// "deputyd keys create --checkpoint" makes it, and prints the verifier key for auditors.
	// Default none: then no outsider can detect that the log was changed. Danger: a holder of the
	// key can sign another log.
	CheckpointKey string `yaml:"checkpoint_key"`
	// ManagedCheckpointKey makes Deputy create and keep such keys itself. "deputyd keys list"
	// prints the verifier keys for auditors. With checkpoint_key too, both sign, for the change
	// from one to the other. Default false.
	ManagedCheckpointKey bool `yaml:"managed_checkpoint_key"`
	// CheckpointFile receives each new checkpoint. The file with .history appended to its name
	// receives all of them. Put it where a writer of the database cannot write. Deputy is not ready
	// while the ledger does not continue the checkpoint. Default none: then only readers who kept a
	// checkpoint notice a restored backup.
	CheckpointFile string    `yaml:"checkpoint_file"`
	Retention      Retention `yaml:"retention"`
}

// Console lets people sign in with an OpenID provider to read the record and to revoke authority.
// OpenFGA alone decides what each person may do (docs/console.md).
type Console struct {
	// Issuer of the provider: one of the trusted issuers, whose mapping yields the principal of a
	// person. Required.
	Issuer string `yaml:"issuer"`
	// ClientID is the console's client id at the provider. Register the redirect address <tenant's
	// issuer>/console/sign-in/callback with it. Required. Danger: it must not be among the
	// audiences of that trusted issuer, or a person who signs in to the console could start a chain
	// with that token.
	ClientID string `yaml:"client_id"`
	// ClientSecretFile holds the client secret that the provider issued. Default none: PKCE alone,
	// as for a public client.
	ClientSecretFile string `yaml:"client_secret_file"`
	// Scopes to request besides openid, where the principal comes from a claim that they give.
	// Default none.
	Scopes []string `yaml:"scopes"`
	// IdleTimeout ends an unused session. Default 30m, 1m to 8h. A page that follows the ledger
	// uses the session.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// MaxSession ends every session. Default 12h, at most 24h. Danger: a stolen session is valid
	// for that long.
	MaxSession time.Duration `yaml:"max_session"`
}

// Policy names the OpenFGA store and model that decide for the tenant.
type Policy struct {
	// URL of OpenFGA's HTTP API. Required; https unless on this machine or with insecure_plaintext.
	URL string `yaml:"url"`
	// Store is the id of the store. Required. Danger: a client that can write to it decides what
	// each principal may do.
	Store string `yaml:"store"`
	// Model is the id of the authorization model, always pinned. Required.
	Model string `yaml:"model"`
	// TokenFile holds OpenFGA's preshared key. Default none.
	TokenFile string `yaml:"token_file"`
	// InsecurePlaintext allows http:// to another machine. Default false. Danger: anyone on the
	// network path can answer in OpenFGA's place.
	InsecurePlaintext bool `yaml:"insecure_plaintext"`
	// Timeout bounds the policy question of one exchange. A slower OpenFGA counts as down. Default
	// 1s, 10ms to 1s500ms.
	Timeout time.Duration `yaml:"timeout"`
	// MaxChecks bounds the checks of one exchange and of one BatchCheck. Default 50, which is
	// OpenFGA's own limit: raise that one first. At most 500.
	MaxChecks int `yaml:"max_checks"`
	// Mapping replaces the shipped model by another one. Default: the shipped model.
	Mapping policy.Mapping `yaml:"mapping"`
	// Cache keeps decisions for as long as OpenFGA's changelog shows no change that affects them.
	// Default off.
	Cache policy.Cache `yaml:"cache"`
}

// Limits bound what the tenant issues, and how fast.
type Limits struct {
	// MaxLifetime of a derived token. Default 15m, 1s to 24h. Danger: a stolen token is usable for
	// that long.
	MaxLifetime time.Duration `yaml:"max_lifetime"`
	// DefaultLifetime of a token whose request names no lifetime. Default 5m or max_lifetime,
	// whichever is shorter.
	DefaultLifetime time.Duration `yaml:"default_lifetime"`
	// MaxDepth is the number of hops of a chain. Default 8, at most 32.
	MaxDepth int `yaml:"max_depth"`
	// MaxBatch is the number of children of one BatchExchange. Default 100, at most 100.
	MaxBatch int `yaml:"max_batch"`
	// ActorMayRecur lets an actor that is in the chain act again. Default false. The actor gains no
	// authority by it, but chains become harder to read.
	ActorMayRecur bool `yaml:"actor_may_recur"`
	// AllowBearer also issues tokens that are bound to no key. Default false: a child is bound to a
	// key or a certificate of its actor, and refused where none is known. Danger: anyone who
	// obtains a bearer token can use it.
	AllowBearer bool `yaml:"allow_bearer"`
	// AllowUnbinding, with allow_bearer, also issues unbound tokens in chains that are bound at
	// some hop. Default false: a bound chain stays bound. Danger: a caller that may use a bound
	// token once can derive a bearer token from it. The binding of the token that was handed down
	// then protects nothing below it.
	AllowUnbinding bool `yaml:"allow_unbinding"`
	// ScopeTargets lists the audiences at which a scope has a meaning. A token for several
	// audiences has scopes, and only scopes that are listed for each of them. Default none: one
	// audience per token.
	ScopeTargets map[string][]string `yaml:"scope_targets"`
	// CallerRate is how many children per second one caller may request on average. Default 100, at
	// most 100000.
	CallerRate int `yaml:"caller_rate"`
	// CallerBurst is how many children one caller may request at once. Default twice caller_rate,
	// never below max_batch.
	CallerBurst int `yaml:"caller_burst"`
}

// maxConfigBytes is enough for about ten thousand tenants.
const maxConfigBytes = 8 << 20

// Load reads the configuration in a file, and the files that it names. It checks everything that
// can be checked without the network. The error lists every mistake, each with its line, its path
// and what to write instead.
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return Config{}, err
	}
	if len(text) > maxConfigBytes {
		return Config{}, fmt.Errorf("%s is longer than %d bytes", path, maxConfigBytes)
	}
	config, found := parse(text)
	_, unopened := config.open(Options{})
	if err := config.locate(found, unopened).err(); err != nil {
		return Config{}, fmt.Errorf("%s:\n%w", path, err)
	}
	return config, nil
}

// parse reads a configuration and checks its contents. It reads no other file.
func parse(text []byte) (Config, problems) {
	d := &document{lines: make(map[string]int)}
	config := Config{lines: d}
	d.decode(text, &config)
	if d.unreadable {
		return config, d.problems
	}
	return config, append(d.problems, config.check()...)
}

// locate sorts mistakes by their place in the file and keeps one for each place. A field that
// cannot be read is not reported as missing too, and a file that is unopened only for that reason
// is not reported at all.
func (c *Config) locate(found, unopened problems) problems {
	var kept problems
	keep := func(p problem, hides func(k problem) bool) {
		if p.line == 0 && c.lines != nil {
			p.line = max(c.lines.line(p.path), 1) // a missing section belongs at the top
		}
		if !slices.ContainsFunc(kept, hides) {
			kept = append(kept, p)
		}
	}
	for _, p := range found {
		keep(p, func(k problem) bool { return within(p.path, k.path) })
	}
	for _, p := range unopened {
		keep(p, func(k problem) bool { return within(p.path, k.path) || within(k.path, p.path) })
	}
	slices.SortStableFunc(kept, func(a, b problem) int { return a.line - b.line })
	return kept
}

// within reports whether path is at or below other.
func within(path, other string) bool {
	rest, below := strings.CutPrefix(path, other)
	return below && other != "" && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// Validate checks a Config that was made in Go by the rules of Load.
func (c *Config) Validate() error {
	_, unopened := c.open(Options{})
	return c.locate(c.check(), unopened).err()
}

// Warnings lists what is permitted and should be changed.
func (c *Config) Warnings() []string {
	var list []string
	for i, t := range c.Tenants {
		if !t.Audit.signs() {
			list = append(list, tenantPath(i)+".audit.checkpoint_key: is missing: outsiders cannot tell whether the log of "+t.Name+" was changed")
		} else if t.Audit.CheckpointFile == "" {
			list = append(list, tenantPath(i)+".audit.checkpoint_file: is missing: a restored backup is noticed only by those who kept a checkpoint")
		}
	}
	return list
}

// secret reads a secret from its file. One line feed at the end is not part of it.
func secret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	const most = 64 << 10
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return "", err
	}
	value := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	if value == "" || len(text) > most || strings.ContainsAny(value, "\r\n\x00") {
		return "", errors.New("must hold the secret on one line, and nothing else")
	}
	return value, nil
}
