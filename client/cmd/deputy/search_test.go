package main

import (
	"bytes"
	"encoding/csv"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// formulas are ways to make a spreadsheet compute what is in a cell.
var formulas = []string{
	"=1+1", "+1+1", "-1+1", "@SUM(A1)", "=cmd|' /C calc'!A0", "  =1+1", "\t=1+1", "\r=1+1", "\n=1+1", "\u00a0=1+1", "\ufeff=1+1", "\u200b=1+1",
	"\uff1d1+1", "\uff0b1", "\uff0d1", "\uff20SUM(A1)", "=HYPERLINK(\"https://evil.example\",\"click\")", "\x1b[2J=1", "\x00=1",
}

// TestInertCell: no text of an agent begins a formula in any column, or adds cells or rows.
func TestInertCell(t *testing.T) {
	for _, formula := range formulas {
		e := &client.Entry{
			Seq: 1, Kind: client.EntryKind(formula), Outcome: client.EntryOutcome(formula), Reason: delegation.Reason(formula), State: client.GrantState(formula),
			JTI: formula, Parent: formula, Txn: formula, Subject: delegation.Principal(formula), Actor: delegation.Principal(formula),
			Caller: delegation.Principal(formula), Actors: delegation.Chain{delegation.Principal(formula)}, Scope: delegation.Scopes{formula},
			Audience: []string{formula}, Key: formula, Detail: formula, Peer: formula, ModelID: formula, TraceID: formula, Erased: []string{formula},
			Revocation: &delegation.Revocation{Target: delegation.Target{Kind: delegation.TargetKind(formula), ID: formula}},
		}
		var out bytes.Buffer
		w := csv.NewWriter(&out)
		if err := w.Write(csvRow(e)); err != nil {
			t.Fatal(err)
		}
		w.Flush()
		rows, err := csv.NewReader(&out).ReadAll()
		if err != nil || len(rows) != 1 || len(rows[0]) != len(csvColumns) {
			t.Fatalf("%q: %v, %q", formula, err, rows)
		}
		for i, cell := range rows[0] {
			if opensFormula(cell) {
				t.Errorf("column %s begins a formula: %q", csvColumns[i], cell)
			}
		}
	}
	if !opensFormula(inert(formulas[0])) || !opensFormula(" \uff1d1") || opensFormula("2026-11-03") {
		t.Error("the control: formulas are not told from text")
	}
}

// opensFormula reports whether a spreadsheet can read the cell as a formula.
func opensFormula(cell string) bool {
	first := []rune(strings.TrimSpace(cell) + " ")[0]
	return strings.ContainsRune("=+-@\uff1d\uff0b\uff0d\uff20", first)
}

func TestMomentFlag(t *testing.T) {
	now := time.Date(2026, 11, 3, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]string{
		"2026-11-01": "2026-11-01T00:00:00Z", "2026-11-01T10:00:00+02:00": "2026-11-01T08:00:00Z", "90m": "2026-11-03T10:30:00Z",
		"7d": "2026-10-27T12:00:00Z", "0s": "2026-11-03T12:00:00Z",
	} {
		if got, err := momentFlag("--since", value, now); err != nil || got.UTC().Format(time.RFC3339) != want {
			t.Errorf("%s: %v, %v, want %s", value, got, err, want)
		}
	}
	for _, value := range []string{"yesterday", "-1h", "-2d", "d", "2026-13-01", "5", "1.5d"} {
		if got, err := momentFlag("--since", value, now); err == nil {
			t.Errorf("%s is taken for %v", value, got)
		}
	}
	if got, err := momentFlag("--since", "", now); err != nil || !got.IsZero() {
		t.Errorf("nothing is %v, %v", got, err)
	}
}
