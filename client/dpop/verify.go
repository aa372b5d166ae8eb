package dpop

import (
	"errors"
	"slices"
	"time"

	"deputy.example/deputy/client/delegation"
)

// MaxAge is how old a proof may be, beside the skew of clocks.
const MaxAge = time.Minute

// maxIDBytes bounds jti and nonce, which are remembered and compared.
const maxIDBytes = 256

// Expectation is what a proof must be for.
type Expectation struct {
	Method string // of the request
	URI    string // that the request was sent to, as its sender names it
	// AccessToken that came in the Authorization header with scheme DPoP; "" if none did. With it
	// the proof must hold its hash (ath). Without it the proof must hold none: a proof that was made
	// to present a token serves nothing else.
	AccessToken string
	// Nonces that this server issued lately, one of which the proof must hold. Empty: none is
	// required.
	Nonces []string
	Now    time.Time
	Skew   time.Duration // how far the sender's clock may be off, both ways
}

// Proof is a proof that was found good.
type Proof struct {
	Thumbprint string    // RFC 7638 SHA-256 of the key that made it
	ID         string    // jti: with Thumbprint it is the proof's identity
	Nonce      string    // as in the proof; "" if it holds none
	IssuedAt   time.Time // by the sender's clock
	Until      time.Time // when it stops being acceptable by itself, and need not be remembered any more
}

// ErrNonce is the error of a proof that is good but for the server's nonce: send a new one with it
// (RFC 9449 §8).
var ErrNonce = errors.New("it does not hold a nonce that this server gave lately")

// candidate is a proof whose form is right.
type candidate struct {
	*delegation.Unverified
	key                      publicKey
	id, htm, htu, ath, nonce string
	issuedAt                 time.Time
}

// rule is one check of RFC 9449 §4.3. In the table of rules each is one entry that can be removed
// by itself, and a mutant does so for each.
type rule struct {
	clause string // which of the twelve
	broken error
	holds  func(candidate, Expectation) bool
}

// rules are in the order of §4.3; the nonce is last, so that ErrNonce means that only the nonce is
// missing.
func rules() []rule {
	return []rule{
		{"4", errors.New("its typ is not dpop+jwt"), func(c candidate, _ Expectation) bool {
			return c.Header.Type == delegation.HeaderTypeProof
		}},
		{"5", errors.New("its alg is none that is accepted here"), func(c candidate, _ Expectation) bool {
			return slices.Contains(Algorithms(), c.Header.Algorithm)
		}},
		{"6", errors.New("its signature is not that of the key in its jwk"), func(c candidate, _ Expectation) bool {
			return c.key.verifies(c.Header.Algorithm, c.SigningInput, c.Signature)
		}},
		{"8", errors.New("its htm is not the method of this request"), func(c candidate, e Expectation) bool {
			return c.htm == e.Method
		}},
		{"9", errors.New("its htu is not the address of this request"), func(c candidate, e Expectation) bool {
			return sameAddress(c.htu, e.URI)
		}},
		{"11", errors.New("it is too old: make a new one for every request"), func(c candidate, e Expectation) bool {
			return c.issuedAt.Add(MaxAge + e.Skew).After(e.Now)
		}},
		{"11", errors.New("it was made in the future"), func(c candidate, e Expectation) bool {
			return !c.issuedAt.After(e.Now.Add(e.Skew))
		}},
		{"12", errors.New("its ath is not the hash of the access token"), func(c candidate, e Expectation) bool {
			return e.AccessToken == "" || c.ath == hashOf(e.AccessToken)
		}},
		{"12", errors.New("it has an ath, and the request carries no access token with scheme DPoP: leave it out"), func(c candidate, e Expectation) bool {
			return e.AccessToken != "" || c.ath == ""
		}},
		{"10", ErrNonce, func(c candidate, e Expectation) bool {
			return len(e.Nonces) == 0 || slices.Contains(e.Nonces, c.nonce)
		}},
	}
}

// Verify verifies a proof that came with a request: checks 2 to 11 of RFC 9449 §4.3 and the ath of
// check 12. The caller ensures that there was one proof, that it was not used before and that its
// key is the one that the token is bound to. Errors name the broken rule and hold no part of the
// proof. ErrNonce means that a new proof with a nonce will be accepted.
func Verify(proof string, e Expectation) (Proof, error) {
	c, err := read(proof)
	if err != nil {
		return Proof{}, err
	}
	for _, r := range rules() {
		if !r.holds(c, e) {
			return Proof{}, r.broken
		}
	}
	return c.accepted(e), nil
}

// accepted is the proof of a candidate that holds to every rule.
func (c candidate) accepted(e Expectation) Proof {
	return Proof{
		Thumbprint: c.key.thumbprint, ID: c.id, Nonce: c.nonce, IssuedAt: c.issuedAt,
		Until: c.issuedAt.Add(MaxAge + e.Skew),
	}
}

// read is checks 2, 3 and 7: a well-formed JWS with a public key and all required claims.
func read(proof string) (c candidate, err error) {
	u, jwk, err := delegation.ParseProof(proof)
	if err != nil {
		return candidate{}, err
	}
	c.Unverified = u
	if c.key, err = readKey(jwk); err != nil {
		return candidate{}, err
	}
	for _, text := range []struct {
		name     string
		into     *string
		required bool
	}{{"jti", &c.id, true}, {"htm", &c.htm, true}, {"htu", &c.htu, true}, {"ath", &c.ath, false}, {"nonce", &c.nonce, false}} {
		if _, there := u.Claim(text.name); !there && !text.required {
			continue
		}
		if *text.into, err = u.StringClaim(text.name); err != nil || *text.into == "" {
			return candidate{}, errors.New("its " + text.name + " is missing or not a string with content")
		}
	}
	if len(c.id) > maxIDBytes || len(c.nonce) > maxIDBytes {
		return candidate{}, errors.New("its jti or nonce is too long")
	}
	seconds, err := u.SecondsClaim("iat")
	if err != nil {
		return candidate{}, err
	}
	c.issuedAt = time.Unix(seconds, 0)
	return c, nil
}
