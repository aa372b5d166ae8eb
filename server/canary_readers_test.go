package server

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// ask calls every method of the audit service as an auditor who may read everything, and then with
// credentials in the fields of requests.
func (s *site) ask(t *testing.T, i *instance, grant *deputyv1.ExchangeResponse, all traces, secrets canaries) {
	t.Helper()
	audits := deputyv1.NewAuditServiceClient(i.conn)
	as := func() context.Context {
		return metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+secrets.token("reader's assertion", s.assertion(t)))
	}
	jti := grant.GetJti()
	for method, ask := range map[string]func(context.Context) (proto.Message, error){
		"GetEntry": func(ctx context.Context) (proto.Message, error) {
			return audits.GetEntry(ctx, &deputyv1.GetEntryRequest{Jti: jti})
		},
		"GetChain": func(ctx context.Context) (proto.Message, error) {
			return audits.GetChain(ctx, &deputyv1.GetChainRequest{Jti: jti})
		},
		"ListDescendants": func(ctx context.Context) (proto.Message, error) {
			return audits.ListDescendants(ctx, &deputyv1.ListDescendantsRequest{Jti: jti})
		},
		"SearchEntries": func(ctx context.Context) (proto.Message, error) {
			return audits.SearchEntries(ctx, &deputyv1.SearchEntriesRequest{PageSize: 500})
		},
		"Reach": func(ctx context.Context) (proto.Message, error) {
			return audits.Reach(ctx, &deputyv1.ReachRequest{Agent: "agent:planner"})
		},
		"GetProofs": func(ctx context.Context) (proto.Message, error) {
			return audits.GetProofs(ctx, &deputyv1.GetProofsRequest{Jti: jti})
		},
	} {
		answer, err := ask(as())
		if err != nil {
			t.Errorf("%s: %v", method, err)
			continue
		}
		all.leave("answers of "+method, protojson.Format(answer), planted)
	}
	checkpoint, err := audits.GetCheckpoint(as(), &deputyv1.GetCheckpointRequest{})
	if err != nil {
		t.Fatal(err)
	}
	all.leave("answers of GetCheckpoint", protojson.Format(checkpoint), "deputy.example")
	stream, err := audits.StreamEntries(as(), &deputyv1.StreamEntriesRequest{Records: true})
	if err != nil {
		t.Fatal(err)
	}
	for {
		page, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all.leave("messages of StreamEntries", protojson.Format(page), planted)
		for _, e := range page.GetEntries() {
			all.leave("records of an export", e.GetRecord()+"\n", planted)
		}
	}

	token, refused := grant.GetAccessToken(), ""
	for n, ask := range []func(context.Context) error{
		func(ctx context.Context) error {
			_, err := audits.GetEntry(ctx, &deputyv1.GetEntryRequest{Jti: token})
			return err
		},
		func(ctx context.Context) error {
			_, err := audits.GetChain(ctx, &deputyv1.GetChainRequest{Jti: token})
			return err
		},
		func(ctx context.Context) error {
			_, err := audits.GetProofs(ctx, &deputyv1.GetProofsRequest{Jti: token})
			return err
		},
		func(ctx context.Context) error {
			_, err := audits.Reach(ctx, &deputyv1.ReachRequest{Agent: token})
			return err
		},
		func(ctx context.Context) error {
			_, err := audits.ListDescendants(ctx, &deputyv1.ListDescendantsRequest{Jti: jti, PageToken: token})
			return err
		},
		func(ctx context.Context) error {
			_, err := audits.SearchEntries(ctx, &deputyv1.SearchEntriesRequest{Reason: token})
			return err
		},
		func(context.Context) error {
			ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
			_, err := audits.GetEntry(ctx, &deputyv1.GetEntryRequest{Jti: jti})
			return err
		},
	} {
		err := ask(as())
		if refused += refusal(err); err == nil {
			t.Errorf("question %d was answered", n)
		}
	}
	all.leave("refusals of questions", refused, "NotFound")
}

// askByCommandLine runs the exports of the command line that a SIEM and a spreadsheet read.
func (s *site) askByCommandLine(t *testing.T, i *instance, grant *deputyv1.ExchangeResponse, all traces) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "deputy")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../client/cmd/deputy").CombinedOutput(); err != nil {
		t.Fatalf("building the command line: %v\n%s", err, out)
	}
	s.writeKey("planner.pem", s.planner.Key())
	for _, command := range [][]string{
		{"log", "export"}, {"log", "export", "--ocsf"}, {"search", "--limit", "0", "--csv"}, {"search", "--limit", "0"},
		{"chain", grant.GetJti()}, {"tree", grant.GetJti()}, {"reach", "agent:planner"}, {"log", "prove", grant.GetJti()},
	} {
		cmd := exec.CommandContext(t.Context(), program, command...)
		cmd.Env = append(os.Environ(), "DEPUTY_ISSUER="+issuer, "DEPUTY_JWKS=http://"+i.HTTPAddr()+"/oauth2/jwks", "DEPUTY_ADDR="+i.GRPCAddr(),
			"DEPUTY_PLAINTEXT=true", "DEPUTY_CLIENT_ID=agent:planner", "DEPUTY_CLIENT_KEY="+filepath.Join(s.dir, "planner.pem"))
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			t.Errorf("deputy %s: %v\n%s", strings.Join(command, " "), err, &stderr)
		}
		all.leave("output of deputy "+strings.Join(command[:len(command)-1], " ")+" …", stdout.String()+stderr.String(), planted)
	}
}

// rows returns all rows of all tables. Each table must have at least one.
func rows(t *testing.T, dsn string) string {
	t.Helper()
	all := rowsOf(t, dsn)
	for _, table := range []string{"entries", "claims", "console_sessions", "checkpoints", "managed_keys", "idempotency_keys"} {
		if !strings.Contains(all, table+" has ") || strings.Contains(all, table+" has 0 ") {
			t.Errorf("table %s was not looked through, or is empty", table)
		}
	}
	return all
}

// rowsOf returns all rows of all tables, as SQL shows them.
func rowsOf(t *testing.T, dsn string) string {
	t.Helper()
	driver, tables := "pgx", `SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()`
	if file, isSQLite := strings.CutPrefix(dsn, "sqlite://"); isSQLite {
		driver, dsn, tables = "sqlite", "file:"+file+"?mode=ro", `SELECT name FROM sqlite_master WHERE type = 'table'`
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var all strings.Builder
	for _, table := range selected(t, db, tables) {
		name := fmt.Sprint(table[0])
		content := selected(t, db, `SELECT * FROM "`+name+`"`)
		fmt.Fprintf(&all, "%s has %d rows\n", name, len(content))
		for _, row := range content {
			for _, value := range row {
				if raw, isBytes := value.([]byte); isBytes {
					value = string(raw)
				}
				fmt.Fprintf(&all, "%v\t", value)
			}
			all.WriteByte('\n')
		}
	}
	return all.String()
}

func selected(t *testing.T, db *sql.DB, query string) (all [][]any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	found, err := db.QueryContext(ctx, query)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	columns, err := found.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for found.Next() {
		row, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		if err := found.Scan(into...); err != nil {
			t.Fatal(err)
		}
		all = append(all, row)
	}
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}
