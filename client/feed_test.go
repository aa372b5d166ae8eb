package client

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/internal/deputytest"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

const (
	kindToken   = deputyv1.RevocationKind_REVOCATION_KIND_TOKEN
	kindSubject = deputyv1.RevocationKind_REVOCATION_KIND_SUBJECT
	kindSuspend = deputyv1.RevocationKind_REVOCATION_KIND_SUSPEND
	kindResume  = deputyv1.RevocationKind_REVOCATION_KIND_RESUME
)

type message = deputyv1.WatchRevocationsResponse

func event(m *message) *deputyv1.Revocation { return m.GetEvent() }

// dropEvents loses events and no other messages.
func dropEvents(m *message) []*message {
	if event(m) != nil {
		return nil
	}
	return []*message{m}
}

const (
	connectedBound = time.Second
	cutOffBound    = 10 * time.Second
	recoveryBound  = 5 * time.Second
)

// TestFeedFaults revokes an ancestor of a token during a fault of 40 s. No revoked token is
// accepted beyond the bound. After the fault the verifier has every revocation, and accepts every
// token that was not revoked.
func TestFeedFaults(t *testing.T) {
	tests := map[string]struct {
		fault  func(*follower)
		heal   func(*follower)
		bound  time.Duration // within which the revoked token is refused
		serves bool          // the verifier stays healthy
		why    error         // in Status.Err at the end of the fault
		tune   func(*feed)
		// leaks gives the feed a bound without an end, so that the token is accepted beyond the
		// bound of the test. Where the verifier stays healthy it is nil: then the negative control
		// is a verifier that stops following.
		leaks func(*feed)
	}{
		"nothing": {
			fault: func(f *follower) {}, heal: func(f *follower) {}, bound: connectedBound, serves: true,
		},
		"cut": {
			fault: func(f *follower) { f.deputy.RefuseFeeds(status.Error(codes.Unavailable, "draining")) },
			heal:  func(f *follower) { f.deputy.RefuseFeeds(nil) },
			bound: cutOffBound, why: delegation.Refuse(delegation.DependencyDown, "", ""),
			leaks: func(f *feed) { f.bound = time.Hour },
		},
		"cut for a moment": {
			fault: func(f *follower) { f.deputy.CutFeeds(nil) }, heal: func(f *follower) {},
			bound: connectedBound, serves: true,
		},
		"black hole": {
			fault: func(f *follower) { f.network.swallow(true) }, heal: func(f *follower) { f.network.heal() },
			bound: cutOffBound, why: delegation.Refuse(delegation.DependencyDown, "", ""),
			leaks: func(f *feed) { f.bound = time.Hour },
		},
		"one connection swallowed": {
			fault: func(f *follower) { f.network.swallow(false) }, heal: func(f *follower) {},
			bound: cutOffBound / 2 * 11 / 10, serves: true,
			leaks: func(f *feed) { f.patience = time.Hour; f.bound = time.Hour },
		},
		"buffering proxy": {
			fault: func(f *follower) { f.deputy.DelayFeeds(30 * time.Second); pass(35 * time.Second) },
			heal:  func(f *follower) { f.deputy.DelayFeeds(0); f.deputy.CutFeeds(nil) },
			bound: cutOffBound, why: errSilent,
			leaks: func(f *feed) { f.patience = time.Hour; f.bound = time.Hour },
		},
		"buffering proxy, and no end of patience": {
			tune:  func(f *feed) { f.patience = time.Hour },
			fault: func(f *follower) { f.deputy.DelayFeeds(30 * time.Second); pass(35 * time.Second) },
			heal:  func(f *follower) { f.deputy.DelayFeeds(0); f.deputy.CutFeeds(nil) },
			bound: cutOffBound, why: errSilent,
			leaks: func(f *feed) { f.bound = time.Hour },
		},
		"slow, within the bound": {
			fault: func(f *follower) { f.deputy.DelayFeeds(3 * time.Second) }, heal: func(f *follower) { f.deputy.DelayFeeds(0) },
			bound: 3*time.Second + connectedBound, serves: true,
		},
		"slow reader, served a snapshot": {
			fault: func(f *follower) {
				f.deputy.Tamper(func(m *message) []*message {
					if event(m) == nil {
						return []*message{m}
					}
					r := event(m)
					return []*message{snapshotOf(false, 0, r), snapshotOf(true, r.GetSeq())}
				})
			},
			heal: func(f *follower) { f.deputy.Tamper(nil) }, bound: connectedBound, serves: true,
		},
		"duplicated": {
			fault: func(f *follower) { f.deputy.Tamper(func(m *message) []*message { return []*message{m, m, m} }) },
			heal:  func(f *follower) { f.deputy.Tamper(nil) }, bound: connectedBound, serves: true,
		},
		"reordered": {
			fault: func(f *follower) {
				f.deputy.Tamper(reorder())
				f.deputy.RevokeNow(kindSubject, "user:bob", "") // held back until the next one
			},
			heal: func(f *follower) { f.deputy.Tamper(nil) }, bound: connectedBound, serves: true,
		},
		"skipped": {
			fault: func(f *follower) { f.deputy.Tamper(skipOnce()) },
			heal:  func(f *follower) { f.deputy.Tamper(nil) }, bound: 4 * time.Second, serves: true,
		},
		"events do not come": {
			fault: func(f *follower) { f.deputy.Tamper(dropEvents) }, heal: func(f *follower) { f.deputy.Tamper(nil) },
			bound: cutOffBound, why: errMissing,
			leaks: func(f *feed) { f.bound = time.Hour },
		},
		"marks do not come back": {
			fault: func(f *follower) {
				f.deputy.Tamper(func(m *message) []*message {
					if event(m) != nil || m.GetEcho() != nil {
						return nil
					}
					return []*message{m}
				})
			},
			heal: func(f *follower) { f.deputy.Tamper(nil) }, bound: cutOffBound, why: errSilent,
			leaks: func(f *feed) { f.bound = time.Hour },
		},
		"marks that were never sent": {
			fault: func(f *follower) { f.deputy.Tamper(lie(func(e *deputyv1.WatchEcho) { e.Nonce += 1000 })) },
			heal:  func(f *follower) { f.deputy.Tamper(nil) }, bound: cutOffBound, why: errSilent,
			leaks: func(f *feed) { f.bound = time.Hour },
		},
		"the same mark again and again": {
			fault: func(f *follower) { f.deputy.Tamper(lie(func(e *deputyv1.WatchEcho) { e.Nonce = 1 })) },
			heal:  func(f *follower) { f.deputy.Tamper(nil) }, bound: cutOffBound, why: errSilent,
			leaks: func(f *feed) { f.bound = time.Hour },
		},
		"a ledger that knows less": {
			fault: func(f *follower) {
				f.deputy.RevokeNow(kindSubject, "user:bob", "")
				synctest.Wait()
				f.deputy.Tamper(lie(func(e *deputyv1.WatchEcho) { e.Last = 0 }))
			},
			heal: func(f *follower) { f.deputy.Tamper(nil) }, bound: cutOffBound, why: errBehind,
			leaks: func(f *feed) { f.bound = time.Hour },
		},
		"expired credential": {
			fault: func(f *follower) {
				f.deputy.RefuseFeeds(delegation.Refuse(delegation.ClientUnauthenticated, "", "the credential has expired"))
			},
			heal: func(f *follower) { f.deputy.RefuseFeeds(nil) }, bound: cutOffBound, why: delegation.Refuse(delegation.ClientUnauthenticated, "", ""),
			leaks: func(f *feed) { f.bound = time.Hour },
		},
		"an instance that is cut off from its ledger": {
			fault: func(f *follower) { f.deputy.RefuseFeeds(delegation.Unavailable("the ledger", nil)) },
			heal:  func(f *follower) { f.deputy.RefuseFeeds(nil) }, bound: cutOffBound, why: delegation.Refuse(delegation.DependencyDown, "", ""),
			leaks: func(f *feed) { f.bound = time.Hour },
		},
		"a kind that nobody knows": {
			fault: func(f *follower) {
				f.deputy.Tamper(func(m *message) []*message {
					if r := event(m); r != nil {
						m = &message{Message: &deputyv1.WatchRevocationsResponse_Event{Event: &deputyv1.Revocation{
							Seq: r.GetSeq(), Prev: r.GetPrev(), Target: &deputyv1.RevocationTarget{Kind: 99, Id: "x"},
						}}}
					}
					return []*message{m}
				})
			},
			heal: func(f *follower) { f.deputy.Tamper(nil) }, bound: cutOffBound,
			leaks: func(f *feed) { f.bound = time.Hour },
		},
	}
	const outage = 40 * time.Second
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if test.tune == nil {
				test.tune = asItIs
			}
			follow(t, VerifierConfig{}, test.tune, func(t *testing.T, f *follower) {
				test.fault(f)
				synctest.Wait()
				f.revoke()
				accepted, healthy := f.lets(outage)
				if accepted > test.bound {
					t.Errorf("accepted %v after the revocation, bound %v", accepted, test.bound)
				}
				if test.serves != (healthy > outage-time.Second) {
					t.Errorf("last healthy after %v", healthy)
				}
				why := f.Status().Err
				var reason *delegation.Error
				if want := (*delegation.Error)(nil); errors.As(test.why, &want) {
					if !errors.As(why, &reason) || reason.Reason != want.Reason {
						t.Errorf("why = %v, want %s", why, want.Reason)
					}
				} else if test.why != nil && !errors.Is(why, test.why) {
					t.Errorf("why = %v, want %v", why, test.why)
				}
				test.heal(f)
				f.recovers()
			})
			t.Run("negative control", func(t *testing.T) {
				off := func(f *feed) {
					if test.tune(f); test.leaks == nil {
						f.bound = time.Hour
					} else {
						test.leaks(f)
					}
				}
				follow(t, VerifierConfig{}, off, func(t *testing.T, f *follower) {
					if test.leaks == nil {
						f.feed.end()
					}
					test.fault(f)
					synctest.Wait()
					f.revoke()
					if accepted, _ := f.lets(outage); accepted <= test.bound {
						t.Errorf("without the protection the revoked token is refused after %v all the same", accepted)
					}
				})
			})
		})
	}
}

// recovers checks that the verifier is healthy soon, with every revocation of the meantime.
func (f *follower) recovers() {
	f.t.Helper()
	pass(recoveryBound)
	synctest.Wait()
	if s := f.Status(); !s.Healthy || !s.Connected || s.Err != nil || s.Last != f.deputy.LastRevocation() || s.Staleness > 2*time.Second {
		f.t.Errorf("after all is well again: %+v", s)
	}
	if _, err := f.Verify(f.t.Context(), f.token); err == nil || !strings.Contains(err.Error(), "revoked") {
		f.t.Errorf("the revoked token: %v", err)
	}
	other := f.deputy.Claims(time.Now())
	other.ID, other.Txn, other.Subject = "other-2", "txn-2", "user:carol"
	other.Delegation.Hops = []delegation.Hop{{ID: "other-1", Seq: 1 << 40, Actor: 0}, {ID: "other-2", Seq: 1<<40 + 1, Actor: 1}}
	if _, err := f.Verify(f.t.Context(), f.deputy.Token(other)); err != nil {
		f.t.Errorf("a token that nobody revoked: %v", err)
	}
}

func snapshotOf(complete bool, last uint64, revocations ...*deputyv1.Revocation) *message {
	return &message{Message: &deputyv1.WatchRevocationsResponse_Snapshot{
		Snapshot: &deputyv1.WatchSnapshot{Complete: complete, Last: last, Revocations: revocations},
	}}
}

// reorder swaps two events.
func reorder() func(*message) []*message {
	var held *message
	return func(m *message) []*message {
		switch {
		case event(m) == nil:
			return []*message{m}
		case held == nil:
			held = m
			return nil
		}
		both := []*message{m, held}
		held = nil
		return both
	}
}

// skipOnce loses one event.
func skipOnce() func(*message) []*message {
	skipped := false
	return func(m *message) []*message {
		if event(m) != nil && !skipped {
			skipped = true
			return nil
		}
		return []*message{m}
	}
}

func lie(edit func(*deputyv1.WatchEcho)) func(*message) []*message {
	return func(m *message) []*message {
		if e := m.GetEcho(); e != nil {
			changed := &deputyv1.WatchEcho{Nonce: e.GetNonce(), Last: e.GetLast(), LedgerTime: e.GetLedgerTime()}
			edit(changed)
			return []*message{{Message: &deputyv1.WatchRevocationsResponse_Echo{Echo: changed}}}
		}
		return dropEvents(m)
	}
}

// TestFeedGap: two revocations follow each other, and the first is lost.
func TestFeedGap(t *testing.T) {
	follow(t, VerifierConfig{}, asItIs, func(t *testing.T, f *follower) {
		f.deputy.Tamper(skipOnce())
		f.revoke()
		f.deputy.RevokeNow(kindSubject, "user:bob", "")
		if accepted, _ := f.lets(30 * time.Second); accepted > connectedBound {
			t.Errorf("accepted for %v although a revocation is missing before the last", accepted)
		}
		if hellos := f.deputy.Hellos(); hellos[len(hellos)-1].GetResumeAfter() != 0 {
			t.Errorf("after a gap: %v", hellos)
		}
		f.recovers()
	})
}

// TestFeedResume: a stream that was cut continues where it was. A Deputy that no longer has the
// missing events sends a snapshot.
func TestFeedResume(t *testing.T) {
	follow(t, VerifierConfig{}, asItIs, func(t *testing.T, f *follower) {
		snapshots, events := 0, 0
		f.deputy.Tamper(func(m *message) []*message {
			if m.GetSnapshot() != nil {
				snapshots++
			} else if event(m) != nil {
				events++
			}
			return []*message{m}
		})
		outage := func(meanwhile func()) {
			t.Helper()
			f.deputy.RefuseFeeds(status.Error(codes.Unavailable, "restarting"))
			synctest.Wait()
			meanwhile()
			f.deputy.RefuseFeeds(nil)
			pass(recoveryBound)
			synctest.Wait()
			if s := f.Status(); !s.Healthy || s.Last != f.deputy.LastRevocation() {
				t.Errorf("%+v", s)
			}
		}
		before := f.Status().Last
		outage(func() {
			f.deputy.RevokeNow(kindSubject, "user:bob", "")
			f.deputy.RevokeNow(kindSubject, "user:eve", "")
		})
		if hellos := f.deputy.Hellos(); hellos[len(hellos)-1].GetResumeAfter() != before || snapshots != 0 || events != 2 {
			t.Errorf("%d snapshots, %d events, hello %v", snapshots, events, hellos[len(hellos)-1])
		}
		outage(func() { f.revoke(); f.deputy.RevokeNow(kindSubject, "user:bob", ""); f.deputy.Forget() })
		if snapshots == 0 || events != 2 || f.accepts() {
			t.Errorf("%d snapshots, %d events, accepted %v", snapshots, events, f.accepts())
		}
	})
}

// TestFeedLosesNothing: a ledger that was restored from a backup makes no revoked token valid here.
func TestFeedLosesNothing(t *testing.T) {
	follow(t, VerifierConfig{}, asItIs, func(t *testing.T, f *follower) {
		f.revoke()
		if accepted, _ := f.lets(2 * time.Second); accepted > connectedBound {
			t.Fatalf("accepted for %v", accepted)
		}
		f.deputy.Lose()
		f.deputy.Forget()
		f.deputy.CutFeeds(nil)
		accepted, healthy := f.lets(time.Minute)
		if accepted >= 0 || healthy > cutOffBound || !errors.Is(f.Status().Err, errBehind) {
			t.Errorf("accepted at %v, healthy until %v, %v", accepted, healthy, f.Status().Err)
		}
	})
}

// TestFeedSuspend: a suspended agent's tokens are refused, and a resume makes none of them valid.
func TestFeedSuspend(t *testing.T) {
	follow(t, VerifierConfig{}, asItIs, func(t *testing.T, f *follower) {
		for _, kind := range []deputyv1.RevocationKind{kindSuspend, kindResume} {
			f.deputy.RevokeNow(kind, "agent:planner", "")
			if _, healthy := f.lets(connectedBound); healthy < 0 || f.accepts() {
				t.Errorf("%v: accepted %v, healthy %v", kind, f.accepts(), healthy)
			}
		}
		fresh := f.deputy.Claims(time.Now())
		fresh.Delegation.Hops = []delegation.Hop{{ID: "jti-1", Seq: 1000, Actor: 0}, {ID: "jti-2", Seq: 1001, Actor: 1}}
		if _, err := f.Verify(t.Context(), f.deputy.Token(fresh)); err != nil {
			t.Errorf("a token of after the suspension: %v", err)
		}
	})
}

func TestFeedMalformed(t *testing.T) {
	target := &deputyv1.RevocationTarget{Kind: kindToken, Id: "x"}
	good := &deputyv1.Revocation{Seq: 7, Prev: 3, Target: target}
	if _, err := readRevocation(good); err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]*deputyv1.Revocation{
		"nil":                  nil,
		"no target":            {Seq: 7},
		"no number":            {Target: target},
		"prev is not before":   {Seq: 7, Prev: 7, Target: target},
		"no kind":              {Seq: 7, Target: &deputyv1.RevocationTarget{Id: "x"}},
		"no id":                {Seq: 7, Target: &deputyv1.RevocationTarget{Kind: kindToken}},
		"a tenant with an id":  {Seq: 7, Target: &deputyv1.RevocationTarget{Kind: 9, Id: "x"}},
		"a pair with one half": {Seq: 7, Target: &deputyv1.RevocationTarget{Kind: 8, Id: "agent:x"}},
		"a stray subject":      {Seq: 7, Target: &deputyv1.RevocationTarget{Kind: kindToken, Id: "x", Subject: "user:alice"}},
	} {
		if r, err := readRevocation(m); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	for number, name := range deputyv1.RevocationKind_name {
		if _, known := revocationKinds[deputyv1.RevocationKind(number)]; known == (number == 0) {
			t.Errorf("%s: known %v", name, known)
		}
	}
}

func TestFeedSnapshotMalformed(t *testing.T) {
	revocation := func(seq uint64) *deputyv1.Revocation {
		return &deputyv1.Revocation{Seq: seq, Prev: seq - 1, Target: &deputyv1.RevocationTarget{Kind: kindToken, Id: "x"}}
	}
	for name, parts := range map[string][]*message{
		"out of order":           {snapshotOf(true, 9, revocation(9), revocation(8))},
		"out of order in parts":  {snapshotOf(false, 0, revocation(9)), snapshotOf(true, 9, revocation(8))},
		"holds more than it has": {snapshotOf(true, 8, revocation(9))},
	} {
		f := newFeed("", nil, maxMaxStaleness, clockOf(nil))
		w := &watch{feed: f, silence: time.NewTimer(time.Hour)}
		var err error
		for _, part := range parts {
			if err == nil {
				err = w.snapshot(part.GetSnapshot())
			}
		}
		if err == nil || f.known.Load() != nil {
			t.Errorf("%s: in force", name)
		}
	}
}

// TestVerifierIntrospects: a verifier without fresh knowledge introspects only where it is
// configured to.
func TestVerifierIntrospects(t *testing.T) {
	follow(t, VerifierConfig{IntrospectWhenStale: true}, asItIs, func(t *testing.T, f *follower) {
		f.deputy.RefuseFeeds(status.Error(codes.Unavailable, "no feeds today"))
		accepted, healthy := f.lets(30 * time.Second)
		if accepted < 29*time.Second || healthy > cutOffBound {
			t.Errorf("accepted until %v, healthy until %v", accepted, healthy)
		}
		f.revoke()
		if f.accepts() {
			t.Error("Deputy says that the token is revoked, and it is accepted")
		}
		other := f.deputy.Claims(time.Now())
		other.Delegation.Hops = []delegation.Hop{{ID: "other-1", Seq: 41, Actor: 0}, {ID: "jti-2", Seq: 57, Actor: 1}}
		f.token = f.deputy.Token(other)
		if !f.accepts() {
			t.Error("a token that Deputy calls active is refused")
		}
		f.network.swallow(true)
		began := time.Now()
		_, err := f.Verify(t.Context(), f.token)
		if code, _ := accessCode(t, err); code != AccessUnavailable || time.Since(began) > introspectTimeout+time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestVerifierCloses(t *testing.T) {
	follow(t, VerifierConfig{}, asItIs, func(t *testing.T, f *follower) {
		f.Close()
		f.Close()
		_, err := f.Verify(t.Context(), f.token)
		if code, _ := accessCode(t, err); code != AccessUnavailable {
			t.Errorf("a closed verifier: %v", err)
		}
		if s := f.Status(); s.Healthy || s.Connected || !errors.Is(s.Err, errClosed) {
			t.Errorf("%+v", s)
		}
	})
}

func TestVerifierNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := deputytest.StartInMemory()
		defer s.Close()
		s.RefuseFeeds(delegation.Refuse(delegation.AccessDenied, "", "this caller may not watch"))
		c := inMemoryClient(t, s, &network{server: s})
		defer c.Close()
		v, err := NewVerifier(VerifierConfig{Issuer: s.Issuer, Audience: calendar, JWKS: s.JWKS(), Client: c})
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		err = v.Ready(ctx)
		var refusal *delegation.Error
		if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &refusal) || refusal.Reason != delegation.AccessDenied {
			t.Errorf("err = %v", err)
		}
		_, err = v.Verify(t.Context(), s.Token(s.Claims(time.Now())))
		if code, _ := accessCode(t, err); code != AccessUnavailable {
			t.Errorf("before the first snapshot: %v", err)
		}
		s.RefuseFeeds(nil)
		if err := v.Ready(t.Context()); err != nil || !v.Status().Healthy {
			t.Errorf("then: %v, %+v", err, v.Status())
		}
	})
}

// TestFeedForgets: streams end every half a minute, with the credential that opened them.
// Revocations that can hit nothing any more are forgotten, and those that never expire are not.
func TestFeedForgets(t *testing.T) {
	follow(t, VerifierConfig{}, asItIs, func(t *testing.T, f *follower) {
		f.revoke()
		f.deputy.RevokeNow(kindSuspend, "agent:rogue", "")
		for range 4 * 40 {
			pass(30 * time.Second)
			f.deputy.CutFeeds(nil)
			if s := f.Status(); !s.Healthy || s.Staleness > 2*time.Second {
				t.Fatalf("%+v", s)
			}
		}
		if n := f.feed.known.Load().set.Len(); n != 1 {
			t.Errorf("%d revocations are remembered, want the suspension alone", n)
		}
	})
}

// TestFeedIncarnations: numbers count within one incarnation of the ledger. A snapshot of a later
// one replaces the knowledge, whatever its number. A snapshot of an earlier one, or an older
// snapshot of the same one, replaces nothing.
func TestFeedIncarnations(t *testing.T) {
	f := newFeed("", nil, maxMaxStaleness, clockOf(nil))
	w := &watch{feed: f, silence: time.NewTimer(time.Hour)}
	take := func(incarnation, last uint64) error {
		part := snapshotOf(true, last).GetSnapshot()
		part.Incarnation = incarnation
		return w.snapshot(part)
	}
	for _, step := range []struct {
		incarnation, last uint64
		taken             bool
	}{{0, 50, true}, {0, 40, false}, {7, 3, true}, {7, 2, false}, {0, 90, false}, {7, 8, true}} {
		w.building, w.highest = nil, 0
		w.marks = []sentMark{{nonce: 1, applied: f.position()}}
		before := f.incarnation()
		if err := take(step.incarnation, step.last); (err == nil) != step.taken || err != nil && !errors.Is(err, errBehind) {
			t.Errorf("%+v: %v", step, err)
		}
		if step.taken && (f.position() != step.last || f.incarnation() != step.incarnation) {
			t.Errorf("%+v: applied %d of %d", step, f.position(), f.incarnation())
		}
		if anew := step.taken && step.incarnation > before; anew != (len(w.marks) == 0) {
			t.Errorf("%+v: marks of a ledger that was given up: %v", step, w.marks)
		}
	}
}
