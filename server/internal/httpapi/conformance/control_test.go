package conformance

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"

	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/httpapi"
	"deputy.example/deputy/server/internal/rpc"
)

// faulty is an endpoint of a server with one of the faults that are common among token exchange
// services.
type faulty struct {
	door
	ask    func(params)
	change func(answer)
}

func (f faulty) exchange(ctx context.Context, p params, credential string) (answer, error) {
	if f.ask != nil {
		f.ask(p)
	}
	got, err := f.door.exchange(ctx, p, credential)
	if err == nil && f.change != nil {
		f.change(got)
	}
	return got, err
}

func (f faulty) introspect(ctx context.Context, token, credential string) (answer, error) {
	got, err := f.door.introspect(ctx, token, credential)
	if err == nil && f.change != nil {
		f.change(got)
	}
	return got, err
}

// TestFaultsAreNoticed is the negative control: each fault makes cases fail, among them those of
// its clause.
func TestFaultsAreNoticed(t *testing.T) {
	w, open := newWorld(t)
	for name, f := range map[string]struct {
		faulty
		clause string // a case of this clause must fail
	}{
		"invalid_grant for a bad subject token": {faulty{change: func(a answer) {
			if a["reason"] == "subject_token_invalid" {
				a["error"] = "invalid_grant"
			}
		}}, "RFC 8693 §2.2.2"},
		"scope as a list": {faulty{change: func(a answer) {
			if scope, isText := a["scope"].(string); isText {
				a["scope"] = strings.Fields(scope)
			}
		}}, "RFC 8693 §2.2.1"},
		"no issued_token_type": {faulty{change: func(a answer) { delete(a, "issued_token_type") }}, "RFC 8693 §2.2.1"},
		"actor_token_type without a token is accepted": {faulty{ask: func(p params) {
			if p["actor_token"] == nil {
				delete(p, "actor_token_type")
			}
		}}, "RFC 8693 §2.1"},
		"a refresh token": {faulty{change: func(a answer) {
			if a["error"] == nil {
				a["refresh_token"] = "x"
			}
		}}, "RFC 8693 §2.2.1"},
		"an actor token that is ignored": {faulty{ask: func(p params) {
			delete(p, "actor_token")
			delete(p, "actor_token_type")
		}}, "RFC 8693 §4.1"},
		"a scope that is dropped instead of refused": {faulty{ask: func(p params) {
			if strings.Contains(p.get("scope"), " admin") {
				p["scope"] = []string{"calendar.read"}
			}
		}}, "RFC 8693 §2.1"},
		"an inactive token that is explained": {faulty{change: func(a answer) {
			if a["active"] == false {
				a["reason"] = "expired"
			}
		}}, "RFC 7662 §2.2"},
		"an error that repeats the token": {faulty{ask: func(p params) { p["subject_token"] = []string{"repeated-repeated-repeated"} }, change: func(a answer) {
			a["error_description"] = "cannot read repeated-repeated-repeated"
		}}, "RFC 8693 §6"},
		"details that are ignored": {faulty{ask: func(p params) { delete(p, "authorization_details") }}, "RFC 9396 §2"},
	} {
		t.Run(name, func(t *testing.T) {
			f.door = open["http"]
			for _, c := range cases(t) {
				if c.Clause == f.clause && c.run(t, w.Tenant(), f.door) == nil && c.run(t, w.Tenant(), f.faulty) != nil {
					return
				}
			}
			t.Errorf("no case of %s notices", f.clause)
		})
	}
}

// recorder is an engine that records the call and refuses it.
type recorder struct {
	rpc.Engine // nil: no other method is called here
	call       exchange.Call
}

func (r *recorder) StatusList(context.Context, string, uint64) (exchange.StatusList, error) {
	return exchange.StatusList{}, errors.New("no script for this")
}

func (r *recorder) Exchange(_ context.Context, c exchange.Call) ([]exchange.Outcome, error) {
	r.call = c
	return nil, nil
}

// TestDoorsMakeTheSameCall: the same request is the same call at every endpoint.
func TestDoorsMakeTheSameCall(t *testing.T) {
	full := params{
		"subject_token": {"subject"}, "subject_token_type": {"urn:a"}, "actor_token": {"actor"}, "actor_token_type": {"urn:b"},
		"resource": {"https://b.example", "https://a.example"}, "audience": {"y", "x"}, "scope": {"a b"}, "requested_token_type": {"urn:c"},
		"authorization_details": {`[{"type":"x"}]`}, "requested_actor": {"agent:a"}, "actor_confirmation": {"thumb"}, "requested_lifetime": {"60"},
		"max_depth": {"0"}, "uses": {"0"}, "idempotency_key": {"k"}, "validate_only": {"true"},
	}
	requests := map[string]params{"everything": full, "nothing": {}}
	for name := range full {
		without := maps.Clone(full)
		delete(without, name)
		requests["without "+name] = without
		requests["only "+name] = params{name: full[name]}
		if name != "max_depth" && name != "uses" && name != "requested_lifetime" {
			empty := maps.Clone(full)
			empty[name] = []string{""}
			requests["empty "+name] = empty
		}
	}
	engine := &recorder{}
	open := doors(t, engine, engine, httpapi.Tenant{Name: "acme", Issuer: "https://deputy.example/t/acme", JWKS: func() []byte { return nil }})
	for name, p := range requests {
		var calls [3]exchange.Call
		for i, through := range []string{"http", "grpc", "bearer"} {
			engine.call = exchange.Call{}
			if _, err := open[through].exchange(t.Context(), p, "assertion"); err != nil {
				t.Fatalf("%s, %s: %v", name, through, err)
			}
			calls[i] = engine.call
		}
		if calls[0].Tenant != "acme" || calls[1].Tenant != "" || !reflect.DeepEqual(calls[0].Credentials, calls[1].Credentials) ||
			!reflect.DeepEqual(calls[2].Credentials, exchange.Credentials{Bearer: "assertion"}) {
			t.Errorf("%s: credentials %+v", name, calls)
		}
		for i := range calls {
			if calls[i].Peer == "" {
				t.Errorf("%s: no peer", name)
			}
			calls[i].Tenant, calls[i].Credentials, calls[i].Peer = "", exchange.Credentials{}, ""
		}
		if !reflect.DeepEqual(calls[0], calls[1]) || !reflect.DeepEqual(calls[0], calls[2]) {
			t.Errorf("%s: HTTP\n%+v\ngRPC\n%+v\nmetadata\n%+v", name, calls[0], calls[1], calls[2])
		}
	}
}
