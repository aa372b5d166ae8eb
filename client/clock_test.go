package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/internal/deputytest"
)

// wallClock is a wall clock with an error that the test sets. The monotonic clock is that of the
// bubble.
type wallClock struct{ off atomic.Int64 }

func (w *wallClock) now() time.Time { return time.Now().Add(w.offset()).Round(0) }

func (w *wallClock) set(off time.Duration) { w.off.Store(int64(off)) }

func (w *wallClock) offset() time.Duration { return time.Duration(w.off.Load()) }

// tokenFor makes a valid token with a chain of its own.
func (f *follower) tokenFor(life time.Duration, jti string) string {
	return f.deputy.Token(ownChain(f.deputy, life, jti))
}

func ownChain(s *deputytest.Server, life time.Duration, jti string) delegation.Claims {
	c := s.Claims(time.Now())
	c.ExpiresAt = time.Now().Add(life).Unix()
	c.ID, c.Txn = jti, "txn-"+jti
	c.Delegation.Hops = []delegation.Hop{{ID: "parent-" + jti, Seq: 1 << 40, Actor: 0}, {ID: jti, Seq: 1<<40 + 1, Actor: 1}}
	return c
}

// boundChain returns claims that are bound to the holder's key.
func boundChain(s *deputytest.Server, life time.Duration, h *holder) delegation.Claims {
	c := ownChain(s, life, "bound")
	c.Confirmation = &delegation.Confirmation{JKT: h.jkt}
	c.Delegation.Hops[1].Key = h.jkt
	return c
}

func (f *follower) acceptsToken(token string) bool {
	_, err := f.Verify(f.t.Context(), token)
	return err == nil
}

// TestWallClockForgetsNothing: while a clock is ahead, the verifier forgets no revocation, and once
// it is set right every valid token is accepted. The verifier forgets by the ledger's time
// throughout.
func TestWallClockForgetsNothing(t *testing.T) {
	for _, step := range []time.Duration{40 * time.Minute, 48 * time.Hour, -40 * time.Minute, -48 * time.Hour} {
		t.Run(step.String(), func(t *testing.T) {
			wall := new(wallClock)
			follow(t, VerifierConfig{Now: wall.now}, asItIs, func(t *testing.T, f *follower) {
				soon, revoked := f.tokenFor(35*time.Minute, "soon"), f.tokenFor(35*time.Minute, "revoked")
				f.deputy.RevokeUntil(time.Now().Add(35*time.Minute), kindToken, "revoked", "")
				pass(time.Second)
				wall.set(step)
				pass(25 * time.Minute) // more than two times forgetInterval
				synctest.Wait()
				if s := f.Status(); !s.Healthy || s.Offset != step || s.Clock == nil {
					t.Errorf("while the clock is off: %+v", s)
				}
				if n := f.feed.known.Load().set.Len(); n != 2 { // user:dave and the token
					t.Errorf("%d revocations are remembered while the clock is off, want 2", n)
				}
				// Revocations that were forgotten would come back with another snapshot.
				if n := len(f.deputy.Hellos()); n != 1 {
					t.Errorf("the feed was opened %d times, want once", n)
				}
				wall.set(0)
				pass(2 * time.Second)
				synctest.Wait()
				if s := f.Status(); !s.Healthy || s.Offset != 0 || s.Clock != nil || s.Err != nil {
					t.Errorf("set right: %+v", s)
				}
				if f.acceptsToken(revoked) {
					t.Error("a revoked token is accepted")
				}
				if !f.acceptsToken(soon) {
					t.Error("a token that was not revoked is refused")
				}
				pass(2 * time.Hour)
				if n := f.feed.known.Load().set.Len(); n != 0 {
					t.Errorf("%d revocations are remembered two hours later, want none", n)
				}
			})
		})
	}
}

// TestWallClockKeepsNothingFresh: a clock that is set back makes no knowledge younger. A machine
// that was suspended, whose monotonic clock stopped, detects by its wall clock that it is late.
func TestWallClockKeepsNothingFresh(t *testing.T) {
	for _, step := range []time.Duration{-time.Second, -time.Hour, -48 * time.Hour} {
		wall := new(wallClock)
		follow(t, VerifierConfig{Now: wall.now}, asItIs, func(t *testing.T, f *follower) {
			f.deputy.RefuseFeeds(status.Error(codes.Unavailable, "away"))
			wall.set(step)
			if accepted, healthy := f.lets(30 * time.Second); accepted > cutOffBound || healthy > cutOffBound {
				t.Errorf("a step of %v: accepted until %v, healthy until %v", step, accepted, healthy)
			}
		})
	}
	wall := new(wallClock)
	follow(t, VerifierConfig{Now: wall.now}, asItIs, func(t *testing.T, f *follower) {
		f.network.swallow(true)
		wall.set(time.Hour)
		if f.accepts() || f.Status().Healthy {
			t.Error("an hour of suspension passes unnoticed")
		}
	})
}

// TestExpiryByTheLedgersTime: a clock that is behind accepts no token that has expired by the
// ledger's time, beyond the skew.
func TestExpiryByTheLedgersTime(t *testing.T) {
	wall := new(wallClock)
	follow(t, VerifierConfig{Now: wall.now}, asItIs, func(t *testing.T, f *follower) {
		issued := time.Now()
		token := f.tokenFor(5*time.Minute, "short")
		wall.set(-8 * time.Second) // within the skew, so the token is valid already
		pass(4 * time.Minute)
		wall.set(-2 * time.Hour)
		last := time.Duration(-1)
		for time.Since(issued) < 7*time.Minute {
			// In force and valid by the wall clock alone, until eight minutes.
			wall.set(-3 * time.Minute)
			if f.acceptsToken(token) {
				last = time.Since(issued)
			}
			pass(250 * time.Millisecond)
		}
		if end := 5*time.Minute + clockSkew; last < end-2*time.Second || last > end {
			t.Errorf("a token of five minutes was last accepted after %v", last)
		}
		_, err := f.Verify(t.Context(), token)
		if code, text := accessCode(t, err); code != AccessInvalidToken || text != "the token has expired by the ledger's time" {
			t.Errorf("err = %v", err)
		}
		if s := f.Status(); s.Offset != -3*time.Minute || s.Clock == nil || !strings.Contains(s.Clock.Error(), "3m0s behind") {
			t.Errorf("%+v", s)
		}
	})
}

// TestSnapshotWithAHorizon: a snapshot may lack revocations that have expired. Tokens that expire
// by its horizon are refused, whatever the clocks show.
func TestSnapshotWithAHorizon(t *testing.T) {
	follow(t, VerifierConfig{}, asItIs, func(t *testing.T, f *follower) {
		within, beyond := f.tokenFor(20*time.Minute, "within"), f.tokenFor(21*time.Minute, "beyond")
		f.deputy.RevokeUntil(time.Now().Add(20*time.Minute), kindToken, "within", "")
		f.deputy.ForgetEnded(time.Now().Add(20 * time.Minute)) // a server whose clock is ahead
		f.deputy.Forget()
		f.deputy.RefuseFeeds(status.Error(codes.Unavailable, "restarting"))
		pass(time.Second)
		f.deputy.RevokeNow(kindSubject, "user:bob", "")
		f.deputy.Forget()
		f.deputy.RefuseFeeds(nil)
		pass(recoveryBound)
		synctest.Wait()
		if n := f.feed.known.Load().set.Len(); n != 2 { // user:dave and user:bob
			t.Fatalf("%d revocations are known: the snapshot did not forget", n)
		}
		if s := f.Status(); !s.Healthy || !errors.Is(s.Clock, errHorizon) {
			t.Errorf("%+v", s)
		}
		if f.acceptsToken(within) {
			t.Error("a token is accepted of which the server has forgotten whether it was revoked")
		}
		if !f.acceptsToken(beyond) {
			t.Error("a token is refused that expires after the horizon")
		}
		f.deputy.ForgetEnded(time.Time{}) // its clock is right again
		pass(reloadInterval + recoveryBound)
		synctest.Wait()
		if s := f.Status(); !s.Healthy || s.Clock != nil {
			t.Errorf("the wrong horizon is kept: %+v", s)
		}
	})
}

// TestFeedThatLiesAboutTime: a false ledger_time, from a faulty server or an attacker on the path,
// makes the verifier forget no live revocation. It is reported, and it has no effect once it has
// ended.
func TestFeedThatLiesAboutTime(t *testing.T) {
	const day = 24 * time.Hour
	began := func(lie func(now, since time.Time) time.Time) func(time.Time) time.Time {
		var since time.Time
		return func(now time.Time) time.Time {
			if since.IsZero() {
				since = now
			}
			return lie(now, since)
		}
	}
	at := func(off time.Duration) func(now, _ time.Time) time.Time {
		return func(now, _ time.Time) time.Time { return now.Add(off) }
	}
	for name, test := range map[string]struct {
		lie     func(now, since time.Time) time.Time
		wallOff time.Duration // this machine's clock is wrong too
		warns   bool
		refuses bool // tokens in force are refused while the lie lasts
	}{
		"two days ahead":        {lie: at(2 * day), warns: true},
		"two hours ahead":       {lie: at(2 * time.Hour), warns: true},
		"the far future":        {lie: func(time.Time, time.Time) time.Time { return time.Unix(253402300799, 0) }, warns: true},
		"absent":                {lie: func(time.Time, time.Time) time.Time { return time.Time{} }, warns: true},
		"no time that there is": {lie: func(time.Time, time.Time) time.Time { return time.Unix(math.MaxInt64/4, 0) }, warns: true},
		"two days behind":       {lie: at(-2 * day), warns: true},
		"1970":                  {lie: func(time.Time, time.Time) time.Time { return time.Unix(1, 0) }, warns: true},
		"nine times as fast":    {lie: func(now, since time.Time) time.Time { return now.Add(8 * now.Sub(since)) }, warns: true},
		"standing still":        {lie: func(_, since time.Time) time.Time { return since }, warns: true},
		"two days to and fro":   {lie: func(now, _ time.Time) time.Time { return now.Add(time.Duration(now.Unix()%2) * 2 * day) }},
		// both sources agree
		"ahead, and so is the PC":  {lie: at(2 * day), wallOff: 2 * day, refuses: true},
		"ahead, and the PC behind": {lie: at(2 * day), wallOff: -9 * time.Second, warns: true},
		"within the skew":          {lie: at(9 * time.Second)},
	} {
		t.Run(name, func(t *testing.T) {
			wall := new(wallClock)
			follow(t, VerifierConfig{Now: wall.now}, asItIs, func(t *testing.T, f *follower) {
				good, revoked := f.tokenFor(time.Hour, "good"), f.tokenFor(time.Hour, "revoked")
				f.deputy.RevokeUntil(time.Now().Add(time.Hour), kindToken, "revoked", "")
				pass(2 * time.Second)
				wall.set(test.wallOff)
				f.deputy.SetLedgerClock(began(test.lie))
				warned := false
				for range 24 {
					pass(30*time.Second + time.Second)
					synctest.Wait()
					s := f.Status()
					warned = warned || s.Clock != nil
					if !s.Healthy {
						t.Fatalf("%+v", s)
					}
					if f.acceptsToken(revoked) {
						t.Fatal("a revoked token is accepted")
					}
					if f.acceptsToken(good) == test.refuses {
						t.Fatalf("a good token: accepted is %v", !test.refuses)
					}
				}
				if warned != test.warns && name != "two days to and fro" {
					t.Errorf("warned = %v: %+v", warned, f.Status())
				}
				wall.set(0)
				f.deputy.SetLedgerClock(func(now time.Time) time.Time { return now })
				pass(recoveryBound)
				synctest.Wait()
				if s := f.Status(); !s.Healthy || s.Clock != nil || s.Err != nil {
					t.Errorf("after the lie: %+v", s)
				}
				if f.acceptsToken(revoked) || !f.acceptsToken(good) {
					t.Errorf("after the lie: revoked %v, good %v", f.acceptsToken(revoked), f.acceptsToken(good))
				}
			})
		})
	}
}

// TestTimeAfterASuspension: the monotonic clock stopped, so the ledger's time is far ahead of it.
// It is credible if the wall clock, which did not stop, confirms it.
func TestTimeAfterASuspension(t *testing.T) {
	began := time.Unix(1_800_000_000, 0)
	at := func(wall, run time.Duration) instant { return instant{wall: began.Add(wall), run: run} }
	for name, test := range map[string]struct {
		wallOff, ledger time.Duration
		credible        bool
	}{
		"both went on":            {0, 8 * time.Hour, true},
		"the wall clock is off":   {11 * time.Second, 8 * time.Hour, false},
		"the ledger went further": {0, 8*time.Hour + 12*time.Second, false},
		"the ledger did not":      {0, 2 * time.Second, true},
		"the ledger went back":    {0, -time.Hour, true},
	} {
		before, err := (*feedTime)(nil).next(began, at(test.wallOff, 0), at(test.wallOff, time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		wall := 8*time.Hour + test.wallOff
		after, err := before.next(began.Add(test.ledger), at(wall, time.Second), at(wall, time.Second+time.Millisecond))
		if (err == nil) != test.credible || test.credible != (after != nil) || err != nil && !errors.Is(err, errTimeJumped) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFirstTimeIsALie: there is no earlier time to compare with. Too much is forgotten, all of that
// is refused, and when the time goes back the revocations are read again.
func TestFirstTimeIsALie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := deputytest.StartInMemory()
		defer s.Close()
		s.SetLedgerClock(func(now time.Time) time.Time { return now.Add(40 * time.Minute) })
		s.RevokeUntil(time.Now().Add(30*time.Minute), kindToken, "revoked", "")
		c := inMemoryClient(t, s, &network{server: s})
		defer c.Close()
		v, err := NewVerifier(VerifierConfig{Issuer: s.Issuer, Audience: calendar, JWKS: s.JWKS(), Client: c})
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		f := &follower{Verifier: v, t: t, deputy: s}
		good, revoked := f.tokenFor(30*time.Minute, "good"), f.tokenFor(30*time.Minute, "revoked")
		pass(5 * time.Second)
		if s := v.Status(); s.Offset != -40*time.Minute || s.Clock == nil {
			t.Errorf("%+v", s)
		}
		if n := v.feed.known.Load().set.Len(); n != 0 || f.acceptsToken(good) || f.acceptsToken(revoked) {
			t.Errorf("%d revocations, good %v, revoked %v", n, f.acceptsToken(good), f.acceptsToken(revoked))
		}
		hellos := len(s.Hellos())
		s.SetLedgerClock(func(now time.Time) time.Time { return now })
		pass(recoveryBound)
		synctest.Wait()
		if f.acceptsToken(revoked) || !f.acceptsToken(good) || !v.Status().Healthy || v.Status().Clock != nil {
			t.Errorf("good %v, revoked %v, %+v", f.acceptsToken(good), f.acceptsToken(revoked), v.Status())
		}
		pass(time.Minute)
		if n := len(s.Hellos()); n != hellos+1 {
			t.Errorf("%d streams were opened, want one", n-hellos)
		}
	})
}

// TestKeysAgeByTheMonotonicClock: a removed key is refused within MaxKeyAge although the clock was
// set back, and a failed fetch is repeated as soon as usual.
func TestKeysAgeByTheMonotonicClock(t *testing.T) {
	s := startDeputy(t)
	var down atomic.Bool
	synctest.Test(t, func(t *testing.T) {
		transport := overPipe(func(w io.Writer) error {
			if down.Load() {
				return errors.New("down")
			}
			_, err := fmt.Fprintf(w, "HTTP/1.1 200 OK\r\n\r\n%s", s.JWKS())
			return err
		})
		wall := new(wallClock)
		v, err := NewVerifier(VerifierConfig{
			Issuer: s.Issuer, Audience: calendar, JWKSURL: "http://127.0.0.1/jwks", HTTPTransport: transport, IgnoreRevocations: true, Now: wall.now,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		c := s.Claims(time.Now().Add(-2 * time.Hour))
		c.ExpiresAt += 6 * 3600
		token := s.Token(c)
		verify := func() error { _, err := v.Verify(t.Context(), token); return err }
		if err := verify(); err != nil {
			t.Fatal(err)
		}
		down.Store(true)
		wall.set(-time.Hour)
		pass(defaultMaxKeyAge - time.Second)
		if err := verify(); err != nil {
			t.Errorf("within their age: %v", err)
		}
		synctest.Wait()
		pass(2 * time.Second)
		err = verify()
		if code, _ := accessCode(t, err); code != AccessUnavailable {
			t.Errorf("keys of %v: %v", defaultMaxKeyAge+time.Second, err)
		}
		synctest.Wait()
		down.Store(false)
		wall.set(-90 * time.Minute)
		pass(failurePause)
		if err := verify(); err != nil {
			t.Errorf("recovery: %v", err)
		}
	})
}

// TestTokenSourceByBothClocks: whichever clock is wrong, a token is replaced in time, and is not
// used after it expired.
func TestTokenSourceByBothClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var grants atomic.Int64
		var fail atomic.Pointer[delegation.Error]
		wall := new(wallClock)
		c := countingServer(&grants, &fail)
		c.clock = clockOf(wall.now)
		source := c.TokenSource(func(context.Context) (ExchangeRequest, error) { return toCalendar("t"), nil })
		jti := func() string {
			token, err := source.Token(t.Context())
			if err != nil {
				return err.Error()
			}
			return token.JTI
		}
		if got := jti(); got != "jti-1" {
			t.Fatal(got)
		}
		wall.set(-time.Hour)
		pass(50 * time.Second) // of a minute
		if got := jti(); got != "jti-2" {
			t.Errorf("with a clock that was set back: %s", got)
		}
		wall.set(0) // as after a suspension of an hour
		if got := jti(); got != "jti-3" {
			t.Errorf("with a clock that went on alone: %s", got)
		}
		fail.Store(delegation.Unavailable("Deputy", nil))
		wall.set(-time.Hour)
		pass(50 * time.Second)
		if got := jti(); got != "jti-3" {
			t.Errorf("while Deputy is down: %s", got)
		}
		pass(10 * time.Second)
		if got := jti(); strings.HasPrefix(got, "jti-") {
			t.Errorf("an expired token serves: %s", got)
		}
	})
}

// TestProofsOfAWrongClock: a proof that was used while the clock was ahead is not valid again at
// its date.
func TestProofsOfAWrongClock(t *testing.T) {
	h := newHolder(t)
	synctest.Test(t, func(t *testing.T) {
		s := deputytest.StartInMemory()
		defer s.Close()
		for _, ahead := range []time.Duration{95 * time.Second, 150 * time.Second, time.Hour} {
			wall := new(wallClock)
			v := provingVerifier(t, s, func(cfg *VerifierConfig) { cfg.Now = wall.now })
			token := s.Token(boundChain(s, 24*time.Hour, h))
			present := func(proof string) error {
				_, err := v.VerifyPresented(t.Context(), Presentation{Token: token, Scheme: "DPoP", Proofs: []string{proof}, Method: "GET", URI: events})
				return err
			}
			wall.set(ahead)
			nonce := map[string]any{"nonce": v.nonces.at(v.clock.now())}
			used := []string{
				h.proof("GET", events, token, wall.now(), nil, nil), h.proof("GET", events, token, wall.now().Add(9*time.Second), nil, nonce),
			}
			for _, proof := range used {
				if err := present(proof); err != nil {
					t.Fatal(err)
				}
			}
			wall.set(0)
			for passed := time.Duration(0); passed < ahead+2*time.Minute; passed += 5 * time.Second {
				pass(5 * time.Second)
				for i, proof := range used {
					if err := present(proof); err == nil {
						t.Fatalf("%v ahead: proof %d is good again %v later", ahead, i, passed)
					}
				}
				// Other holders continue, after at most one more round trip.
				if passed%time.Minute == 0 {
					err := present(h.proof("GET", events, token, time.Now(), nil, nil))
					var refusal *AccessError
					if errors.As(err, &refusal) && refusal.Code == AccessUseNonce {
						err = present(h.proof("GET", events, token, time.Now(), nil, map[string]any{"nonce": refusal.Nonce}))
					}
					if err != nil {
						t.Errorf("%v ahead, %v later: a new proof: %v", ahead, passed, err)
					}
				}
			}
			v.Close()
		}
	})
}

// TestProofsByTheLedgersTime: with a wrong clock, a verifier accepts no proof that another verifier
// with a correct clock would accept later, and remembers the accepted proofs for long enough.
func TestProofsByTheLedgersTime(t *testing.T) {
	h, wall := newHolder(t), new(wallClock)
	until := make(chan time.Duration, 1)
	seen := func(_ context.Context, _ string, at time.Time) (bool, error) {
		until <- at.Sub(wall.now())
		return true, nil
	}
	follow(t, VerifierConfig{Now: wall.now, URLs: []string{calendar}, SeenProof: seen}, asItIs, func(t *testing.T, f *follower) {
		token := f.deputy.Token(boundChain(f.deputy, time.Hour, h))
		pass(2 * time.Second)
		for _, test := range []struct {
			off, dated time.Duration
			text       string // "": accepted
		}{
			{0, 0, ""}, {9 * time.Second, 9 * time.Second, ""}, {5 * time.Minute, 5 * time.Minute, textProofTime}, {-5 * time.Second, -5 * time.Second, ""},
			{75 * time.Second, 15 * time.Second, textProofTime}, {0, -69 * time.Second, ""}, {-5 * time.Second, -71 * time.Second, textProofTime},
		} {
			wall.set(test.off)
			pass(2 * time.Second) // the knowledge is fresh again
			proof := h.proof("GET", events, token, time.Now().Add(test.dated), nil, nil)
			_, err := f.VerifyPresented(t.Context(), Presentation{Token: token, Scheme: "DPoP", Proofs: []string{proof}, Method: "GET", URI: events})
			if test.text == "" {
				if err != nil {
					t.Errorf("%+v: %v", test, err)
				} else if d := <-until; d < proofLife+2*clockSkew {
					t.Errorf("%+v: remembered for %v", test, d)
				}
				continue
			}
			if code, text := accessCode(t, err); code != AccessInvalidProof || text != test.text {
				t.Errorf("%+v: %v", test, err)
			}
		}
	})
}

// TestProcessBeganByTheLedgersTime: a process that begins with a clock that is behind still
// requires nonces.
func TestProcessBeganByTheLedgersTime(t *testing.T) {
	h, wall := newHolder(t), new(wallClock)
	wall.set(-9 * time.Second)
	follow(t, VerifierConfig{Now: wall.now, URLs: []string{calendar}}, asItIs, func(t *testing.T, f *follower) {
		f.began.wall = f.began.wall.Add(-time.Hour)
		token := f.deputy.Token(boundChain(f.deputy, time.Hour, h))
		pass(2 * time.Second)
		wall.set(0)
		// Used before this process began.
		proof := h.proof("GET", events, token, time.Now().Add(-time.Minute), nil, nil)
		_, err := f.VerifyPresented(t.Context(), Presentation{Token: token, Scheme: "DPoP", Proofs: []string{proof}, Method: "GET", URI: events})
		if code, _ := accessCode(t, err); code != AccessUseNonce {
			t.Errorf("err = %v", err)
		}
	})
}

// campaign chooses between the number of rounds of make campaign and that of every other run.
func campaign(full, reduced int) int {
	if os.Getenv("DEPUTY_CAMPAIGN") == "full" {
		return full
	}
	return reduced
}

func campaignSeed(t *testing.T) uint64 {
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("DEPUTY_SEED"), "1"), 10, 64)
	if err != nil {
		t.Fatalf("DEPUTY_SEED: %v", err)
	}
	t.Logf("DEPUTY_SEED=%d", seed)
	return seed
}

// TestClockCampaign steps the verifier's clock by a second to two days and lets it drift, at random
// moments. Meanwhile tokens are issued and revoked, streams end, the server forgets, and in every
// other round the feed sends a wrong time. No revoked token is accepted, no token that has expired
// by the better of the clocks is accepted, and no token is refused for longer than a clock is
// wrong.
func TestClockCampaign(t *testing.T) {
	seed := campaignSeed(t)
	for round := range campaign(24, 2) {
		t.Run(fmt.Sprint("round ", round), func(t *testing.T) {
			wall := new(wallClock)
			follow(t, VerifierConfig{Now: wall.now}, asItIs, func(t *testing.T, f *follower) {
				r := &clockRound{
					t: t, f: f, wall: wall, random: rand.New(rand.NewPCG(seed, uint64(round))), lies: round%2 == 1,
					clockRight: time.Now(), feedRight: time.Now(), streamsRight: time.Now(),
				}
				r.run(time.Duration(campaign(2*60, 12)) * time.Minute)
			})
		})
	}
}

// clockRound is one round of the campaign.
type clockRound struct {
	t      *testing.T
	f      *follower
	wall   *wallClock
	random *rand.Rand
	lies   bool

	tokens []*trackedToken
	issued int
	drift  float64 // of the wall clock, while it is wrong

	wrongUntil   time.Time // the wall clock is set right then
	lieUntil     time.Time
	cutUntil     time.Time
	clockRight   time.Time // since when; zero: it is wrong
	feedRight    time.Time
	streamsRight time.Time
	lied         bool

	accepted, refused int
}

// trackedToken is a token with its true state.
type trackedToken struct {
	token   string
	jti     string
	ends    time.Time
	revoked time.Time // zero: not revoked
}

func (r *clockRound) run(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		r.act()
		step := time.Duration(r.random.IntN(10_000)+100) * time.Millisecond
		pass(step)
		r.wall.set(r.wall.offset() + time.Duration(r.drift*float64(step)))
		r.mend()
		synctest.Wait()
		r.check()
	}
	r.t.Logf("%d tokens, accepted %d times, refused %d times", r.issued, r.accepted, r.refused)
	if r.accepted == 0 || r.refused == 0 {
		r.t.Error("the round shows nothing")
	}
}

// act performs one random action, or none.
func (r *clockRound) act() {
	now := time.Now()
	switch r.random.IntN(16) {
	case 0, 1, 2:
		r.issued++
		jti, life := fmt.Sprint("token-", r.issued), time.Duration(r.random.IntN(2400)+30)*time.Second
		c := ownChain(r.f.deputy, life, jti)
		r.tokens = append(r.tokens, &trackedToken{token: r.f.deputy.Token(c), jti: jti, ends: time.Unix(c.ExpiresAt, 0)})
	case 3, 4:
		if len(r.tokens) > 0 {
			if token := r.tokens[r.random.IntN(len(r.tokens))]; token.revoked.IsZero() && now.Before(token.ends) {
				r.f.deputy.RevokeUntil(token.ends, kindToken, token.jti, "")
				token.revoked = now
			}
		}
	case 5, 6:
		step := time.Duration(math.Exp(r.random.Float64()*math.Log(48*3600)) * float64(time.Second))
		if r.random.IntN(2) == 0 {
			step = -step
		}
		r.wall.set(step)
		r.drift = []float64{0, 0.2, -0.2, 0.001}[r.random.IntN(4)]
		r.clockRight, r.wrongUntil = time.Time{}, now.Add(time.Duration(r.random.IntN(900)+5)*time.Second)
	case 7:
		r.f.deputy.CutFeeds(nil)
		if !r.streamsRight.IsZero() {
			r.streamsRight = now
		}
	case 8:
		r.f.deputy.RefuseFeeds(status.Error(codes.Unavailable, "away"))
		r.streamsRight, r.cutUntil = time.Time{}, now.Add(time.Duration(r.random.IntN(40)+1)*time.Second)
	case 9:
		r.f.deputy.ForgetEnded(now.Add(-2 * time.Minute))
		r.f.deputy.Forget()
	case 10:
		if r.lies {
			off := time.Duration((r.random.Float64()*2 - 1) * float64(48*time.Hour))
			r.f.deputy.SetLedgerClock(func(now time.Time) time.Time { return now.Add(off) })
			r.lied, r.feedRight, r.lieUntil = true, time.Time{}, now.Add(time.Duration(r.random.IntN(600)+5)*time.Second)
		}
	}
}

// mend ends the faults that have lasted long enough.
func (r *clockRound) mend() {
	now := time.Now()
	if r.clockRight.IsZero() && now.After(r.wrongUntil) {
		r.wall.set(0)
		r.drift, r.clockRight = 0, now
	}
	if r.feedRight.IsZero() && now.After(r.lieUntil) {
		r.f.deputy.SetLedgerClock(func(now time.Time) time.Time { return now })
		r.feedRight = now
	}
	if r.streamsRight.IsZero() && now.After(r.cutUntil) {
		r.f.deputy.RefuseFeeds(nil)
		r.streamsRight = now
	}
}

func (r *clockRound) check() {
	const settled = 15 * time.Second
	now := time.Now()
	right := func(since time.Time) bool { return !since.IsZero() && now.Sub(since) > settled }
	allRight := right(r.clockRight) && right(r.feedRight) && right(r.streamsRight)
	if s := r.f.Status(); allRight && (!s.Healthy || s.Clock != nil) {
		r.t.Fatalf("all is well: %+v", s)
	}
	kept := r.tokens[:0]
	for _, token := range r.tokens {
		late := now.Sub(token.ends)
		// Checked now and then, because signatures cost time.
		if late > time.Minute && r.random.IntN(4) > 0 {
			kept = append(kept, token)
			continue
		}
		_, err := r.f.Verify(r.t.Context(), token.token)
		switch {
		case err == nil && !token.revoked.IsZero() && now.Sub(token.revoked) > cutOffBound:
			r.t.Fatalf("%s is accepted %v after its revocation, %v after its end; the clock is off by %v", token.jti, now.Sub(token.revoked), late, r.wall.offset())
		case err == nil && !r.lied && late > clockSkew+time.Second:
			r.t.Fatalf("%s is accepted %v after its end; the clock is off by %v", token.jti, late, r.wall.offset())
		case err != nil && allRight && token.revoked.IsZero() && late < 0:
			r.t.Fatalf("%s is refused for no reason: %v; the clock is right since %v, the feed since %v", token.jti, err, now.Sub(r.clockRight), now.Sub(r.feedRight))
		case err == nil:
			r.accepted++
		default:
			r.refused++
		}
		if late < 30*time.Minute {
			kept = append(kept, token)
		}
	}
	r.tokens = kept
}
