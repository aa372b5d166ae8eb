package main

import (
	"context"
	"encoding/json"
	"os"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
)

type checkpointCommand struct {
	Key  string `placeholder:"KEY|FILE" help:"Verifier key of the tenant's checkpoints: accept only a checkpoint that it signed."`
	Kept string `placeholder:"FILE" help:"An earlier checkpoint: verify that the log only grew since then. Needs --key."`

	ledgerFlags `embed:""`
}

func (checkpointCommand) Help() string {
	return `Writes the newest signed head of the log (a C2SP signed note) to standard output. Keep checkpoints where
the operators of Deputy have no access: they are needed to detect tampering. Any caller of the tenant may fetch one.

Examples:
  deputy log checkpoint --key acme.vkey > checkpoints/today
  deputy log checkpoint --key acme.vkey --kept checkpoints/yesterday > checkpoints/today`
}

// Run fetches a checkpoint.
func (cmd *checkpointCommand) Run(a *app) error {
	if cmd.Kept != "" && cmd.Key == "" {
		return usage("--kept needs --key, which verifies both checkpoints")
	}
	c, err := cmd.open()
	if err != nil {
		return err
	}
	defer c.Close()
	newest, err := cmd.fetch(c)
	if err != nil {
		return err
	}
	if inertLines(newest) != newest { // its signature is over its bytes, so none can be escaped
		return delegation.Refuse(delegation.Internal, "checkpoint", "must be lines of printable text; nothing was written")
	}
	_, err = a.stdout.w.Write([]byte(newest))
	return err
}

func (cmd *checkpointCommand) fetch(c *client.Client) (string, error) {
	if cmd.Key == "" {
		head, err := cmd.head(context.Background(), c)
		if err != nil {
			return "", err
		}
		return head.Note, nil
	}
	key, former, err := keyFlag(cmd.Key)
	if err != nil {
		return "", err
	}
	if cmd.Kept == "" {
		head, err := cmd.head(context.Background(), c)
		if err != nil {
			return "", err
		}
		_, err = signedCheckpoint(head.Note, key)
		return head.Note, err
	}
	return cmd.grown(c, key, former)
}

// grown returns a checkpoint that is proven to continue the kept one.
func (cmd *checkpointCommand) grown(c *client.Client, key note.Verifier, former []note.Verifier) (string, error) {
	content, err := os.ReadFile(cmd.Kept)
	if err != nil {
		return "", usage("--kept: %v", err)
	}
	kept, err := signedCheckpoint(string(content), append(former, key)...)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Timeout)
	defer cancel()
	proofs, err := c.Proofs(ctx, client.ProofsRequest{OldSize: kept.Size})
	if err != nil {
		return "", err
	}
	newest, err := signedCheckpoint(proofs.Checkpoint, key)
	switch {
	case err != nil:
		return "", err
	case newest.Size < kept.Size:
		return "", notProven("the log has %d entries, fewer than the %d of the kept checkpoint", newest.Size, kept.Size)
	case kept.Size == 0:
		return proofs.Checkpoint, nil
	case tlog.CheckTree(proofs.Consistency, int64(newest.Size), newest.Root, int64(kept.Size), kept.Root) != nil:
		return "", notProven("the log of %d entries does not continue the kept checkpoint of %d entries", newest.Size, kept.Size)
	}
	return proofs.Checkpoint, nil
}

type proveCommand struct {
	JTI string `arg:"" name:"jti" help:"The grant's jti."`
	Key string `placeholder:"KEY|FILE" help:"Verifier key of the tenant's checkpoints: verify the proof before it is written."`

	ledgerFlags `embed:""`
}

func (proveCommand) Help() string {
	return `Writes one document with the record of the grant, the proof that it is in the log, and the checkpoint to
which the proof leads. It can be verified without Deputy; docs/proof has a program of one page that does so.

Example:
  deputy log prove 01K9ZQ... --key acme.vkey > grant.json`
}

// proofReport is what docs/proof verifies.
type proofReport struct {
	Record     json.RawMessage `json:"record"`
	Inclusion  [][]byte        `json:"inclusion"`
	Checkpoint string          `json:"checkpoint"`
}

// Run writes a proof.
func (cmd *proveCommand) Run(a *app) error {
	var key note.Verifier
	if cmd.Key != "" {
		var err error
		if key, _, err = keyFlag(cmd.Key); err != nil {
			return err
		}
	}
	c, err := cmd.open()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Timeout)
	defer cancel()
	proofs, err := c.Proofs(ctx, client.ProofsRequest{JTI: cmd.JTI})
	if err != nil {
		return err
	}
	if proofs.Entry == nil {
		return notProven("the server sent no entry")
	}
	if key == nil {
		a.stderr.line("the proof was not verified: --key is missing")
	} else if err := cmd.check(proofs, key); err != nil {
		return err
	}
	report := proofReport{Record: json.RawMessage(proofs.Entry.Record), Checkpoint: proofs.Checkpoint, Inclusion: [][]byte{}}
	for _, hash := range proofs.Inclusion {
		report.Inclusion = append(report.Inclusion, hash[:])
	}
	return a.writeJSON(report)
}

// check recomputes the record's leaf, and from it the root that was signed.
func (cmd *proveCommand) check(proofs *client.Proofs, key note.Verifier) error {
	record, err := audit.ParseRecord([]byte(proofs.Entry.Record))
	if err != nil {
		return notProven("the record: %v", err)
	}
	if err := record.Verify(); err != nil {
		return notProven("the record: %v", err)
	}
	head, err := signedCheckpoint(proofs.Checkpoint, key)
	switch {
	case err != nil:
		return err
	case record.Kind != string(client.KindGrant) || record.ID != cmd.JTI:
		return notProven("the record is not that of grant %s", cmd.JTI)
	case record.Seq == 0 || record.Seq > head.Size:
		return notProven("the checkpoint does not cover entry %d yet: try again in a second", record.Seq)
	case tlog.CheckRecord(proofs.Inclusion, int64(head.Size), head.Root, int64(record.Seq)-1, record.LeafHash) != nil:
		return notProven("the proof does not lead from entry %d to the signed root", record.Seq)
	}
	return nil
}
