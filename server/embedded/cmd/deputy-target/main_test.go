package main

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// OpenFGA decides what is permitted, and a profiler reveals the memory: both serve loopback only.
func TestServesLoopbackOnly(t *testing.T) {
	for _, args := range [][]string{
		{"openfga", "--openfga", "0.0.0.0:0"}, {"openfga", "--openfga", ":0"}, {"openfga", "--openfga", "localhost.example:0"}, {"openfga"},
		{"deputyd", "--pprof", "192.0.2.1:0", "--config", "missing"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // ends what should never have started
		if err := run(ctx, args, strings.NewReader(""), io.Discard); err == nil {
			t.Errorf("%q was served", args)
		}
		cancel()
	}
	// The control: without the bad address, the last of them gets as far as its configuration.
	if err := run(t.Context(), []string{"deputyd", "--config", "missing"}, nil, io.Discard); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("without a profiler: %v", err)
	}
}

func TestRefusesAnUnknownRole(t *testing.T) {
	for _, args := range [][]string{nil, {"serve"}, {"embedded", "--openfga", "127.0.0.1:0"}} {
		if err := run(t.Context(), args, strings.NewReader(""), io.Discard); err == nil {
			t.Errorf("%q ran", args)
		}
	}
}
