package rpc

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
)

func aim(kind deputyv1.RevocationKind, id, subject string) *deputyv1.RevocationTarget {
	return &deputyv1.RevocationTarget{Kind: kind, Id: id, Subject: subject}
}

func TestRevoke(t *testing.T) {
	engine := granting()
	revoking := revocations(t, Config{Engine: engine})
	at := time.Unix(1795305600, 0)
	got, err := revoking.Revoke(with(t.Context(), "authorization", "Bearer assertion"), &deputyv1.RevokeRequest{
		Target: aim(deputyv1.RevocationKind_REVOCATION_KIND_AGENT_SUBJECT, "agent:a", "user:alice"), Reason: "leaked",
	})
	want := &deputyv1.RevokeResponse{Tokens: 3, Chains: 2, Counted: true, Revocation: &deputyv1.Revocation{
		Seq: 58, Prev: 12, Time: timestamppb.New(at), Until: timestamppb.New(at.Add(time.Hour)),
		Target: aim(deputyv1.RevocationKind_REVOCATION_KIND_AGENT_SUBJECT, "agent:a", "user:alice"),
	}}
	if err != nil || !proto.Equal(got, want) {
		t.Errorf("%v %v\nwant %v", err, got, want)
	}
	asked := engine.revocation[0]
	asked.Peer = ""
	if !reflect.DeepEqual(asked, exchange.RevokeCall{
		Credentials: exchange.Credentials{Bearer: "assertion"}, Reason: "leaked",
		Target: delegation.Target{Kind: delegation.CutAgentSubject, ID: "agent:a", Subject: "user:alice"},
	}) {
		t.Errorf("asked for %+v", asked)
	}
	dry, err := revoking.Revoke(t.Context(), &deputyv1.RevokeRequest{Token: "presented", DryRun: true})
	wantDry := &deputyv1.RevokeResponse{Tokens: 3, Chains: 2, Counted: true, Grants: []*deputyv1.AffectedGrant{{
		Jti: "01JID", Parent: "01JP", Txn: "01JTXN", Entry: 57, Subject: "user:alice", Actor: "agent:researcher",
		Scope: []string{"calendar.read"}, Audience: []string{"https://calendar.example"}, ExpiresAt: timestamppb.New(at.Add(time.Hour)),
	}}}
	if err != nil || !proto.Equal(dry, wantDry) || engine.revocation[1].Token != "presented" {
		t.Errorf("%v %v\nwant %v", err, dry, wantDry)
	}
	if _, err := revoking.Revoke(t.Context(), &deputyv1.RevokeRequest{RootToken: "root"}); err != nil || engine.revocation[2].RootToken != "root" {
		t.Errorf("a root token: %v", err)
	}
}

func TestSuspendResumeReceipts(t *testing.T) {
	engine := granting()
	revoking := revocations(t, Config{Engine: engine})
	suspended, err := revoking.Suspend(t.Context(), &deputyv1.SuspendRequest{Agent: "agent:a", Reason: "odd"})
	if err != nil || suspended.GetTokens() != 3 || !suspended.GetCounted() || suspended.GetRevocation().GetTarget().GetKind() != deputyv1.RevocationKind_REVOCATION_KIND_SUSPEND {
		t.Errorf("%v %v", suspended, err)
	}
	if dry, err := revoking.Suspend(t.Context(), &deputyv1.SuspendRequest{Agent: "agent:a", DryRun: true}); err != nil || dry.GetRevocation() != nil || len(dry.GetGrants()) != 1 {
		t.Errorf("%v %v", dry, err)
	}
	resumed, err := revoking.Resume(t.Context(), &deputyv1.ResumeRequest{Agent: "agent:a", Reason: "fine"})
	if err != nil || resumed.GetRevocation().GetTarget().GetKind() != deputyv1.RevocationKind_REVOCATION_KIND_RESUME {
		t.Errorf("%v %v", resumed, err)
	}
	for i, want := range []exchange.RevokeCall{
		{Target: delegation.Target{Kind: delegation.BanSuspend, ID: "agent:a"}, Reason: "odd"},
		{Target: delegation.Target{Kind: delegation.BanSuspend, ID: "agent:a"}, DryRun: true},
		{Target: delegation.Target{Kind: delegation.Resume, ID: "agent:a"}, Reason: "fine"},
	} {
		want.Peer, want.Credentials = engine.revocation[i].Peer, exchange.Credentials{Bearer: "somebody"}
		if !reflect.DeepEqual(engine.revocation[i], want) {
			t.Errorf("asked for %+v, want %+v", engine.revocation[i], want)
		}
	}
	receipts, err := revoking.GetReceipts(t.Context(), &deputyv1.GetReceiptsRequest{Entry: 58})
	want := &deputyv1.GetReceiptsResponse{Receipts: []*deputyv1.Receipt{
		{Id: "v1", Verifier: "service:tool", Applied: 58, SeenAt: timestamppb.New(time.Unix(1795305601, 0))},
	}}
	if err != nil || !proto.Equal(receipts, want) {
		t.Errorf("%v %v", receipts, err)
	}
	engine.receipts = func(context.Context, exchange.Inquiry, uint64) (exchange.Receipts, error) {
		return exchange.Receipts{Partial: true}, nil
	}
	receipts, err = revoking.GetReceipts(t.Context(), &deputyv1.GetReceiptsRequest{Entry: 58})
	if err != nil || !receipts.GetPartial() {
		t.Errorf("of one instance: %v %v", receipts, err)
	}
}

// TestRevokeRefuses: each request names nothing, two things, or something that this method does not
// do.
func TestRevokeRefuses(t *testing.T) {
	engine := granting()
	revoking := revocations(t, Config{Engine: engine})
	token := aim(deputyv1.RevocationKind_REVOCATION_KIND_TOKEN, "01JID", "")
	for name, r := range map[string]*deputyv1.RevokeRequest{
		"nothing":                {},
		"target and token":       {Target: token, Token: "x"},
		"target and root token":  {Target: token, RootToken: "x"},
		"token and root token":   {Token: "x", RootToken: "y"},
		"an empty target":        {Target: &deputyv1.RevocationTarget{}},
		"an unknown kind":        {Target: aim(99, "x", "")},
		"no id":                  {Target: aim(deputyv1.RevocationKind_REVOCATION_KIND_TOKEN, "", "")},
		"a subject too much":     {Target: aim(deputyv1.RevocationKind_REVOCATION_KIND_TOKEN, "x", "user:alice")},
		"half a pair":            {Target: aim(deputyv1.RevocationKind_REVOCATION_KIND_AGENT_SUBJECT, "agent:a", "")},
		"a tenant with an id":    {Target: aim(deputyv1.RevocationKind_REVOCATION_KIND_TENANT, "acme", "")},
		"an agent without type":  {Target: aim(deputyv1.RevocationKind_REVOCATION_KIND_AGENT, "a", "")},
		"suspend by another way": {Target: aim(deputyv1.RevocationKind_REVOCATION_KIND_SUSPEND, "agent:a", "")},
		"resume by another way":  {Target: aim(deputyv1.RevocationKind_REVOCATION_KIND_RESUME, "agent:a", "")},
	} {
		_, err := revoking.Revoke(t.Context(), r)
		if e := delegation.FromStatus(err); e == nil || e.Reason != delegation.ParameterInvalid || engine.asked() > 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := revoking.Revoke(t.Context(), &deputyv1.RevokeRequest{Target: token}); err != nil {
		t.Errorf("the same with nothing wrong: %v", err)
	}
}

// TestUnrecordedRevocation: an engine that breaks its contract causes an internal error. A caller
// would rely on a success that is not recorded.
func TestUnrecordedRevocation(t *testing.T) {
	engine := granting()
	recorded := exchange.Revoked{Revocation: &delegation.Revocation{Seq: 1}}
	for dry, done := range map[bool]exchange.Revoked{false: {}, true: recorded} {
		engine.revoke = func(context.Context, exchange.RevokeCall) (exchange.Revoked, error) { return done, nil }
		if _, err := revocations(t, Config{Engine: engine}).Revoke(t.Context(), &deputyv1.RevokeRequest{Token: "x", DryRun: dry}); status.Code(err) != codes.Internal {
			t.Errorf("dry run %v: %v", dry, err)
		}
	}
	engine.revoke = func(context.Context, exchange.RevokeCall) (exchange.Revoked, error) {
		return recorded, delegation.Unavailable("ledger", errors.New("cause-secret"))
	}
	if _, err := revocations(t, Config{Engine: engine}).Revoke(t.Context(), &deputyv1.RevokeRequest{Token: "x"}); status.Code(err) != codes.Unavailable {
		t.Errorf("not durable: %v", err)
	}
}

// TestKindsOnTheWire: every kind has a name in the API, and no two have the same.
func TestKindsOnTheWire(t *testing.T) {
	values := deputyv1.RevocationKind(0).Descriptor().Values()
	seen := make(map[delegation.TargetKind]bool)
	for i := range values.Len() {
		number := deputyv1.RevocationKind(values.Get(i).Number())
		kind, known := kinds[number]
		if known == (number == 0) || known && (seen[kind] || wireKind(kind) != number) {
			t.Errorf("%s is %q", number, kind)
		}
		seen[kind] = true
	}
	if wireKind("something else") != 0 {
		t.Error("an unknown kind has a name on the wire")
	}
}
