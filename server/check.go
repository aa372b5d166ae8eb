package server

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/console"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/token"
)

// check returns every mistake that the configuration shows by itself. It also sets the defaults of
// absent fields. No other place sets a default.
func (c *Config) check() problems {
	var p problems
	c.Listen.check(&p)
	c.Database.check(&p)
	c.Redis.check(&p)
	c.Telemetry.check(&p)
	if len(c.Tenants) == 0 {
		p.add("tenants", "is missing: describe at least one tenant")
	}
	for i := range c.Tenants {
		c.Tenants[i].check(&p, tenantPath(i))
	}
	c.Clock.check(&p, c.Tenants)
	c.checkSealed(&p)
	c.checkApart(&p)
	c.checkCertificates(&p)
	return p
}

func tenantPath(i int) string { return fmt.Sprintf("tenants[%d]", i) }

func (l *Listen) check(p *problems) {
	taken := make(map[string]string)
	for _, listener := range []struct {
		path    string
		at      *Listener
		address string
	}{
		{"listen.grpc", &l.GRPC, "127.0.0.1:9090"},
		{"listen.http", &l.HTTP, "127.0.0.1:8080"},
		{"listen.ops", &l.Ops, "127.0.0.1:9091"},
	} {
		if listener.at.Address == "" {
			listener.at.Address = listener.address
		}
		listener.at.check(p, listener.path)
		if listener.at != &l.GRPC && len(listener.at.Authorities) > 0 {
			p.add(listener.path+".authorities", "has no meaning here: only a gRPC listener has them")
		}
		if listener.at == &l.Ops && len(l.Ops.Proxies) > 0 {
			p.add("listen.ops.proxies", "has no meaning here, where no client is bounded: remove it")
		}
		if other, taken := taken[listener.at.Address]; taken && !strings.HasSuffix(listener.at.Address, ":0") {
			p.add(listener.path+".address", "is that of %s too: give each its own port", other)
		}
		taken[listener.at.Address] = listener.path
	}
	between(p, "listen.drain_notice", &l.DrainNotice, 0, 0, time.Minute)
	between(p, "listen.drain_timeout", &l.DrainTimeout, 10*time.Second, time.Millisecond, 5*time.Minute)
}

func (l *Listener) check(p *problems, path string) {
	host, port, err := net.SplitHostPort(l.Address)
	switch {
	case err != nil || port == "":
		p.add(path+".address", "must be host:port, such as 127.0.0.1:9090")
	case l.TLS == nil && !l.InsecurePlaintext && !isLoopback(host):
		p.add(path+".address", "would carry credentials in plaintext to other machines: add tls, listen on 127.0.0.1, or set insecure_plaintext where something in front encrypts")
	}
	for i, name := range l.Authorities {
		if u, err := url.Parse("https://" + name); err != nil || u.Host != name || u.Hostname() == "" || u.User != nil {
			p.add(fmt.Sprintf("%s.authorities[%d]", path, i), "must be host or host:port, as clients dial it")
		}
	}
	for i, text := range l.Proxies {
		if _, err := parsePrefix(text); err != nil {
			p.add(fmt.Sprintf("%s.proxies[%d]", path, i), "must be an address or a network, such as 10.0.0.7 or 10.0.0.0/24")
		}
	}
	if l.TLS != nil {
		l.TLS.check(p, path+".tls", path != "listen.ops")
		if l.InsecurePlaintext {
			p.add(path+".insecure_plaintext", "contradicts tls: remove one of the two")
		}
	}
}

// parsePrefix parses an address, or a network whose host bits are zero.
func parsePrefix(text string) (netip.Prefix, error) {
	if address, err := netip.ParseAddr(text); err == nil && address.Zone() == "" {
		return netip.PrefixFrom(address.Unmap(), address.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p != p.Masked() || p.Addr().Is4In6() {
		return netip.Prefix{}, errors.New("is no network")
	}
	return p, nil
}

func (d *Database) check(p *problems) {
	const path = "database.dsn"
	if d.DSN == "" {
		p.add(path, "is missing: write postgres://user@host/database?sslmode=verify-full, or sqlite:///path/of/file.db")
		return
	}
	if err := ledger.CheckAddress(d.DSN); err != nil {
		p.add(path, "%v", err)
		return
	}
	u, err := url.Parse(d.DSN)
	switch {
	case err != nil:
		p.add(path, "is malformed")
	case holdsPassword(u) || u.Query().Has("password"):
		p.add(path, "holds a password: put it into a file and name that in password_file")
	case u.Scheme == "sqlite" && d.PasswordFile != "":
		p.add("database.password_file", "has no meaning for sqlite: remove it")
	case u.Scheme != "sqlite" && !isLoopback(u.Hostname()) && u.Query().Get("sslmode") != "verify-full" && !d.InsecurePlaintext:
		p.add(path, "must have sslmode=verify-full for a server on another machine; set insecure_plaintext where something else protects the connection")
	}
}

func (r *Redis) check(p *problems) {
	const path = "redis.url"
	u, err := url.Parse(r.URL)
	switch {
	case r.InProcess && *r != (Redis{InProcess: true, Timeout: r.Timeout}):
		p.add(path, "must be absent in a deployment of one process; remove the section")
	case r.InProcess:
	case r.URL == "":
		p.add(path, "is missing: write redis://host:6379/0, or rediss:// for TLS")
	case err != nil || !slices.Contains([]string{"redis", "rediss", "unix"}, u.Scheme):
		p.add(path, "must begin with redis://, rediss:// or unix://")
	case holdsPassword(u) || u.Query().Has("password"):
		p.add(path, "holds a password: put it into a file and name that in password_file")
	case guard.CheckAddress(r.URL) != nil:
		p.add(path, "%v", guard.CheckAddress(r.URL))
	case u.Scheme == "redis" && !isLoopback(u.Hostname()) && !r.InsecurePlaintext:
		p.add(path, "must be rediss:// for a server on another machine; set insecure_plaintext where something else protects the connection")
	}
	between(p, "redis.timeout", &r.Timeout, 500*time.Millisecond, 10*time.Millisecond, time.Second)
}

func holdsPassword(u *url.URL) bool { _, has := u.User.Password(); return has }

func (t *Telemetry) check(p *problems) {
	if t.OTLPEndpoint != "" {
		// The exporter uses gRPC, so a path has no meaning.
		if u, err := url.Parse(t.OTLPEndpoint); err != nil || u.Host == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" ||
			strings.TrimPrefix(u.Path, "/") != "" || strings.ContainsAny(t.OTLPEndpoint, "?#") {
			p.add("telemetry.otlp_endpoint", "must be https://host:port, or http://host:port for a collector without TLS; remove path, query and fragment")
		}
	}
	oneOf(p, "telemetry.log_level", &t.LogLevel, "info", "debug", "warn", "error")
	oneOf(p, "telemetry.log_format", &t.LogFormat, "json", "text")
}

var tenantName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (t *Tenant) check(p *problems, path string) {
	if !tenantName.MatchString(t.Name) {
		p.add(path+".name", "must be 1 to 63 lower-case letters, digits and dashes, such as acme")
	}
	t.checkIssuer(p, path)
	t.checkSigning(p, path)
	for i, key := range t.SigningKeys {
		at := fmt.Sprintf("%s.signing_keys[%d]", path, i)
		required(p, at+".path", key.Path, "name the file of the private key")
		required(p, at+".algorithm", key.Algorithm, "write ES256, EdDSA or RS256")
	}
	for i, issuer := range t.TrustedIssuers {
		checkTrustedIssuer(p, fmt.Sprintf("%s.trusted_issuers[%d]", path, i), issuer)
	}
	for i, client := range t.Clients {
		at := fmt.Sprintf("%s.clients[%d]", path, i)
		required(p, at+".id", string(client.ID), "write the client's principal, such as agent:planner")
		if client.TLS == nil || len(client.Algorithms) > 0 || client.Keys != (token.KeySource{}) {
			requiredKeys(p, at, client.Keys, client.Algorithms, "write file: with the path of the client's JWK Set, or tls: with the certificate that it is known by")
		}
	}
	for i, domain := range t.SPIFFE {
		at := fmt.Sprintf("%s.spiffe[%d]", path, i)
		required(p, at+".trust_domain", domain.Name, "write the name of the trust domain, such as prod.acme.example")
		required(p, at+".bundle_file", domain.BundleFile, "name the file of its bundle")
		required(p, at+".principal.type", domain.Principal.Type, "set the type of its workloads, such as agent")
	}
	checkPrincipals(p, path+".emergency_responders", t.EmergencyResponders)
	checkServers(p, path+".resource_servers", t.ResourceServers)
	t.Policy.check(p, path+".policy")
	t.Limits.check(p, path+".limits")
	if t.ManagedKeys != nil {
		t.ManagedKeys.check(p, path+".managed_keys", t.Limits)
	}
	t.Audit.Retention.check(p, path+".audit.retention")
	if t.Audit.CheckpointFile != "" && !t.Audit.signs() {
		p.add(path+".audit.checkpoint_file", "has no meaning without checkpoint_key or managed_checkpoint_key; set one of them")
	}
	if t.Console != nil {
		t.Console.check(p, path+".console", t.TrustedIssuers)
	}
}

func checkServers(p *problems, path string, servers map[string][]delegation.Principal) {
	for audience, principals := range servers {
		at := join(path, audience)
		if audience == "" || len(principals) == 0 {
			p.add(at, "must list who serves the audience, by principal, such as service:calendar")
		}
		checkPrincipals(p, at, principals)
	}
}

func checkPrincipals(p *problems, path string, principals []delegation.Principal) {
	for i, principal := range principals {
		if _, err := delegation.ParsePrincipal(string(principal)); err != nil {
			p.add(fmt.Sprintf("%s[%d]", path, i), "%v", err)
		}
	}
}

func (c *Console) check(p *problems, path string, trusted []token.TrustedIssuer) {
	required(p, path+".issuer", c.Issuer, "write the issuer of the OpenID provider, which is one of trusted_issuers")
	required(p, path+".client_id", c.ClientID, "write what the provider calls the console")
	n := slices.IndexFunc(trusted, func(i token.TrustedIssuer) bool { return i.Issuer == c.Issuer })
	switch {
	case c.Issuer == "":
	case strings.ContainsAny(c.Issuer, "?#"):
		p.add(path+".issuer", "must have neither query nor fragment, because the provider's metadata is at an address below it")
	case n < 0:
		p.add(path+".issuer", "is not among trusted_issuers: add it there, with the principals that its people become")
	case slices.Contains(trusted[n].Audiences, c.ClientID):
		p.add(path+".client_id", "is an audience of %s too, so that every person who signs in could start a chain: register the console as a client of its own", c.Issuer)
	}
	between(p, path+".idle_timeout", &c.IdleTimeout, 30*time.Minute, time.Minute, 8*time.Hour)
	between(p, path+".max_session", &c.MaxSession, 12*time.Hour, c.IdleTimeout, exchange.MaxSession)
}

func (t *Tenant) checkIssuer(p *problems, path string) {
	at := path + ".issuer"
	u, err := url.Parse(t.Issuer)
	switch {
	case t.Issuer == "":
		p.add(at, "is missing: write the address under which clients reach this tenant, such as https://deputy.example/t/acme")
		return
	case err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http":
		p.add(at, "must be an https address without credentials")
	case strings.ContainsAny(t.Issuer, "?#"):
		p.add(at, "must have neither query nor fragment (RFC 8414 section 2)")
	case strings.HasSuffix(t.Issuer, "/"):
		p.add(at, "must not end in a slash: write %s", strings.TrimRight(t.Issuer, "/"))
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		p.add(at, "must be https: plain http is for addresses of this machine, in development")
	case u.Scheme == "http" && !t.AllowInsecureLoopback:
		p.add(at, "must be https, unless allow_insecure_loopback is set for development")
	case t.Default && u.Path != "":
		p.add(at, "must have no path in the default tenant: write %s://%s, or remove default", u.Scheme, u.Host)
	case !t.Default && u.Path == "":
		p.add(at, "has no path, which only the default tenant may have: add one such as /t/acme, or set default")
	}
}

func checkTrustedIssuer(p *problems, path string, i token.TrustedIssuer) {
	required(p, path+".issuer", i.Issuer, "write the exact iss of its tokens")
	required(p, path+".principal.type", i.Principal.Type, "set the type of its subjects, such as user or agent")
	requiredKeys(p, path, i.Keys, i.Algorithms, "write discovery: true, jwks_url: or file:")
	if len(i.Audiences) == 0 && !i.Workloads {
		p.add(path+".audiences", "is missing: list the aud values that make a token of this issuer acceptable as a subject token, or set workloads if it only names actors")
	}
	// Zero means absent and takes the default. A root token that lives for days outlives every
	// cut-off.
	if i.MaxLifetime < 0 || i.MaxLifetime > maxRootLifetime {
		p.add(path+".max_lifetime", "must be between 1s and %s", short(maxRootLifetime))
	}
}

const maxRootLifetime = ledger.LongestRoot

func requiredKeys(p *problems, path string, keys token.KeySource, algorithms []string, sources string) {
	if keys == (token.KeySource{}) {
		p.add(path+".keys", "is missing: %s", sources)
	}
	if len(algorithms) == 0 {
		p.add(path+".algorithms", "is missing: list the algorithms of its keys, such as ES256")
	}
}

var openFGAID = regexp.MustCompile(`^[0-9A-HJKMNP-TV-Z]{26}$`)

func (f *Policy) check(p *problems, path string) {
	u, err := url.Parse(f.URL)
	switch {
	case f.URL == "":
		p.add(path+".url", "is missing: write the address of OpenFGA's HTTP API, such as https://openfga.internal:8080")
	case err != nil || u.Host == "" || u.User != nil || strings.ContainsAny(f.URL, "?#") || u.Scheme != "https" && u.Scheme != "http":
		p.add(path+".url", "must be an https address without credentials, query and fragment; a preshared key goes into token_file")
	case u.Scheme == "http" && !isLoopback(u.Hostname()) && !f.InsecurePlaintext:
		p.add(path+".url", "must be https: over plain http anyone on the way can answer in OpenFGA's place; set insecure_plaintext where something else protects it")
	}
	for _, id := range []struct{ key, value, hint string }{
		{"store", f.Store, "write the id that OpenFGA gave when the store was created"},
		{"model", f.Model, "write the id that OpenFGA gave when the model was written; it is always pinned"},
	} {
		if !openFGAID.MatchString(id.value) {
			p.add(path+"."+id.key, "must be an OpenFGA id of 26 characters: %s", id.hint)
		}
	}
	between(p, path+".timeout", &f.Timeout, time.Second, 10*time.Millisecond, 1500*time.Millisecond)
	between(p, path+".max_checks", &f.MaxChecks, 50, 1, 500)
	between(p, path+".cache.entries", &f.Cache.Entries, policy.DefaultCacheEntries, 1, policy.MaxCacheEntries)
	between(p, path+".cache.overlap", &f.Cache.Overlap, policy.DefaultCacheOverlap, policy.MinCacheOverlap, policy.MaxCacheOverlap)
}

func (l *Limits) check(p *problems, path string) {
	between(p, path+".max_lifetime", &l.MaxLifetime, 15*time.Minute, time.Second, 24*time.Hour)
	between(p, path+".default_lifetime", &l.DefaultLifetime, min(5*time.Minute, l.MaxLifetime), time.Second, l.MaxLifetime)
	between(p, path+".max_depth", &l.MaxDepth, 8, 1, delegation.MaxChainDepth)
	between(p, path+".max_batch", &l.MaxBatch, 100, 1, 100)
	const most = 100_000
	between(p, path+".caller_rate", &l.CallerRate, 100, 1, most)
	between(p, path+".caller_burst", &l.CallerBurst, max(2*l.CallerRate, l.MaxBatch), l.MaxBatch, 2*most)
	if l.AllowUnbinding && !l.AllowBearer {
		p.add(path+".allow_unbinding", "has no meaning without allow_bearer: remove it")
	}
	for scope, targets := range l.ScopeTargets {
		if _, err := delegation.NewScopes(scope); err != nil {
			p.add(path+".scope_targets."+scope, "is not a scope (RFC 6749 section 3.3)")
		}
		if len(targets) == 0 || slices.Contains(targets, "") {
			p.add(path+".scope_targets."+scope, "must list audiences, none of them empty")
		}
	}
}

// checkCertificates reports certificates that no client can present.
func (c *Config) checkCertificates(p *problems) {
	if c.Listen.GRPC.TLS.requests() || c.Listen.HTTP.TLS.requests() {
		return
	}
	for i, t := range c.Tenants {
		for k, client := range t.Clients {
			if client.TLS != nil {
				p.add(fmt.Sprintf("%s.clients[%d].tls", tenantPath(i), k), "can never be used: neither listen.grpc nor listen.http has tls with client_certificates: request")
			}
		}
	}
}

// checkApart reports what two tenants must not have in common.
func (c *Config) checkApart(p *problems) {
	for i, t := range c.Tenants {
		for j, other := range c.Tenants[:i] {
			path := tenantPath(i)
			if t.Name != "" && t.Name == other.Name {
				p.add(path+".name", "is the name of %s too: names must differ", tenantPath(j))
			}
			if t.Default && other.Default {
				p.add(path+".default", "is set for %s too: one tenant at most is the default", tenantPath(j))
			}
			if t.Audit.CheckpointFile != "" && t.Audit.CheckpointFile == other.Audit.CheckpointFile {
				p.add(path+".audit.checkpoint_file", "is that of %s too: each log has its own", tenantPath(j))
			}
			switch {
			case t.Issuer == "":
			case t.Issuer == other.Issuer:
				p.add(path+".issuer", "is the issuer of %s too: addresses must differ", tenantPath(j))
			case pathOf(t.Issuer) == pathOf(other.Issuer):
				p.add(path+".issuer", "has the same path as that of %s: endpoints are told apart by path", tenantPath(j))
			}
			if t.below(other) || other.below(t) {
				p.add(path+".issuer", "and the issuer of %s: one lies where the other's console is", tenantPath(j))
			}
			checkTrustApart(p, i, t, j, other)
		}
		for k, trusted := range t.TrustedIssuers {
			if n := slices.IndexFunc(c.Tenants, func(o Tenant) bool { return o.Issuer != "" && o.Issuer == trusted.Issuer }); n >= 0 {
				p.add(fmt.Sprintf("%s.trusted_issuers[%d].issuer", tenantPath(i), k),
					"is the address of %s: a tenant trusts its own tokens already, and no tokens of another tenant", tenantPath(n))
			}
		}
	}
}

// below reports whether the tenant's address is at or below the address of another tenant's
// console.
func (t *Tenant) below(other Tenant) bool {
	place := pathOf(other.Issuer) + console.Path
	return other.Console != nil && (pathOf(t.Issuer) == place || strings.HasPrefix(pathOf(t.Issuer), place+"/"))
}

// checkTrustApart holds invariant I7 between tenants: an issuer or a trust domain belongs to one
// tenant. Principals belong to a tenant, so two tenants may both have a user:alice. They may not
// where one OpenFGA store answers for both, because the two would be one principal there.
func checkTrustApart(p *problems, i int, t Tenant, j int, other Tenant) {
	for k, a := range t.TrustedIssuers {
		if n := slices.IndexFunc(other.TrustedIssuers, func(b token.TrustedIssuer) bool { return a.Issuer != "" && a.Issuer == b.Issuer }); n >= 0 {
			p.add(fmt.Sprintf("%s.trusted_issuers[%d].issuer", tenantPath(i), k),
				"is trusted by %s.trusted_issuers[%d] too: an issuer belongs to one tenant", tenantPath(j), n)
		}
	}
	for k, a := range t.SPIFFE {
		if n := slices.IndexFunc(other.SPIFFE, func(b token.TrustDomain) bool { return a.Name != "" && a.Name == b.Name }); n >= 0 {
			p.add(fmt.Sprintf("%s.spiffe[%d].trust_domain", tenantPath(i), k),
				"is trusted by %s.spiffe[%d] too: a trust domain belongs to one tenant", tenantPath(j), n)
		}
	}
	if t.Policy.Store == "" || t.Policy.Store != other.Policy.Store || t.Policy.URL != other.Policy.URL {
		return
	}
	for _, a := range t.realms(i) {
		for _, b := range other.realms(j) {
			if !(a.shared && b.shared) && (a.covers(b) || b.covers(a)) {
				p.add(a.path, "can yield the same principals as %s, and both tenants ask one OpenFGA store: use another type, prefix or store, or set shared_principals on both", b.path)
			}
		}
	}
}

// realm is the set of principals that a credential can name: one principal, or all that begin with
// start.
type realm struct {
	path   string
	start  string
	open   bool
	shared bool
}

func (a realm) covers(b realm) bool {
	return a.start == b.start || a.open && strings.HasPrefix(b.start, a.start)
}

func (t *Tenant) realms(n int) []realm {
	var all []realm
	add := func(path string, m token.Mapping, shared bool) {
		if m.Type != "" {
			all = append(all, realm{path, m.Type + ":" + delegation.EncodeID(m.Prefix), true, shared})
		}
	}
	for k, i := range t.TrustedIssuers {
		at := fmt.Sprintf("%s.trusted_issuers[%d]", tenantPath(n), k)
		add(at+".principal", i.Principal, i.SharedPrincipals)
		if i.ImportAct != nil {
			add(at+".import_act", *i.ImportAct, i.SharedPrincipals)
		}
	}
	for k, d := range t.SPIFFE {
		add(fmt.Sprintf("%s.spiffe[%d].principal", tenantPath(n), k), d.Principal, d.SharedPrincipals)
	}
	for k, c := range t.Clients {
		if c.ID != "" {
			all = append(all, realm{fmt.Sprintf("%s.clients[%d].id", tenantPath(n), k), string(c.ID), false, c.SharedPrincipals})
		}
	}
	return all
}

func required(p *problems, path, value, hint string) {
	if value == "" {
		p.add(path, "is missing: %s", hint)
	}
}

func oneOf(p *problems, path string, value *string, byDefault string, others ...string) {
	switch {
	case *value == "":
		*value = byDefault
	case *value != byDefault && !slices.Contains(others, *value):
		p.add(path, "must be %s or %s", byDefault, strings.Join(others, " or "))
	}
}

// between sets the default where the value is zero, which is never a meaningful value. It reports
// each other value outside the bounds.
func between[T int | time.Duration](p *problems, path string, value *T, byDefault, least, most T) {
	if *value == 0 {
		*value = byDefault
	}
	if *value < least || *value > most {
		p.add(path, "must be between %s and %s", short(least), short(most))
		*value = byDefault // a check that uses the value later must not report this mistake again
	}
}

// short writes 15m0s as 15m.
func short(v any) string {
	text := fmt.Sprint(v)
	if _, isDuration := v.(time.Duration); isDuration {
		for _, nothing := range []string{"m0s", "h0m"} {
			if strings.HasSuffix(text, nothing) {
				text = text[:len(text)-2]
			}
		}
	}
	return text
}

func pathOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	return u.EscapedPath()
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
