package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// process is a server that this program started. It ends with this program, however that ends.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string // file of its output
	quit syscall.Signal

	began time.Time
	gone  chan struct{} // closed when it has ended
}

// start launches a command that works in dir, unless cmd names a directory. Its output goes to a
// file in dir.
func start(name, dir string, cmd *exec.Cmd) (*process, error) {
	p := &process{name: name, cmd: cmd, log: filepath.Join(dir, name+".log"), quit: syscall.SIGTERM, gone: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own descriptor
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	cmd.Stderr = log
	if cmd.Dir == "" {
		cmd.Dir = dir
	}
	cmd.SysProcAttr = attributes(cmd.SysProcAttr)
	p.began = time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		_ = cmd.Wait() // its log holds the reason
		close(p.gone)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop signals the process to end, and kills it if it does not.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(p.quit) // it may have ended by itself
	select {
	case <-p.gone:
		return nil
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.gone
		return fmt.Errorf("%s did not end after its signal", p.name)
	}
}

const readyWithin = 2 * time.Minute

// await polls until the process is ready, it has ended, or too much time has passed.
func (p *process) await(ctx context.Context, every time.Duration, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-p.gone:
			err = errors.New("it ended")
		case <-ctx.Done():
		case <-time.After(every):
			continue
		}
		said, _ := os.ReadFile(p.log)
		return fmt.Errorf("%s is not ready: %w\n%s", p.name, err, lastLines(string(said), 20))
	}
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// get requests an address and requires status 200.
func get(ctx context.Context, address string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	request.Close = true
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return body, err
}

// freeAddress is a loopback address without a listener, with a port below those that the kernel
// gives to outgoing connections.
func freeAddress() (string, error) {
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000))
		if l, err := net.Listen("tcp", address); err == nil {
			return address, l.Close()
		}
	}
	return "", errors.New("no free port")
}

// reachable returns whether the address accepts connections.
func reachable(address string) error {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return err
	}
	return c.Close()
}
