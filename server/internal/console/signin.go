package console

import (
	"context"
	"crypto/hmac"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

const (
	// signInLife is how long a person may take at the provider.
	signInLife = 10 * time.Minute
	// discoveryAge is how long a provider's own description is valid. discoveryPause is how long
	// after a failure the provider is not asked again.
	discoveryAge   = time.Hour
	discoveryPause = 2 * time.Second
	// providerPatience bounds the time of one answer of a provider, maxProviderBytes its size.
	providerPatience = 4 * time.Second
	maxProviderBytes = 256 << 10
)

// provider is the OpenID provider of a tenant, by its own description (OpenID Connect Discovery
// 1.0).
type provider struct {
	tenant   Tenant
	redirect string // where it sends browsers back to
	client   *http.Client
	now      func() time.Time

	mu     sync.Mutex // held during a request, so that concurrent callers share the answer
	found  *oauth2.Config
	asked  time.Time
	failed error
}

func newProvider(t Tenant, redirect string, transport http.RoundTripper, now func() time.Time) *provider {
	if transport == nil {
		transport = http.DefaultTransport
	}
	return &provider{tenant: t, redirect: redirect, now: now, client: &http.Client{
		Transport: bounded{transport}, Timeout: providerPatience,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("the provider sends to another address, which is not followed")
		},
	}}
}

// bounded cuts off answers that are longer than maxProviderBytes.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		response.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(response.Body, maxProviderBytes), response.Body}
	}
	return response, err
}

// config returns how to call the provider, by its own description.
func (p *provider) config(ctx context.Context) (*oauth2.Config, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	age := p.now().Sub(p.asked)
	switch {
	case p.found != nil && age < discoveryAge:
		return p.found, nil
	case p.failed != nil && age < discoveryPause:
		return nil, p.failed
	}
	found, err := p.discover(ctx)
	p.asked = p.now()
	if err != nil {
		p.found, p.failed = nil, delegation.Unavailable("OpenID provider", err)
		return nil, p.failed
	}
	p.found, p.failed = found, nil
	return found, nil
}

func (p *provider) discover(ctx context.Context) (*oauth2.Config, error) {
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, p.client), p.tenant.Provider)
	if err != nil {
		return nil, err
	}
	var more struct {
		Methods []string `json:"token_endpoint_auth_methods_supported"`
		PKCE    []string `json:"code_challenge_methods_supported"`
	}
	if err := found.Claims(&more); err != nil {
		return nil, err
	}
	endpoint := found.Endpoint()
	for _, address := range []string{endpoint.AuthURL, endpoint.TokenURL} {
		if err := p.trustworthy(address); err != nil {
			return nil, err
		}
	}
	if len(more.PKCE) > 0 && !slices.Contains(more.PKCE, "S256") {
		return nil, errors.New("the provider does not know PKCE with S256")
	}
	// A wrong method would spend the code, so methods are not tried. An absent list means Basic
	// (Discovery section 3).
	endpoint.AuthStyle = oauth2.AuthStyleInHeader
	if p.tenant.ClientSecret == "" || len(more.Methods) > 0 && !slices.Contains(more.Methods, "client_secret_basic") {
		endpoint.AuthStyle = oauth2.AuthStyleInParams
	}
	return &oauth2.Config{
		ClientID: p.tenant.ClientID, ClientSecret: p.tenant.ClientSecret, Endpoint: endpoint, RedirectURL: p.redirect,
		Scopes: append([]string{oidc.ScopeOpenID}, p.tenant.Scopes...),
	}, nil
}

// trustworthy requires https, or a plain address of this machine where the tenant permits it.
func (p *provider) trustworthy(address string) error {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Host == "" || u.User != nil || strings.Contains(address, "#"):
		return errors.New("the provider names an endpoint that is no address, or has credentials or a fragment (RFC 6749 section 3.1)")
	case u.Scheme == "https", u.Scheme == "http" && p.tenant.InsecureLoopback && isLoopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("the provider's endpoint %s is not https", u.Redacted())
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// signInPage is the page for a person who is not signed in.
type signInPage struct {
	Heading, Text, Problem string
	Provider, Next         string
}

func (h *console) askSignIn(c *call) error {
	query := c.r.URL.Query()
	p := signInPage{Heading: "Sign in", Provider: hostOf(c.Provider), Next: c.onward(query.Get("next"))}
	switch {
	case query.Has("signed-out"):
		p.Heading, p.Text = "Signed out", "Your session is gone from Deputy. Your provider may still know you."
	case p.Next != c.base:
		p.Text = "This page is for people who are signed in."
	}
	return h.showSignIn(c, http.StatusOK, p)
}

// showSignIn permits the browser to follow the form to the provider, because form-action covers
// redirects too.
func (h *console) showSignIn(c *call, status int, p signInPage) error {
	to, err := c.provider.config(c.r.Context())
	if err != nil {
		p.Problem = "The OpenID provider does not answer just now, or not as it should. Signed in already? Then go on; otherwise try again soon."
		h.Logger.WarnContext(c.r.Context(), "the OpenID provider cannot be used", "tenant", c.Name, "provider", c.Provider, "cause", errors.Unwrap(err))
	} else {
		c.setPolicy(originOf(to.Endpoint.AuthURL))
	}
	return c.show(status, "signin", page{Title: p.Heading, Narrow: true, Body: p})
}

// beginSignIn sends the browser to the provider. State, nonce and PKCE's verifier are all derived
// from one secret that only this browser holds, so the server keeps nothing until the provider has
// answered.
func (h *console) beginSignIn(c *call) error {
	to, err := c.provider.config(c.r.Context())
	if err != nil {
		return err
	}
	next := c.onward(c.r.PostFormValue("next"))
	secret := newSecret()
	http.SetCookie(c.w, c.cookie(signInCookie, secret+"."+base64.RawURLEncoding.EncodeToString([]byte(next)), signInLife))
	address := to.AuthCodeURL(derive(secret, "state"), oidc.Nonce(derive(secret, "nonce")), oauth2.S256ChallengeOption(derive(secret, "verifier")))
	http.Redirect(c.w, c.r, address, http.StatusSeeOther)
	return nil
}

// finishSignIn takes the provider's answer and begins a session with a new id. A session id that an
// attacker planted in the browser before has no value afterwards.
func (h *console) finishSignIn(c *call) error {
	query := c.r.URL.Query()
	secret, to, _ := strings.Cut(c.held(c.r, signInCookie), ".")
	c.drop(c.w, signInCookie)
	if secret == "" || !hmac.Equal([]byte(query.Get("state")), []byte(derive(secret, "state"))) {
		return errOtherSignIn
	}
	if issuer := query.Get("iss"); issuer != "" && issuer != c.Provider { // RFC 9207
		return errOtherSignIn
	}
	if code := query.Get("error"); code != "" {
		return h.showSignIn(c, http.StatusForbidden, signInPage{
			Heading: "Not signed in", Problem: "The provider's error: " + code, Provider: hostOf(c.Provider), Next: c.base,
		})
	}
	person, err := h.answer(c, query.Get("code"), secret)
	if err != nil {
		return err
	}
	if err := h.begin(c, person); err != nil {
		return err
	}
	next, _ := base64.RawURLEncoding.DecodeString(to)
	http.Redirect(c.w, c.r, c.onward(string(next)), http.StatusSeeOther)
	return nil
}

// answer exchanges the code for an ID token, which the engine verifies.
func (h *console) answer(c *call, code, secret string) (exchange.Session, error) {
	to, err := c.provider.config(c.r.Context())
	if err != nil {
		return exchange.Session{}, err
	}
	ctx := oidc.ClientContext(c.r.Context(), c.provider.client)
	token, err := to.Exchange(ctx, code, oauth2.VerifierOption(derive(secret, "verifier")))
	if refused := new(oauth2.RetrieveError); errors.As(err, &refused) {
		// The error's text repeats the provider's answer, which may repeat the request. Only a
		// registered error code is kept.
		return exchange.Session{}, errOtherSignIn.WithCause(fmt.Errorf("the provider refused the code: %s", registered(refused.ErrorCode)))
	} else if err != nil {
		return exchange.Session{}, delegation.Unavailable("OpenID provider", errors.New("it did not answer the code with a token"))
	}
	id, _ := token.Extra("id_token").(string)
	session, err := h.Engine.SignIn(c.r.Context(), exchange.SignInCall{
		Tenant: c.Name, IDToken: id, Issuer: c.Provider, ClientID: c.ClientID, Nonce: derive(secret, "nonce"),
	})
	if refusal, typed := errors.AsType[*delegation.Error](err); typed && refusal.Reason == delegation.ClientUnauthenticated {
		return exchange.Session{}, errNotBelieved.WithCause(err)
	}
	return session, err
}

// registered returns an error code of token endpoints (RFC 6749 section 5.2) unchanged, and a fixed
// text for any other.
func registered(code string) string {
	switch code {
	case "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope":
		return code
	}
	return "an error that is not registered"
}

// begin starts a session, in place of one that the browser may have.
func (h *console) begin(c *call, p exchange.Session) error {
	secret := newSecret()
	if old := c.held(c.r, sessionCookie); old != "" {
		if err := h.Sessions.EndSession(c.r.Context(), c.Name, key(old)); err != nil {
			return err
		}
	}
	session := ledger.Session{
		Principal: p.Principal, Issuer: p.Issuer, SignedIn: p.SignedIn,
		Idle: c.Idle, Until: h.Now().Add(c.Life),
	}
	if err := h.Sessions.StartSession(c.r.Context(), c.Name, key(secret), session); err != nil {
		return err
	}
	http.SetCookie(c.w, c.cookie(sessionCookie, secret, c.Life))
	return nil
}

// onward returns the address after the sign-in: a page of this console, or its first page.
func (s *site) onward(to string) string {
	u, err := url.Parse(to)
	if err != nil || u.Scheme != "" || u.Host != "" || u.Opaque != "" || strings.ContainsRune(to, '\\') {
		return s.base
	}
	// Browsers resolve dots, also encoded dots.
	if u.Path != path.Clean(u.Path) || u.Path != s.base && !strings.HasPrefix(u.Path, s.base+"/") || strings.HasPrefix(u.Path, s.base+"/sign-") {
		return s.base
	}
	if u.RawQuery != "" {
		return u.EscapedPath() + "?" + u.RawQuery
	}
	return u.EscapedPath()
}

func hostOf(address string) string {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		return u.Host
	}
	return address
}

func originOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}
