package e2e

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"deputy.example/deputy/server"
	"deputy.example/deputy/server/internal/testservers"
)

// The test binary is also the deputyd and the OpenFGA that a test runs as processes of their own.
// One of these variables selects the program of a child, so that nothing else needs to be built.
const (
	beDeputyd = "DEPUTY_E2E_DEPUTYD" // the configuration file
	beOpenFGA = "DEPUTY_E2E_OPENFGA" // the address to listen on
)

func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch {
	case os.Getenv(beDeputyd) != "":
		exit(deputyd(ctx, os.Getenv(beDeputyd)))
	case os.Getenv(beOpenFGA) != "":
		exit(openFGA(ctx, os.Getenv(beOpenFGA)))
	}
	// This process reads the system's authorities once. The authority must exist before the first
	// TLS connection of a client without a setting for it.
	roots, err := newAuthority()
	if err != nil {
		exit(err)
	}
	stop()
	goleak.VerifyTestMain(testservers.Main(m), goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(roots)
		os.Exit(code)
	}))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// deputyd does what the binary's serve command does.
func deputyd(ctx context.Context, file string) error {
	config, err := server.Load(file)
	if err != nil {
		return err
	}
	s, err := server.New(ctx, config, server.Options{})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}
