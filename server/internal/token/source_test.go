package token

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"deputy.example/deputy/client/delegation"
)

// fakeIssuer is the network: it serves one document, slowly or not at all, as the test sets.
type fakeIssuer struct {
	mu      sync.Mutex
	body    string
	err     error
	delay   time.Duration
	fetches int
}

func (f *fakeIssuer) set(change func(*fakeIssuer)) { f.mu.Lock(); defer f.mu.Unlock(); change(f) }

func (f *fakeIssuer) count() int { f.mu.Lock(); defer f.mu.Unlock(); return f.fetches }

func (f *fakeIssuer) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	f.fetches++
	body, err, delay := f.body, f.err, f.delay
	f.mu.Unlock()
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: http.StatusOK, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}},
		Body:   io.NopCloser(strings.NewReader(body)),
	}, nil
}

// fetching makes a world, inside a synctest bubble, whose identity provider serves its keys through
// f.
func fetching(t *testing.T, f *fakeIssuer) *world {
	t.Helper()
	w := newWorld(t, func(c *TrustConfig) {
		c.Transport = f
		c.TrustedIssuers[0].Keys = KeySource{JWKSURL: idpIssuer + "/jwks"}
	})
	w.clock.live = true
	f.body = jwks(t, w.idp)
	return w
}

func (w *world) idpSource() *source { return w.issuers[idpIssuer].keys }

// rootBy verifies a fresh root token signed by the key.
func (w *world) rootBy(t *testing.T, key testKey) error {
	t.Helper()
	_, err := w.root(t.Context(), key.sign(t, "at+jwt", w.rootClaims()))
	return err
}

func TestManyUnknownKeysCostOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIssuer{}
		w := fetching(t, f)
		if err := w.rootBy(t, w.idp); err != nil {
			t.Fatal(err)
		}
		time.Sleep(31 * time.Second)
		tokens := make([]string, 10_000)
		for n := range tokens {
			tokens[n] = w.idp.sign(t, "at+jwt", w.rootClaims(), object{"kid": fmt.Sprintf("kid-%d", n)})
		}
		f.set(func(f *fakeIssuer) { f.fetches, f.delay = 0, time.Second })
		synctest.Wait()
		before := runtime.NumGoroutine()
		var refused atomic.Int64
		var callers sync.WaitGroup
		for _, token := range tokens {
			callers.Go(func() {
				if _, err := w.root(t.Context(), token); err != nil && strings.Contains(err.Error(), "its key is not one of its issuer's") {
					refused.Add(1)
				}
			})
		}
		callers.Wait()
		if f.count() != 1 || refused.Load() != 10_000 {
			t.Errorf("10,000 unknown kids cost %d fetches, %d refused", f.count(), refused.Load())
		}
		synctest.Wait()
		// The number of goroutines of the runtime varies by a few.
		if after := runtime.NumGoroutine(); after > before+10 {
			t.Errorf("10,000 unknown kids leave %d goroutines behind", after-before)
		}
		// This is all that a source keeps between two tokens.
		if held := len(w.idpSource().current.Load().byID); held != 1 {
			t.Errorf("10,000 unknown kids leave %d keys in hand", held)
		}
		time.Sleep(28 * time.Second)
		if _, err := w.root(t.Context(), tokens[0]); err == nil || f.count() != 1 {
			t.Errorf("another fetch within 30 s: %d, %v", f.count(), err)
		}
		time.Sleep(2 * time.Second)
		if _, err := w.root(t.Context(), tokens[0]); err == nil || f.count() != 2 {
			t.Errorf("no fetch after 30 s: %d, %v", f.count(), err)
		}

		// The control: without the limit every unknown kid is a fetch.
		w.idpSource().timing.onDemand = 0
		f.set(func(f *fakeIssuer) { f.fetches, f.delay = 0, 0 })
		for _, token := range tokens[:50] {
			if _, err := w.root(t.Context(), token); err == nil {
				t.Fatal("an unknown kid is accepted")
			}
		}
		if f.count() != 50 {
			t.Errorf("the control fetches %d times, want 50: what limits it?", f.count())
		}
	})
}

func TestNewKeyIsFoundAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIssuer{}
		w := fetching(t, f)
		stop := running(t, w)
		defer stop()
		if err := w.rootBy(t, w.idp); err != nil {
			t.Fatal(err)
		}
		next := newTestKey(t, "ES256", "idp-2")
		f.set(func(f *fakeIssuer) { f.body = jwks(t, w.idp, next) })
		if err := w.rootBy(t, next); err != nil {
			t.Errorf("a key published between two refreshes is not found: %v", err)
		}
		if err := w.rootBy(t, w.idp); err != nil {
			t.Error(err)
		}
	})
}

// running runs Trust.Run in the bubble until the returned function is called, which waits for it.
func running(t *testing.T, w *world) func() {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run ends with %v", err)
		}
	}
}

func TestRemovedKeyIsRefusedWithinAMinute(t *testing.T) {
	for _, background := range []bool{true, false} {
		t.Run(fmt.Sprintf("Run=%t", background), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeIssuer{}
				w := fetching(t, f)
				if background {
					defer running(t, w)()
				}
				if err := w.rootBy(t, w.idp); err != nil {
					t.Fatal(err)
				}
				f.set(func(f *fakeIssuer) { f.body = jwks(t, newTestKey(t, "ES256", "idp-2")) })
				time.Sleep(time.Minute)
				wantReason(t, w.rootBy(t, w.idp), delegation.SubjectTokenInvalid, "its key is not one of its issuer's")

				// An empty set is an answer of the issuer too.
				f.set(func(f *fakeIssuer) { f.body = `{"keys":[]}` })
				time.Sleep(time.Minute)
				wantReason(t, w.rootBy(t, w.idp), delegation.SubjectTokenInvalid, "its key is not one of its issuer's")
			})
		})
	}
	t.Run("control: keys stay fresh for an hour", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeIssuer{}
			w := fetching(t, f)
			w.idpSource().timing.fresh = time.Hour
			if err := w.rootBy(t, w.idp); err != nil {
				t.Fatal(err)
			}
			f.set(func(f *fakeIssuer) { f.body = `{"keys":[]}` })
			time.Sleep(time.Minute)
			if err := w.rootBy(t, w.idp); err != nil {
				t.Errorf("refused without the protection: %v", err)
			}
		})
	})
}

func TestLastGoodKeysServeForAnHour(t *testing.T) {
	for _, background := range []bool{true, false} {
		t.Run(fmt.Sprintf("Run=%t", background), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeIssuer{}
				w := fetching(t, f)
				if background {
					defer running(t, w)()
				}
				if err := w.rootBy(t, w.idp); err != nil {
					t.Fatal(err)
				}
				f.set(func(f *fakeIssuer) { f.err, f.delay = errors.New("connection refused"), time.Hour })
				began := time.Now()
				for time.Since(began) < 58*time.Minute {
					time.Sleep(time.Minute)
					asked := time.Now()
					if err := w.rootBy(t, w.idp); err != nil {
						t.Fatalf("after %v: %v", time.Since(began), err)
					}
					// Only the first request after the failure may wait for it.
					if waited := time.Since(asked); waited > 0 && time.Since(began) > 2*time.Minute {
						t.Fatalf("after %v a request waits %v for an issuer that is known to be down", time.Since(began), waited)
					}
				}
				time.Sleep(3 * time.Minute)
				asked := time.Now()
				wantReason(t, w.rootBy(t, w.idp), delegation.DependencyDown, "keys is not available")
				if waited := time.Since(asked); waited > 2*time.Second {
					t.Errorf("the refusal takes %v", waited)
				}
				// An unknown key may be a new one, so the token gets no verdict either.
				wantReason(t, w.rootBy(t, newTestKey(t, "ES256", "idp-2")), delegation.DependencyDown, "")

				f.set(func(f *fakeIssuer) { f.err, f.delay = nil, 0 })
				time.Sleep(31 * time.Second)
				if err := w.rootBy(t, w.idp); err != nil {
					t.Errorf("no recovery: %v", err)
				}
				if logged := strings.Count(w.log.String(), "keys cannot be loaded"); logged != 1 {
					t.Errorf("one failure was logged %d times", logged)
				}
			})
		})
	}
}

func TestIssuerThatIsDownAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIssuer{delay: time.Hour}
		began := time.Now()
		w := fetching(t, f)
		stop := running(t, w)
		defer stop()
		if time.Since(began) != 0 {
			t.Errorf("the start takes %v", time.Since(began))
		}
		wantReason(t, w.rootBy(t, w.idp), delegation.DependencyDown, "")
		if waited := time.Since(began); waited > 2*time.Second {
			t.Errorf("the answer takes %v", waited)
		}
		if err := w.rootBy(t, w.spire); reasonOf(t, err) != delegation.DependencyDown {
			t.Errorf("%v", err)
		}
		// A caller that needs no fetched key is served.
		if _, err := w.Caller(t.Context(), w.agent.sign(t, "JWT", w.assertionClaims())); err != nil {
			t.Error(err)
		}
		if _, err := w.Own(w.own(t, func(c *delegation.Claims) {
			c.IssuedAt, c.NotBefore, c.ExpiresAt = w.seconds(0), w.seconds(0), w.seconds(time.Minute)
		})); err != nil {
			t.Error(err)
		}
		f.set(func(f *fakeIssuer) { f.delay = 0 })
		time.Sleep(8 * time.Second)
		if err := w.rootBy(t, w.idp); err != nil {
			t.Errorf("no recovery: %v", err)
		}
	})
}

func TestCancelledCallerDoesNotPoisonASharedFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIssuer{delay: time.Second}
		w := fetching(t, f)
		token := w.idp.sign(t, "at+jwt", w.rootClaims())
		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan error), make(chan error)
		go func() { _, err := w.root(ctx, token); first <- err }()
		synctest.Wait() // the first caller has started the fetch
		go func() { _, err := w.root(t.Context(), token); second <- err }()
		synctest.Wait()
		cancel()
		wantReason(t, <-first, delegation.DependencyDown, "")
		if err := <-second; err != nil {
			t.Errorf("the second caller fails with the first: %v", err)
		}
		if f.count() != 1 {
			t.Errorf("%d fetches", f.count())
		}
	})
}

func TestOneKeyIDOfTwoIssuersMeansTwoKeys(t *testing.T) {
	w := newWorld(t, func(c *TrustConfig) {
		other := newTestKey(t, "ES256", "idp-1")
		c.TrustedIssuers[1].Keys, c.TrustedIssuers[1].Algorithms = KeySource{JWKS: jwks(t, other)}, []string{"ES256"}
		c.TrustedIssuers[1].Audiences = []string{api}
	})
	if err := w.rootBy(t, w.idp); err != nil {
		t.Fatal(err)
	}
	_, err := w.root(t.Context(), w.idp.sign(t, "at+jwt", w.rootClaims().with(object{"iss": spireIssuer})))
	wantReason(t, err, delegation.SubjectTokenInvalid, "its signature does not verify")
}

// A served document must not end the process, whatever it holds.
func TestReadingKeysSurvivesAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := fetching(t, &fakeIssuer{})
		w.idpSource().load = func(context.Context) ([]byte, error) { panic("malformed beyond belief") }
		wantReason(t, w.rootBy(t, w.idp), delegation.DependencyDown, "")
	})
}

func TestTokenWithoutKeyIDNeedsASingleKey(t *testing.T) {
	w := newWorld(t)
	nameless := func(key testKey) string { return key.sign(t, "at+jwt", w.rootClaims(), object{"kid": nil}) }
	if _, err := w.root(t.Context(), nameless(w.idp)); err != nil {
		t.Fatal(err)
	}
	config := w.config
	config.TrustedIssuers = append([]TrustedIssuer(nil), config.TrustedIssuers...)
	config.TrustedIssuers[0].Keys = KeySource{JWKS: jwks(t, w.idp, newTestKey(t, "ES256", "idp-2"))}
	trust, err := NewTrust(config)
	if err != nil {
		t.Fatal(err)
	}
	_, err = trust.Subject(t.Context(), nameless(w.idp), accessType)
	wantReason(t, err, delegation.SubjectTokenInvalid, "its key is not")
	if _, err := trust.Subject(t.Context(), w.idp.sign(t, "at+jwt", w.rootClaims()), accessType); err != nil {
		t.Error(err)
	}
}
