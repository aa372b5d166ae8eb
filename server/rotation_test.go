package server

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/testservers"
	"deputy.example/deputy/server/internal/vault"
)

// manage gives the site managed keys in place of those of a file.
func (s *site) manage(t *testing.T, section string) {
	t.Helper()
	if _, err := CreateKEK(filepath.Join(s.dir, "kek")); err != nil {
		t.Fatal(err)
	}
	s.text = strings.NewReplacer(
		"    signing_keys:\n      - path: DIR/key.pem\n        algorithm: ES256\n", "    managed_keys: "+section+"\n",
		"tenants:\n", "key_encryption: {key_file: DIR/kek}\ntenants:\n",
	).Replace(s.text)
}

// fast returns a clock that runs at real speed until hurry is called, so that a slow start misses
// no deadline. After that it runs times as fast.
func fast(times time.Duration) (now func() time.Time, hurry func()) {
	var since atomic.Pointer[time.Time]
	now = func() time.Time {
		at := time.Now()
		if began := since.Load(); began != nil {
			return began.Add(at.Sub(*began) * times)
		}
		return at
	}
	return now, func() { since.Store(new(time.Now())) }
}

// hurry makes all clocks of the site's instances show that time.
func (s *site) hurry(now func() time.Time) {
	began := now()
	s.options.Now, s.options.Elapsed = now, func() time.Duration { return now().Sub(began) }
	s.options.Remote = func(string, time.Time) time.Time { return now() }
}

// hurried is a site with a clock that is not the real one.
type hurried struct {
	*site
	now func() time.Time
}

func (s hurried) assertion(t *testing.T) *deputyv1.ClientAuthentication {
	return &deputyv1.ClientAuthentication{
		ClientAssertionType: delegation.ClientAssertionTypeJWTBearer,
		ClientAssertion: s.planner.Sign(t, "JWT", map[string]any{
			"sub": "agent:planner", "aud": issuer, "jti": s.id(), "iat": s.now().Unix(), "exp": s.now().Add(time.Minute).Unix(),
		}),
	}
}

func (s hurried) exchange(t *testing.T, at *instance, parent string) (string, error) {
	if parent == "" {
		parent = s.people.Sign(t, "at+jwt", map[string]any{
			"sub": "alice", "aud": issuer + "/subject-tokens", "scope": "calendar.read", "jti": s.id(),
			"iat": s.now().Unix(), "exp": s.now().Add(10 * time.Minute).Unix(),
		})
	}
	grant, err := deputyv1.NewTokenExchangeServiceClient(at.conn).Exchange(context.Background(), &deputyv1.ExchangeRequest{
		SubjectToken: parent, SubjectTokenType: delegation.TokenTypeAccessToken, Client: s.assertion(t),
		Child: &deputyv1.Child{Audience: []string{"https://calendar.example"}, Scope: "calendar.read"},
	})
	return grant.GetAccessToken(), err
}

func (s hurried) introspect(t *testing.T, at *instance, token string) (bool, error) {
	said, err := deputyv1.NewTokenExchangeServiceClient(at.conn).Introspect(context.Background(), &deputyv1.IntrospectRequest{Token: token, Client: s.assertion(t)})
	return said.GetActive(), err
}

// verifier returns a resource server with the SDK, which fetches the keys of one instance.
func (s hurried) verifier(t *testing.T, of *instance) *client.Verifier {
	t.Helper()
	v, err := client.NewVerifier(client.VerifierConfig{
		Issuer: issuer, Audience: "https://calendar.example", JWKSURL: "http://" + of.HTTPAddr() + "/oauth2/jwks",
		IgnoreRevocations: true, Now: s.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

func kidOf(token string) string {
	u, err := delegation.Parse(token)
	if err != nil {
		return "no token"
	}
	return u.Header.KeyID
}

func expiry(token string) time.Time {
	u, err := delegation.Parse(token)
	if err != nil {
		return time.Time{}
	}
	r, err := u.Registered()
	if err != nil {
		return time.Time{}
	}
	return time.Unix(r.ExpiresAt, 0)
}

// published returns the kids that an instance publishes.
func (i *instance) published(t *testing.T) (kids []string) {
	t.Helper()
	_, text := get(t, "http://"+i.HTTPAddr()+"/oauth2/jwks")
	var set struct{ Keys []struct{ Kid string } }
	if err := json.Unmarshal([]byte(text), &set); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	for _, key := range set.Keys {
		kids = append(kids, key.Kid)
	}
	return kids
}

// load counts the results of the workers, which run until they are stopped.
type load struct {
	hurried
	fleet     []*instance
	verifiers []*client.Verifier

	exchanges, verified, rejected atomic.Int64
	mu                            sync.Mutex
	signers                       []string // kids, in the order in which they began to sign
	why                           map[string]int
}

func (l *load) reject(how, kid string, err error) {
	l.rejected.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.why[fmt.Sprintf("%s, key %d of %d: %v", how, 1+slices.Index(l.signers, kid), len(l.signers), err)]++
}

func (l *load) work(ctx context.Context, t *testing.T, n int) {
	var out []string // issued tokens that have not expired, the oldest first
	for turn := n; ctx.Err() == nil; turn++ {
		here, there := l.fleet[turn%2], l.fleet[(turn+1)%2]
		token, err := l.exchange(t, here, "")
		if err != nil {
			l.reject("exchange", "", err)
			continue
		}
		l.exchanges.Add(1)
		kid := kidOf(token)
		l.mu.Lock()
		if !slices.Contains(l.signers, kid) {
			l.signers = append(l.signers, kid)
		}
		l.mu.Unlock()
		out = append(out, token)
		for len(out) > 0 && expiry(out[0]).Sub(l.now()) < 5*time.Second {
			out = out[1:]
		}
		// The newest token and the oldest are verified.
		for _, token := range append([]string{token}, out[:min(1, len(out))]...) {
			began := l.now()
			if child, err := l.exchange(t, there, token); err != nil {
				l.judge("exchange of a derived token", token, began, err)
			} else {
				l.judge("exchange of a derived token", child, began, nil)
			}
			active, err := l.introspect(t, there, token)
			if err == nil && !active {
				err = fmt.Errorf("not active")
			}
			l.judge("introspection", token, began, err)
			for _, v := range l.verifiers {
				_, err := v.Verify(ctx, token)
				if ctx.Err() == nil {
					l.judge("SDK", token, began, err)
				}
			}
		}
	}
}

// judge counts a verdict on a token, unless the token expired meanwhile.
func (l *load) judge(how, token string, began time.Time, err error) {
	switch {
	case err == nil:
		l.verified.Add(1)
	case l.now().Before(expiry(token)) && began.Before(expiry(token)):
		l.reject(how, kidOf(token), err)
	}
}

// TestRotationUnderLoad runs two instances on one PostgreSQL through several rotations. The
// instances rotate by themselves on a clock that runs thirty times as fast. Meanwhile tokens are
// exchanged at one instance, derived and introspected at the other, and verified by the SDK with
// the keys of both. None may be rejected.
func TestRotationUnderLoad(t *testing.T) {
	const times = 30
	s := newSite(t)
	s.manage(t, "{rotate_every: 4m, publish_ahead: 2m}")
	s.text = strings.NewReplacer(
		"sqlite://DIR/ledger.db", testservers.Postgres(t),
		"limits: {allow_bearer: true}", "limits: {allow_bearer: true, max_lifetime: 1m, caller_rate: 100000}",
	).Replace(s.text)
	now, hurry := fast(times)
	s.hurry(now)
	l := &load{hurried: hurried{s, s.options.Now}, why: make(map[string]int)}
	for range 2 {
		i := s.start(t)
		l.fleet, l.verifiers = append(l.fleet, i), append(l.verifiers, l.verifier(t, i))
	}
	first := l.fleet[1].published(t)
	if len(first) != 1 || !slices.Equal(first, l.fleet[0].published(t)) {
		t.Fatalf("the instances began with %v and %v", first, l.fleet[0].published(t))
	}

	hurry()
	ctx, stop := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	for n := range 3 {
		workers.Go(func() { l.work(ctx, t, n) })
	}
	defer workers.Wait()
	defer stop()
	rotations := testservers.Campaign(12, 3)
	deadline := time.Now().Add(time.Duration(rotations+2) * 4 * time.Minute / times)
	// On a busy machine the exchanges take more time than the rotations.
	enough := deadline.Add(5 * time.Minute)
	seen := 0
	for seen <= rotations || l.exchanges.Load() < 100 {
		if now := time.Now(); seen <= rotations && now.After(deadline) || now.After(enough) {
			t.Fatalf("only %d rotations and %d exchanges\n%s", seen-1, l.exchanges.Load(), s.log)
		}
		<-time.After(50 * time.Millisecond) // the load runs
		l.mu.Lock()
		seen = len(l.signers)
		l.mu.Unlock()
	}
	rotations = seen - 1
	rejected := l.rejected.Load()
	t.Logf("%d exchanges, %d tokens verified through %d rotations, %d rejected", l.exchanges.Load(), l.verified.Load(), rotations, rejected)
	l.mu.Lock()
	if rejected > 0 {
		t.Errorf("%d rejected: %v\n%.4000s", rejected, l.why, s.log)
	}
	l.why = make(map[string]int)
	l.mu.Unlock()
	for _, i := range l.fleet {
		if kids := i.published(t); slices.Contains(kids, first[0]) {
			t.Errorf("the first key is still published: %v", kids)
		}
	}
	keys, err := l.fleet[0].ledger.SealedKeys(t.Context())
	if err != nil || len(keys) > rotations+2 {
		t.Errorf("%d keys were made for %d rotations, %v", len(keys), rotations, err)
	}

	// The control: a key that signs before it was published for long enough is not known to every
	// verifier.
	for range 20 {
		if l.rejected.Load() > rejected {
			break
		}
		if _, err := l.fleet[0].vault.Rotate(t.Context(), "acme", vault.Tokens, true); err != nil {
			t.Fatal(err)
		}
		<-time.After(500 * time.Millisecond)
	}
	if l.rejected.Load() == rejected {
		t.Error("nothing was rejected without publishing ahead: the check cannot fail")
	}
	l.mu.Lock()
	t.Logf("without publishing ahead: %d rejected: %v", l.rejected.Load()-rejected, l.why)
	l.mu.Unlock()
}

// TestRetiredKeyIsRefusedEverywhere is the drill for a stolen key.
func TestRetiredKeyIsRefusedEverywhere(t *testing.T) {
	const times = 10
	s := newSite(t)
	s.manage(t, "{}")
	s.text = strings.Replace(s.text, "sqlite://DIR/ledger.db", testservers.Postgres(t), 1)
	now, hurry := fast(times)
	s.hurry(now)
	hurry()
	people := hurried{s, s.options.Now}
	here, there := s.start(t), s.start(t)
	v := people.verifier(t, there)
	token, err := people.exchange(t, here, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	stolen := kidOf(token)
	next, err := here.vault.Rotate(t.Context(), "acme", vault.Tokens, true)
	if err != nil {
		t.Fatal(err)
	}
	poll(t, func() bool {
		_, err = here.vault.Retire(t.Context(), "acme", stolen)
		return err == nil
	}, func() string { return err.Error() })
	retired := people.now()
	for _, i := range []*instance{here, there} {
		poll(t, func() bool { return !slices.Contains(i.published(t), stolen) }, func() string { return "it is still published" })
		if active, err := people.introspect(t, i, token); active || err != nil {
			t.Errorf("introspected as %v, %v", active, err)
		}
		if _, err := people.exchange(t, i, token); err == nil {
			t.Error("exchanged")
		}
	}
	poll(t, func() bool { _, err = v.Verify(t.Context(), token); return err != nil }, func() string { return "the SDK accepts it" })
	// One second of real time is ten seconds on the clock of the instances.
	if took := people.now().Sub(retired); took > time.Minute+(times-1)*2*time.Second {
		t.Errorf("refused by the SDK after %v", took)
	}
	token, err = people.exchange(t, there, "")
	if err != nil || kidOf(token) != next.ID {
		t.Errorf("the next token is of %s, %v", kidOf(token), err)
	}
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Errorf("the next token: %v", err)
	}
}

// TestManagedKeysAreSealedAtRest searches for private keys in everything that the databases hold.
func TestManagedKeysAreSealedAtRest(t *testing.T) {
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		t.Run(database, func(t *testing.T) {
			s := newSite(t)
			s.manage(t, "{algorithm: EdDSA}")
			s.text = strings.Replace(s.text, "    clients:\n", "    audit: {managed_checkpoint_key: true}\n    clients:\n", 1)
			dsn := "sqlite://" + filepath.Join(s.dir, "ledger.db")
			if database == "PostgreSQL" {
				dsn = testservers.Postgres(t)
				s.text = strings.Replace(s.text, "sqlite://DIR/ledger.db", dsn, 1)
			}
			i := s.start(t)
			if _, err := i.exchange(t.Context(), t); err != nil {
				t.Fatal(err)
			}
			kms, err := vault.OpenFileKMS(filepath.Join(s.dir, "kek"))
			if err != nil {
				t.Fatal(err)
			}
			spy := &opener{KMS: kms}
			config, err := s.load(s.text)
			if err != nil {
				t.Fatal(err)
			}
			parts, _ := config.open(Options{})
			if _, err := vault.Open(t.Context(), vault.Config{Store: i.ledger, KMS: spy}, parts.managed...); err != nil {
				t.Fatal(err)
			}
			secrets := canaries{"key-encryption key": strings.TrimSpace(strings.TrimPrefix(s.read(t, "kek"), "deputy-kek:"))}
			for n, plain := range spy.seen {
				secrets[fmt.Sprintf("private key %d", n)] = plain
				// PKCS#8 of Ed25519 and notes both end with the seed.
				secrets[fmt.Sprintf("seed of key %d", n)] = plain[len(plain)-32:]
			}
			if len(spy.seen) != 2 {
				t.Fatalf("%d keys were opened, want one that signs tokens and one that signs checkpoints", len(spy.seen))
			}
			stored := rowsOf(t, dsn)
			if database == "SQLite" {
				stored += s.ledgerFiles(t)
			}
			if found := secrets.foundIn(stored); len(found) > 0 || strings.Contains(stored, "PRIVATE") {
				t.Errorf("the database holds %v", found)
			}
			// The controls: the database holds each sealed key, and the search finds its secret.
			for n, sealed := range spy.sealed {
				if !strings.Contains(stored, sealed) || len(secrets.foundIn(stored+spy.seen[n])) == 0 {
					t.Error("the sealed key was not looked through")
				}
			}
		})
	}
}

// opener records what was opened.
type opener struct {
	vault.KMS
	seen, sealed []string
}

func (o *opener) Open(ctx context.Context, id string, sealed, bound []byte) ([]byte, error) {
	plain, err := o.KMS.Open(ctx, id, sealed, bound)
	o.seen, o.sealed = append(o.seen, string(plain)), append(o.sealed, string(sealed))
	return plain, err
}

// TestStartNeedsTheKeyEncryptionKey starts with every kind of wrong key.
func TestStartNeedsTheKeyEncryptionKey(t *testing.T) {
	s := newSite(t)
	s.manage(t, "{}")
	s.start(t).stop(t)
	config, err := s.load(s.text)
	if err != nil {
		t.Fatal(err)
	}
	right := s.read(t, "kek")
	for name, says := range map[string]string{"another": "is not in the file of key_encryption", "gone": "no such file", "garbage": "line 1 is no key-encryption key"} {
		if err := os.Remove(filepath.Join(s.dir, "kek")); err != nil {
			t.Fatal(err)
		}
		switch name {
		case "another":
			_, err = CreateKEK(filepath.Join(s.dir, "kek"))
		case "garbage":
			s.write("kek", []byte(right[:20]+"\n"))
		}
		if err != nil {
			t.Fatal(err)
		}
		srv, err := New(t.Context(), config, s.options)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", name, err, says)
		}
		if err == nil {
			_ = srv.Close()
		}
		s.write("kek", []byte(right))
	}
	l, err := ledger.Open(t.Context(), "sqlite://"+filepath.Join(s.dir, "ledger.db"), ledger.Config{Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if keys, err := l.SealedKeys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("%d keys: a fresh one was made in place of the one that does not open; %v", len(keys), err)
	}
	s.start(t).stop(t) // the control
}
