package delegation

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
)

// Claims are the claims of a derived token (RFC 9068, RFC 8693 §4). Times are whole seconds since
// 1970.
type Claims struct {
	Issuer       string
	Subject      Principal // the principal on whose behalf the chain acts
	ClientID     Principal // the current actor (RFC 8693 §4.3)
	Audience     []string  // never empty
	Scope        Scopes    // empty means none
	IssuedAt     int64
	NotBefore    int64
	ExpiresAt    int64
	ID           string // jti; Issuer and ID together identify the token, its bytes do not
	Txn          string // the chain's id: new for each exchange of a root token
	Act          Chain
	Delegation   Delegation
	Confirmation *Confirmation // the key that the holder must prove (RFC 7800); nil: bearer token
	MayAct       *MayAct       // who may become the actor without the holder's help (RFC 8693 §4.4)
	Details      []Detail      // authorization_details (RFC 9396 §9.1)
	Status       *Status       // the token's place in a status list; nil: no list is named
}

// Delegation is Deputy's own claim: the token's position in its chain.
type Delegation struct {
	Root      string // digest that identifies the root token
	Hops      []Hop  // oldest first; the last is the token's own
	DepthLeft int    // how many more hops may follow
	Uses      int    // 1: may be exchanged at most once; 0: no limit
}

// Confirmation is the cnf claim: the key that the holder of the token must prove (RFC 7800).
// Exactly one field is set. The zero value has none and binds to nothing.
type Confirmation struct {
	// JKT is the RFC 7638 SHA-256 thumbprint of a key that is proven by DPoP (RFC 9449 §6.1).
	JKT string `json:"jkt,omitzero"`
	// X5T is the SHA-256 thumbprint of a certificate that is proven by mutual TLS (RFC 8705 §3.1).
	X5T string `json:"x5t#S256,omitzero"`
}

// Key is the thumbprint of either kind, or "" where the confirmation binds to nothing. Hops, bans
// and ledger entries name keys by it. A key and a certificate with the same thumbprint are
// infeasible to make.
func (c Confirmation) Key() string { return c.JKT + c.X5T }

// MayAct is the may_act claim.
type MayAct struct {
	Sub Principal `json:"sub"`
}

// Status is the status claim: the place in a Token Status List that shows whether the token was
// revoked. It is for resource servers that do not follow revocations themselves
// (draft-ietf-oauth-status-list §6.2).
type Status struct {
	Index uint64 // from 0
	URI   string // of the list; it is also the sub of the list
}

// Claims reads the claims of a token that Deputy signed. Every member that narrows must be known:
// an unknown member of delegation, cnf, may_act or status is an error, because an ignored
// restriction widens the token. Unknown members at the top level carry no restriction and are
// ignored (RFC 7519 §4). The result satisfies Check.
func (u *Unverified) Claims() (Claims, error) {
	if !u.exact || u.Header.Type == "" || u.Header.KeyID == "" {
		return Claims{}, errors.New("token header: must hold exactly alg, typ and kid")
	}
	return u.readClaims()
}

// DecodeClaims reads claims from the bytes that MarshalJSON wrote, as strictly as from a token.
func DecodeClaims(payload []byte) (Claims, error) {
	claims, err := new(reader).object(payload)
	if err != nil {
		return Claims{}, err
	}
	return (&Unverified{Payload: payload, claims: claims}).readClaims()
}

func (u *Unverified) readClaims() (Claims, error) {
	r, err := u.Registered()
	if err != nil {
		return Claims{}, err
	}
	c := Claims{
		Issuer: r.Issuer, Audience: r.Audience, ID: r.ID,
		IssuedAt: r.IssuedAt, NotBefore: r.NotBefore, ExpiresAt: r.ExpiresAt,
	}
	if c.Subject, err = principalMember(u.claims, "sub"); err != nil {
		return Claims{}, fmt.Errorf("sub: %w", err)
	}
	if c.ClientID, err = principalMember(u.claims, "client_id"); err != nil {
		return Claims{}, fmt.Errorf("client_id: %w", err)
	}
	if c.Txn, err = stringMember(u.claims, "txn"); err != nil {
		return Claims{}, err
	}
	if u.claims.member("scope") != nil {
		text, err := stringMember(u.claims, "scope")
		if err != nil {
			return Claims{}, err
		}
		if c.Scope, err = ParseScopes(text); err != nil {
			return Claims{}, err
		}
	}
	if c.Act, err = readChain(u.claims.member("act")); err != nil {
		return Claims{}, err
	}
	if c.Delegation, err = readDelegation(u.claims.member("delegation")); err != nil {
		return Claims{}, fmt.Errorf("delegation: %w", err)
	}
	if m := u.claims.member("authorization_details"); m != nil {
		if c.Details, err = readDetails(m); err != nil {
			return Claims{}, err
		}
	}
	if m := u.claims.member("cnf"); m != nil {
		if c.Confirmation, err = readConfirmation(m); err != nil {
			return Claims{}, err
		}
	}
	if m := u.claims.member("may_act"); m != nil {
		if c.MayAct, err = readMayAct(m); err != nil {
			return Claims{}, err
		}
	}
	if m := u.claims.member("status"); m != nil {
		if c.Status, err = readStatus(m); err != nil {
			return Claims{}, err
		}
	}
	return c, c.Check()
}

// readDelegation treats uses as unlimited only where it is absent, never where it is null.
func readDelegation(v value) (d Delegation, err error) {
	if d.Root, err = stringMember(v, "root"); err != nil {
		return Delegation{}, err
	}
	if d.DepthLeft, err = countMember(v, "depth_left"); err != nil {
		return Delegation{}, err
	}
	known := 3
	if v.member("uses") != nil {
		known++
		if d.Uses, err = countMember(v, "uses"); err != nil {
			return Delegation{}, err
		}
	}
	hops := v.member("hops")
	switch n := hops.count(); {
	case hops.kind() != '[':
		return Delegation{}, errors.New("hops is not a list")
	case n > MaxChainDepth:
		return Delegation{}, fmt.Errorf("more than %d hops", MaxChainDepth)
	case v.count() != known:
		return Delegation{}, errors.New("an unknown member")
	default:
		d.Hops = make([]Hop, 0, n)
	}
	for element := range hops.within() {
		hop, err := readHop(element)
		if err != nil {
			return Delegation{}, err
		}
		d.Hops = append(d.Hops, hop)
	}
	return d, nil
}

// readConfirmation refuses every confirmation method except jkt and x5t#S256. The proof of an
// unknown method cannot be required, and a token must not lose its binding that way.
func readConfirmation(v value) (*Confirmation, error) {
	var c Confirmation
	c.JKT, _ = v.member("jkt").str()
	c.X5T, _ = v.member("x5t#S256").str()
	if v.count() != 1 || c.Key() == "" {
		return nil, errors.New("cnf holds something other than one jkt or one x5t#S256")
	}
	return &c, nil
}

// ReadConfirmation reads the cnf claim of a token of any issuer as strictly as one of Deputy's. The
// thumbprint must be one of SHA-256.
func ReadConfirmation(claim []byte) (*Confirmation, error) {
	v, err := new(reader).object(claim)
	if err != nil {
		return nil, fmt.Errorf("cnf: %w", err)
	}
	c, err := readConfirmation(v)
	if err != nil {
		return nil, err
	}
	if sum, err := strictBase64.DecodeString(c.Key()); err != nil || len(sum) != sha256.Size || strictBase64.EncodeToString(sum) != c.Key() {
		return nil, errors.New("cnf holds something other than a SHA-256 thumbprint")
	}
	return c, nil
}

func readMayAct(v value) (*MayAct, error) {
	if v.count() != 1 {
		return nil, errors.New("may_act holds something other than one sub")
	}
	sub, err := principalMember(v, "sub")
	if err != nil {
		return nil, fmt.Errorf("may_act: %w", err)
	}
	return &MayAct{Sub: sub}, nil
}

// readStatus refuses every mechanism except status_list: a verifier cannot query an unknown
// mechanism.
func readStatus(v value) (*Status, error) {
	list := v.member("status_list")
	idx, uri := list.member("idx"), list.member("uri")
	if v.count() != 1 || list.count() != 2 || idx == nil || uri == nil {
		return nil, errStatus
	}
	var s Status
	var err error
	var isText bool
	if s.Index, err = strconv.ParseUint(idx.raw(), 10, 64); err != nil {
		return nil, errStatus
	}
	if s.URI, isText = uri.str(); !isText {
		return nil, errStatus
	}
	return &s, nil
}

var errStatus = errors.New("status holds something other than one status_list with idx and uri")

// Check returns an error unless the claims are consistent with each other. Deputy checks before it
// signs and after it parses, so no claims that fail here are ever in force.
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
	case c.Status != nil && c.Status.URI == "":
		return errors.New("status must name its list")
	}
	// The first hop's actor is the first of the chain, unless the root token already had actors.
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
	bound := Confirmation{}
	if c.Confirmation != nil {
		bound = *c.Confirmation
		if (bound.JKT == "") == (bound.X5T == "") {
			return errors.New("cnf must name one key or one certificate")
		}
	}
	if bound.Key() != hops[len(hops)-1].Key {
		return errors.New("cnf must be the key of the last hop")
	}
	return nil
}

// Lineage is the part of the claims that revocations are matched against.
func (c Claims) Lineage() Lineage {
	return Lineage{Root: c.Delegation.Root, Txn: c.Txn, Subject: c.Subject, Actors: c.Act, Hops: c.Delegation.Hops}
}
