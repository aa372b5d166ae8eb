// Package ledgertest has what tests of the ledger and of everything above it share: well-formed
// drafts, the checker that goes over a whole ledger, and the suite that both databases must pass.
//
// It sees the ledger as any caller does, through its exported names.
package ledgertest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// Life is how long the grants made here live.
const Life = 5 * time.Minute

// Grant drafts the exchange of a new root token of the subject for a token of the actor. Change
// the draft as the test needs, before it is appended.
func Grant(now time.Time, subject, actor delegation.Principal) *ledger.Draft {
	root := sha256.Sum256([]byte(rand.Text()))
	d := &ledger.Draft{
		Kind: ledger.KindGrant, ID: rand.Text(), Txn: rand.Text(), Root: hex.EncodeToString(root[:]),
		Subject: subject, Actor: actor, Caller: actor, Actors: delegation.Chain{actor},
		Lineage: delegation.Lineage{RootIssuedAt: now},
	}
	return finish(d, now, nil)
}

// Child drafts the exchange of the parent's claims, as a Receipt has them, for a token of the
// actor.
func Child(now time.Time, parent []byte, actor delegation.Principal) *ledger.Draft {
	p := Decode(parent)
	d := &ledger.Draft{
		Kind: ledger.KindGrant, ID: rand.Text(), Parent: p.ID, Txn: p.Txn, Root: p.Delegation.Root,
		Subject: p.Subject, Actor: actor, Caller: p.Act.Current(), Actors: p.Act.Extend(actor),
		Lineage: delegation.Lineage{Hops: p.Delegation.Hops},
	}
	return finish(d, now, p.Delegation.Hops)
}

func finish(d *ledger.Draft, now time.Time, hops []delegation.Hop) *ledger.Draft {
	d.Scopes = delegation.Scopes{"calendar.read"}
	d.Audiences = []string{"https://calendar.example"}
	d.Expiry = now.Add(Life)
	d.ModelID, d.Peer, d.TraceID, d.ActorProof = "01MODEL", "192.0.2.7:4711", "4bf92f3577b34da6a3ce929d0e0e4736", "actor_token"
	d.Claims = func(seq uint64) ([]byte, error) {
		c := delegation.Claims{
			Issuer: "https://deputy.example", Subject: d.Subject, ClientID: d.Actor, Audience: d.Audiences, Scope: d.Scopes,
			IssuedAt: now.Unix(), NotBefore: now.Unix(), ExpiresAt: d.Expiry.Unix(), ID: d.ID, Txn: d.Txn, Act: d.Actors,
			Delegation: delegation.Delegation{Root: d.Root, DepthLeft: max(0, 16-len(hops)), Hops: append(slices.Clone(hops),
				delegation.Hop{ID: d.ID, Seq: seq, Actor: len(d.Actors) - 1, Key: d.HolderKey})},
		}
		if d.HolderKey != "" {
			c.Confirmation = &delegation.Confirmation{JKT: d.HolderKey}
		}
		return c.MarshalJSON()
	}
	return d
}

// Revocation drafts a revocation that never ends.
func Revocation(kind delegation.TargetKind, id string) *ledger.Draft {
	return &ledger.Draft{
		Kind: ledger.KindRevocation, Caller: "user:responder",
		Revocation: &delegation.Revocation{Target: delegation.Target{Kind: kind, ID: id}},
	}
}

// Decode reads claims that Grant or Child made; claims in a test are what the test made them.
func Decode(canonical []byte) delegation.Claims {
	claims, err := delegation.DecodeClaims(canonical)
	if err != nil {
		panic(err)
	}
	return claims
}
