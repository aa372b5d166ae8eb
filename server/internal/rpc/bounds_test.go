package rpc

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

// place is a field of a request, or of a message within it, that holds a text or a list.
type place struct {
	path  string // the name in errors
	field protoreflect.FieldDescriptor
	put   func(request protoreflect.Message, text string, elements int)
}

// placesIn returns all places of a message.
func placesIn(d protoreflect.MessageDescriptor, path string) (list []place) {
	for i := range d.Fields().Len() {
		field := d.Fields().Get(i)
		name := string(field.Name())
		switch {
		case field.Message() != nil && strings.HasPrefix(string(field.Message().FullName()), "google.protobuf."):
		case field.Message() != nil:
			if field.IsList() {
				list = append(list, place{path + name, field, func(m protoreflect.Message, _ string, elements int) {
					for range elements {
						m.Mutable(field).List().AppendMutable()
					}
				}})
			}
			for _, inner := range placesIn(field.Message(), within(path, name)) {
				list = append(list, place{inner.path, inner.field, func(m protoreflect.Message, text string, elements int) {
					if field.IsList() {
						inner.put(m.Mutable(field).List().AppendMutable().Message(), text, elements)
					} else {
						inner.put(m.Mutable(field).Message(), text, elements)
					}
				}})
			}
		case field.IsList():
			list = append(list, place{path + name, field, func(m protoreflect.Message, text string, elements int) {
				for range elements {
					m.Mutable(field).List().Append(valueOf(field, text))
				}
			}})
		case field.Kind() == protoreflect.StringKind, field.Kind() == protoreflect.BytesKind:
			list = append(list, place{path + name, field, func(m protoreflect.Message, text string, _ int) {
				m.Set(field, valueOf(field, text))
			}})
		}
	}
	return list
}

func valueOf(field protoreflect.FieldDescriptor, text string) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(text))
	}
	return field.Default()
}

// TestEveryFieldHasABound covers every text and every list of every request that the server
// accepts. A value longer than its bound is refused by name before the engine is called. A value of
// exactly the bound passes. A field that is added without a bound fails here.
func TestEveryFieldHasABound(t *testing.T) {
	engine := granting()
	engine.watch, engine.tail = following(newLedgerFeed()), engine.tails
	config := Config{Engine: engine, Reflection: true}
	server, conn := dial(t, config)

	seen := make(map[protoreflect.FullName]bool)
	for method, info := range registered(server) {
		request, _ := messagesOf(t, method)
		pairs := []string{"authorization", "Bearer x"}
		if methods[method] == forAnyone {
			pairs = nil
		}
		for _, p := range placesIn(request.ProtoReflect().Descriptor(), "") {
			if strings.HasPrefix(p.path, "client.") {
				t.Errorf("%s: the path of a parameter of client authentication is %s", method, p.path)
			}
			texts := p.field.Message() == nil
			most := bound(p.field)
			if texts && most == 0 {
				t.Errorf("%s has no bound", p.field.FullName())
				continue
			}
			seen[p.field.FullName()] = true
			beyond, within := proto.Clone(request), proto.Clone(request)
			if p.put(within.ProtoReflect(), strings.Repeat("a", most), maxElements); fits(within) != nil {
				t.Errorf("%s as long as it may be: %v", p.path, fits(within))
			}
			if p.field.IsList() {
				p.put(beyond.ProtoReflect(), "a", maxElements+1)
			} else {
				p.put(beyond.ProtoReflect(), strings.Repeat("a", most+1), 1)
			}
			sent := pairs
			if with, has := beyond.(audited); has && with.GetClient() != nil {
				sent = nil // the request authenticates once
			}
			before := engine.asked()
			if e := delegation.FromStatus(send(t, conn, method, info, beyond, sent)); e == nil || e.Reason != delegation.ParameterInvalid || e.Field != p.path || !strings.HasPrefix(e.Description, "must have at most ") || engine.asked() != before {
				t.Errorf("%s of %s beyond its bound: %v", p.path, method, e)
			}
		}
	}
	if len(seen) < 40 {
		t.Errorf("only %d fields were found", len(seen))
	}
}

// TestWithoutABound: a name without a bound accepts no text, and no map is accepted.
func TestWithoutABound(t *testing.T) {
	if exchange.Bound("added_later") != 0 {
		t.Error("a field that is not known has a bound")
	}
	if e := delegation.AsError(exchange.Fits("added_later", 1, exchange.Bound("added_later"))); e == nil || e.Field != "added_later" {
		t.Error(e)
	}
}
