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

// memory is a file system in memory that Linux has on every machine, though in containers it is often small.
const memory = "/dev/shm"

// memoryFree is the number of bytes that memory can still hold.
func memoryFree() uint64 {
	const tmpfs = 0x01021994
	var fs syscall.Statfs_t
	if err := syscall.Statfs(memory, &fs); err != nil || fs.Type != tmpfs {
		return 0
	}
	return fs.Bavail * uint64(fs.Bsize)
}
