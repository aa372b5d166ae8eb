package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"deputy.example/deputy/server"
)

type erase struct {
	file
	Tenant  string `required:"" placeholder:"NAME" help:"Tenant of the ledger."`
	Subject string `required:"" placeholder:"PRINCIPAL" help:"Principal to erase, such as user:alice: as subject, actor, caller and target of revocations."`
	DryRun  bool   `help:"Count only, and erase nothing."`
	JSON    bool   `name:"json" help:"Write JSON, and no progress."`
}

// report is what --json prints.
type report struct {
	DryRun   bool       `json:"dry_run"`
	Entries  int        `json:"entries"`
	Fields   int        `json:"fields"`
	Deferred int        `json:"deferred"`
	Until    *time.Time `json:"until,omitempty"`
	Kept     int        `json:"kept"`
}

// Run erases. Entries that cannot be erased yet are a failure: the command must be run again.
func (c erase) Run(ctx context.Context, streams *streams) error {
	config, err := server.Load(c.Config)
	if err != nil {
		return err
	}
	reported := time.Now()
	done, err := server.Erase(ctx, config, c.Tenant, c.Subject, c.DryRun, func(done, of uint64) {
		if now := time.Now(); !c.JSON && now.Sub(reported) >= time.Second {
			reported = now
			fmt.Fprintf(streams.err, "%d of %d entries read\n", done, of)
		}
	})
	if err != nil {
		return err
	}
	r := report{DryRun: c.DryRun, Entries: done.Entries, Fields: done.Fields, Deferred: done.Deferred, Kept: done.Kept}
	if done.Deferred > 0 {
		r.Until = &done.Until
	}
	if err := r.print(streams.out, c.JSON); err != nil || done.Deferred == 0 {
		return err
	}
	return fmt.Errorf("%d entries are still needed by live tokens: run this command again after %s",
		done.Deferred, done.Until.UTC().Format(time.RFC3339))
}

func (r report) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	verb := "erased"
	if r.DryRun {
		verb = "would erase"
	}
	if _, err := fmt.Fprintf(w, "%s %d fields of %d entries\n", verb, r.Fields, r.Entries); err != nil || r.Kept == 0 {
		return err
	}
	_, err := fmt.Fprintf(w, "%d permanent revocations keep the name of their target\n", r.Kept)
	return err
}
