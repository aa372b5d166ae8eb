package peers

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// linesPerSecond is the bound of one access log for calls of unauthenticated peers.
const linesPerSecond = 20

// Sampler logs the first calls of each second and counts the others, so that a flood of
// unauthenticated calls does not fill the access log.
type Sampler struct {
	now func() time.Time

	mu      sync.Mutex // guards what follows
	second  int64
	written int
	leftOut uint64
}

// NewSampler returns the sampler of one access log.
func NewSampler(now func() time.Time) *Sampler { return &Sampler{now: now} }

// Log writes a line, or leaves it out. A line after lines that were left out has their number as
// left_out.
func (s *Sampler) Log(ctx context.Context, logger *slog.Logger, level slog.Level, message string, attrs ...slog.Attr) {
	leftOut, written := s.line()
	if !written {
		return
	}
	if leftOut > 0 {
		attrs = append(attrs, slog.Uint64("left_out", leftOut))
	}
	logger.LogAttrs(ctx, level, message, attrs...)
}

func (s *Sampler) line() (leftOut uint64, written bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if second := s.now().Unix(); second != s.second {
		s.second, s.written = second, 0
	}
	if s.written >= linesPerSecond {
		s.leftOut++
		return 0, false
	}
	s.written++
	leftOut, s.leftOut = s.leftOut, 0
	return leftOut, true
}
