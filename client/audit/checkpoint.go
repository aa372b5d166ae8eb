package audit

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Checkpoint is the head of a log at one time. Signed, it is a C2SP tlog-checkpoint
// (https://c2sp.org/tlog-checkpoint): it can later be proven to its holder that the log only grew.
type Checkpoint struct {
	Origin string // the tenant's issuer without its scheme, which is also the name of the key
	Size   uint64 // it covers the entries 1 to Size
	Root   tlog.Hash
	Time   time.Time // when it was signed, as the signer's clock has it; whole seconds
}

// timePrefix opens the extension line that carries the time.
const timePrefix = "time "

// Sign writes the checkpoint as a note that all of the keys sign: during a rotation, the verifier
// keys of both verify it.
func (c Checkpoint) Sign(keys ...note.Signer) (string, error) {
	if len(keys) == 0 {
		return "", errors.New("no key signs the checkpoint")
	}
	for _, key := range keys {
		if c.Origin == "" || c.Origin != key.Name() {
			return "", errors.New("the checkpoint's origin is not the name of the key")
		}
	}
	text := fmt.Sprintf("%s\n%d\n%s\n%s%s\n", c.Origin, c.Size, c.Root, timePrefix, c.Time.UTC().Format(time.RFC3339))
	signed, err := note.Sign(&note.Note{Text: text}, keys...)
	return string(signed), err
}

// ParseCheckpoint reads a signed note and believes it only with a signature of one of these keys; further
// signatures, for instance of witnesses, are passed over.
func ParseCheckpoint(text string, keys ...note.Verifier) (Checkpoint, error) {
	opened, err := note.Open([]byte(text), note.VerifierList(keys...))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	malformed := func(what string) (Checkpoint, error) {
		return Checkpoint{}, fmt.Errorf("checkpoint: %s", what)
	}
	lines := strings.Split(strings.TrimSuffix(opened.Text, "\n"), "\n")
	if len(lines) != 4 {
		return malformed("it has not the four lines origin, size, root and time")
	}
	c := Checkpoint{Origin: lines[0]}
	if c.Origin != opened.Sigs[0].Name {
		return malformed("its origin is not the name of the key")
	}
	if c.Size, err = strconv.ParseUint(lines[1], 10, 63); err != nil || lines[1] != strconv.FormatUint(c.Size, 10) {
		return malformed("its size is not a number")
	}
	if c.Root, err = tlog.ParseHash(lines[2]); err != nil {
		return malformed("its root is not a hash")
	}
	at, found := strings.CutPrefix(lines[3], timePrefix)
	if c.Time, err = time.Parse(time.RFC3339, at); !found || err != nil || c.Time.UTC().Format(time.RFC3339) != at {
		return malformed("its time is not one of UTC in whole seconds")
	}
	c.Time = c.Time.UTC()
	return c, nil
}
