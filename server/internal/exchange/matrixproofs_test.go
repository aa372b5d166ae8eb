package exchange_test

import (
	"errors"
	"math"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client/audit"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// TestWhatIsProvenHolds: a reader of a grant gets a proof of it that holds against the signed
// checkpoint, with only the tenant's verifier key. Each caller gets a proof that the log only grew.
// No proof holds for the other tenant, which has the same names and numbers.
func TestWhatIsProvenHolds(t *testing.T) {
	l := newLibrary(t)
	early := map[string]audit.Checkpoint{}
	for tenant := range l.Tenants {
		_, early[tenant] = l.checkpoint(t, tenant)
	}
	l.ask(t, "agent:stranger", "default", l.questions()["stream"].call) // refused, and recorded
	for tenant := range l.Tenants {
		if err := l.Engine.Notary(tenant)(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, newest := l.checkpoint(t, "default"); newest.Size <= early["default"].Size {
		t.Fatalf("the log has not grown: %d entries", newest.Size)
	}
	may := map[string][3]bool{"agent:auditor": {true, true, true}, "person-alice": {true, true, true}, "agent:researcher": {false, true, true}, "agent:stranger": {}}
	for tenant, elsewhere := range map[string]string{"default": "other", "other": "default"} {
		key, _ := l.checkpoint(t, tenant)
		foreign, _ := l.checkpoint(t, elsewhere)
		for role, allowed := range may {
			for i, g := range l.grants(tenant) {
				r := &deputyv1.GetProofsRequest{Jti: g.jti, OldSize: early[tenant].Size}
				proofs, err := l.audit.GetProofs(l.as(t, role, tenant), r)
				if (err == nil) != allowed[i] {
					t.Errorf("%s of %s, token %d: %v", role, tenant, i, err)
				}
				if err != nil {
					continue
				}
				if err := holds(proofs, g.seq, key, early[tenant]); err != nil {
					t.Errorf("%s of %s, token %d: %v", role, tenant, i, err)
				}
				if holds(proofs, g.seq, foreign, early[tenant]) == nil {
					t.Errorf("token %d of %s is proven with the other tenant's key", i, tenant)
				}
				if holds(proofs, g.seq, key, early[elsewhere]) == nil {
					t.Errorf("the log of %s continues the other tenant's", tenant)
				}
				proofs.Entry = spoiled(t, proofs.GetEntry())
				if holds(proofs, g.seq, key, early[tenant]) == nil {
					t.Errorf("an entry of %s that was altered is proven", tenant)
				}
			}
		}
		growth, err := l.audit.GetProofs(l.as(t, "agent:stranger", tenant), &deputyv1.GetProofsRequest{OldSize: early[tenant].Size})
		if err == nil {
			err = grew(growth, key, early[tenant])
		}
		if err != nil || growth.GetEntry() != nil || len(growth.GetInclusion()) > 0 {
			t.Errorf("a stranger of %s asks whether the log only grew: %v, with entry %v", tenant, err, growth.GetEntry())
		}
		if _, err := l.audit.GetProofs(l.as(t, "agent:auditor", tenant), &deputyv1.GetProofsRequest{Entry: math.MaxInt64}); err == nil {
			t.Error("an entry that does not exist is proven")
		}
	}
}

// checkpoint is the tenant's newest one, as its verifier key shows it.
func (l *library) checkpoint(t *testing.T, tenant string) (note.Verifier, audit.Checkpoint) {
	t.Helper()
	r, err := l.audit.GetCheckpoint(l.as(t, "agent:stranger", tenant), &deputyv1.GetCheckpointRequest{})
	if err != nil {
		t.Fatal(err)
	}
	key, err := note.NewVerifier(r.GetVerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	checkpoint, err := audit.ParseCheckpoint(r.GetCheckpoint(), key)
	if err != nil {
		t.Fatal(err)
	}
	return key, checkpoint
}

// holds is what an auditor does with a response. The auditor trusts the key and an earlier
// checkpoint.
func holds(r *deputyv1.GetProofsResponse, seq uint64, key note.Verifier, kept audit.Checkpoint) error {
	head, err := audit.ParseCheckpoint(r.GetCheckpoint(), key)
	if err != nil {
		return err
	}
	record, err := audit.ParseRecord([]byte(r.GetEntry().GetRecord()))
	if err == nil {
		err = record.Verify()
	}
	if err != nil {
		return err
	}
	if record.Seq != seq {
		return errors.New("it is another entry")
	}
	if err := tlog.CheckRecord(hashes(r.GetInclusion()), int64(head.Size), head.Root, int64(seq)-1, record.Leaf()); err != nil {
		return err
	}
	return grew(r, key, kept)
}

func grew(r *deputyv1.GetProofsResponse, key note.Verifier, kept audit.Checkpoint) error {
	head, err := audit.ParseCheckpoint(r.GetCheckpoint(), key)
	if err != nil {
		return err
	}
	return tlog.CheckTree(hashes(r.GetConsistency()), int64(head.Size), head.Root, int64(kept.Size), kept.Root)
}

func hashes(list [][]byte) []tlog.Hash {
	all := make([]tlog.Hash, len(list))
	for i, hash := range list {
		copy(all[i][:], hash)
	}
	return all
}

// spoiled is the entry with a wider scope, in a record that is well-formed and consistent.
func spoiled(t *testing.T, e *deputyv1.Entry) *deputyv1.Entry {
	t.Helper()
	record, err := audit.ParseRecord([]byte(e.GetRecord()))
	if err != nil {
		t.Fatal(err)
	}
	record.Scopes = append(record.Scopes, "payments.send")
	record.LeafHash = record.Leaf()
	line, err := record.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	e.Record = string(line)
	return e
}
