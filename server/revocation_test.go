package server

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/guard"
)

// watch connects a verifier and receives its snapshot.
func (i *instance) watch(t *testing.T) deputyv1.RevocationService_WatchRevocationsClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+i.site.assertion(t))
	stream, err := deputyv1.NewRevocationServiceClient(i.conn).WatchRevocations(ctx)
	if err != nil {
		t.Fatal(err)
	}
	hello := &deputyv1.WatchHello{Id: "verifier"}
	if err := stream.Send(&deputyv1.WatchRevocationsRequest{Message: &deputyv1.WatchRevocationsRequest_Hello{Hello: hello}}); err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || !m.GetSnapshot().GetComplete() {
		t.Fatalf("%v %v", m, err)
	}
	return stream
}

func (i *instance) revoke(ctx context.Context, t *testing.T, token string) (*deputyv1.RevokeResponse, error) {
	client := &deputyv1.ClientAuthentication{ClientAssertionType: delegation.ClientAssertionTypeJWTBearer, ClientAssertion: i.site.assertion(t)}
	return deputyv1.NewRevocationServiceClient(i.conn).Revoke(ctx, &deputyv1.RevokeRequest{Token: token, Client: client})
}

// TestRevocationReachesVerifiersOfAnotherInstance: the verifiers of one instance receive what
// another instance revokes, well within the guaranteed second. A drain ends their streams at once,
// for any drain_timeout.
func TestRevocationReachesVerifiersOfAnotherInstance(t *testing.T) {
	s := newSite(t)
	one, other := s.start(t), s.start(t)
	grant, err := one.exchange(t.Context(), t)
	if err != nil {
		t.Fatal(err)
	}
	stream := other.watch(t)
	revoked, err := one.revoke(t.Context(), t, grant.GetAccessToken())
	if err != nil {
		t.Fatal(err)
	}
	acknowledged := time.Now()
	m, err := stream.Recv()
	if err != nil || m.GetEvent().GetSeq() != revoked.GetRevocation().GetSeq() || m.GetEvent().GetTarget().GetId() != grant.GetJti() {
		t.Fatalf("%v %v, want %v", m, err, revoked)
	}
	if late := time.Since(acknowledged); late > time.Second {
		t.Errorf("heard %s later", late)
	}
	mark := &deputyv1.WatchMark{Nonce: 1, Applied: m.GetEvent().GetSeq()}
	if err := stream.Send(&deputyv1.WatchRevocationsRequest{Message: &deputyv1.WatchRevocationsRequest_Mark{Mark: mark}}); err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.GetEcho().GetNonce() != 1 || m.GetEcho().GetLast() != mark.GetApplied() {
		t.Errorf("%v %v", m, err)
	}
	began := time.Now()
	other.stop(t)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the drain waited %s for a verifier", took)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the verifier was told %v", err)
	}
	one.stop(t)
}

// TestRedisAheadOfTheLedger: an instance neither trusts nor replaces lists in Redis that hold more
// than the ledger. It waits for an operator. When the lists are gone, it makes them again.
func TestRedisAheadOfTheLedger(t *testing.T) {
	s := newSite(t)
	redis, err := guard.Dial(s.redis.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer redis.Close()
	lists := guard.New(guard.Config{Client: redis})
	if err := lists.Republish(t.Context(), "acme", nil, 999); err != nil {
		t.Fatal(err)
	}
	i := s.startUnready(t)
	i.await(t, []string{"revocations of acme"})
	if err := redis.Del(t.Context(), "{acme}:revoked:list").Err(); err != nil {
		t.Fatal(err)
	}
	i.await(t, nil)
	i.stop(t)
}

// TestListsAreMended: a value of another type in the place of the lists is replaced by them.
func TestListsAreMended(t *testing.T) {
	s := newSite(t)
	i := s.start(t)
	grant, err := i.exchange(t.Context(), t)
	if err != nil {
		t.Fatal(err)
	}
	revoked, err := i.revoke(t.Context(), t, grant.GetAccessToken())
	if err != nil {
		t.Fatal(err)
	}
	redis, err := guard.Dial(s.redis.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer redis.Close()
	lists := guard.New(guard.Config{Client: redis})
	mended := func() bool {
		head, err := lists.PublishedHead(t.Context(), "acme")
		return err == nil && head == revoked.GetRevocation().GetSeq()
	}
	poll(t, mended, func() string { return "never published" })
	if err := redis.Set(t.Context(), "{acme}:revoked:list", "nonsense", 0).Err(); err != nil {
		t.Fatal(err)
	}
	poll(t, mended, func() string { return "another type stays in the place of the lists" })
	if err := redis.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	poll(t, mended, func() string { return "lists that are gone stay away" })
	i.stop(t)
}
