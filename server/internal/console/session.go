package console

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

// maxForm is far larger than any form of the console.
const maxForm = 16 << 10

// newSecret returns 256 random bits, which no attacker can guess.
func newSecret() string {
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // it never fails: crypto/rand ends the process first
	return base64.RawURLEncoding.EncodeToString(secret[:])
}

// derive derives another secret from one. It reveals nothing about the first secret or about other
// derived ones.
func derive(secret, purpose string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(purpose))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// key returns the key of a session in the database.
func key(secret string) [32]byte { return sha256.Sum256([]byte("console session\x00" + secret)) }

// cookie returns one of this tenant's cookies. The __Host- prefix makes browsers refuse a cookie
// that another host or a plaintext connection set. On loopback, where there is no TLS, the prefix
// is not possible. All tenants of a host receive each other's cookies, so each tenant has names of
// its own.
func (s *site) cookie(name, value string, life time.Duration) *http.Cookie {
	return &http.Cookie{
		Name: s.cookieName(name), Value: value, Path: "/", MaxAge: int(life / time.Second),
		Secure: s.secure, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}
}

func (s *site) cookieName(name string) string {
	name = "deputy-" + s.Name + "-" + name
	if s.secure {
		return "__Host-" + name
	}
	return name
}

// held returns the value of one of this tenant's cookies. A cookie that comes twice counts as
// absent, because an attacker must have planted the second one.
func (s *site) held(r *http.Request, name string) string {
	found := r.CookiesNamed(s.cookieName(name))
	if len(found) != 1 {
		return ""
	}
	return found[0].Value
}

// drop deletes a cookie in the browser.
func (s *site) drop(w http.ResponseWriter, name string) {
	gone := s.cookie(name, "", 0)
	gone.MaxAge = -1
	http.SetCookie(w, gone)
}

const (
	sessionCookie = "session"
	signInCookie  = "sign-in"
)

// authenticate determines the person who sends the request, or returns errSignedOut.
func (h *console) authenticate(c *call) error {
	secret := c.held(c.r, sessionCookie)
	if secret == "" {
		return errSignedOut
	}
	ctx := c.r.Context()
	session, err := h.Sessions.Session(ctx, c.Name, key(secret))
	if errors.Is(err, ledger.ErrNotFound) {
		c.drop(c.w, sessionCookie)
		return errSignedOut
	} else if err != nil {
		return err
	}
	c.who, c.secret = session.Principal, secret // the page of a later error has the navigation
	person, err := h.Engine.Restore(ctx, c.Name, exchange.Session{
		Principal: session.Principal, Issuer: session.Issuer, SignedIn: session.SignedIn,
	})
	if err != nil {
		return h.ended(c, secret, err)
	}
	c.person = &person
	c.role, err = h.Engine.Role(ctx, c.inquiry())
	if err != nil {
		return h.ended(c, secret, err)
	}
	return nil
}

// ended deletes a session whose person is not accepted any more: suspended, cut off, or of an
// issuer that is not trusted now. Any other error is no reason to sign in again.
func (h *console) ended(c *call, secret string, err error) error {
	if delegation.AsError(err).Reason != delegation.ClientUnauthenticated {
		return err
	}
	if err := h.Sessions.EndSession(c.r.Context(), c.Name, key(secret)); err != nil {
		return err
	}
	c.drop(c.w, sessionCookie)
	c.person, c.who, c.secret = nil, "", ""
	return errSignedOut
}

// token returns the token that a form must send back. It is derived from the session, so the token
// of another session does not match.
func (c *call) token() string {
	if c.secret == "" {
		return ""
	}
	return derive(c.secret, "csrf")
}

// checkToken refuses a form that no page of this session made.
func (c *call) checkToken() error {
	sent := c.r.PostFormValue("csrf")
	if c.secret == "" || !hmac.Equal([]byte(sent), []byte(c.token())) {
		return errForeignForm
	}
	return nil
}

// crossOrigin is the library's check of Sec-Fetch-Site and Origin.
var crossOrigin = http.NewCrossOriginProtection()

// sameOrigin refuses requests that another site made the browser send. The library permits a
// request with neither header, because it may come from another program than a browser. The console
// is for browsers only, so it refuses such a request.
func sameOrigin(r *http.Request) error {
	if r.Header.Get("Sec-Fetch-Site") == "" && r.Header.Get("Origin") == "" || crossOrigin.Check(r) != nil {
		return errForeignForm
	}
	return nil
}

// signOut ends the session here. The provider's own session continues.
func (h *console) signOut(c *call) error {
	if err := h.Sessions.EndSession(c.r.Context(), c.Name, key(c.secret)); err != nil {
		return err
	}
	c.drop(c.w, sessionCookie)
	// The header also clears the pages that the browser keeps for its Back button.
	c.w.Header().Set("Clear-Site-Data", `"cache"`)
	c.redirect("sign-in", "signed-out", "1")
	return nil
}
