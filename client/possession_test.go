package client

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
	"deputy.example/deputy/client/internal/deputytest"
)

const events = calendar + "/events"

// holder has a key, and makes any proof with it, valid or not.
type holder struct {
	*deputytest.Server // its key signs the proofs
	jwk                map[string]any
	jkt                string
}

func newHolder(t testing.TB) *holder {
	t.Helper()
	h := &holder{Server: startDeputy(t)}
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal(h.JWKS(), &set); err != nil {
		t.Fatal(err)
	}
	h.jwk = map[string]any{"kty": "EC", "crv": "P-256", "x": set.Keys[0]["x"], "y": set.Keys[0]["y"]}
	canonical, err := json.Marshal(h.jwk) // sorts by name, as RFC 7638 does
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(canonical)
	h.jkt = base64.RawURLEncoding.EncodeToString(sum[:])
	return h
}

var proofIDs atomic.Int64

// proof makes a proof. A nil value omits a member.
func (h *holder) proof(method, uri, token string, now time.Time, header, claims map[string]any) string {
	ath := sha256.Sum256([]byte(token))
	hd := map[string]any{"typ": "dpop+jwt", "alg": "ES256", "jwk": h.jwk}
	cl := map[string]any{
		"jti": fmt.Sprint("proof-", proofIDs.Add(1)), "htm": method, "htu": uri, "iat": now.Unix(), "ath": base64.RawURLEncoding.EncodeToString(ath[:]),
	}
	for members, changes := range map[*map[string]any]map[string]any{&hd: header, &cl: claims} {
		for name, value := range changes {
			if (*members)[name] = value; value == nil {
				delete(*members, name)
			}
		}
	}
	return h.Sign(hd, cl)
}

// boundTo returns a token for the calendar that is bound to a key or a certificate.
func boundTo(s *deputytest.Server, now time.Time, c delegation.Confirmation) string {
	claims := s.Claims(now)
	claims.Confirmation, claims.Delegation.Hops[1].Key = &c, c.Key()
	return s.Token(claims)
}

// provingVerifier returns a verifier that began long enough ago to accept proofs without a nonce.
func provingVerifier(t testing.TB, s *deputytest.Server, edit func(*VerifierConfig)) *Verifier {
	t.Helper()
	cfg := VerifierConfig{Issuer: s.Issuer, Audience: calendar, JWKS: s.JWKS(), IgnoreRevocations: true, URLs: []string{calendar}}
	edit(&cfg)
	v, err := NewVerifier(cfg)
	if err != nil {
		t.Fatal(err)
	}
	v.began.wall = v.began.wall.Add(-time.Hour)
	return v
}

func asIs(*VerifierConfig) {}

// TestPossessionRules breaks each rule of the two tables, and checks that the presentation would be
// accepted without that one rule.
func TestPossessionRules(t *testing.T) {
	s, h, other := startDeputy(t), newHolder(t), newHolder(t)
	now := time.Now()
	byKey := boundTo(s, now, delegation.Confirmation{JKT: h.jkt})
	own, stranger := newCertificate(t, "own"), newCertificate(t, "stranger")
	byCertificate := boundTo(s, now, delegation.Confirmation{X5T: certificateThumbprint(own.Leaf)})
	unbound := s.Token(s.Claims(now))
	good := func() Presentation {
		return Presentation{Token: byKey, Scheme: "DPoP", Proofs: []string{h.proof("GET", events, byKey, now, nil, nil)}, Method: "GET", URI: events}
	}
	with := func(edit func(*Presentation)) Presentation {
		p := good()
		edit(&p)
		return p
	}
	tests := map[string]struct {
		p    Presentation
		code AccessCode
		text string
	}{
		"as Bearer, with a good proof": {with(func(p *Presentation) { p.Scheme = "Bearer" }), AccessInvalidToken, textBearer},
		"as bearer, by another case":   {with(func(p *Presentation) { p.Scheme = "bearer" }), AccessInvalidToken, textBearer},
		"as nothing":                   {with(func(p *Presentation) { p.Scheme = "" }), AccessInvalidToken, textBearer},
		"unbound as DPoP": {with(func(p *Presentation) {
			p.Token, p.Proofs = unbound, []string{h.proof("GET", events, unbound, now, nil, nil)}
		}), AccessInvalidToken, textUnboundDPoP},
		"unbound as nothing":            {Presentation{Token: unbound}, AccessInvalidToken, textUnboundDPoP},
		"bound to a certificate, DPoP":  {Presentation{Token: byCertificate, Scheme: "DPoP", Certificate: own.Leaf}, AccessInvalidToken, textUnboundDPoP},
		"without its certificate":       {Presentation{Token: byCertificate, Scheme: "Bearer"}, AccessInvalidToken, textCertificate},
		"with another certificate":      {Presentation{Token: byCertificate, Scheme: "Bearer", Certificate: stranger.Leaf}, AccessInvalidToken, textCertificate},
		"a proof, and no certificate":   {Presentation{Token: byCertificate, Scheme: "Bearer", Proofs: good().Proofs, Method: "GET", URI: events}, AccessInvalidToken, textCertificate},
		"two proofs":                    {with(func(p *Presentation) { p.Proofs = append(p.Proofs, good().Proofs[0]) }), AccessInvalidProof, textOneProof},
		"one proof twice":               {with(func(p *Presentation) { p.Proofs = append(p.Proofs, p.Proofs[0]) }), AccessInvalidProof, textOneProof},
		"a proof by another key":        {with(func(p *Presentation) { p.Proofs[0] = other.proof("GET", events, byKey, now, nil, nil) }), AccessInvalidToken, textOtherKey},
		"from before the process began": {with(func(p *Presentation) { p.Proofs[0] = h.proof("GET", events, byKey, now.Add(-59*time.Second), nil, nil) }), AccessUseNonce, textNonceNeeded},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			v := provingVerifier(t, s, asIs)
			if test.code == AccessUseNonce {
				v.began.wall = now.Add(-time.Minute)
			}
			_, err := v.VerifyPresented(t.Context(), test.p)
			if code, text := accessCode(t, err); code != test.code || text != test.text {
				t.Errorf("refused with %s: %s", code, text)
			}
			off := func(r possessionRule) bool { return r.text == test.text }
			v.binding, v.proven = slices.DeleteFunc(v.binding, off), slices.DeleteFunc(v.proven, off)
			if _, err := v.VerifyPresented(t.Context(), test.p); err != nil {
				t.Errorf("negative control: without the rule still refused: %v", err)
			}
		})
	}
	for name, p := range map[string]Presentation{
		"bound to a key": good(), "scheme by another case": with(func(p *Presentation) { p.Scheme = "dpop" }),
		"bound to a certificate": {Token: byCertificate, Scheme: "Bearer", Certificate: own.Leaf},
		"bound to nothing":       {Token: unbound, Scheme: "Bearer", Certificate: stranger.Leaf, Proofs: []string{"x"}},
		"with another clock":     with(func(p *Presentation) { p.Proofs[0] = h.proof("GET", events, byKey, now.Add(9*time.Second), nil, nil) }),
	} {
		if _, err := provingVerifier(t, s, asIs).VerifyPresented(t.Context(), p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Cases that more than one rule of the two tables refuses.
	for name, test := range map[string]struct {
		p    Presentation
		text string
	}{
		"no address": {with(func(p *Presentation) { p.URI = "" }), textNoAddress},
		"no proof":   {with(func(p *Presentation) { p.Proofs = nil }), textOneProof},
		"as Bearer, without a proof, as Verify takes it": {Presentation{Token: byKey, Scheme: "Bearer"}, textNoAddress},
	} {
		v := provingVerifier(t, s, asIs)
		_, err := v.VerifyPresented(t.Context(), test.p)
		if _, text := accessCode(t, err); text != test.text {
			t.Errorf("%s: %s", name, text)
		}
	}
	if _, err := provingVerifier(t, s, asIs).Verify(t.Context(), byKey); err == nil {
		t.Error("Verify accepts a bound token")
	}
}

// TestVerdictsKeepNoProof: a token whose verdict is remembered needs a new proof each time.
func TestVerdictsKeepNoProof(t *testing.T) {
	s, h := startDeputy(t), newHolder(t)
	v := provingVerifier(t, s, asIs)
	token := boundTo(s, time.Now(), delegation.Confirmation{JKT: h.jkt})
	p := Presentation{Token: token, Scheme: "DPoP", Proofs: []string{h.proof("GET", events, token, time.Now(), nil, nil)}, Method: "GET", URI: events}
	if _, err := v.VerifyPresented(t.Context(), p); err != nil || v.verdicts.get(token) == nil {
		t.Fatalf("%v, remembered: %v", err, v.verdicts.get(token))
	}
	for name, refused := range map[string]Presentation{
		"the proof again": p, "no proof": {Token: token, Scheme: "DPoP", Method: "GET", URI: events}, "as Bearer": {Token: token, Scheme: "Bearer", Method: "GET", URI: events},
	} {
		if _, err := v.VerifyPresented(t.Context(), refused); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	p.Proofs = []string{h.proof("GET", events, token, time.Now(), nil, nil)}
	if _, err := v.VerifyPresented(t.Context(), p); err != nil {
		t.Errorf("a new proof: %v", err)
	}
	v.spendNothing()
	if _, err := v.VerifyPresented(t.Context(), p); err != nil {
		t.Errorf("negative control: without a memory of proofs, the same one: %v", err)
	}
}

// spendNothing switches the memory of proofs off.
func (v *Verifier) spendNothing() {
	v.seenProof = func(context.Context, string, time.Time) (bool, error) { return true, nil }
	v.ignoreRevocations = true
}

// TestNothingBoundWithoutItsProof is a property: whatever is presented, a bound token is accepted
// only with the one proof of its holder, and then once.
func TestNothingBoundWithoutItsProof(t *testing.T) {
	s, h, other := startDeputy(t), newHolder(t), newHolder(t)
	now := time.Now()
	own, stranger := newCertificate(t, "own"), newCertificate(t, "stranger")
	x5t := certificateThumbprint(own.Leaf)
	tokens := map[string]string{
		"jkt": boundTo(s, now, delegation.Confirmation{JKT: h.jkt}), "x5t": boundTo(s, now, delegation.Confirmation{X5T: x5t}), "": s.Token(s.Claims(now)),
	}
	v := provingVerifier(t, s, asIs)
	used := []string{"a.b.c"}
	rapid.Check(t, func(t *rapid.T) {
		bound := rapid.SampledFrom([]string{"jkt", "jkt", "x5t", ""}).Draw(t, "bound")
		p := Presentation{
			Token: tokens[bound], Scheme: rapid.SampledFrom([]string{"DPoP", "DPoP", "dpop", "Bearer", "bearer", "", "Basic"}).Draw(t, "scheme"),
			Method: rapid.SampledFrom([]string{"GET", "GET", "POST"}).Draw(t, "method"), URI: rapid.SampledFrom([]string{events, events, calendar, ""}).Draw(t, "uri"),
		}
		if rapid.Bool().Draw(t, "certificate") {
			p.Certificate = own.Leaf
		} else if rapid.Bool().Draw(t, "another certificate") {
			p.Certificate = stranger.Leaf
		}
		good := false // there is exactly one proof, and it is the one that this request needs
		for range rapid.SampledFrom([]int{0, 1, 1, 1, 1, 2}).Draw(t, "proofs") {
			kind := rapid.SampledFrom([]string{"good", "good", "used", "key", "method", "address", "token", "old", "typ", "private", "none"}).Draw(t, "proof")
			signer, method, uri, token, at := h, p.Method, p.URI, p.Token, now
			var header map[string]any
			switch kind {
			case "key":
				signer = other
			case "method":
				method = "PUT"
			case "address":
				uri = "https://evil.example/events"
			case "token":
				token = "another"
			case "old":
				at = now.Add(-2 * time.Minute)
			case "typ":
				header = map[string]any{"typ": "at+jwt"}
			case "private":
				header = map[string]any{"jwk": map[string]any{"kty": "EC", "crv": "P-256", "x": h.jwk["x"], "y": h.jwk["y"], "d": "AQAB"}}
			case "none":
				header = map[string]any{"alg": "none"}
			}
			proof := signer.proof(method, uri, token, at, header, nil)
			if kind == "used" {
				proof = rapid.SampledFrom(used).Draw(t, "which")
			}
			good = kind == "good" && len(p.Proofs) == 0
			p.Proofs = append(p.Proofs, proof)
		}
		isDPoP, isBearer := strings.EqualFold(p.Scheme, "DPoP"), strings.EqualFold(p.Scheme, "Bearer")
		want := bound == "" && isBearer || bound == "x5t" && isBearer && p.Certificate == own.Leaf || bound == "jkt" && isDPoP && good && p.URI != ""
		_, err := v.VerifyPresented(context.Background(), p)
		if (err == nil) != want {
			t.Fatalf("want %v, got %v", want, err)
		}
		if want && bound == "jkt" {
			used = append(used, p.Proofs...)
		}
	})
	if len(used) < 2 {
		t.Error("no bound token was accepted: the property says nothing")
	}
}

// TestReplay: of many concurrent requests with the same proof, one is admitted.
func TestReplay(t *testing.T) {
	s, h := startDeputy(t), newHolder(t)
	v := provingVerifier(t, s, asIs)
	token := boundTo(s, time.Now(), delegation.Confirmation{JKT: h.jkt})
	for range 5 {
		p := Presentation{Token: token, Scheme: "DPoP", Proofs: []string{h.proof("GET", events, token, time.Now(), nil, nil)}, Method: "GET", URI: events}
		var accepted atomic.Int32
		var all sync.WaitGroup
		for range 16 {
			all.Go(func() {
				_, err := v.VerifyPresented(t.Context(), p)
				if err == nil {
					accepted.Add(1)
				} else if code, text := accessCode(t, err); code != AccessInvalidProof || text != textProofReplay {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if accepted.Load() != 1 {
			t.Errorf("%d were let in with one proof", accepted.Load())
		}
	}
}

// TestReplayAfterRestart: the memory is gone, and the proofs in it are refused all the same,
// however far ahead they were dated. A nonce of the new process admits a holder at once.
func TestReplayAfterRestart(t *testing.T) {
	s, h, clock := startDeputy(t), newHolder(t), newClock()
	token := boundTo(s, clock.now(), delegation.Confirmation{JKT: h.jkt})
	start := func() *Verifier {
		v := provingVerifier(t, s, func(cfg *VerifierConfig) { cfg.Now = clock.now })
		v.began.wall = clock.now()
		return v
	}
	present := func(v *Verifier, proof string) error {
		_, err := v.VerifyPresented(t.Context(), Presentation{Token: token, Scheme: "DPoP", Proofs: []string{proof}, Method: "GET", URI: events})
		return err
	}
	before := start()
	before.began.wall = clock.now().Add(-time.Hour)
	var stolen []string
	for _, ahead := range []time.Duration{-50 * time.Second, 0, 10 * time.Second} {
		proof := h.proof("GET", events, token, clock.now().Add(ahead), nil, nil)
		if err := present(before, proof); err != nil {
			t.Fatal(err)
		}
		stolen = append(stolen, proof)
	}
	after := start()
	for i, proof := range stolen {
		unprotected := start()
		unprotected.began = before.began
		if err := present(unprotected, proof); err != nil {
			t.Errorf("negative control: proof %d is refused by a process that does not mind when it began: %v", i, err)
		}
	}
	for range 5 {
		for i, proof := range stolen {
			if err := present(after, proof); err == nil {
				t.Errorf("proof %d is good again after a restart", i)
			}
		}
		clock.advance(20 * time.Second)
	}

	after = start()
	err := present(after, h.proof("GET", events, token, clock.now(), nil, nil))
	var refusal *AccessError
	if !errors.As(err, &refusal) || refusal.Code != AccessUseNonce || refusal.Nonce == "" {
		t.Fatalf("err = %v", err)
	}
	withNonce := h.proof("GET", events, token, clock.now(), nil, map[string]any{"nonce": refusal.Nonce})
	if err := present(after, withNonce); err != nil {
		t.Errorf("with the nonce: %v", err)
	}
	if err := present(after, withNonce); err == nil {
		t.Error("with the nonce, twice")
	}
	if err := present(start(), withNonce); err == nil {
		t.Error("a nonce outlives its process")
	}
	clock.advance(11 * time.Second)
	if err := present(after, h.proof("GET", events, token, clock.now(), nil, nil)); err != nil {
		t.Errorf("ten seconds after the start no nonce is needed: %v", err)
	}
}

// TestProofMemory: no proof is forgotten while it could be used again, and a full memory refuses.
func TestProofMemory(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	id := func(i int) [sha256.Size]byte { return sha256.Sum256(fmt.Append(nil, i)) }
	after := func(d time.Duration) instant { return instant{wall: at.Add(d), run: d} }
	m := &proofMemory{most: 1 << 20}
	for i := range 300 { // one a second, dated ahead as far as permitted
		now := after(time.Duration(i) * time.Second)
		if err := m.spend(id(i), now.wall.Add(proofSkew), false, now); err != nil {
			t.Fatal(err)
		}
		late := now.wall.Add(time.Second - dpop.MaxAge - proofSkew)
		if err := m.spend(id(-i-1), late, false, now); err != nil {
			t.Fatalf("second %d: a proof in its last second: %v", i, err)
		}
		for j := max(0, i-int(proofLife/time.Second)+1); j <= i; j++ {
			if err := m.spend(id(j), at.Add(time.Duration(j)*time.Second+proofSkew), true, now); err == nil {
				t.Fatalf("proof %d is forgotten %d s later", j, i-j)
			}
		}
	}
	if n := len(m.young.ids) + len(m.old.ids); n > 4*int(proofLife/time.Second) {
		t.Errorf("%d are remembered", n)
	}
	// A forgotten proof is not valid again without a nonce, whatever the wall clock shows.
	now := after(300 * time.Second)
	now.wall = at.Add(5 * time.Second)
	if err := m.spend(id(0), at.Add(proofSkew), false, now); !errors.Is(err, errForgotten) {
		t.Errorf("a clock that was set back brings a proof back: %v", err)
	}

	// A nonce that was judged just before the memory forgot the proof no longer counts.
	if err := m.spend(id(0), at.Add(proofSkew), true, after(m.young.since.run-time.Nanosecond)); !errors.Is(err, errForgotten) {
		t.Errorf("a late request with a nonce: %v", err)
	}

	full, spend := &proofMemory{most: 2}, func(m *proofMemory, i int, now instant) error {
		return m.spend(id(i), now.wall, false, now)
	}
	for i := range 2 {
		if err := spend(full, i, after(0)); err != nil {
			t.Fatal(err)
		}
	}
	if code, _ := accessCode(t, spend(full, 2, after(0))); code != AccessUnavailable {
		t.Errorf("a full memory: %s", code)
	}
	if code, _ := accessCode(t, spend(full, 0, after(0))); code != AccessInvalidProof {
		t.Errorf("a full memory knows what it holds: %s", code)
	}
	for days := range 3 {
		jumped := after(0)
		jumped.wall = at.AddDate(0, 0, days)
		if code, _ := accessCode(t, spend(full, 2, jumped)); code != AccessUnavailable {
			t.Errorf("a wall clock that is ahead makes room: %s", code)
		}
	}
	spend(full, 3, after(2*proofLife))
	if err := spend(full, 4, after(3*proofLife)); err != nil {
		t.Errorf("what is too old makes room: %v", err)
	}
}

func TestNoncesOfAProcess(t *testing.T) {
	n, at := newNonces(), instant{wall: time.Unix(1_800_000_000, 0), run: 10 * noncePeriod}
	given := n.at(at)
	for periods, good := range map[time.Duration]bool{0: true, 1: true, 2: false, -1: false} {
		later := at
		later.run += periods * noncePeriod
		if n.gave(given, later) != good {
			t.Errorf("%v later: good is not %v", periods*noncePeriod, good)
		}
	}
	for _, step := range []time.Duration{time.Hour, -time.Hour} {
		stepped := at
		stepped.wall = at.wall.Add(step)
		if !n.gave(given, stepped) {
			t.Errorf("a step of the wall clock by %v ends a nonce", step)
		}
		stepped.run += 2 * noncePeriod
		if n.gave(given, stepped) {
			t.Errorf("a step of the wall clock by %v brings a nonce back", step)
		}
	}
	if n.gave("", at) || n.gave(given+"A", at) || newNonces().gave(given, at) {
		t.Error("a nonce that was not given is good")
	}
}

// TestSeenProof: several instances share the used proofs. If the store fails, the proof is refused.
func TestSeenProof(t *testing.T) {
	s, h := startDeputy(t), newHolder(t)
	var mu sync.Mutex
	seen := make(map[string]time.Time)
	shared := func(_ context.Context, id string, until time.Time) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		_, again := seen[id]
		seen[id] = until
		return !again, nil
	}
	token := boundTo(s, time.Now(), delegation.Confirmation{JKT: h.jkt})
	present := func(v *Verifier, proof string) error {
		_, err := v.VerifyPresented(t.Context(), Presentation{Token: token, Scheme: "DPoP", Proofs: []string{proof}, Method: "GET", URI: events})
		return err
	}
	with := func(seen func(context.Context, string, time.Time) (bool, error)) *Verifier {
		v := provingVerifier(t, s, func(cfg *VerifierConfig) { cfg.SeenProof = seen })
		v.began.wall = time.Now() // a memory that outlives the process needs no nonce
		return v
	}
	proof := h.proof("GET", events, token, time.Now(), nil, nil)
	if err := present(with(shared), proof); err != nil {
		t.Fatal(err)
	}
	if code, text := accessCode(t, present(with(shared), proof)); code != AccessInvalidProof || text != textProofReplay {
		t.Errorf("at another instance: %s, %s", code, text)
	}
	if err := present(provingVerifier(t, s, asIs), proof); err != nil {
		t.Errorf("negative control: an instance of its own: %v", err)
	}
	for id, until := range seen {
		if len(id) != 43 || time.Until(until) < 90*time.Second || time.Until(until) > 100*time.Second || strings.Contains(proof, id) {
			t.Errorf("%s until %v", id, until)
		}
	}
	broken := with(func(context.Context, string, time.Time) (bool, error) { return true, errors.New("Redis is away") })
	if code, _ := accessCode(t, present(broken, h.proof("GET", events, token, time.Now(), nil, nil))); code != AccessUnavailable {
		t.Errorf("a store that is away: %s", code)
	}
	// A token that is revoked during the call of the store is refused.
	slow := knowing(t, s, time.Now)
	slow.urls, slow.seenProof = broken.urls, func(context.Context, string, time.Time) (bool, error) {
		slow.feed.known.Load().set.Apply(ban(100, "jti-1"))
		return true, nil
	}
	if code, text := accessCode(t, present(slow, h.proof("GET", events, token, time.Now(), nil, nil))); code != AccessInvalidToken || text != "the token was revoked" {
		t.Errorf("revoked meanwhile: %s, %s", code, text)
	}
}

// attack is one request to a tool that accepts bound tokens. For each of the twelve checks of RFC
// 9449 §4.3, and for its other rules for resource servers, there is an attack that breaks it.
type attack struct {
	scheme string
	proofs func(p proofFor) []string
	code   AccessCode
}

// proofFor makes proofs for the request that will be sent.
type proofFor struct {
	h, other    *holder
	method, uri string
	token       string
	nonce       string // that the tool issued
}

func (p proofFor) with(header, claims map[string]any) []string {
	return []string{p.h.proof(p.method, p.uri, p.token, time.Now(), header, claims)}
}

func attacks() map[string]attack {
	claim := func(name string, value any) func(proofFor) []string {
		return func(p proofFor) []string { return p.with(nil, map[string]any{name: value}) }
	}
	header := func(name string, value any) func(proofFor) []string {
		return func(p proofFor) []string { return p.with(map[string]any{name: value}, nil) }
	}
	return map[string]attack{
		"0 a good proof":                 {"DPoP", func(p proofFor) []string { return p.with(nil, nil) }, ""},
		"0 the scheme's case":            {"dpop", func(p proofFor) []string { return p.with(nil, nil) }, ""},
		"0 with a nonce that it gave":    {"DPoP", func(p proofFor) []string { return p.with(nil, map[string]any{"nonce": p.nonce}) }, ""},
		"0 a nonce that it did not need": {"DPoP", claim("nonce", "x"), ""},
		"1 no proof":                     {"DPoP", func(proofFor) []string { return nil }, AccessInvalidProof},
		"1 two proofs":                   {"DPoP", func(p proofFor) []string { return append(p.with(nil, nil), p.with(nil, nil)...) }, AccessInvalidProof},
		"1 two proofs in one":            {"DPoP", func(p proofFor) []string { return []string{p.with(nil, nil)[0] + ", " + p.with(nil, nil)[0]} }, AccessInvalidProof},
		"2 nonsense":                     {"DPoP", func(proofFor) []string { return []string{"x"} }, AccessInvalidProof},
		"2 the token as proof":           {"DPoP", func(p proofFor) []string { return []string{p.token} }, AccessInvalidProof},
		"3 no jti":                       {"DPoP", claim("jti", nil), AccessInvalidProof},
		"3 no htm":                       {"DPoP", claim("htm", nil), AccessInvalidProof},
		"3 no htu":                       {"DPoP", claim("htu", nil), AccessInvalidProof},
		"3 no iat":                       {"DPoP", claim("iat", nil), AccessInvalidProof},
		"4 typ JWT":                      {"DPoP", header("typ", "JWT"), AccessInvalidProof},
		"5 alg none":                     {"DPoP", header("alg", "none"), AccessInvalidProof},
		"5 alg HS256":                    {"DPoP", header("alg", "HS256"), AccessInvalidProof},
		"6 signed by another key": {"DPoP", func(p proofFor) []string {
			return []string{p.other.proof(p.method, p.uri, p.token, time.Now(), map[string]any{"jwk": p.h.jwk}, nil)}
		}, AccessInvalidProof},
		"7 a private key": {"DPoP", func(p proofFor) []string {
			return p.with(map[string]any{"jwk": map[string]any{"kty": "EC", "crv": "P-256", "x": p.h.jwk["x"], "y": p.h.jwk["y"], "d": "AQAB"}}, nil)
		}, AccessInvalidProof},
		"8 another method":   {"DPoP", claim("htm", "DELETE"), AccessInvalidProof},
		"9 another server":   {"DPoP", claim("htu", "https://evil.example/events"), AccessInvalidProof},
		"9 another path":     {"DPoP", func(p proofFor) []string { return p.with(nil, map[string]any{"htu": p.uri + "s"}) }, AccessInvalidProof},
		"11 too old":         {"DPoP", claim("iat", time.Now().Add(-5*time.Minute).Unix()), AccessInvalidProof},
		"11 from the future": {"DPoP", claim("iat", time.Now().Add(5*time.Minute).Unix()), AccessInvalidProof},
		"12a no ath":         {"DPoP", claim("ath", nil), AccessInvalidProof},
		"12a another ath":    {"DPoP", claim("ath", "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"), AccessInvalidProof},
		"12b another key": {"DPoP", func(p proofFor) []string {
			return []string{p.other.proof(p.method, p.uri, p.token, time.Now(), nil, nil)}
		}, AccessInvalidToken},
		"§7.2 as Bearer with a proof": {"Bearer", func(p proofFor) []string { return p.with(nil, nil) }, AccessInvalidToken},
		"§7.2 as Bearer":              {"Bearer", func(proofFor) []string { return nil }, AccessInvalidToken},
	}
}

// withNonces returns the attacks on check 10 at a tool that requires nonces.
func withNonces() map[string]attack {
	return map[string]attack{
		"10 its nonce":         attacks()["0 with a nonce that it gave"],
		"10 no nonce":          {"DPoP", func(p proofFor) []string { return p.with(nil, nil) }, AccessUseNonce},
		"10 a nonce of nobody": {"DPoP", func(p proofFor) []string { return p.with(nil, map[string]any{"nonce": "x"}) }, AccessUseNonce},
	}
}

// TestRFC9449Checks runs the table against real servers, over HTTP and gRPC.
func TestRFC9449Checks(t *testing.T) {
	s, h, other := startDeputy(t), newHolder(t), newHolder(t)
	token := boundTo(s, time.Now(), delegation.Confirmation{JKT: h.jkt})
	for _, requireNonce := range []bool{false, true} {
		table := attacks()
		if requireNonce {
			table = withNonces()
		}
		edit := func(cfg *VerifierConfig) { cfg.RequireProofNonce = requireNonce }
		for door, open := range map[string]func(*testing.T, *deputytest.Server, func(*VerifierConfig)) (*Verifier, string, sender){"HTTP": httpTool, "gRPC": grpcTool} {
			v, uri, send := open(t, s, edit)
			for name, a := range table {
				p := proofFor{h: h, other: other, method: "POST", uri: uri, token: token, nonce: v.nonces.at(v.clock.now())}
				got, nonce := send(t, a.scheme+" "+token, a.proofs(p))
				if got != a.code {
					t.Errorf("%s, %s: answered with %q, want %q", door, name, got, a.code)
				}
				if (nonce != "") != requireNonce || requireNonce && nonce != p.nonce && nonce != v.nonces.at(v.clock.now()) {
					t.Errorf("%s, %s: nonce %q", door, name, nonce)
				}
			}
			if requireNonce {
				continue
			}
			replayed := proofFor{h: h, other: other, method: "POST", uri: uri, token: token}.with(nil, nil)
			for i, want := range []AccessCode{"", AccessInvalidProof} {
				if got, _ := send(t, "DPoP "+token, replayed); got != want {
					t.Errorf("%s, §11.1: time %d of one proof is answered with %q", door, i+1, got)
				}
			}
			if got, _ := send(t, "DPoP "+s.Token(s.Claims(time.Now())), replayed); got != AccessInvalidToken {
				t.Errorf("%s, §7.1: an unbound token with scheme DPoP: %q", door, got)
			}
			if got, _ := send(t, "Bearer "+s.Token(s.Claims(time.Now())), nil); got != "" {
				t.Errorf("%s: an unbound token with scheme Bearer: %q", door, got)
			}
		}
	}
}

// sender makes one request and returns the error code and the nonce of the answer.
type sender func(t *testing.T, authorization string, proofs []string) (AccessCode, string)

func httpTool(t *testing.T, s *deputytest.Server, edit func(*VerifierConfig)) (*Verifier, string, sender) {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	base := "http://" + server.Listener.Addr().String()
	v := provingVerifier(t, s, func(cfg *VerifierConfig) { cfg.URLs = []string{base}; edit(cfg) })
	server.Config.Handler = v.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }), "calendar.read")
	server.Start()
	t.Cleanup(server.Close)
	return v, base + "/events", func(t *testing.T, authorization string, proofs []string) (AccessCode, string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/events?q=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header["Authorization"], r.Header["Dpop"] = []string{authorization}, proofs
		response, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		nonce := response.Header.Get("DPoP-Nonce")
		if response.StatusCode == http.StatusNoContent {
			return "", nonce
		}
		return challengedWith(t, response, authorization), nonce
	}
}

// challengedWith returns the error in the challenge of the scheme that was used. The other
// challenge must have none.
func challengedWith(t *testing.T, response *http.Response, authorization string) AccessCode {
	t.Helper()
	var code AccessCode
	challenges := response.Header.Values("WWW-Authenticate")
	for _, challenge := range challenges {
		_, after, found := strings.Cut(challenge, ` error="`)
		if !found {
			continue
		}
		text, _, _ := strings.Cut(after, `"`)
		code = AccessCode(text)
		if scheme, _, _ := strings.Cut(authorization, " "); !strings.HasPrefix(strings.ToLower(challenge), strings.ToLower(scheme)+" ") {
			t.Errorf("the error stands in %s", challenge)
		}
	}
	if response.StatusCode != http.StatusUnauthorized || len(challenges) != 2 || !strings.Contains(challenges[1], `algs="ES256 ES384 ES512 EdDSA Ed25519 RS256 PS256"`) {
		t.Errorf("%d with %q", response.StatusCode, challenges)
	}
	return code
}

func grpcTool(t *testing.T, s *deputytest.Server, edit func(*VerifierConfig)) (*Verifier, string, sender) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	authority := listener.Addr().String()
	v := provingVerifier(t, s, func(cfg *VerifierConfig) { cfg.URLs = []string{"http://" + authority}; edit(cfg) })
	tool := serveTool(t, v, listener, insecure.NewCredentials(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	return v, dpop.CallURI(authority, healthCheck), func(t *testing.T, authorization string, proofs []string) (AccessCode, string) {
		ctx := metadata.NewOutgoingContext(t.Context(), metadata.MD{"authorization": {authorization}, "dpop": proofs})
		var header, trailer metadata.MD
		_, err := tool.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Header(&header), grpc.Trailer(&trailer))
		given, other := header, trailer
		if err != nil { // not every client reads the header of an error
			given, other = trailer, header
		}
		nonce := strings.Join(given.Get("dpop-nonce"), ",")
		if len(other.Get("dpop-nonce")) > 0 {
			t.Errorf("a nonce in the wrong place: %v %v", header, trailer)
		}
		if err == nil {
			return "", nonce
		}
		if inside := delegation.FromStatus(err).Metadata[delegation.MetadataNonce]; inside != "" && inside != nonce {
			t.Errorf("two nonces: %q and %q", inside, nonce)
		}
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("answered with %v", status.Code(err))
		}
		code, _, _ := strings.Cut(status.Convert(err).Message(), ":")
		return AccessCode(code), nonce
	}
}

// TestCalledByAnotherName: a server that received a proof for its own name cannot use it at a tool,
// even if it calls the tool by that name.
func TestCalledByAnotherName(t *testing.T) {
	s, h := startDeputy(t), newHolder(t)
	token := boundTo(s, time.Now(), delegation.Confirmation{JKT: h.jkt})
	for name, test := range map[string]struct {
		urls                 []string
		authority, provedFor string
		good                 bool
	}{
		"its own name":               {[]string{calendar}, "calendar.example", "calendar.example", true},
		"its own name, with a port":  {[]string{calendar}, "calendar.example:443", "calendar.example", true},
		"another's":                  {[]string{calendar}, "evil.example", "evil.example", false},
		"another's, of two":          {[]string{calendar, "https://cal.example:9090"}, "evil.example", "evil.example", false},
		"another's, proved for ours": {[]string{calendar, "https://cal.example:9090"}, "evil.example", "calendar.example", false},
		"the second of two":          {[]string{calendar, "https://cal.example:9090"}, "cal.example:9090", "cal.example:9090", true},
		"no name":                    {nil, "calendar.example", "calendar.example", false},
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		v := provingVerifier(t, s, func(cfg *VerifierConfig) { cfg.URLs = test.urls })
		tool := serveTool(t, v, listener, insecure.NewCredentials(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(test.authority))
		proof := h.proof("POST", dpop.CallURI(test.provedFor, healthCheck), token, time.Now(), nil, nil)
		_, err = tool.Check(metadata.AppendToOutgoingContext(t.Context(), "authorization", "DPoP "+token, "dpop", proof), &healthpb.HealthCheckRequest{})
		if (err == nil) != test.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// serveTool serves gRPC's health service behind the interceptors.
func serveTool(t *testing.T, v *Verifier, listener net.Listener, server credentials.TransportCredentials, options ...grpc.DialOption) healthpb.HealthClient {
	t.Helper()
	g := grpc.NewServer(grpc.Creds(server), grpc.ChainUnaryInterceptor(v.UnaryServerInterceptor(scoped("calendar.read"))), grpc.ChainStreamInterceptor(v.StreamServerInterceptor(scoped("calendar.read"))))
	healthpb.RegisterHealthServer(g, health.NewServer())
	go g.Serve(listener)
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return healthpb.NewHealthClient(conn)
}

// TestStreamIsAdmittedByOneProof: the proof opens one stream, which then lasts. It opens no second
// one.
func TestStreamIsAdmittedByOneProof(t *testing.T) {
	s, h := startDeputy(t), newHolder(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	clock := newClock()
	v := knowing(t, s, clock.now)
	v.began.wall = clock.now().Add(-time.Hour)
	u, err := parsePublicURL("http://" + listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	v.urls = []publicURL{u}
	tool := serveTool(t, v, listener, insecure.NewCredentials(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	token := boundTo(s, clock.now(), delegation.Confirmation{JKT: h.jkt})
	proof := h.proof("POST", dpop.CallURI(listener.Addr().String(), healthWatch), token, clock.now(), nil, nil)
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "DPoP "+token, "dpop", proof), 10*time.Second)
	defer cancel()
	stream, err := tool.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	second, err := tool.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err == nil {
		_, err = second.Recv()
	}
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("a second stream with the same proof: %v", err)
	}
	// The proof is old now, and the stream continues: only a revocation ends it.
	clock.advance(2 * time.Minute)
	v.feed.confirm(v.clock.now())
	v.feed.known.Load().set.Apply(ban(100, "jti-1"))
	v.feed.advance(100)
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied || !strings.Contains(status.Convert(err).Message(), "revoked") {
		t.Errorf("err = %v", err)
	}
}

// TestCertificateBinding is RFC 8705 §3 over HTTP and gRPC: the connection that the tool itself
// ends must have been opened with the certificate.
func TestCertificateBinding(t *testing.T) {
	s := startDeputy(t)
	server, own, stranger := newCertificate(t, "tool"), newCertificate(t, "own"), newCertificate(t, "stranger")
	token := boundTo(s, time.Now(), delegation.Confirmation{X5T: certificateThumbprint(own.Leaf)})
	serverTLS := &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	v := provingVerifier(t, s, asIs)
	web := httptest.NewUnstartedServer(v.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })))
	web.TLS = serverTLS.Clone()
	web.StartTLS()
	t.Cleanup(web.Close)
	plain := httptest.NewServer(web.Config.Handler)
	t.Cleanup(plain.Close)
	overHTTP := func(address, scheme string, config *tls.Config) bool {
		transport := &http.Transport{TLSClientConfig: config}
		defer transport.CloseIdleConnections()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", scheme+" "+token)
		// A header proves nothing.
		r.Header.Set("X-Client-Cert", base64.StdEncoding.EncodeToString(own.Leaf.Raw))
		response, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return response.StatusCode == http.StatusNoContent
	}
	overGRPC := func(_, scheme string, config *tls.Config) bool {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		tool := serveTool(t, v, listener, credentials.NewTLS(serverTLS), grpc.WithTransportCredentials(credentials.NewTLS(config)))
		_, err = tool.Check(metadata.AppendToOutgoingContext(t.Context(), "authorization", scheme+" "+token), &healthpb.HealthCheckRequest{})
		return err == nil
	}
	for name, test := range map[string]struct {
		scheme string
		config *tls.Config
		good   bool
	}{
		"its certificate":           {"Bearer", trusting(server, own), true},
		"another certificate":       {"Bearer", trusting(server, stranger), false},
		"no certificate":            {"Bearer", trusting(server), false},
		"its certificate, and DPoP": {"DPoP", trusting(server, own), false},
	} {
		for door, ask := range map[string]func(string, string, *tls.Config) bool{"HTTP": overHTTP, "gRPC": overGRPC} {
			if ask(web.URL, test.scheme, test.config) != test.good {
				t.Errorf("%s, %s: good is not %v", door, name, test.good)
			}
		}
	}
	if overHTTP(plain.URL, "Bearer", nil) {
		t.Error("accepted without TLS")
	}
}

// TestAddresses: the configured address of the tool decides, never what a request contains.
func TestAddresses(t *testing.T) {
	s, h := startDeputy(t), newHolder(t)
	token := boundTo(s, time.Now(), delegation.Confirmation{JKT: h.jkt})
	for name, test := range map[string]struct {
		urls         []string
		host, target string
		htu          string
		good         bool
	}{
		"its one address":                     {[]string{calendar}, "calendar.example", "/events", calendar + "/events", true},
		"behind a proxy":                      {[]string{calendar}, "backend:8080", "/events", calendar + "/events", true},
		"called by another's name":            {[]string{calendar}, "evil.example", "/events", "https://evil.example/events", false},
		"a query":                             {[]string{calendar}, "calendar.example", "/events?a=b", calendar + "/events", true},
		"a path before":                       {[]string{calendar + "/v1/"}, "backend", "/events", calendar + "/v1/events", true},
		"a path before, left out":             {[]string{calendar + "/v1/"}, "backend", "/events", calendar + "/events", false},
		"an encoded path":                     {[]string{calendar}, "calendar.example", "/a%2Fb", calendar + "/a%2Fb", true},
		"an encoded path, decoded":            {[]string{calendar}, "calendar.example", "/a%2Fb", calendar + "/a/b", false},
		"the root":                            {[]string{calendar}, "calendar.example", "/", calendar, true},
		"one of two":                          {[]string{calendar, "https://cal.example:8443"}, "CAL.example:8443", "/events", "https://cal.example:8443/events", true},
		"the other of two":                    {[]string{calendar, "https://cal.example:8443"}, "calendar.example:443", "/events", calendar + "/events", true},
		"two, and the host is neither":        {[]string{calendar, "https://cal.example:8443"}, "evil.example", "/events", calendar + "/events", false},
		"two, and the proof is for the other": {[]string{calendar, "https://cal.example:8443"}, "calendar.example", "/events", "https://cal.example:8443/events", false},
		"no address":                          {nil, "calendar.example", "/events", calendar + "/events", false},
	} {
		v := provingVerifier(t, s, func(cfg *VerifierConfig) { cfg.URLs = test.urls })
		r, w := httptest.NewRequest(http.MethodGet, test.target, nil), httptest.NewRecorder()
		r.Host = test.host
		r.Header.Set("Authorization", "DPoP "+token)
		r.Header.Set("DPoP", h.proof("GET", test.htu, token, time.Now(), nil, nil))
		handler := v.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
		// An earlier handler may leave the path like this.
		r.URL.Path, r.URL.RawPath = "/", ""
		handler.ServeHTTP(w, r)
		if (w.Code == http.StatusNoContent) != test.good {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	for name, text := range map[string]string{
		"no scheme": "calendar.example", "http": "http://calendar.example", "a query": calendar + "?q", "a fragment": calendar + "#f",
		"a user": "https://u@calendar.example", "nothing": "", "a path only": "/events", "another scheme": "ftp://calendar.example",
	} {
		if _, err := NewVerifier(VerifierConfig{Issuer: s.Issuer, Audience: calendar, JWKS: s.JWKS(), IgnoreRevocations: true, URLs: []string{text}}); err == nil {
			t.Errorf("%s: %q is an address", name, text)
		}
	}
}

// TestChallengesOfAScope: the refusal is in the challenge of the scheme that was used.
func TestChallengesOfAScope(t *testing.T) {
	s, h := startDeputy(t), newHolder(t)
	v := provingVerifier(t, s, asIs)
	token := boundTo(s, time.Now(), delegation.Confirmation{JKT: h.jkt})
	r, w := httptest.NewRequest(http.MethodGet, "/events", nil), httptest.NewRecorder()
	r.Header.Set("Authorization", "DPoP "+token)
	r.Header.Set("DPoP", h.proof("GET", events, token, time.Now(), nil, nil))
	v.Handler(http.NotFoundHandler(), "mail.read").ServeHTTP(w, r)
	want := []string{
		`Bearer realm="https://calendar.example"`,
		`DPoP realm="https://calendar.example", algs="ES256 ES384 ES512 EdDSA Ed25519 RS256 PS256", error="insufficient_scope", error_description="the token does not allow this", scope="mail.read"`,
	}
	if got := w.Header().Values("WWW-Authenticate"); w.Code != http.StatusForbidden || !slices.Equal(got, want) {
		t.Errorf("%d %q", w.Code, got)
	}
}

// TestPossessionErrorsHoldNothing looks for proofs, tokens and nonces in the texts of refusals.
func TestPossessionErrorsHoldNothing(t *testing.T) {
	s, h, other := startDeputy(t), newHolder(t), newHolder(t)
	token := boundTo(s, time.Now(), delegation.Confirmation{JKT: h.jkt})
	for name, a := range attacks() {
		v := provingVerifier(t, s, asIs)
		proofs := a.proofs(proofFor{h: h, other: other, method: "GET", uri: events, token: token})
		_, err := v.VerifyPresented(t.Context(), Presentation{Token: token, Scheme: a.scheme, Proofs: proofs, Method: "GET", URI: events})
		for ; err != nil; err = unwrap(err) {
			for _, secret := range append(proofs, token, h.jkt) {
				if len(secret) > 20 && strings.Contains(fmt.Sprintf("%+v", err), secret) {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}
