package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/internal/deputytest"
)

// knowing is a verifier whose feed does not run: the test sets the revocations.
func knowing(t testing.TB, s *deputytest.Server, now func() time.Time, revocations ...delegation.Revocation) *Verifier {
	t.Helper()
	v := fixedVerifier(t, s)
	v.ignoreRevocations, v.clock = false, clockOf(now)
	v.feed = newFeed("", nil, maxMaxStaleness, v.clock)
	close(v.feed.done)
	set := delegation.NewRevocationSet(0)
	set.Apply(revocations...)
	v.feed.install(set, set.Last())
	v.feed.confirm(v.clock.now())
	return v
}

func ban(seq uint64, jti string) delegation.Revocation {
	return delegation.Revocation{Seq: seq, Prev: seq - 1, Target: delegation.Target{Kind: delegation.BanToken, ID: jti}}
}

// TestVerdictDies remembers a verdict and then changes one condition that it must not outlive.
func TestVerdictDies(t *testing.T) {
	s := startDeputy(t)
	for name, test := range map[string]struct {
		change func(*Verifier, *testClock)
		text   string
		undo   func(*Verifier, *verdict) // without the protection the verdict stays in use
	}{
		"its token was revoked": {
			func(v *Verifier, _ *testClock) { v.feed.known.Load().set.Apply(ban(100, "jti-2")) }, "the token was revoked",
			func(v *Verifier, d *verdict) {
				k := v.feed.known.Load()
				d.cleared.Store(&clearance{k.generation, k.set.Version()})
			},
		},
		"an ancestor was revoked": {
			func(v *Verifier, _ *testClock) { v.feed.known.Load().set.Apply(ban(100, "jti-1")) }, "the token was revoked",
			func(v *Verifier, d *verdict) {
				k := v.feed.known.Load()
				d.cleared.Store(&clearance{k.generation, k.set.Version()})
			},
		},
		"a snapshot has it": {
			func(v *Verifier, _ *testClock) {
				set := delegation.NewRevocationSet(0)
				set.Apply(ban(1, "jti-1")) // the other set has this version too
				v.feed.install(set, 1)
			}, "the token was revoked",
			func(v *Verifier, d *verdict) {
				d.cleared.Store(&clearance{v.feed.known.Load().generation, 1})
			},
		},
		"it expired": {
			func(v *Verifier, clock *testClock) { clock.advance(301 * time.Second); v.feed.confirm(v.clock.now()) }, "the token has expired",
			func(v *Verifier, _ *verdict) { v.admission = without(v.admission, "the token has expired") },
		},
		"the clock was set back": {
			func(v *Verifier, clock *testClock) { clock.advance(-time.Hour) }, "the token is not valid yet",
			func(v *Verifier, _ *verdict) { v.admission = without(v.admission, "the token is not valid yet") },
		},
		"its key was removed": {
			func(v *Verifier, _ *testClock) { v.keys = fixedKeys(nil) }, errUnknownKey.Error(),
			func(v *Verifier, d *verdict) {
				v.keys = fixedKeys(map[string]*verificationKey{deputytest.KeyID: d.key})
			},
		},
		"its key was replaced": {
			func(v *Verifier, _ *testClock) {
				v.keys = fixedKeys(map[string]*verificationKey{deputytest.KeyID: {algorithm: algorithmES256, verifies: yes}})
			}, "the token's key was replaced by another of the same name",
			func(v *Verifier, d *verdict) { d.key = v.keys.held.Load().keys[deputytest.KeyID] },
		},
		"nothing is known any more": {
			func(v *Verifier, clock *testClock) { clock.advance(maxMaxStaleness + 1) }, "what was revoked is not known here at the moment",
			func(v *Verifier, _ *verdict) { v.feed.bound = time.Hour },
		},
	} {
		t.Run(name, func(t *testing.T) {
			clock := newClock()
			v := knowing(t, s, clock.now, ban(1, "another"))
			token := s.Token(s.Claims(clock.now()))
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Fatal(err)
			}
			d := v.verdicts.get(token)
			if d == nil {
				t.Fatal("the verdict was not remembered")
			}
			test.change(v, clock)
			_, err := v.Verify(t.Context(), token)
			if err == nil {
				t.Fatal("the verdict lives on")
			}
			if _, text := accessCode(t, err); text != test.text {
				t.Errorf("refused with: %s", text)
			}
			test.undo(v, d)
			v.verdicts.put(token, d)
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Errorf("negative control: refused without the protection too: %v", err)
			}
		})
	}
}

// TestVerdictOutlivesRefetch: a key that was fetched again unchanged does not end a verdict. A key
// that is missing in the next set ends it within 60 s.
func TestVerdictOutlivesRefetch(t *testing.T) {
	s, clock := startDeputy(t), newClock()
	k := startKeys(t, serve(s.JWKS()))
	v := fetchingVerifier(t, s, k.URL, clock)
	claims := s.Claims(clock.now())
	claims.ExpiresAt += 3600
	token := s.Token(claims)
	verify := func() error { _, err := v.Verify(t.Context(), token); return err }
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	d := v.verdicts.get(token)
	clock.advance(keysRefreshAfter)
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	settle(t, v)
	if err := verify(); err != nil || k.fetches.Load() != 2 || v.verdicts.get(token) != d {
		t.Errorf("%v after %d fetches", err, k.fetches.Load())
	}
	k.set(serve(bytes.Replace(s.JWKS(), []byte("test-1"), []byte("test-2"), 1)))
	clock.advance(keysRefreshAfter)
	verify()
	settle(t, v)
	if err := verify(); err == nil {
		t.Error("the key is gone, and the verdict is not")
	}
}

// TestVerdictsAreBounded: tokens that come once neither displace those in use nor fill the memory.
func TestVerdictsAreBounded(t *testing.T) {
	var c verdicts
	used := &verdict{}
	c.put("used", used)
	padding := strings.Repeat("x", 1000)
	for i := range 20_000 {
		c.put(fmt.Sprint(padding, i), &verdict{})
		if c.get("used") != used {
			t.Fatalf("forgotten after %d others", i)
		}
	}
	kept := 0
	for token := range c.young {
		kept += len(token)
	}
	if kept != c.bytes || kept > maxVerdictBytes || len(c.old)*1000 > maxVerdictBytes {
		t.Errorf("%d bytes kept, %d counted, %d old ones", kept, c.bytes, len(c.old))
	}
	if c.get(padding+"0") != nil || c.get(padding+"19999") == nil {
		t.Error("not the oldest were forgotten")
	}
	c.drop("used")
	if c.get("used") != nil {
		t.Error("dropped, and still there")
	}
	c.put(strings.Repeat("x", delegation.MaxTokenBytes+1), used)
	if c.get(strings.Repeat("x", delegation.MaxTokenBytes+1)) != nil {
		t.Error("what is no token is remembered")
	}
}

// TestVerdictIsNotShared: a request's changes to its delegation do not reach the next request.
func TestVerdictIsNotShared(t *testing.T) {
	s := startDeputy(t)
	v := fixedVerifier(t, s)
	claims := s.Claims(time.Now())
	claims.MayAct, claims.Status = &delegation.MayAct{Sub: "agent:x"}, &delegation.Status{Index: 7, URI: "https://deputy.example/oauth2/statuslist/0"}
	token := s.Token(claims)
	d, err := v.Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	c := d.Claims()
	c.Scope[0], c.Audience[0], c.Act[0], c.Delegation.Hops[0].ID, c.MayAct.Sub, c.Status.Index = "admin", "x", "agent:x", "x", "agent:y", 8
	d.Chain()[0], d.Scopes()[0] = "agent:x", "admin"
	again, err := v.Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	if c := again.Claims(); again != d || c.Scope[0] != "calendar.read" || c.Audience[0] != calendar || c.Act[0] != "agent:planner" ||
		c.Delegation.Hops[0].ID != "jti-1" || c.MayAct.Sub != "agent:x" || c.Status.Index != 7 || again.HasScope("admin") {
		t.Errorf("changed: %+v", c)
	}
}

// TestVerdictsUnderLoad revokes one token after the other while all are verified: once a revocation
// is applied, no later Verify accepts its token.
func TestVerdictsUnderLoad(t *testing.T) {
	s := startDeputy(t)
	v := knowing(t, s, time.Now)
	const tokens = 50
	var mu sync.Mutex
	revoked := make([]bool, tokens)
	encoded := make([]string, tokens)
	for i := range encoded {
		c := s.Claims(time.Now())
		c.ID = fmt.Sprint("leaf-", i)
		c.Delegation.Hops = []delegation.Hop{{ID: fmt.Sprint("hop-", i), Seq: 41, Actor: 0}, {ID: c.ID, Seq: 57, Actor: 1}}
		encoded[i] = s.Token(c)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := worker; ; i = (i + 7) % tokens {
				select {
				case <-stop:
					return
				default:
				}
				mu.Lock()
				dead := revoked[i]
				mu.Unlock()
				if _, err := v.Verify(t.Context(), encoded[i]); dead && err == nil {
					t.Errorf("token %d is accepted after its revocation", i)
					return
				}
			}
		})
	}
	for i := range tokens {
		v.feed.known.Load().set.Apply(ban(uint64(100+i), fmt.Sprint("hop-", i)))
		mu.Lock()
		revoked[i] = true
		mu.Unlock()
		if i%10 == 9 { // a snapshot in between
			set := delegation.NewRevocationSet(0)
			for j := range i + 1 {
				set.Apply(ban(uint64(100+j), fmt.Sprint("hop-", j)))
			}
			v.feed.install(set, set.Last())
		}
	}
	close(stop)
	wg.Wait()
}

// TestVerifyNeedsNoNetwork: with keys and revocations in memory, a failing transport has no effect.
func TestVerifyNeedsNoNetwork(t *testing.T) {
	s, clock := startDeputy(t), newClock()
	v := fetchingVerifier(t, s, startKeys(t, serve(s.JWKS())).URL, clock)
	offline := knowing(t, s, clock.now)
	v.ignoreRevocations, v.feed = false, offline.feed
	if _, err := v.Verify(t.Context(), s.Token(s.Claims(clock.now()))); err != nil {
		t.Fatal(err)
	}
	v.keys.client.Transport = noNetwork{t}
	for range 3 {
		token := s.Token(s.Claims(clock.now())) // ES256 signatures differ each time
		for range 3 {
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// noNetwork fails the test if it is used.
type noNetwork struct{ t testing.TB }

func (n noNetwork) RoundTrip(r *http.Request) (*http.Response, error) {
	n.t.Errorf("a request to %s", r.URL)
	return nil, errors.New("no network")
}

func TestVerifyCachedDoesNotAllocate(t *testing.T) {
	s := startDeputy(t)
	v, token := knowing(t, s, time.Now), s.Token(s.Claims(time.Now()))
	ctx := t.Context()
	if allocations := testing.AllocsPerRun(1000, func() {
		if _, err := v.Verify(ctx, token); err != nil {
			t.Error(err)
		}
	}); allocations != 0 {
		t.Errorf("%v allocations", allocations)
	}
}

// TestStreamEnds: a long stream ends when its token is no longer valid, with a status and a cause
// that name the reason, and no other stream ends.
func TestStreamEnds(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*follower)
		within time.Duration
		want   codes.Code
		text   string
	}{
		"revoked":         {func(f *follower) { f.revoke() }, 10 * time.Millisecond, codes.PermissionDenied, "the token was revoked"},
		"agent suspended": {func(f *follower) { f.deputy.RevokeNow(kindSuspend, "agent:planner", "") }, 10 * time.Millisecond, codes.PermissionDenied, "the token was revoked"},
		"expired":         {func(f *follower) {}, 300 * time.Second, codes.PermissionDenied, "the token has expired"},
		"cut off":         {func(f *follower) { f.network.swallow(true) }, cutOffBound + 10*time.Millisecond, codes.Unavailable, "what was revoked is not known here at the moment"},
		"its key is gone": {func(f *follower) { f.keys.held.Store(&keySet{}) }, recheckInterval, codes.PermissionDenied, errUnknownKey.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			follow(t, VerifierConfig{}, asItIs, func(t *testing.T, f *follower) {
				f.token = f.deputy.Token(f.deputy.Claims(time.Now())) // for 300 s
				stream := openStream(t, f)
				test.change(f)
				began := time.Now()
				<-stream.done
				if d := time.Since(began); d > test.within || d < 0 {
					t.Errorf("ended after %v", d)
				}
				if st := status.Convert(stream.err); st.Code() != test.want || !strings.HasSuffix(st.Message(), test.text) {
					t.Errorf("status %v", st)
				}
				var cause *AccessError
				if !errors.As(stream.cause, &cause) || cause.Description != test.text {
					t.Errorf("cause %v", stream.cause)
				}
			})
		})
	}
	t.Run("negative control: revocations are ignored", func(t *testing.T) {
		follow(t, VerifierConfig{}, asItIs, func(t *testing.T, f *follower) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			f.ignoreRevocations = true
			stream := openStreamFor(ctx, t, f)
			f.revoke()
			pass(time.Minute)
			select {
			case <-stream.done:
				t.Errorf("ended all the same: %v", stream.err)
			default:
			}
			cancel()
			<-stream.done
		})
	})
	t.Run("others go on", func(t *testing.T) {
		follow(t, VerifierConfig{}, asItIs, func(t *testing.T, f *follower) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stream := openStreamFor(ctx, t, f)
			for i := range 20 {
				f.deputy.RevokeNow(kindSubject, fmt.Sprint("user:", i), "")
				pass(time.Second)
			}
			select {
			case <-stream.done:
				t.Errorf("ended: %v", stream.err)
			default:
			}
			cancel()
			<-stream.done
			if !errors.Is(stream.err, context.Canceled) {
				t.Errorf("the caller hung up: %v", stream.err)
			}
		})
	})
}

// testStream is a server stream whose handler waits for a message that never comes.
type testStream struct {
	ctx   context.Context
	err   error // what the interceptor returned
	cause error // why the handler's context ended
	done  chan struct{}
}

func (s *testStream) SetHeader(metadata.MD) error  { return nil }
func (s *testStream) SendHeader(metadata.MD) error { return nil }
func (s *testStream) SetTrailer(metadata.MD)       {}
func (s *testStream) Context() context.Context     { return s.ctx }
func (s *testStream) SendMsg(any) error            { <-s.ctx.Done(); return s.ctx.Err() }
func (s *testStream) RecvMsg(any) error            { <-s.ctx.Done(); return s.ctx.Err() }

func openStream(t *testing.T, f *follower) *testStream {
	t.Helper()
	return openStreamFor(t.Context(), t, f)
}

func openStreamFor(ctx context.Context, t *testing.T, f *follower) *testStream {
	t.Helper()
	ctx, end := context.WithCancel(metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Bearer "+f.token)))
	s := &testStream{ctx: ctx, done: make(chan struct{})}
	intercept := f.StreamServerInterceptor(Methods{Scopes: map[string]delegation.Scopes{"/m": {"calendar.read"}}})
	go func() {
		defer close(s.done)
		defer end() // gRPC ends the stream's context when the handler has returned
		s.err = intercept(nil, s, &grpc.StreamServerInfo{FullMethod: "/m"}, func(_ any, stream grpc.ServerStream) error {
			err := stream.RecvMsg(nil)
			s.cause = context.Cause(stream.Context())
			if again := stream.SendMsg(nil); again == nil {
				t.Error("a message is sent on a stream that has ended")
			}
			return err
		})
	}()
	synctest.Wait()
	select {
	case <-s.done:
		t.Fatalf("not admitted: %v", s.err)
	default:
	}
	return s
}

func TestInspectKnowsRevocations(t *testing.T) {
	s := startDeputy(t)
	v, token := knowing(t, s, time.Now, ban(1, "jti-1")), s.Token(s.Claims(time.Now()))
	in, err := v.Inspect(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	if _, text := accessCode(t, in.Refusal); text != "the token was revoked" || !slices.Contains(in.Claims.Audience, calendar) {
		t.Errorf("%+v", in)
	}
}
