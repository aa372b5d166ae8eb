package exchange_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

// canary has no valid form: it breaks the rule of each field that has one.
const canary = "\x01CANARY\u202e\""

// requests are one request of each method that would be answered, or refused only at its end. A new
// method gets its own.
func (l *lineup) requests() map[protoreflect.FullName]proto.Message {
	child := &deputyv1.Child{Scope: "calendar.read", Audience: []string{calendar}}
	target := &deputyv1.RevocationTarget{Kind: deputyv1.RevocationKind_REVOCATION_KIND_AGENT_SUBJECT, Id: "agent:x", Subject: "user:x"}
	return map[protoreflect.FullName]proto.Message{
		"deputy.v1.TokenExchangeService.Exchange":      &deputyv1.ExchangeRequest{SubjectToken: l.parent, SubjectTokenType: delegation.TokenTypeAccessToken, Child: child},
		"deputy.v1.TokenExchangeService.BatchExchange": &deputyv1.BatchExchangeRequest{SubjectToken: l.parent, SubjectTokenType: delegation.TokenTypeAccessToken, Children: []*deputyv1.Child{child}},
		"deputy.v1.TokenExchangeService.Introspect":    &deputyv1.IntrospectRequest{Token: l.parent},
		"deputy.v1.RevocationService.Revoke":           &deputyv1.RevokeRequest{Target: target},
		"deputy.v1.RevocationService.Suspend":          &deputyv1.SuspendRequest{Agent: "agent:x"},
		"deputy.v1.RevocationService.Resume":           &deputyv1.ResumeRequest{Agent: "agent:x"},
		"deputy.v1.RevocationService.GetReceipts":      &deputyv1.GetReceiptsRequest{Entry: 1},
		"deputy.v1.RevocationService.WatchRevocations": &deputyv1.WatchRevocationsRequest{Message: &deputyv1.WatchRevocationsRequest_Hello{Hello: &deputyv1.WatchHello{}}},
		"deputy.v1.AuditService.GetEntry":              &deputyv1.GetEntryRequest{},
		"deputy.v1.AuditService.GetChain":              &deputyv1.GetChainRequest{},
		"deputy.v1.AuditService.ListDescendants":       &deputyv1.ListDescendantsRequest{},
		"deputy.v1.AuditService.SearchEntries":         &deputyv1.SearchEntriesRequest{},
		"deputy.v1.AuditService.Reach":                 &deputyv1.ReachRequest{Agent: "agent:x"},
		"deputy.v1.AuditService.StreamEntries":         &deputyv1.StreamEntriesRequest{},
		"deputy.v1.AuditService.GetCheckpoint":         &deputyv1.GetCheckpointRequest{},
		"deputy.v1.AuditService.GetProofs":             &deputyv1.GetProofsRequest{},
	}
}

// planted calls use with a copy of the request for each of its text fields, in which that field is
// the canary.
func planted(t *testing.T, request proto.Message, use func(field string, request proto.Message)) {
	t.Helper()
	var plant func(path string, at func(root protoreflect.Message) protoreflect.Message, depth int)
	plant = func(path string, at func(root protoreflect.Message) protoreflect.Message, depth int) {
		fields := at(proto.Clone(request).ProtoReflect()).Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			name := path + string(f.Name())
			switch {
			case f.Kind() == protoreflect.StringKind:
				changed := proto.Clone(request)
				value := protoreflect.ValueOfString(canary)
				if f.IsList() {
					at(changed.ProtoReflect()).Mutable(f).List().Append(value)
				} else {
					at(changed.ProtoReflect()).Set(f, value)
				}
				use(name, changed)
			case f.Kind() == protoreflect.MessageKind && !f.IsMap() && depth < 4 && strings.HasPrefix(string(f.Message().FullName()), "deputy."):
				plant(name+".", func(root protoreflect.Message) protoreflect.Message {
					value := at(root).Mutable(f)
					if !f.IsList() {
						return value.Message()
					}
					if value.List().Len() == 0 {
						value.List().AppendMutable()
					}
					return value.List().Get(0).Message()
				}, depth+1)
			}
		}
	}
	plant("", func(root protoreflect.Message) protoreflect.Message { return root }, 0)
}

// call returns the complete response, and of a stream its first message.
func (l *lineup) call(ctx context.Context, m protoreflect.MethodDescriptor, request proto.Message) (string, error) {
	full := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
	output, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		return "", err
	}
	answer := output.New().Interface()
	if !m.IsStreamingServer() {
		err = l.grpc.Invoke(ctx, full, request, answer)
	} else {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var stream grpc.ClientStream
		desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: m.IsStreamingClient()}
		if stream, err = l.grpc.NewStream(ctx, desc, full); err == nil {
			if err = stream.SendMsg(request); err == nil && !m.IsStreamingClient() {
				err = stream.CloseSend()
			}
			if err == nil {
				err = stream.RecvMsg(answer)
			}
		}
	}
	if err != nil {
		return fmt.Sprint(status.Convert(err).Proto()), nil
	}
	return protojson.Format(answer), nil
}

// TestNothingOfTheCallerIsRepeated: no error, no log and no entry repeats a text that does not have
// the form of its field, for each field of each method and endpoint.
func TestNothingOfTheCallerIsRepeated(t *testing.T) {
	l := newLineup(t)
	requests, fields := l.requests(), 0
	for _, file := range []protoreflect.FileDescriptor{deputyv1.File_deputy_v1_exchange_proto, deputyv1.File_deputy_v1_revocation_proto, deputyv1.File_deputy_v1_audit_proto} {
		for s := range file.Services().Len() {
			methods := file.Services().Get(s).Methods()
			for i := range methods.Len() {
				m := methods.Get(i)
				request := requests[m.FullName()]
				if request == nil {
					t.Fatalf("%s has no request here", m.FullName())
				}
				planted(t, request, func(field string, request proto.Message) {
					fields++
					ctx := bearer(t.Context(), l.tenant.Assertion(t, planner))
					if strings.HasPrefix(field, "client.") {
						ctx = t.Context()
					}
					answer, err := l.call(ctx, m, request)
					if err != nil || strings.Contains(answer, "CANARY") {
						t.Errorf("%s, %s: %s %v", m.Name(), field, answer, err)
					}
				})
			}
		}
	}
	for path, base := range map[string]func() url.Values{
		"/oauth2/token":      func() url.Values { return l.exchangeForm(l.tenant.Assertion(t, planner)) },
		"/oauth2/introspect": func() url.Values { return form(l.tenant.Assertion(t, planner), "token", l.parent) },
		"/oauth2/revoke":     func() url.Values { return form(l.tenant.Assertion(t, planner), "token", unknown) },
	} {
		for _, name := range append(exchange.BoundNames(), canary) {
			fields++
			form := base()
			form.Set(name, canary)
			if name == "actor_confirmation" {
				form.Set("requested_actor", "agent:x")
			}
			if answer := l.post(path, form); strings.Contains(answer, "CANARY") {
				t.Errorf("POST %s, %s: %s", path, name, answer)
			}
		}
		for _, header := range []string{"DPoP", "Authorization", "Content-Type", "Host"} {
			fields++
			r := httptest.NewRequest(http.MethodPost, path+"?CANARY", strings.NewReader(base().Encode()))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set(header, "CANARY")
			w := httptest.NewRecorder()
			l.http.ServeHTTP(w, r)
			if strings.Contains(fmt.Sprint(w.Code, w.Header(), w.Body), "CANARY") {
				t.Errorf("POST %s, header %s: %d %s", path, header, w.Code, w.Body)
			}
		}
	}
	if fields < 150 {
		t.Errorf("only %d fields were tried", fields)
	}
	l.noCanary(t)
}

// noCanary searches everything that was stored. The reason of a revocation is free text, and is
// stored unchanged.
func (l *lineup) noCanary(t *testing.T) {
	t.Helper()
	entries, err := l.Ledger.Entries(t.Context(), "default", 0, 10_000)
	if err != nil || len(entries) < 10 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for _, e := range entries {
		if e.Kind == ledger.KindRevocation {
			continue
		}
		if text := fmt.Sprintf("%+v %s %s", *e, e.Claims, e.Details); strings.Contains(text, "CANARY") {
			t.Errorf("entry %d: %s", e.Seq, text)
		}
	}
	if log := l.Log.String(); strings.Contains(log, "CANARY") {
		t.Errorf("the log repeats it: %s", log[max(0, strings.Index(log, "CANARY")-300):])
	}
}
