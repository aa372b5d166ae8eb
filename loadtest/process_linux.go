package main

import "syscall"

// attributes make the kernel end a process with this one, and keep the terminal's Ctrl-C away from
// it. The kernel watches the thread that forked; Go ends a thread only when a goroutine locked to
// it returns, and nothing here locks one.
func attributes(a *syscall.SysProcAttr) *syscall.SysProcAttr {
	if a == nil {
		a = new(syscall.SysProcAttr)
	}
	a.Pdeathsig, a.Setpgid = syscall.SIGKILL, true
	return a
}
