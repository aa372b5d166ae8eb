package main

import (
	"context"
	"fmt"
	"io"

	"deputy.example/deputy/server"
)

type recoverLedger struct {
	file
	DryRun     bool   `help:"Only say what was lost. The default."`
	Yes        bool   `help:"Do it."`
	RotateKeys bool   `help:"Replace all managed signing keys: every token that is out is refused, by instances within a second and by the SDK within a minute."`
	CutOff     bool   `help:"Refuse the tokens that the ledger lost, and record again the revocations that it lost and Redis remembers. Where Redis does not, refuse all tokens that are out."`
	Intact     bool   `help:"Nothing was lost, only the server changed. Refused where anything says otherwise."`
	Reason     string `placeholder:"TEXT" help:"What happened, for auditors: it is recorded in each tenant's log. Required with --yes."`
}

// Help is shown below the flags.
func (recoverLedger) Help() string {
	return `Instances refuse to serve with a database that may have lost what they acknowledged: one that was restored from a
backup, or a standby that was promoted and that commits did not wait for. This command ends that, by a decision that
is recorded.

First fence every other database that may still be alive: stop the former primary, or cut it off. While Redis is
down nothing else tells instances on it that it was given up.

Examples:
  deputyd ledger recover --config deputy.yaml
  deputyd ledger recover --config deputy.yaml --yes --cut-off --reason "zone b burned, backup of 04:00"
  deputyd ledger recover --config deputy.yaml --yes --rotate-keys --reason "asynchronous failover"
  deputyd ledger recover --config deputy.yaml --yes --intact --reason "moved to db2, nobody served meanwhile"

Instances go on by themselves, some seconds later. docs/operations.md says what each choice keeps and loses.`
}

// Run recovers, or says what there is to recover.
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
	c.say(stdout, found)
	return err
}

func (c recoverLedger) say(w io.Writer, found server.Losses) {
	if found.Doubt != "" {
		fmt.Fprintf(w, "instances refuse to serve: %s\n", found.Doubt)
	}
	if found.Redis != nil {
		fmt.Fprintf(w, "redis does not answer, so what is lost is not known: %v\n", found.Redis)
	}
	for _, loss := range found.Loss {
		fmt.Fprint(w, loss)
	}
	if found.Next > 0 {
		fmt.Fprintf(w, "incarnation %d has begun; instances serve within some seconds\n", found.Next)
	} else {
		fmt.Fprintln(w, "nothing was changed: decide with --yes and --cut-off, --rotate-keys or --intact")
	}
}
