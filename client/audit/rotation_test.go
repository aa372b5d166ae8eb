package audit_test

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client/audit"
)

// TestOneKeyFollowsOnAnother is an overlap, with auditors who have the one verifier key, the other, or both.
func TestOneKeyFollowsOnAnother(t *testing.T) {
	old, oldKey := signer(t, "deputy.example")
	next, nextKey := signer(t, "deputy.example")
	_, stranger := signer(t, "deputy.example")
	c := audit.Checkpoint{Origin: "deputy.example", Size: 7, Root: tlog.Hash{1}, Time: time.Unix(1_800_000_000, 0).UTC()}
	both, err := c.Sign(old, next)
	if err != nil {
		t.Fatal(err)
	}
	for name, keys := range map[string][]note.Verifier{"the old key": {oldKey}, "the new key": {nextKey}, "both": {oldKey, nextKey}, "one of several": {stranger, nextKey}} {
		if got, err := audit.ParseCheckpoint(both, keys...); err != nil || got != c {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for name, keys := range map[string][]note.Verifier{"none": nil, "a stranger's": {stranger}} {
		if _, err := audit.ParseCheckpoint(both, keys...); err == nil {
			t.Errorf("believed with %s", name)
		}
	}
	other, _ := signer(t, "other.example")
	if _, err := c.Sign(old, other); err == nil {
		t.Error("signed by a key of another log")
	}
	if _, err := c.Sign(); err == nil {
		t.Error("signed by nobody")
	}
}

// TestFormerKeysAreBelievedForWhatWasKept verifies a log against a checkpoint from before the rotation.
// A checkpoint that only a former key signed is never the newest: a thief of that key could make it.
func TestFormerKeysAreBelievedForWhatWasKept(t *testing.T) {
	b := newBook(t)
	b.add(refusal())
	b.add(refusal())
	kept, formerKey := b.head(1), b.key
	b.signer, b.key = signer(t, "deputy.example")
	verify := func(o audit.Options) error {
		_, err := audit.VerifyLog(t.Context(), bytes.NewReader(b.lines()), o)
		return err
	}
	former := []note.Verifier{formerKey}
	if err := verify(audit.Options{Key: b.key, Former: former, Checkpoint: b.head(2), Kept: []string{kept}}); err != nil {
		t.Error(err)
	}
	if err := verify(audit.Options{Key: b.key, Checkpoint: b.head(2), Kept: []string{kept}}); err == nil {
		t.Error("a former key is believed that nobody named")
	}
	if err := verify(audit.Options{Key: b.key, Former: former, Checkpoint: kept}); err == nil {
		t.Error("a former key is believed for the newest checkpoint")
	}
}
