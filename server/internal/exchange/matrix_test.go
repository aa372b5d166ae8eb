package exchange_test

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/rpc"
)

// people is the engine with people as callers: the credential "person-alice" means that alice has
// signed in. So each role, people among them, uses the same endpoint.
type people struct {
	rpc.Engine
	signedIn map[string]*exchange.Person
}

func (p people) who(q exchange.Inquiry) exchange.Inquiry {
	if person := p.signedIn[q.Credentials.Bearer]; person != nil {
		q.Credentials = exchange.Credentials{Person: person}
	}
	return q
}

func (p people) Entry(ctx context.Context, q exchange.Inquiry) (exchange.Recorded, error) {
	return p.Engine.Entry(ctx, p.who(q))
}

func (p people) Chain(ctx context.Context, q exchange.Inquiry) ([]exchange.Recorded, error) {
	return p.Engine.Chain(ctx, p.who(q))
}

func (p people) Descendants(ctx context.Context, q exchange.Inquiry, after uint64, limit int) ([]exchange.Descendant, uint64, error) {
	return p.Engine.Descendants(ctx, p.who(q), after, limit)
}

func (p people) Search(ctx context.Context, q exchange.Inquiry, query ledger.Query) ([]exchange.Recorded, uint64, error) {
	return p.Engine.Search(ctx, p.who(q), query)
}

func (p people) Reach(ctx context.Context, q exchange.Inquiry, agent delegation.Principal, depth int) (exchange.Reach, error) {
	return p.Engine.Reach(ctx, p.who(q), agent, depth)
}

func (p people) Tail(ctx context.Context, q exchange.Inquiry) (rpc.Tail, error) {
	return p.Engine.Tail(ctx, p.who(q))
}

func (p people) Checkpoint(ctx context.Context, q exchange.Inquiry) (exchange.Checkpoint, error) {
	return p.Engine.Checkpoint(ctx, p.who(q))
}

func (p people) Proofs(ctx context.Context, q exchange.Inquiry, old uint64) (exchange.Proofs, error) {
	return p.Engine.Proofs(ctx, p.who(q), old)
}

const (
	auditor = delegation.Principal("agent:auditor")
	admin   = delegation.Principal("agent:admin")
	unknown = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
)

// library is a world of two tenants with the same names, with a chain of alice's, planner to
// researcher to writer, in each.
type library struct {
	*exchangetest.World
	audit  deputyv1.AuditServiceClient
	chains map[string][]*exchange.Grant
	called map[string]bool // full names of methods
}

// roles are the callers. People begin with person-.
var roles = []string{"agent:stranger", "person-alice", "person-bob", "agent:planner", "agent:researcher", "agent:writer", "person-olga", "agent:auditor", "agent:responder", "agent:admin"}

func newLibrary(t *testing.T) *library {
	t.Helper()
	w := exchangetest.New(t, exchangetest.Config{Tenants: []string{"default", "other"}, Agents: []delegation.Principal{stranger, auditor, responder, admin}})
	l := &library{World: w, chains: map[string][]*exchange.Grant{}, called: map[string]bool{}}
	front := people{Engine: rpc.For(w.Engine), signedIn: map[string]*exchange.Person{}}
	for name, n := range w.Tenants {
		// In the model each of them is an auditor.
		for _, p := range []delegation.Principal{auditor, responder, admin} {
			n.FGA.Allow(string(p), "auditor", "system:deputy")
		}
		n.FGA.Allow("user:olga", "operator", "agent:researcher")
		l.chains[name] = w.Chain(t, n, exchangetest.Planner, exchangetest.Researcher, exchangetest.Writer)
		for _, sub := range []string{"alice", "bob", "olga"} {
			front.signedIn["person-"+sub+"@"+name] = w.SignIn(t, n, sub)
		}
	}
	server, err := rpc.New(rpc.Config{Engine: front})
	if err != nil {
		t.Fatal(err)
	}
	listener := bufconn.Listen(1 << 20)
	go func() { _ = server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///deputy.example", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			l.called[method] = true
			return invoke(ctx, method, request, reply, conn, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			l.called[method] = true
			return open(ctx, desc, conn, method, opts...)
		}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		server.Stop()
	})
	l.audit = deputyv1.NewAuditServiceClient(conn)
	for name := range w.Tenants { // what is read once is read before anything is counted
		if err := w.Engine.Notary(name)(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := l.audit.GetEntry(l.as(t, "agent:auditor", name), &deputyv1.GetEntryRequest{Entry: 1}); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// as is a context in which the role calls, at a tenant.
func (l *library) as(t *testing.T, role, tenant string) context.Context {
	t.Helper()
	credential := role + "@" + tenant
	if !strings.HasPrefix(role, "person-") {
		credential = l.Tenants[tenant].Assertion(t, delegation.Principal(role))
	}
	return metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+credential)
}

// asked is one answer as the caller gets it, with the work that it took.
type asked struct {
	status  string // bytes on the wire
	allowed bool
	fga     int
	entries int
}

func (l *library) ask(t *testing.T, role, tenant string, call func(context.Context) error) asked {
	t.Helper()
	ctx := l.as(t, role, tenant)
	policyBefore, before := l.Tenants[tenant].FGA.Asked(), l.count(t, tenant)
	err := call(ctx)
	raw := canonical(t, err)
	if e := delegation.FromStatus(err); err != nil && e.Reason != delegation.NotFound {
		t.Errorf("%s of %s: %v", role, tenant, err)
	}
	return asked{raw, err == nil, l.Tenants[tenant].FGA.Asked() - policyBefore, l.count(t, tenant) - before}
}

// canonical is the status as it was sent, but with its maps in one order: on the wire they have any
// order.
func canonical(t *testing.T, err error) string {
	t.Helper()
	sent := status.Convert(err).Proto()
	for _, detail := range sent.GetDetails() {
		message, err := detail.UnmarshalNew()
		if err == nil {
			detail.Value, err = proto.MarshalOptions{Deterministic: true}.Marshal(message)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func (l *library) count(t *testing.T, tenant string) int {
	t.Helper()
	size, _, err := l.Ledger.Tree(t.Context(), tenant)
	if err != nil {
		t.Fatal(err)
	}
	return int(size)
}

// one is a grant as a request can name it.
type one struct {
	jti string
	seq uint64
}

func (l *library) grants(tenant string) (all []one) {
	for _, g := range l.chains[tenant] {
		all = append(all, one{g.Claims.ID, g.Entry})
	}
	return all
}

// byGrant are the methods that read one grant.
func (l *library) byGrant() map[string]func(context.Context, one) error {
	return map[string]func(context.Context, one) error{
		"GetEntry": func(ctx context.Context, g one) error {
			_, err := l.audit.GetEntry(ctx, &deputyv1.GetEntryRequest{Jti: g.jti})
			return err
		},
		byNumber + "GetEntry": func(ctx context.Context, g one) error {
			_, err := l.audit.GetEntry(ctx, &deputyv1.GetEntryRequest{Entry: g.seq})
			return err
		},
		"GetChain": func(ctx context.Context, g one) error {
			_, err := l.audit.GetChain(ctx, &deputyv1.GetChainRequest{Jti: g.jti})
			return err
		},
		"ListDescendants": func(ctx context.Context, g one) error {
			_, err := l.audit.ListDescendants(ctx, &deputyv1.ListDescendantsRequest{Jti: g.jti})
			return err
		},
		"GetProofs": func(ctx context.Context, g one) error {
			_, err := l.audit.GetProofs(ctx, &deputyv1.GetProofsRequest{Jti: g.jti})
			return err
		},
		byNumber + "GetProofs": func(ctx context.Context, g one) error {
			_, err := l.audit.GetProofs(ctx, &deputyv1.GetProofsRequest{Entry: g.seq})
			return err
		},
	}
}

// byNumber marks methods that name an entry by its number, which exists in each tenant.
const byNumber = "by number, "

// TestWhoMayRead: each role, at both tenants, reads what it may and nothing else. An entry that it
// may not read and an entry that does not exist give one answer, byte for byte, for the same work.
func TestWhoMayRead(t *testing.T) {
	l := newLibrary(t)
	may := map[string][3]bool{ // planner's, researcher's and writer's token
		"person-alice": {true, true, true}, "agent:planner": {true, true, true}, "agent:researcher": {false, true, true},
		"agent:writer": {false, false, true}, "person-olga": {false, true, true},
		"agent:auditor": {true, true, true}, "agent:responder": {true, true, true}, "agent:admin": {true, true, true},
	}
	for _, tenant := range []string{"default", "other"} {
		elsewhere := map[string]string{"default": "other", "other": "default"}[tenant]
		for _, role := range roles {
			for method, call := range l.byGrant() {
				ask := func(g one) asked {
					return l.ask(t, role, tenant, func(ctx context.Context) error { return call(ctx, g) })
				}
				nothing := ask(one{unknown, math.MaxInt64})
				if nothing.allowed {
					t.Errorf("%s of %s, %s: an unknown grant was found", role, tenant, method)
				}
				for i, g := range l.grants(tenant) {
					got := ask(g)
					switch {
					case got.allowed != may[role][i]:
						t.Errorf("%s of %s, %s of token %d: allowed %t", role, tenant, method, i, got.allowed)
					case !got.allowed && got != nothing:
						t.Errorf("%s of %s, %s of token %d: %+v, but for an unknown one %+v", role, tenant, method, i, got, nothing)
					}
					if strings.HasPrefix(method, byNumber) {
						continue
					}
					if foreign := ask(l.grants(elsewhere)[i]); foreign != nothing {
						t.Errorf("%s of %s, %s of the other tenant's token %d: %+v, but for an unknown one %+v", role, tenant, method, i, foreign, nothing)
					}
				}
			}
		}
	}
}

// question is a read that is not about one grant, but a search, an agent or the whole log.
type question struct {
	call func(context.Context) error
	may  []string
	like func(context.Context) error // the same about what does not exist
}

func (l *library) questions() map[string]question {
	search := func(r *deputyv1.SearchEntriesRequest) func(context.Context) error {
		return func(ctx context.Context) error { _, err := l.audit.SearchEntries(ctx, r); return err }
	}
	reach := func(agent string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := l.audit.Reach(ctx, &deputyv1.ReachRequest{Agent: agent})
			return err
		}
	}
	whole := []string{"agent:auditor", "agent:responder", "agent:admin"}
	return map[string]question{
		"search for anything":   {search(&deputyv1.SearchEntriesRequest{}), whole, search(&deputyv1.SearchEntriesRequest{Scope: "nothing"})},
		"search for alice":      {search(&deputyv1.SearchEntriesRequest{Subject: "user:alice"}), append([]string{"person-alice"}, whole...), search(&deputyv1.SearchEntriesRequest{Subject: "user:nobody"})},
		"search for researcher": {search(&deputyv1.SearchEntriesRequest{Actor: "agent:researcher"}), append([]string{"agent:researcher", "person-olga"}, whole...), search(&deputyv1.SearchEntriesRequest{Actor: "agent:nobody"})},
		"search by caller":      {search(&deputyv1.SearchEntriesRequest{Caller: "agent:planner"}), whole, search(&deputyv1.SearchEntriesRequest{Caller: "agent:nobody"})},
		"reach of researcher":   {reach("agent:researcher"), append([]string{"agent:researcher", "person-olga"}, whole...), reach("agent:nobody")},
		"stream": {func(ctx context.Context) error {
			stream, err := l.audit.StreamEntries(ctx, &deputyv1.StreamEntriesRequest{})
			for err == nil {
				_, err = stream.Recv()
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}, whole, nil},
		"checkpoint": {func(ctx context.Context) error {
			_, err := l.audit.GetCheckpoint(ctx, &deputyv1.GetCheckpointRequest{})
			return err
		}, roles, nil},
		"growth": {func(ctx context.Context) error {
			_, err := l.audit.GetProofs(ctx, &deputyv1.GetProofsRequest{OldSize: 1})
			return err
		}, roles, nil},
	}
}

func TestWhoMayAsk(t *testing.T) {
	l := newLibrary(t)
	for name, c := range l.questions() {
		for _, tenant := range []string{"default", "other"} {
			for _, role := range roles {
				got := l.ask(t, role, tenant, c.call)
				if want := slices.Contains(c.may, role); got.allowed != want {
					t.Errorf("%s: %s of %s: allowed %t", name, role, tenant, got.allowed)
				}
				if !got.allowed && c.like != nil {
					if nothing := l.ask(t, role, tenant, c.like); got != nothing {
						t.Errorf("%s: %s of %s: %+v, but about nothing %+v", name, role, tenant, got, nothing)
					}
				}
			}
		}
	}
}

// TestWhatIsWithheld: an entry that a reader may read only in part withholds the rest, in its
// record too, and the record still gives the leaf. A refused read leaves an entry with no details.
func TestWhatIsWithheld(t *testing.T) {
	l := newLibrary(t)
	n := l.Tenants["default"]
	n.FGA.Deny("agent:writer", "holder", "scope:calendar.read")
	parent := l.chains["default"][1]
	if _, refusal := l.One(t.Context(), n.Call(t, parent.AccessToken, exchangetest.Researcher, exchangetest.Writer)); refusal == nil {
		t.Fatal("granted")
	}
	at := uint64(l.count(t, "default"))
	for role, whole := range map[string]bool{"agent:planner": false, "agent:researcher": false, "person-alice": false, "person-olga": false, "agent:auditor": true} {
		got, err := l.audit.GetEntry(l.as(t, role, "default"), &deputyv1.GetEntryRequest{Entry: at})
		if err != nil {
			t.Fatalf("%s: %v", role, err)
		}
		e := got.GetEntry()
		shown := strings.Contains(e.GetDetail()+e.GetRecord(), "missing: ")
		if shown != whole || slices.Contains(e.GetErased(), "detail") == shown {
			t.Errorf("%s reads %q, erased %v", role, e.GetDetail(), e.GetErased())
		}
		if (e.GetPeer() != "") != (whole || role == "agent:researcher") {
			t.Errorf("%s reads that the call came from %q", role, e.GetPeer())
		}
		record, err := audit.ParseRecord([]byte(e.GetRecord()))
		if err == nil {
			err = record.Verify()
		}
		if err != nil || string(record.LeafHash[:]) != string(e.GetLeafHash()) {
			t.Errorf("%s: the record: %v", role, err)
		}
	}
	if _, err := l.audit.GetEntry(l.as(t, "agent:stranger", "default"), &deputyv1.GetEntryRequest{Entry: at}); err == nil {
		t.Error("a stranger reads it")
	}
	if _, err := l.audit.GetEntry(l.as(t, "agent:writer", "default"), &deputyv1.GetEntryRequest{Entry: at}); err == nil {
		t.Error("who was asked for, and got nothing, reads it")
	}
	last, err := l.Ledger.EntryAt(t.Context(), "default", uint64(l.count(t, "default")))
	if err != nil || last.Kind != ledger.KindRefusal || last.Reason != delegation.NotFound || last.Caller != "agent:writer" ||
		last.ID+last.Parent+last.Txn+string(last.Subject) != "" || last.Detail != "reading: no such entry, or none that you may see" {
		t.Errorf("recorded: %+v, %v", last, err)
	}
}

// TestTheMatrixIsWhole: the matrix has each method of the service.
func TestTheMatrixIsWhole(t *testing.T) {
	l := newLibrary(t)
	for name, call := range l.byGrant() {
		if got := l.ask(t, "agent:auditor", "default", func(ctx context.Context) error { return call(ctx, l.grants("default")[0]) }); !got.allowed {
			t.Error(name)
		}
	}
	for name, c := range l.questions() {
		if got := l.ask(t, "agent:auditor", "default", c.call); !got.allowed {
			t.Error(name)
		}
	}
	service := deputyv1.AuditService_ServiceDesc
	for _, m := range service.Methods {
		if !l.called["/"+service.ServiceName+"/"+m.MethodName] {
			t.Errorf("nobody asks %s", m.MethodName)
		}
	}
	for _, m := range service.Streams {
		if !l.called["/"+service.ServiceName+"/"+m.StreamName] {
			t.Errorf("nobody asks %s", m.StreamName)
		}
	}
}
