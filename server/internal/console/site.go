package console

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

//go:embed templates assets
var files embed.FS

// site is one tenant's console, made once.
type site struct {
	Tenant
	base     string // path, such as /t/acme/console
	secure   bool   // reached by https
	provider *provider
	assets   map[string]asset
	pages    map[string]*template.Template
}

// asset is a file that is the same for every browser. Its name holds its digest, so that browsers
// may keep it.
type asset struct {
	path, mediaType string
	content         []byte
}

func newSite(t Tenant, c Config) (*site, error) {
	u, err := url.Parse(t.Issuer)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return nil, errors.New("its issuer is no address")
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		return nil, errors.New("over plain http anyone on the way could take a session")
	case t.Name == "" || t.Provider == "" || t.ClientID == "" || t.Idle <= 0 || t.Life < t.Idle:
		return nil, errors.New("name, provider, client id, idle and life are required, and life is not below idle")
	}
	s := &site{Tenant: t, base: consolePath(t.Issuer), secure: u.Scheme == "https", assets: make(map[string]asset), pages: make(map[string]*template.Template)}
	s.provider = newProvider(t, strings.TrimSuffix(t.Issuer, "/")+Path+"/sign-in/callback", c.Transport, c.Now)
	if err := s.openAssets(); err != nil {
		return nil, err
	}
	return s, s.openPages()
}

func (s *site) openAssets() error {
	list, err := fs.ReadDir(files, "assets")
	if err != nil {
		return err
	}
	for _, file := range list {
		content, err := files.ReadFile("assets/" + file.Name())
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		extension := path.Ext(file.Name())
		name := strings.TrimSuffix(file.Name(), extension) + "-" + hex.EncodeToString(sum[:6]) + extension
		s.assets[file.Name()] = asset{path: s.base + "/assets/" + name, mediaType: mime.TypeByExtension(extension), content: content}
	}
	return nil
}

func (a asset) serve(c *call) error {
	header := c.w.Header()
	header.Set("Content-Type", a.mediaType)
	header.Set("Cache-Control", "public, max-age=31536000, immutable")
	header.Set("Content-Length", strconv.Itoa(len(a.content)))
	_, _ = c.w.Write(a.content) // on an error the browser has left
	return nil
}

func (s *site) openPages() error {
	common, err := template.New("").Funcs(s.functions()).ParseFS(files, "templates/layout.html", "templates/parts.html")
	if err != nil {
		return err
	}
	for _, name := range []string{"search", "entry", "chain", "agent", "agents", "suspensions", "revoke", "takeback", "live", "ledger", "signin", "problem"} {
		t, err := common.Clone()
		if err == nil {
			t, err = t.ParseFS(files, "templates/"+name+".html")
		}
		if err != nil {
			return err
		}
		s.pages[name] = t
	}
	return nil
}

// link returns the address of a page with its parameters, given in turn by name and value. It
// leaves out empty ones.
func (s *site) link(page string, parameters ...any) string {
	query := url.Values{}
	for pair := range slices.Chunk(parameters, 2) {
		if value := fmt.Sprint(pair[1]); value != "" {
			query.Set(fmt.Sprint(pair[0]), value)
		}
	}
	address := s.base
	if page != "" {
		address += "/" + page
	}
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	return address
}

func (s *site) functions() template.FuncMap {
	return template.FuncMap{
		"link":          s.link,
		"asset":         func(name string) string { return s.assets[name].path },
		"whoLink":       s.whoLink,
		"name":          nameOf,
		"principalOf":   func(name string) delegation.Principal { return delegation.Principal(name) },
		"principalType": func(p delegation.Principal) string { return p.Type() + ":" },
		"principalID":   func(p delegation.Principal) string { return readable(p.ID()) },
		"shortID":       func(p delegation.Principal) string { return shorten(readable(p.ID()), 48) },
		"shortAim":      func(s string) string { return shorten(s, 48) },
		"shortWhy":      func(s string) string { return shorten(s, 120) },
		"expiryTime":    expiryTime,
		"humanTime":     func(t time.Time) string { return t.UTC().Format(time.DateTime) },
		"machineTime":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"stateOf":       stateOf,
		"actorsOf":      actorsOf,
		"aimsOf":        aimsOf,
		"whyOf":         whyOf,
		"wordsOf":       func(r delegation.Reason) []string { return strings.Split(string(r), "_") },
		"hasChain":      hasChain,
		"twig":          twig,
	}
}

// whoLink returns the link to what matters about a principal: for an agent what it can do, for a
// person the entries with that subject.
func (s *site) whoLink(p delegation.Principal) string {
	if p.Type() == "agent" {
		return s.link("agent", "agent", p)
	}
	if p.Type() == "user" {
		return s.link("", "subject", p)
	}
	return s.link("", "caller", p)
}

// state is the visible state of an entry.
type state struct{ Class, Word, Sign string }

func stateOf(r exchange.Recorded) state {
	switch {
	case r.State == exchange.StateLive:
		return state{"live", "live", "●"}
	case r.State == exchange.StateExpired:
		return state{"expired", "expired", "○"}
	case r.State == exchange.StateRevoked:
		return state{"revoked", "revoked", "✕"}
	case r.State == exchange.StateVoided:
		return state{"voided", "voided", "◌"}
	case r.Outcome == ledger.Refused:
		return state{"refused", "refused", "⊘"}
	}
	return state{"done", string(r.Outcome), "■"}
}

func actorsOf(r exchange.Recorded) delegation.Chain {
	if len(r.Actors) == 0 && r.Actor != "" {
		return delegation.Chain{r.Actor}
	}
	return r.Actors
}

// aimsOf returns what an entry is about: the audiences of a grant, the target of a revocation.
func aimsOf(r exchange.Recorded) (list []aim) {
	switch {
	case r.Revocation != nil:
		return []aim{aimAt(r.Revocation.Target)}
	case r.Voids > 0:
		return []aim{{Verb: "entry", ID: strconv.FormatUint(r.Voids, 10)}}
	}
	for _, a := range r.Audiences {
		list = append(list, aim{ID: a})
	}
	return list
}

// whyOf returns the explanation of an entry that has no scopes to show: the reason of a revocation,
// or why the ledger refused.
func whyOf(r exchange.Recorded) string {
	if len(r.Scopes) > 0 || r.Revocation == nil && r.Outcome != ledger.Refused {
		return ""
	}
	return r.Detail
}

func hasChain(r exchange.Recorded) bool { return r.Kind == ledger.KindGrant && r.ID != "" }

// expiryTime leaves out the date where it is that of the entry.
func expiryTime(e *ledger.Entry) string {
	at, recorded := e.Expiry.UTC(), e.Time.UTC()
	if at.YearDay() == recorded.YearDay() && at.Year() == recorded.Year() {
		return at.Format(time.TimeOnly)
	}
	return at.Format(time.DateTime)
}

// twig returns the indentation of a depth.
func twig(depth int) string {
	return strings.Repeat("   ", max(depth-1, 0)) + "└─ "
}

// page is what the layout shows around a Body.
type page struct {
	Title   string
	Narrow  bool
	Refresh int // seconds, for browsers without script; 0: never
	Body    any

	Tenant, CSRF, Role string
	Who                delegation.Principal
	Nav                []navigation
}

type navigation struct {
	Href, Text string
	Current    bool
}

// show answers with a page. It makes the whole page before it sends anything, so that a fault
// cannot leave half of one.
func (c *call) show(status int, name string, p page) error {
	p.Tenant, p.CSRF = c.Name, c.token()
	if c.who != "" {
		p.Who, p.Role, p.Nav = c.who, roleText(c.role), c.navigation()
	}
	var b bytes.Buffer
	if err := c.pages[name].ExecuteTemplate(&b, "layout", p); err != nil {
		return err
	}
	c.send(status, "text/html; charset=utf-8", visible(b.Bytes()))
	return nil
}

// showPart answers with a part of a page, which a script inserts into one.
func (c *call) showPart(name, part string, body any) error {
	var b bytes.Buffer
	if err := c.pages[name].ExecuteTemplate(&b, part, body); err != nil {
		return err
	}
	c.send(http.StatusOK, "text/html; charset=utf-8", visible(b.Bytes()))
	return nil
}

func (c *call) send(status int, mediaType string, body []byte) {
	c.w.Header().Set("Content-Type", mediaType)
	c.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	c.w.WriteHeader(status)
	_, _ = c.w.Write(body) // on an error the browser has left: the access log has the status
}

func (c *call) redirect(page string, parameters ...any) {
	http.Redirect(c.w, c.r, c.link(page, parameters...), http.StatusSeeOther)
}

func (c *call) navigation() []navigation {
	here := c.r.URL.EscapedPath()
	list := []navigation{{Href: c.link(""), Text: "Entries"}}
	if c.role.Audits {
		list = append(list, navigation{Href: c.link("live"), Text: "Live"})
	}
	list = append(list, navigation{Href: c.link("agent"), Text: "Agents"})
	if c.role.Audits {
		list = append(list, navigation{Href: c.link("suspensions"), Text: "Suspensions"})
	}
	if c.role.Responds {
		list = append(list, navigation{Href: c.link("revoke"), Text: "Revoke"})
	}
	list = append(list, navigation{Href: c.link("ledger"), Text: "Ledger"})
	for i := range list {
		list[i].Current = list[i].Href == here
	}
	return list
}

func roleText(r exchange.Role) string {
	switch {
	case r.Responds:
		return "responder"
	case r.Audits:
		return "auditor"
	}
	return ""
}

// visible replaces characters that can hide text or reverse its direction: control characters, and
// the invisible format characters of Unicode. No template holds any, so all of them come from
// outside.
func visible(page []byte) []byte {
	hidden := func(r rune) bool {
		return r != '\n' && r != '\t' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) || r == utf8.RuneError
	}
	if !bytes.ContainsFunc(page, hidden) {
		return page
	}
	var b bytes.Buffer
	for _, r := range string(page) {
		if hidden(r) {
			fmt.Fprintf(&b, "[U+%04X]", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.Bytes()
}

// setHeaders forbids the browser everything that no page of the console needs, so that injected
// content cannot use it: no foreign script or style, no inline script or style, no frame, no
// referrer, no copy on disk.
func (c *call) setHeaders() {
	c.setPolicy("")
	header := c.w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
	header.Set("Cache-Control", "no-store")
}

// setPolicy sets the Content-Security-Policy. provider is the origin to which forms may lead
// besides the console, or "".
func (c *call) setPolicy(provider string) {
	forms := "'self'"
	if provider != "" {
		forms += " " + provider
	}
	c.w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "+
		"connect-src 'self'; form-action "+forms+"; frame-ancestors 'none'; base-uri 'none'")
}
