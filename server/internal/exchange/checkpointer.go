package exchange

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"deputy.example/deputy/client/audit"
)

// Checkpointer signs the heads of one tenant's log, and keeps them outside the database too.
type Checkpointer struct {
	signer   note.Signer
	verifier note.Verifier
	public   string
	file     string // "": only in the database
}

// Origin names a tenant's log, and the key of its checkpoints: the issuer without its scheme.
func Origin(issuer string) string {
	_, origin, _ := strings.Cut(issuer, "://")
	return origin
}

// CreateCheckpointKey makes a key for the checkpoints of an issuer's log, in a new file that only its owner
// can read, and returns the verifier key that auditors are given. It never replaces a file.
func CreateCheckpointKey(path, issuer string) (verifierKey string, err error) {
	private, public, err := note.GenerateKey(rand.Reader, Origin(issuer))
	if err != nil {
		return "", fmt.Errorf("make a checkpoint key for %q: %w", issuer, err)
	}
	if _, err := note.NewSigner(private); err != nil {
		return "", fmt.Errorf("%q gives no name for a key: write the issuer as it is configured, such as https://deputy.example/t/acme", issuer)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(private + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(path))
	}
	return public, nil
}

// OpenCheckpointer reads a key, the text of whose file is given, and tries the place where the checkpoints
// are kept. Errors never repeat the key.
func OpenCheckpointer(key, issuer, file string) (*Checkpointer, error) {
	signer, err := note.NewSigner(key)
	if err != nil {
		return nil, errors.New(`is no key of checkpoints: make one with "deputyd keys create --checkpoint"`)
	}
	if signer.Name() != Origin(issuer) {
		return nil, fmt.Errorf("is the key of %s: a log's key has the name of its own issuer, %s", signer.Name(), Origin(issuer))
	}
	// PRIVATE+KEY+name+hash+data, where the data are the algorithm, Ed25519, and the seed.
	parts := strings.SplitN(key, "+", 5)
	data, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(data) != 1+ed25519.SeedSize {
		return nil, errors.New("is no Ed25519 key")
	}
	private := ed25519.NewKeyFromSeed(data[1:])
	c := &Checkpointer{signer: signer, file: file}
	if c.public, err = note.NewEd25519VerifierKey(signer.Name(), private.Public().(ed25519.PublicKey)); err != nil {
		return nil, err
	}
	c.verifier, err = note.NewVerifier(c.public)
	return c, err
}

// VerifierKey is what auditors verify checkpoints with, in the form of signed notes. They should have it
// from somewhere else than the server.
func (c *Checkpointer) VerifierKey() string { return c.public }

// kept is a checkpoint with its signed form.
type kept struct {
	audit.Checkpoint
	note string
}

func (c *Checkpointer) parse(text string) (kept, error) {
	parsed, err := audit.ParseCheckpoint(text, c.verifier)
	return kept{parsed, text}, err
}

// outside reads the newest checkpoint that was kept outside the database; it is empty if there is none.
func (c *Checkpointer) outside() (kept, error) {
	if c.file == "" {
		return kept{}, nil
	}
	text, err := os.ReadFile(c.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return kept{}, nil
	case err != nil:
		return kept{}, err
	}
	k, err := c.parse(string(text))
	if err != nil {
		return kept{}, fmt.Errorf("%w: %s is not a checkpoint of this key: %w", errBroken, c.file, err)
	}
	return k, nil
}

// keep writes the checkpoint outside: behind the others in the history, and then in place of the newest,
// so that a crash leaves at worst one that stands in the history alone, and is written again.
func (c *Checkpointer) keep(note string) error {
	if c.file == "" {
		return nil
	}
	history, err := os.OpenFile(c.file+".history", os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = history.WriteString(note)
	if err = errors.Join(err, history.Sync(), history.Close()); err != nil {
		return err
	}
	next, err := os.CreateTemp(filepath.Dir(c.file), filepath.Base(c.file)+".*")
	if err != nil {
		return err
	}
	_, err = next.WriteString(note)
	err = errors.Join(err, next.Chmod(0o644), next.Sync(), next.Close())
	if err == nil {
		err = os.Rename(next.Name(), c.file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(next.Name()))
	}
	dir, err := os.Open(filepath.Dir(c.file))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
