package server

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"deputy.example/deputy/server/internal/testservers"
)

func TestMain(m *testing.M) {
	if os.Getenv(benchCallersVariable) != "" {
		if err := benchCallers(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(testservers.Main(m))
}
