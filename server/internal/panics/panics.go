// Package panics turns a recovered panic into an error and a line of the log.
//
// It owns the one rule: the value of a panic may repeat what was being read, such as a credential,
// so neither the error nor the log holds it. They hold its type and where it was raised: the names
// and lines of a stack repeat no text of a request.
//
// It must not know what was being done, nor what is answered.
package panics

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
)

// Error is the error of a panic. It holds the type of the value and the place, and not the value.
type Error struct{ typ, place string }

// Error implements error.
func (e *Error) Error() string { return "panic: " + e.typ + " at " + e.place }

// Of returns the error of a panic. It is called by the deferred function that recovered, so that the
// stack still holds the frames of the panic.
func Of(value any) *Error {
	e := &Error{typ: fmt.Sprintf("%T", value), place: "an unknown place"}
	var counters [64]uintptr
	frames, inside := runtime.CallersFrames(counters[:runtime.Callers(1, counters[:])]), false
	for {
		frame, more := frames.Next()
		switch {
		case strings.HasPrefix(frame.Function, "runtime."):
			inside = inside || frame.Function == "runtime.gopanic"
		case inside:
			e.place = frame.Function + ":" + strconv.Itoa(frame.Line)
			return e
		}
		if !more {
			return e
		}
	}
}

// Caught is Of, and logs the panic with its stack and the attributes.
func Caught(ctx context.Context, logger *slog.Logger, value any, attributes ...any) error {
	err := Of(value)
	logger.ErrorContext(ctx, "panic", append(attributes, "type", err.typ, "stack", string(debug.Stack()))...)
	return err
}
