// Command deputy is the command line of Deputy. It exchanges tokens, explains them, shows chains
// and revokes authority.
//
// This package holds texts and layout only. All facts come from package client. Tokens come from
// files, standard input or the environment, because other users of a machine can read arguments.
//
// Exit codes: 0 done; 1 refused, or not verified; 2 wrong usage; 3 Deputy, its keys or a verifier
// unavailable.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/internal/version"
)

const (
	exitRefused     = 1
	exitUsage       = 2
	exitUnavailable = 3
)

const description = `Exchange tokens for narrower ones, explain and revoke them, and audit the ledger.

Exit codes: 0 done; 1 refused, or not verified; 2 wrong usage; 3 Deputy, its keys or a verifier unavailable.`

type commands struct {
	Exchange exchangeCommand `cmd:"" help:"Exchange a token for a narrower one that names a sub-agent."`
	Decode   decodeCommand   `cmd:"" help:"Verify a token and explain it."`
	Proof    proofCommand    `cmd:"" help:"Create a DPoP proof for one HTTP request, for use with curl."`
	Thumb    thumbCommand    `cmd:"" name:"thumbprint" help:"Show the thumbprint of a key or a certificate."`
	Chain    chainCommand    `cmd:"" help:"Show the chain of grants that leads to a token."`
	Tree     treeCommand     `cmd:"" help:"Show all grants that were derived from a token."`
	Search   searchCommand   `cmd:"" help:"Search the ledger."`
	Reach    reachCommand    `cmd:"" help:"Show the live tokens of an agent, and what it could obtain by exchange."`
	Log      logCommand      `cmd:"" help:"Export and verify the log."`
	Revoke   revokeCommand   `cmd:"" help:"Revoke a token and all tokens derived from it, or the tokens of an agent or a subject."`
	Contain  containCommand  `cmd:"" help:"Suspend an agent and wait until every connected verifier has applied it."`
	Resume   resumeCommand   `cmd:"" help:"Lift an agent's suspension."`

	JSON    bool             `name:"json" help:"Write JSON to standard output."`
	Version kong.VersionFlag `help:"Print the version, the commit and the version of Go."`
}

// app is where a command reads and writes.
type app struct {
	stdin    io.Reader
	stdout   *printer
	stderr   *printer
	terminal bool // standard output is a terminal
	json     bool
	now      func() time.Time

	interactive bool // standard input is a terminal, so that a confirmation can be read
}

func main() {
	terminal := isTerminal(os.Stdout)
	os.Exit(run(os.Args[1:], &app{
		stdin:    os.Stdin,
		stdout:   newPrinter(os.Stdout, terminal),
		stderr:   newPrinter(os.Stderr, isTerminal(os.Stderr)),
		terminal: terminal,
		now:      time.Now,

		interactive: isTerminal(os.Stdin),
	}))
}

// isTerminal uses the file mode only, so that no platform needs a system call of its own. The null
// device, from which jobs without a terminal read, is a character device too.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 || os.Getenv("TERM") == "dumb" {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

func run(args []string, a *app) int {
	var parsed commands
	parser, err := kong.New(&parsed,
		kong.Name("deputy"), kong.Description(description), kong.Writers(a.stdout.w, a.stderr.w),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}), kong.Bind(a),
		kong.Vars{"version": version.Of("deputy")},
	)
	if err != nil {
		return a.fail(err)
	}
	ctx, err := parser.Parse(args)
	if err != nil {
		return a.fail(usage("%s", withoutTokens(err.Error(), args)))
	}
	a.json = parsed.JSON
	return a.fail(ctx.Run())
}

// withoutTokens keeps a misplaced token out of the message about it.
func withoutTokens(message string, args []string) string {
	for _, arg := range args {
		if strings.Count(arg, ".") >= 2 && len(arg) > 64 {
			message = strings.ReplaceAll(message, arg, "[token]")
		}
	}
	return message
}

// usageError is a mistake in how the command was called.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usage(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

// errReported ends a command that has already reported what is wrong.
var errReported = errors.New("refused")

// fail reports an error and the next step, and returns the exit code.
func (a *app) fail(err error) int {
	var (
		wrongUse usageError
		refusal  *delegation.Error
		access   *client.AccessError
		doubt    unproven
	)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errReported):
		return exitRefused
	case errors.Is(err, errLate):
		return exitUnavailable
	case errors.As(err, &refusal):
		return a.failRefused(refusal)
	case errors.As(err, &access):
		a.report(string(access.Code), "", access.Description, causeText(access), nextForAccess(access))
		if access.Code == client.AccessUnavailable {
			return exitUnavailable
		}
		return exitRefused
	case errors.As(err, &doubt):
		a.report("not_proven", "", doubt.text, "", "keep the files unchanged and report this to the operator of Deputy")
		return exitRefused
	case errors.As(err, &wrongUse):
		a.report("usage", "", err.Error(), "", "deputy --help lists the commands, deputy <command> --help their flags and examples")
		return exitUsage
	}
	a.report("usage", "", err.Error(), "", "")
	return exitUsage
}

func (a *app) failRefused(e *delegation.Error) int {
	a.report(string(e.Reason), e.Field, e.Description, "", nextForReason(e))
	if e.Temporary() || e.Reason == delegation.Internal {
		return exitUnavailable
	}
	return exitRefused
}

// report writes an error for people on standard error, and with --json for programs on standard output.
func (a *app) report(reason, field, text, cause, next string) {
	if a.json {
		a.writeJSON(struct {
			Error       string `json:"error"`
			Reason      string `json:"reason"`
			Field       string `json:"field,omitzero"`
			Description string `json:"error_description"`
			Cause       string `json:"cause,omitzero"`
			Next        string `json:"next,omitzero"`
		}{oauthCode(reason), reason, field, text, cause, next})
		return
	}
	subject := reason
	if field != "" {
		subject += ", " + field
	}
	a.stderr.line("%s %s", a.stderr.bad("deputy: "+subject+":"), text)
	if cause != "" {
		a.stderr.line("  why:  %s", cause)
	}
	if next != "" {
		a.stderr.line("  next: %s", next)
	}
}

func oauthCode(reason string) string {
	if r := delegation.Reason(reason); r.Known() {
		return r.Wire().OAuth
	}
	return reason
}

func causeText(err error) string {
	if cause := errors.Unwrap(err); cause != nil {
		return cause.Error()
	}
	return ""
}
