// Package testservers starts real Redis and PostgreSQL servers for tests, and for tests only.
//
// It owns the processes: each runs on a free loopback port in a temporary directory of its own, and
// none outlives the test binary, however that ends. It does not depend on Deputy. Servers that
// already run on the machine are neither used nor touched. A missing program fails the test with a
// message that names the package to install; the test is never skipped.
//
// Redis and Postgres give an address for ordinary tests. NewRedis and NewPostgres give a server
// that a fault test may stop, kill and pause.
package testservers

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// startTimeout is generous: it only has to be shorter than a test's own limit, and machines that
// run all packages of a module at once are slow.
const startTimeout = 60 * time.Second

// server is one process of a server program, together with what it takes to start it again.
type server struct {
	name  string
	dir   string // holds data and log, removed by remove
	port  int
	argv  []string
	cred  *syscall.Credential // nil: as the user of the tests
	quit  syscall.Signal      // requests an orderly stop
	ready func() error        // nil error: the server answers requests

	mu     sync.Mutex
	cmd    *exec.Cmd // nil while the server is down
	paused bool
}

// start launches the process and returns when it answers. A process that exits at once is
// launched again until startTimeout: after a SIGKILL, PostgreSQL refuses to start for as long as
// the last of its old processes takes to notice.
func (s *server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		return fmt.Errorf("%s runs already", s.name)
	}
	deadline := time.Now().Add(startTimeout)
	var err error
	for time.Now().Before(deadline) {
		if err = s.launch(); err != nil {
			return err
		}
		if err = s.awaitReady(deadline); err == nil {
			return nil
		}
	}
	if s.cmd != nil {
		s.end(syscall.SIGKILL)
	}
	log, _ := os.ReadFile(s.logPath())
	return fmt.Errorf("%s did not start: %w\n%s", s.name, err, log)
}

func (s *server) logPath() string { return filepath.Join(s.dir, "log") }

func (s *server) launch() error {
	log, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own descriptor
	cmd := exec.Command(s.argv[0], s.argv[1:]...)
	cmd.Dir = s.dir
	cmd.Env = environment()
	// Files, not pipes: copying from a pipe would take a goroutine as long-lived as the server,
	// which the leak checks of the packages under test would report.
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = processAttributes(s.cred)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	s.cmd, s.paused = cmd, false
	return nil
}

// awaitReady leaves s.cmd nil if the process has exited.
func (s *server) awaitReady(deadline time.Time) error {
	for {
		err := s.ready()
		if err == nil {
			return nil
		}
		var status syscall.WaitStatus
		if pid, _ := syscall.Wait4(s.cmd.Process.Pid, &status, syscall.WNOHANG, nil); pid != 0 {
			s.cmd = nil
			<-time.After(50 * time.Millisecond)
			return fmt.Errorf("it exited with status %d", status.ExitStatus())
		}
		if time.Now().After(deadline) {
			return err
		}
		<-time.After(5 * time.Millisecond)
	}
}

// stop ends the process with sig and waits until it is gone. Stopping what is down does nothing.
func (s *server) stop(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	if s.paused && sig != syscall.SIGKILL { // SIGKILL needs no thaw, and no process may answer any more
		s.signal(syscall.SIGCONT)
	}
	s.end(sig)
}

func (s *server) end(sig syscall.Signal) {
	if sig == syscall.SIGKILL {
		s.signal(sig) // its children too: after a crash no process finishes a request
	} else {
		_ = s.cmd.Process.Signal(sig)
	}
	_ = s.cmd.Wait() // its status holds only how it was ended
	s.cmd, s.paused = nil, false
}

// pause freezes (or, with on false, thaws) the process and its children: connections stay open and
// the kernel still accepts new ones, but no process answers.
func (s *server) pause(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	sig := syscall.SIGCONT
	if on {
		sig = syscall.SIGSTOP
	}
	s.signal(sig)
	s.paused = on
}

// signal reaches the process and its children. The parent comes first, so that a stopped or
// killed one starts no further child meanwhile.
func (s *server) signal(sig syscall.Signal) {
	pid := s.cmd.Process.Pid
	children := childrenOf(pid)
	_ = s.cmd.Process.Signal(sig)
	for _, child := range append(children, childrenOf(pid)...) {
		_ = syscall.Kill(child, sig) // it may have ended by itself
	}
}

func (s *server) remove() {
	s.stop(syscall.SIGKILL)
	_ = os.RemoveAll(s.dir)
}

// environment is the test's own without the variables that would steer the servers.
func environment() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PG") {
			env = append(env, kv)
		}
	}
	return env
}

const dirPrefix = "deputy-testserver-"

// Dir returns an empty directory for the files of a database, which is removed after the test. Where the machine has room
// in memory it is there: databases sync every commit, and the disk took more than half of the time of their tests. What a
// test asserts about durability is what remains after a process was killed, and memory keeps that too.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := tempDir(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// room is the free memory that the directories of a test run need. The databases of a full campaign need more than that.
const room = 4 << 30

// parent is where directories of databases are made.
func parent() string {
	if Campaign(1, 0) == 0 && memoryFree() > room {
		return memory
	}
	return os.TempDir()
}

// tempDir makes a directory named after this process, and removes those that killed test
// binaries left behind.
func tempDir(owner *syscall.Credential) (string, error) {
	in := parent()
	stale, _ := filepath.Glob(filepath.Join(in, dirPrefix+"*"))
	for _, dir := range stale {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		if n, err := strconv.Atoi(pid); err == nil && syscall.Kill(n, 0) == syscall.ESRCH {
			_ = os.RemoveAll(dir)
		}
	}
	dir, err := os.MkdirTemp(in, fmt.Sprintf("%s%d-", dirPrefix, os.Getpid()))
	if err != nil {
		return "", err
	}
	if owner != nil {
		err = os.Chown(dir, int(owner.Uid), int(owner.Gid))
	}
	return dir, err
}

// freePort returns a port that was free a moment ago. If another process takes it in between, the
// server exits at once, and the test fails with the server's own output.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// M runs a package's tests and then stops what they shared. Its Run suits os.Exit as well as
// goleak.VerifyTestMain.
type M struct{ tests interface{ Run() int } }

// Main goes into the TestMain of a package that calls Postgres:
//
//	func TestMain(m *testing.M) { os.Exit(testservers.Main(m).Run()) }
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(testservers.Main(m)) }
func Main(m *testing.M) M {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.willStop = true
	return M{m}
}

// Run runs the tests and returns the exit code.
func (m M) Run() int {
	defer stopShared()
	return m.tests.Run()
}
