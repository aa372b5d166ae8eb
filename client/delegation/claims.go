package delegation

import (
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Claims are the claims of a derived token (RFC 9068, RFC 8693 §4). Times are whole seconds since 1970.
type Claims struct {
	Issuer       string
	Subject      Principal // on whose behalf all happens
	ClientID     Principal // the current actor (RFC 8693 §4.3)
	Audience     []string  // never empty
	Scope        Scopes    // empty means none
	IssuedAt     int64
	NotBefore    int64
	ExpiresAt    int64
	ID           string // jti; with Issuer it is the token's identity, its bytes are not
	Txn          string // the chain's id: new for every exchange of a root token
	Act          Chain
	Delegation   Delegation
	Confirmation *Confirmation // the key that a holder must prove (RFC 7800), or nil for a bearer token
	MayAct       *MayAct       // who may become the actor without the holder's help (RFC 8693 §4.4)
	Details      []Detail      // authorization_details (RFC 9396 §9.1)
}

// Delegation is Deputy's own claim: where the token stands in its chain.
type Delegation struct {
	Root      string // digest that identifies the root token
	Hops      []Hop  // oldest first, the token's own last
	DepthLeft int    // how many more hops may follow
	Uses      int    // 1: may be exchanged at most once; 0: not limited
}

// Confirmation is the cnf claim, RFC 9449 §6.1.
type Confirmation struct {
	JKT string `json:"jkt"` // RFC 7638 SHA-256 thumbprint of the holder's key
}

// MayAct is the may_act claim.
type MayAct struct {
	Sub Principal `json:"sub"`
}

// claimsWire fixes names and order: the encoding of equal claims is equal bytes.
type claimsWire struct {
	Iss        string          `json:"iss"`
	Sub        Principal       `json:"sub"`
	ClientID   Principal       `json:"client_id"`
	Aud        []string        `json:"aud"`
	Scope      string          `json:"scope,omitzero"`
	Details    jsontext.Value  `json:"authorization_details,omitzero"`
	Iat        int64           `json:"iat"`
	Nbf        int64           `json:"nbf"`
	Exp        int64           `json:"exp"`
	Jti        string          `json:"jti"`
	Txn        string          `json:"txn"`
	Act        jsontext.Value  `json:"act"`
	Delegation *delegationWire `json:"delegation"`
	Cnf        *Confirmation   `json:"cnf,omitzero"`
	MayAct     *MayAct         `json:"may_act,omitzero"`
}

type delegationWire struct {
	Root      string           `json:"root"`
	Hops      []jsontext.Value `json:"hops"`
	DepthLeft int              `json:"depth_left"`
	Uses      int              `json:"uses,omitzero"`
}

// MarshalJSON writes the canonical form that the ledger digests and the token carries.
func (c Claims) MarshalJSON() ([]byte, error) {
	act, err := c.Act.MarshalJSON()
	if err != nil {
		return nil, err
	}
	wire := claimsWire{
		Iss: c.Issuer, Sub: c.Subject, ClientID: c.ClientID, Aud: c.Audience, Scope: c.Scope.String(),
		Iat: c.IssuedAt, Nbf: c.NotBefore, Exp: c.ExpiresAt, Jti: c.ID, Txn: c.Txn, Act: act,
		Delegation: &delegationWire{Root: c.Delegation.Root, DepthLeft: c.Delegation.DepthLeft, Uses: c.Delegation.Uses},
		Cnf:        c.Confirmation, MayAct: c.MayAct,
	}
	for _, hop := range c.Delegation.Hops {
		raw, err := hop.MarshalJSON()
		if err != nil {
			return nil, err
		}
		wire.Delegation.Hops = append(wire.Delegation.Hops, raw)
	}
	if len(c.Details) > 0 {
		if wire.Details, err = json.Marshal(c.Details); err != nil {
			return nil, err
		}
	}
	return json.Marshal(wire)
}

// Claims reads the claims of a token that Deputy signed. Every member that narrows must be known:
// an unknown member of delegation, cnf or may_act is an error, because ignoring a restriction
// widens the token. Unknown members at the top level carry no restriction and are ignored
// (RFC 7519 §4). The result satisfies Check.
func (u *Unverified) Claims() (Claims, error) {
	if !u.exact || u.Header.Type == "" || u.Header.KeyID == "" {
		return Claims{}, errors.New("token header: must hold exactly alg, typ and kid")
	}
	return u.claims()
}

// DecodeClaims reads claims from the bytes that MarshalJSON wrote, as strictly as from a token.
func DecodeClaims(payload []byte) (Claims, error) {
	members, err := objectMembers(payload)
	if err != nil {
		return Claims{}, err
	}
	return (&Unverified{Payload: payload, members: members}).claims()
}

func (u *Unverified) claims() (Claims, error) {
	r, err := u.Registered()
	if err != nil {
		return Claims{}, err
	}
	c := Claims{
		Issuer: r.Issuer, Audience: r.Audience, ID: r.ID,
		IssuedAt: r.IssuedAt, NotBefore: r.NotBefore, ExpiresAt: r.ExpiresAt,
	}
	if c.Subject, err = principalMember(u.members, "sub"); err != nil {
		return Claims{}, fmt.Errorf("sub: %w", err)
	}
	if c.ClientID, err = principalMember(u.members, "client_id"); err != nil {
		return Claims{}, fmt.Errorf("client_id: %w", err)
	}
	if c.Txn, err = stringMember(u.members, "txn"); err != nil {
		return Claims{}, err
	}
	if _, present := u.members["scope"]; present {
		text, err := stringMember(u.members, "scope")
		if err != nil {
			return Claims{}, err
		}
		if c.Scope, err = ParseScopes(text); err != nil {
			return Claims{}, err
		}
	}
	if err := c.Act.UnmarshalJSON(u.members["act"]); err != nil {
		return Claims{}, err
	}
	if err := c.readDelegation(u.members["delegation"]); err != nil {
		return Claims{}, err
	}
	if raw, present := u.members["authorization_details"]; present {
		if c.Details, err = ParseDetails(raw); err != nil {
			return Claims{}, err
		}
	}
	if raw, present := u.members["cnf"]; present {
		if c.Confirmation, err = readConfirmation(raw); err != nil {
			return Claims{}, err
		}
	}
	if raw, present := u.members["may_act"]; present {
		if c.MayAct, err = readMayAct(raw); err != nil {
			return Claims{}, err
		}
	}
	return c, c.Check()
}

func (c *Claims) readDelegation(raw jsontext.Value) error {
	var wire delegationWire
	members, err := objectMembers(raw)
	if err != nil {
		return errors.New("delegation is missing or not an object")
	}
	for _, name := range []string{"root", "hops", "depth_left"} {
		if _, present := members[name]; !present {
			return fmt.Errorf("delegation: %s is missing", name)
		}
	}
	for name, value := range members {
		if value.Kind() == 'n' { // absent must not come to mean unlimited
			return fmt.Errorf("delegation: %s is null", name)
		}
	}
	if err := json.Unmarshal(raw, &wire, json.RejectUnknownMembers(true)); err != nil {
		return errors.New("delegation has an unknown member or one of the wrong type")
	}
	if len(wire.Hops) > MaxChainDepth {
		return fmt.Errorf("delegation has more than %d hops", MaxChainDepth)
	}
	c.Delegation = Delegation{Root: wire.Root, DepthLeft: wire.DepthLeft, Uses: wire.Uses}
	for _, raw := range wire.Hops {
		var hop Hop
		if err := hop.UnmarshalJSON(raw); err != nil {
			return err
		}
		c.Delegation.Hops = append(c.Delegation.Hops, hop)
	}
	return nil
}

// readConfirmation refuses every confirmation method but jkt: a proof that is not understood cannot
// be asked for, and a token must not lose its binding that way.
func readConfirmation(raw jsontext.Value) (*Confirmation, error) {
	var c Confirmation
	if raw.Kind() != '{' || json.Unmarshal(raw, &c, json.RejectUnknownMembers(true)) != nil || c.JKT == "" {
		return nil, errors.New("cnf holds something other than one jkt")
	}
	return &c, nil
}

func readMayAct(raw jsontext.Value) (*MayAct, error) {
	members, err := objectMembers(raw)
	if err != nil || len(members) != 1 {
		return nil, errors.New("may_act holds something other than one sub")
	}
	sub, err := principalMember(members, "sub")
	if err != nil {
		return nil, fmt.Errorf("may_act: %w", err)
	}
	return &MayAct{Sub: sub}, nil
}

// Check says whether the claims agree with themselves. Deputy checks before it signs and after it
// parses, so no claims that fail here are ever in force.
func (c Claims) Check() error {
	hops := c.Delegation.Hops
	switch {
	case c.Issuer == "" || c.Subject == "" || c.ID == "" || c.Txn == "" || c.Delegation.Root == "":
		return errors.New("iss, sub, jti, txn and delegation.root must all be there")
	case len(c.Audience) == 0:
		return errors.New("aud must name at least one audience")
	case len(c.Act) == 0 || c.ClientID != c.Act.Current():
		return errors.New("client_id must be the current actor")
	case c.IssuedAt <= 0 || c.NotBefore < c.IssuedAt || c.ExpiresAt <= c.NotBefore:
		return errors.New("iat, nbf and exp must be in this order")
	case len(hops) == 0 || hops[len(hops)-1].ID != c.ID:
		return errors.New("the last hop must be the token itself")
	case len(hops)+c.Delegation.DepthLeft > MaxChainDepth || c.Delegation.DepthLeft < 0:
		return fmt.Errorf("hops and depth_left must be within %d", MaxChainDepth)
	case c.Delegation.Uses < 0 || c.Delegation.Uses > 1:
		return errors.New("uses must be 0 or 1")
	}
	// The first hop's actor is the first of the chain, unless the root token brought actors along.
	actor, seq := max(hops[0].Actor, 0), uint64(0)
	for _, hop := range hops {
		grows := hop.Actor - actor
		if hop.ID == "" || hop.Seq <= seq || grows < 0 || grows > 1 {
			return errors.New("hops must rise in number and visit each actor in order")
		}
		actor, seq = hop.Actor, hop.Seq
	}
	if actor != len(c.Act)-1 {
		return errors.New("hops and act must end with the same actor")
	}
	if key := hops[len(hops)-1].Key; (c.Confirmation == nil) != (key == "") || c.Confirmation != nil && c.Confirmation.JKT != key {
		return errors.New("cnf must be the key of the last hop")
	}
	return nil
}

// Lineage is what revocations are matched against.
func (c Claims) Lineage() Lineage {
	return Lineage{Root: c.Delegation.Root, Txn: c.Txn, Subject: c.Subject, Actors: c.Act, Hops: c.Delegation.Hops}
}
