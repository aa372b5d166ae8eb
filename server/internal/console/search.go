package console

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

// pageSize is how many entries one page shows by default. A request may set another number up to
// maxPage.
const (
	pageSize = 50
	maxPage  = 500
)

// searchPage shows the list of entries with its filters.
type searchPage struct {
	Open               bool
	Active             []string
	Fields             []field
	Rows               []exchange.Recorded
	Notice             string
	Newest, Older, CSV string
	Offer              *offer
}

// offer is the link to a revocation of what all entries of a search have in common, for a person
// who may make it.
type offer struct{ Href, Text string }

type field struct {
	Name, Label, Value, Type, Example string
	Options                           []string // a list to choose from; the empty option is any
}

// fields returns the filters in the order of the form.
func fields(query url.Values) []field {
	list := []field{
		{Name: "subject", Label: "Subject", Example: "user:alice"},
		{Name: "actor", Label: "Any actor of the chain", Example: "agent:planner"},
		{Name: "caller", Label: "Caller", Example: "agent:planner"},
		{Name: "scope", Label: "Scope", Example: "calendar.read"},
		{Name: "audience", Label: "Audience", Example: "https://calendar.example"},
		{Name: "kind", Label: "Kind", Options: []string{"", string(ledger.KindGrant), string(ledger.KindRefusal), string(ledger.KindCheck), string(ledger.KindVoid), string(ledger.KindRevocation), string(ledger.KindAdmin)}},
		{Name: "outcome", Label: "Outcome", Options: []string{"", string(ledger.Granted), string(ledger.Refused), string(ledger.Done)}},
		{Name: "reason", Label: "Reason", Example: string(delegation.ScopeExceedsParent)},
		{Name: "jti", Label: "Token (jti)"},
		{Name: "txn", Label: "Chain (txn)"},
		{Name: "key", Label: "Bound to key"},
		{Name: "peer", Label: "Caller's address", Example: "192.0.2.7"},
		{Name: "trace", Label: "Trace id"},
		{Name: "from", Label: "From (UTC)", Type: "datetime-local"},
		{Name: "until", Label: "Until (UTC)", Type: "datetime-local"},
	}
	for i := range list {
		list[i].Value = strings.TrimSpace(query.Get(list[i].Name))
		list[i].Type = cmp.Or(list[i].Type, "text")
	}
	return list
}

// readQuery reads the filters strictly. An invalid filter is refused. To ignore it would answer
// another question.
func readQuery(query url.Values) (ledger.Query, error) {
	value := func(name string) string { return strings.TrimSpace(query.Get(name)) }
	q := ledger.Query{
		Audience: value("audience"), Scope: value("scope"), Kind: ledger.Kind(value("kind")), Outcome: ledger.Outcome(value("outcome")),
		Reason: delegation.Reason(value("reason")), TraceID: value("trace"), Limit: pageSize,
		ID: value("jti"), Txn: value("txn"), Key: value("key"), Peer: value("peer"),
	}
	for _, f := range []struct { // in the order of the form: the first of several mistakes is named
		name string
		into *delegation.Principal
	}{{"subject", &q.Subject}, {"actor", &q.Actor}, {"caller", &q.Caller}} {
		if value(f.name) == "" {
			continue
		}
		p, err := readPrincipal(f.name, value(f.name))
		if err != nil {
			return q, err
		}
		*f.into = p
	}
	for _, f := range fields(query) {
		if f.Options != nil && !slices.Contains(f.Options, f.Value) {
			return q, delegation.Refuse(delegation.ParameterInvalid, f.Name, "choose one of the list")
		}
	}
	if q.Reason != "" && !q.Reason.Known() {
		return q, delegation.Refuse(delegation.ParameterInvalid, "reason", "is not a reason that Deputy knows: docs/errors.md lists them")
	}
	var err error
	if q.From, err = readTime("from", value("from")); err != nil {
		return q, err
	}
	if q.Until, err = readTime("until", value("until")); err != nil {
		return q, err
	}
	if q.Before, err = readNumber("before", value("before")); err != nil {
		return q, err
	}
	limit, err := readNumber("limit", value("limit"))
	if err != nil || limit > maxPage {
		return q, delegation.Refuse(delegation.ParameterInvalid, "limit", "at most %d", maxPage)
	}
	if limit > 0 {
		q.Limit = int(limit)
	}
	return q, nil
}

// readTime parses the value of a browser's field for a time, with or without seconds.
func readTime(name, value string) (time.Time, error) {
	if value == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{"2006-01-02T15:04:05", "2006-01-02T15:04", time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, value); err == nil {
			return t, nil
		}
	}
	return time.Time{}, delegation.Refuse(delegation.ParameterInvalid, name, "write a time in UTC, such as 2026-11-23T14:00")
}

// readNumber parses the number of an entry; an absent number is 0.
func readNumber(name, value string) (uint64, error) {
	if value == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(value, 10, 63)
	if err != nil {
		return 0, delegation.Refuse(delegation.ParameterInvalid, name, "must be a number")
	}
	return n, nil
}

// find reads the filters and searches. A person who may not read everything, and sets neither
// subject nor actor, gets what was delegated on their own behalf.
func (h *console) find(c *call) (rows []exchange.Recorded, before uint64, query url.Values, notice string, err error) {
	query = c.r.URL.Query()
	q, err := readQuery(query)
	if err != nil {
		return nil, 0, query, "", err
	}
	if !c.role.Audits && q.Subject == "" && q.Actor == "" {
		q.Subject = c.who
		query.Set("subject", string(q.Subject))
		notice = "You see what was delegated on your behalf. Auditors see more."
	}
	rows, before, err = h.Engine.Search(c.r.Context(), c.inquiry(), q)
	return rows, before, query, notice, err
}

func (h *console) search(c *call) error {
	rows, before, query, notice, err := h.find(c)
	if err != nil {
		return err
	}
	p := searchPage{Fields: fields(query), Rows: rows, Notice: notice}
	kept := []any{}
	for _, f := range p.Fields {
		if f.Value != "" {
			p.Active = append(p.Active, f.Label+" "+f.Value)
			kept = append(kept, f.Name, f.Value)
		}
	}
	p.Open = len(p.Active) == 0
	kept = append(kept, "limit", query.Get("limit"))
	p.CSV = c.link("search.csv", append(kept, "before", query.Get("before"))...)
	if query.Get("before") != "" {
		p.Newest = c.link("", kept...)
	}
	if before > 0 {
		p.Older = c.link("", append(kept, "before", before)...)
	}
	p.Offer = h.offer(c, query)
	return c.show(http.StatusOK, "search", page{Title: "Entries", Body: p})
}

// offer returns the revocation of the one subject, key, chain or token that the search is for, if
// the person may make it.
func (h *console) offer(c *call, query url.Values) *offer {
	for _, o := range []struct {
		filter string
		kind   delegation.TargetKind
		text   string
	}{
		{"jti", delegation.BanToken, "Revoke this token"}, {"txn", delegation.BanChain, "Revoke the whole chain"},
		{"key", delegation.BanKey, "Ban this key"}, {"subject", delegation.CutSubject, "Revoke all for this subject"},
	} {
		value := query.Get(o.filter)
		if value == "" {
			continue
		}
		target, err := readTarget(url.Values{"kind": {string(o.kind)}, "id": {value}}.Get)
		if err != nil {
			return nil // no target of this kind has such a name
		}
		if !h.may(c, target)[0] {
			return nil
		}
		return &offer{Href: c.link("take-back", "kind", target.Kind, "id", target.ID), Text: o.text}
	}
	return nil
}

// csvColumns are the columns of a downloaded page.
var csvColumns = []string{
	"entry", "time", "kind", "outcome", "state", "reason", "subject", "actors", "actor", "caller", "scope", "audience",
	"target", "expires", "jti", "parent", "txn", "key", "trace_id", "detail", "peer",
}

func (h *console) searchCSV(c *call) error {
	rows, _, _, _, err := h.find(c)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	_ = w.Write(csvColumns) // writes to memory, and Flush reports any error
	for _, r := range rows {
		target := ""
		if r.Revocation != nil {
			target = targetText(r.Revocation.Target)
		}
		var actors []string
		for _, a := range actorsOf(r) {
			actors = append(actors, string(a))
		}
		cells := []string{
			strconv.FormatUint(r.Seq, 10), stamp(r.Time), string(r.Kind), string(r.Outcome), string(r.State), string(r.Reason),
			string(r.Subject), strings.Join(actors, " > "), string(r.Actor), string(r.Caller), r.Scopes.String(), strings.Join(r.Audiences, " "),
			target, stamp(r.Expiry), r.ID, r.Parent, r.Txn, r.HolderKey, r.TraceID, r.Detail, r.Peer,
		}
		for i := range cells {
			cells[i] = harmless(cells[i])
		}
		_ = w.Write(cells)
	}
	w.Flush()
	if err := w.Error(); err != nil {
		return err
	}
	c.w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="deputy-%s-%s.csv"`, c.Name, h.Now().UTC().Format("20060102T150405Z")))
	c.send(http.StatusOK, "text/csv; charset=utf-8", visible(b.Bytes()))
	return nil
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// harmless keeps a spreadsheet from reading a cell as a formula. It looks past all leading
// characters that a spreadsheet ignores.
func harmless(cell string) string {
	first, _ := utf8.DecodeRuneInString(strings.TrimLeft(cell, " \t\r\n\v\f\u00a0\u3000\ufeff\"'"))
	if strings.ContainsRune("=+-@|%＝＋－＠", first) || strings.ContainsAny(cell[:min(len(cell), 1)], "\t\r\n") {
		return "'" + cell
	}
	return cell
}
