package exchange_test

import (
	"fmt"
	"testing"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/ledger"
)

// stageOfAgents is a world with an auditor, a responder and an operator, who sign in.
func stageOfAgents(t *testing.T) (w *exchangetest.World, n *exchangetest.Tenant, as func(string) exchange.Inquiry) {
	t.Helper()
	w = exchangetest.New(t, exchangetest.Config{Tenants: []string{"default", "other"}})
	n = w.Tenant()
	n.FGA.Allow("user:audrey", "auditor", "system:deputy")
	n.FGA.Allow("user:rita", "auditor", "system:deputy")
	n.FGA.Allow("user:rita", "responder", "system:deputy")
	n.FGA.Allow("user:olga", "operator", "agent:researcher")
	w.Chain(t, n, planner, researcher)
	return w, n, func(who string) exchange.Inquiry {
		return exchange.Inquiry{Credentials: exchange.Credentials{Person: w.SignIn(t, n, who)}, Peer: "192.0.2.9:1"}
	}
}

// TestAgentsAreForAuditors: an operator and a subject see no list.
func TestAgentsAreForAuditors(t *testing.T) {
	w, _, as := stageOfAgents(t)
	suspend := exchange.RevokeCall{Credentials: as("rita").Credentials, Target: delegation.Target{Kind: delegation.BanSuspend, ID: string(researcher)}, Reason: "key found"}
	if _, err := w.Engine.Revoke(t.Context(), suspend); err != nil {
		t.Fatal(err)
	}
	for who, want := range map[string]delegation.Reason{"audrey": "", "rita": "", "olga": delegation.NotFound, "alice": delegation.NotFound} {
		window, err := w.Engine.Agents(t.Context(), as(who))
		if got := reason(err); got != want || (len(window.Agents) == 2) != (want == "") {
			t.Errorf("agents for %s: %q, %+v", who, got, window)
		}
		page, next, err := w.Engine.Suspensions(t.Context(), as(who), 0)
		if got := reason(err); got != want || (len(page) == 1) != (want == "") || next != 0 {
			t.Errorf("suspensions for %s: %q, %+v", who, got, page)
		}
		if want == "" && (page[0].Target.ID != string(researcher) || page[0].Recorded.Entry == nil || page[0].Recorded.Detail != "key found" || page[0].Recorded.Caller != "user:rita") {
			t.Errorf("suspended is %+v: %+v", page[0].Revocation, page[0].Recorded.Entry)
		}
	}
	if page, _, err := w.Engine.Suspensions(t.Context(), as("audrey"), 1); err != nil || len(page) != 0 {
		t.Errorf("before entry 1: %+v, %v", page, err)
	}
	other := w.Tenants["other"]
	other.FGA.Allow("user:audrey", "auditor", "system:deputy")
	window, err := w.Engine.Agents(t.Context(), exchange.Inquiry{Credentials: exchange.Credentials{Person: w.SignIn(t, other, "audrey")}})
	if err != nil || len(window.Agents) != 0 {
		t.Errorf("another tenant's auditor: %+v, %v", window, err)
	}
}

// TestMayRevokeIsWhatRevokeDoes compares both for the same targets.
func TestMayRevokeIsWhatRevokeDoes(t *testing.T) {
	w, _, as := stageOfAgents(t)
	targets := []delegation.Target{
		{Kind: delegation.BanSuspend, ID: string(researcher)}, {Kind: delegation.BanSuspend, ID: "agent:never-was"}, {Kind: delegation.Resume, ID: string(researcher)},
		{Kind: delegation.CutSubject, ID: "user:alice"}, {Kind: delegation.CutSubject, ID: "user:bob"}, {Kind: delegation.CutAgent, ID: string(planner)},
		{Kind: delegation.CutTenant}, {Kind: delegation.BanKey, ID: "of-no-agent"}, {Kind: delegation.BanToken, ID: "of-nothing"},
		{Kind: delegation.CutAgentSubject, ID: string(planner), Subject: "user:alice"},
	}
	for who, want := range map[string]string{
		"rita":   "[true true true true true true true true true true]",
		"audrey": "[false false false false false false false false false false]",
		"olga":   "[true false true false false false false false false false]",
		"alice":  "[false false false true false false false false false true]",
	} {
		may, err := w.Engine.MayRevoke(t.Context(), as(who), targets...)
		if err != nil || fmt.Sprint(may) != want {
			t.Errorf("%s may %v, want %s, %v", who, may, want, err)
			continue
		}
		for i, target := range targets {
			_, err := w.Engine.Revoke(t.Context(), exchange.RevokeCall{Credentials: as(who).Credentials, Target: target, DryRun: true})
			if may[i] != (err == nil) {
				t.Errorf("%s may %t revoke %+v, and then %v", who, may[i], target, err)
			}
		}
	}
}

// TestAnAgentThatNeverWas: for an auditor it differs from an agent that holds nothing. For other
// callers, and in other tenants, both give one answer.
func TestAnAgentThatNeverWas(t *testing.T) {
	w, n, as := stageOfAgents(t)
	n.FGA.Deny("agent:writer", "holder", "scope:calendar.read")
	parent := w.Chain(t, n, planner)[0]
	if _, refusal := w.One(t.Context(), n.Call(t, parent.AccessToken, planner, "agent:writer")); refusal == nil {
		t.Fatal("granted")
	}
	w.Clock().Advance(exchange.MaxSession / 24) // what was granted has expired
	other := w.Tenants["other"]
	other.FGA.Allow("user:audrey", "auditor", "system:deputy")
	elsewhere := exchange.Inquiry{Credentials: exchange.Credentials{Person: w.SignIn(t, other, "audrey")}}
	for agent, there := range map[delegation.Principal]bool{researcher: true, planner: true, "agent:writer": false, "agent:never-was": false} {
		reach, err := w.Engine.Reach(t.Context(), as("audrey"), agent, 0)
		if err != nil || reach.Live != 0 || (reach.Seen > 0) != there || reach.SeenTruncated {
			t.Errorf("%s: %d live, seen in %d (%t), %v", agent, reach.Live, reach.Seen, reach.SeenTruncated, err)
		}
		if reach, err := w.Engine.Reach(t.Context(), elsewhere, agent, 0); err != nil || reach.Seen != 0 {
			t.Errorf("%s in another tenant: seen in %d, %v", agent, reach.Seen, err)
		}
		if _, err := w.Engine.Reach(t.Context(), as("alice"), agent, 0); reason(err) != delegation.NotFound {
			t.Errorf("%s for a person who may not ask: %v", agent, err)
		}
	}
}

// TestPeersAreForAuditors: a search must not find by a field that is withheld in the entries.
func TestPeersAreForAuditors(t *testing.T) {
	w, _, as := stageOfAgents(t)
	all, _, err := w.Engine.Search(t.Context(), as("audrey"), ledger.Query{Kind: ledger.KindGrant, Limit: 1})
	if err != nil || len(all) != 1 {
		t.Fatalf("%d entries, %v", len(all), err)
	}
	q := ledger.Query{Subject: "user:alice", Peer: all[0].Peer, Limit: 10}
	if found, _, err := w.Engine.Search(t.Context(), as("audrey"), q); err != nil || len(found) == 0 {
		t.Errorf("an auditor finds %d, %v", len(found), err)
	}
	if found, _, err := w.Engine.Search(t.Context(), as("alice"), q); reason(err) != delegation.NotFound {
		t.Errorf("the subject finds %d, %v", len(found), err)
	}
}
