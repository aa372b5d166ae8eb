package guard_test

import (
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/testservers"
)

// TestPeekSeesWhatAuditSees changes the lists of one tenant among three, which both then have to notice.
func TestPeekSeesWhatAuditSees(t *testing.T) {
	server := testservers.NewRedis(t)
	client, err := guard.Dial(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	g := guard.New(guard.Config{Client: client, Timeout: 5 * time.Second})
	ctx := t.Context()
	live := []delegation.Revocation{
		{Seq: 3, Target: delegation.Target{Kind: delegation.BanChain, ID: "x"}},
		{Seq: 7, Prev: 3, Target: delegation.Target{Kind: delegation.BanSuspend, ID: "agent:a"}},
	}
	const list, events = "{acme}:revoked:list", "{acme}:revoked:events"
	for name, harm := range map[string]struct {
		do    func() error
		right bool
	}{
		"nothing":         {func() error { return nil }, true},
		"all gone":        {func() error { return client.FlushAll(ctx).Err() }, false},
		"a field gone":    {func() error { return client.HDel(ctx, list, "chain:x").Err() }, false},
		"a field changed": {func() error { return client.HSet(ctx, list, "chain:x", "2:0").Err() }, false},
		"a field more":    {func() error { return client.HSet(ctx, list, "chain:y", "2:0").Err() }, false},
		"head behind":     {func() error { return client.HSet(ctx, list, "head", "3").Err() }, false},
		"head ahead":      {func() error { return client.HSet(ctx, list, "head", "9").Err() }, false},
		"no number":       {func() error { return client.HSet(ctx, list, "head", "x").Err() }, false},
		"no list":         {func() error { return client.Set(ctx, list, "x", 0).Err() }, false},
		"no stream":       {func() error { return client.Set(ctx, events, "x", 0).Err() }, false},
	} {
		if err := client.FlushAll(ctx).Err(); err != nil {
			t.Fatal(err)
		}
		for tenant, revoked := range map[string][]delegation.Revocation{"acme": live, "globex": live, "empty": nil} {
			last := uint64(0)
			if len(revoked) > 0 {
				last = 7
			}
			if err := g.Republish(ctx, tenant, revoked, last); err != nil {
				t.Fatal(err)
			}
		}
		if err := harm.do(); err != nil {
			t.Fatal(err)
		}
		peeks, err := g.Peek(ctx, "globex", "acme", "empty")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		audited, err := g.Audit(ctx, "acme", live, 7)
		if right := peeks[1].Right(live, 7); err != nil || right != harm.right || right != audited {
			t.Errorf("%s: peek returns %t, audit %t, %v", name, right, audited, err)
		}
		if others := peeks[0].Right(live, 7) && peeks[2].Right(nil, 0); others != (name != "all gone") {
			t.Errorf("%s: the others are right: %t", name, others)
		}
	}
	server.Kill()
	if _, err := g.Peek(ctx, "acme"); err == nil {
		t.Error("a Redis that is gone has an answer")
	}
}
