package token

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/panics"
)

// timing bounds how old keys may be and how often they are loaded.
type timing struct {
	refresh time.Duration // interval at which Run loads
	retry   time.Duration // interval at which Run loads after a failure
	// fresh: older keys are loaded again before one is used, so a removed key is refused within
	// this time.
	fresh    time.Duration
	onDemand time.Duration // requests start at most one load in this time
	keep     time.Duration // how long the last valid keys are used while loads fail
	timeout  time.Duration // for one load, all its requests together
}

var defaultTiming = timing{
	refresh:  45 * time.Second,
	retry:    5 * time.Second,
	fresh:    time.Minute,
	onDemand: 30 * time.Second,
	keep:     time.Hour,
	timeout:  2 * time.Second,
}

// source keeps the keys of one issuer or one client, or the certificates of one authority or
// client. Sources share nothing, so the same kid under two issuers means two keys. The nil source
// has no keys.
type source struct {
	name   string                                // for the log: the configured issuer or client
	load   func(context.Context) ([]byte, error) // nil: the keys never change
	parse  func([]byte) (*keyring, []string, error)
	timing timing
	now    func() time.Time
	logger *slog.Logger

	current atomic.Pointer[snapshot] // nil until the first successful load

	mu     sync.Mutex // guards what follows; never held while loading
	flight *flight    // the running load, or nil
	asked  time.Time  // when a request last started a load
	failed error      // why the newest finished load failed, or nil
}

// snapshot is the result of one load.
type snapshot struct {
	*keyring
	at time.Time // when the load began: the issuer may have removed a key right after
}

// flight is one load that any number of callers wait for.
type flight struct {
	done chan struct{}
	err  error // set before done is closed
}

var errUnknownKey = broken("its key is not one of its issuer's")

// key returns the key that a token of this source names. It loads keys again if the loaded ones are
// not fresh or do not include the key, at most once per timing.onDemand for any number of tokens,
// and never waits longer than timing.timeout.
func (s *source) key(ctx context.Context, kid string) (*publicKey, error) {
	if s == nil {
		return nil, errUnknownKey
	}
	now := s.now()
	held := s.current.Load()
	key := held.find(kid)
	fresh := held != nil && (s.load == nil || now.Sub(held.at) < s.timing.fresh)
	if key != nil && fresh {
		return key, nil
	}
	if s.load == nil {
		return nil, errUnknownKey
	}
	err := s.reloadFor(ctx, now, key != nil && s.believable(held))
	held = s.current.Load()
	key = held.find(kid)
	switch {
	case !s.believable(held):
		return nil, unavailableKeys(err)
	case key != nil:
		return key, nil
	case err != nil: // a new key and a wrong one cannot be distinguished now
		return nil, unavailableKeys(err)
	}
	return nil, errUnknownKey
}

// believable reports whether the keys may be used while loads fail.
func (s *source) believable(held *snapshot) bool {
	return held != nil && (s.load == nil || s.now().Sub(held.at) < s.timing.keep)
}

func (held *snapshot) find(kid string) *publicKey {
	if held == nil {
		return nil
	}
	return held.keyring.find(kid)
}

func unavailableKeys(cause error) error {
	if cause == nil {
		cause = errors.New("keys are too old, and no load is due yet")
	}
	return delegation.Unavailable("the source of the token issuer's keys", cause)
}

// reloadFor gets newer keys for a request if a load is permitted. A request with a usable key of a
// failing source does not wait: the last valid keys are used until they are too old.
func (s *source) reloadFor(ctx context.Context, now time.Time, holdsKey bool) error {
	s.mu.Lock()
	failed := s.failed
	if s.flight == nil && (s.asked.IsZero() || now.Sub(s.asked) >= s.timing.onDemand) {
		s.asked = now
		s.takeOff()
	}
	f := s.flight
	s.mu.Unlock()
	if f == nil || holdsKey && failed != nil {
		return failed
	}
	return s.await(ctx, f)
}

// takeOff starts a load. It belongs to no caller, so no caller can cancel it for the others. s.mu
// is held.
func (s *source) takeOff() {
	f := &flight{done: make(chan struct{})}
	s.flight = f
	go func() {
		began := s.now()
		ctx, cancel := context.WithTimeout(context.Background(), s.timing.timeout)
		defer cancel()
		ring, err := s.read(ctx)
		s.land(f, &snapshot{keyring: ring, at: began}, err)
	}()
}

func (s *source) await(ctx context.Context, f *flight) error {
	ctx, cancel := context.WithTimeout(ctx, s.timing.timeout)
	defer cancel()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// read loads and parses. A served document must never end the process, so a panic of the parser is
// a failed load.
func (s *source) read(ctx context.Context) (ring *keyring, err error) {
	defer func() {
		if r := recover(); r != nil {
			ring, err = nil, fmt.Errorf("read the keys: %w", panics.Caught(ctx, s.logger, r, "in", "token"))
		}
	}()
	data, err := s.load(ctx)
	if err != nil {
		return nil, err
	}
	ring, ignored, err := s.parse(data)
	if err != nil {
		return nil, err
	}
	// The issuer may intend an empty set, so it takes effect at once.
	if len(ring.byID)+len(ring.certificates) == 0 {
		s.logger.Warn("issuer publishes no usable key", "source", s.name, "ignored", ignored)
	}
	return ring, nil
}

func (s *source) land(f *flight, loaded *snapshot, err error) {
	s.mu.Lock()
	before := s.failed
	s.flight, s.failed = nil, err
	if err == nil {
		s.current.Store(loaded)
	}
	s.mu.Unlock()
	defer close(f.done)
	f.err = err
	switch { // a failing source is logged once, not every few seconds
	case err != nil && before == nil:
		s.logger.Warn("keys cannot be loaded; the last good ones serve", "source", s.name, "for", s.timing.keep, "error", err)
	case err == nil && before != nil:
		s.logger.Info("keys can be loaded again", "source", s.name)
	}
}

// run keeps the keys fresh until ctx ends, so that requests find them in memory.
func (s *source) run(ctx context.Context) {
	for s.load != nil {
		s.mu.Lock()
		if s.flight == nil {
			s.takeOff()
		}
		f := s.flight
		s.mu.Unlock()
		wait := s.timing.refresh
		if s.await(ctx, f) != nil {
			wait = s.timing.retry
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// registered reports whether a key with this thumbprint is loaded and may still be used.
func (s *source) registered(thumbprint string) bool {
	if s == nil {
		return false
	}
	held := s.current.Load()
	if !s.believable(held) {
		return false
	}
	for _, key := range held.byID {
		if key.thumbprint == thumbprint {
			return true
		}
	}
	return false
}

// shares reports whether two sources hold the same key. It is for keys that are registered in the
// configuration.
func (s *source) shares(other *source) bool {
	if s == nil {
		return false
	}
	for _, key := range s.current.Load().byID {
		if other.registered(key.thumbprint) {
			return true
		}
	}
	return false
}
