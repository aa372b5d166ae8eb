//go:build linux || darwin

package ledger_test

import (
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// fullDisk names the database of the process in which files cannot grow.
const fullDisk = "DEPUTY_TEST_FULL_DISK"

// TestFullDisk: an append that the file system refuses is unavailable, acknowledges nothing, and leaves
// nothing half written. Service resumes when there is space. A limit of the process takes the place
// of the full disk, so the test is made in a process of its own.
func TestFullDisk(t *testing.T) {
	if dsn := os.Getenv(fullDisk); dsn != "" {
		onFullDisk(t, dsn)
		return
	}
	dsn := databases["sqlite"](t)
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), own, "-test.run=^TestFullDisk$", "-test.v")
	cmd.Env = append(os.Environ(), fullDisk+"="+dsn)
	if text, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(text), "--- PASS: TestFullDisk") {
		t.Fatalf("%v\n%s", err, text)
	}
	l := opened(t, dsn, ledger.Config{}) // another process finds it whole
	checked(t, l)
}

func onFullDisk(t *testing.T, dsn string) {
	signal.Ignore(syscall.SIGXFSZ) // the write fails instead
	l := opened(t, dsn, ledger.Config{})
	appended(t, l, 3)
	file, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	var grown int64
	for _, name := range []string{file.Path, file.Path + "-wal", file.Path + "-shm"} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		grown = max(grown, info.Size())
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	set := func(soft uint64) {
		t.Helper()
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: soft, Max: limit.Max}); err != nil {
			t.Fatal(err)
		}
	}
	set(uint64(grown) + 6000) // a page and a half of the log: the write ends in the middle
	var acknowledged uint64
	refused := 0
	for range 200 {
		r, err := l.Append(t.Context(), tenant, everything())
		switch {
		case err == nil:
			acknowledged = max(acknowledged, r.Seq)
		case reason(err) != delegation.DependencyDown:
			t.Fatalf("on a full disk: %v", err)
		default:
			refused++
		}
		if refused == 3 {
			break
		}
	}
	if refused != 3 {
		t.Fatalf("%d appends were refused: the disk is not full", refused)
	}
	revocation := ledger.Draft{Kind: ledger.KindRevocation, Caller: "user:rita", Revocation: &delegation.Revocation{
		Target: delegation.Target{Kind: delegation.BanSuspend, ID: "agent:rogue"},
	}}
	if r, err := l.Append(t.Context(), tenant, &revocation); reason(err) != delegation.DependencyDown {
		t.Errorf("a revocation on a full disk: %+v, %v", r, err)
	}
	acknowledged = max(acknowledged, 3)
	set(limit.Cur)
	recovers(t, l)
	next, err := l.EntryAt(t.Context(), tenant, acknowledged+1)
	if err != nil || next.Kind == ledger.KindRevocation {
		t.Errorf("entry %d, after the disk was full: %+v, %v", acknowledged+1, next, err)
	}
	if _, err := l.EntryAt(t.Context(), tenant, acknowledged+2); err == nil {
		t.Error("what was refused is recorded")
	}
}
