// Command deputy-embedded runs Deputy with all its dependencies in one process: OpenFGA with a
// small demo world, an SQLite ledger and a development issuer. It plays the demo once and serves
// until it is interrupted.
//
// It is for evaluation only: its development issuer issues tokens to every program on the machine.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sync/errgroup"

	"deputy.example/deputy/internal/version"
	"deputy.example/deputy/server/embedded"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // a closed terminal ends it too
	defer stop()
	// A second Ctrl-C does not wait for the drain.
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "deputy-embedded:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	config := embedded.Config{CLI: cli()}
	flags := flag.NewFlagSet("deputy-embedded", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&config.Dir, "data", "deputy-data", "`folder` of ledger, relationships and keys; created if missing, used by one process at a time")
	flags.StringVar(&config.GRPC, "grpc", "127.0.0.1:9090", "loopback `address` of the gRPC API")
	flags.StringVar(&config.HTTP, "http", "127.0.0.1:8080", "loopback `address` of the OAuth endpoints, and the issuer of tokens")
	flags.StringVar(&config.Ops, "ops", "127.0.0.1:9091", "loopback `address` of health and metrics")
	flags.StringVar(&config.Dev, "dev", "127.0.0.1:8081", "loopback `address` of the development issuer and OpenFGA")
	demo := flags.Bool("demo", true, "play the demo chain before serving")
	verbose := flags.Bool("verbose", false, "log everything, not only errors")
	showVersion := flags.Bool("version", false, "print the version, the commit and the version of Go")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is not a flag; see --help", flags.Arg(0))
	}
	if *showVersion {
		_, err := fmt.Fprintln(stdout, version.Of("deputy-embedded"))
		return err
	}
	level := slog.LevelError
	if *verbose {
		level = slog.LevelDebug
	}
	config.Logger = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))

	e, err := embedded.New(ctx, config)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return e.Run(ctx) })
	if *demo {
		group.Go(func() error {
			if err := e.Demo(ctx, stdout); ctx.Err() == nil {
				return err
			}
			return nil // interrupted: no error of the demo
		})
	}
	return group.Wait()
}

// cli finds the command line beside this program, where make run puts it.
func cli() string {
	self, err := os.Executable()
	if err != nil {
		return "deputy"
	}
	beside := filepath.Join(filepath.Dir(self), "deputy")
	if _, err := os.Stat(beside); err != nil {
		return "deputy"
	}
	here, err := os.Getwd()
	if err != nil {
		return beside
	}
	relative, err := filepath.Rel(here, beside)
	switch {
	case err != nil || len(relative) > len(beside):
		return beside
	case filepath.Base(relative) == relative:
		return "./" + relative // the shell looks up a bare name in PATH
	}
	return relative
}
