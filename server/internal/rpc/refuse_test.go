package rpc

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// TestMetadata checks which metadata may carry a credential, for every method.
func TestMetadata(t *testing.T) {
	client := &deputyv1.ClientAuthentication{ClientAssertion: "a"}
	type row struct {
		name   string
		pairs  []string
		client *deputyv1.ClientAuthentication
		reason delegation.Reason // "": accepted
		none   bool              // it has no credential, which only an exchange permits
	}
	rows := []row{
		{name: "nothing", none: true},
		{name: "metadata that mean nothing here", pairs: []string{"x-request-id", "x"}, none: true},
		{name: "bearer", pairs: []string{"authorization", "Bearer x"}},
		{name: "bearer in another case", pairs: []string{"Authorization", "BEARER x"}},
		{name: "in the request", client: client},
		{name: "twice", pairs: []string{"authorization", "Bearer x", "authorization", "Bearer x"}, reason: delegation.ParameterRepeated},
		{name: "another scheme", pairs: []string{"authorization", "Basic eDp5"}, reason: delegation.ClientUnauthenticated},
		{name: "no scheme", pairs: []string{"authorization", "x"}, reason: delegation.ClientUnauthenticated},
		{name: "no credential", pairs: []string{"authorization", "Bearer "}, reason: delegation.ClientUnauthenticated},
		{name: "empty", pairs: []string{"authorization", ""}, reason: delegation.ClientUnauthenticated},
		{name: "two in one", pairs: []string{"authorization", "Bearer x, Bearer y"}, reason: delegation.ClientUnauthenticated},
		{name: "both", pairs: []string{"authorization", "Bearer x"}, client: client, reason: delegation.ParameterConflict},
		{name: "both, one of them empty", pairs: []string{"authorization", "Bearer x"}, client: &deputyv1.ClientAuthentication{}, reason: delegation.ParameterConflict},
	}
	for _, key := range foreignCredentials {
		rows = append(rows, row{name: key, pairs: []string{key, "x"}, reason: delegation.ParameterUnsupported})
	}
	engine := granting()
	tokens, _ := stubs(t, engine)
	engine.tail = engine.tails
	audit := audits(t, Config{Engine: engine})
	revoking := revocations(t, Config{Engine: engine})
	target := &deputyv1.RevocationTarget{Kind: deputyv1.RevocationKind_REVOCATION_KIND_TOKEN, Id: "01JID"}
	child := &deputyv1.Child{ActorToken: "may authenticate"}
	methods := map[string]func(context.Context, *deputyv1.ClientAuthentication) error{
		"Exchange": func(ctx context.Context, c *deputyv1.ClientAuthentication) error {
			_, err := tokens.Exchange(ctx, &deputyv1.ExchangeRequest{Client: c, Child: child})
			return err
		},
		"BatchExchange": func(ctx context.Context, c *deputyv1.ClientAuthentication) error {
			_, err := tokens.BatchExchange(ctx, &deputyv1.BatchExchangeRequest{Client: c, Children: []*deputyv1.Child{child}})
			return err
		},
		"Introspect": func(ctx context.Context, c *deputyv1.ClientAuthentication) error {
			_, err := tokens.Introspect(ctx, &deputyv1.IntrospectRequest{Client: c})
			return err
		},
		"GetChain": func(ctx context.Context, c *deputyv1.ClientAuthentication) error {
			_, err := audit.GetChain(ctx, &deputyv1.GetChainRequest{Client: c})
			return err
		},
		"GetEntry": func(ctx context.Context, c *deputyv1.ClientAuthentication) error {
			_, err := audit.GetEntry(ctx, &deputyv1.GetEntryRequest{Client: c})
			return err
		},
		"ListDescendants": func(ctx context.Context, c *deputyv1.ClientAuthentication) error {
			_, err := audit.ListDescendants(ctx, &deputyv1.ListDescendantsRequest{Client: c})
			return err
		},
		"SearchEntries": func(ctx context.Context, c *deputyv1.ClientAuthentication) error {
			_, err := audit.SearchEntries(ctx, &deputyv1.SearchEntriesRequest{Client: c})
			return err
		},
		"Reach": func(ctx context.Context, c *deputyv1.ClientAuthentication) error {
			_, err := audit.Reach(ctx, &deputyv1.ReachRequest{Client: c})
			return err
		},
		"GetCheckpoint": func(ctx context.Context, c *deputyv1.ClientAuthentication) error {
			_, err := audit.GetCheckpoint(ctx, &deputyv1.GetCheckpointRequest{Client: c})
			return err
		},
		"GetProofs": func(ctx context.Context, c *deputyv1.ClientAuthentication) error {
			_, err := audit.GetProofs(ctx, &deputyv1.GetProofsRequest{Client: c})
			return err
		},
		"StreamEntries": func(ctx context.Context, c *deputyv1.ClientAuthentication) error {
			return streamed(audit.StreamEntries(ctx, &deputyv1.StreamEntriesRequest{Client: c}))
		},
		"Revoke": func(ctx context.Context, c *deputyv1.ClientAuthentication) error {
			_, err := revoking.Revoke(ctx, &deputyv1.RevokeRequest{Client: c, Target: target})
			return err
		},
		"Suspend": func(ctx context.Context, c *deputyv1.ClientAuthentication) error {
			_, err := revoking.Suspend(ctx, &deputyv1.SuspendRequest{Client: c, Agent: "agent:a"})
			return err
		},
		"Resume": func(ctx context.Context, c *deputyv1.ClientAuthentication) error {
			_, err := revoking.Resume(ctx, &deputyv1.ResumeRequest{Client: c, Agent: "agent:a"})
			return err
		},
		"GetReceipts": func(ctx context.Context, c *deputyv1.ClientAuthentication) error {
			_, err := revoking.GetReceipts(ctx, &deputyv1.GetReceiptsRequest{Client: c})
			return err
		},
	}
	for _, r := range rows {
		for name, call := range methods {
			before := engine.asked()
			err := call(bare(with(t.Context(), r.pairs...)), r.client)
			want := r.reason
			if r.none && !strings.HasSuffix(name, "Exchange") {
				want = delegation.ClientUnauthenticated
			}
			if want == "" {
				if err != nil || engine.asked() != before+1 {
					t.Errorf("%s, %s: %v", name, r.name, err)
				}
				continue
			}
			if e := delegation.FromStatus(err); e == nil || e.Reason != want || engine.asked() != before {
				t.Errorf("%s, %s: %v, want %s", name, r.name, err, want)
			}
		}
	}
}

// TestUnknownFields: a field without a name in this version may request a narrower token. It is
// refused in every message and submessage. The same message without it is accepted, which shows
// that the refusal is about the field.
func TestUnknownFields(t *testing.T) {
	engine := granting()
	tokens, _ := stubs(t, engine)
	engine.tail = engine.tails
	audit := audits(t, Config{Engine: engine})
	revoking := revocations(t, Config{Engine: engine})
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 2000, protowire.VarintType), 1)
	child, client := &deputyv1.Child{}, &deputyv1.ClientAuthentication{ClientAssertion: "a"}
	single := &deputyv1.ExchangeRequest{Child: child, Client: client}
	batch := &deputyv1.BatchExchangeRequest{Children: []*deputyv1.Child{{}, child}, Client: client}
	introspect, chain := &deputyv1.IntrospectRequest{Client: client}, &deputyv1.GetChainRequest{Client: client}
	entry, tree := &deputyv1.GetEntryRequest{Client: client}, &deputyv1.ListDescendantsRequest{Client: client}
	search, reach := &deputyv1.SearchEntriesRequest{Client: client}, &deputyv1.ReachRequest{Client: client}
	checkpoint, proofs := &deputyv1.GetCheckpointRequest{Client: client}, &deputyv1.GetProofsRequest{Client: client}
	entries := &deputyv1.StreamEntriesRequest{Client: client}
	target := &deputyv1.RevocationTarget{Kind: deputyv1.RevocationKind_REVOCATION_KIND_TOKEN, Id: "01JID"}
	revoke, suspend := &deputyv1.RevokeRequest{Client: client, Target: target}, &deputyv1.SuspendRequest{Client: client}
	resume, receipts := &deputyv1.ResumeRequest{Client: client}, &deputyv1.GetReceiptsRequest{Client: client}
	call := map[proto.Message]func() error{
		single:     func() error { _, err := tokens.Exchange(t.Context(), single); return err },
		batch:      func() error { _, err := tokens.BatchExchange(t.Context(), batch); return err },
		introspect: func() error { _, err := tokens.Introspect(t.Context(), introspect); return err },
		chain:      func() error { _, err := audit.GetChain(t.Context(), chain); return err },
		entry:      func() error { _, err := audit.GetEntry(t.Context(), entry); return err },
		tree:       func() error { _, err := audit.ListDescendants(t.Context(), tree); return err },
		search:     func() error { _, err := audit.SearchEntries(t.Context(), search); return err },
		reach:      func() error { _, err := audit.Reach(t.Context(), reach); return err },
		checkpoint: func() error { _, err := audit.GetCheckpoint(t.Context(), checkpoint); return err },
		proofs:     func() error { _, err := audit.GetProofs(t.Context(), proofs); return err },
		entries:    func() error { return streamed(audit.StreamEntries(bare(t.Context()), entries)) },
		revoke:     func() error { _, err := revoking.Revoke(t.Context(), revoke); return err },
		suspend:    func() error { _, err := revoking.Suspend(t.Context(), suspend); return err },
		resume:     func() error { _, err := revoking.Resume(t.Context(), resume); return err },
		receipts:   func() error { _, err := revoking.GetReceipts(t.Context(), receipts); return err },
	}
	all := slices.Collect(maps.Keys(call))
	for where, callers := range map[proto.Message][]proto.Message{
		single: {single}, batch: {batch}, introspect: {introspect}, chain: {chain},
		entry: {entry}, tree: {tree}, search: {search}, reach: {reach}, checkpoint: {checkpoint}, proofs: {proofs}, entries: {entries},
		revoke: {revoke}, suspend: {suspend}, resume: {resume}, receipts: {receipts}, target: {revoke}, child: {single, batch}, client: all,
	} {
		for _, through := range callers {
			if err := call[through](); err != nil {
				t.Fatal(err)
			}
			where.ProtoReflect().SetUnknown(unknown)
			err := call[through]()
			where.ProtoReflect().SetUnknown(nil)
			if e := delegation.FromStatus(err); e == nil || e.Reason != delegation.ParameterUnsupported {
				t.Errorf("%T in %T: %v", where, through, err)
			}
		}
	}
}
