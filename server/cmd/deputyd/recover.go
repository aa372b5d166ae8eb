package main

import (
	"context"
	"fmt"
	"io"

	"deputy.example/deputy/server"
)

type recoverLedger struct {
	file
	DryRun     bool   `help:"Show what was lost, and change nothing. The default."`
	Yes        bool   `help:"Record the decision."`
	RotateKeys bool   `help:"Replace all managed signing keys. Every issued token is refused, by instances within a second and by the SDK within a minute."`
	CutOff     bool   `help:"Refuse the tokens that the ledger lost, and record again the lost revocations that Redis still has. If Redis does not have them, refuse every issued token."`
	Intact     bool   `help:"Declare that nothing was lost and only the server changed. Refused if there is evidence of a loss."`
	Reason     string `placeholder:"TEXT" help:"What happened, recorded in the log of each tenant. Required with --yes."`
}

// Help is the text below the flags.
func (recoverLedger) Help() string {
	return `Instances refuse to serve with a database that may have lost acknowledged entries: one that was restored
from a backup, or an asynchronous standby that was promoted. This command records a decision, and instances serve again.

First fence every other database that may still run: stop the former primary, or isolate it. While Redis is down,
instances on the former primary cannot detect that it was replaced.

Examples:
  deputyd ledger recover --config deputy.yaml
  deputyd ledger recover --config deputy.yaml --yes --cut-off --reason "zone b burned, backup of 04:00"
  deputyd ledger recover --config deputy.yaml --yes --rotate-keys --reason "asynchronous failover"
  deputyd ledger recover --config deputy.yaml --yes --intact --reason "moved to db2, no instance served meanwhile"

Instances continue by themselves after some seconds. docs/incidents.md describes what each decision keeps and loses.`
}

// Run records the decision, or shows what there is to recover.
func (c recoverLedger) Run(ctx context.Context, stdout io.Writer) error {
	config, err := server.Load(c.Config)
	if err != nil {
		return err
	}
	var decision *server.Decision
	if c.Yes && !c.DryRun {
		decision = &server.Decision{RotateKeys: c.RotateKeys, CutOff: c.CutOff, Intact: c.Intact, Reason: c.Reason}
	}
	found, err := server.Recover(ctx, config, decision)
	c.print(stdout, found)
	return err
}

func (c recoverLedger) print(w io.Writer, found server.Losses) {
	if found.Doubt != "" {
		fmt.Fprintf(w, "instances refuse to serve: %s\n", found.Doubt)
	}
	if found.Redis != nil {
		fmt.Fprintf(w, "Redis does not answer, so the losses are not known: %v\n", found.Redis)
	}
	for _, loss := range found.Loss {
		fmt.Fprint(w, loss)
	}
	if found.Next > 0 {
		fmt.Fprintf(w, "incarnation %d has begun; instances serve within some seconds\n", found.Next)
	} else {
		fmt.Fprintln(w, "nothing was changed; to decide, use --yes with --cut-off, --rotate-keys or --intact")
	}
}
