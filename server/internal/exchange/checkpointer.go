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
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/server/internal/vault"
)

// Checkpointer signs the heads of one tenant's log, and also keeps them outside the database. It
// has a key from a file, managed keys, or both. All of them sign, and a signature of any of them is
// accepted.
type Checkpointer struct {
	fixed   *checkpointKey                // nil: no file
	managed *vault.Series[*checkpointKey] // nil: none
	file    string                        // "": only in the database
}

type checkpointKey struct {
	signer   note.Signer
	verifier note.Verifier
	public   string
}

// Origin is the name of a tenant's log and of the key of its checkpoints: the issuer without its
// scheme.
func Origin(issuer string) string {
	_, origin, _ := strings.Cut(issuer, "://")
	return origin
}

// CreateCheckpointKey creates a key for the checkpoints of an issuer's log, in a new file that only
// its owner can read. It returns the verifier key for auditors. It never replaces a file.
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

// OpenCheckpointer reads a key from the text of its file. If key is empty, the checkpointer signs
// only after Manage has added keys. file is where checkpoints are kept outside the database; ""
// means nowhere. Errors never repeat the key.
func OpenCheckpointer(key, issuer, file string) (*Checkpointer, error) {
	c := &Checkpointer{file: file}
	if key == "" {
		return c, nil
	}
	var err error
	c.fixed, err = newCheckpointKey(key, Origin(issuer))
	return c, err
}

func newCheckpointKey(key, origin string) (*checkpointKey, error) {
	signer, err := note.NewSigner(key)
	if err != nil {
		return nil, errors.New(`is no key of checkpoints: make one with "deputyd keys create --checkpoint"`)
	}
	if signer.Name() != origin {
		return nil, fmt.Errorf("is the key of %s: a log's key has the name of its own issuer, %s", signer.Name(), origin)
	}
	// PRIVATE+KEY+name+hash+data. The data are the algorithm (Ed25519) and the seed.
	parts := strings.SplitN(key, "+", 5)
	data, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(data) != 1+ed25519.SeedSize {
		return nil, errors.New("is no Ed25519 key")
	}
	private := ed25519.NewKeyFromSeed(data[1:])
	k := &checkpointKey{signer: signer}
	if k.public, err = note.NewEd25519VerifierKey(signer.Name(), private.Public().(ed25519.PublicKey)); err != nil {
		return nil, err
	}
	k.verifier, err = note.NewVerifier(k.public)
	return k, err
}

// id is the name of the key in signatures: the four bytes by which verifiers find it, in
// hexadecimal.
func (k *checkpointKey) id() string { return fmt.Sprintf("%08x", k.signer.KeyHash()) }

// Manage adds managed keys. They sign once a vault has opened the series. If now is nil, it is
// time.Now.
func (c *Checkpointer) Manage(tenant, issuer string, now func() time.Time) vault.Member {
	plan := vault.Plan{Tenant: tenant, Use: vault.Checkpoints, Algorithm: "Ed25519", Together: true}
	c.managed = vault.NewSeries(plan, vault.Maker[*checkpointKey]{
		Make: func(string) ([]byte, error) {
			private, _, err := note.GenerateKey(rand.Reader, Origin(issuer))
			return []byte(private), err
		},
		Open: func(private []byte, _ string) (*checkpointKey, string, error) {
			k, err := newCheckpointKey(string(private), Origin(issuer))
			if err != nil {
				return nil, "", err
			}
			return k, k.id(), nil
		},
	}, now)
	return c.managed
}

// keys returns the keys that sign and all keys whose signatures are accepted, the newest last.
func (c *Checkpointer) keys() (signing, believed []*checkpointKey, err error) {
	if c.fixed != nil {
		signing, believed = append(signing, c.fixed), append(believed, c.fixed)
	}
	if c.managed == nil {
		return signing, believed, nil
	}
	set, err := c.managed.Now()
	if err != nil {
		return nil, nil, err
	}
	for _, held := range set.Keys {
		believed = append(believed, held.Key)
		if held.Phase == vault.Signing {
			signing = append(signing, held.Key)
		}
	}
	return signing, believed, nil
}

// VerifierKey is the verifier of the newest signing key, in the form of signed notes. It is "" if
// no key signs. Auditors should get it from a source other than the server.
func (c *Checkpointer) VerifierKey() string {
	signing, _, err := c.keys()
	if err != nil || len(signing) == 0 {
		return ""
	}
	return signing[len(signing)-1].public
}

// VerifierKeys are the verifiers of all keys whose signatures are accepted, by the id of the key.
func (c *Checkpointer) VerifierKeys() map[string]string {
	_, believed, err := c.keys()
	if err != nil {
		return nil
	}
	by := make(map[string]string)
	for _, k := range believed {
		by[k.id()] = k.public
	}
	return by
}

// SignedWithout reports whether a signing key other than id has signed the checkpoint. If a key is
// removed before that, the log continues no checkpoint that is accepted.
func (c *Checkpointer) SignedWithout(id, checkpoint string) bool {
	signing, _, err := c.keys()
	return err == nil && slices.ContainsFunc(signing, func(k *checkpointKey) bool {
		_, err := audit.ParseCheckpoint(checkpoint, k.verifier)
		return err == nil && k.id() != id
	})
}

// kept is a checkpoint with its signed form.
type kept struct {
	audit.Checkpoint
	note string
}

// parse accepts a checkpoint that any key in force has signed.
func (c *Checkpointer) parse(text string) (kept, error) {
	_, believed, err := c.keys()
	if err != nil {
		return kept{}, err
	}
	var verifiers []note.Verifier
	for _, k := range believed {
		verifiers = append(verifiers, k.verifier)
	}
	parsed, err := audit.ParseCheckpoint(text, verifiers...)
	if err != nil {
		return kept{}, fmt.Errorf("%w: %w", errBroken, err)
	}
	return kept{parsed, text}, nil
}

// signed signs the head with all keys that sign now.
func (c *Checkpointer) signed(head audit.Checkpoint) (kept, error) {
	signing, _, err := c.keys()
	if err != nil {
		return kept{}, err
	}
	var signers []note.Signer
	for _, k := range signing {
		signers = append(signers, k.signer)
	}
	text, err := head.Sign(signers...)
	return kept{head, text}, err
}

// lacks reports whether a key that signs now has not signed k. A log that does not grow must also
// be signed by a new key, for auditors, and must not keep only the signature of a key that is
// removed.
func (c *Checkpointer) lacks(k kept) (bool, error) {
	signing, _, err := c.keys()
	if err != nil || k.Size == 0 {
		return false, err
	}
	for _, key := range signing {
		if _, err := audit.ParseCheckpoint(k.note, key.verifier); err != nil {
			return true, nil
		}
	}
	return false, nil
}

// outside reads the newest checkpoint outside the database. It is empty if the file does not exist.
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
		return kept{}, fmt.Errorf("%s is not a checkpoint of this key: %w", c.file, err)
	}
	return k, nil
}

// Outside returns how many entries the checkpoint file covers and when it was signed. Both are zero
// if the file does not exist.
func (c *Checkpointer) Outside() (entries uint64, signed time.Time, err error) {
	k, err := c.outside()
	return k.Size, k.Time, err
}

// keep writes the checkpoint outside the database: first at the end of the history, then in place
// of the newest. A crash leaves at worst a checkpoint that is only in the history; it is written
// again.
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

// setAside renames the checkpoint file and its history, so that new ones can begin. They are
// evidence of the log that an operator gave up with the recovery of that number.
func (c *Checkpointer) setAside(recovery uint64) error {
	// The file is last, because setAside is repeated until it is gone.
	for _, file := range []string{c.file + ".history", c.file} {
		err := os.Rename(file, fmt.Sprintf("%s.before-recovery-%d", file, recovery))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
