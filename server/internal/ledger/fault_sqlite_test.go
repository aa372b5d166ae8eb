package ledger_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"strings"
)

// point names a place at which a statement can be made to fail: "before" or "after", and how its
// text begins, in lower case. What wraps a statement to count the rows that it changes is left out.
func point(when, sql string) string {
	sql = strings.ToLower(strings.Join(strings.Fields(sql), " "))
	sql = strings.TrimPrefix(sql, "with kept as (")
	return when + " " + sql[:min(len(sql), 60)]
}

// faultyConn is a connection of SQLite's driver whose statements fail where at returns an error.
type faultyConn struct {
	driver.Conn
	at func(point string) error
}

func (c faultyConn) Prepare(sql string) (driver.Stmt, error) {
	s, err := c.Conn.Prepare(sql)
	if err != nil {
		return nil, err
	}
	return faultyStmt{s, sql, c.at}, nil
}

type faultyStmt struct {
	driver.Stmt
	sql string
	at  func(point string) error
}

func (s faultyStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if err := s.at(point("before", s.sql)); err != nil {
		return nil, err
	}
	result, err := s.Stmt.(driver.StmtExecContext).ExecContext(ctx, args)
	if err == nil {
		err = s.at(point("after", s.sql))
	}
	return result, err
}

func (s faultyStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.at(point("before", s.sql)); err != nil {
		return nil, err
	}
	rows, err := s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
	if err != nil {
		return nil, err
	}
	if err := s.at(point("after", s.sql)); err != nil {
		return nil, errors.Join(err, rows.Close())
	}
	return rows, nil
}
