package console

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/server/internal/exchange"
)

// TestBrowsersThatHangUp: a page whose browser has left is no error in the log. The control is the
// same failure for a browser that waits.
func TestBrowsersThatHangUp(t *testing.T) {
	for _, gone := range []bool{true, false} {
		s := newStage(t)
		s.signIn("/console")
		s.engine.err = errors.New("what it waited for was cut off")
		ctx, hangUp := context.WithCancel(t.Context())
		defer hangUp()
		if gone {
			hangUp()
			s.engine.err = ctx.Err()
		}
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, s.site.URL+"/console", nil)
		for name, value := range s.cookies() {
			r.AddCookie(&http.Cookie{Name: name, Value: value})
		}
		s.console.ServeHTTP(httptest.NewRecorder(), r)
		text := s.log.String()
		if strings.Contains(text, "level=ERROR") == gone || strings.Contains(text, "reason="+exchange.ReasonCanceled) != gone {
			t.Errorf("gone %t: %s", gone, text)
		}
	}
}

// TestUnauthenticatedCallsInTheLog: a flood of unauthenticated requests leaves 20 lines a second in
// the log.
func TestUnauthenticatedCallsInTheLog(t *testing.T) {
	s := newStage(t)
	for range 100 {
		s.console.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/console/nothing", nil))
	}
	if n := strings.Count(s.log.String(), "console request"); n != 20 {
		t.Errorf("%d lines for 100 requests", n)
	}
	s.clock = s.clock.Add(time.Second)
	s.console.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/console/nothing", nil))
	if !strings.Contains(s.log.String(), "left_out=80") {
		t.Error(s.log.String())
	}
}
