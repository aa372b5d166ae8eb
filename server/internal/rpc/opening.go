package rpc

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/peers"
)

// openings bound the calls of unauthenticated peers. A stream of a method without authentication
// keeps its place until it ends. Every other call keeps its place until its first message is whole:
// then the engine authenticates the caller or refuses the call.
type openings struct {
	message    time.Duration // until the first message of a call is whole
	clients    *peers.Clients
	public     *peers.Places
	unread     *peers.Places
	unfinished *peers.Unfinished
}

// maxUnfinishedBytes bounds the memory of all calls whose first messages are not whole. In frames
// of one byte, a byte takes several times as much memory.
const maxUnfinishedBytes = 8 * maxMessageBytes

func newOpenings(w Waits, proxies []netip.Prefix) *openings {
	return &openings{
		message: w.Message, clients: peers.NewClients(proxies), public: peers.NewLasting(2048, 1024, 100), unread: peers.NewPlaces(4096, 2048, maxStreams),
		unfinished: peers.NewUnfinished(maxUnfinishedBytes),
	}
}

// opening is one call, from its headers to its answer.
type opening struct {
	connection *peers.Connection
	client     *peers.Connection // the connection, or the client of a proxy
	began      time.Time
	refusal    error          // nil: the call is served
	place      *peers.Place   // nil: the call is refused
	message    *peers.Message // nil: the call is refused
	stays      bool           // the call keeps its place after the first message
	silence    *time.Timer    // runs until the first message
	watched    func() bool    // stops the call of ended; false: it has been called
}

type openingKey struct{}

var (
	errSilent  = errors.New("the first message did not come in time")
	errCrowded = errors.New("another call needs the place of this one")
	tooMany    = &delegation.Error{
		Reason: delegation.RateLimited, RetryAfter: time.Second,
		Description: "too many calls of unauthenticated callers are open, on this connection, from this address or in all: try again later",
	}
	otherCodec = delegation.Refuse(delegation.MediaTypeUnsupported, "content-type", "must be application/grpc or application/grpc+proto")
)

// lasting reports whether a method without authentication is a stream that its client ends.
func lasting(method string) bool {
	return methods[method] == forAnyone && method != healthpb.Health_Check_FullMethodName && method != healthpb.Health_List_FullMethodName
}

// tap receives every call when its headers are there, before a goroutine serves it. It ends a call
// whose first message does not follow in time. A refusal is left to the interceptors, because
// grpc-go does not release the deadline of a call that its tap refuses.
func (o *openings) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	c := &opening{connection: connectionOf(ctx), began: time.Now(), stays: lasting(info.FullMethodName)}
	c.client = o.clients.Of(c.connection, info.Header.Get("x-forwarded-for"))
	displaced := func() {
		cancel(errCrowded)
		c.client.Crowded()
	}
	switch {
	case !speaksProto(info.Header):
		c.refusal = otherCodec
	case c.connection == nil:
		c.refusal = broken("a call on an unknown connection")
	case c.client.Spent():
		c.refusal = tooMany
	case c.stays:
		c.place = o.public.Enter(c.client, func() { cancel(errCrowded) })
	default:
		c.place = o.unread.Enter(c.client, displaced)
	}
	if c.refusal == nil && c.place == nil {
		c.refusal = tooMany
	}
	if c.refusal == nil {
		c.message = o.unfinished.Begin(c.connection, displaced)
	}
	c.silence = time.AfterFunc(o.message, func() { cancel(errSilent) })
	c.watched = context.AfterFunc(ctx, func() { c.ended(ctx) })
	return context.WithValue(peers.Holding(ctx, c.place), openingKey{}, c), nil
}

func speaksProto(header metadata.MD) bool {
	types := header.Get("content-type")
	return len(types) == 1 && (strings.EqualFold(types[0], "application/grpc") || strings.EqualFold(types[0], "application/grpc+proto"))
}

// ended is called for a call that ends without an answer of a method: its peer hung up, its first
// message did not come, or its deadline passed. A call of an unknown method is one of them.
func (c *opening) ended(ctx context.Context) {
	c.release()
	if c.client != nil && context.Cause(ctx) == context.Canceled && !c.place.Authenticated() {
		c.client.Abandoned(c.began)
	}
}

// answered releases what the tap began.
func (c *opening) answered() {
	if c.watched() {
		c.release()
	}
}

func (c *opening) release() {
	c.silence.Stop()
	c.message.Whole()
	c.place.Leave()
}

// messageCame is called for every message of a call. Only the first has an effect.
func (c *opening) messageCame() {
	c.silence.Stop()
	c.message.Whole()
	if !c.stays {
		c.place.Leave()
	}
}

// openingOf returns the opening of a call. A call that did not pass the tap is refused.
func openingOf(ctx context.Context) *opening {
	if c, is := ctx.Value(openingKey{}).(*opening); is {
		return c
	}
	return &opening{refusal: broken("a call that was not bounded"), silence: time.NewTimer(0), watched: func() bool { return true }}
}

// identified is a listener that puts the state of each connection into the peer address of its
// calls, and counts what it reads.
type identified struct {
	net.Listener
	unfinished *peers.Unfinished
}

// Accept waits for the next connection.
func (l identified) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return identifiedConn{conn, peerAddress{conn.RemoteAddr(), peers.NewConnection(conn)}, l.unfinished}, nil
}

type identifiedConn struct {
	net.Conn
	peer       peerAddress
	unfinished *peers.Unfinished
}

// Read reads from the connection.
func (c identifiedConn) Read(into []byte) (int, error) {
	n, err := c.Conn.Read(into)
	c.unfinished.Read(c.peer.connection, n)
	return n, err
}

// RemoteAddr returns the peer's address, which grpc-go passes to every call.
func (c identifiedConn) RemoteAddr() net.Addr { return c.peer }

type peerAddress struct {
	net.Addr
	connection *peers.Connection
}

// connectionOf returns the connection of a call, or nil if the listener was not identified.
func connectionOf(ctx context.Context) *peers.Connection {
	if p, known := peer.FromContext(ctx); known {
		if address, is := p.Addr.(peerAddress); is {
			return address.connection
		}
	}
	return nil
}
