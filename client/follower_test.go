package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"deputy.example/deputy/client/internal/deputytest"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// network dials a server in memory and can drop the data of both directions, as a firewall does
// that has forgotten a connection.
type network struct {
	server *deputytest.Server

	mu    sync.Mutex
	conns []*swallowingConn
	dead  bool // new connections drop data too
}

func (n *network) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := n.server.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	c := &swallowingConn{Conn: conn, network: n, dead: n.dead}
	n.conns = append(n.conns, c)
	return c, nil
}

// swallow makes all present connections drop everything, and with newOnes all later ones too.
func (n *network) swallow(newOnes bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dead = newOnes
	for _, c := range n.conns {
		c.dead = true
	}
}

func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dead = false
}

type swallowingConn struct {
	net.Conn
	network *network
	dead    bool // under network.mu
}

func (c *swallowingConn) swallows() bool {
	c.network.mu.Lock()
	defer c.network.mu.Unlock()
	return c.dead
}

func (c *swallowingConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.swallows() {
			return n, err
		}
	}
}

func (c *swallowingConn) Write(b []byte) (int, error) {
	if c.swallows() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// follower is a verifier, the Deputy that it follows and a token that it accepts.
type follower struct {
	*Verifier
	t       *testing.T
	deputy  *deputytest.Server
	network *network
	client  *Client
	token   string
}

// follow runs a test in a bubble where the test controls the time. tune changes the feed before it
// begins.
func follow(t *testing.T, cfg VerifierConfig, tune func(*feed), test func(*testing.T, *follower)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := deputytest.StartInMemory()
		defer s.Close()
		s.RevokeNow(kindSubject, "user:dave", "") // so there is a number to resume after
		n := &network{server: s}
		c := inMemoryClient(t, s, n)
		defer c.Close()
		cfg.Issuer, cfg.Audience, cfg.JWKS, cfg.Client = s.Issuer, calendar, s.JWKS(), c
		v, err := newVerifier(cfg)
		if err != nil {
			t.Fatal(err)
		}
		tune(v.feed)
		go v.feed.run()
		defer v.Close()
		claims := s.Claims(time.Now())
		claims.ExpiresAt += 24 * 3600
		f := &follower{Verifier: v, t: t, deputy: s, network: n, client: c, token: s.Token(claims)}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := v.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		if !f.accepts() {
			t.Fatal("a good token is refused")
		}
		test(t, f)
	})
}

func asItIs(*feed) {}

func inMemoryClient(t *testing.T, s *deputytest.Server, n *network) *Client {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := NewKey(private, "calendar-1")
	if err != nil {
		t.Fatal(err)
	}
	credential, err := NewAssertion(AssertionConfig{Issuer: s.Issuer, ClientID: "calendar", Key: key})
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(Config{
		Address: s.Address, Transport: PlaintextTrustedNetwork, Credential: credential,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(n.dial)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (f *follower) accepts() bool {
	_, err := f.Verify(f.t.Context(), f.token)
	return err == nil
}

// lets lets the time pass. It returns how far into it a token was last accepted and the verifier
// last reported that it is healthy; -1: never.
func (f *follower) lets(d time.Duration) (accepted, healthy time.Duration) {
	const step = 50 * time.Millisecond
	accepted, healthy = -1, -1
	for began := time.Now(); time.Since(began) < d; {
		synctest.Wait()
		if f.accepts() {
			accepted = time.Since(began)
		}
		if s := f.Status(); s.Healthy {
			healthy = time.Since(began)
		} else if s.Err == nil {
			f.t.Errorf("not healthy, and no reason: %+v", s)
		}
		pass(step)
	}
	return accepted, healthy
}

// pass lets time pass in a bubble.
func pass(d time.Duration) { <-time.After(d) }

func (f *follower) revoke() *deputyv1.Revocation { return f.deputy.RevokeNow(kindToken, "jti-1", "") }
