package client

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
)

// Presentation is a token as a request carried it, with the evidence that the sender holds it.
type Presentation struct {
	Token string
	// Scheme of the Authorization that held the token: Bearer or DPoP, in any case.
	Scheme string
	// Proofs are all values of the DPoP header. A token that is bound to a key needs exactly one.
	Proofs []string
	// Method of the request; POST for gRPC.
	Method string
	// URI that the request was sent to, as its sender wrote it; dpop.CallURI for gRPC. Without it
	// every proof is refused. Never take its host from the request unless it is one of the server's
	// own names: a proof for another server must not be valid here.
	URI string
	// Certificate that the sender presented in the handshake of this connection, as
	// tls.ConnectionState has it. Nil: none. Never take it from a header.
	Certificate *x509.Certificate
}

// proofSkew is the largest error of a holder's clock, ahead or behind.
const proofSkew = clockSkew

// A showing is a presentation of an authentic token.
type showing struct {
	Presentation
	bound delegation.Confirmation // key or certificate that the token is bound to; zero: none
	proof dpop.Proof              // set for proofRules and after them
}

func (s *showing) comes(scheme string) bool { return strings.EqualFold(s.Scheme, scheme) }

// possessionRule is one way in which the sender fails to prove that it holds the token. The rules
// are tables, as the other rules are.
type possessionRule struct {
	code   AccessCode
	text   string
	broken func(*Verifier, *showing) bool
}

const (
	textNoAddress    = "the token is bound to a key, and this server takes no proof of it"
	textBearer       = "the token is bound to a key: send it with scheme DPoP and a proof of that key"
	textUnboundDPoP  = "scheme DPoP is for tokens that are bound to a key, and this one is not"
	textCertificate  = "the token is bound to a certificate, and this connection was not opened with it"
	textOneProof     = "exactly one DPoP proof must come with the token"
	textOtherKey     = "the DPoP proof is of another key than the token is bound to"
	textNonceNeeded  = "make a new DPoP proof with the nonce that comes with this answer"
	textProofTime    = "the DPoP proof is too old or from the future by the ledger's time: set the clock right"
	textProofReplay  = "the DPoP proof was used before: make a new one for every request"
	textProofsFull   = "more DPoP proofs than can be remembered"
	textProofsBroken = "whether the DPoP proof was used before cannot be told"
)

// bindingRules apply before a proof is verified (RFC 9449 §7.1, RFC 8705 §3).
func bindingRules() []possessionRule {
	return []possessionRule{
		{AccessInvalidToken, textNoAddress, func(_ *Verifier, s *showing) bool {
			return s.bound.JKT != "" && s.URI == ""
		}},
		{AccessInvalidToken, textBearer, func(_ *Verifier, s *showing) bool {
			return s.bound.JKT != "" && !s.comes(schemeDPoP)
		}},
		{AccessInvalidToken, textUnboundDPoP, func(_ *Verifier, s *showing) bool {
			return s.bound.JKT == "" && !s.comes(schemeBearer)
		}},
		{AccessInvalidToken, textCertificate, func(_ *Verifier, s *showing) bool {
			return s.bound.X5T != "" && s.bound.X5T != certificateThumbprint(s.Certificate)
		}},
		{AccessInvalidProof, textOneProof, func(_ *Verifier, s *showing) bool {
			return s.bound.JKT != "" && len(s.Proofs) != 1
		}},
	}
}

// proofRules apply to a proof that is valid by itself.
func proofRules() []possessionRule {
	return []possessionRule{
		{AccessInvalidToken, textOtherKey, func(_ *Verifier, s *showing) bool {
			return s.proof.Thumbprint != s.bound.JKT
		}},
		{AccessInvalidProof, textProofTime, func(v *Verifier, s *showing) bool {
			return v.ledgerTime().disputes(s.proof.IssuedAt, v.clock.now())
		}},
		{AccessUseNonce, textNonceNeeded, func(v *Verifier, s *showing) bool {
			return v.wantsNonce(s.proof) && !v.nonces.gave(s.proof.Nonce, v.clock.now())
		}},
	}
}

// certificateThumbprint returns x5t#S256 (RFC 8705 §3.1), or "" without a certificate.
func certificateThumbprint(c *x509.Certificate) string {
	if c == nil {
		return ""
	}
	sum := sha256.Sum256(c.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// held refuses a token unless its sender proves possession. The result is never remembered: a bound
// token comes with a new proof each time.
func (v *Verifier) held(ctx context.Context, p Presentation, d *verdict) error {
	if d.claims.Confirmation == nil && strings.EqualFold(p.Scheme, schemeBearer) {
		return nil
	}
	return v.shown(ctx, p, d)
}

func (v *Verifier) shown(ctx context.Context, p Presentation, d *verdict) error {
	s := &showing{Presentation: p}
	if d.claims.Confirmation != nil {
		s.bound = *d.claims.Confirmation
	}
	if err := v.broken(v.binding, s); err != nil || s.bound.JKT == "" {
		return err
	}
	var err error
	s.proof, err = dpop.Verify(p.Proofs[0], dpop.Expectation{
		Method: p.Method, URI: p.URI, AccessToken: p.Token, Now: v.clock.wall(), Skew: proofSkew,
	})
	if err != nil {
		return denied(AccessInvalidProof, "the DPoP proof is refused: %v", err)
	}
	if err := v.broken(v.proven, s); err != nil {
		return err
	}
	return v.spend(ctx, s.proof, p.Token, d)
}

func (v *Verifier) broken(rules []possessionRule, s *showing) error {
	for _, rule := range rules {
		if !rule.broken(v, s) {
			continue
		}
		if rule.code == AccessUseNonce {
			return v.nonceNeeded()
		}
		return denied(rule.code, "%s", rule.text)
	}
	return nil
}

func (v *Verifier) nonceNeeded() *AccessError {
	e := denied(AccessUseNonce, textNonceNeeded)
	e.Nonce = v.nonces.at(v.clock.now())
	return e
}

// wantsNonce reports whether the proof must show that it was made since this process began. Without
// a memory that outlives the process, proofs of earlier processes may have been used: they are
// dated up to proofSkew after its begin. The begin is the later time of this machine's clock and
// the feed.
func (v *Verifier) wantsNonce(p dpop.Proof) bool {
	if v.requireNonce || v.seenProof != nil {
		return v.requireNonce
	}
	began := v.began.wall
	if t := v.ledgerTime(); t != nil && t.latest(v.began).After(began) {
		began = t.latest(v.began)
	}
	return !p.IssuedAt.After(began.Add(proofSkew))
}

// spend records the use of the proof, and refuses a proof that was used before. It comes last: only
// the holder of a valid token and its key can make this server remember anything.
func (v *Verifier) spend(ctx context.Context, p dpop.Proof, token string, d *verdict) error {
	id := sha256.Sum256([]byte(p.Thumbprint + "." + p.ID))
	now := v.clock.now()
	if v.seenProof == nil {
		return v.remember(id, p, now)
	}
	ctx, cancel := context.WithTimeout(ctx, seenProofTimeout)
	defer cancel()
	fresh, err := v.seenProof(ctx, base64.RawURLEncoding.EncodeToString(id[:]), now.wall.Add(sharedProofLife))
	switch {
	case err != nil:
		return denied(AccessUnavailable, textProofsBroken).because(err)
	case !fresh:
		return denied(AccessInvalidProof, textProofReplay)
	}
	return v.standing(ctx, token, d) // a revocation may have come during the call
}

// remember is spend with the memory of this process.
func (v *Verifier) remember(id [sha256.Size]byte, p dpop.Proof, now instant) error {
	switch err := v.memory.spend(id, p.IssuedAt, v.nonces.gave(p.Nonce, now), now); {
	case errors.Is(err, errForgotten):
		return v.nonceNeeded()
	case err != nil:
		return err
	}
	return nil
}

const (
	seenProofTimeout = 2 * time.Second
	// maxProofs bounds the memory: two generations of eighty seconds, some 50 MB when full.
	maxProofs = 1 << 19
	// proofLife is how long after its use a proof could be valid again: it may be dated ahead.
	proofLife = dpop.MaxAge + 2*proofSkew
	// sharedProofLife is proofLife where another process with another clock may get the proof.
	sharedProofLife = proofLife + 2*clockSkew
)

// errForgotten means that a proof may have been used and forgotten. Only a nonce proves the
// opposite.
var errForgotten = errors.New("the proof may have been forgotten")

// proofMemory remembers the used proofs in two generations. The young one becomes the old one after
// proofLife by the monotonic clock, and the old one is forgotten then. A full memory refuses new
// proofs. A proof dated no later than a forgotten one may be that one: the wall clock may have been
// ahead and set back since. Such a proof needs a nonce, and a nonce expires before the proofs with
// it are forgotten.
type proofMemory struct {
	most int

	mu         sync.Mutex
	young, old proofs
	forgotten  time.Time // latest iat of a forgotten proof
}

// proofs are the proofs that were used since a moment.
type proofs struct {
	ids    map[[sha256.Size]byte]struct{}
	since  instant
	latest time.Time // latest iat
}

// spend records the use of a proof. nonced is whether it holds a current nonce of this process.
func (m *proofMemory) spend(id [sha256.Size]byte, issued time.Time, nonced bool, now instant) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.young.ids == nil || now.ran(m.young.since) >= proofLife {
		if m.old.latest.After(m.forgotten) {
			m.forgotten = m.old.latest
		}
		m.old, m.young = m.young, proofs{ids: make(map[[sha256.Size]byte]struct{}), since: now}
	}
	// It was judged before the last change of generations: then it no longer counts.
	nonced = nonced && now.ran(m.young.since) >= 0
	_, young := m.young.ids[id]
	_, old := m.old.ids[id]
	switch {
	case young || old:
		return denied(AccessInvalidProof, textProofReplay)
	case !nonced && !issued.After(m.forgotten):
		return errForgotten
	case len(m.young.ids)+len(m.old.ids) >= m.most:
		return denied(AccessUnavailable, textProofsFull)
	}
	m.young.ids[id] = struct{}{}
	if issued.After(m.young.latest) {
		m.young.latest = issued
	}
	return nil
}

// noncePeriod is how long one nonce is issued. It is accepted for one more period. Both periods
// together do not exceed proofLife, so a used proof with an accepted nonce is never forgotten.
const noncePeriod = proofLife / 2

// nonces makes and checks the nonces of one process: the number of a period, sealed with a key that
// ends with the process. Periods follow the monotonic clock, so no nonce repeats.
type nonces struct{ key [sha256.Size]byte }

func newNonces() *nonces {
	n := new(nonces)
	rand.Read(n.key[:]) // never fails: see crypto/rand
	return n
}

func (n *nonces) at(now instant) string { return n.of(now.run / noncePeriod) }

func (n *nonces) of(period time.Duration) string {
	mac := hmac.New(sha256.New, n.key[:])
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(period)))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:16])
}

func (n *nonces) gave(nonce string, now instant) bool {
	equal := func(period time.Duration) bool { return hmac.Equal([]byte(nonce), []byte(n.of(period))) }
	period := now.run / noncePeriod
	return equal(period) || equal(period-1)
}

// publicURL is one of the addresses by which callers reach a server.
type publicURL struct {
	host      string // as requests name it: lower case, without the default port of the scheme
	authority string // as configured
	base      string // scheme, host and path, without a slash at the end
}

func parsePublicURL(text string) (publicURL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Opaque != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return publicURL{}, errors.New("want an absolute URL without user, query and fragment")
	case u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Hostname())):
		return publicURL{}, errors.New("want https, or http to this machine")
	}
	return publicURL{
		host: canonicalHost(u.Scheme, u.Host), authority: u.Host,
		base: u.Scheme + "://" + u.Host + strings.TrimRight(u.EscapedPath(), "/"),
	}, nil
}

// canonicalHost returns the form in which two names of one host and port are equal.
func canonicalHost(scheme, host string) string {
	port := map[string]string{"https": ":443", "http": ":80"}[scheme]
	return strings.TrimSuffix(strings.ToLower(host), port)
}

func isLoopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.Unmap().IsLoopback()
}

// urlFor returns the address of a request that names the host. A server with one address always
// uses that, whatever the request and the proxies before it contain.
func (v *Verifier) urlFor(host string) (_ publicURL, ours bool) {
	if len(v.urls) == 1 {
		return v.urls[0], true
	}
	for _, u := range v.urls {
		scheme, _, _ := strings.Cut(u.base, ":")
		if u.host == canonicalHost(scheme, host) {
			return u, true
		}
	}
	return publicURL{}, false
}

// httpURI returns the address of an HTTP request as its sender wrote it, or "".
func (v *Verifier) httpURI(host, path string) string {
	u, ours := v.urlFor(host)
	if !ours || path != "" && path[0] != '/' {
		return ""
	}
	return u.base + path
}

// callURI returns the address of a gRPC call as its sender wrote it, or "".
func (v *Verifier) callURI(authority, method string) string {
	u, ours := v.urlFor(authority)
	if !ours {
		return ""
	}
	return dpop.CallURI(u.authority, method)
}
