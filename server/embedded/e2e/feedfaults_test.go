package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/testservers"
)

const (
	// connectedBound is the time from the acknowledgement to the refusal, at a connected verifier.
	connectedBound = time.Second
	cutOffBound    = 10 * time.Second // the same time at one that is cut off
	faultLasts     = cutOffBound + 2*time.Second
	healedWithin   = 10 * time.Second
)

// feedFault is a fault between a verifier and the ledger.
type feedFault struct {
	at    string            // the address that the verifier follows
	as    client.Credential // nil: the planner's
	begin func(jti string)
	also  func(*deployment) // called when the revocation of jti is acknowledged; may be nil
	end   func()

	bound  time.Duration // within which the revoked token is refused
	serves bool          // the verifier stays healthy
	stale  time.Duration // the verifier's state is never fresher than this
	hidden bool          // no verifier can detect it: the token stays accepted
	why    delegation.Reason
}

// TestFeedFaults revokes a token during a fault between a verifier and the ledger. The verifiers
// have the SDK's defaults, the instances are processes of their own, and time is real. The token is
// refused in time, the verifier reports that it is not healthy, and it recovers by itself.
//
// Each verifier that is cut off has a control whose clock does not advance, so that its state is
// never stale. Each other verifier has a control that follows no revocations. The controls accept
// the token until the fault ends.
func TestFeedFaults(t *testing.T) {
	d := deploy(t, plan{redis: testservers.Redis(t), database: testservers.Postgres(t), tenant: "limits: {caller_rate: 100000}\n"})
	database, err := url.Parse(d.database)
	check(t, err)
	toLedger := newLink(t, database.Host)
	database.Host = toLedger.address
	behind := *d
	behind.database = database.String()
	one, two := d.spawn(), behind.spawn()
	one.awaitReady(t)
	two.awaitReady(t)

	fair, cut, never := weather{}, weather{refuse: true}, func(string) {}
	over := func(w weather, f feedFault) feedFault {
		l := newLink(t, one.grpc)
		f.at, f.begin, f.end = l.address, func(string) { l.is(w) }, func() { l.is(fair) }
		return f
	}
	meddled := func(edit func(jti string) func(*watched) []*watched, f feedFault) feedFault {
		m := newMeddler(t, &one.instance)
		f.at, f.begin, f.end = m.address, func(jti string) { m.meddles(edit(jti)) }, func() { m.meddles(nil) }
		return f
	}
	var late atomic.Bool
	expiring := d.assertion(func() time.Time {
		if late.Load() {
			return time.Now().Add(-time.Hour)
		}
		return time.Now()
	})
	var together sync.WaitGroup
	defer together.Wait()
	moment, comeback := newLink(t, one.grpc), newLink(t, one.grpc)
	for name, f := range map[string]feedFault{
		"nothing": {at: one.grpc, begin: never, end: func() {}, bound: connectedBound, serves: true},
		"cut for a moment": {
			at: moment.address, begin: func(string) { moment.is(cut); moment.is(fair) }, end: func() {}, bound: cutOffBound, serves: true,
		},
		"cut":                   over(cut, feedFault{bound: cutOffBound, why: delegation.DependencyDown}),
		"swallowed":             over(weather{swallow: true}, feedFault{bound: cutOffBound}),
		"buffered and released": over(weather{hold: true}, feedFault{bound: cutOffBound}),
		"delayed by 8 s":        over(weather{delay: 8 * time.Second}, feedFault{bound: cutOffBound}),
		"delayed by 2 s": over(weather{delay: 2 * time.Second}, feedFault{
			bound: 2*time.Second + connectedBound, serves: true, stale: 2 * time.Second,
		}),
		"read slowly": over(weather{trickle: 300 * time.Millisecond}, feedFault{bound: cutOffBound}),
		"duplicated":  meddled(thrice, feedFault{bound: connectedBound, serves: true}),
		"reordered": meddled(overtaken, feedFault{bound: connectedBound, serves: true, also: func(d *deployment) {
			d.revoke(one, d.grant(one))
		}}),
		"lost": meddled(lost, feedFault{bound: cutOffBound, serves: true}),
		// This fault is what "lost" would be without numbers.
		"lost and denied": meddled(denied, feedFault{serves: true, hidden: true}),
		"credential expired": {
			at: comeback.address, as: expiring,
			begin: func(string) { late.Store(true); comeback.is(cut); comeback.is(fair) }, end: func() { late.Store(false) },
			bound: cutOffBound, why: delegation.ClientUnauthenticated,
		},
		"ledger swallowed": {
			at: two.grpc, begin: func(string) { toLedger.is(weather{swallow: true}) }, end: func() { toLedger.is(fair) },
			bound: cutOffBound,
		},
	} {
		// The tests wait for most of their time, so all run at once, whatever -parallel is.
		together.Go(func() {
			t.Run(name, func(t *testing.T) {
				own := *d
				own.t = t
				own.endure(one, f)
			})
		})
	}
}

// endure runs one fault against one verifier.
func (d *deployment) endure(one *process, f feedFault) {
	t := d.t
	token, alive := d.grant(one), d.grant(one)
	raw := token.AccessToken.Reveal()
	verify := func(v *client.Verifier, token string) error {
		_, err := v.Verify(t.Context(), token)
		return err
	}
	v, control := d.follower(one, f, time.Now), d.verifier(&one.instance)
	if !f.serves {
		stopped := time.Now()
		control = d.follower(one, f, func() time.Time { return stopped })
	}
	check(t, errors.Join(verify(v, raw), verify(control, raw), verify(v, alive.AccessToken.Reveal())))

	f.begin(token.JTI)
	d.revoke(one, token)
	acknowledged := time.Now()
	if f.also != nil {
		f.also(d)
	}
	accepted, healthy, youngest := time.Duration(-1), time.Duration(-1), faultLasts
	for time.Since(acknowledged) < faultLasts {
		at := time.Since(acknowledged)
		if verify(v, raw) == nil {
			accepted = at
		}
		if s := v.Status(); s.Healthy {
			healthy = at
			// Before that, its state may still be that from before the fault.
			if at > faultLasts/2 {
				youngest = min(youngest, s.Staleness)
			}
		} else if s.Err == nil {
			t.Errorf("it is not healthy and does not say why: %+v", s)
		}
		<-time.After(5 * time.Millisecond)
	}
	t.Logf("accepted until %v after the acknowledgement, healthy until %v", accepted.Round(time.Millisecond), healthy.Round(time.Millisecond))
	switch {
	case f.hidden != (accepted > cutOffBound):
		t.Errorf("accepted until %v", accepted)
	case !f.hidden && accepted > f.bound:
		t.Errorf("accepted until %v after the acknowledgement: the bound is %v", accepted, f.bound)
	}
	switch err := verify(control, raw); {
	case f.serves && err != nil:
		t.Errorf("control: without the feed the token is refused all the same: %v", err)
	case !f.serves && access(err) != client.AccessUnavailable:
		t.Errorf("a wall clock that is stopped keeps the verifier fresh: %v", err)
	}
	s, err := v.Status(), verify(v, alive.AccessToken.Reveal())
	switch {
	case s.Healthy != f.serves, f.serves && (err != nil || youngest < f.stale):
		t.Errorf("a token in force: %v; what it knew was %v old at times; %+v", err, youngest, s)
	case !f.serves && access(err) != client.AccessUnavailable:
		t.Errorf("cut off, it says of a token in force: %v", err)
	}
	var refusal *delegation.Error
	if f.why != "" && (!errors.As(s.Err, &refusal) || refusal.Reason != f.why) {
		t.Errorf("it says %v, want %s", s.Err, f.why)
	}

	f.end()
	if f.hidden {
		return
	}
	healed := time.Now()
	eventually(t, healedWithin, func() error {
		if s := v.Status(); !s.Healthy || !s.Connected || s.Err != nil {
			return fmt.Errorf("%+v", s)
		}
		if err := verify(v, raw); access(err) != client.AccessInvalidToken {
			return fmt.Errorf("the revoked token: %w", err)
		}
		return verify(v, alive.AccessToken.Reveal())
	})
	t.Logf("all is well %v after the fault has ended", time.Since(healed).Round(time.Millisecond))
}

// follower returns a verifier that follows as the fault requires, with the default patience.
func (d *deployment) follower(one *process, f feedFault, now func() time.Time) *client.Verifier {
	d.t.Helper()
	credential := f.as
	if credential == nil {
		credential = d.assertion(time.Now)
	}
	v, err := client.NewVerifier(client.VerifierConfig{
		Issuer: d.issuer, Audience: calendarAudience, JWKS: d.jwks(&one.instance),
		Client: d.with(&instance{grpc: f.at}, credential), Now: now,
	})
	check(d.t, err)
	d.t.Cleanup(func() { check(d.t, v.Close()) })
	ctx, cancel := context.WithTimeout(d.t.Context(), readyWithin)
	defer cancel()
	check(d.t, v.Ready(ctx))
	return v
}

// assertion returns the planner's credential, with the given clock.
func (d *deployment) assertion(now func() time.Time) client.Credential {
	d.t.Helper()
	key, err := client.LoadKey(d.keyPath(planner))
	check(d.t, err)
	credential, err := client.NewAssertion(client.AssertionConfig{Issuer: d.issuer, ClientID: string(planner), Key: key, Now: now})
	check(d.t, err)
	return credential
}

// grant returns a new token of the planner's.
func (d *deployment) grant(one *process) *client.Token {
	d.t.Helper()
	token, err := d.as(&one.instance, planner).Exchange(d.t.Context(), stepIn(d.root()))
	check(d.t, err)
	return token
}

// revoke revokes the token, and returns when the revocation is acknowledged.
func (d *deployment) revoke(one *process, token *client.Token) {
	d.t.Helper()
	_, err := d.as(&one.instance, planner).Revoke(d.t.Context(), client.RevokeRequest{Target: client.RevokeToken(token.AccessToken), Reason: "test"})
	check(d.t, err)
}

func thrice(string) func(*watched) []*watched {
	return func(m *watched) []*watched { return []*watched{m, m, m} }
}

// overtaken makes the next event overtake the event about the token.
func overtaken(jti string) func(*watched) []*watched {
	var held *watched
	return func(m *watched) []*watched {
		switch event := m.GetEvent(); {
		case event == nil:
		case event.GetTarget().GetId() == jti:
			held = m
			return nil
		case held != nil:
			both := []*watched{m, held}
			held = nil
			return both
		}
		return []*watched{m}
	}
}

// lost drops the event about the token once. An echo or the next event shows that it is missing.
func lost(jti string) func(*watched) []*watched {
	gone := false
	return func(m *watched) []*watched {
		if m.GetEvent().GetTarget().GetId() == jti && !gone {
			gone = true
			return nil
		}
		return []*watched{m}
	}
}

// denied changes every message as if the token had never been revoked.
func denied(jti string) func(*watched) []*watched {
	about := func(r *deputyv1.Revocation) bool { return r.GetTarget().GetId() == jti }
	var seq, before uint64
	without := func(n uint64) uint64 {
		if n == seq {
			return before
		}
		return n
	}
	return func(m *watched) []*watched {
		switch m := m.GetMessage().(type) {
		case *deputyv1.WatchRevocationsResponse_Event:
			if about(m.Event) {
				seq, before = m.Event.GetSeq(), m.Event.GetPrev()
				return nil
			}
			m.Event.Prev = without(m.Event.GetPrev())
		case *deputyv1.WatchRevocationsResponse_Snapshot:
			m.Snapshot.Revocations = slices.DeleteFunc(m.Snapshot.GetRevocations(), about)
			m.Snapshot.Last = without(m.Snapshot.GetLast())
		case *deputyv1.WatchRevocationsResponse_Echo:
			m.Echo.Last = without(m.Echo.GetLast())
		}
		return []*watched{m}
	}
}
