package dpop

import (
	"errors"
	"net/url"
	"strings"
)

// CallURI is the htu of a gRPC call: authority is the call's :authority, host or host:port, and
// method the full name /package.Service/Method. The scheme is https whatever the transport is.
func CallURI(authority, method string) string { return "https://" + authority + method }

// withoutQuery is the htu of an address (RFC 9449 §4.2).
func withoutQuery(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme == "" || u.User != nil {
		return "", errors.New("the address of the request is not an absolute URL without user information")
	}
	return u.Scheme + "://" + u.Host + u.EscapedPath(), nil
}

// sameAddress compares an htu with the address of a request, query and fragment aside (check 9),
// after the normalization of RFC 3986 §6.2.2 and §6.2.3. Paths with dot segments are never the
// same.
func sameAddress(htu, address string) bool {
	a, okA := normalized(htu)
	b, okB := normalized(address)
	return okA && okB && a == b
}

func normalized(address string) (string, bool) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil || u.Opaque != "" {
		return "", false
	}
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch scheme {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	default:
		return "", false
	}
	path, ok := normalizedPath(u.EscapedPath())
	return scheme + "://" + strings.TrimSuffix(host, ":") + path, ok
}

// normalizedPath decodes what need not be encoded, and writes the rest in upper case.
func normalizedPath(escaped string) (string, bool) {
	if escaped == "" {
		return "/", true
	}
	var out strings.Builder
	for i := 0; i < len(escaped); i++ {
		c := escaped[i]
		if c != '%' {
			out.WriteByte(c)
			continue
		}
		if i+2 >= len(escaped) {
			return "", false
		}
		code := strings.ToUpper(escaped[i : i+3])
		if plain, err := url.PathUnescape(code); err == nil && isUnreserved(plain[0]) {
			out.WriteByte(plain[0])
		} else {
			out.WriteString(code)
		}
		i += 2
	}
	for segment := range strings.SplitSeq(out.String(), "/") {
		if segment == "." || segment == ".." {
			return "", false
		}
	}
	return out.String(), true
}

// isUnreserved is RFC 3986 §2.3.
func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}
