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

// searchPage is the largest page that the server returns.
const searchPage = 500

type searchCommand struct {
	Subject  string `placeholder:"PRINCIPAL" help:"Subject of the token."`
	Actor    string `placeholder:"PRINCIPAL" help:"An actor of the chain, or the requested actor."`
	Caller   string `placeholder:"PRINCIPAL" help:"Principal that authenticated the request."`
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
	Limit    int    `default:"50" placeholder:"N" help:"Show at most this many entries; 0: all (${default})."`
	CSV      bool   `name:"csv" help:"Write a table for spreadsheets."`

	ledgerFlags `embed:""`
}

func (searchCommand) Help() string {
	return `Lists entries of the ledger, newest first. All filters must match exactly, byte by byte. A caller that may
not read the whole ledger must name a --subject or an --actor that it may read.

With --json each line is one entry. With --csv no cell starts a formula.

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
		return usage("--csv and --json name two formats: use one of them")
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
			a.stderr.line("there are more entries: raise --limit")
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
		q.PageSize = min(cmd.Limit+1, searchPage) // one more, to detect that the limit cuts
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
		return time.Time{}, usage("%s: must be a date, a time as in RFC 3339, or an age such as 90m or 7d", flag)
	}
	return now.Add(-age), nil
}

// form returns how each entry is written, and what follows the last one.
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
			a.stderr.line("no entry matches")
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

// tableRow shows an entry on one line, and its reason and detail on a second one.
func (a *app) tableRow(e *client.Entry) error {
	p := a.stdout
	who := fmt.Sprintf("%s → %s", name(e.Subject, e, "subject"), name(e.Actor, e, "actor"))
	what := scopeAt(e)
	switch e.Kind {
	case client.KindRevocation:
		who, what = name(e.Caller, e, "caller"), aimedAt(e)
	case client.KindAdmin:
		who, what = name(e.Caller, e, "caller"), "changed the ledger itself"
	case client.KindVoid:
		who, what = name(e.Caller, e, "caller"), fmt.Sprintf("voids #%d", e.Voids)
	}
	p.line("%s  %s  %s  %s  %s", cell(fmt.Sprintf("#%d", e.Seq), 6), e.Time.UTC().Format(time.DateTime), p.verdict(e), cell(who, 34), what)
	if e.Reason != "" || e.Detail != "" {
		p.line("%36s  %s", "", p.faint(strings.Trim(string(e.Reason)+": "+e.Detail, ": ")))
	}
	return nil
}

// verdict is one word: the state of a grant, or the kind of the entry.
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

// cell pads a text to the width of its column.
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

// inertCell keeps a spreadsheet from reading a text as a formula. A quote precedes each text that
// begins with a sign that opens a formula, in its normal or its full width.
func inertCell(s string) string {
	s = inert(s)
	if first := strings.TrimLeftFunc(s, unicode.IsSpace); first != "" && strings.ContainsRune("=+-@\uff1d\uff0b\uff0d\uff20", []rune(first)[0]) {
		return "'" + s
	}
	return s
}
