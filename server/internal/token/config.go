package token

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/lestrrat-go/jwx/v2/jwa"

	"deputy.example/deputy/client/delegation"
)

// TrustConfig is what one tenant accepts. Errors use the yaml names.
type TrustConfig struct {
	// Issuer is the tenant's own issuer address, without a trailing slash. A credential with this
	// audience authenticates a caller. A credential with the audience delegation.ActorAudience of
	// it only names an actor.
	Issuer string
	// Keys sign the tenant's tokens and verify them.
	Keys *Keyset
	// TrustedIssuers are the issuers whose tokens begin a chain or name an actor.
	TrustedIssuers []TrustedIssuer
	// Clients that authenticate with a key or a certificate of their own.
	Clients []Client
	// ClientCAFile is a PEM bundle of the authorities whose certificates count where a client is
	// identified by a name (Client.TLS). It is read again every 45 s, and a removed authority is
	// refused within 60 s. Only these count, not the authorities that the machine trusts.
	ClientCAFile string
	// TrustDomains whose workloads authenticate and name actors by SPIFFE.
	TrustDomains []TrustDomain
	// Skew is how far in the future nbf and iat may be; default 5 s, at most 60 s. exp has no skew.
	Skew time.Duration
	// AllowInsecureLoopback permits http:// addresses on this machine, for development.
	AllowInsecureLoopback bool

	// Transport fetches keys; nil: direct, or through the environment's proxy. Danger: a given
	// Transport is responsible for the addresses that it connects to and the certificates that it
	// trusts: private_address and ca_file of a source have no effect on it. It is for tests.
	Transport http.RoundTripper
	// Memory of authentic tokens, which tenants may share; nil: its own, with DefaultMemory.
	Memory *Memory
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: no log
}

// TrustedIssuer configures which tokens of one issuer are accepted, and what they may do.
type TrustedIssuer struct {
	// Issuer is compared with iss byte by byte. Required.
	Issuer string `yaml:"issuer"`
	// Keys is the source of the issuer's keys. Required.
	Keys KeySource `yaml:"keys"`
	// Algorithms that its keys may have: ES256, ES384, ES512, EdDSA, RS256, RS384, RS512, PS256,
	// PS384, PS512. Required. A published key that names no algorithm is used only if exactly one
	// of these fits it.
	Algorithms []string `yaml:"algorithms"`
	// Principal maps its tokens to principals. Required.
	Principal Mapping `yaml:"principal"`
	// SharedPrincipals permits that another issuer or client, which must set it too, can yield the
	// same principals. Danger: either can then act as the principals of the other.
	SharedPrincipals bool `yaml:"shared_principals"`
	// Audiences make a token of this issuer acceptable as a subject token: its aud must hold one of
	// them. Required, except for an issuer of workloads: without audiences none of its tokens is a
	// subject token.
	Audiences []string `yaml:"audiences"`
	// UntypedAccessTokens also accepts access tokens whose typ is JWT or absent. Danger: if the
	// issuer's ID tokens have an acceptable audience, they are accepted as access tokens.
	UntypedAccessTokens bool `yaml:"untyped_access_tokens"`
	// IDTokens accepts ID tokens as subject tokens.
	IDTokens bool `yaml:"id_tokens"`
	// MaxLifetime is the longest exp − iat of a root token; default 1 h.
	MaxLifetime time.Duration `yaml:"max_lifetime"`
	// Skew of this issuer's clock, at most 60 s; 0 means the tenant's.
	Skew time.Duration `yaml:"skew"`
	// RootGrants is the ceiling of what a root token of this issuer may hand down; default nothing.
	RootGrants RootGrants `yaml:"root_grants"`
	// ImportAct accepts root tokens that already carry act, and names their actors: each act.sub
	// becomes a principal of this type and prefix. Absent: such tokens are refused.
	ImportAct *Mapping `yaml:"import_act"`
	// Workloads accepts its tokens as actor_token. With the tenant's issuer as audience they
	// authenticate their principal, with the actor audience they name it.
	Workloads bool `yaml:"workloads"`
}

// KeySource is the source of keys: exactly one of its first four fields is set.
type KeySource struct {
	File      string `yaml:"file"`      // a JWK Set in a file, read again every 45 s
	JWKS      string `yaml:"jwks"`      // a JWK Set in the configuration itself
	JWKSURL   string `yaml:"jwks_url"`  // a JWK Set to fetch; trusted issuers only
	Discovery bool   `yaml:"discovery"` // through the issuer's metadata; trusted issuers only
	// CAFile holds certificates in PEM for the fetched documents: only the servers that they
	// certify are trusted. It is read once, at the start. Default: the certificates of the system.
	CAFile string `yaml:"ca_file"`
	// PrivateAddress permits fetches from addresses of private networks and of this machine.
	// Default false: such an address is refused at the connection, whatever name led to it. Danger:
	// with it, an attacker who controls the issuer's names or its jwks_uri can make Deputy request
	// keys from internal services. Link-local addresses, where clouds serve credentials, stay
	// refused.
	PrivateAddress bool `yaml:"private_address"`
}

// Client authenticates with assertions that it signs itself (RFC 7523), whose iss and sub are its
// ID, or with a certificate (RFC 8705). It has keys, tls or both.
type Client struct {
	ID               delegation.Principal `yaml:"id"`
	Keys             KeySource            `yaml:"keys"` // file or jwks
	Algorithms       []string             `yaml:"algorithms"`
	TLS              *ClientTLS           `yaml:"tls"`
	SharedPrincipals bool                 `yaml:"shared_principals"`
}

// RootGrants is the ceiling of a root token: the values of its claims, and a fixed list in
// addition. Absent claims add nothing. A malformed claim refuses the token.
type RootGrants struct {
	ScopesClaim    string   `yaml:"scopes_claim"` // a string of scope tokens or a list of them
	Scopes         []string `yaml:"scopes"`
	AudiencesClaim string   `yaml:"audiences_claim"` // a string or a list of strings
	Audiences      []string `yaml:"audiences"`
	DetailsClaim   string   `yaml:"details_claim"` // an authorization_details array (RFC 9396)
	Details        string   `yaml:"details"`       // such an array, as JSON text
}

// DefaultSkew is the default of TrustConfig.Skew.
const DefaultSkew = 5 * time.Second

const (
	maxSkew            = time.Minute
	defaultMaxLifetime = time.Hour
)

// fault returns an error about the given field of the configuration.
func fault(path, format string, args ...any) error {
	return delegation.Refuse(delegation.ParameterInvalid, path, format, args...)
}

// builder turns configuration into the parts of a Trust.
type builder struct {
	TrustConfig
	realms []realm
}

func (b *builder) tenant() error {
	if err := checkIssuer(b.Issuer, b.AllowInsecureLoopback); err != nil {
		return fault("issuer", "%v", err)
	}
	switch {
	case strings.HasSuffix(b.Issuer, "/"), strings.HasSuffix(b.Issuer, delegation.ActorAudience("")):
		// Otherwise a token that names an actor for one tenant could authenticate a caller to
		// another.
		return fault("issuer", "must end neither in / nor in %s", delegation.ActorAudience(""))
	case b.Keys == nil:
		return fault("signing_keys", "missing")
	case b.Skew < 0 || b.Skew > maxSkew:
		return fault("skew", "must be within 0 and %v", maxSkew)
	}
	return nil
}

// checkIssuer is RFC 8414 §2: an https URL without query and fragment.
func checkIssuer(issuer string, insecureLoopback bool) error {
	if err := checkAddress(issuer, insecureLoopback); err != nil {
		return err
	}
	if u, err := url.Parse(issuer); err != nil || u.RawQuery != "" || u.ForceQuery || strings.HasSuffix(issuer, "#") {
		return errors.New("must have neither a query nor a fragment")
	}
	return nil
}

func (b *builder) issuer(path string, c TrustedIssuer) (*issuer, error) {
	if c.Issuer == "" || strings.ContainsFunc(c.Issuer, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return nil, fault(path+".issuer", "must be the exact iss of its tokens")
	}
	if c.Issuer == b.Issuer {
		return nil, fault(path+".issuer", "is this tenant itself, which trusts its own tokens already")
	}
	i := &issuer{TrustedIssuer: c, skew: c.Skew}
	if i.skew == 0 {
		i.skew = b.Skew
	}
	if c.Skew < 0 || c.Skew > maxSkew {
		return nil, fault(path+".skew", "must be within 0 and %v", maxSkew)
	}
	if i.MaxLifetime == 0 {
		i.MaxLifetime = defaultMaxLifetime
	}
	if i.MaxLifetime < 0 {
		return nil, fault(path+".max_lifetime", "must be positive")
	}
	if err := b.audiences(path+".audiences", c); err != nil {
		return nil, err
	}
	own, err := c.Principal.realm(path+".principal", c.Issuer, c.SharedPrincipals)
	if err != nil {
		return nil, err
	}
	b.realms = append(b.realms, own)
	if i.identity, err = c.Principal.identity(); err != nil {
		return nil, fault(path+".principal.claim", "%v", err)
	}
	if i.conditions, err = c.Principal.conditions(path + ".principal"); err != nil {
		return nil, err
	}
	if c.ImportAct != nil {
		if c.ImportAct.Claim != "" && c.ImportAct.Claim != subjectClaim {
			return nil, fault(path+".import_act.claim", "cannot be chosen: an actor is named by act.sub")
		}
		if len(c.ImportAct.When) > 0 {
			return nil, fault(path+".import_act.when", "has no meaning: the conditions under principal are on the whole token")
		}
		imported, err := c.ImportAct.realm(path+".import_act", c.Issuer, c.SharedPrincipals)
		if err != nil {
			return nil, err
		}
		b.realms = append(b.realms, imported)
	}
	if err := i.compileGrants(path + ".root_grants"); err != nil {
		return nil, err
	}
	i.keys, err = b.source(path, c.Issuer, c.Keys, c.Algorithms)
	return i, err
}

func (b *builder) audiences(path string, c TrustedIssuer) error {
	if len(c.Audiences) == 0 && !c.Workloads {
		return fault(path, "missing: list the values of aud that make a token of this issuer acceptable")
	}
	for _, audience := range c.Audiences {
		if audience == "" {
			return fault(path, "must not hold an empty audience")
		}
		if c.Workloads && (audience == b.Issuer || audience == delegation.ActorAudience(b.Issuer)) {
			// Otherwise an agent that received a subject token could authenticate as the subject.
			return fault(path, "must not hold the tenant's own audiences where workloads is set")
		}
	}
	return nil
}

func (b *builder) client(path string, c Client) (*client, error) {
	if _, err := delegation.ParsePrincipal(string(c.ID)); err != nil {
		return nil, fault(path+".id", "%v", err)
	}
	if c.Keys.JWKSURL != "" || c.Keys.Discovery {
		return nil, fault(path+".keys", "a client's keys are registered here, by file or jwks, never fetched")
	}
	b.realms = append(b.realms, realm{path: path + ".id", origin: path, start: string(c.ID), shared: c.SharedPrincipals})
	made := &client{principal: c.ID}
	var err error
	if c.TLS == nil || c.Keys != (KeySource{}) || len(c.Algorithms) > 0 {
		if made.keys, err = b.source(path, string(c.ID), c.Keys, c.Algorithms); err != nil {
			return nil, err
		}
	}
	made.tls, err = b.clientTLS(path+".tls", string(c.ID), c.TLS)
	return made, err
}

// source checks everything that needs no network: a start never waits for an issuer.
func (b *builder) source(path, name string, from KeySource, algorithmNames []string) (*source, error) {
	var algorithms []jwa.SignatureAlgorithm
	if len(algorithmNames) == 0 {
		return nil, fault(path+".algorithms", "missing: name the algorithms of the keys, such as ES256")
	}
	for _, algorithmName := range algorithmNames {
		algorithm, err := parseAlgorithm(algorithmName)
		if err != nil {
			return nil, fault(path+".algorithms", "%v", err)
		}
		if slices.Contains(algorithms, algorithm) {
			return nil, fault(path+".algorithms", "names %s twice", algorithm)
		}
		algorithms = append(algorithms, algorithm)
	}
	s := b.newSource(name, func(data []byte) (*keyring, []string, error) { return parseJWKS(data, algorithms) })
	path += ".keys"
	if err := from.check(path); err != nil {
		return nil, err
	}
	switch {
	case from.fetched():
		return s, b.fetch(s, path, from)
	case from.File != "":
		s.load = func(context.Context) ([]byte, error) { return readFile(from.File) }
		return s, s.loadNow(path+".file", s.load)
	}
	return s, s.loadNow(path+".jwks", func(context.Context) ([]byte, error) { return []byte(from.JWKS), nil })
}

func (k KeySource) fetched() bool { return k.JWKSURL != "" || k.Discovery }

func (k KeySource) check(path string) error {
	set := 0
	for _, given := range []bool{k.File != "", k.JWKS != "", k.JWKSURL != "", k.Discovery} {
		if given {
			set++
		}
	}
	switch {
	case set != 1:
		return fault(path, "want exactly one of file, jwks, jwks_url and discovery")
	case k.CAFile != "" && !k.fetched():
		return fault(path+".ca_file", "has no meaning without jwks_url or discovery")
	case k.PrivateAddress && !k.fetched():
		return fault(path+".private_address", "has no meaning without jwks_url or discovery")
	}
	return nil
}

// fetch makes a source load its keys from its issuer.
func (b *builder) fetch(s *source, path string, from KeySource) error {
	var roots *x509.CertPool
	if from.CAFile != "" {
		var err error
		if roots, err = readRoots(from.CAFile); err != nil {
			return fault(path+".ca_file", "%v", err)
		}
	}
	f := newFetcher(b.Transport, reach{private: from.PrivateAddress, loopback: b.AllowInsecureLoopback}, roots)
	if !from.Discovery {
		s.load = func(ctx context.Context) ([]byte, error) { return f.get(ctx, from.JWKSURL) }
		if err := f.reach.checkAddress(from.JWKSURL); err != nil {
			return fault(path+".jwks_url", "%v", err)
		}
		return nil
	}
	s.load = func(ctx context.Context) ([]byte, error) { return f.discover(ctx, s.name) }
	if err := cmp.Or(checkIssuer(s.name, b.AllowInsecureLoopback), f.reach.checkAddress(s.name)); err != nil {
		return fault(path+".discovery", "the issuer %v", err)
	}
	return nil
}

// loadNow fills a source from this machine. It requires at least one usable key and no unusable
// one, which a later load cannot require.
func (s *source) loadNow(path string, load func(context.Context) ([]byte, error)) error {
	began := s.now()
	data, err := load(context.Background())
	if err != nil {
		return fault(path, "%v", err)
	}
	ring, ignored, err := s.parse(data)
	if err != nil {
		return fault(path, "%v", err)
	}
	if usable := len(ring.byID) + len(ring.certificates); usable == 0 || len(ignored) > 0 {
		return fault(path, "want usable keys only, have %d; not usable: %s", usable, strings.Join(ignored, "; "))
	}
	s.current.Store(&snapshot{keyring: ring, at: began})
	return nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readBounded(f)
}
