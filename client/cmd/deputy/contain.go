package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

type containCommand struct {
	Agent  string        `arg:"" help:"The agent, for instance agent:researcher."`
	Reason string        `placeholder:"TEXT" help:"Reason, recorded in the ledger."`
	DryRun bool          `help:"Suspend nothing, and show the tokens that would be revoked."`
	Yes    bool          `short:"y" help:"Do not ask for confirmation."`
	Wait   time.Duration `default:"10s" placeholder:"DURATION" help:"How long to wait for verifiers (${default})."`

	Issuer string `env:"DEPUTY_ISSUER" placeholder:"URL" help:"Issuer of the Deputy tenant, byte for byte."`

	serverFlags `embed:""`
}

func (containCommand) Help() string {
	return `Suspends the agent. Every token with the agent in its chain is refused from now on, and the agent obtains
no new token until deputy resume. The command then waits until every connected verifier has applied the suspension.

Exit code 3 means that the agent is suspended, and that a verifier did not confirm it in time. If the receipts of the
verifiers cannot be read, the command prints a warning on standard error and ends with exit code 0. With --json,
verifiers and all_caught_up are null then.

Examples:
  deputy contain agent:researcher --reason "key found in a public repository"
  deputy contain agent:researcher --dry-run`
}

// selfRefusal is the staleness bound of a verifier: cut off for longer, it refuses every token.
const selfRefusal = 10 * time.Second

// receiptPause lies between two requests for the receipts; verifiers send one a second.
const receiptPause = 250 * time.Millisecond

// Run contains an agent and prints the receipt.
func (cmd *containCommand) Run(a *app) error {
	agent, err := delegation.ParsePrincipal(cmd.Agent)
	if err != nil {
		return usage("the agent %v", err)
	}
	c, err := cmd.connect(cmd.Issuer)
	if err != nil {
		return err
	}
	defer c.Close()
	if cmd.DryRun || a.interactive && !cmd.Yes {
		affected, err := cmd.suspend(c, agent, true)
		switch {
		case cmd.DryRun && err != nil:
			return err
		case cmd.DryRun && a.json:
			return a.writeJSON(revokedJSON(affected))
		case cmd.DryRun:
			a.drawAffected(affected)
			return nil
		}
		count, err := countOf(affected, err)
		if err != nil {
			return err
		}
		if err := a.confirm("Contain %s? This revokes %s.", agent, count); err != nil {
			return err
		}
	}
	suspended, err := cmd.suspend(c, agent, false)
	if err != nil {
		return err
	}
	if suspended.Revocation == nil {
		return delegation.Refuse(delegation.Internal, "", "Deputy suspended nothing and returned no reason")
	}
	if !a.json {
		a.stdout.line("%s %s%s", a.stdout.good("CONTAINED"), agent, entryOf(suspended))
		a.explainRevoked(suspended)
	}
	report, partial, err := cmd.receipts(c, suspended)
	if err != nil {
		return a.withoutReceipts(suspended, err)
	}
	return a.showReceipts(suspended, report, partial)
}

// withoutReceipts ends contain where the receipts could not be read. The suspension is in force. A temporary error is a
// warning only: scripts must not take it for a suspension that failed.
func (a *app) withoutReceipts(suspended *client.Revoked, err error) error {
	a.stderr.line("%s; which verifiers have applied the suspension is not known", a.stderr.good("the agent is suspended"))
	if a.json {
		if err := a.writeJSON(containReport{revokedReport: revokedJSON(suspended)}); err != nil {
			return err
		}
	}
	if refusal, typed := errors.AsType[*delegation.Error](err); typed && refusal.Temporary() {
		a.stderr.line("warning: the receipts could not be read (%s); a verifier that is cut off refuses everything within %s", refusal.Description, selfRefusal)
		return nil
	}
	return err
}

// containReport is what contain prints as JSON. Verifiers and AllCaughtUp are null where they are not known.
type containReport struct {
	revokedReport
	Verifiers   []verifierReceipt `json:"verifiers"`
	AllCaughtUp *bool             `json:"all_caught_up"`
}

// countOf describes the tokens that a suspension revokes. Counting takes time in proportion to the
// live tokens, and a suspension does not: a count that fails must not prevent it.
func countOf(affected *client.Revoked, err error) (string, error) {
	if refusal, typed := errors.AsType[*delegation.Error](err); typed && refusal.Temporary() {
		return affectedText(&client.Revoked{}), nil
	}
	if err != nil {
		return "", err
	}
	return affectedText(affected), nil
}

func (cmd *containCommand) suspend(c *client.Client, agent delegation.Principal, dryRun bool) (*client.Revoked, error) {
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Timeout)
	defer cancel()
	return c.Suspend(ctx, client.SuspendRequest{Agent: agent, Reason: cmd.Reason, DryRun: dryRun})
}

// receiptState is the state of a verifier with respect to one revocation.
type receiptState string

const (
	caughtUp receiptState = "caught_up"
	behind   receiptState = "behind"
	gone     receiptState = "gone" // not connected when the revocation was recorded; refuses every token by now
)

// verifierReceipt is one verifier's part of the receipt.
type verifierReceipt struct {
	ID         string               `json:"id"`
	Verifier   delegation.Principal `json:"verifier"`
	Applied    uint64               `json:"applied"`
	SeenAt     time.Time            `json:"seen_at"`
	State      receiptState         `json:"state"`
	CaughtUpAt time.Time            `json:"caught_up_at,omitzero"` // of the first mark at or above the revocation
}

// receipts reads the receipts until every verifier has caught up or the wait is over. A partial report has
// the verifiers of one instance only.
func (cmd *containCommand) receipts(c *client.Client, r *client.Revoked) (report []verifierReceipt, partial bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Wait+cmd.Timeout)
	defer cancel()
	first := make(map[string]time.Time)
	over := time.NewTimer(cmd.Wait)
	defer over.Stop()
	next := time.NewTicker(receiptPause)
	defer next.Stop()
	for waiting := true; ; {
		receipts, err := c.Receipts(ctx, r.Revocation.Seq)
		partial := errors.Is(err, client.ErrPartialReceipts)
		if err != nil && !partial {
			return nil, false, err
		}
		report, pending := judgeReceipts(receipts, r.Revocation, first)
		if pending == 0 || !waiting {
			return report, partial, nil
		}
		select {
		case <-next.C:
		case <-over.C:
			waiting = false // read once more
		}
	}
}

// judgeReceipts returns the state of each verifier, and how many still have to catch up. first
// holds the time at which each was first seen to have caught up.
func judgeReceipts(receipts []client.Receipt, r *delegation.Revocation, first map[string]time.Time) (report []verifierReceipt, pending int) {
	for _, receipt := range receipts {
		line := verifierReceipt{ID: receipt.ID, Verifier: receipt.Verifier, Applied: receipt.Applied, SeenAt: receipt.SeenAt, State: behind}
		switch {
		case receipt.Applied >= r.Seq:
			if _, again := first[receipt.ID]; !again {
				first[receipt.ID] = receipt.SeenAt
			}
			line.State, line.CaughtUpAt = caughtUp, first[receipt.ID]
		case receipt.SeenAt.Add(selfRefusal).Before(r.At):
			line.State = gone
		default:
			pending++
		}
		report = append(report, line)
	}
	return report, pending
}

func (a *app) showReceipts(r *client.Revoked, report []verifierReceipt, partial bool) error {
	late := 0
	for _, line := range report {
		if line.State == behind {
			late++
		}
	}
	err := error(nil)
	if late > 0 {
		err = errLate
	}
	if partial {
		a.stderr.line("warning: Redis does not answer, so verifiers of other instances are not listed; a verifier that is cut off refuses everything within %s", selfRefusal)
	}
	if a.json {
		all := new(late == 0)
		if partial && late == 0 {
			all = nil
		}
		return errors.Join(a.writeJSON(containReport{revokedJSON(r), append([]verifierReceipt{}, report...), all}), err)
	}
	p := a.stdout
	p.line("")
	if len(report) == 0 && partial {
		return nil
	}
	if len(report) == 0 {
		p.line("No verifier follows this tenant's revocations.")
		return nil
	}
	for _, line := range report {
		name := fmt.Sprintf("%-24s %s", line.Verifier, line.ID)
		switch line.State {
		case caughtUp:
			p.line("  %s  %s after %s", name, p.good("applied"), max(line.CaughtUpAt.Sub(r.Revocation.At), 0).Round(time.Millisecond))
		case gone:
			p.line("  %s  disconnected since %s: refuses every token", name, a.when(line.SeenAt))
		default:
			p.line("  %s  %s last seen %s, at entry %d", name, p.bad("NOT APPLIED"), a.when(line.SeenAt), line.Applied)
			p.line("  %24s refuses every token from %s at the latest", "", a.when(line.SeenAt.Add(selfRefusal)))
		}
	}
	p.line("")
	if late > 0 {
		p.line("%s", p.bad(fmt.Sprintf("Not confirmed by %d of %s.", late, plural(len(report), "verifier"))))
	} else if !partial {
		p.line("Every connected verifier has applied the suspension.")
	}
	return err
}

// errLate ends contain where a verifier did not catch up in time; the report names it.
var errLate = errors.New("a verifier has not caught up")

type resumeCommand struct {
	Agent  string `arg:"" help:"The agent, for instance agent:researcher."`
	Reason string `placeholder:"TEXT" help:"Reason, recorded in the ledger."`

	Issuer string `env:"DEPUTY_ISSUER" placeholder:"URL" help:"Issuer of the Deputy tenant, byte for byte."`

	serverFlags `embed:""`
}

func (resumeCommand) Help() string {
	return `The agent can obtain tokens again. Tokens from before the suspension stay revoked.

Example:
  deputy resume agent:researcher --reason "key replaced"`
}

// Run lifts a suspension.
func (cmd *resumeCommand) Run(a *app) error {
	agent, err := delegation.ParsePrincipal(cmd.Agent)
	if err != nil {
		return usage("the agent %v", err)
	}
	c, err := cmd.connect(cmd.Issuer)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Timeout)
	defer cancel()
	r, err := c.Resume(ctx, agent, cmd.Reason)
	if err != nil {
		return err
	}
	if a.json {
		return a.writeJSON(struct {
			Entry uint64    `json:"entry"`
			Agent string    `json:"agent"`
			Time  time.Time `json:"time,omitzero"`
		}{r.Seq, r.Target.ID, r.At})
	}
	a.stdout.line("%s %s, ledger entry %d: tokens from before the suspension stay revoked", a.stdout.good("RESUMED"), agent, r.Seq)
	return nil
}

// confirm reads a confirmation from the terminal. Every answer but "yes" refuses.
func (a *app) confirm(format string, args ...any) error {
	a.stderr.line(format, args...)
	a.stderr.line("Type yes to continue:")
	answer, err := bufio.NewReader(a.stdin).ReadString('\n')
	if strings.TrimSpace(answer) == "yes" {
		return nil
	}
	if err != nil && answer == "" {
		a.stderr.line("no answer was read")
	}
	a.stderr.line("nothing was changed")
	return errReported
}
