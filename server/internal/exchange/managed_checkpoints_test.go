package exchange_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/vault"
)

// signerOf opens a managed key, which only Deputy does otherwise.
func signerOf(t *testing.T, kms vault.KMS, a *archive, id string) (signer note.Signer) {
	t.Helper()
	c := vault.Maker[note.Signer]{Open: func(private []byte, _ string) (note.Signer, string, error) {
		s, err := note.NewSigner(string(private))
		if err != nil {
			return nil, "", err
		}
		of := fmt.Sprintf("%08x", s.KeyHash())
		if of == id {
			signer = s
		}
		return s, of, nil
	}}
	plan := vault.Plan{Tenant: a.Tenant().Name, Use: vault.Checkpoints, Together: true}
	_, err := vault.Open(t.Context(), vault.Config{Store: a.Ledger, KMS: kms, Now: a.Clock().Now}, vault.NewSeries(plan, c, a.Clock().Now))
	must(t, err)
	return signer
}

// TestCheckpointKeysRotate follows one log from a key of a file to a managed one, and to the next,
// with an auditor who has one of the verifier keys at each time.
func TestCheckpointKeysRotate(t *testing.T) {
	dir := t.TempDir()
	a := &archive{database: filepath.Join(dir, "ledger.db"), file: filepath.Join(dir, "checkpoint")}
	a.World = exchangetest.New(t, exchangetest.Config{DSN: "sqlite://" + a.database, CheckpointFile: a.file})
	tenant := a.Tenant()
	if _, err := vault.CreateKEK(filepath.Join(dir, "kek")); err != nil {
		t.Fatal(err)
	}
	kms, err := vault.OpenFileKMS(filepath.Join(dir, "kek"))
	must(t, err)
	// instance has the checkpointer of the file, managed keys, or both.
	instance := func(c *exchange.Checkpointer) (*exchangetest.World, *vault.Vault) {
		t.Helper()
		v, err := vault.Open(t.Context(), vault.Config{Store: a.Ledger, KMS: kms, Now: a.Clock().Now}, c.Manage(tenant.Name, tenant.Issuer, a.Clock().Now))
		must(t, err)
		must(t, v.Begin(t.Context()))
		tenant.Checkpoints = c
		return a.Peer(t), v
	}
	reads := func(verifierKey string) bool {
		t.Helper()
		key, err := note.NewVerifier(verifierKey)
		must(t, err)
		text, err := os.ReadFile(a.file)
		must(t, err)
		last, err := a.Ledger.LastCheckpoint(t.Context(), tenant.Name)
		must(t, err)
		_, outside := audit.ParseCheckpoint(string(text), key)
		_, saved := audit.ParseCheckpoint(last.Note, key)
		if (outside == nil) != (saved == nil) {
			t.Errorf("%s reads one of the two only: %v, %v", verifierKey, outside, saved)
		}
		return outside == nil
	}

	ofFile := tenant.Checkpoints.VerifierKey()
	a.grow(t, a.World, 2)
	must(t, a.Engine.Notary(tenant.Name)(t.Context()))
	w, _ := instance(tenant.Checkpoints) // both
	round := w.Engine.Notary(tenant.Name)
	must(t, round(t.Context())) // the log has not grown, and the new key signs it all the same
	first := tenant.Checkpoints.VerifierKey()
	if !reads(ofFile) || !reads(first) || first == ofFile {
		t.Error("not both keys sign while one follows on the other")
	}
	history, err := os.ReadFile(a.file + ".history")
	must(t, err)
	must(t, round(t.Context()))
	if again, err := os.ReadFile(a.file + ".history"); err != nil || string(again) != string(history) {
		t.Error("what nobody changed is signed again and again")
	}

	c, err := exchange.OpenCheckpointer("", tenant.Issuer, a.file)
	must(t, err)
	w, v := instance(c) // the file is gone
	round = w.Engine.Notary(tenant.Name)
	must(t, round(t.Context()))
	a.grow(t, w, 1)
	must(t, round(t.Context()))
	if reads(ofFile) || !reads(first) {
		t.Error("the key of the file still signs, or the managed one does not")
	}

	next, err := v.Rotate(t.Context(), tenant.Name, vault.Checkpoints, false)
	must(t, err)
	second := c.VerifierKeys()[next.ID]
	must(t, round(t.Context()))
	if second == "" || reads(second) || c.VerifierKey() != first {
		t.Error("the new key signs before every instance knows it")
	}
	a.Clock().Advance(vault.Soon)
	must(t, round(t.Context()))
	if !reads(first) || !reads(second) {
		t.Error("not both keys sign")
	}
	_, old, _ := strings.Cut(first, "+")
	last, err := a.Ledger.LastCheckpoint(t.Context(), tenant.Name)
	must(t, err)
	head := audit.Checkpoint{Origin: exchange.Origin(tenant.Issuer), Size: 1, Time: a.Clock().Now()}
	text, err := head.Sign(signerOf(t, kms, a, old[:8]))
	must(t, err)
	if !c.SignedWithout(old[:8], last.Note) || c.SignedWithout(old[:8], text) || !c.SignedWithout(next.ID, text) {
		t.Error("it does not know what other keys signed")
	}
	_, err = v.Retire(t.Context(), tenant.Name, old[:8])
	must(t, err)
	must(t, v.Round(t.Context()))
	must(t, round(t.Context()))
	a.grow(t, w, 1)
	must(t, round(t.Context()))
	if reads(first) || !reads(second) {
		t.Error("a retired key signs")
	}

	// A checkpoint that only the retired key signed is not accepted, neither in the file nor in the
	// database.
	// The first, signed by the key of the file alone.
	retired := strings.Join(strings.SplitAfter(string(history), "\n")[:6], "")
	must(t, os.WriteFile(a.file, []byte(retired), 0o600))
	key, err := note.NewVerifier(ofFile)
	must(t, err)
	if _, err := audit.ParseCheckpoint(retired, key); err != nil {
		t.Errorf("the control: %v", err)
	}
	if err := round(t.Context()); err == nil || !strings.Contains(err.Error(), "not a checkpoint of this key") || w.Engine.Checkpointed(t.Context(), tenant.Name) == nil {
		t.Errorf("a checkpoint of a retired key: %v", err)
	}
}
