package token

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"syscall"
)

// reach is the set of addresses at which a source of keys may be. The rule does not use names: the
// owner of a name can change its address before each look-up. So the rule is applied to the address
// of each connection, when it is made.
type reach struct {
	private  bool // private_address
	loopback bool // allow_insecure_loopback
}

var (
	errPrivateAddress = errors.New("leads to an address of a private network or of this machine: where that is meant, set private_address")
	errNoAddress      = errors.New("leads to an address that is not assigned on the public network, and never allowed")
)

func (r reach) permits(address netip.Addr) error {
	address = translated(address)
	private := address.IsLoopback() || lies(address, privateNetworks)
	switch {
	case lies(address, neverReached), !private && address.Is6() && !publicIPv6.Contains(address):
		return errNoAddress
	case !private, r.private, r.loopback && address.IsLoopback():
		return nil
	}
	return errPrivateAddress
}

// translated returns the address that receives the packets, where an address embeds another one
// (RFC 4291 section 2.5.5.2, RFC 6052 section 2.1).
func translated(a netip.Addr) netip.Addr {
	a = a.WithZone("").Unmap()
	if nat64.Contains(a) {
		b := a.As16()
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return a
}

var (
	nat64           = netip.MustParsePrefix("64:ff9b::/96")
	publicIPv6      = netip.MustParsePrefix("2000::/3") // all public IPv6 assignments so far
	privateNetworks = prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")

	// neverReached are the other special-purpose addresses of RFC 6890 and its registries, and the
	// addresses where clouds serve credentials: link-local ones, and these few others.
	neverReached = prefixes(
		"0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "fe80::/10", "ff00::/8",
		"100.100.100.200/32", "168.63.129.16/32", "fd00:ec2::254/128", "fd20:ce::254/128",
	)
)

func prefixes(all ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, text := range all {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

func lies(address netip.Addr, within []netip.Prefix) bool {
	return slices.ContainsFunc(within, func(p netip.Prefix) bool { return p.Contains(address) })
}

// control is the Control function of a net.Dialer.
func (r reach) control(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return errNoAddress
	}
	return r.permits(at.Addr())
}

// permitsHost checks a host that is written as an address, before anything is sent. The address of
// a name is not known yet.
func (r reach) permitsHost(host string) error {
	address, err := netip.ParseAddr(host)
	if err != nil {
		return nil
	}
	return r.permits(address)
}

// routes sends a request directly, or through the proxy that is configured for it.
type routes struct {
	direct *http.Transport // connects under the rule of a reach
	// proxied connects to the proxy, which resolves names and must enforce the rule itself.
	proxied *http.Transport
}

func (r routes) RoundTrip(request *http.Request) (*http.Response, error) {
	if proxy, err := r.proxied.Proxy(request); err != nil || proxy != nil {
		return r.proxied.RoundTrip(request)
	}
	return r.direct.RoundTrip(request)
}
