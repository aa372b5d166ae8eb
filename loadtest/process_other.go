//go:build !linux

package main

import "syscall"

func attributes(a *syscall.SysProcAttr) *syscall.SysProcAttr { return a }
