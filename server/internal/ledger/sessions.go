package ledger

import (
	"context"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Session is a person's session in the console. It is stored here because the database is the one
// store that is trusted. What Redis loses or a process forgets must not sign a person out or,
// worse, in.
type Session struct {
	Principal delegation.Principal
	Issuer    string    // that authenticated the person
	SignedIn  time.Time // time of the authentication
	Idle      time.Duration
	Until     time.Time // the session ends then at the latest
}

// seenEvery is how often the use of a session is written. A session can become idle that much
// earlier than its last request requires.
const seenEvery = 10 * time.Second

// oldSessions is how many ended sessions are removed when a new one begins.
const oldSessions = 64

// StartSession stores a session under a key that only the digest of its secret gives.
func (l *Ledger) StartSession(ctx context.Context, tenant string, key [32]byte, s Session) error {
	now := l.config.Now()
	return l.changeSessions(ctx, func(ctx context.Context, db changer) error {
		if through, certain := l.forgettable(now); certain {
			_, err := db.change(ctx, `DELETE FROM console_sessions WHERE tenant = $1 AND digest IN
				(SELECT digest FROM console_sessions WHERE tenant = $1 AND until <= $2 ORDER BY until LIMIT $3)`, tenant, micros(through), int64(oldSessions))
			if err != nil {
				return err
			}
		}
		return keep(ctx, db, 1, `INSERT INTO console_sessions (tenant, digest, principal, issuer, signed_in, seen, idle, until)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
			tenant, key[:], string(s.Principal), s.Issuer, micros(s.SignedIn), micros(now), s.Idle.Microseconds(), micros(s.Until))
	})
}

// Session returns a session that has not ended, and notes its use. Otherwise the error is
// ErrNotFound. This includes a clock that is further behind the last use than the clocks of two
// instances may differ: then it is unknown how long the session was idle.
func (l *Ledger) Session(ctx context.Context, tenant string, key [32]byte) (Session, error) {
	now := micros(l.config.Now())
	s, seen, err := l.readSession(ctx, tenant, key)
	switch {
	case err != nil:
		return Session{}, err
	case micros(s.Until) <= now || seen+s.Idle.Microseconds() <= now, now < seen-2*l.config.Clock.Bound().Microseconds():
		return Session{}, ErrNotFound
	case now-seen < seenEvery.Microseconds():
		return s, nil
	}
	var still int64
	err = l.changeSessions(ctx, func(ctx context.Context, db changer) error {
		var err error
		still, err = db.change(ctx, `UPDATE console_sessions SET seen = $3 WHERE tenant = $1 AND digest = $2`, tenant, key[:], now)
		return err
	})
	if err == nil && still == 0 { // ended meanwhile
		err = ErrNotFound
	}
	if err != nil {
		return Session{}, err
	}
	return s, nil
}

func (l *Ledger) readSession(ctx context.Context, tenant string, key [32]byte) (s Session, seen int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	found, err := l.store.query(ctx, `SELECT principal, issuer, signed_in, seen, idle, until FROM console_sessions
		WHERE tenant = $1 AND digest = $2`, tenant, key[:])
	if err != nil {
		return s, 0, unavailable(err)
	}
	defer found.Close()
	if !found.Next() {
		if err := found.Err(); err != nil {
			return s, 0, unavailable(err)
		}
		return s, 0, ErrNotFound
	}
	var principal string
	var signedIn, idle, until int64
	if err := found.Scan(&principal, &s.Issuer, &signedIn, &seen, &idle, &until); err != nil {
		return s, 0, unavailable(err)
	}
	s.Principal, s.SignedIn, s.Until = delegation.Principal(principal), fromMicros(signedIn), fromMicros(until)
	s.Idle = time.Duration(idle) * time.Microsecond
	return s, seen, nil
}

// EndSession removes a session. It succeeds if there is none.
func (l *Ledger) EndSession(ctx context.Context, tenant string, key [32]byte) error {
	return l.changeSessions(ctx, func(ctx context.Context, db changer) error {
		if _, err := db.change(ctx, `DELETE FROM console_sessions WHERE tenant = $1 AND digest = $2`, tenant, key[:]); err != nil {
			return err
		}
		left, err := count(ctx, db, `SELECT count(*) FROM console_sessions WHERE tenant = $1 AND digest = $2`, tenant, key[:])
		if err == nil && left > 0 {
			err = errNotKept
		}
		return err
	})
}

// endSessions removes all sessions of a principal.
func (l *Ledger) endSessions(ctx context.Context, tenant string, p delegation.Principal) error {
	return l.changeSessions(ctx, func(ctx context.Context, db changer) error {
		_, err := db.change(ctx, sqlEraseSessions, tenant, string(p))
		return err
	})
}

func (l *Ledger) changeSessions(ctx context.Context, f func(context.Context, changer) error) error {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	if err := l.store.change(ctx, func(db changer) error { return f(ctx, db) }); err != nil {
		return unavailable(err)
	}
	return nil
}
