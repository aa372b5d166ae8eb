package client

import (
	"errors"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// revokeTargets has a row for each way to aim a revocation, with its wire form.
var revokeTargets = map[string]struct {
	target Target
	want   *deputyv1.RevocationTarget
}{
	"grant":      {RevokeGrant("jti-1"), &deputyv1.RevocationTarget{Kind: 1, Id: "jti-1"}},
	"chain":      {RevokeChain("txn-1"), &deputyv1.RevocationTarget{Kind: 2, Id: "txn-1"}},
	"root":       {RevokeRoot("9f2c"), &deputyv1.RevocationTarget{Kind: 3, Id: "9f2c"}},
	"key":        {RevokeKey("thumb"), &deputyv1.RevocationTarget{Kind: 4, Id: "thumb"}},
	"subject":    {RevokeSubject("user:alice"), &deputyv1.RevocationTarget{Kind: 6, Id: "user:alice"}},
	"agent":      {RevokeAgent("agent:planner"), &deputyv1.RevocationTarget{Kind: 7, Id: "agent:planner"}},
	"agent for":  {RevokeAgentFor("agent:planner", "user:alice"), &deputyv1.RevocationTarget{Kind: 8, Id: "agent:planner", Subject: "user:alice"}},
	"everything": {RevokeEverything(), &deputyv1.RevocationTarget{Kind: 9}},
}

func TestRevoke(t *testing.T) {
	for name, test := range revokeTargets {
		t.Run(name, func(t *testing.T) {
			s := startDeputy(t)
			c := connect(t, s, plannerAssertion(t, s.Issuer))
			parent, err := c.Exchange(t.Context(), ExchangeRequest{
				SubjectToken: NewSecret(s.RootToken("alice")),
				Child:        Child{Scopes: delegation.Scopes{"calendar.read"}, Audience: []string{calendar}},
			})
			if err != nil {
				t.Fatal(err)
			}
			request := RevokeRequest{Target: test.target, Reason: "test", DryRun: true}
			dry, err := c.Revoke(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			hits := 1
			if name == "key" || name == "grant" { // of other chains
				hits = 0
			}
			if dry.Revocation != nil || !dry.Counted || dry.Tokens != hits || dry.Chains != hits || len(dry.Grants) != hits || s.LastRevocation() != 0 {
				t.Errorf("dry run: %+v", dry)
			}
			if hits == 1 {
				if g := dry.Grants[0]; g.JTI != parent.JTI || g.Subject != "user:alice" || g.Actor != "agent:planner" || g.Parent != "" ||
					!g.Scope.Contains("calendar.read") || g.Audience[0] != calendar || time.Until(g.Expiry) < time.Minute {
					t.Errorf("grant: %+v", g)
				}
			}
			request.DryRun = false
			revoked, err := c.Revoke(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			r := revoked.Revocation
			if r == nil || r.Seq != s.LastRevocation() || wireKind(r.Target.Kind) != test.want.GetKind() || r.Target.ID != test.want.GetId() ||
				string(r.Target.Subject) != test.want.GetSubject() || !revoked.Counted || revoked.Tokens != hits || len(revoked.Grants) != 0 {
				t.Errorf("revoked: %+v, %+v", revoked, r)
			}
			if in, err := c.Introspect(t.Context(), parent.AccessToken); err != nil || in.Active != (hits == 0) {
				t.Errorf("afterwards: %+v, %v", in, err)
			}
		})
	}
}

func TestRevokeTokens(t *testing.T) {
	s := startDeputy(t)
	c := connect(t, s, plannerAssertion(t, s.Issuer))
	for name, target := range map[string]Target{
		"derived": RevokeToken(NewSecret(s.Token(s.Claims(time.Now())))), "root": RevokeRootToken(NewSecret(s.RootToken("alice"))),
	} {
		revoked, err := c.Revoke(t.Context(), RevokeRequest{Target: target})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]delegation.Target{
			"derived": {Kind: delegation.BanToken, ID: "jti-2"}, "root": {Kind: delegation.BanRoot, ID: "9f2c"},
		}[name]
		if revoked.Revocation == nil || revoked.Revocation.Target != want {
			t.Errorf("%s: %+v", name, revoked.Revocation)
		}
	}
}

func TestRevokeRefuses(t *testing.T) {
	s := startDeputy(t)
	c := connect(t, s, plannerAssertion(t, s.Issuer))
	for name, target := range map[string]Target{
		"nothing": {}, "no jti": RevokeGrant(""), "no agent": RevokeAgent(""), "half a pair": RevokeAgentFor("agent:x", ""),
		"no token": RevokeToken(Secret{}), "not a name": RevokeSubject("alice"),
	} {
		if _, err := c.Revoke(t.Context(), RevokeRequest{Target: target}); reason(t, err).Wire().OAuth != "invalid_request" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(s.Bearers()); n != 0 {
		t.Errorf("%d calls were made", n)
	}
	if _, err := c.Revoke(t.Context(), RevokeRequest{Target: RevokeAgent("agent:unknown")}); reason(t, err) != delegation.AccessDenied {
		t.Errorf("err = %v", err)
	}
}

func TestSuspendAndResume(t *testing.T) {
	s := startDeputy(t)
	c := connect(t, s, plannerAssertion(t, s.Issuer))
	dry, err := c.Suspend(t.Context(), SuspendRequest{Agent: "agent:planner", DryRun: true})
	if err != nil || dry.Revocation != nil {
		t.Fatalf("%+v, %v", dry, err)
	}
	suspended, err := c.Suspend(t.Context(), SuspendRequest{Agent: "agent:planner", Reason: "test"})
	if err != nil || suspended.Revocation.Target != (delegation.Target{Kind: delegation.BanSuspend, ID: "agent:planner"}) || !suspended.Revocation.Until.IsZero() {
		t.Fatalf("%+v, %v", suspended, err)
	}
	resumed, err := c.Resume(t.Context(), "agent:planner", "test")
	if err != nil || resumed.Prev != suspended.Revocation.Seq || resumed.Target.Kind != delegation.Resume {
		t.Fatalf("%+v, %v", resumed, err)
	}
	at := time.Now().Truncate(time.Second)
	s.AddReceipt("a", "service:calendar", 7, at)
	receipts, err := c.Receipts(t.Context(), suspended.Revocation.Seq)
	if err != nil || len(receipts) != 1 || receipts[0].Verifier != "service:calendar" || receipts[0].Applied != 7 || !receipts[0].SeenAt.Equal(at) {
		t.Errorf("%+v, %v", receipts, err)
	}
	s.SetPartial(true)
	if receipts, err := c.Receipts(t.Context(), 0); !errors.Is(err, ErrPartialReceipts) || len(receipts) != 1 {
		t.Errorf("of one instance: %+v, %v", receipts, err)
	}
}

// TestRevokeTriesAgain: a revocation that may or may not have been recorded is requested again.
func TestRevokeTriesAgain(t *testing.T) {
	s := startDeputy(t)
	c := connect(t, s, plannerAssertion(t, s.Issuer))
	s.FailNext(unavailable(), unavailable())
	if _, err := c.Revoke(t.Context(), RevokeRequest{Target: RevokeAgent("agent:planner")}); err != nil || len(s.Bearers()) != 3 {
		t.Errorf("%v after %d calls", err, len(s.Bearers()))
	}
}
