//go:build !linux

package testservers

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// processAttributes cannot tie a server's life to the test binary's here: one that is killed
// leaves its servers behind.
func processAttributes(cred *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: cred}
}

func childrenOf(pid int) []int {
	list, _ := exec.Command("pgrep", "-P", strconv.Itoa(pid)).Output() // fails if there are none
	var children []int
	for _, f := range strings.Fields(string(list)) {
		if child, err := strconv.Atoi(f); err == nil {
			children = append(children, child)
		}
	}
	return children
}

// No file system in memory is known here.
const memory = ""

func memoryFree() uint64 { return 0 }
