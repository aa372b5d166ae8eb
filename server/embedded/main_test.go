package embedded

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// The test binary is also the process that a test kills: these variables name its data directory and
// its HTTP address.
const (
	beEmbedded   = "DEPUTY_TEST_EMBEDDED"
	embeddedHTTP = "DEPUTY_TEST_EMBEDDED_HTTP"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(beEmbedded); dir != "" {
		fmt.Fprintln(os.Stderr, serveUntilKilled(context.Background(), dir, os.Getenv(embeddedHTTP)))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// serveUntilKilled is deputy-embedded without the demo. It prints its HTTP address and the address of
// its store.
func serveUntilKilled(ctx context.Context, dir, http string) error {
	e, err := New(ctx, Config{Dir: dir, GRPC: "127.0.0.1:0", HTTP: http, Ops: "127.0.0.1:0", Dev: "127.0.0.1:0"})
	if err != nil {
		return err
	}
	fmt.Println(e.config.HTTP, e.devAddress()+"/openfga/stores/"+e.store)
	return e.Run(ctx)
}
