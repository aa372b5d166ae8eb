package token

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"deputy.example/deputy/client/delegation"
)

// Trust is what one tenant accepts: its own tokens and those of its trusted issuers and its
// clients. It is safe for concurrent use. Every method refuses what it cannot verify. A result that
// is returned with an error has no meaning.
type Trust struct {
	issuer  string
	keys    *Keyset
	issuers map[string]*issuer
	clients map[string]*client
	types   []string // of principals, sorted
	skew    time.Duration
	now     func() time.Time
	decoys  map[string]*publicKey // by algorithm: verify the assertion of a caller without a key
	memory  *Memory

	authorities *source // of clients' certificates; nil: none
	domains     map[spiffeid.TrustDomain]*domain
}

// issuer is a checked TrustedIssuer.
type issuer struct {
	TrustedIssuer
	keys       *source
	skew       time.Duration
	identity   claimPath           // to the claim that names the principal
	conditions []condition         // all must hold before a token names a principal
	scopes     delegation.Scopes   // fixed part of the ceiling
	details    []delegation.Detail // fixed part of the ceiling
}

type client struct {
	principal delegation.Principal
	keys      *source    // nil: none
	tls       *clientTLS // nil: none
}

// NewTrust checks the whole configuration and reads the files on this machine. It fetches nothing.
// Its errors are *delegation.Error with the faulty field, such as trusted_issuers[1].principal.
func NewTrust(config TrustConfig) (*Trust, error) {
	b := &builder{TrustConfig: config}
	if b.Skew == 0 {
		b.Skew = DefaultSkew
	}
	if b.Now == nil {
		b.Now = time.Now
	}
	if b.Memory == nil {
		b.Memory = NewMemory(DefaultMemory)
	}
	if b.Logger == nil {
		b.Logger = slog.New(slog.DiscardHandler)
	}
	if err := b.tenant(); err != nil {
		return nil, err
	}
	t := &Trust{
		issuer: b.Issuer, keys: b.Keys, skew: b.Skew, now: b.Now, memory: b.Memory,
		issuers: make(map[string]*issuer), clients: make(map[string]*client),
		domains: make(map[spiffeid.TrustDomain]*domain),
	}
	for n, c := range b.TrustedIssuers {
		path := fmt.Sprintf("trusted_issuers[%d]", n)
		i, err := b.issuer(path, c)
		if err != nil {
			return nil, err
		}
		if t.issuers[c.Issuer] != nil {
			return nil, fault(path+".issuer", "is there twice")
		}
		t.issuers[c.Issuer] = i
	}
	for n, c := range b.Clients {
		path := fmt.Sprintf("clients[%d]", n)
		cl, err := b.client(path, c)
		if err != nil {
			return nil, err
		}
		if t.clients[string(c.ID)] != nil || t.issuers[string(c.ID)] != nil {
			return nil, fault(path+".id", "is there twice")
		}
		for _, other := range b.Clients[:n] {
			if cl.keys.shares(t.clients[string(other.ID)].keys) {
				return nil, fault(path+".keys", "hold a key of client %s: a key identifies one client; remove it from the other", other.ID)
			}
			if cl.tls.overlaps(t.clients[string(other.ID)].tls) {
				return nil, fault(path+".tls", "is what client %s is known by: a certificate identifies one client; change one of them", other.ID)
			}
		}
		t.clients[string(c.ID)] = cl
	}
	for n, c := range b.TrustDomains {
		path := fmt.Sprintf("spiffe[%d]", n)
		d, err := b.domain(path, c)
		if err != nil {
			return nil, err
		}
		if t.domains[d.name] != nil {
			return nil, fault(path+".trust_domain", "is there twice")
		}
		t.domains[d.name] = d
	}
	var err error
	if t.authorities, err = b.clientAuthorities(); err != nil {
		return nil, err
	}
	if err := checkDisjoint(b.realms); err != nil {
		return nil, err
	}
	for _, r := range b.realms {
		t.types = append(t.types, r.typ())
	}
	slices.Sort(t.types)
	t.types = slices.Compact(t.types)
	t.decoys, err = newDecoys()
	return t, err
}

// Run keeps the keys of all sources fresh until ctx ends, and then returns nil. Without it tokens
// are verified too, but requests wait for the keys.
func (t *Trust) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for _, s := range t.sources() {
		running.Go(func() { s.run(ctx) })
	}
	running.Wait()
	return nil
}

func (t *Trust) sources() []*source {
	var all []*source
	for _, i := range t.issuers {
		all = append(all, i.keys)
	}
	for _, c := range t.clients {
		all = append(all, c.keys)
		if c.tls != nil {
			all = append(all, c.tls.certificates)
		}
	}
	for _, d := range t.domains {
		all = append(all, d.bundle)
	}
	return slices.DeleteFunc(append(all, t.authorities), func(s *source) bool { return s == nil })
}

// Registered reports whether the configuration registers a key or a certificate with this
// thumbprint (RFC 7638, or x5t#S256 of RFC 8705) for the principal.
func (t *Trust) Registered(p delegation.Principal, thumbprint string) bool {
	return t.Binding(p, thumbprint) != delegation.Confirmation{}
}

// Binding returns the binding of a token for the principal that names this registered thumbprint:
// the zero Confirmation where the thumbprint is not registered for it.
func (t *Trust) Binding(p delegation.Principal, thumbprint string) delegation.Confirmation {
	c, known := t.clients[string(p)]
	switch {
	case !known || thumbprint == "":
	case c.keys.registered(thumbprint):
		return delegation.Confirmation{JKT: thumbprint}
	case c.tls.registers(thumbprint):
		return delegation.Confirmation{X5T: thumbprint}
	}
	return delegation.Confirmation{}
}

// Skew is the clock error that the tenant permits.
func (t *Trust) Skew() time.Duration { return t.skew }

// newDecoys makes a key without a holder for each algorithm. The RSA modulus is not a product of
// two primes, which costs a verifier the same.
func newDecoys() (map[string]*publicKey, error) {
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	modulus := make([]byte, minRSABits/8)
	if _, err := rand.Read(modulus); err != nil {
		return nil, err
	}
	modulus[0] |= 0x80
	modulus[len(modulus)-1] |= 1
	decoys := make(map[string]*publicKey)
	for _, algorithm := range knownAlgorithms() {
		var material crypto.PublicKey = &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: 65537}
		if algorithm == jwa.EdDSA {
			material = ed
		} else if curve := curveOf(algorithm); curve != nil {
			ec, err := ecdsa.GenerateKey(curve, rand.Reader)
			if err != nil {
				return nil, err
			}
			material = ec.Public()
		}
		if decoys[algorithm.String()], err = newPublicKey("", algorithm, material); err != nil {
			return nil, err
		}
	}
	return decoys, nil
}

// PrincipalTypes returns the types of all principals that a credential can yield here, sorted.
func (t *Trust) PrincipalTypes() []string { return t.types }
