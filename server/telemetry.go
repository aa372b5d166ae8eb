package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// NewLogger makes the logger of the configuration, which removes credentials from what it logs.
func NewLogger(t Telemetry, to io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(t.LogLevel)); err != nil {
		level = slog.LevelInfo // the empty string of a Config that was not checked
	}
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewJSONHandler(to, options)
	if t.LogFormat == "text" {
		handler = slog.NewTextHandler(to, options)
	}
	return slog.New(redactor{handler})
}

// observe sets the parts of Options that the configuration determines.
func (s *Server) observe(ctx context.Context, t Telemetry, o *Options) error {
	if o.Logger == nil {
		o.Logger = NewLogger(t, os.Stderr)
	} else {
		o.Logger = slog.New(redactor{o.Logger.Handler()})
	}
	if o.Registry == nil {
		o.Registry = newRegistry()
	}
	if o.TracerProvider != nil {
		return nil
	}
	if t.OTLPEndpoint == "" {
		o.TracerProvider = traceIDs{}
		return nil
	}
	traces, err := newTracerProvider(ctx, t, o.Logger)
	if err != nil {
		return err
	}
	s.owns(closer(func() error {
		const patience = 5 * time.Second
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := traces.Shutdown(ctx); err != nil { // sends what is left
			o.Logger.Warn("traces are lost: the collector did not take the last ones in time", "error", err)
		}
		return nil
	}))
	o.TracerProvider = traces
	return nil
}

// newRegistry collects the metrics of the Go runtime and of this process.
func newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewBuildInfoCollector(),
	)
	return registry
}

// newTracerProvider sends traces to the collector, which need not be reachable yet.
func newTracerProvider(ctx context.Context, t Telemetry, logger *slog.Logger) (*sdktrace.TracerProvider, error) {
	// Without retries and with a short timeout an export ends before Shutdown gives up on it. An
	// absent collector then delays nothing and leaves nothing running.
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(t.OTLPEndpoint),
		otlptracegrpc.WithTimeout(2*time.Second),
		otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{Enabled: false}))
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	return sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(&patientExporter{SpanExporter: exporter, logger: logger}),
		// A caller's sampling flag must not decide what Deputy records of itself. Collectors
		// sample.
		sdktrace.WithSampler(sdktrace.AlwaysSample()),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "deputy"))),
	), nil
}

// patientExporter logs at most once a minute that the collector takes no traces. Spans that the
// collector does not take are lost. Requests never wait for it. Its calls come one at a time.
type patientExporter struct {
	sdktrace.SpanExporter
	logger *slog.Logger
	said   time.Time
}

// ExportSpans sends the spans, or drops them.
func (e *patientExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if err != nil && time.Since(e.said) > time.Minute {
		e.said = time.Now()
		e.logger.Warn("traces are lost: the collector does not take them", "error", err)
	}
	return nil
}
