package embedded

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Application is the client for which a DevIssuer signs people in: a public client that uses PKCE
// (RFC 7636), such as Deputy's console.
type Application struct {
	ClientID    string
	RedirectURI string            // the only address that codes are sent to
	About       map[string]string // a text on the page for each person
}

// signInPath is the only path for browsers.
const signInPath = "/people/authorize"

// codeLife is how long a code may be redeemed.
const codeLife = time.Minute

// codes are those that were issued and not redeemed yet.
type codes struct {
	mu    sync.Mutex
	known map[string]code
}

type code struct {
	person, nonce, challenge string
	until                    time.Time
}

func (c *codes) add(value code, now time.Time) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = make(map[string]code)
	}
	maps.DeleteFunc(c.known, func(_ string, old code) bool { return !now.Before(old.until) })
	name := rand.Text()
	c.known[name] = value
	return name
}

// take redeems a code once.
func (c *codes) take(name string, now time.Time) (code, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	value, known := c.known[name]
	delete(c.known, name)
	return value, known && now.Before(value.until)
}

var signInPage = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Development issuer</title></head>
<body><main><h1>Who are you?</h1>
<p>This is the development issuer. It signs in every person without proof; a real OpenID provider authenticates people.</p>
<form method="post">
{{range .People}}<p><button name="user" value="{{.Name}}">{{.Name}}</button> {{.About}}</p>
{{end}}</form></main></body></html>
`))

// showPeople shows the sign-in page of an authorization request (OpenID Connect Core section
// 3.1.2.1).
func (i *DevIssuer) showPeople(w http.ResponseWriter, r *http.Request) {
	if err := i.checkRequest(r.URL.Query()); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest) // never sent to an unknown address
		return
	}
	type person struct{ Name, About string }
	var page struct{ People []person }
	for _, name := range slices.Sorted(maps.Keys(i.config.People)) {
		page.People = append(page.People, person{name, i.config.Application.About[name]})
	}
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Cache-Control", "no-store")
	header.Set("Content-Security-Policy", "default-src 'none'; form-action 'self' "+origin(i.config.Application.RedirectURI)+"; frame-ancestors 'none'")
	_ = signInPage.Execute(w, page) // the browser may have gone
}

// chosen sends the browser back with a code.
func (i *DevIssuer) chosen(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	query := r.URL.Query()
	if http.NewCrossOriginProtection().Check(r) != nil {
		http.Error(w, "the form must be sent by this site's own page", http.StatusForbidden)
		return
	}
	err := i.checkRequest(query)
	person := r.PostFormValue("user")
	if _, known := i.config.People[person]; !known && err == nil {
		err = errors.New("user: must be a person of this issuer")
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	now := i.config.Now()
	answer := url.Values{
		"code":  {i.codes.add(code{person, query.Get("nonce"), query.Get("code_challenge"), now.Add(codeLife)}, now)},
		"state": {query.Get("state")}, "iss": {i.PeopleIssuer()},
	}
	http.Redirect(w, r, i.config.Application.RedirectURI+"?"+answer.Encode(), http.StatusSeeOther)
}

// checkRequest requires everything that makes a code useless to other parties.
func (i *DevIssuer) checkRequest(query url.Values) error {
	app := i.config.Application
	switch {
	case app.ClientID == "" || query.Get("client_id") != app.ClientID || query.Get("redirect_uri") != app.RedirectURI:
		return errors.New("client_id, redirect_uri: must be those of the application")
	case query.Get("response_type") != "code" || !slices.Contains(strings.Fields(query.Get("scope")), "openid"):
		return errors.New("response_type: must be code, and scope must hold openid")
	case query.Get("code_challenge_method") != "S256" || len(query.Get("code_challenge")) != 43:
		return errors.New("code_challenge: must be present, with method S256 (PKCE)")
	case query.Get("state") == "" || query.Get("nonce") == "":
		return errors.New("state, nonce: must be present")
	}
	return nil
}

// redeem exchanges a code for an ID token, once, if the request has the verifier of its challenge.
func (i *DevIssuer) redeem(w http.ResponseWriter, r *http.Request) {
	app, now := i.config.Application, i.config.Now()
	given, valid := i.codes.take(r.PostFormValue("code"), now)
	sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	challenge := base64.RawURLEncoding.EncodeToString(sum[:])
	if !valid || app.ClientID == "" || r.PostFormValue("client_id") != app.ClientID || r.PostFormValue("redirect_uri") != app.RedirectURI ||
		subtle.ConstantTimeCompare([]byte(challenge), []byte(given.challenge)) != 1 {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintln(w, `{"error":"invalid_grant"}`)
		return
	}
	token, err := i.people.Sign("JWT", i.claims(i.PeopleIssuer(), given.person, app.ClientID, codeLife, map[string]any{"nonce": given.nonce}))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	// The application learns who signed in, and gets no authority.
	writeJSON(w, map[string]any{"access_token": rand.Text(), "token_type": "Bearer", "expires_in": int(codeLife.Seconds()), "id_token": token})
}

func origin(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}
