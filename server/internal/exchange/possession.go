package exchange

import (
	"context"
	"errors"
	"fmt"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/token"
)

// Proof is a DPoP proof of a request (RFC 9449), with the method and address that it must be for.
type Proof struct {
	JWT    string
	Method string // htm
	URI    string // htu; "" if the name is not the server's: no proof is accepted
}

// arrival is the authenticated caller of a call, and what it proved to hold.
type arrival struct {
	tenant *Tenant
	caller token.Caller
	named  *token.Actor // the actor token that authenticated the caller, if one did
	held   possession
}

// keys are the thumbprints of all keys that the caller signed with.
func (a arrival) keys() []string {
	keys := a.held.keys()
	if a.caller.Key != "" {
		keys = append(keys, a.caller.Key)
	}
	return keys
}

// possession is what a request proves that its sender holds.
type possession struct {
	jkt   string      // thumbprint of the key that signed its DPoP proof, or ""
	x5t   string      // thumbprint of its connection's certificate (proven by the handshake), or ""
	proof *dpop.Proof // nil without jkt
}

// binding is what a token for the sender is bound to: the key of its DPoP proof, or else the
// certificate of its connection.
func (h possession) binding() delegation.Confirmation {
	if h.jkt != "" {
		return delegation.Confirmation{JKT: h.jkt}
	}
	return delegation.Confirmation{X5T: h.x5t}
}

// keys are the thumbprints that a ban can name.
func (h possession) keys() (keys []string) {
	for _, key := range []string{h.jkt, h.x5t} {
		if key != "" {
			keys = append(keys, key)
		}
	}
	return keys
}

// shows reports whether the request proves what a token is bound to. Only an equal thumbprint of
// the same kind proves it.
func (h possession) shows(c *delegation.Confirmation) bool {
	switch {
	case c == nil:
		return true
	case c.JKT != "":
		return c.X5T == "" && c.JKT == h.jkt
	}
	return c.X5T != "" && c.X5T == h.x5t
}

// mustHold is the only rule about tokens that are bound to a key (I6). The sender of such a token
// must prove the key, in each parameter and at each endpoint.
func (e *Engine) mustHold(h possession, c *delegation.Confirmation, field string) error {
	if h.shows(c) {
		return nil
	}
	if c.X5T != "" {
		return delegation.Refuse(delegation.ProofRequired, field,
			"it is bound to a certificate: connect to Deputy with that certificate (RFC 8705 section 3)")
	}
	if h.jkt == "" {
		return delegation.Refuse(delegation.ProofRequired, field, "it is bound to a key: send a DPoP proof of that key with the request (RFC 9449)")
	}
	return delegation.Refuse(delegation.ProofRequired, field, "it is bound to a key, and the DPoP proof is of another one")
}

// hold verifies by the tenant's rules what the request proves to hold.
func (e *Engine) hold(ctx context.Context, t *Tenant, c Credentials) (possession, error) {
	var h possession
	if len(c.Certificates) > 0 {
		h.x5t = token.CertificateThumbprint(c.Certificates[0])
	}
	if c.Proof == nil {
		return h, nil
	}
	if c.Proof.URI == "" {
		return possession{}, delegation.Refuse(delegation.ProofInvalid, "dpop",
			"the DPoP proof cannot be judged: this server was reached by a name that it does not know as its own (listen.grpc.authorities)")
	}
	want := dpop.Expectation{
		Method: c.Proof.Method, URI: c.Proof.URI, AccessToken: c.DPoP,
		Now: e.config.Now(), Skew: t.Trust.Skew(),
	}
	if t.RequireNonce {
		var err error
		if want.Nonces, err = e.config.Guard.NoncesOrOwn(ctx, t.Name); err != nil {
			return possession{}, err
		}
	}
	proof, err := dpop.Verify(c.Proof.JWT, want)
	switch {
	case errors.Is(err, dpop.ErrNonce):
		return possession{}, delegation.Refuse(delegation.ProofNonceNeeded, "dpop", "make a new DPoP proof with the nonce that comes with this answer").
			WithMetadata(delegation.MetadataNonce, want.Nonces[0])
	case err != nil:
		return possession{}, delegation.Refuse(delegation.ProofInvalid, "dpop", "the DPoP proof is refused: %v", err)
	}
	h.jkt, h.proof = proof.Thumbprint, &proof
	return h, nil
}

// bound checks what the caller's own credential is bound to. A credential that is bound to a key is
// accepted only with scheme DPoP and its proof, and that scheme accepts no other credential (RFC
// 9449 §7). A credential that is bound to a certificate is accepted only over a connection with
// that certificate (RFC 8705 §3).
func (e *Engine) bound(a arrival, c Credentials) error {
	confirmation := a.caller.Confirmation
	byKey := confirmation != nil && confirmation.JKT != ""
	switch {
	case c.DPoP != "" && !byKey:
		return unauthenticated(errors.New("scheme DPoP with a credential that is bound to no key"))
	case c.Bearer != "" && byKey:
		return unauthenticated(errors.New("a credential that is bound to a key came as Bearer"))
	}
	if err := e.mustHold(a.held, confirmation, "authorization"); err != nil {
		return unauthenticated(fmt.Errorf("the caller's credential: %w", err))
	}
	return nil
}

// uses are the caller's assertion and its proof. The call spends each of them once.
func (a arrival) uses() []ledger.SingleUse {
	var uses []ledger.SingleUse
	if u := a.caller.Use; u != nil {
		uses = append(uses, ledger.SingleUse{Issuer: u.Issuer, Key: u.Key, ID: u.ID, Made: u.Made, Until: u.Until, Reason: delegation.AssertionReplayed})
	}
	if p := a.held.proof; p != nil {
		uses = append(uses, ledger.SingleUse{Issuer: "dpop", Key: p.Thumbprint, ID: p.ID, Made: p.IssuedAt, Until: p.Until, Reason: delegation.ProofReplayed})
	}
	return uses
}

// noted are the uses as Redis notes them.
func (a arrival) noted() (uses []guard.Use) {
	for _, u := range a.uses() {
		uses = append(uses, guard.Use{Issuer: u.Issuer, Key: u.Key, ID: u.ID, Until: u.Until, Reason: u.Reason})
	}
	return uses
}
