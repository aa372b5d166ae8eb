package ledger_test

import (
	"errors"
	"testing"
	"time"

	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
)

func TestSessions(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		clock := ledgertest.NewClock()
		config := patient
		config.Now = clock.Now
		l, other := opened(t, dsn, config), opened(t, dsn, config)
		began := clock.Now().UTC().Truncate(time.Microsecond)
		session := ledger.Session{Principal: "user:rita", Issuer: "https://login.example", SignedIn: began, Idle: 30 * time.Minute, Until: began.Add(2 * time.Hour)}
		key, second := [32]byte{1}, [32]byte{2}
		for _, k := range [][32]byte{key, second} {
			if err := l.StartSession(t.Context(), tenant, k, session); err != nil {
				t.Fatal(err)
			}
		}
		is := func(l *ledger.Ledger, tenant string, key [32]byte, want bool) {
			t.Helper()
			found, err := l.Session(t.Context(), tenant, key)
			switch {
			case want && (err != nil || found != session):
				t.Errorf("the session is %+v, %v, want %+v", found, err, session)
			case !want && !errors.Is(err, ledger.ErrNotFound):
				t.Errorf("the session is there: %+v, %v", found, err)
			}
		}
		is(other, tenant, key, true) // on another instance
		is(l, "globex", key, false)  // of another tenant
		is(l, tenant, [32]byte{3}, false)
		if err := l.StartSession(t.Context(), tenant, key, session); err == nil {
			t.Error("a second session takes the key of one that is there")
		}

		clock.Add(29 * time.Minute)
		is(l, tenant, key, true) // used, so that it goes on
		clock.Add(29 * time.Minute)
		is(other, tenant, key, true)
		is(l, tenant, second, false) // idle

		if err := other.EndSession(t.Context(), tenant, second); err != nil {
			t.Error(err)
		}
		for range 3 {
			clock.Add(25 * time.Minute)
			if clock.Now().Before(session.Until) {
				is(l, tenant, key, true)
			}
		}
		is(l, tenant, key, false) // its time is over, though it was used
		if err := l.EndSession(t.Context(), tenant, key); err != nil {
			t.Error(err)
		}
		is(l, tenant, key, false)
		if err := l.EndSession(t.Context(), tenant, key); err != nil {
			t.Errorf("ending what is over: %v", err)
		}
	})
}

// TestSessionsThatAreOverGo looks behind the ledger: what is over is not kept for ever.
// TestAClockThatIsBehindKeepsNoSession asks an instance whose clock shows a time long before the
// last use.
func TestAClockThatIsBehindKeepsNoSession(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		truth := ledgertest.NewClock()
		right, behind := wrong(t, dsn, truth, 0), wrong(t, dsn, truth, -48*time.Hour)
		session := ledger.Session{Principal: "user:rita", Issuer: "https://login.example", SignedIn: truth.Now(), Idle: time.Minute, Until: truth.Now().Add(2 * time.Hour)}
		if err := right.StartSession(t.Context(), tenant, [32]byte{1}, session); err != nil {
			t.Fatal(err)
		}
		if _, err := behind.Session(t.Context(), tenant, [32]byte{1}); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("a session that may have been idle for hours: %v", err)
		}
		if _, err := right.Session(t.Context(), tenant, [32]byte{1}); err != nil {
			t.Error(err)
		}
	})
}

func TestSessionsThatAreOverGo(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		clock := ledgertest.NewClock()
		config := patient
		config.Now = clock.Now
		l := opened(t, dsn, config)
		start := func(n byte) {
			t.Helper()
			err := l.StartSession(t.Context(), tenant, [32]byte{n}, ledger.Session{Principal: "user:rita", Idle: time.Minute, Until: clock.Now().Add(time.Hour)})
			if err != nil {
				t.Fatal(err)
			}
		}
		start(1)
		start(2)
		clock.Add(2 * time.Hour)
		start(3)
		clock.Add(-2 * time.Hour) // were they still there, they would be in force again
		for n := range byte(2) {
			if _, err := l.Session(t.Context(), tenant, [32]byte{n + 1}); !errors.Is(err, ledger.ErrNotFound) {
				t.Errorf("session %d is still there: %v", n+1, err)
			}
		}
		clock.Add(2 * time.Hour)
		if _, err := l.Session(t.Context(), tenant, [32]byte{3}); err != nil {
			t.Error(err)
		}
	})
}
