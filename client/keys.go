package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

const (
	keysRefreshAfter = 30 * time.Second // then the set is fetched again; the old set stays in use
	unknownPause     = 30 * time.Second // shortest time between two fetches for unknown kids
	failurePause     = time.Second      // shortest time between a failed fetch and the next
	fetchTimeout     = 3 * time.Second
	maxKeySetBytes   = 256 << 10
)

var (
	errUnknownKey = errors.New("the token names a key that its issuer does not publish")
	errNoKeys     = errors.New("the issuer's keys cannot be had")
)

// keySet is the result of one fetch. It is never changed.
type keySet struct {
	keys map[string]*verificationKey
	asOf instant // when the fetch began
}

// keySource holds one issuer's keys. It fetches only when a key is requested. Keys older than
// maxAge are not used, whatever the reason that no newer keys came. Young keys need no lock.
type keySource struct {
	address string
	client  *http.Client
	maxAge  time.Duration
	pause   time.Duration // shortest time between fetches for unpublished kids
	clock   clock
	fixed   bool // keys were given, nothing is fetched

	held     atomic.Pointer[keySet] // nil before the first fetch
	fetching flight[map[string]*verificationKey]
	life     context.Context // ends with close, and ends every fetch
	close    context.CancelFunc

	mu        sync.Mutex
	triedAt   instant // when the newest fetch began
	unknownAt instant // when an unknown kid last caused a fetch
}

func newKeySource(address string, transport http.RoundTripper, maxAge time.Duration, c clock) (*keySource, error) {
	if err := checkKeysAddress(address); err != nil {
		return nil, err
	}
	s := &keySource{
		address: address, maxAge: maxAge, pause: unknownPause, clock: c,
		client: &http.Client{
			Transport: transport,
			Timeout:   fetchTimeout,
			// A redirect would let the responding server choose where keys come from.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	s.life, s.close = context.WithCancel(context.Background())
	return s, nil
}

// end stops the running fetch and waits for it.
func (s *keySource) end() {
	s.close()
	s.fetching.wait()
}

// fixedKeys returns a source that never changes.
func fixedKeys(keys map[string]*verificationKey) *keySource {
	s := &keySource{fixed: true, close: func() {}}
	s.held.Store(&keySet{keys: keys})
	return s
}

// checkKeysAddress requires https, or http to this machine: keys that an attacker on the network
// path can replace verify nothing.
func checkKeysAddress(address string) error {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
		return errors.New("the address of the keys is not an absolute URL")
	case u.Scheme == "https" || u.Scheme == "http" && isLoopbackHost(u.Hostname()):
		return nil
	}
	return errors.New("the address of the keys must be https, or http on a loopback address")
}

func isLoopbackHost(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// key returns the key with the given kid from a set that is at most maxAge old.
func (s *keySource) key(ctx context.Context, kid string) (*verificationKey, error) {
	if kid == "" {
		return nil, errUnknownKey
	}
	keys, err := s.current(ctx)
	if err != nil {
		return nil, err
	}
	if key, known := keys[kid]; known {
		return key, nil
	}
	if asked := s.fetchForUnknown(ctx); asked != nil {
		if keys, err = asked.wait(ctx); err != nil {
			return nil, err
		}
	} else {
		keys = s.held.Load().keys // a recent fetch may have brought it
	}
	if key, known := keys[kid]; known {
		return key, nil
	}
	return nil, errUnknownKey
}

func (s *keySource) current(ctx context.Context) (map[string]*verificationKey, error) {
	held := s.held.Load()
	if s.fixed {
		return held.keys, nil
	}
	now := s.clock.now()
	age := s.maxAge + 1
	if held != nil {
		age = now.since(held.asOf)
	}
	if age < keysRefreshAfter {
		return held.keys, nil
	}
	s.mu.Lock()
	paused := now.since(s.triedAt) < failurePause
	s.mu.Unlock()
	switch {
	case age <= s.maxAge:
		if !paused {
			s.fetching.start(ctx, s.fetch)
		}
		return held.keys, nil
	case paused && s.fetching.underWay() == nil:
		return nil, errNoKeys
	}
	return s.fetching.do(ctx, s.fetch)
}

// fetchForUnknown returns the fetch that may bring an unknown kid: a new one, the running one, or
// nil. It limits the fetches that unauthenticated callers with invented tokens can cause.
func (s *keySource) fetchForUnknown(ctx context.Context) *landing[map[string]*verificationKey] {
	if s.fixed {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.now()
	if now.since(s.unknownAt) < s.pause {
		return s.fetching.underWay()
	}
	s.unknownAt = now
	return s.fetching.start(ctx, s.fetch)
}

func (s *keySource) fetch(ctx context.Context) (map[string]*verificationKey, error) {
	began := s.clock.now()
	s.mu.Lock()
	s.triedAt = began
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	keys, err := s.download(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoKeys, err)
	}
	s.keepSame(keys)
	s.held.Store(&keySet{keys: keys, asOf: began})
	return keys, nil
}

// keepSame replaces keys by equal keys that were held before, so that a verdict can compare
// pointers to check that its key is still published. Only one fetch runs at a time.
func (s *keySource) keepSame(keys map[string]*verificationKey) {
	held := s.held.Load()
	if held == nil {
		return
	}
	for kid, key := range keys {
		if old := held.keys[kid]; old != nil && old.same(key) {
			keys[kid] = old
		}
	}
}

func (s *keySource) download(ctx context.Context) (map[string]*verificationKey, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.address, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/jwk-set+json, application/json")
	response, err := s.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %d", s.address, response.StatusCode)
	}
	document, err := io.ReadAll(io.LimitReader(response.Body, maxKeySetBytes+1))
	if err != nil {
		return nil, err
	}
	if len(document) > maxKeySetBytes {
		return nil, fmt.Errorf("%s answered with more than %d bytes", s.address, maxKeySetBytes)
	}
	keys, err := parseKeys(document)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.address, err)
	}
	return keys, nil
}
