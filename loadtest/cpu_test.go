package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	tail := " S 41 7 7 0 -1 4194304 500 0 0 0 250 50 30 20 20 0 1 0 100 1000 100 18446744073709551615"
	for _, name := range []string{"postgres", "a b", "x) S 1 (y", ""} {
		got, err := parseStat("7 (" + name + ")" + tail)
		want := times{parent: 41, own: 3 * time.Second, waited: 500 * time.Millisecond}
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", name, got, err)
		}
	}
	for _, line := range []string{"", "7 postgres S 1", "7 (x) S 1 2 3", "7 (x)" + strings.Replace(tail, " 250 ", " many ", 1)} {
		if _, err := parseStat(line); err == nil {
			t.Errorf("%q was read", line)
		}
	}
}

// writeStat puts a process into a folder in place of /proc.
func writeStat(t *testing.T, proc string, pid, parent, own, waited int) {
	t.Helper()
	dir := filepath.Join(proc, fmt.Sprint(pid))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf("%d (postgres) S %d 0 0 0 -1 0 0 0 0 0 %d 0 %d 0 20 0 1 0 100 0 0 0", pid, parent, own, waited)
	if err := os.WriteFile(filepath.Join(dir, "stat"), []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSessionsThatComeAndGoAreCounted(t *testing.T) {
	proc := t.TempDir()
	read := func() time.Duration {
		t.Helper()
		totals, err := cpuTimes(proc, map[string]int{"postgres": 10})
		if err != nil {
			t.Fatal(err)
		}
		return totals["postgres"]
	}
	writeStat(t, proc, 1, 0, 999, 0)
	writeStat(t, proc, 10, 1, 100, 0)
	writeStat(t, proc, 11, 10, 50, 0)
	writeStat(t, proc, 12, 10, 70, 0)
	writeStat(t, proc, 99, 1, 500, 0) // an unrelated process
	if got := read(); got != 220*clockTick {
		t.Errorf("with two sessions: %v", got)
	}
	// A session ends: its parent waits for it and has its time now.
	if err := os.RemoveAll(filepath.Join(proc, "12")); err != nil {
		t.Fatal(err)
	}
	writeStat(t, proc, 10, 1, 100, 75)
	if got := read(); got != 225*clockTick {
		t.Errorf("after one has ended: %v", got)
	}
	if _, err := cpuTimes(proc, map[string]int{"redis-server": 77}); err == nil {
		t.Error("the time of a process that is not there")
	}
}

// The CPU time of a child that works and ends must match the kernel's figures.
func TestTheKernelCountsWhoHasEnded(t *testing.T) {
	before, err := cpuTimes("/proc", map[string]int{"self": os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; times").Output(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	after, err := cpuTimes("/proc", map[string]int{"self": os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	if spent := after["self"] - before["self"]; spent < 50*time.Millisecond {
		t.Errorf("a child that counted to 300,000 and ended is worth %v", spent)
	}
}
