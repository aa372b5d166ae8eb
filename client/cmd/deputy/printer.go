package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
)

// printer writes inert lines: no control character, escape sequence or change of direction in a
// text of an agent, a token or a server reaches the terminal.
type printer struct {
	w     io.Writer
	color bool
}

// newPrinter uses colour on a terminal only, and not where NO_COLOR is set (no-color.org).
func newPrinter(w io.Writer, terminal bool) *printer {
	return &printer{w: w, color: terminal && os.Getenv("NO_COLOR") == ""}
}

// styled is text that this program created. No other text may hold escape sequences.
type styled string

// line writes one line. Arguments are made inert, unless they are styled or plain numbers.
func (p *printer) line(format string, args ...any) {
	for i, arg := range args {
		switch arg.(type) {
		case styled, int, uint64:
		default:
			args[i] = inert(fmt.Sprint(arg))
		}
	}
	fmt.Fprintf(p.w, format+"\n", args...)
}

func (p *printer) style(code, text string) styled {
	if !p.color {
		return styled(inert(text))
	}
	return styled("\x1b[" + code + "m" + inert(text) + "\x1b[0m")
}

func (p *printer) good(text string) styled   { return p.style("1;32", text) }
func (p *printer) bad(text string) styled    { return p.style("1;31", text) }
func (p *printer) strong(text string) styled { return p.style("1", text) }
func (p *printer) faint(text string) styled  { return p.style("2", text) }

// inert escapes every character that does not print: controls, escapes, line breaks, marks that
// change the direction of writing, and bytes that are not UTF-8.
func inert(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == ' ' || unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// inertLines does the same for a text of several lines.
func inertLines(s string) string {
	lines := strings.SplitAfter(s, "\n")
	for i, line := range lines {
		text, ended := strings.CutSuffix(line, "\n")
		if lines[i] = inert(text); ended {
			lines[i] += "\n"
		}
	}
	return strings.Join(lines, "")
}

// inertJSON does the same for a JSON text and keeps its meaning, because all that it replaces is
// inside strings.
func inertJSON(document []byte) []byte {
	var b bytes.Buffer
	for _, r := range string(document) {
		switch {
		case r == '\n' || r == ' ' || unicode.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.Bytes()
}

// writeJSON writes one indented JSON document to standard output.
func (a *app) writeJSON(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := a.stdout.w.Write(inertJSON(b.Bytes()))
	return err
}

// when formats a time as a date and relative to now.
func (a *app) when(t time.Time) string {
	stamp := t.UTC().Format("2006-01-02 15:04:05 UTC")
	switch d := t.Sub(a.now()).Round(time.Second); {
	case d > 0:
		return stamp + " (in " + span(d) + ")"
	case d < 0:
		return stamp + " (" + span(-d) + " ago)"
	}
	return stamp + " (now)"
}

// span writes the two largest units of a duration.
func span(d time.Duration) string {
	days, rest := d/(24*time.Hour), d%(24*time.Hour)
	switch {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, rest/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return d.String()
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

func orNone(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}
