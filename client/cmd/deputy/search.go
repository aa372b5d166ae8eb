package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// searchPage is the most that the server gives at a time.
const searchPage = 500

type searchCommand struct {
	Subject  string `placeholder:"PRINCIPAL" help:"On whose behalf."`
	Actor    string `placeholder:"PRINCIPAL" help:"Any actor of the chain, or the one that was asked for."`
	Caller   string `placeholder:"PRINCIPAL" help:"Who authenticated the request."`
	Audience string `placeholder:"NAME" help:"Service that the token is for."`
	Scope    string `placeholder:"SCOPE" help:"One scope."`
	Kind     string `placeholder:"KIND" help:"grant, refusal, check, void or revocation."`
	Outcome  string `placeholder:"OUTCOME" help:"granted, refused or done."`
	Reason   string `placeholder:"REASON" help:"Reason of a refusal (docs/errors.md)."`
	Trace    string `placeholder:"ID" help:"Trace id of the request."`
	JTI      string `name:"jti" placeholder:"JTI" help:"Id of the token."`
	Txn      string `placeholder:"TXN" help:"Id of the chain."`
	Key      string `placeholder:"THUMBPRINT" help:"Thumbprint of the key that the grant is bound to."`
	Peer     string `placeholder:"ADDRESS" help:"Address of the caller, with its port or without."`
	Since    string `placeholder:"WHEN" help:"Recorded then or later: 2026-11-03, 2026-11-03T12:00:00Z, or an age such as 90m or 7d."`
	Until    string `placeholder:"WHEN" help:"Recorded before."`
	Limit    int    `default:"50" placeholder:"N" help:"Show at most so many; 0: all (${default})."`
	CSV      bool   `name:"csv" help:"Write a table for spreadsheets."`

	ledgerFlags `embed:""`
}

func (searchCommand) Help() string {
	return `Finds entries of the ledger, the newest first. All filters must match, whole and byte by byte. Who may not
read everything must name a --subject or an --actor that it may read.

With --json each line is one entry. With --csv no cell can be taken for a formula.

Examples:
  deputy search --actor agent:researcher --since 24h
  deputy search --subject user:alice --outcome refused
  deputy search --txn 01K3RZ8Y7Q4M2N6P9S5T1V0WXA --json
  deputy search --key 0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I --peer 192.0.2.7
  deputy search --reason scope_exceeds_parent --since 2026-11-01 --until 2026-11-08 --limit 0 --csv > week.csv`
}

// Run searches the ledger.
func (cmd *searchCommand) Run(a *app) error {
	if cmd.CSV && a.json {
		return usage("--csv and --json are two forms: name one")
	}
	query, err := cmd.query(a.now())
	if err != nil {
		return err
	}
	c, err := cmd.open()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Timeout)
	defer cancel()
	show, finish := cmd.form(a)
	shown := 0
	for e, err := range c.Search(ctx, query) {
		switch {
		case err != nil:
			return err
		case shown == cmd.Limit && cmd.Limit > 0:
			a.stderr.line("there are more: --limit shows them")
			return finish(shown)
		}
		if err := show(e); err != nil {
			return err
		}
		shown++
	}
	return finish(shown)
}

func (cmd *searchCommand) query(now time.Time) (client.SearchQuery, error) {
	q := client.SearchQuery{
		Audience: cmd.Audience, Scope: cmd.Scope, Kind: client.EntryKind(cmd.Kind), Outcome: client.EntryOutcome(cmd.Outcome),
		Reason: delegation.Reason(cmd.Reason), TraceID: cmd.Trace,
		JTI: cmd.JTI, Txn: cmd.Txn, Key: cmd.Key, Peer: cmd.Peer,
	}
	switch {
	case cmd.Limit < 0:
		return q, usage("--limit must not be negative")
	case cmd.Limit == 0:
		q.PageSize = searchPage
	default:
		q.PageSize = min(cmd.Limit+1, searchPage) // the one after the last tells that there are more
	}
	var errs [5]error
	q.Subject, errs[0] = principalFlag("--subject", cmd.Subject)
	q.Actor, errs[1] = principalFlag("--actor", cmd.Actor)
	q.Caller, errs[2] = principalFlag("--caller", cmd.Caller)
	q.From, errs[3] = momentFlag("--since", cmd.Since, now)
	q.Until, errs[4] = momentFlag("--until", cmd.Until, now)
	for _, err := range errs {
		if err != nil {
			return q, err
		}
	}
	return q, nil
}

func principalFlag(flag, value string) (delegation.Principal, error) {
	if value == "" {
		return "", nil
	}
	p, err := delegation.ParsePrincipal(value)
	if err != nil {
		return "", usage("%s: %v", flag, err)
	}
	return p, nil
}

// momentFlag reads a date, a time or an age.
func momentFlag(flag, value string, now time.Time) (time.Time, error) {
	if value == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, value); err == nil {
			return t, nil
		}
	}
	age, err := time.ParseDuration(value)
	if days, found := strings.CutSuffix(value, "d"); found {
		var n int
		n, err = strconv.Atoi(days)
		age = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || age < 0 {
		return time.Time{}, usage("%s: want a date, a time as in RFC 3339, or an age such as 90m or 7d", flag)
	}
	return now.Add(-age), nil
}

// form is how entries are written: one after the other, and what comes after the last.
func (cmd *searchCommand) form(a *app) (show func(*client.Entry) error, finish func(shown int) error) {
	switch {
	case cmd.CSV:
		w := csv.NewWriter(a.stdout.w)
		header := w.Write(csvColumns)
		return func(e *client.Entry) error {
				if header != nil {
					return header
				}
				return w.Write(csvRow(e))
			}, func(int) error {
				w.Flush()
				return w.Error()
			}
	case a.json:
		return func(e *client.Entry) error { return a.writeJSONLine(entryJSON(e)) }, func(int) error { return nil }
	}
	return a.tableRow, func(shown int) error {
		if shown == 0 {
			a.stderr.line("nothing matches")
		}
		return nil
	}
}

// writeJSONLine writes one JSON document on one line.
func (a *app) writeJSONLine(v any) error {
	document, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = a.stdout.w.Write(append(inertJSON(document), '\n'))
	return err
}

// tableRow shows an entry on one line, and what else is to be said below it.
func (a *app) tableRow(e *client.Entry) error {
	p := a.stdout
	who := fmt.Sprintf("%s → %s", name(e.Subject, e, "subject"), name(e.Actor, e, "actor"))
	what := mayWhere(e)
	switch e.Kind {
	case client.KindRevocation:
		who, what = name(e.Caller, e, "caller"), aimedAt(e)
	case client.KindAdmin:
		who, what = name(e.Caller, e, "caller"), "changed the ledger itself"
	case client.KindVoid:
		who, what = name(e.Caller, e, "caller"), fmt.Sprintf("takes back #%d", e.Voids)
	}
	p.line("%s  %s  %s  %s  %s", cell(fmt.Sprintf("#%d", e.Seq), 6), e.Time.UTC().Format(time.DateTime), p.verdict(e), cell(who, 34), what)
	if e.Reason != "" || e.Detail != "" {
		p.line("%36s  %s", "", p.faint(strings.Trim(string(e.Reason)+": "+e.Detail, ": ")))
	}
	return nil
}

// verdict is in one word what an entry is, or what has become of its grant.
func (p *printer) verdict(e *client.Entry) styled {
	const width = 8
	switch {
	case e.State != "":
		return p.stateOf(e.State) + styled(pad("", width-len(e.State)))
	case e.Outcome == client.OutcomeRefused:
		return p.bad(cell("refused", width))
	case e.Kind == client.KindRevocation:
		return p.strong(cell("revokes", width))
	}
	return styled(cell(inert(string(e.Kind)), width))
}

// cell fills a text up, so that what follows stands in a column.
func cell(text string, width int) string { return pad(inert(text), width) }

func pad(text string, width int) string {
	return text + strings.Repeat(" ", max(width-len([]rune(text)), 0))
}

var csvColumns = []string{
	"entry", "time", "kind", "outcome", "reason", "state", "subject", "actor", "caller", "actors", "scope", "audience", "expires_at",
	"jti", "parent", "txn", "key", "revokes", "voids", "detail", "peer", "model_id", "trace_id", "erased",
}

func csvRow(e *client.Entry) []string {
	row := []string{
		csvNumber(e.Seq), csvTime(e.Time), string(e.Kind), string(e.Outcome), string(e.Reason), string(e.State),
		string(e.Subject), string(e.Actor), string(e.Caller), strings.Join(names(e.Actors), " "), e.Scope.String(), strings.Join(e.Audience, " "),
		csvTime(e.Expiry), e.JTI, e.Parent, e.Txn, e.Key, aimedAt(e), csvNumber(e.Voids), e.Detail, e.Peer, e.ModelID, e.TraceID,
		strings.Join(e.Erased, " "),
	}
	for i := range row {
		row[i] = inertCell(row[i])
	}
	return row
}

func csvNumber(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

func csvTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// inertCell keeps a spreadsheet from taking a text for a formula, whichever of the signs that open one
// it begins with, also in their full width; a quote in front makes it text.
func inertCell(s string) string {
	s = inert(s)
	if first := strings.TrimLeftFunc(s, unicode.IsSpace); first != "" && strings.ContainsRune("=+-@\uff1d\uff0b\uff0d\uff20", []rune(first)[0]) {
		return "'" + s
	}
	return s
}
