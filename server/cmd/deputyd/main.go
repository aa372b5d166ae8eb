// Command deputyd is the Deputy server. It turns arguments and signals into calls of package server,
// and outcomes into exit codes: 0 for success, 1 for failure, 2 for a command line that is wrong. All
// else belongs elsewhere.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"

	"deputy.example/deputy/server"
)

type arguments struct {
	Serve   serve   `cmd:"" help:"Serve until SIGINT or SIGTERM, then drain. A second signal ends at once."`
	Migrate migrate `cmd:"" help:"Prepare the database, or bring it up to date. Safe to repeat, and while instances serve."`
	Config  struct {
		Check check `cmd:"" help:"List all that is wrong with a configuration and the files it names. Connects to nothing."`
	} `cmd:"" help:"The configuration file."`
	Keys   keys  `cmd:"" help:"Keys that sign tokens or checkpoints."`
	Erase  erase `cmd:"" help:"Make a tenant's ledger forget a principal. Every proof keeps holding. Safe to repeat, and while instances serve."`
	Ledger struct {
		Recover recoverLedger `cmd:"" help:"Say what a restored or promoted database lost and, with --yes, have instances serve with it."`
	} `cmd:"" help:"The ledger itself."`
	Version version `cmd:"" help:"Say which version this is."`
}

type file struct {
	Config string `required:"" placeholder:"FILE" help:"Configuration file; deputy.example.yaml explains it."`
}

type (
	serve   struct{ file }
	check   struct{ file }
	version struct{}
	migrate struct {
		Config string `placeholder:"FILE" xor:"database" required:"" help:"Take the database from this configuration."`
		DSN    string `placeholder:"ADDRESS" xor:"database" required:"" help:"The database itself: postgres:// or sqlite:///. Other users of the machine can read it: put no password in."`
	}
)

// streams are for commands that say something on the way.
type streams struct{ out, err io.Writer }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // from the first signal on, the next one ends the process
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	asked := false // for help or version text, which kong writes itself
	parser, err := kong.New(&arguments{},
		kong.Name("deputyd"),
		kong.Description("Deputy exchanges tokens: hand an agent less than you hold."),
		kong.UsageOnError(),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { asked = true }),
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
	case asked:
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

// Run serves.
func (c serve) Run(ctx context.Context) error {
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
	text := c.Config + ": nothing is wrong with it\n"
	for _, warning := range config.Warnings() {
		text += "warning: " + warning + "\n"
	}
	_, err = io.WriteString(stdout, text)
	return err
}

// Run says the version.
func (version) Run(stdout io.Writer) error {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return errors.New("this program was built without a version")
	}
	revision := ""
	for _, setting := range build.Settings {
		if setting.Key == "vcs.revision" {
			revision = " " + setting.Value
		}
	}
	_, err := fmt.Fprintf(stdout, "deputyd %s%s %s\n", build.Main.Version, revision, build.GoVersion)
	return err
}
