// Command deputyd is the Deputy server. It translates arguments and signals into calls of package
// server, and outcomes into exit codes: 0 for success, 1 for failure, 2 for a wrong command line. It
// does nothing else.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"deputy.example/deputy/internal/version"
	"deputy.example/deputy/server"
)

type arguments struct {
	Serve   serve   `cmd:"" help:"Serve until SIGINT or SIGTERM, then drain. A second signal ends the process at once. SIGHUP is ignored."`
	Migrate migrate `cmd:"" help:"Create the database schema, or migrate it to this version. Safe to repeat, and while instances serve."`
	Config  struct {
		Check check `cmd:"" help:"List every error in a configuration and in the files that it names. Opens no connection."`
	} `cmd:"" help:"Check the configuration file."`
	Keys   keys  `cmd:"" help:"Manage the keys that sign tokens and checkpoints."`
	Erase  erase `cmd:"" help:"Erase the personal fields of a principal from a tenant's ledger. All proofs remain valid. Safe to repeat, and while instances serve."`
	Ledger struct {
		Recover recoverLedger `cmd:"" help:"Show what a restored or promoted database lost. With --yes and a decision, instances serve with it."`
	} `cmd:"" help:"Manage the ledger."`
	Version versionCommand `cmd:"" help:"Print the version, the commit and the version of Go."`

	ShowVersion kong.VersionFlag `name:"version" help:"Print the version, the commit and the version of Go."`
}

type file struct {
	Config string `required:"" placeholder:"FILE" help:"Configuration file; deputy.example.yaml is a commented example."`
}

type (
	serve          struct{ file }
	check          struct{ file }
	versionCommand struct{}
	migrate        struct {
		Config string `placeholder:"FILE" xor:"database" required:"" help:"Configuration file that names the database."`
		DSN    string `placeholder:"ADDRESS" xor:"database" required:"" help:"Address of the database: postgres:// or sqlite:///. It must hold no password, because other users of the machine can read arguments."`
	}
)

// streams are for commands that report progress.
type streams struct{ out, err io.Writer }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // after the first signal, the next one ends the process
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	printed := false // help or version, which kong writes itself
	parser, err := kong.New(&arguments{},
		kong.Name("deputyd"),
		kong.Description("The Deputy server: token exchange, revocation and audit."),
		kong.Vars{"version": version.Of("deputyd")},
		kong.UsageOnError(),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { printed = true }),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.BindTo(stdout, (*io.Writer)(nil)),
		kong.Bind(&streams{out: stdout, err: stderr}),
	)
	if err != nil {
		fmt.Fprintln(stderr, "deputyd:", err)
		return 1
	}
	command, err := parser.Parse(args)
	switch {
	case printed:
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "deputyd:", err)
		return 2
	}
	if err := command.Run(); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(stderr, "deputyd:", err)
		return 1
	}
	return 0
}

// Run serves. SIGHUP is ignored: its default action would end the process without a drain, and there
// is nothing to reload, because certificates and files of trust are read again by themselves.
func (c serve) Run(ctx context.Context) error {
	signal.Ignore(syscall.SIGHUP)
	config, err := server.Load(c.Config)
	if err != nil {
		return err
	}
	s, err := server.New(ctx, config, server.Options{})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// Run migrates.
func (c migrate) Run(ctx context.Context) error {
	database := server.Database{DSN: c.DSN}
	if c.Config != "" {
		config, err := server.Load(c.Config)
		if err != nil {
			return err
		}
		database = config.Database
	}
	return server.Migrate(ctx, database)
}

// Run checks.
func (c check) Run(stdout io.Writer) error {
	config, err := server.Load(c.Config)
	if err != nil {
		return err
	}
	text := c.Config + ": no errors\n"
	for _, warning := range config.Warnings() {
		text += "warning: " + warning + "\n"
	}
	_, err = io.WriteString(stdout, text)
	return err
}

// Run prints the version.
func (versionCommand) Run(stdout io.Writer) error {
	_, err := fmt.Fprintln(stdout, version.Of("deputyd"))
	return err
}
