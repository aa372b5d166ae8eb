package delegation

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// MaxChainDepth is the ceiling of every configured depth limit: no chain has more hops.
const MaxChainDepth = 32

// Chain holds the actors of a token, oldest first, so an actor's index never changes when the chain
// grows. Its JSON form is the nested "act" claim of RFC 8693 §4.1: the outermost object is the
// current actor, and the innermost one is the first actor, index 0 here. RFC 8693 gives the nested
// actors no authority of their own. Deputy uses them for refusals, revocation and records only.
type Chain []Principal

// Current is the actor that acts now, or "" for an empty chain.
func (c Chain) Current() Principal {
	if len(c) == 0 {
		return ""
	}
	return c[len(c)-1]
}

// Extend returns a new chain with next as the current actor. It shares no memory with c.
func (c Chain) Extend(next Principal) Chain { return append(slices.Clone(c), next) }

// Contains reports whether p is an actor anywhere in the chain.
func (c Chain) Contains(p Principal) bool { return slices.Contains(c, p) }

type actObject struct {
	Sub Principal  `json:"sub"`
	Act *actObject `json:"act,omitempty"`
}

// MarshalJSON writes the nested form. An empty chain has no JSON form and is an error: the caller
// leaves the claim out.
func (c Chain) MarshalJSON() ([]byte, error) {
	if len(c) == 0 {
		return nil, errNoActor
	}
	var act *actObject
	for _, p := range c {
		act = &actObject{Sub: p, Act: act}
	}
	return json.Marshal(act)
}

// UnmarshalJSON reads the nested form strictly. Each object holds exactly "sub" and optionally
// "act", each sub is a canonical principal, and there are at most MaxChainDepth objects.
func (c *Chain) UnmarshalJSON(data []byte) error {
	act, err := new(reader).object(data)
	if err != nil {
		return fmt.Errorf("act: %w", err)
	}
	*c, err = readChain(act)
	return err
}

func readChain(act value) (Chain, error) {
	var newestFirst Chain
	for act != nil {
		if len(newestFirst) == MaxChainDepth {
			return nil, fmt.Errorf("act is nested deeper than %d", MaxChainDepth)
		}
		sub, err := principalMember(act, "sub")
		if err != nil {
			return nil, fmt.Errorf("act: %w", err)
		}
		next, known := act.member("act"), 1
		if next != nil {
			known = 2
		}
		if act.count() != known {
			return nil, errors.New("act: an actor may hold sub and act only")
		}
		newestFirst = append(newestFirst, sub)
		act = next
	}
	slices.Reverse(newestFirst)
	return newestFirst, nil
}

// Hop is one grant of a chain as a token carries it. Its fields let a verifier determine by itself
// that an ancestor was revoked, whatever kind of target the revocation has.
type Hop struct {
	ID    string // jti of the grant
	Seq   uint64 // the ledger's sequence number of the grant
	Actor int    // index in the Chain of the actor that received the grant
	Key   string // thumbprint of the bound key or certificate (Confirmation.Key), or ""
}

// MarshalJSON writes ["jti",seq,actor,"key"].
func (h Hop) MarshalJSON() ([]byte, error) {
	return json.Marshal([4]any{h.ID, h.Seq, h.Actor, h.Key})
}

// UnmarshalJSON reads ["jti",seq,actor,"key"] and nothing else.
func (h *Hop) UnmarshalJSON(data []byte) error {
	v, err := new(reader).value(data, 1)
	if err != nil {
		return fmt.Errorf("hop: %w", err)
	}
	*h, err = readHop(v)
	return err
}

func readHop(v value) (Hop, error) {
	elements := slices.AppendSeq(make([]value, 0, 4), v.within())
	if v.kind() != '[' || len(elements) != 4 {
		return Hop{}, errors.New("hop is not an array of 4 elements")
	}
	id, isID := elements[0].str()
	seq, seqErr := strconv.ParseUint(elements[1].raw(), 10, 64)
	actor, actorErr := strconv.Atoi(elements[2].raw())
	key, isKey := elements[3].str()
	if !isID || seqErr != nil || actorErr != nil || !isKey {
		return Hop{}, errors.New("an element of a hop has the wrong type")
	}
	return Hop{ID: id, Seq: seq, Actor: actor, Key: key}, nil
}
