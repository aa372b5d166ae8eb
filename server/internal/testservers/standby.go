package testservers

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Standby starts a hot standby that follows the server by streaming replication, and ends it with the test. With
// synchronous, commits of the primary wait for it from now on.
func (p *PostgresServer) Standby(t testing.TB, name string, synchronous bool) *PostgresServer {
	t.Helper()
	standby := p.copied(t, "-R", "-d", fmt.Sprintf("host=127.0.0.1 port=%d user=deputy application_name=%s", p.s.port, name))
	if synchronous {
		p.Exec(t, "ALTER SYSTEM SET synchronous_standby_names = '"+name+"'")
		p.Exec(t, "SELECT pg_reload_conf()")
	}
	p.await(t, "SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = '"+name+"' AND state = 'streaming'"+
		map[bool]string{true: " AND sync_state = 'sync'"}[synchronous])
	return standby
}

// Backup starts a server from a copy of this one as it is now, which goes on by itself on the same timeline: as a backup
// that is restored without an archive.
func (p *PostgresServer) Backup(t testing.TB) *PostgresServer {
	t.Helper()
	return p.copied(t, "-d", fmt.Sprintf("host=127.0.0.1 port=%d user=deputy", p.s.port))
}

func (p *PostgresServer) copied(t testing.TB, args ...string) *PostgresServer {
	t.Helper()
	bin, err := postgresBin()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := tempDir(p.s.cred)
	if err != nil {
		t.Fatal(err)
	}
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	backup := exec.Command(filepath.Join(bin, "pg_basebackup"), append([]string{"-D", data, "-X", "stream", "-c", "fast", "--no-sync"}, args...)...)
	backup.Dir, backup.Env, backup.SysProcAttr = dir, environment(), processAttributes(p.s.cred)
	if out, err := backup.CombinedOutput(); err != nil {
		_ = os.RemoveAll(dir)
		t.Fatalf("pg_basebackup: %v\n%s", err, out)
	}
	c := &PostgresServer{t: t}
	c.s = &server{
		name: "postgres", dir: dir, port: port, cred: p.s.cred, quit: syscall.SIGINT,
		argv:  append([]string{filepath.Join(bin, "postgres"), "-D", data, "-p", strconv.Itoa(port)}, p.s.argv[5:]...),
		ready: func() error { return c.exec("SELECT 1") },
	}
	if err := c.s.start(); err != nil {
		c.s.remove()
		t.Fatal(err)
	}
	t.Cleanup(c.s.remove)
	c.DSN = c.dsn("deputy")
	return c
}

// Promote has a standby take writes, and returns when it does.
func (p *PostgresServer) Promote(t testing.TB) {
	t.Helper()
	p.Exec(t, "SELECT pg_promote()")
}

// Replicated returns when all standbys have replayed what the primary has.
func (p *PostgresServer) Replicated(t testing.TB) {
	t.Helper()
	p.await(t, "SELECT bool_and(replay_lsn >= pg_current_wal_lsn()) FROM pg_stat_replication")
}

// Exec runs one statement in the database "deputy".
func (p *PostgresServer) Exec(t testing.TB, sql string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.dsn("deputy"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql); err != nil {
		t.Fatal(err)
	}
}

// await returns when a statement is true.
func (p *PostgresServer) await(t testing.TB, sql string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.dsn("deputy"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	for {
		var yes *bool
		if err := conn.QueryRow(ctx, sql).Scan(&yes); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		if yes != nil && *yes {
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s: never", sql)
		}
	}
}
