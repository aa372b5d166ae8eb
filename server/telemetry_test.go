package server

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// sink is a trace collector.
type sink struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans map[string]string // name → trace id
}

func (s *sink) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, resource := range r.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				s.spans[span.GetName()] = string(span.GetTraceId())
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func TestTracesReachTheCollectorBeforeRunReturns(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	received, g := &sink{spans: make(map[string]string)}, grpc.NewServer()
	collector.RegisterTraceServiceServer(g, received)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	defer func() { g.Stop(); <-served }()

	s := newSite(t)
	s.text += "telemetry: {otlp_endpoint: \"http://" + l.Addr().String() + "\"}\n"
	i := s.start(t)
	if _, err := i.exchange(t.Context(), t); err != nil {
		t.Fatal(err)
	}
	i.stop(t)
	received.mu.Lock()
	defer received.mu.Unlock()
	for _, step := range []string{"front", "admit", "verify", "plan", "authorize", "record", "mint"} {
		if id := received.spans["exchange."+step]; id == "" || id != received.spans["exchange.mint"] {
			t.Errorf("step %s has no span in the trace: %d spans", step, len(received.spans))
		}
	}
}

func TestCollectorThatIsNotThereBothersNobody(t *testing.T) {
	s := newSite(t)
	s.text += "telemetry: {otlp_endpoint: \"http://127.0.0.1:1\"}\n"
	i := s.start(t)
	if _, err := i.exchange(t.Context(), t); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	i.stop(t) // fails the test if Run reports an error
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if !strings.Contains(s.log.String(), "traces") {
		t.Error("the log does not say that traces are lost")
	}
}

func TestTraceIDsExistWithoutACollector(t *testing.T) {
	s := newSite(t)
	i := s.start(t)
	if code, _ := get(t, "http://"+i.HTTPAddr()+"/oauth2/jwks"); code != http.StatusOK {
		t.Fatal(code)
	}
	i.stop(t)
	if !strings.Contains(s.log.String(), `"trace_id":"`) {
		t.Error("the access log has no trace id")
	}
}
