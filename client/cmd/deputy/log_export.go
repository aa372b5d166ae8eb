package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

type exportCommand struct {
	After  uint64 `placeholder:"N" help:"Begin after the entry with this number. Default: 0, with the first entry."`
	Follow bool   `help:"Continue with new entries, until interrupted."`
	OCSF   bool   `name:"ocsf" help:"Write OCSF API Activity events instead of records."`

	ledgerFlags `embed:""`
}

func (exportCommand) Help() string {
	return `Writes one line of JSON for each entry, in order. The lines are records, which deputy log verify
recomputes (docs/ledger.md), or with --ocsf events for a SIEM (docs/audit-export.md). Auditors and responders may export.

The export resumes by itself after a broken connection. To continue an earlier export, pass the number of its last
entry with --after.

Examples:
  deputy log export > acme.jsonl
  deputy log export --after 4711 >> acme.jsonl
  deputy log export --follow --ocsf | your-siem-agent`
}

// progressPause lies between two progress lines.
const progressPause = 5 * time.Second

// Run writes the log.
func (cmd *exportCommand) Run(a *app) error {
	c, err := cmd.open()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	w := &exporter{app: a, ocsf: cmd.OCSF, last: cmd.After, reported: a.now()}
	for e, err := range c.Entries(ctx, client.EntriesRequest{After: cmd.After, Follow: cmd.Follow, Records: !cmd.OCSF, Dropped: w.dropped}) {
		if err == nil {
			err = w.entry(e)
		}
		switch {
		case err != nil && cmd.Follow && errors.Is(err, context.Canceled):
			w.report("interrupted")
			return nil
		case err != nil:
			w.report("stopped")
			return err
		}
	}
	if w.err != nil {
		return w.err
	}
	w.report("done")
	return nil
}

// exporter writes lines and reports its progress.
type exporter struct {
	app      *app
	ocsf     bool
	count    int
	last     uint64
	reported time.Time
	err      error // of the line of dropped entries
}

func (w *exporter) dropped(line string) {
	if !w.ocsf {
		w.err = w.line(line)
	}
}

func (w *exporter) entry(e *client.Entry) error {
	if w.err != nil {
		return w.err
	}
	if err := w.write(e); err != nil {
		return err
	}
	w.count++
	w.last = e.Seq
	if now := w.app.now(); now.Sub(w.reported) >= progressPause && !w.app.terminal {
		w.reported = now
		w.report("so far")
	}
	return nil
}

func (w *exporter) write(e *client.Entry) error {
	if w.ocsf {
		return w.app.writeJSONLine(ocsfEvent(e, w.app.now()))
	}
	if e.Record == "" {
		return delegation.Refuse(delegation.Internal, "", "entry %d has no record, so it cannot be verified", e.Seq)
	}
	return w.line(e.Record)
}

// line writes an inert line, to every output: escapes keep the meaning of JSON, so that the record
// can be recomputed.
func (w *exporter) line(line string) error {
	if strings.ContainsAny(line, "\r\n") {
		return delegation.Refuse(delegation.Internal, "", "a record of more than one line was refused")
	}
	_, err := w.app.stdout.w.Write(append(inertJSON([]byte(line)), '\n'))
	return err
}

func (w *exporter) report(how string) {
	w.app.stderr.line("%s: %d entries, up to #%d", how, w.count, w.last)
}
