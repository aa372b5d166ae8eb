package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/console"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/httpapi"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/token"
	"deputy.example/deputy/server/internal/vault"
)

// opened holds what a configuration names on this machine, read and checked. Nothing in it runs
// yet, and nothing is connected.
type opened struct {
	database, redis string // addresses with their passwords: never in a log or an error
	grpc, http, ops *tls.Config
	tenants         []exchange.Tenant
	kms             vault.KMS      // nil: no key is managed
	managed         []vault.Member // get their keys once a vault has opened them
	memory          *token.Memory  // of all tenants
	consoles        []console.Tenant
}

// open reads every file that the configuration names and makes all parts that need no connection.
// It continues after a mistake, to find the others. Its result is valid only if there was none.
func (c *Config) open(o Options) (opened, problems) {
	var p problems
	parts := opened{
		database: withPassword(&p, "database.password_file", c.Database.DSN, c.Database.PasswordFile),
		redis:    withPassword(&p, "redis.password_file", c.Redis.URL, c.Redis.PasswordFile),
		grpc:     c.Listen.GRPC.TLS.open(&p, "listen.grpc.tls", o),
		http:     c.Listen.HTTP.TLS.open(&p, "listen.http.tls", o),
		ops:      c.Listen.Ops.TLS.open(&p, "listen.ops.tls", o),
		memory:   token.NewMemory(token.DefaultMemory),
	}
	parts.kms = c.KeyEncryption.open(&p)
	for i := range c.Tenants {
		parts.tenants = append(parts.tenants, c.Tenants[i].open(&p, &parts, tenantPath(i), o))
		if t := c.Tenants[i]; t.Console != nil {
			parts.consoles = append(parts.consoles, t.Console.open(&p, tenantPath(i)+".console", t))
		}
	}
	return parts, p
}

// open chooses where the state that instances share is kept, and returns what must be closed. The
// address includes the password. It does not connect yet.
func (r *Redis) open(address string, c guard.Config) (*guard.Guard, io.Closer, error) {
	if r.InProcess {
		c.Memory = guard.NewMemory()
		return guard.New(c), closer(func() error { return nil }), nil
	}
	client, err := guard.Dial(address)
	if err != nil {
		return nil, nil, err
	}
	c.Client = client
	return guard.New(c), client, nil
}

func withPassword(p *problems, path, address, file string) string {
	if file == "" {
		return address
	}
	u, err := url.Parse(address)
	if err != nil {
		return "" // a check reported it before
	}
	password, err := secret(file)
	if err != nil {
		p.add(path, "%v", err)
		return ""
	}
	u.User = url.UserPassword(u.User.Username(), password)
	return u.String()
}

func (t *Tenant) open(p *problems, parts *opened, path string, o Options) exchange.Tenant {
	tenant := exchange.Tenant{
		Name: t.Name, Issuer: t.Issuer,
		Limits: exchange.Limits{
			MaxLifetime: t.Limits.MaxLifetime, DefaultLifetime: t.Limits.DefaultLifetime,
			MaxDepth: t.Limits.MaxDepth, MaxBatch: t.Limits.MaxBatch,
			ActorMayRecur: t.Limits.ActorMayRecur, ScopeTargets: t.Limits.ScopeTargets,
			AllowBearer: t.Limits.AllowBearer, AllowUnbinding: t.Limits.AllowUnbinding,
		},
		Servers:      t.ResourceServers,
		RequireNonce: t.RequireDPoPNonce, EmergencyResponders: t.EmergencyResponders,
		CallerRate: guard.Limit{Rate: t.Limits.CallerRate, Burst: t.Limits.CallerBurst},
		Keys:       t.openKeys(p, parts, path, o),

		Checkpoints: t.openCheckpoints(p, parts, path+".audit", o),
	}
	tenant.Trust = t.openTrust(p, parts, path, tenant.Keys, o)
	var principals []string
	if tenant.Trust != nil {
		principals = tenant.Trust.PrincipalTypes()
	}
	tenant.Policy = t.Policy.open(p, path+".policy", t.Name, principals, o)
	return tenant
}

// openKeys first tries each key by itself, because an error names only the first wrong key.
func (t *Tenant) openKeys(p *problems, parts *opened, path string, o Options) *token.Keyset {
	if t.ManagedKeys != nil {
		return t.openManaged(parts, o)
	}
	before := len(*p)
	for i, file := range t.SigningKeys {
		_, err := token.OpenKeyset(token.KeysetConfig{Keys: []token.KeyFile{file}, Create: o.CreateKeys && i == 0})
		p.fault(path, i, err)
	}
	if len(*p) > before || len(t.SigningKeys) == 0 {
		return &token.Keyset{} // a placeholder while the trust is tried; never used
	}
	keys, err := token.OpenKeyset(token.KeysetConfig{Keys: t.SigningKeys})
	p.fault(path, 0, err)
	return keys
}

// openCheckpoints reads the key, and checks that the directory of the checkpoint file exists.
func (t *Tenant) openCheckpoints(p *problems, parts *opened, path string, o Options) *exchange.Checkpointer {
	if !t.Audit.signs() {
		return nil
	}
	key, err := t.checkpointKey(o)
	if err != nil {
		p.add(path+".checkpoint_key", "%v", err)
		return nil
	}
	c, err := exchange.OpenCheckpointer(key, t.Issuer, t.Audit.CheckpointFile)
	if err != nil {
		p.add(path+".checkpoint_key", "%v", err)
	}
	if t.Audit.ManagedCheckpointKey && c != nil {
		parts.managed = append(parts.managed, c.Manage(t.Name, t.Issuer, o.Now))
	}
	if file := t.Audit.CheckpointFile; file != "" {
		if dir, err := os.Stat(filepath.Dir(file)); err != nil || !dir.IsDir() {
			p.add(path+".checkpoint_file", "must be in a directory that is there and that Deputy may write to")
		}
	}
	return c
}

// checkpointKey reads the key of the file, if one is configured.
func (t *Tenant) checkpointKey(o Options) (string, error) {
	if t.Audit.CheckpointKey == "" {
		return "", nil
	}
	if _, err := os.Lstat(t.Audit.CheckpointKey); o.CreateKeys && errors.Is(err, fs.ErrNotExist) {
		if _, err := exchange.CreateCheckpointKey(t.Audit.CheckpointKey, t.Issuer); err != nil {
			return "", err
		}
	}
	return secret(t.Audit.CheckpointKey)
}

// openTrust first tries each issuer, client and trust domain by itself, for the same reason, and
// then all together.
func (t *Tenant) openTrust(p *problems, parts *opened, path string, keys *token.Keyset, o Options) *token.Trust {
	config := token.TrustConfig{
		Issuer: t.Issuer, Keys: keys, Skew: t.Skew, AllowInsecureLoopback: t.AllowInsecureLoopback,
		ClientCAFile: t.ClientCAFile, Transport: o.KeyTransport, Memory: parts.memory, Now: o.Now, Logger: o.Logger,
	}
	before := len(*p)
	if _, err := token.NewTrust(config); err != nil {
		p.fault(path, 0, err)
		// The other fields are tried all the same.
		config.Issuer, config.Skew = "https://unusable.invalid", 0
	}
	for i, issuer := range t.TrustedIssuers {
		alone := config
		alone.TrustedIssuers = []token.TrustedIssuer{issuer}
		_, err := token.NewTrust(alone)
		p.fault(path, i, err)
	}
	for i, client := range t.Clients {
		alone := config
		alone.Clients = []token.Client{client}
		_, err := token.NewTrust(alone)
		p.fault(path, i, err)
	}
	for i, domain := range t.SPIFFE {
		alone := config
		alone.TrustDomains = []token.TrustDomain{domain}
		_, err := token.NewTrust(alone)
		p.fault(path, i, err)
	}
	if len(*p) > before {
		return nil
	}
	config.TrustedIssuers, config.Clients, config.TrustDomains = t.TrustedIssuers, t.Clients, t.SPIFFE
	trust, err := token.NewTrust(config)
	p.fault(path, 0, err)
	return trust
}

// fault adds an error of package token, which names the wrong field below the tenant. The element
// was tried alone, as number 0. In the configuration it is number i.
func (p *problems) fault(path string, i int, err error) {
	if err == nil {
		return
	}
	fault := delegation.AsError(err)
	p.add(path+"."+strings.Replace(fault.Field, "[0]", fmt.Sprintf("[%d]", i), 1), "%s", fault.Description)
}

func (f *Policy) open(p *problems, path, tenant string, principals []string, o Options) *policy.Checker {
	config := policy.Config{
		URL: f.URL, StoreID: f.Store, ModelID: f.Model, Transport: o.PolicyTransport,
		Timeout: f.Timeout, MaxChecks: f.MaxChecks, Mapping: f.Mapping, Principals: principals, Cache: f.Cache,
	}
	if f.TokenFile != "" {
		var err error
		if config.Token, err = secret(f.TokenFile); err != nil {
			p.add(path+".token_file", "%v", err)
		}
	}
	if o.Registry != nil {
		config.Registerer = prometheus.WrapRegistererWith(prometheus.Labels{"tenant": tenant}, o.Registry)
	}
	checker, err := policy.New(config)
	for _, mistake := range parts(err) {
		// A mistake in the mapping begins with its path. The checks before have reported all
		// others.
		text, aboutMapping := strings.CutPrefix(mistake.Error(), "mapping ")
		at, message, _ := strings.Cut(text, ": ")
		switch {
		case !aboutMapping:
			p.add(path, "%s", text)
		case strings.Contains(at, " "):
			p.add(path+".mapping", "%s", text)
		default:
			p.add(path+".mapping."+at, "%s", message)
		}
	}
	return checker
}

// parts splits an error of errors.Join into its errors, at any depth.
func parts(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, parts(e)...)
		}
		return all
	}
	if inner := errors.Unwrap(err); inner != nil {
		return parts(inner)
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

func (c *Console) open(p *problems, path string, t Tenant) console.Tenant {
	opened := console.Tenant{
		Name: t.Name, Issuer: t.Issuer, Provider: c.Issuer, ClientID: c.ClientID, Scopes: c.Scopes,
		Idle: c.IdleTimeout, Life: c.MaxSession, InsecureLoopback: t.AllowInsecureLoopback,
	}
	if c.ClientSecretFile != "" {
		var err error
		if opened.ClientSecret, err = secret(c.ClientSecretFile); err != nil {
			p.add(path+".client_secret_file", "%v", err)
		}
	}
	return opened
}

// front returns what the HTTP front publishes about the tenant. certificates reports whether
// clients can present certificates there.
func (t *Tenant) front(keys *token.Keyset, certificates bool) httpapi.Tenant {
	var algorithms, methods []string
	for _, c := range t.Clients {
		algorithms = append(algorithms, c.Algorithms...)
		if c.TLS != nil && certificates {
			methods = append(methods, c.TLS.Method())
		}
	}
	// An SVID is authenticated as a certificate of an authority.
	if len(t.SPIFFE) > 0 && certificates {
		methods = append(methods, token.MethodTLSClientAuth)
	}
	slices.Sort(algorithms)
	slices.Sort(methods)
	return httpapi.Tenant{
		Name: t.Name, Issuer: t.Issuer, JWKS: keys.JWKS,
		AssertionAlgorithms: slices.Compact(algorithms),
		CertificateMethods:  slices.Compact(methods), CertificateBound: certificates,
		DetailTypes:   slices.Sorted(maps.Keys(t.Policy.Mapping.Details)),
		AcceptJSONSTS: t.AcceptJSONSTS,
	}
}
