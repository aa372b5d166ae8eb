package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"deputy.example/deputy/client/internal/deputytest"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// TestEveryOutputIsInert: no text from outside controls a terminal, an editor or a log viewer,
// whichever command shows it and wherever its output goes. An export can still be verified.
func TestEveryOutputIsInert(t *testing.T) {
	const hostile = "a\u202e\u2066b\x1b[2J\u009b\u0085\u2028\U000e0041\r\n=c"
	var lies atomic.Bool // about checkpoints
	s, foreign := deputytest.Start(grpc.UnaryInterceptor(func(ctx context.Context, r any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		response, err := next(ctx, r)
		if head, ok := response.(*deputyv1.GetCheckpointResponse); ok && lies.Load() {
			head.Checkpoint += "\u202e\n"
		}
		return response, err
	})), deputytest.Start()
	defer s.Close()
	defer foreign.Close()
	t.Chdir(t.TempDir())
	if err := writeFiles(".", s, foreign); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"DEPUTY_ADDR": s.Address, "DEPUTY_ISSUER": s.Issuer, "DEPUTY_PLAINTEXT": "true", "DEPUTY_CLIENT_ID": "planner", "DEPUTY_CLIENT_KEY": "planner.pem",
	} {
		t.Setenv(name, value)
	}
	deputy := func(stdin string, args ...string) (string, string, int) {
		var stdout, stderr bytes.Buffer
		code := run(args, &app{stdin: strings.NewReader(stdin), stdout: newPrinter(&stdout, false), stderr: newPrinter(&stderr, false), now: time.Now})
		return stdout.String(), stderr.String(), code
	}
	granted := &deputyv1.Entry{
		Kind: deputyv1.EntryKind_ENTRY_KIND_GRANT, Outcome: deputyv1.EntryOutcome_ENTRY_OUTCOME_GRANTED, Jti: "jti-1", Txn: "txn" + hostile, Root: "9f2c" + hostile,
		Subject: "user:alice", Actor: "agent:reader", Caller: "agent:reader", Actors: []string{"agent:reader"}, Audience: []string{hostile},
		Peer: hostile, Detail: hostile, ModelId: hostile, TraceId: hostile, Key: hostile, ActorProof: hostile,
	}
	refused := &deputyv1.Entry{
		Kind: deputyv1.EntryKind_ENTRY_KIND_REFUSAL, Outcome: deputyv1.EntryOutcome_ENTRY_OUTCOME_REFUSED, Reason: "access_denied" + hostile, Caller: "agent:reader",
		Detail: hostile, Peer: hostile, Audience: []string{hostile},
	}
	s.Record(granted)
	s.Record(refused)
	for _, args := range [][]string{
		{"search"}, {"search", "--csv"}, {"search", "--json"}, {"chain", "jti-1"}, {"chain", "jti-1", "--json"}, {"tree", "jti-1"}, {"tree", "jti-1", "--json"},
		{"log", "export"}, {"log", "export", "--ocsf"}, {"reach", "agent:reader"}, {"reach", "agent:reader", "--json"},
		{"log", "prove", "jti-1"}, {"search", "--no" + hostile}, {"contain", "agent:" + hostile},
	} {
		stdout, stderr, _ := deputy("", args...)
		for _, r := range stdout + stderr {
			if r != '\n' && (r < 0x20 || 0x7f <= r && r < 0xa0 || r == 0x85 || 0x2028 <= r && r <= 0x202e || 0x2060 <= r && r <= 0x206f || r > 0xffff) {
				t.Errorf("%q: %U gets through", args, r)
			}
		}
		if !strings.Contains(stdout+stderr, `\u202e`) && args[0] != "reach" && args[0] != "tree" && args[0] != "contain" {
			t.Errorf("%q does not show the text that it should make inert: %s%s", args, stdout, stderr)
		}
	}

	export, _, _ := deputy("", "log", "export")
	checkpoint, _, _ := deputy("", "log", "checkpoint", "--key", "log.vkey")
	if err := os.WriteFile("checkpoint", []byte(checkpoint), 0o600); err != nil {
		t.Fatal(err)
	}
	if stdout, stderr, _ := deputy(export, "log", "verify", "-", "--key", "log.vkey", "--checkpoint", "checkpoint"); strings.Contains(stdout+stderr, "digest") {
		t.Errorf("an inert export is not what was recorded: %s%s", stdout, stderr)
	}

	// A signature covers bytes: a checkpoint that would need escapes is not written.
	lies.Store(true)
	if stdout, _, code := deputy("", "log", "checkpoint"); code == 0 || strings.Contains(stdout, "\u202e") {
		t.Errorf("a checkpoint that is not printable: code %d, %q", code, stdout)
	}
}
