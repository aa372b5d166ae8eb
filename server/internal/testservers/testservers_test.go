package testservers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv("TESTSERVERS_VICTIM") != "" {
		victim()
	}
	goleak.VerifyTestMain(Main(m))
}

func TestRedisLosesEverythingAndReturns(t *testing.T) {
	r := NewRedis(t)
	for _, end := range []func(){r.Stop, r.Kill} {
		end()
		if err := pingRedis(r.Addr); err == nil {
			t.Fatal("a stopped server answers")
		}
		r.Start()
		if err := pingRedis(r.Addr); err != nil {
			t.Fatal(err)
		}
	}
	r.Pause()
	var timeout interface{ Timeout() bool }
	if err := pingRedis(r.Addr); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("a paused server: got %v, want a timeout", err)
	}
	r.Resume()
	if err := pingRedis(r.Addr); err != nil {
		t.Fatal(err)
	}
	r.Pause() // the end of the test must cope with a paused server
}

func TestEachRedisIsItsOwn(t *testing.T) {
	if a, b := Redis(t), Redis(t); a == b {
		t.Fatalf("both are %s", a)
	}
}

func TestPostgresKeepsWhatWasCommitted(t *testing.T) {
	p := NewPostgres(t)
	query(t, p.DSN, "CREATE TABLE kept AS SELECT 42 AS n")
	for _, end := range []func(){p.Stop, p.Kill} {
		end()
		if _, err := pgx.Connect(t.Context(), p.DSN); err == nil {
			t.Fatal("a stopped server accepts a connection")
		}
		p.Start()
		if got := query(t, p.DSN, "SELECT n FROM kept"); got != "42" {
			t.Fatalf("after the restart: n = %s", got)
		}
	}
	for _, setting := range []string{"fsync", "synchronous_commit", "full_page_writes"} {
		if got := query(t, p.DSN, "SHOW "+setting); got != "on" {
			t.Errorf("%s is %s", setting, got)
		}
	}
}

func TestPausedPostgresFreezesOpenSessions(t *testing.T) {
	p := NewPostgres(t)
	conn, err := pgx.Connect(t.Context(), p.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	p.Pause()
	answer := make(chan error, 1)
	go func() {
		_, err := conn.Exec(t.Context(), "SELECT 1")
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Fatalf("a paused server answered: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	p.Resume()
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
}

func TestPostgresDatabasesAreFresh(t *testing.T) {
	a, b := Postgres(t), Postgres(t)
	query(t, a, "CREATE TABLE mine AS SELECT 1 AS n")
	if got := query(t, b, "SELECT count(*) FROM pg_tables WHERE tablename = 'mine'"); got != "0" {
		t.Fatal("two calls share a database")
	}
}

func TestMissingProgramsAreNamed(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := newRedis(); err == nil || !strings.Contains(err.Error(), "package redis-server") {
		t.Errorf("without redis-server: %v", err)
	}
}

// victim is the binary that TestKilledBinaryLeavesNoServer kills.
func victim() {
	redis, err := newRedis()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	postgres, err := newPostgres()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	control := exec.Command("sleep", "60")
	if err := control.Start(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(redis.s.cmd.Process.Pid, postgres.s.cmd.Process.Pid, control.Process.Pid)
	<-time.After(time.Minute)
	os.Exit(1)
}

func TestCampaign(t *testing.T) {
	t.Setenv("DEPUTY_CAMPAIGN", "")
	t.Setenv("DEPUTY_SEED", "")
	if n := Campaign(50, 3); n != 3 {
		t.Errorf("reduced: %d", n)
	}
	if s := Seed(t); s != 1 {
		t.Errorf("default seed: %d", s)
	}
	t.Setenv("DEPUTY_CAMPAIGN", "full")
	t.Setenv("DEPUTY_SEED", "77")
	if n := Campaign(50, 3); n != 50 {
		t.Errorf("full: %d", n)
	}
	if s := Seed(t); s != 77 {
		t.Errorf("given seed: %d", s)
	}
}

// query runs one statement on a connection of its own and returns the first value, if any.
func query(t *testing.T, dsn, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var value string
	if rows.Next() {
		values, err := rows.Values()
		if err != nil {
			t.Fatal(err)
		}
		value = fmt.Sprint(values[0])
	}
	rows.Close()
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestEachCopyIsItsOwn(t *testing.T) {
	prepared := 0
	prepare := func(_ context.Context, dsn string) error {
		prepared++
		query(t, dsn, "CREATE TABLE kept AS SELECT 42 AS n")
		return nil
	}
	a, b := PostgresLike(t, prepare), PostgresLike(t, prepare)
	if a == b || prepared != 1 {
		t.Fatalf("%s and %s, prepared %d times", a, b, prepared)
	}
	query(t, a, "DROP TABLE kept")
	if n := query(t, b, "SELECT n FROM kept"); n != "42" {
		t.Errorf("the copy holds %q", n)
	}
}
