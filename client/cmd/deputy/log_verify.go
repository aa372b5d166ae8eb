package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
)

type verifyCommand struct {
	Export     string   `arg:"" name:"file" optional:"" help:"An export, - for one on standard input. Default: the log of the server."`
	Key        string   `required:"" placeholder:"KEY|FILE" help:"Verifier key of the tenant's checkpoints, from a source other than the log. A file may list former keys below it; they are accepted for --kept."`
	Checkpoint string   `placeholder:"FILE" help:"The newest checkpoint, which the log must match. Default: that of the server."`
	Kept       []string `sep:"none" placeholder:"FILE" help:"Earlier checkpoints, which the log must continue; may repeat, and a file may hold several."`

	ledgerFlags `embed:""`
}

func (verifyCommand) Help() string {
	return `Recomputes the log: each entry's leaf, the numbers, the order of time, revocations, the rule that each
grant is no wider than its parent (I1 to I5), the root of each checkpoint and its signature. If a rule is broken, it
names the first bad entry and ends with exit code 1. An export with its --checkpoint is verified without a network.

Changes after the newest checkpoint in --kept cannot be detected: keep checkpoints outside Deputy.

Examples:
  deputy log verify --key acme.vkey --kept checkpoints/yesterday
  deputy log checkpoint > newest && deputy log export > acme.jsonl
  deputy log verify acme.jsonl --key acme.vkey --checkpoint newest --kept last-year`
}

// unproven is the error of a proof that was not given.
type unproven struct{ text string }

func (e unproven) Error() string { return e.text }

func notProven(format string, args ...any) error { return unproven{fmt.Sprintf(format, args...)} }

// Run verifies a log.
func (cmd *verifyCommand) Run(a *app) error {
	key, former, err := keyFlag(cmd.Key)
	if err != nil {
		return err
	}
	kept, err := keptFlag(cmd.Kept)
	if err != nil {
		return err
	}
	if cmd.Export != "" && cmd.Checkpoint == "" {
		return usage("an export is verified against a checkpoint: name it with --checkpoint (deputy log checkpoint fetches one)")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	lines, newest, err := cmd.source(ctx, a)
	if err != nil {
		return err
	}
	defer lines.Close()
	reported := a.now()
	report, err := audit.VerifyLog(ctx, lines, audit.Options{Key: key, Former: former, Checkpoint: newest, Kept: kept, Progress: func(done uint64) {
		if now := a.now(); now.Sub(reported) >= progressPause {
			reported = now
			a.stderr.line("so far: %d entries", done)
		}
	}})
	return a.judgeLog(report, err)
}

// source opens the lines of the log, and reads the checkpoint that they must match.
func (cmd *verifyCommand) source(ctx context.Context, a *app) (io.ReadCloser, string, error) {
	var newest string
	if cmd.Checkpoint != "" {
		content, err := os.ReadFile(cmd.Checkpoint)
		if err != nil {
			return nil, "", usage("--checkpoint: %v", err)
		}
		newest = string(content)
	}
	switch cmd.Export {
	case "":
		return cmd.live(ctx, newest)
	case "-":
		return io.NopCloser(a.stdin), newest, nil
	}
	f, err := os.Open(cmd.Export)
	if err != nil {
		return nil, "", usage("%v", err)
	}
	return f, newest, nil
}

// live reads the log from the server: first the checkpoint, then at least as many entries.
func (cmd *verifyCommand) live(ctx context.Context, newest string) (io.ReadCloser, string, error) {
	c, err := cmd.open()
	if err != nil {
		return nil, "", err
	}
	if newest == "" {
		head, err := cmd.head(ctx, c)
		if err != nil {
			c.Close()
			return nil, "", err
		}
		newest = head.Note
	}
	return streamLines(ctx, c), newest, nil
}

func (f ledgerFlags) head(ctx context.Context, c *client.Client) (*client.Checkpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, f.Timeout)
	defer cancel()
	return c.Checkpoint(ctx)
}

// lineStream is an export that is read from the server.
type lineStream struct {
	*io.PipeReader
	end func()
}

func (s lineStream) Close() error {
	err := s.PipeReader.Close()
	s.end()
	return err
}

func streamLines(ctx context.Context, c *client.Client) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(writeLines(ctx, c, w))
	}()
	return lineStream{r, func() {
		cancel()
		<-done
		c.Close()
	}}
}

// writeLines writes each record on a line of its own. The pipe's reader is strict about what a line holds.
func writeLines(ctx context.Context, c *client.Client, w io.Writer) error {
	var failed error
	line := func(text string) {
		if failed == nil {
			_, failed = io.WriteString(w, text+"\n")
		}
	}
	for e, err := range c.Entries(ctx, client.EntriesRequest{Records: true, Dropped: line}) {
		if err != nil {
			return err
		}
		if line(e.Record); failed != nil {
			return failed
		}
	}
	return failed
}

// judgeLog reports the result. Only a log with a fault has a first bad entry.
func (a *app) judgeLog(r audit.Report, err error) error {
	var (
		bad     *audit.BadEntry
		refusal *delegation.Error
	)
	switch {
	case errors.As(err, &bad):
		a.showBad(bad)
		return errReported
	case errors.As(err, &refusal):
		return refusal
	case errors.Is(err, context.Canceled):
		return notProven("interrupted before the log was verified")
	case err != nil:
		return notProven("%v", err)
	case a.json:
		return a.writeJSON(logJSON(r))
	}
	a.showLog(r)
	return nil
}

type logReport struct {
	Verified bool      `json:"verified"`
	Tenant   string    `json:"tenant"`
	First    uint64    `json:"first"`
	Last     uint64    `json:"last"`
	Grants   uint64    `json:"grants"`
	Signed   uint64    `json:"signed"` // entries that the checkpoint covers
	SignedAt time.Time `json:"signed_at"`
	Origin   string    `json:"origin"`
	Unsigned uint64    `json:"unsigned"` // entries after the checkpoint
	Kept     int       `json:"kept"`
	Erased   uint64    `json:"erased"`
	Orphans  uint64    `json:"orphans"` // grants whose parent was dropped
}

func logJSON(r audit.Report) logReport {
	return logReport{
		true, r.Tenant, r.First, r.Last, r.Grants, r.Checkpoint.Size, r.Checkpoint.Time, r.Checkpoint.Origin, r.Uncovered, r.Kept, r.Erased, r.Orphans,
	}
}

func (a *app) showBad(bad *audit.BadEntry) {
	if a.json {
		a.writeJSON(struct {
			Verified bool   `json:"verified"`
			Entry    uint64 `json:"entry"`
			Through  uint64 `json:"through"`
			Rule     string `json:"rule"`
			Detail   string `json:"detail"`
		}{false, bad.Entry, bad.Through, bad.Rule, bad.Detail})
		return
	}
	where := fmt.Sprintf("entry %d", bad.Entry)
	if bad.Through > bad.Entry {
		where = fmt.Sprintf("one of the entries %d to %d", bad.Entry, bad.Through)
	}
	a.stdout.line("%s the first bad entry is %s", a.stdout.bad("NOT VERIFIED"), where)
	a.stdout.line("  rule    %s", bad.Rule)
	a.stdout.line("  why     %s", bad.Detail)
	a.stdout.line("  next    keep this log, its checkpoints and the backups of the ledger unchanged; docs/ledger.md explains each rule")
}

func (a *app) showLog(r audit.Report) {
	p := a.stdout
	p.line("%s the log of %s, entries %d to %d", p.good("VERIFIED"), cmp.Or(r.Tenant, "the tenant"), r.First, r.Last)
	p.line("  signed  up to entry %d at %s, by %s", r.Checkpoint.Size, a.when(r.Checkpoint.Time), r.Checkpoint.Origin)
	if r.Uncovered > 0 {
		p.line("          %d after it are consistent, but no checkpoint covers them yet", r.Uncovered)
	}
	if r.Kept > 0 {
		p.line("  kept    the log continues %s", plural(r.Kept, "earlier checkpoint"))
	} else {
		p.line("  kept    no earlier checkpoint was compared: an owner of the signing key could have replaced the whole log")
	}
	p.line("  grants  %d, each no wider than its parent", r.Grants)
	if r.First > 1 {
		p.line("  dropped entries 1 to %d, by retention; their hashes are in the root", r.First-1)
	}
	if r.Orphans > 0 {
		p.line("          the parents of %d grants are among them, so these grants were not compared", r.Orphans)
	}
	if r.Erased > 0 {
		p.line("  erased  %d personal fields; their digests match", r.Erased)
	}
}
