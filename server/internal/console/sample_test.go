package console

import (
	"fmt"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/policy"
)

// longName is a name like those of Kubernetes service accounts.
const longName = delegation.Principal("agent:k8s/system%3Aserviceaccount%3Aagents%3Asummarizer")

// sample fills the stage with a short example: a chain of three that narrows, a refusal, a
// revocation.
func (s *stage) sample(t testing.TB) {
	at := s.clock.Add(-10 * time.Minute)
	grant := func(seq uint64, parent string, actors delegation.Chain, state exchange.State, audience []string, scope ...string) exchange.Recorded {
		return exchange.Recorded{State: state, Entry: &ledger.Entry{
			Tenant: "demo", Seq: seq, Kind: ledger.KindGrant, Time: at.Add(time.Duration(seq) * time.Second), ID: fmt.Sprintf("01M80MB5RF8N5796EC20R8%04d", seq),
			Parent: parent, Txn: "01M80MB5RFPHKK75VZ9J4PFTG6", Root: "nIAZ9QOTEX_2xQ3rdm9T4SH7hZEZq0ORIBtI8MgGkfY", Outcome: ledger.Granted,
			Scopes: scopes(t, scope...), Audiences: audience, Expiry: s.clock.Add(40 * time.Minute), Subject: alice,
			Actor: actors.Current(), Caller: actors[0], Actors: actors, Peer: "10.2.3.4:50112", ActorProof: "actor_token",
			ModelID: "01BX5ZZKBKACTAV9WEVGEMMVRZ", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736",
		}}
	}
	calendar, both := []string{"https://calendar.example"}, []string{"https://calendar.example", "https://mail.example"}
	first := grant(41, "", delegation.Chain{"agent:planner"}, exchange.StateLive, both, "calendar.read", "calendar.write", "contacts.read", "mail.read")
	second := grant(42, first.ID, delegation.Chain{"agent:planner", "agent:researcher"}, exchange.StateLive, calendar, "calendar.read", "contacts.read")
	third := grant(57, second.ID, delegation.Chain{"agent:planner", "agent:researcher", longName}, exchange.StateRevoked, calendar, "calendar.read")
	third.RevokedBy = 58
	refusal := exchange.Recorded{Entry: &ledger.Entry{
		Tenant: "demo", Seq: 43, Kind: ledger.KindRefusal, Time: at.Add(time.Minute), Outcome: ledger.Refused, Reason: delegation.ScopeExceedsParent,
		Scopes: scopes(t, "mail.read"), Audiences: calendar, Subject: alice, Actor: "agent:researcher", Caller: "agent:planner", Actors: delegation.Chain{"agent:planner", "agent:researcher"},
		Detail: "the subject token does not hold mail.read", Peer: "10.2.3.4:50112",
	}}
	revocation := exchange.Recorded{Entry: &ledger.Entry{
		Tenant: "demo", Seq: 58, Kind: ledger.KindRevocation, Time: at.Add(2 * time.Minute), Outcome: ledger.Done, Caller: rita, Detail: "key found in a public repository",
		Revocation: &delegation.Revocation{Seq: 58, Target: delegation.Target{Kind: delegation.BanToken, ID: third.ID}, Until: s.clock.Add(time.Hour)},
	}}
	s.engine.entries = []exchange.Recorded{revocation, third, refusal, second, first}
	for i := range uint64(12) {
		s.engine.entries = append(s.engine.entries, grant(30-i, "", delegation.Chain{"agent:planner"}, exchange.StateExpired, calendar, "calendar.read"))
	}
	s.engine.chain = []exchange.Recorded{first, second, third}
	s.engine.descendants = []exchange.Descendant{{Recorded: second, Depth: 1}, {Recorded: third, Depth: 2}, {Recorded: grant(59, first.ID, delegation.Chain{"agent:planner", "agent:writer"}, exchange.StateLive, calendar, "calendar.write"), Depth: 1}}
	s.engine.reach = exchange.Reach{
		Time: s.clock, Entry: 59, Tokens: []exchange.Recorded{second, grant(44, "", delegation.Chain{"agent:planner", "agent:researcher"}, exchange.StateLive, []string{"https://mail.example"}, "mail.read")},
		Live: 2, Below: 1, Obtainable: []policy.Obtainable{
			{Path: []delegation.Principal{alice, "agent:planner", "agent:researcher"}, Scopes: scopes(t, "calendar.read", "mail.read"), Audiences: both},
			{Path: []delegation.Principal{"user:bob", "agent:planner", "agent:researcher"}, Scopes: scopes(t, "calendar.read"), Audiences: calendar},
		},
	}
	s.engine.window = ledger.Window{From: 1, Through: 59, Since: at, Agents: []ledger.Activity{
		{Agent: "agent:planner", Last: 59, At: at, Granted: 14, Refused: 1}, {Agent: longName, Last: 57, At: at, Granted: 1}, {Agent: "agent:prober", Last: 12, At: at, Refused: 9},
	}}
	suspends := *revocation.Entry
	suspends.Revocation = &delegation.Revocation{Seq: 58, At: at, Target: delegation.Target{Kind: delegation.BanSuspend, ID: "agent:prober"}}
	s.engine.suspended = []exchange.Suspension{{Revocation: *suspends.Revocation, Recorded: exchange.Recorded{Entry: &suspends}}}
	s.engine.checkpoint = exchange.Checkpoint{VerifierKey: "deputy.example/t/demo+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", Checkpoint: ledger.Checkpoint{
		Note: "deputy.example/t/demo\n58\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\ntime 2026-11-23T12:00:00Z\n\n— deputy.example/t/demo Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n",
		Size: 58, Root: [32]byte{10, 197, 24, 106, 145, 134, 62, 142}, Time: s.clock.Add(-time.Second),
	}}
}
