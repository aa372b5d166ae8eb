package httpapi

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// readyDeadline bounds one answer of /readyz, for any number of hanging dependencies.
const readyDeadline = 2 * time.Second

// Ops returns the handler for operators: /healthz (this process answers), /readyz (its dependencies
// answer) and /metrics. It authenticates no caller, so it needs a listener of its own in
// production.
//
// The keys of checks are the names that /readyz shows for missing dependencies. It shows nothing
// else of them. A check must return when its context ends. A check that does not, or panics, counts
// as missing.
func Ops(checks map[string]func(context.Context) error, gatherer prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		state, status := readiness{Missing: missing(r.Context(), checks)}, http.StatusOK
		if state.Ready = len(state.Missing) == 0; !state.Ready {
			status = http.StatusServiceUnavailable
		}
		writeJSON(w, status, state)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}))
	return mux
}

type readiness struct {
	Ready   bool     `json:"ready"`
	Missing []string `json:"missing,omitempty"`
}

// missing runs all checks at once and returns, sorted, the names of those that did not succeed in
// time.
func missing(ctx context.Context, checks map[string]func(context.Context) error) []string {
	ctx, cancel := context.WithTimeout(ctx, readyDeadline)
	defer cancel()
	absent := make(map[string]bool, len(checks))
	// The buffer lets the goroutine of a late check end.
	answers := make(chan string, len(checks))
	for name, check := range checks {
		absent[name] = true
		go func() {
			ready := ""
			defer func() {
				_ = recover() // a check that panics has not succeeded
				answers <- ready
			}()
			if check(ctx) == nil {
				ready = name
			}
		}()
	}
	for range checks {
		select {
		case ready := <-answers:
			delete(absent, ready)
		case <-ctx.Done():
			return names(absent)
		}
	}
	return names(absent)
}

func names(set map[string]bool) []string {
	var list []string
	for name := range set {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}
