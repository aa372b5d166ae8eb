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
	After  uint64 `placeholder:"N" help:"Begin after the entry with this number. Default: with the first."`
	Follow bool   `help:"Go on with what is recorded, until interrupted."`
	OCSF   bool   `name:"ocsf" help:"Write OCSF API Activity events instead of records."`

	ledgerFlags `embed:""`
}

func (exportCommand) Help() string {
	return `Writes one line of JSON for each entry, in order: records, which deputy log verify and others can recompute
(docs/ledger.md), or with --ocsf events for a SIEM (docs/audit-export.md). For auditors and responders.

It resumes by itself where the connection breaks. To resume another day, name the last number that was
written with --after.

Examples:
  deputy log export > acme.jsonl
  deputy log export --after 4711 >> acme.jsonl
  deputy log export --follow --ocsf | your-siem-agent`
}

// progressPause lies between two lines that say how far it is.
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
	w := &exporter{app: a, ocsf: cmd.OCSF, last: cmd.After, said: a.now()}
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

// exporter writes lines and says how far it is.
type exporter struct {
	app   *app
	ocsf  bool
	count int
	last  uint64
	said  time.Time
	err   error // of the line of dropped entries
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
	if now := w.app.now(); now.Sub(w.said) >= progressPause && !w.app.terminal {
		w.said = now
		w.report("so far")
	}
	return nil
}

func (w *exporter) write(e *client.Entry) error {
	if w.ocsf {
		return w.app.writeJSONLine(ocsfEvent(e, w.app.now()))
	}
	if e.Record == "" {
		return delegation.Refuse(delegation.Internal, "", "entry %d came without its record: nothing can be proven of it", e.Seq)
	}
	return w.line(e.Record)
}

// line writes a line made inert, wherever it goes: escapes leave the meaning of JSON as it is, so
// that the record can be recomputed.
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
