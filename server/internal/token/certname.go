package token

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Prefixes of a certificate's names as rules compare them: the kind, a colon, and the name exactly
// as the certificate holds it. Comparison is by bytes, without wildcards or case folding. A common
// name is only a part of the subject's distinguished name.
const (
	nameDN    = "dn:"
	nameDNS   = "dns:"
	nameURI   = "uri:"
	nameIP    = "ip:"
	nameEmail = "email:"
)

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// namesOf reads the names from the certificate's own bytes, because crypto/x509 may give the same
// result for two different names.
func namesOf(c *x509.Certificate) ([]string, error) {
	var names []string
	if dn, comparable := distinguishedName(c.RawSubject); comparable {
		names = append(names, nameDN+dn)
	}
	for _, extension := range c.Extensions { // crypto/x509 refuses a repeated extension
		if !extension.Id.Equal(oidSubjectAltName) {
			continue
		}
		alternatives, err := alternativeNames(extension.Value)
		if err != nil {
			return nil, err
		}
		names = append(names, alternatives...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// alternativeNames reads GeneralNames (RFC 5280 §4.2.1.6) of the kinds that can be registered.
func alternativeNames(der []byte) ([]string, error) {
	malformed := broken("the certificate's list of names is malformed")
	var list asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &list); err != nil || len(rest) > 0 || list.Tag != asn1.TagSequence || !list.IsCompound {
		return nil, malformed
	}
	var names []string
	for rest := list.Bytes; len(rest) > 0; {
		var name asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &name); err != nil || name.Class != asn1.ClassContextSpecific {
			return nil, malformed
		}
		switch name.Tag {
		case 1:
			names = append(names, nameEmail+string(name.Bytes))
		case 2:
			names = append(names, nameDNS+string(name.Bytes))
		case 6:
			names = append(names, nameURI+string(name.Bytes))
		case 7:
			address, isAddress := netip.AddrFromSlice(name.Bytes)
			if !isAddress {
				return nil, malformed
			}
			names = append(names, nameIP+address.String())
		}
	}
	return names, nil
}

// relativeNameSET is a relative distinguished name, before it is interpreted. Package asn1
// identifies a SET by the name of its type.
type relativeNameSET []struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

// attributeNames are all names of RFC 4514 §3.
var attributeNames = map[string]string{
	"2.5.4.3": "CN", "2.5.4.7": "L", "2.5.4.8": "ST", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.6": "C", "2.5.4.9": "STREET",
	"0.9.2342.19200300.100.1.25": "DC", "0.9.2342.19200300.100.1.1": "UID",
}

// distinguishedName returns the string form of RFC 4514 §2: the last part first, "," between parts,
// "+" within one, the names of attributeNames, and for every other attribute its number and its
// value in hexadecimal DER. One string is one name. A name that holds a value of another kind than
// text, or control characters, is not comparable, and neither is an empty one.
func distinguishedName(der []byte) (string, bool) {
	var sequence []relativeNameSET
	if rest, err := asn1.Unmarshal(der, &sequence); err != nil || len(rest) > 0 || len(sequence) == 0 {
		return "", false
	}
	var parts []string
	for _, relative := range slices.Backward(sequence) {
		var attributes []string
		for _, a := range relative {
			name, known := attributeNames[a.Type.String()]
			if !known {
				attributes = append(attributes, a.Type.String()+"=#"+hex.EncodeToString(a.Value.FullBytes))
				continue
			}
			text := string(a.Value.Bytes)
			isText := a.Value.Class == asn1.ClassUniversal &&
				(a.Value.Tag == asn1.TagUTF8String || a.Value.Tag == asn1.TagPrintableString || a.Value.Tag == asn1.TagIA5String)
			if !isText || text == "" || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
				return "", false
			}
			attributes = append(attributes, name+"="+escapeValue(text))
		}
		parts = append(parts, strings.Join(attributes, "+"))
	}
	return strings.Join(parts, ","), true
}

// escapeValue is RFC 4514 §2.4.
func escapeValue(text string) string {
	var b strings.Builder
	for i, r := range text {
		if strings.ContainsRune(`"+,;<>\`, r) || i == 0 && (r == '#' || r == ' ') || i == len(text)-1 && r == ' ' {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}
