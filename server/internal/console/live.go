package console

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

const (
	// livePause is the interval in seconds at which the live page reloads itself without script.
	livePause = 5
	// tailPatience bounds how long a script waits for the next entry. It must end before the server
	// ends the whole request.
	tailPatience = 9 * time.Second
)

// livePage shows entries as they are recorded.
type livePage struct {
	Rows []exchange.Recorded // newest first
	Last uint64
}

func (h *console) live(c *call) error {
	rows, _, err := h.Engine.Search(c.r.Context(), c.inquiry(), ledger.Query{Limit: pageSize})
	if err != nil {
		return err
	}
	p := livePage{Rows: rows}
	if len(rows) > 0 {
		p.Last = rows[0].Seq
	}
	return c.show(http.StatusOK, "live", page{Title: "Live", Refresh: livePause, Body: p})
}

// liveEntries answers a script with the rows that were recorded since, as soon as there are any or
// after tailPatience.
func (h *console) liveEntries(c *call) error {
	after, err := readNumber("after", c.r.URL.Query().Get("after"))
	if err != nil {
		return err
	}
	tail, err := h.Engine.Tail(c.r.Context(), c.inquiry())
	if err != nil {
		return err
	}
	defer tail.Close()
	ctx, cancel := context.WithTimeout(c.r.Context(), tailPatience)
	defer cancel()
	rows, err := tail.Next(ctx, after)
	if err != nil && ctx.Err() == nil {
		return err
	}
	if len(rows) > 0 {
		after = rows[len(rows)-1].Seq
	}
	slices.Reverse(rows)
	c.w.Header().Set("Deputy-Last-Entry", strconv.FormatUint(after, 10))
	return c.showPart("live", "rows", rows)
}
