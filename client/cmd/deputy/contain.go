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
	Reason string        `placeholder:"TEXT" help:"Why, for the ledger."`
	DryRun bool          `help:"Suspend nothing, and show the tree that would die."`
	Yes    bool          `short:"y" help:"Do not ask."`
	Wait   time.Duration `default:"10s" placeholder:"DURATION" help:"How long to wait for verifiers (${default})."`

	Issuer string `env:"DEPUTY_ISSUER" placeholder:"URL" help:"Issuer of the Deputy tenant, byte for byte."`

	serverFlags `embed:""`
}

func (containCommand) Help() string {
	return `Suspends the agent: every token in whose chain it stands is dead from now on, and it gets no new one
until deputy resume. Then waits until every connected verifier says that it knows.

Exit code 3 means that the agent is suspended, and that a verifier has not said so in time. Where the server cannot
tell which verifiers have applied the suspension, the command warns on standard error and ends with exit code 0: with --json,
verifiers and all_caught_up are null.

Examples:
  deputy contain agent:researcher --reason "key found in a public repository"
  deputy contain agent:researcher --dry-run`
}

// selfRefusal is how long a verifier that hears nothing goes on accepting, at most.
const selfRefusal = 10 * time.Second

// receiptPause lies between two looks at the receipts; verifiers send one a second.
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
		doomed, err := cmd.suspend(c, agent, true)
		switch {
		case cmd.DryRun && err != nil:
			return err
		case cmd.DryRun && a.json:
			return a.writeJSON(revokedJSON(doomed))
		case cmd.DryRun:
			a.drawDoomed(doomed)
			return nil
		}
		toll, err := tollOf(doomed, err)
		if err != nil {
			return err
		}
		if err := a.confirm("Contain %s? %s die.", agent, toll); err != nil {
			return err
		}
	}
	suspended, err := cmd.suspend(c, agent, false)
	if err != nil {
		return err
	}
	if suspended.Revocation == nil {
		return delegation.Refuse(delegation.Internal, "", "Deputy suspended nothing and did not say why")
	}
	if !a.json {
		a.stdout.line("%s %s%s", a.stdout.good("CONTAINED"), agent, entryOf(suspended))
		a.explainDeath(suspended)
	}
	report, err := cmd.receipts(c, suspended)
	if err != nil {
		return a.withoutReceipts(suspended, err)
	}
	return a.showReceipts(suspended, report)
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

// tollOf says what the agent takes with it. To count takes time in proportion to all that is alive, to
// contain does not: what cannot be counted in time keeps nobody from containing.
func tollOf(doomed *client.Revoked, err error) (string, error) {
	if refusal, typed := errors.AsType[*delegation.Error](err); typed && refusal.Temporary() {
		return doomedText(&client.Revoked{}), nil
	}
	if err != nil {
		return "", err
	}
	return doomedText(doomed), nil
}

func (cmd *containCommand) suspend(c *client.Client, agent delegation.Principal, dryRun bool) (*client.Revoked, error) {
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Timeout)
	defer cancel()
	return c.Suspend(ctx, client.SuspendRequest{Agent: agent, Reason: cmd.Reason, DryRun: dryRun})
}

// receiptState is what a verifier's receipt says about one revocation.
type receiptState string

const (
	caughtUp receiptState = "caught_up"
	behind   receiptState = "behind"
	gone     receiptState = "gone" // was not connected when the revocation was made, and refuses everything by now
)

// verifierReceipt is one verifier's part of the receipt.
type verifierReceipt struct {
	ID         string               `json:"id"`
	Verifier   delegation.Principal `json:"verifier"`
	Applied    uint64               `json:"applied"`
	SeenAt     time.Time            `json:"seen_at"`
	State      receiptState         `json:"state"`
	CaughtUpAt time.Time            `json:"caught_up_at,omitzero"` // of the first mark that said so
}

// receipts asks until every verifier has caught up or the wait is over.
func (cmd *containCommand) receipts(c *client.Client, r *client.Revoked) ([]verifierReceipt, error) {
	ctx, cancel := context.WithTimeout(context.Background(), cmd.Wait+cmd.Timeout)
	defer cancel()
	first := make(map[string]time.Time)
	over := time.NewTimer(cmd.Wait)
	defer over.Stop()
	next := time.NewTicker(receiptPause)
	defer next.Stop()
	for waiting := true; ; {
		receipts, err := c.Receipts(ctx, r.Revocation.Seq)
		if err != nil {
			return nil, err
		}
		report, pending := judgeReceipts(receipts, r.Revocation, first)
		if pending == 0 || !waiting {
			return report, nil
		}
		select {
		case <-next.C:
		case <-over.C:
			waiting = false // one last look
		}
	}
}

// judgeReceipts says how far each verifier is, and how many still have to catch up. first remembers
// when each was seen to have done so for the first time.
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

func (a *app) showReceipts(r *client.Revoked, report []verifierReceipt) error {
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
	if a.json {
		return errors.Join(a.writeJSON(containReport{revokedJSON(r), append([]verifierReceipt{}, report...), new(late == 0)}), err)
	}
	p := a.stdout
	p.line("")
	if len(report) == 0 {
		p.line("No verifier follows this tenant's revocations.")
		return nil
	}
	for _, line := range report {
		name := fmt.Sprintf("%-24s %s", line.Verifier, line.ID)
		switch line.State {
		case caughtUp:
			p.line("  %s  %s %s after", name, p.good("knows"), max(line.CaughtUpAt.Sub(r.Revocation.At), 0).Round(time.Millisecond))
		case gone:
			p.line("  %s  gone since %s: refuses everything by itself", name, a.when(line.SeenAt))
		default:
			p.line("  %s  %s last seen %s, at entry %d", name, p.bad("DOES NOT KNOW"), a.when(line.SeenAt), line.Applied)
			p.line("  %24s refuses everything by itself from %s at the latest", "", a.when(line.SeenAt.Add(selfRefusal)))
		}
	}
	p.line("")
	if late > 0 {
		p.line("%s", p.bad(fmt.Sprintf("%d of %s did not say that they know.", late, plural(len(report), "verifier"))))
	} else {
		p.line("Every connected verifier knows.")
	}
	return err
}

// errLate ends contain where a verifier did not catch up in time; it has been said which.
var errLate = errors.New("a verifier has not caught up")

type resumeCommand struct {
	Agent  string `arg:"" help:"The agent, for instance agent:researcher."`
	Reason string `placeholder:"TEXT" help:"Why, for the ledger."`

	Issuer string `env:"DEPUTY_ISSUER" placeholder:"URL" help:"Issuer of the Deputy tenant, byte for byte."`

	serverFlags `embed:""`
}

func (resumeCommand) Help() string {
	return `Lets the agent be granted tokens again. None that is older than its suspension comes back to life.

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
	a.stdout.line("%s %s, ledger entry %d: what is older than its suspension stays dead", a.stdout.good("RESUMED"), agent, r.Seq)
	return nil
}

// confirm asks on the terminal, and takes nothing but yes for yes.
func (a *app) confirm(format string, args ...any) error {
	a.stderr.line(format, args...)
	a.stderr.line("Type yes to go on:")
	answer, err := bufio.NewReader(a.stdin).ReadString('\n')
	if strings.TrimSpace(answer) == "yes" {
		return nil
	}
	if err != nil && answer == "" {
		a.stderr.line("there was no answer")
	}
	a.stderr.line("nothing was done")
	return errReported
}
