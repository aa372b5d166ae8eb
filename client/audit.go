package client

import (
	"context"
	"iter"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// descendantsPage is the page size of Descendants.
const descendantsPage = 500

// Entry returns the entry with this number, with its Record. Auditors and responders read every
// entry of their tenant. Other callers read the entries that name them or an agent of theirs. An
// entry that does not exist and one that the caller may not read give the same refusal.
func (c *Client) Entry(ctx context.Context, seq uint64) (*Entry, error) {
	return c.entry(ctx, &deputyv1.GetEntryRequest{Entry: seq})
}

// GrantEntry returns the entry of the grant with this jti, as Entry does.
func (c *Client) GrantEntry(ctx context.Context, jti string) (*Entry, error) {
	return c.entry(ctx, &deputyv1.GetEntryRequest{Jti: jti})
}

func (c *Client) entry(ctx context.Context, request *deputyv1.GetEntryRequest) (*Entry, error) {
	r, err := call(ctx, c, c.audit.GetEntry, request)
	if err != nil {
		return nil, err
	}
	return readEntry(r.GetEntry())
}

// ChainRecord is a chain as the ledger recorded it. Unlike a token's claims it shows what every
// ancestor was allowed, and its present state.
type ChainRecord struct {
	Root    string // digest that identifies the root token
	Txn     string
	Subject delegation.Principal
	Grants  []*Entry // oldest first
}

// Chain returns the grants from the root to the grant with this jti. A caller reads the chains in
// which it is the subject or an actor. An auditor reads every chain of its tenant.
func (c *Client) Chain(ctx context.Context, jti string) (*ChainRecord, error) {
	r, err := call(ctx, c, c.audit.GetChain, &deputyv1.GetChainRequest{Jti: jti})
	if err != nil {
		return nil, err
	}
	record := &ChainRecord{Root: r.GetRoot(), Txn: r.GetTxn(), Subject: delegation.Principal(r.GetSubject())}
	if record.Grants, err = readEntries(r.GetEntries()); err != nil {
		return nil, err
	}
	return record, nil
}

// Descendant is the entry of a grant below another grant.
type Descendant struct {
	*Entry
	Depth int // 1 for a child
}

// Descendants iterates over the grants derived from a grant, in the order of the ledger: each after
// its parent. It fetches page after page while the loop runs. An error ends the loop.
func (c *Client) Descendants(ctx context.Context, jti string) iter.Seq2[Descendant, error] {
	return pages(func(token string) ([]Descendant, string, error) {
		r, err := call(ctx, c, c.audit.ListDescendants, &deputyv1.ListDescendantsRequest{Jti: jti, PageSize: descendantsPage, PageToken: token})
		if err != nil {
			return nil, "", err
		}
		var page []Descendant
		for _, m := range r.GetDescendants() {
			e, err := readEntry(m.GetEntry())
			if err != nil {
				return nil, "", err
			}
			page = append(page, Descendant{Entry: e, Depth: int(m.GetDepth())})
		}
		return page, r.GetNextPageToken(), nil
	})
}

// SearchQuery selects the entries that match every field that is set. Values match whole and byte
// by byte. A caller that may not read every entry must name a Subject or an Actor whose entries it
// may read.
type SearchQuery struct {
	Subject  delegation.Principal
	Actor    delegation.Principal // any actor of the chain, or the requested one
	Caller   delegation.Principal
	Audience string
	Scope    string
	Kind     EntryKind
	Outcome  EntryOutcome
	Reason   delegation.Reason
	TraceID  string
	JTI      string    // of the grant
	Txn      string    // of the chain
	Key      string    // thumbprint of the key that the grant is bound to
	Peer     string    // address of the caller, with its port or without
	From     time.Time // recorded at this time or later
	Until    time.Time // recorded before this time
	// PageSize is the number of entries per page: 1 to 500. Default: 50.
	PageSize int
}

// Search iterates over the entries that match, the newest first. Entries that are recorded
// meanwhile do not disturb it. It fetches page after page while the loop runs. An error ends the
// loop.
func (c *Client) Search(ctx context.Context, query SearchQuery) iter.Seq2[*Entry, error] {
	return pages(func(token string) ([]*Entry, string, error) {
		request, err := query.message()
		if err != nil {
			return nil, "", err
		}
		request.PageToken = token
		r, err := call(ctx, c, c.audit.SearchEntries, request)
		if err != nil {
			return nil, "", err
		}
		page, err := readEntries(r.GetEntries())
		return page, r.GetNextPageToken(), err
	})
}

// message refuses a word that has no number on the wire: as 0 it would filter nothing.
func (q SearchQuery) message() (*deputyv1.SearchEntriesRequest, error) {
	kind := deputyv1.EntryKind_value["ENTRY_KIND_"+strings.ToUpper(string(q.Kind))]
	outcome := deputyv1.EntryOutcome_value["ENTRY_OUTCOME_"+strings.ToUpper(string(q.Outcome))]
	switch {
	case q.Kind != "" && kind == 0:
		return nil, delegation.Refuse(delegation.ParameterInvalid, "kind", "%q is not a kind of entry", q.Kind)
	case q.Outcome != "" && outcome == 0:
		return nil, delegation.Refuse(delegation.ParameterInvalid, "outcome", "%q is not an outcome", q.Outcome)
	case q.PageSize < 0 || q.PageSize > 500:
		return nil, delegation.Refuse(delegation.ParameterInvalid, "page_size", "want 1 to 500, or 0 for the default, got %d", q.PageSize)
	}
	return &deputyv1.SearchEntriesRequest{
		Subject: string(q.Subject), Actor: string(q.Actor), Caller: string(q.Caller), Audience: q.Audience, Scope: q.Scope,
		Kind: deputyv1.EntryKind(kind), Outcome: deputyv1.EntryOutcome(outcome), Reason: string(q.Reason), TraceId: q.TraceID,
		Jti: q.JTI, Txn: q.Txn, Key: q.Key, Peer: q.Peer,
		From: wireTime(q.From), Until: wireTime(q.Until), PageSize: uint32(q.PageSize),
	}, nil
}

func wireTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// pages iterates over the items of one page after the other.
func pages[T any](page func(token string) (items []T, next string, err error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		for token := ""; ; {
			items, next, err := page(token)
			if err == nil && next != "" && next == token {
				err = malformed("a page that is followed by itself")
			}
			if err != nil {
				yield(none, err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			token = next
		}
	}
}

// Reach is what an agent can do at one moment: the live tokens that it holds and, separately, what
// it could still obtain.
type Reach struct {
	Time      time.Time
	Entry     uint64 // number of the newest entry that is included
	Suspended bool   // the agent can do nothing until it is resumed
	// Tokens are the live tokens whose current actor is the agent, the newest first, at most 1,000.
	Tokens []*Entry
	// LiveTokens counts all of them. LiveBelow counts the live tokens below these that other agents
	// hold.
	LiveTokens, LiveBelow int
	// Truncated: the counts stop at what could be read in time.
	Truncated bool
	// Obtainable by exchanges that OpenFGA would allow now.
	Obtainable []Obtainable
	// ObtainableTruncated: there are more paths than were followed.
	ObtainableTruncated bool
}

// Obtainable is the authority that an agent could receive along one path of consent.
type Obtainable struct {
	Subject delegation.Principal // on whose behalf
	// Path leads from the subject to the agent. Each may hand authority down to the next.
	Path     delegation.Chain
	Scope    delegation.Scopes // scopes that subject and agent both have
	Audience []string          // audiences that subject and agent both have
}

// Reach returns what an agent can do now. depth is the number of delegation edges that are followed
// upwards from it: at most 8; 0 means the server's default, 3. Auditors and responders may query
// every agent, others themselves and the agents that they operate.
func (c *Client) Reach(ctx context.Context, agent delegation.Principal, depth int) (*Reach, error) {
	if depth < 0 || depth > 8 {
		return nil, delegation.Refuse(delegation.ParameterInvalid, "depth", "want 1 to 8, or 0 for the default, got %d", depth)
	}
	r, err := call(ctx, c, c.audit.Reach, &deputyv1.ReachRequest{Agent: string(agent), Depth: uint32(depth)})
	if err != nil {
		return nil, err
	}
	reach := &Reach{
		Time: moment(r.GetTime()), Entry: r.GetEntry(), Suspended: r.GetSuspended(), LiveTokens: int(r.GetLiveTokens()),
		LiveBelow: int(r.GetLiveBelow()), Truncated: r.GetTruncated(), ObtainableTruncated: r.GetObtainableTruncated(),
	}
	if reach.Tokens, err = readEntries(r.GetTokens()); err != nil {
		return nil, err
	}
	for _, m := range r.GetObtainable() {
		o := Obtainable{Subject: delegation.Principal(m.GetSubject()), Audience: m.GetAudience()}
		for _, p := range m.GetPath() {
			o.Path = append(o.Path, delegation.Principal(p))
		}
		if o.Scope, err = delegation.NewScopes(m.GetScope()...); err != nil {
			return nil, malformed("scope: %v", err)
		}
		reach.Obtainable = append(reach.Obtainable, o)
	}
	return reach, nil
}

// Checkpoint is the newest signed head of the tenant's log. Only Note proves anything: read it with
// audit.ParseCheckpoint and a verifier key from another source.
type Checkpoint struct {
	Note        string // C2SP signed note
	Size        uint64 // the checkpoint covers the entries 1 to Size
	Root        tlog.Hash
	Time        time.Time
	VerifierKey string // in the form of signed notes; sent by the server, not verified
}

// Checkpoint returns the newest signed head. Every caller of the tenant may call it.
func (c *Client) Checkpoint(ctx context.Context) (*Checkpoint, error) {
	r, err := call(ctx, c, c.audit.GetCheckpoint, &deputyv1.GetCheckpointRequest{})
	if err != nil {
		return nil, err
	}
	root, err := readHash(r.GetRootHash())
	if err != nil {
		return nil, malformed("%v", err)
	}
	return &Checkpoint{
		Note: r.GetCheckpoint(), Size: r.GetSize(), Root: root, Time: moment(r.GetTime()), VerifierKey: r.GetVerifierKey(),
	}, nil
}

// ProofsRequest selects what to prove against the newest checkpoint. At most one of Entry and JTI
// is set.
type ProofsRequest struct {
	Entry uint64 // prove that the entry with this number is in the log
	JTI   string // prove the same for the grant with this jti
	// OldSize is the size of a checkpoint that the caller kept: prove that the log has only grown
	// since. 0: no such proof.
	OldSize uint64
}

// Proofs hold against the Checkpoint that they carry, and prove nothing until that is verified.
type Proofs struct {
	Checkpoint  string           // C2SP signed note
	Entry       *Entry           // with its Record; nil where none was requested
	Inclusion   tlog.RecordProof // of the entry's leaf (RFC 6962 section 2.1.1)
	Consistency tlog.TreeProof   // with OldSize (RFC 6962 section 2.1.2)
}

// Proofs returns the proofs that an entry is in the log, and that the log has only grown. The
// caller must be allowed to read the entry.
func (c *Client) Proofs(ctx context.Context, request ProofsRequest) (*Proofs, error) {
	r, err := call(ctx, c, c.audit.GetProofs, &deputyv1.GetProofsRequest{Entry: request.Entry, Jti: request.JTI, OldSize: request.OldSize})
	if err != nil {
		return nil, err
	}
	proofs := &Proofs{Checkpoint: r.GetCheckpoint()}
	if r.GetEntry() != nil {
		if proofs.Entry, err = readEntry(r.GetEntry()); err != nil {
			return nil, err
		}
	}
	inclusion, err := readHashes(r.GetInclusion())
	if err != nil {
		return nil, err
	}
	consistency, err := readHashes(r.GetConsistency())
	if err != nil {
		return nil, err
	}
	proofs.Inclusion, proofs.Consistency = inclusion, consistency
	return proofs, nil
}
