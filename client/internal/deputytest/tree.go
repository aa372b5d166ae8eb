package deputytest

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// DroppedThrough is the last entry of the log's beginning, which pretends to have been dropped.
const DroppedThrough = 40

// LogOrigin is the origin of the log's checkpoints.
const LogOrigin = "deputy.example/t/test"

// tree is the log's Merkle tree and the key of its checkpoints. The server's lock guards it.
type tree struct {
	signer  note.Signer
	key     string // verifier key
	hashes  []tlog.Hash
	edge    audit.Edge
	dropped string
}

func newTree() tree {
	secret, key, err := note.GenerateKey(rand.Reader, LogOrigin)
	if err != nil {
		panic(err)
	}
	t := tree{key: key}
	if t.signer, err = note.NewSigner(secret); err != nil {
		panic(err)
	}
	for n := range DroppedThrough {
		t.add(tlog.RecordHash(fmt.Append(nil, n)))
	}
	line, err := audit.Dropped{Through: DroppedThrough, Hashes: t.edge.Hashes}.MarshalJSON()
	if err != nil {
		panic(err)
	}
	t.dropped = string(line)
	return t
}

func (t *tree) add(leaf tlog.Hash) {
	stored, err := tlog.StoredHashesForRecordHash(int64(t.edge.Size), leaf, t)
	if err != nil {
		panic(err)
	}
	t.hashes = append(t.hashes, stored...)
	t.edge.Add(leaf, nil)
}

// ReadHashes implements tlog.HashReader.
func (t *tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		hashes[i] = t.hashes[index]
	}
	return hashes, nil
}

func (t *tree) checkpoint() (string, error) {
	return audit.Checkpoint{Origin: LogOrigin, Size: t.edge.Size, Root: t.edge.Root(), Time: time.Now()}.Sign(t.signer)
}

// CheckpointKey is the verifier key of the log's checkpoints.
func (s *Server) CheckpointKey() string { return s.tree.key }

// SignCheckpoint signs any head with the log's key, as a server would that lies.
func (s *Server) SignCheckpoint(size uint64, root tlog.Hash) string {
	signed, err := audit.Checkpoint{Origin: LogOrigin, Size: size, Root: root, Time: time.Now()}.Sign(s.tree.signer)
	if err != nil {
		panic(err)
	}
	return signed
}

// seal makes the entry a leaf of the tree, and gives it its record unless it has one.
func (s *Server) seal(e *deputyv1.Entry) {
	r := audit.Record{
		Tenant: "test", Seq: e.GetEntry(), Kind: word(e.GetKind(), "ENTRY_KIND_"), Time: micro(e.GetTime()),
		ID: e.GetJti(), Parent: e.GetParent(), Txn: e.GetTxn(), Root: e.GetRoot(), HolderKey: e.GetKey(),
		Outcome: word(e.GetOutcome(), "ENTRY_OUTCOME_"), Reason: e.GetReason(), Scopes: e.GetScope(), Audiences: e.GetAudience(),
		Expiry: micro(e.GetExpiresAt()), ModelID: e.GetModelId(), TraceID: e.GetTraceId(), Voids: e.GetVoids(),
	}
	set := func(f audit.Field, value string) {
		if value != "" {
			salt := make([]byte, 32)
			rand.Read(salt)
			digest := audit.Digest(salt, value)
			r.Personal[f] = audit.Personal{Value: value, Salt: salt, Digest: digest[:]}
		}
	}
	if e.GetRevocation() != nil {
		v := revocation(e.GetRevocation())
		r.Prev, r.TargetKind, r.Until = v.Prev, string(v.Target.Kind), micro(e.GetRevocation().GetUntil())
		if strings.Contains(v.Target.ID, ":") {
			set(audit.FieldTarget, v.Target.ID)
		} else {
			r.TargetID = v.Target.ID
		}
		set(audit.FieldTargetSubject, string(v.Target.Subject))
	}
	for f, value := range map[audit.Field]string{
		audit.FieldSubject: e.GetSubject(), audit.FieldActor: e.GetActor(), audit.FieldCaller: e.GetCaller(),
		audit.FieldActors: strings.Join(e.GetActors(), "|"), audit.FieldPeer: e.GetPeer(), audit.FieldDetail: e.GetDetail(),
		audit.FieldDetails: e.GetAuthorizationDetails(), audit.FieldActorProof: e.GetActorProof(),
	} {
		set(f, value)
	}
	r.LeafHash = r.Leaf()
	s.tree.add(r.LeafHash)
	e.LeafHash = r.LeafHash[:]
	if e.GetRecord() == "" {
		line, err := r.MarshalJSON()
		if err != nil {
			panic(err)
		}
		e.Record = string(line)
	}
}

func word(value fmt.Stringer, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(value.String(), prefix))
}

func micro(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime().Truncate(time.Microsecond)
}

// GetCheckpoint implements deputyv1.AuditServiceServer.
func (s *Server) GetCheckpoint(ctx context.Context, _ *deputyv1.GetCheckpointRequest) (*deputyv1.GetCheckpointResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	signed, err := s.tree.checkpoint()
	root := s.tree.edge.Root()
	return &deputyv1.GetCheckpointResponse{
		Checkpoint: signed, Size: s.tree.edge.Size, RootHash: root[:], Time: timestamppb.Now(), VerifierKey: s.tree.key,
	}, err
}

// GetProofs implements deputyv1.AuditServiceServer.
func (s *Server) GetProofs(ctx context.Context, r *deputyv1.GetProofsRequest) (*deputyv1.GetProofsResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	signed, err := s.tree.checkpoint()
	if err != nil {
		return nil, err
	}
	response := &deputyv1.GetProofsResponse{Checkpoint: signed}
	if r.GetEntry() > 0 || r.GetJti() != "" {
		e := s.find(r.GetEntry(), r.GetJti())
		if e == nil {
			return nil, notFound()
		}
		response.Entry = s.shown(e)
		proof, err := tlog.ProveRecord(int64(s.tree.edge.Size), int64(e.GetEntry())-1, &s.tree)
		if err != nil {
			return nil, err
		}
		response.Inclusion = raw(proof)
	}
	if r.GetOldSize() > 0 {
		proof, err := tlog.ProveTree(int64(s.tree.edge.Size), int64(r.GetOldSize()), &s.tree)
		if err != nil {
			return nil, delegation.Refuse(delegation.ParameterInvalid, "old_size", "the log is smaller")
		}
		response.Consistency = raw(proof)
	}
	return response, nil
}

func raw(hashes []tlog.Hash) [][]byte {
	var list [][]byte
	for _, h := range hashes {
		list = append(list, h[:])
	}
	return list
}
