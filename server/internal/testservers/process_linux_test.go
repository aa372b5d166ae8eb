package testservers

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestKilledBinaryLeavesNoServer kills a test binary that has started both servers. Its third
// process, started the ordinary way, is the control: it must survive, or the servers' end would
// prove nothing.
func TestKilledBinaryLeavesNoServer(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TESTSERVERS_VICTIM=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var redis, postgres, control int
	line, err := bufio.NewReader(out).ReadString('\n')
	if _, scanErr := fmt.Sscan(line, &redis, &postgres, &control); err != nil || scanErr != nil {
		t.Fatalf("the victim said %q: %v", line, errors.Join(err, scanErr))
	}
	defer syscall.Kill(control, syscall.SIGKILL)
	if !alive(redis) || !alive(postgres) {
		t.Fatal("the servers are not there to begin with")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()

	deadline := time.Now().Add(10 * time.Second)
	for alive(redis) || alive(postgres) {
		if time.Now().After(deadline) {
			t.Fatalf("still alive: redis-server %v, postgres %v", alive(redis), alive(postgres))
		}
		<-time.After(10 * time.Millisecond)
	}
	if !alive(control) {
		t.Error("the ordinary child has died too: the check cannot fail")
	}

	if _, err := tempDir(nil); err != nil { // the next start removes what the victim left
		t.Fatal(err)
	}
	left, _ := filepath.Glob(filepath.Join(parent(), dirPrefix+strconv.Itoa(cmd.Process.Pid)+"-*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	own, _ := filepath.Glob(filepath.Join(parent(), dirPrefix+strconv.Itoa(os.Getpid())+"-*"))
	for _, dir := range own {
		_ = os.Remove(dir) // only the empty one from above
	}
}

// alive takes a zombie, which waits only for a parent to collect it, for dead.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, found := strings.Cut(string(stat), ") ")
	return err == nil && found && state[0] != 'Z'
}
