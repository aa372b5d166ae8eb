package token

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/mail"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// ClientTLS identifies the certificate that authenticates a client (RFC 8705 §2): exactly one of
// its fields is set. A name must be in a certificate that an authority of the tenant's
// client_ca_file issued for client authentication, and is compared byte by byte.
type ClientTLS struct {
	// SubjectDN is the whole distinguished name in the form of RFC 4514, last part first, without
	// spaces after the commas: CN=ci,OU=Builds,O=Acme. Attributes other than CN, L, ST, O, OU, C,
	// STREET, DC and UID are written by number. The name is the output of
	//
	// 	openssl x509 -noout -subject -nameopt RFC2253,-esc_msb
	SubjectDN string `yaml:"subject_dn"`
	SANDNS    string `yaml:"san_dns"`   // a DNS name, in lower case, without wildcard
	SANURI    string `yaml:"san_uri"`   // a URI. SPIFFE IDs have a section of their own.
	SANIP     string `yaml:"san_ip"`    // an IP address
	SANEmail  string `yaml:"san_email"` // an e-mail address
	// CertificatesFile holds the client's own certificates, self-signed or not, as PEM or as a JWK
	// Set with x5c (the first of each). It is read again every 45 s. Danger: no authority vouches
	// for them, so only their removal from this file ends them before they expire.
	CertificatesFile string `yaml:"certificates_file"`
}

// Method returns the authentication method of the certificate: MethodTLSClientAuth or
// MethodSelfSignedTLS.
func (c *ClientTLS) Method() string {
	if c.CertificatesFile != "" {
		return MethodSelfSignedTLS
	}
	return MethodTLSClientAuth
}

// clientTLS is a checked ClientTLS.
type clientTLS struct {
	name         string  // one of the certificate's names, or ""
	certificates *source // set where name is ""
}

// subjectDN matches every result of distinguishedName.
var subjectDN = func() *regexp.Regexp {
	const value = `(?:[^\x00-\x1f"+,;<>\\]|\\["+,;<>\\ #])+`
	const attribute = `(?:(?:CN|L|ST|O|OU|C|STREET|DC|UID)=` + value + `|[0-9]+(?:\.[0-9]+)+=#[0-9a-f]+)`
	return regexp.MustCompile(`^` + attribute + `(?:[,+]` + attribute + `)*$`)
}()

var hostName = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*$`)

// clientTLS checks which certificate a client has, and reads the registered ones.
func (b *builder) clientTLS(path, id string, c *ClientTLS) (*clientTLS, error) {
	if c == nil {
		return nil, nil
	}
	set := 0
	for _, given := range []string{c.SubjectDN, c.SANDNS, c.SANURI, c.SANIP, c.SANEmail, c.CertificatesFile} {
		if given != "" {
			set++
		}
	}
	if set != 1 {
		return nil, fault(path, "want exactly one of subject_dn, san_dns, san_uri, san_ip, san_email and certificates_file")
	}
	if c.CertificatesFile != "" {
		s := b.newSource(id, parseRegistered)
		s.load = func(context.Context) ([]byte, error) { return readFile(c.CertificatesFile) }
		return &clientTLS{certificates: s}, s.loadNow(path+".certificates_file", s.load)
	}
	if b.ClientCAFile == "" {
		return nil, fault(path, "needs client_ca_file: whose certificates count?")
	}
	switch {
	case c.SubjectDN != "":
		if !subjectDN.MatchString(c.SubjectDN) {
			return nil, fault(path+".subject_dn", "must have the form of RFC 4514, such as CN=ci,OU=Builds,O=Acme, without spaces between the parts")
		}
		return &clientTLS{name: nameDN + c.SubjectDN}, nil
	case c.SANDNS != "":
		if !hostName.MatchString(c.SANDNS) {
			return nil, fault(path+".san_dns", "must be one DNS name in lower case: there are no wildcards")
		}
		return &clientTLS{name: nameDNS + c.SANDNS}, nil
	case c.SANURI != "":
		u, err := url.Parse(c.SANURI)
		switch {
		case err != nil || u.Scheme == "" || strings.ContainsFunc(c.SANURI, func(r rune) bool { return r <= ' ' || r > '~' }):
			return nil, fault(path+".san_uri", "must be an absolute URI in ASCII")
		case strings.EqualFold(u.Scheme, "spiffe"):
			return nil, fault(path+".san_uri", "must not be a SPIFFE ID: name its trust domain under spiffe")
		}
		return &clientTLS{name: nameURI + c.SANURI}, nil
	case c.SANIP != "":
		address, err := netip.ParseAddr(c.SANIP)
		if err != nil || address.Zone() != "" {
			return nil, fault(path+".san_ip", "must be an IP address")
		}
		return &clientTLS{name: nameIP + address.String()}, nil
	}
	if address, err := mail.ParseAddress(c.SANEmail); err != nil || address.Address != c.SANEmail {
		return nil, fault(path+".san_email", "must be an e-mail address and nothing else")
	}
	return &clientTLS{name: nameEmail + c.SANEmail}, nil
}

// clientAuthorities reads the authorities whose certificates count for the names of clients.
func (b *builder) clientAuthorities() (*source, error) {
	if b.ClientCAFile == "" {
		return nil, nil
	}
	s := b.newSource("client_ca_file", parseAuthorities)
	s.load = func(context.Context) ([]byte, error) { return readFile(b.ClientCAFile) }
	return s, s.loadNow("client_ca_file", s.load)
}

// newSource makes a source whose documents parse reads. The caller sets load.
func (b *builder) newSource(name string, parse func([]byte) (*keyring, []string, error)) *source {
	return &source{name: name, parse: parse, timing: defaultTiming, now: b.Now, logger: b.Logger}
}

// overlaps reports whether one certificate would identify two clients.
func (c *clientTLS) overlaps(other *clientTLS) bool {
	switch {
	case c == nil || other == nil:
		return false
	case c.name != "":
		return c.name == other.name
	case other.name != "":
		return false
	}
	for thumbprint := range c.certificates.current.Load().certificates {
		if other.certificates.certifies(thumbprint) {
			return true
		}
	}
	return false
}

// registers reports whether exactly this certificate is registered for the client.
func (c *clientTLS) registers(thumbprint string) bool {
	return c != nil && c.certificates.certifies(thumbprint)
}

// certifies reports whether the certificate with this thumbprint is loaded and may still be used.
func (s *source) certifies(thumbprint string) bool {
	if s == nil {
		return false
	}
	held := s.current.Load()
	return s.believable(held) && held.certificates[thumbprint] != nil
}

// holding returns the loaded certificates, after another load where they are not fresh. It loads
// and waits no more than key does.
func (s *source) holding(ctx context.Context) (*snapshot, error) {
	now := s.now()
	held := s.current.Load()
	if held != nil && (s.load == nil || now.Sub(held.at) < s.timing.fresh) {
		return held, nil
	}
	err := s.reloadFor(ctx, now, s.believable(held))
	if held = s.current.Load(); !s.believable(held) {
		return nil, unavailableKeys(err)
	}
	return held, nil
}

// all returns the certificates of a keyring, in no order.
func (r *keyring) all() []*x509.Certificate {
	var all []*x509.Certificate
	for _, c := range r.certificates {
		all = append(all, c)
	}
	return all
}

func newCertificates(certificates []*x509.Certificate) *keyring {
	ring := &keyring{certificates: make(map[string]*x509.Certificate, len(certificates))}
	for _, c := range certificates {
		ring.certificates[CertificateThumbprint(c)] = c
	}
	return ring
}

// parseAuthorities reads a PEM bundle. A file without certificates trusts no authority.
func parseAuthorities(data []byte) (*keyring, []string, error) {
	certificates, err := parsePEM(data)
	if err != nil {
		return nil, nil, err
	}
	var ignored []string
	for i, c := range certificates {
		if err := isAuthority(c); err != nil {
			ignored = append(ignored, fmt.Sprintf("certificate %d: %v", i+1, err))
			certificates[i] = nil
		}
	}
	return newCertificates(slices.DeleteFunc(certificates, func(c *x509.Certificate) bool { return c == nil })), ignored, nil
}

func isAuthority(c *x509.Certificate) error {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return errors.New("is not an authority's")
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("may not sign certificates")
	case !isStrong(c.PublicKey):
		return errors.New("has a key that is too weak, too large or of an unknown kind")
	}
	return nil
}

// parseRegistered reads a client's certificates: PEM, or a JWK Set whose keys have x5c.
func parseRegistered(data []byte) (*keyring, []string, error) {
	parse := parsePEM
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		parse = parseX5C
	}
	certificates, err := parse(data)
	if err != nil {
		return nil, nil, err
	}
	if len(certificates) > maxRegisteredPerFile {
		return nil, nil, fmt.Errorf("holds more than %d certificates", maxRegisteredPerFile)
	}
	var ignored []string
	for i, c := range certificates {
		if err := signs(c); err != nil {
			ignored = append(ignored, fmt.Sprintf("certificate %d: %v", i+1, err))
			certificates[i] = nil
		}
	}
	return newCertificates(slices.DeleteFunc(certificates, func(c *x509.Certificate) bool { return c == nil })), ignored, nil
}

// parsePEM reads certificates and accepts only comments beside them: a truncated file must not pass
// for a shorter list.
func parsePEM(data []byte) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	begun := bytes.Count(data, []byte("-----BEGIN ")) // pem.Decode skips a broken block
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			if len(bytes.TrimSpace(rest)) > 0 || begun != len(certificates) {
				return nil, errors.New("is not PEM to its end")
			}
			return certificates, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, errors.New("must hold certificates and nothing else")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d is malformed", len(certificates)+1)
		}
		certificates, data = append(certificates, c), rest
	}
}

// parseX5C reads the first certificate of each key, which must certify that key (RFC 7517 §4.7).
func parseX5C(data []byte) ([]*x509.Certificate, error) {
	var set struct {
		Keys []jsontext.Value `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil || set.Keys == nil {
		return nil, errors.New("not a strict JSON object with a list of keys")
	}
	var certificates []*x509.Certificate
	for i, raw := range set.Keys {
		var members struct {
			X5C []string `json:"x5c"`
		}
		if err := json.Unmarshal(raw, &members); err != nil || len(members.X5C) == 0 {
			return nil, fmt.Errorf("keys[%d] has no x5c", i)
		}
		der, err := base64.StdEncoding.Strict().DecodeString(members.X5C[0])
		if err != nil {
			return nil, fmt.Errorf("keys[%d].x5c is not base64", i)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("keys[%d].x5c is not a certificate", i)
		}
		material, err := parseMaterial(raw)
		if err != nil {
			return nil, fmt.Errorf("keys[%d]: %w", i, err)
		}
		if key, comparable := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !comparable || !key.Equal(material) {
			return nil, fmt.Errorf("keys[%d].x5c certifies another key", i)
		}
		certificates = append(certificates, c)
	}
	return certificates, nil
}
