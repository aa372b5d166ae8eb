package token

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"deputy.example/deputy/server/internal/token/certtest"
)

// FuzzCertificateNames reads names from the bytes of an unknown certificate: each result is of a
// kind that can be registered, in the one form in which it can be registered.
func FuzzCertificateNames(f *testing.F) {
	names, err := asn1.Marshal([]asn1.RawValue{
		{Class: asn1.ClassContextSpecific, Tag: 1, Bytes: []byte("ci@acme.example")}, {Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte("ci.acme.example")},
		{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte("spiffe://prod.example/a")}, {Class: asn1.ClassContextSpecific, Tag: 7, Bytes: []byte{127, 0, 0, 1}},
		{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{5, 0}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(names)
	for _, name := range []pkix.Name{
		{CommonName: "ci", Organization: []string{"Acme, Inc."}, Country: []string{"DE"}}, {CommonName: " #+\"\\<>; ", SerialNumber: "1"}, {CommonName: "a\nb"}, {},
		{Names: []pkix.AttributeTypeAndValue{}, ExtraNames: []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: 7}, {Type: asn1.ObjectIdentifier{1, 2, 3}, Value: "x"}}},
	} {
		der, err := asn1.Marshal(name.ToRDNSequence())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Add([]byte{0x30, 0x80, 0x00, 0x00})
	f.Fuzz(func(t *testing.T, der []byte) {
		if dn, comparable := distinguishedName(der); comparable && !subjectDN.MatchString(dn) {
			t.Errorf("%x is named %q, which cannot be registered", der, dn)
		}
		names, err := alternativeNames(der)
		if err != nil && names != nil {
			t.Errorf("%x: names beside an error", der)
		}
		for _, name := range names {
			kind, text, _ := strings.Cut(name, ":")
			if !slices.Contains([]string{nameDNS, nameURI, nameIP, nameEmail}, kind+":") {
				t.Errorf("%x holds %q", der, name)
			}
			if kind+":" == nameIP {
				if _, err := netip.ParseAddr(text); err != nil {
					t.Errorf("%x holds %q: %v", der, name, err)
				}
			}
		}
	})
}

// FuzzCertificates reads files of authorities, of registered certificates and of trust domains: no
// accepted certificate is too weak, and every accepted authority is a CA certificate.
func FuzzCertificates(f *testing.F) {
	ca, own := certtest.NewCA(f, "prod"), certtest.SelfSigned(f)
	key := newTestKey(f, "ES256", "p1")
	authorities := certtest.PEM(ca.Certificate)
	for _, seed := range [][]byte{
		authorities, certtest.PEM(own.Leaf), certtest.PEM(ca.Certificate, own.Leaf), authorities[:len(authorities)/2], append(authorities, "x"...),
		ca.Bundle(f), bundleOf(f, []*certtest.CA{ca}, key), []byte(`{"keys":[{"kty":"EC","use":"jwt-svid","x5c":["AA=="]}]}`), []byte(`{"keys":[]}`), nil,
	} {
		f.Add(seed)
	}
	d := &domain{name: spiffeid.RequireTrustDomainFromString("prod.example")}
	f.Fuzz(func(t *testing.T, file []byte) {
		for name, parse := range map[string]func([]byte) (*keyring, []string, error){"authorities": parseAuthorities, "registered": parseRegistered, "bundle": d.parseBundle} {
			ring, ignored, err := parse(file)
			if err != nil {
				if ring != nil || ignored != nil {
					t.Errorf("%s: %v beside a result", name, err)
				}
				continue
			}
			for thumbprint, c := range ring.certificates {
				if thumbprint != CertificateThumbprint(c) || !isStrong(c.PublicKey) || name != "registered" && !c.IsCA {
					t.Errorf("%s: took %s", name, c.Subject)
				}
			}
			for id, key := range ring.byID {
				if id != key.id || checkMaterial(key.algorithm, key.material) != nil {
					t.Errorf("%s: took key %q", name, id)
				}
			}
		}
	})
}
