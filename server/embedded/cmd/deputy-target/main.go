// Command deputy-target provides the processes that loadtest measures and no other binary provides.
// They are OpenFGA in a process of its own, Deputy with OpenFGA in one process and without a Redis, but with
// its own configuration file (the world of the embedded deployment is too small to measure), and
// deputyd with a profiler.
//
// It is for measuring. Its OpenFGA and its profiler serve every caller, so both listen on loopback
// only.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"deputy.example/deputy/server"
	"deputy.example/deputy/server/embedded"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "deputy-target:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdin io.Reader, stderr io.Writer) error {
	flags := flag.NewFlagSet("deputy-target openfga|embedded|deputyd", flag.ContinueOnError)
	flags.SetOutput(stderr)
	config := flags.String("config", "", "configuration `file` of deputyd; embedded reads the file's name from standard input")
	openFGA := flags.String("openfga", "", "loopback `address` of OpenFGA's HTTP API")
	profiler := flags.String("pprof", "", "loopback `address` of net/http/pprof; none if empty")
	if len(args) == 0 {
		flags.Usage()
		return errors.New("the first argument must be openfga, embedded or deputyd")
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	if *profiler != "" {
		group.Go(func() error { return serve(ctx, *profiler, profiles()) })
	}
	switch args[0] {
	case "openfga", "embedded":
		fga, err := embedded.NewFGA(ctx)
		if err != nil {
			return err
		}
		defer fga.Close()
		group.Go(func() error { return serve(ctx, *openFGA, fga) })
		if args[0] == "embedded" {
			group.Go(func() error { return inOneProcess(ctx, fga, stdin) })
		}
	case "deputyd":
		group.Go(func() error {
			settings, err := server.Load(*config)
			if err != nil {
				return err
			}
			return deputy(ctx, settings, server.Options{})
		})
	default:
		return fmt.Errorf("the first argument must be openfga, embedded or deputyd, not %q", args[0])
	}
	return group.Wait()
}

// inOneProcess is Deputy composed like the embedded deployment. It waits for the name of its
// configuration file, whose author first makes the stores through OpenFGA's API.
func inOneProcess(ctx context.Context, fga *embedded.FGA, stdin io.Reader) error {
	name, err := bufio.NewReader(stdin).ReadString('\n')
	if err != nil {
		return fmt.Errorf("standard input: must name a configuration file: %w", err)
	}
	name = strings.TrimSuffix(name, "\n")
	settings, err := server.Load(name)
	if err != nil {
		return err
	}
	settings.Redis = server.Redis{InProcess: true}
	if err := server.Migrate(ctx, settings.Database); err != nil {
		return err
	}
	return deputy(ctx, settings, server.Options{PolicyTransport: fga})
}

func deputy(ctx context.Context, settings server.Config, options server.Options) error {
	s, err := server.New(ctx, settings, options)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// profiles are those of net/http/pprof, on a mux of their own.
func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	return mux
}

// serve serves until ctx is done, on a loopback address only.
func serve(ctx context.Context, address string, handler http.Handler) error {
	host, _, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("the address must be a loopback address, not %q", address)
	}
	s := &http.Server{Addr: address, Handler: handler, ReadHeaderTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
