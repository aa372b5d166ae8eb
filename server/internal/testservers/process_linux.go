package testservers

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// processAttributes makes the kernel kill a server when the test binary dies. The kernel watches
// the thread that forked; Go ends a thread only when a goroutine that is locked to it returns,
// and nothing here locks one. A process group of its own keeps the terminal's Ctrl-C away, so
// that the tests see an end that they chose.
func processAttributes(cred *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true, Credential: cred}
}

func childrenOf(pid int) []int {
	list, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	var children []int
	for _, f := range strings.Fields(string(list)) {
		if child, err := strconv.Atoi(f); err == nil {
			children = append(children, child)
		}
	}
	return children
}
