package panics_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"deputy.example/deputy/server/internal/panics"
)

const secret = "eyJhbGciOiJFUzI1NiJ9.secret"

type quoting struct{ text string }

func (q quoting) Error() string { return q.text }

// TestCaughtHoldsNoValue panics with texts and errors that repeat a credential.
func TestCaughtHoldsNoValue(t *testing.T) {
	for _, value := range []any{secret, errors.New(secret), quoting{secret}, &quoting{secret}, fmt.Errorf("read %s", secret), []byte(secret)} {
		var log bytes.Buffer
		err := crash(t.Context(), slog.New(slog.NewJSONHandler(&log, nil)), value)
		for _, text := range []string{err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err), log.String()} {
			if strings.Contains(text, "secret") {
				t.Errorf("%T: %s", value, text)
			}
		}
		if !strings.Contains(err.Error(), " at deputy.example/deputy/server/internal/panics_test.crash:") {
			t.Errorf("%v: the place is missing", err)
		}
		if typ := fmt.Sprintf("%T", value); !strings.Contains(err.Error(), typ) || !strings.Contains(log.String(), typ) {
			t.Errorf("%v, %s: the type %s is missing", err, log.String(), typ)
		}
		for _, want := range []string{`"msg":"panic"`, `"step":"plan"`, "panics_test.crash"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log has no %s: %s", want, log.String())
			}
		}
	}
}

func crash(ctx context.Context, logger *slog.Logger, value any) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panics.Caught(ctx, logger, p, "step", "plan")
		}
	}()
	panic(value)
}

// TestPlaceOfARuntimeError finds the line that indexes, not the runtime that refuses.
func TestPlaceOfARuntimeError(t *testing.T) {
	defer func() {
		if err := panics.Of(recover()).Error(); !strings.HasPrefix(err, "panic: runtime.boundsError at deputy.example/deputy/server/internal/panics_test.index:") {
			t.Error(err)
		}
	}()
	index(nil, 3)
}

func index(list []int, i int) int { return list[i] }
