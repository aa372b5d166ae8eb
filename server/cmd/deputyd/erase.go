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
	Tenant  string `required:"" placeholder:"NAME" help:"Whose ledger."`
	Subject string `required:"" placeholder:"PRINCIPAL" help:"Whom to forget, such as user:alice: as subject, actor, caller and target of revocations."`
	DryRun  bool   `help:"Only count."`
	JSON    bool   `name:"json" help:"Say what was done as JSON, and nothing on the way."`
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

// Run erases. What has to wait is a failure: whoever asked for the erasure must ask again.
func (c erase) Run(ctx context.Context, streams *streams) error {
	config, err := server.Load(c.Config)
	if err != nil {
		return err
	}
	told := time.Now()
	done, err := server.Erase(ctx, config, c.Tenant, c.Subject, c.DryRun, func(done, of uint64) {
		if now := time.Now(); !c.JSON && now.Sub(told) >= time.Second {
			told = now
			fmt.Fprintf(streams.err, "%d of %d entries looked at\n", done, of)
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
	return fmt.Errorf("%d entries are still needed by what is alive: run this again after %s",
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
	_, err := fmt.Fprintf(w, "%d revocations that never end keep the name that they aim at\n", r.Kept)
	return err
}
