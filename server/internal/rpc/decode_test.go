package rpc

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"deputy.example/deputy/client/delegation"
)

// raw sends bytes as the body of a call, and returns the status and its reason.
func raw(t *testing.T, client *http.Client, address, method string, header http.Header, body []byte) (code, reason string) {
	t.Helper()
	// A stream that does not end is a fault.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+method, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header = header
	response, err := client.Do(request)
	if err != nil {
		return err.Error(), ""
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body) // a stream of answers may be cut off
	says := response.Header
	if says.Get("Grpc-Status") == "" {
		says = response.Trailer
	}
	code = says.Get("Grpc-Status")
	if details, err := base64.RawStdEncoding.DecodeString(says.Get("Grpc-Status-Details-Bin")); err == nil {
		st, info := new(statuspb.Status), new(errdetails.ErrorInfo)
		if proto.Unmarshal(details, st) == nil && len(st.GetDetails()) > 0 && st.GetDetails()[0].UnmarshalTo(info) == nil {
			reason = info.GetReason()
		}
	}
	return code, reason
}

// TestMalformedCalls: for every method, bytes that are no message of the method are refused as the
// caller's fault, with a reason. Answers of grpc-go itself are pinned. No call reaches the engine,
// and none is an error in the log.
func TestMalformedCalls(t *testing.T) {
	const invalid, internal, unimplemented = "3", "13", "12"
	frame := func(flag byte, message ...byte) []byte {
		return append([]byte{flag, 0, 0, 0, byte(len(message))}, message...)
	}
	rows := []struct {
		name         string
		body         []byte
		header       [2]string
		code, reason string
	}{
		{"a field of number 0", frame(0, 0x07), [2]string{}, invalid, "parameter_invalid"},
		{"an endless number", frame(0, bytes.Repeat([]byte{0xff}, 11)...), [2]string{}, invalid, "parameter_invalid"},
		{"a field that ends early", frame(0, 0x0a, 0x7f, 'a'), [2]string{}, invalid, "parameter_invalid"},
		{"JSON", frame(0, []byte(`{"token":"x"}`)...), [2]string{"content-type", "application/grpc+json"}, invalid, "media_type_unsupported"},
		{"what does not unpack", frame(1, 1, 2, 3), [2]string{"grpc-encoding", "gzip"}, invalid, "parameter_invalid"},
		{"what unpacks in part", frame(1, 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 0x4b), [2]string{"grpc-encoding", "gzip"}, invalid, "parameter_invalid"},
		{"an unknown compression", frame(1, 1, 2, 3), [2]string{"grpc-encoding", "snappy"}, unimplemented, ""},
		{"compressed by nothing", frame(1, 1, 2, 3), [2]string{}, internal, ""},
		{"an unknown flag", frame(9), [2]string{}, internal, ""},
		{"half a message", []byte{0, 0, 0, 0, 9, 1}, [2]string{}, internal, ""},
		{"half a prefix", []byte{0, 0}, [2]string{}, internal, ""},
	}
	engine, log := granting(), new(bytes.Buffer)
	engine.watch, engine.tail = following(newLedgerFeed()), engine.tails
	config := Config{Engine: engine, Reflection: true}
	config.Logger = slog.New(slog.NewTextHandler(log, nil))
	server, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	for method := range registered(server) {
		for _, row := range rows {
			header := http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
			if methods[method] != forAnyone {
				header.Set("Authorization", "Bearer x")
			}
			if row.header[0] != "" {
				header.Set(row.header[0], row.header[1])
			}
			code, reason := raw(t, &http.Client{Transport: transport}, listener.Addr().String(), method, header, row.body)
			if code != row.code || reason != row.reason {
				t.Fatalf("%s, %s: %s %q, want %s %q", method, row.name, code, reason, row.code, row.reason)
			}
		}
	}
	if engine.asked() > 0 {
		t.Errorf("%d calls reached the engine", engine.asked())
	}
	if strings.Contains(log.String(), "level=ERROR") {
		t.Error(log.String())
	}
	if delegation.ParameterInvalid.Wire().GRPC != codes.InvalidArgument || delegation.MediaTypeUnsupported.Wire().GRPC != codes.InvalidArgument {
		t.Error("what is malformed is not an invalid argument")
	}
}
