package delegation

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// MaxChainDepth is the ceiling of every configured depth limit: no chain has more hops.
const MaxChainDepth = 32

// Chain holds the actors of a token, oldest first, so that an actor's index never changes when the
// chain grows. Its JSON form is the nested "act" claim of RFC 8693 §4.1, where the outermost object
// is the current actor and the innermost one, index 0 here, the first. RFC 8693 gives the nested
// actors no authority of their own; Deputy uses them for refusals, revocation and records only.
type Chain []Principal

// Current is the actor that acts now, or "" for an empty chain.
func (c Chain) Current() Principal {
	if len(c) == 0 {
		return ""
	}
	return c[len(c)-1]
}

// Extend returns a chain of its own memory with next as the current actor.
func (c Chain) Extend(next Principal) Chain { return append(slices.Clone(c), next) }

// Contains says whether p is an actor anywhere in the chain.
func (c Chain) Contains(p Principal) bool { return slices.Contains(c, p) }

type actObject struct {
	Sub Principal  `json:"sub"`
	Act *actObject `json:"act,omitempty"`
}

// MarshalJSON writes the nested form. An empty chain has none: leave the claim out.
func (c Chain) MarshalJSON() ([]byte, error) {
	if len(c) == 0 {
		return nil, errors.New("delegation: an empty actor chain has no JSON form")
	}
	var act *actObject
	for _, p := range c {
		act = &actObject{Sub: p, Act: act}
	}
	return json.Marshal(act)
}

// UnmarshalJSON reads the nested form strictly: objects with exactly "sub" and perhaps "act", each
// sub a canonical principal, no more than MaxChainDepth of them.
func (c *Chain) UnmarshalJSON(data []byte) error {
	var newestFirst Chain
	for data != nil {
		if len(newestFirst) == MaxChainDepth {
			return fmt.Errorf("act is nested deeper than %d", MaxChainDepth)
		}
		members, err := objectMembers(data)
		if err != nil {
			return fmt.Errorf("act: %w", err)
		}
		sub, err := principalMember(members, "sub")
		if err != nil {
			return fmt.Errorf("act: %w", err)
		}
		next, nested := members["act"]
		if known := map[bool]int{false: 1, true: 2}[nested]; len(members) != known {
			return errors.New("act: an actor may hold sub and act only")
		}
		newestFirst = append(newestFirst, sub)
		data = next
	}
	slices.Reverse(newestFirst)
	*c = newestFirst
	return nil
}

func principalMember(members map[string]jsontext.Value, name string) (Principal, error) {
	s, err := stringMember(members, name)
	if err != nil {
		return "", err
	}
	return ParsePrincipal(s)
}

// Hop is one grant of a chain as a token carries it: enough for a verifier to see by itself that an
// ancestor was revoked, whichever way the revocation was aimed.
type Hop struct {
	ID    string // jti of the grant
	Seq   uint64 // the ledger's sequence number of the grant
	Actor int    // index in the Chain of the actor that the grant was made to
	Key   string // RFC 7638 thumbprint of the key that the grant is bound to, or ""
}

// MarshalJSON writes ["jti",seq,actor,"key"].
func (h Hop) MarshalJSON() ([]byte, error) {
	return json.Marshal([4]any{h.ID, h.Seq, h.Actor, h.Key})
}

// UnmarshalJSON reads ["jti",seq,actor,"key"] and nothing else.
func (h *Hop) UnmarshalJSON(data []byte) error {
	var parts []json.RawMessage
	if err := json.Unmarshal(data, &parts); err != nil {
		return errors.New("hop is not an array")
	}
	if len(parts) != 4 {
		return fmt.Errorf("hop has %d elements, want 4", len(parts))
	}
	var hop Hop
	for i, into := range []any{&hop.ID, &hop.Seq, &hop.Actor, &hop.Key} {
		if string(parts[i]) == "null" || json.Unmarshal(parts[i], into) != nil {
			return fmt.Errorf("hop element %d has the wrong type", i)
		}
	}
	*h = hop
	return nil
}
