package testservers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

// PostgresServer is a PostgreSQL server of the test's own, with full durability: fsync and
// synchronous_commit are on, and what was committed survives Kill.
type PostgresServer struct {
	DSN string // of the database "deputy", as its superuser, without a password
	t   testing.TB
	s   *server
	n   int // databases created so far
}

// shared is the one server behind Postgres. It belongs to the test binary, not to a test.
var shared struct {
	mu       sync.Mutex
	postgres *PostgresServer
	template bool // the database "template" is prepared
	willStop bool // TestMain has called Main
}

// Postgres returns the DSN of an empty database that only this test uses, on a server that the
// tests of this binary share. The package's TestMain must call Main.
func Postgres(t testing.TB) (dsn string) {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	return sharedPostgres(t).database(t, "template1")
}

// PostgresLike returns the DSN of a database that only this test uses: a copy of one that prepare has made on the server
// of Postgres. All calls of a test binary give the same prepare, which runs once.
func PostgresLike(t testing.TB, prepare func(ctx context.Context, dsn string) error) (dsn string) {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	p := sharedPostgres(t)
	const template = "template"
	if !shared.template {
		err := p.exec("CREATE DATABASE " + template)
		if err == nil {
			err = prepare(t.Context(), p.dsn(template))
		}
		if err != nil {
			t.Fatal(err)
		}
		shared.template = true
	}
	return p.database(t, template)
}

// sharedPostgres is the server of Postgres and PostgresLike, which both hold the lock.
func sharedPostgres(t testing.TB) *PostgresServer {
	t.Helper()
	if !shared.willStop {
		t.Fatal("testservers.Postgres needs a TestMain that calls testservers.Main, which stops the server")
	}
	if shared.postgres == nil {
		p, err := newPostgres()
		if err != nil {
			t.Fatal(err)
		}
		shared.postgres = p
	}
	return shared.postgres
}

// database makes a database of the test's own, as a copy of another one that has no connections.
func (p *PostgresServer) database(t testing.TB, template string) (dsn string) {
	t.Helper()
	p.n++
	name := "test" + strconv.Itoa(p.n)
	if err := p.exec("CREATE DATABASE " + name + " TEMPLATE " + template); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.exec("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	return p.dsn(name)
}

func stopShared() {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.postgres != nil {
		shared.postgres.s.remove()
		shared.postgres, shared.template = nil, false
	}
}

// NewPostgres starts a PostgreSQL server for this test, and ends it with the test.
func NewPostgres(t testing.TB) *PostgresServer {
	t.Helper()
	p, err := newPostgres()
	if err != nil {
		t.Fatal(err)
	}
	p.t = t
	t.Cleanup(p.s.remove)
	return p
}

func newPostgres() (*PostgresServer, error) {
	bin, err := postgresBin()
	if err != nil {
		return nil, err
	}
	cred, err := unprivileged()
	if err != nil {
		return nil, err
	}
	dir, err := tempDir(cred)
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "deputy", "-A", "trust",
		"-E", "UTF8", "--locale=C", "--no-sync") // an empty cluster needs no durability
	initdb.Dir, initdb.Env, initdb.SysProcAttr = dir, environment(), processAttributes(cred)
	if out, err := initdb.CombinedOutput(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}

	p := &PostgresServer{}
	p.s = &server{
		name: "postgres", dir: dir, port: port, cred: cred, quit: syscall.SIGINT, // "fast" shutdown
		argv: []string{filepath.Join(bin, "postgres"), "-D", data, "-p", strconv.Itoa(port),
			"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
			"-c", "fsync=on", "-c", "synchronous_commit=on", "-c", "full_page_writes=on",
			"-c", "shared_buffers=32MB", "-c", "max_connections=200"},
		ready: func() error { return p.exec("SELECT 1") },
	}
	if err := p.s.start(); err != nil {
		p.s.remove()
		return nil, err
	}
	if err := p.exec("CREATE DATABASE deputy"); err != nil {
		p.s.remove()
		return nil, err
	}
	p.DSN = p.dsn("deputy")
	return p, nil
}

// Stop ends the server in order; open connections are closed.
func (p *PostgresServer) Stop() { p.s.stop(p.s.quit) }

// Kill ends the server and all its sessions with SIGKILL.
func (p *PostgresServer) Kill() { p.s.stop(syscall.SIGKILL) }

// Pause freezes the server and its sessions with SIGSTOP: connections stay open, nothing answers.
func (p *PostgresServer) Pause() { p.s.pause(true) }

// Resume ends a Pause.
func (p *PostgresServer) Resume() { p.s.pause(false) }

// Start starts a stopped or killed server on the same address and data, and returns when it
// answers.
func (p *PostgresServer) Start() {
	p.t.Helper()
	if err := p.s.start(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *PostgresServer) dsn(database string) string {
	return fmt.Sprintf("postgres://deputy@127.0.0.1:%d/%s?sslmode=disable", p.s.port, database)
}

// exec runs one statement on a connection of its own to the maintenance database.
func (p *PostgresServer) exec(sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.dsn("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

// postgresBin finds the folder of initdb and postgres: Debian's newest, else the one in PATH.
func postgresBin() (string, error) {
	debian, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	if len(debian) > 0 {
		return filepath.Dir(slices.MaxFunc(debian, func(a, b string) int { return version(a) - version(b) })), nil
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	return "", errors.New("PostgreSQL is missing: run tools/install-test-deps, or install Debian's package postgresql")
}

// unprivileged names the user for PostgreSQL, which refuses to run as root; nil if the tests
// don't run as root themselves.
func unprivileged() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(uidErr, gidErr); err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("the tests run as root, PostgreSQL refuses to, and no user postgres or nobody exists")
}
