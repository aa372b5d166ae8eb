package exchange_test

import (
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/testservers"
)

// shown is what a request proves that its sender holds.
type shown struct {
	key  *exchangetest.Prover
	cert *exchangetest.Certified
}

// binding is what a token for the sender is bound to: design section 2 and I6 in plain words.
func (s shown) binding() delegation.Confirmation {
	switch {
	case s.key != nil:
		return s.key.Binding()
	case s.cert != nil:
		return s.cert.Binding()
	}
	return delegation.Confirmation{}
}

// proves reports whether the sender of s may use a token with this binding.
func (s shown) proves(bound delegation.Confirmation) bool {
	return bound == delegation.Confirmation{} || s.key != nil && s.key.Binding() == bound || s.cert != nil && s.cert.Binding() == bound
}

func (s shown) onto(t testing.TB, w *exchangetest.World, c *exchange.Call) {
	if s.key != nil {
		c.Credentials.Proof = w.Proof(t, s.key)
	}
	if s.cert != nil {
		c.Credentials.Certificates = []*x509.Certificate{s.cert.Certificate}
	}
}

// holders are the proofs that a sender could have, by name.
func holders(t testing.TB) map[string]shown {
	key, other := exchangetest.NewProver(t), exchangetest.NewProver(t)
	cert, foreign := exchangetest.NewCertified(t, "planner"), exchangetest.NewCertified(t, "planner")
	return map[string]shown{
		"nothing": {}, "key": {key: key}, "certificate": {cert: cert}, "key and certificate": {key: key, cert: cert},
		"another key": {key: other}, "another certificate": {cert: foreign}, "another key, the certificate": {key: other, cert: cert},
		"the key, another certificate": {key: key, cert: foreign},
	}
}

// TestBindingMatrix: each kind of parent, with each proof that its sender could have, for each kind
// of child, with and without bearer tokens. The expected result is written twice: here and in the
// engine.
func TestBindingMatrix(t *testing.T) {
	shows := holders(t)
	newKey, newCert := exchangetest.NewProver(t), exchangetest.NewCertified(t, "researcher")
	for mode, issues := range map[string]struct{ bearer, unbinding bool }{
		"bound tokens only": {}, "bearer tokens": {bearer: true}, "bearer tokens, also in bound chains": {bearer: true, unbinding: true},
	} {
		boundOnly := !issues.bearer
		w := exchangetest.New(t, exchangetest.Config{BoundOnly: boundOnly, Limits: exchange.Limits{AllowUnbinding: issues.unbinding}})
		n := w.Tenant()
		named := func(bound delegation.Confirmation) string {
			now := w.Clock().Now().Unix()
			claims := map[string]any{"sub": string(researcher), "aud": delegation.ActorAudience(n.Issuer), "iat": now, "exp": now + 60}
			if bound != (delegation.Confirmation{}) {
				claims["cnf"] = bound
			}
			return n.Clients[researcher].Sign(t, "JWT", claims)
		}
		children := map[string]struct {
			change func(*exchange.Child)
			bound  delegation.Confirmation // of another actor; the caller's own children follow its proofs
			own    bool
		}{
			"its own": {change: func(*exchange.Child) {}, own: true},
			"an actor without a key": {change: func(c *exchange.Child) {
				c.ActorToken, c.ActorTokenType = named(delegation.Confirmation{}), delegation.TokenTypeJWT
			}},
			"an actor with a key": {bound: newKey.Binding(), change: func(c *exchange.Child) {
				c.ActorToken, c.ActorTokenType = named(newKey.Binding()), delegation.TokenTypeJWT
			}},
			"an actor with a certificate": {bound: newCert.Binding(), change: func(c *exchange.Child) {
				c.ActorToken, c.ActorTokenType = named(newCert.Binding()), delegation.TokenTypeJWT
			}},
			"a registered key": {bound: delegation.Confirmation{JKT: n.Clients[researcher].KeyID}, change: func(c *exchange.Child) {
				c.RequestedActor, c.ActorConfirmation = string(researcher), n.Clients[researcher].KeyID
			}},
		}
		parents := map[string]shown{"nothing": shows["nothing"], "key": shows["key"], "certificate": shows["certificate"]}
		if boundOnly {
			delete(parents, "nothing")
		}
		seen := map[bool]int{}
		for _, parent := range slices.Sorted(maps.Keys(parents)) {
			first := n.Call(t, n.Root(t, nil), planner, "")
			parents[parent].onto(t, w, &first)
			made, err := w.One(t.Context(), first)
			if err != nil {
				t.Fatal(err)
			}
			for _, by := range slices.Sorted(maps.Keys(shows)) {
				for _, child := range slices.Sorted(maps.Keys(children)) {
					name := fmt.Sprintf("%s: parent bound to %s, shown %s, for %s", mode, parent, by, child)
					held, s, c := parents[parent].binding(), shows[by], children[child]
					want := c.bound
					if c.own {
						if want = s.binding(); held != (delegation.Confirmation{}) {
							want = held // whatever else is proven
						}
					}
					reason := delegation.Reason("")
					switch {
					case !s.proves(held):
						reason = delegation.ProofRequired
					case want == delegation.Confirmation{} && (boundOnly || held != delegation.Confirmation{} && !issues.unbinding):
						reason = delegation.BearerNotIssued
					}
					call := n.Call(t, made.AccessToken, planner, "")
					c.change(&call.Children[0])
					s.onto(t, w, &call)
					grant, refused := w.One(t.Context(), call)
					seen[refused == nil]++
					switch {
					case refused != nil || reason != "":
						if refused == nil || refused.Reason != reason {
							t.Errorf("%s: %v, want %q", name, refused, reason)
						}
						if e := newest(t, w); reason != "" && (e.Kind != ledger.KindRefusal || e.Reason != reason) {
							t.Errorf("%s: the ledger has %s %s", name, e.Kind, e.Reason)
						}
					case boundTo(grant.Claims) != want || grant.Claims.Delegation.Hops[1].Key != want.Key():
						t.Errorf("%s: bound to %+v, want %+v", name, boundTo(grant.Claims), want)
					case newest(t, w).HolderKey != want.Key():
						t.Errorf("%s: the ledger has key %q", name, newest(t, w).HolderKey)
					}
				}
			}
		}
		if seen[true] < 10 || seen[false] < 10 {
			t.Errorf("%d grants and %d refusals", seen[true], seen[false])
		}
	}
}

func boundTo(c delegation.Claims) delegation.Confirmation {
	if c.Confirmation == nil {
		return delegation.Confirmation{}
	}
	return *c.Confirmation
}

// TestBoundRootTokens: a root token that its issuer bound is proven like any other, and the first
// actor's token is bound to what the actor proves.
func TestBoundRootTokens(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	shows := holders(t)
	for _, kind := range []string{"key", "certificate"} {
		root := n.Root(t, map[string]any{"cnf": shows[kind].binding()})
		for name, s := range shows {
			call := n.Call(t, root, planner, "")
			s.onto(t, w, &call)
			grant, err := w.One(t.Context(), call)
			switch may := s.proves(shows[kind].binding()); {
			case !may && (err == nil || err.Reason != delegation.ProofRequired):
				t.Errorf("bound to a %s, shown %s: %v", kind, name, err)
			case may && (err != nil || boundTo(grant.Claims) != s.binding()):
				t.Errorf("bound to a %s, shown %s: %+v, %v", kind, name, grant, err)
			}
		}
	}
	for name, cnf := range map[string]any{
		"another method": map[string]any{"kid": "k"}, "two": map[string]any{"jkt": n.IDP.KeyID, "x5t#S256": n.IDP.KeyID}, "none": map[string]any{}, "null": explicitNull{},
	} {
		if _, err := w.One(t.Context(), n.Call(t, n.Root(t, map[string]any{"cnf": cnf}), planner, "")); err == nil || err.Reason != delegation.SubjectTokenInvalid {
			t.Errorf("cnf of %s: %v", name, err)
		}
	}
}

type explicitNull struct{}

func (explicitNull) MarshalJSON() ([]byte, error) { return []byte("null"), nil }

// TestBoundCredentials: a bound credential authenticates a caller with scheme DPoP and its proof,
// or over its certificate's connection, and in no other way.
func TestBoundCredentials(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	n.FGA.Allow(string(alice), "delegator", "agent:wl/job")
	n.FGA.Allow("agent:wl/job", "holder", "scope:calendar.read")
	n.FGA.Allow("agent:wl/job", "accessor", "resource:"+delegation.EncodeID(calendar))
	key, other, cert := exchangetest.NewProver(t), exchangetest.NewProver(t), exchangetest.NewCertified(t, "job")
	workload := func(cnf any) string {
		now := w.Clock().Now().Unix()
		return n.Workloads.Sign(t, "JWT", map[string]any{"sub": "job", "aud": n.Issuer, "iat": now, "exp": now + 600, "cnf": cnf})
	}
	byKey, byCert, free := workload(key.Binding()), workload(cert.Binding()), workload(nil)
	prove := func(p *exchangetest.Prover, token string) *exchange.Proof {
		r := dpop.Request{Method: "POST", URI: exchangetest.TokenEndpoint, AccessToken: token}
		return &exchange.Proof{JWT: p.Prove(t, r, w.Clock().Now()), Method: r.Method, URI: r.URI}
	}
	certs := []*x509.Certificate{cert.Certificate}
	for name, c := range map[string]struct {
		credentials exchange.Credentials
		actorToken  string
		want        delegation.Reason
		bound       delegation.Confirmation
	}{
		"free, Bearer":                      {credentials: exchange.Credentials{Bearer: free}},
		"free, DPoP":                        {credentials: exchange.Credentials{DPoP: free, Proof: prove(key, free)}, want: delegation.ClientUnauthenticated},
		"key, DPoP":                         {credentials: exchange.Credentials{DPoP: byKey, Proof: prove(key, byKey)}, bound: key.Binding()},
		"key, DPoP without a proof":         {credentials: exchange.Credentials{DPoP: byKey}, want: delegation.ParameterMissing},
		"key, DPoP and another's proof":     {credentials: exchange.Credentials{DPoP: byKey, Proof: prove(other, byKey)}, want: delegation.ClientUnauthenticated},
		"key, DPoP without ath":             {credentials: exchange.Credentials{DPoP: byKey, Proof: prove(key, "")}, want: delegation.ProofInvalid},
		"key, DPoP with another token's":    {credentials: exchange.Credentials{DPoP: byKey, Proof: prove(key, free)}, want: delegation.ProofInvalid},
		"key, Bearer":                       {credentials: exchange.Credentials{Bearer: byKey}, want: delegation.ClientUnauthenticated},
		"key, Bearer, with a proof":         {credentials: exchange.Credentials{Bearer: byKey, Proof: prove(key, "")}, want: delegation.ClientUnauthenticated},
		"key, Bearer, with a proof for it":  {credentials: exchange.Credentials{Bearer: byKey, Proof: prove(key, byKey)}, want: delegation.ProofInvalid},
		"certificate, Bearer over its own":  {credentials: exchange.Credentials{Bearer: byCert, Certificates: certs}, bound: cert.Binding()},
		"certificate, Bearer over none":     {credentials: exchange.Credentials{Bearer: byCert}, want: delegation.ClientUnauthenticated},
		"certificate, DPoP":                 {credentials: exchange.Credentials{DPoP: byCert, Proof: prove(key, byCert), Certificates: certs}, want: delegation.ClientUnauthenticated},
		"key, as actor token":               {actorToken: byKey, credentials: exchange.Credentials{Proof: prove(key, "")}, bound: key.Binding()},
		"key, as actor token, unproven":     {actorToken: byKey, want: delegation.ClientUnauthenticated},
		"key, as actor token, another's":    {actorToken: byKey, credentials: exchange.Credentials{Proof: prove(other, "")}, want: delegation.ClientUnauthenticated},
		"certificate, as actor token":       {actorToken: byCert, credentials: exchange.Credentials{Certificates: certs}, bound: cert.Binding()},
		"certificate, as actor token, none": {actorToken: byCert, want: delegation.ClientUnauthenticated},
		"a proof and nothing else":          {credentials: exchange.Credentials{Proof: prove(key, "")}, want: delegation.ClientUnauthenticated},
		"Bearer and DPoP":                   {credentials: exchange.Credentials{Bearer: free, DPoP: byKey, Proof: prove(key, byKey)}, want: delegation.ParameterConflict},
	} {
		call := n.Call(t, n.Root(t, nil), planner, "")
		call.Credentials = c.credentials
		if c.actorToken != "" {
			call.Children[0].ActorToken, call.Children[0].ActorTokenType = c.actorToken, delegation.TokenTypeJWT
		}
		grant, err := w.One(t.Context(), call)
		switch {
		case c.want == "" && (err != nil || boundTo(grant.Claims) != c.bound):
			t.Errorf("%s: %+v, %v (%v)", name, grant, err, err.Unwrap())
		case c.want != "" && (err == nil || err.Reason != c.want):
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	// With client authentication of the same principal, a bound actor token needs its proof too.
	call := n.Call(t, n.Root(t, nil), planner, "")
	call.Credentials = exchange.Credentials{Bearer: free}
	call.Children[0].ActorToken, call.Children[0].ActorTokenType = byKey, delegation.TokenTypeJWT
	if _, err := w.One(t.Context(), call); err == nil || err.Reason != delegation.ProofRequired {
		t.Errorf("beside client authentication: %v", err)
	}
}

// TestProofReplay: a proof is good for one call: at each instance, immediately and later, after a
// restart and after Redis has lost everything (I12).
func TestProofReplay(t *testing.T) {
	databases := map[string]func(testing.TB) string{"SQLite": func(testing.TB) string { return "" }, "PostgreSQL": testservers.Postgres}
	for name, dsn := range databases {
		t.Run(name, func(t *testing.T) {
			redis := testservers.NewRedis(t)
			w := exchangetest.New(t, exchangetest.Config{RedisURL: redis.URL(), DSN: dsn(t)})
			peer, n, key := w.Peer(t), w.Tenant(), exchangetest.NewProver(t)
			proof := w.Proof(t, key)
			call := func() exchange.Call { // a new assertion each time
				c := n.Call(t, n.Root(t, nil), planner, "")
				c.Credentials.Proof = proof
				return c
			}
			var wins sync.Map
			var all sync.WaitGroup
			for i, at := range slices.Repeat([]*exchangetest.World{w, peer}, 4) {
				c := call()
				all.Go(func() {
					if _, err := at.One(t.Context(), c); err == nil {
						wins.Store(i, true)
					} else if err.Reason != delegation.ProofReplayed {
						t.Errorf("at once: %v", err)
					}
				})
			}
			all.Wait()
			if n := len(maps.Collect(wins.Range)); n != 1 {
				t.Errorf("%d of the calls that came at once have won", n)
			}
			refused := func(w *exchangetest.World, where string) {
				t.Helper()
				if _, err := w.One(t.Context(), call()); err == nil || err.Reason != delegation.ProofReplayed {
					t.Errorf("%s: %v", where, err)
				}
				check := call()
				check.ValidateOnly = true
				if _, err := w.One(t.Context(), check); err == nil || err.Reason != delegation.ProofReplayed {
					t.Errorf("%s, only validated: %v", where, err)
				}
				q := exchange.Inquiry{Tenant: "default", Credentials: call().Credentials, Token: "x"}
				if _, err := w.Engine.Introspect(t.Context(), q); delegation.AsError(err) == nil || delegation.AsError(err).Reason != delegation.ProofReplayed {
					t.Errorf("%s, introspection: %v", where, err)
				}
			}
			refused(w, "the same instance")
			refused(peer, "the other instance")
			redis.Kill()
			redis.Start() // empty
			refused(w.Peer(t), "a new instance, and Redis has lost its memory")
			w.Clock().Advance(dpop.MaxAge + 5*time.Second)
			if _, err := w.One(t.Context(), call()); err == nil || err.Reason != delegation.ProofInvalid {
				t.Errorf("when it need not be remembered any more: %v", err)
			}
		})
	}
}

// TestNonces (RFC 9449 §8): if a nonce is required, the refusal contains it. It is good at each
// instance, for a while, and no other value is.
func TestNonces(t *testing.T) {
	redis := testservers.NewRedis(t)
	w := exchangetest.New(t, exchangetest.Config{RedisURL: redis.URL(), RequireNonce: true})
	peer, n, key := w.Peer(t), w.Tenant(), exchangetest.NewProver(t)
	ask := func(w *exchangetest.World, nonce string) *delegation.Error {
		t.Helper()
		c := n.Call(t, n.Root(t, nil), planner, "")
		r := dpop.Request{Method: "POST", URI: exchangetest.TokenEndpoint, Nonce: nonce}
		c.Credentials.Proof = &exchange.Proof{JWT: key.Prove(t, r, w.Clock().Now()), Method: r.Method, URI: r.URI}
		_, err := w.One(t.Context(), c)
		return err
	}
	challenge := func(w *exchangetest.World, nonce string) string {
		t.Helper()
		err := ask(w, nonce)
		if err == nil || err.Reason != delegation.ProofNonceNeeded || err.Metadata[delegation.MetadataNonce] == "" {
			t.Fatalf("nonce %q: %v", nonce, err)
		}
		return err.Metadata[delegation.MetadataNonce]
	}
	nonce := challenge(w, "")
	if again := challenge(peer, "made up"); again != nonce {
		t.Errorf("the instances give %q and %q", nonce, again)
	}
	for name, at := range map[string]*exchangetest.World{"here": w, "there": peer} {
		if err := ask(at, nonce); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := ask(w, strings.ToUpper(nonce)); err == nil {
		t.Error("another nonce is accepted")
	}
	w.Clock().Advance(2 * time.Minute)
	if err := ask(w, nonce); err != nil {
		t.Errorf("in the next period: %v", err)
	}
	w.Clock().Advance(2 * time.Minute)
	if next := challenge(w, nonce); next == nonce {
		t.Error("an old nonce is given again")
	}
	// Without a proof no nonce is required.
	if _, err := w.One(t.Context(), n.Call(t, n.Root(t, nil), planner, "")); err != nil {
		t.Errorf("without a proof: %v", err)
	}
	// Without Redis an instance continues with nonces of its own, which are good for calls that do
	// not need Redis.
	redis.Kill()
	own := challenge(w, nonce)
	if err := ask(w, own); err == nil || err.Reason != delegation.DependencyDown {
		t.Errorf("an exchange without Redis: %v", err)
	}
	c, r := n.Credentials(t, planner), dpop.Request{Method: "POST", URI: exchangetest.TokenEndpoint, Nonce: own}
	c.Proof = &exchange.Proof{JWT: key.Prove(t, r, w.Clock().Now()), Method: r.Method, URI: r.URI}
	call := exchange.RevokeCall{Tenant: n.Name, Credentials: c, Target: delegation.Target{Kind: delegation.CutAgent, ID: string(planner)}}
	if _, err := w.Engine.Revoke(t.Context(), call); err != nil {
		t.Errorf("a revocation without Redis: %v", err)
	}
}

// TestBannedKeysProveNothing: a ban on a key hits each sender that proves it, with any token.
func TestBannedKeysProveNothing(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	key, cert := exchangetest.NewProver(t), exchangetest.NewCertified(t, "planner")
	for name, s := range map[string]shown{"key": {key: key}, "certificate": {cert: cert}} {
		t.Run(name, func(t *testing.T) {
			call := n.Call(t, n.Root(t, nil), planner, "")
			s.onto(t, w, &call)
			bound, err := w.One(t.Context(), call)
			if err != nil {
				t.Fatal(err)
			}
			revoke(t, w, delegation.Target{Kind: delegation.BanKey, ID: s.binding().Key()})
			for _, subject := range []string{bound.AccessToken, n.Root(t, nil)} {
				call := n.Call(t, subject, planner, "")
				s.onto(t, w, &call)
				if _, err := w.One(t.Context(), call); err == nil || err.Reason != delegation.ClientUnauthenticated {
					t.Errorf("exchange: %v", err)
				}
				if e := newest(t, w); e.Kind != ledger.KindRefusal || e.Reason != delegation.TokenRevoked {
					t.Errorf("the attempt is not in the ledger: %+v", e)
				}
			}
			q := exchange.Inquiry{Tenant: "default", Credentials: n.Credentials(t, planner), Token: bound.AccessToken}
			if s.key != nil {
				q.Credentials.Proof = w.Proof(t, s.key)
			} else {
				q.Credentials.Certificates = []*x509.Certificate{s.cert.Certificate}
			}
			if _, err := w.Engine.Introspect(t.Context(), q); delegation.AsError(err) == nil || delegation.AsError(err).Reason != delegation.ClientUnauthenticated {
				t.Errorf("introspection: %v", err)
			}
			q.Credentials = n.Credentials(t, planner)
			if found, err := w.Engine.Introspect(t.Context(), q); err != nil || found.Claims != nil {
				t.Errorf("a token that is bound to it: %+v, %v", found, err)
			}
		})
	}
}

// TestAProofAuthenticatesNobody (RFC 9449 §11.11): a proof shows that a key is held, and not who
// holds it. It does not authenticate a client, and makes no caller the actor of a token that is
// bound to the key.
func TestAProofAuthenticatesNobody(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n, key := w.Tenant(), exchangetest.NewProver(t)
	first := n.Call(t, n.Root(t, nil), planner, "")
	first.Credentials.Proof = w.Proof(t, key)
	parent, err := w.One(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		by   exchange.Credentials
		want delegation.Reason
	}{
		"nobody":      {exchange.Credentials{}, delegation.ClientUnauthenticated},
		"somebody":    {n.Credentials(t, researcher), delegation.CallerNotActor},
		"the planner": {n.Credentials(t, planner), ""},
	} {
		call := n.Call(t, parent.AccessToken, planner, "")
		call.Credentials = c.by
		call.Credentials.Proof = w.Proof(t, key)
		_, err := w.One(t.Context(), call)
		if err == nil && c.want != "" || err != nil && err.Reason != c.want {
			t.Errorf("%s, with the planner's proof: %v, want %q", name, err, c.want)
		}
	}
	q := exchange.Inquiry{Tenant: "default", Credentials: exchange.Credentials{Proof: w.Proof(t, key)}, Token: parent.AccessToken}
	if _, err := w.Engine.Introspect(t.Context(), q); delegation.AsError(err) == nil || delegation.AsError(err).Reason != delegation.ClientUnauthenticated {
		t.Errorf("introspection: %v", err)
	}
}
