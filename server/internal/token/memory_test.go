package token

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v2/jws"

	"deputy.example/deputy/client/delegation"
)

// checks are the signatures that a world checked, by the algorithm of the key.
type checks struct {
	mu sync.Mutex
	by map[string]int
}

// of returns the number of signatures that keys of the algorithm checked, and whether no other key
// checked one.
func (c *checks) of(algorithm string) (n int, alone bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.by[algorithm], len(c.by) == 1
}

func (c *checks) total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, of := range c.by {
		n += of
	}
	return n
}

// countingVerifier counts the signatures that one key checks.
type countingVerifier struct {
	jws.Verifier
	algorithm string
	checks    *checks
}

func (v countingVerifier) Verify(payload, signature []byte, key any) error {
	v.checks.mu.Lock()
	v.checks.by[v.algorithm]++
	v.checks.mu.Unlock()
	return v.Verifier.Verify(payload, signature, key)
}

// counted counts the signatures that a world checks with the keys that it holds now.
func (w *world) counted() *checks {
	c := &checks{by: make(map[string]int)}
	count := func(keys map[string]*publicKey) {
		for _, k := range keys {
			k.verifier = countingVerifier{k.verifier, k.algorithm.String(), c}
		}
	}
	count(w.decoys)
	count(w.keys.fixed.public.byID)
	for _, s := range w.sources() {
		count(s.current.Load().byID)
	}
	return c
}

// ways are all entry points of a token that may come more than once.
func (w *world) ways(t *testing.T) map[string]func() error {
	t.Helper()
	root, own := w.idp.sign(t, "at+jwt", w.rootClaims()), w.own(t, nil)
	caller := w.spire.sign(t, "JWT", w.workloadClaims())
	named := w.spire.sign(t, "JWT", w.workloadClaims().with(object{"aud": delegation.ActorAudience(tenantIssuer)}))
	self := w.agent.sign(t, "JWT", w.assertionClaims().with(object{"aud": delegation.ActorAudience(tenantIssuer), "jti": nil}))
	subject := func(token string) func() error {
		return func() error {
			_, err := w.Subject(t.Context(), token, delegation.TokenTypeAccessToken)
			return err
		}
	}
	actor := func(token string) func() error {
		return func() error { _, err := w.Actor(t.Context(), token, jwtType); return err }
	}
	return map[string]func() error{
		"root": subject(root), "derived": subject(own), "introspected": func() error { _, err := w.Own(own); return err },
		"Bearer": func() error { _, err := w.Bearer(t.Context(), caller); return err }, "caller": actor(caller), "named": actor(named), "self-named": actor(self),
	}
}

func TestSignaturesAreCheckedOnce(t *testing.T) {
	w := newWorld(t)
	checked := w.counted()
	for name, come := range w.ways(t) {
		for range 3 {
			if err := come(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	// Five tokens; two of them have two entry points.
	if n := checked.total(); n != 5 {
		t.Errorf("%d signatures were checked of 5 tokens", n)
	}
	assertion := w.agent.sign(t, "JWT", w.assertionClaims())
	for range 2 {
		if _, err := w.Caller(t.Context(), assertion); err != nil {
			t.Fatal(err)
		}
	}
	if n := checked.total(); n != 7 || w.memory.recall(assertion) != nil {
		t.Errorf("an assertion, which may come once, is remembered (%d)", n)
	}
}

// Everything that can change is checked again for a remembered token.
func TestRememberedTokensDie(t *testing.T) {
	t.Run("when they expire", func(t *testing.T) {
		w := newWorld(t)
		ways := w.ways(t)
		for name, come := range ways {
			if err := come(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		w.clock.advance(24 * time.Hour)
		for name, come := range ways {
			if come() == nil {
				t.Errorf("%s: accepted a day later", name)
			}
		}
	})
	t.Run("when their key is removed, or replaced under its name", func(t *testing.T) {
		for _, next := range []testKey{newTestKey(t, "ES256", "idp-1"), newTestKey(t, "ES256", "another")} {
			w := newWorld(t)
			token := w.idp.sign(t, "at+jwt", w.rootClaims())
			if _, err := w.root(t.Context(), token); err != nil {
				t.Fatal(err)
			}
			next.kid = map[bool]string{true: w.idp.kid, false: "another"}[next.kid == "idp-1"]
			ring, _, err := w.idpSource().parse([]byte(jwks(t, next)))
			if err != nil {
				t.Fatal(err)
			}
			w.idpSource().current.Store(&snapshot{keyring: ring, at: w.clock.now()})
			if _, err := w.root(t.Context(), token); err == nil {
				t.Errorf("accepted although its issuer has only the key %s now", next.kid)
			}
		}
	})
	t.Run("where their issuer's mapping has changed", func(t *testing.T) {
		memory := NewMemory(DefaultMemory)
		w := newWorld(t, func(c *TrustConfig) { c.Memory = memory })
		token := w.idp.sign(t, "at+jwt", w.rootClaims())
		if _, err := w.root(t.Context(), token); err != nil {
			t.Fatal(err)
		}
		w.Trust.issuers[idpIssuer].Audiences = []string{"https://other.example"}
		if _, err := w.root(t.Context(), token); err == nil {
			t.Error("accepted for an audience that is none any more")
		}
	})
}

// A token is remembered by all of its bytes: another signature over the same claims does not match
// it. The control stores it where the signing input alone would find it.
func TestMemoryGoesByAllBytes(t *testing.T) {
	w := newWorld(t)
	genuine := w.idp.sign(t, "at+jwt", w.rootClaims())
	if _, err := w.root(t.Context(), genuine); err != nil {
		t.Fatal(err)
	}
	forged := genuine[:strings.LastIndexByte(genuine, '.')+1] + strings.Repeat("A", 86)
	if _, err := w.root(t.Context(), forged); err == nil {
		t.Error("a token with another signature is accepted")
	}
	w.memory.young[forged] = w.memory.recall(genuine)
	if _, err := w.root(t.Context(), forged); err != nil {
		t.Errorf("the control does not show the attack: %v", err)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	w := newWorld(t, func(c *TrustConfig) { c.Memory = NewMemory(64 << 10) })
	steady := w.spire.sign(t, "JWT", w.workloadClaims())
	checked := w.counted()
	for n := range 1000 {
		for _, token := range []string{steady, w.spire.sign(t, "JWT", w.workloadClaims().with(object{"n": fmt.Sprint(n)}))} {
			if _, err := w.Bearer(t.Context(), token); err != nil {
				t.Fatal(err)
			}
		}
	}
	size := 0
	for _, generation := range []map[string]*remembered{w.memory.young, w.memory.old} {
		for raw := range generation {
			size += len(raw)
		}
	}
	if size > 64<<10+delegation.MaxTokenBytes {
		t.Errorf("%d bytes are remembered", size)
	}
	if n := checked.total(); n != 1001 {
		t.Errorf("%d signatures for 1,000 tokens and one that came every time", n)
	}
	if none := NewMemory(0); none.recall(steady) != nil {
		t.Error("nothing remembers something")
	}
}

func TestMemoryIsShared(t *testing.T) {
	w := newWorld(t)
	token := w.spire.sign(t, "JWT", w.workloadClaims())
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 50 {
				if _, err := w.Bearer(t.Context(), token); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}
