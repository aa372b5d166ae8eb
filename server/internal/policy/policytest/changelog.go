package policytest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"deputy.example/deputy/server/internal/policy"
)

// logged is one row of the fake's changelog. Its place follows from when it was begun, as with
// OpenFGA's ULIDs, and not from when it could be seen.
type logged struct {
	begun  time.Time
	number int // among those of one time
	row    map[string]any
}

// enter writes a row. The lock is held.
func (f *Fake) enter(r policy.Relation, operation string, begun time.Time) {
	place := len(f.log)
	for place > 0 && f.log[place-1].begun.After(begun) {
		place--
	}
	f.log = slices.Insert(f.log, place, logged{begun, f.rows, map[string]any{
		"tuple_key": map[string]any{"user": r.User, "relation": r.Relation, "object": r.Object, "condition": nil},
		"operation": "TUPLE_OPERATION_" + operation,
		"timestamp": begun.UTC().Format(time.RFC3339Nano),
	}})
	f.rows++
}

// CommitLate writes or deletes a relationship in a transaction that began before now: its row
// appears in the changelog behind rows that could be read already.
func (f *Fake) CommitLate(_ context.Context, deleted bool, r policy.Relation, begun time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	operation := "WRITE"
	if deleted {
		operation = "DELETE"
	}
	if f.tuples == nil {
		f.tuples = make(map[policy.Relation]bool)
	}
	if f.tuples[r] = true; deleted {
		delete(f.tuples, r)
	}
	f.enter(r, operation, begun)
}

// ForgetChanges empties the changelog, as a database does that lost its newest transactions.
func (f *Fake) ForgetChanges() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = nil
}

// Readings is how many requests for changes were answered.
func (f *Fake) Readings() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.readings
}

// readChanges answers as OpenFGA does: rows behind start_time or the token's row, in their order,
// and a token wherever there is a row. A token is a place in that order, not a count.
func (f *Fake) readChanges(r *http.Request) (*http.Response, error) {
	query := r.URL.Query()
	size, err := strconv.Atoi(cmp.Or(query.Get("page_size"), "50"))
	if err != nil || size < 1 || size > 100 {
		return Response(http.StatusBadRequest, `{"code":"validation_error","message":"page_size"}`), nil
	}
	var from logged
	switch token, start := query.Get("continuation_token"), query.Get("start_time"); {
	case token != "":
		at, number, found := strings.Cut(token, "-")
		nanos, errAt := strconv.ParseInt(at, 10, 64)
		n, errNumber := strconv.Atoi(number)
		if !found || errAt != nil || errNumber != nil {
			return Response(http.StatusBadRequest, `{"code":"invalid_continuation_token","message":"no"}`), nil
		}
		from = logged{begun: time.Unix(0, nanos), number: n}
	case start != "":
		at, err := time.Parse(time.RFC3339Nano, start)
		if err != nil {
			return Response(http.StatusBadRequest, `{"code":"invalid_start_time","message":"no"}`), nil
		}
		from = logged{begun: at.Truncate(time.Millisecond), number: -1}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readings++
	rows, token := []map[string]any{}, query.Get("continuation_token")
	begin, _ := slices.BinarySearchFunc(f.log, from, func(l, from logged) int {
		if cmp.Or(l.begun.Compare(from.begun), cmp.Compare(l.number, from.number)) > 0 {
			return 1
		}
		return -1
	})
	for _, l := range f.log[begin:min(begin+size, len(f.log))] {
		rows = append(rows, l.row)
		token = fmt.Sprintf("%d-%d", l.begun.UnixNano(), l.number)
	}
	body, err := json.Marshal(map[string]any{"changes": rows, "continuation_token": token})
	return Response(http.StatusOK, string(body)), err
}
