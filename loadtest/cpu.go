package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of times in /proc: USER_HZ is 100 on every architecture that Go runs Linux
// on.
const clockTick = 10 * time.Millisecond

// times are the fields of /proc/PID/stat of one process (proc_pid_stat(5)).
type times struct {
	parent int
	own    time.Duration // of the process, its ended threads included
	waited time.Duration // of its children that ended and were waited for, and of theirs
}

// parseStat reads one line. The command's name is in parentheses and may hold anything, parentheses
// and spaces too.
func parseStat(line string) (times, error) {
	end := strings.LastIndexByte(line, ')')
	if end < 0 {
		return times{}, errors.New("no command name in it")
	}
	fields := strings.Fields(line[end+1:]) // from the third on: state, ppid, …
	if len(fields) < 15 {
		return times{}, fmt.Errorf("it ends after %d fields", len(fields)+2)
	}
	var n [5]int64
	for i, field := range []string{fields[1], fields[11], fields[12], fields[13], fields[14]} { // ppid utime stime cutime cstime
		var err error
		if n[i], err = strconv.ParseInt(field, 10, 64); err != nil {
			return times{}, err
		}
	}
	return times{
		parent: int(n[0]), own: time.Duration(n[1]+n[2]) * clockTick, waited: time.Duration(n[3]+n[4]) * clockTick,
	}, nil
}

// readProcesses reads /proc, or a folder with the same structure.
func readProcesses(proc string) (map[int]times, error) {
	files, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "stat"))
	if err != nil {
		return nil, err
	}
	all := make(map[int]times, len(files))
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err != nil {
			continue // it ended meanwhile
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			continue
		}
		if all[pid], err = parseStat(string(line)); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	return all, nil
}

// tree adds up a process and everything below it, whether it still runs or has ended: PostgreSQL
// has one process for each session. What ended counts where it was waited for.
func tree(all map[int]times, root int) (total time.Duration, found bool) {
	self, found := all[root]
	if !found {
		return 0, false
	}
	total = self.own + self.waited
	for pid, t := range all {
		if t.parent == root && pid != root {
			below, _ := tree(all, pid)
			total += below
		}
	}
	return total, true
}

// cpuTimes returns the CPU time of each process and of its children since it began. A child that
// ends between two files of one reading is counted twice or not at all. So readings are repeated
// until two agree on the processes and their waited-for children.
func cpuTimes(proc string, processes map[string]int) (map[string]time.Duration, error) {
	last, err := readProcesses(proc)
	if err != nil {
		return nil, err
	}
	for range 20 {
		now, err := readProcesses(proc)
		if err != nil {
			return nil, err
		}
		if same(last, now, processes) {
			totals := make(map[string]time.Duration, len(processes))
			for name, pid := range processes {
				total, found := tree(now, pid)
				if !found {
					return nil, fmt.Errorf("%s (process %d) has ended", name, pid)
				}
				totals[name] = total
			}
			return totals, nil
		}
		last = now
	}
	return nil, errors.New("processes come and go faster than their times can be read")
}

// same returns whether the same processes below the given ones exist, and none was waited for in
// between.
func same(a, b map[int]times, roots map[string]int) bool {
	for _, root := range roots {
		if !sameTree(a, b, root) {
			return false
		}
	}
	return true
}

func sameTree(a, b map[int]times, root int) bool {
	_, inA := a[root]
	_, inB := b[root]
	if inA != inB || a[root].waited != b[root].waited {
		return false
	}
	children := make(map[int]bool)
	for pid, t := range a {
		if t.parent == root && pid != root {
			children[pid] = true
		}
	}
	for pid, t := range b {
		if t.parent == root && pid != root {
			if !children[pid] || !sameTree(a, b, pid) {
				return false
			}
			delete(children, pid)
		}
	}
	return len(children) == 0
}
