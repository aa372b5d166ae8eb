package vault

import (
	"bufio"
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// KMS seals small secrets under key-encryption keys that it does not export. The bound bytes are
// not secret: what was sealed with them opens only with the same ones (AWS calls them encryption
// context, Google and PKCS#11 additional authenticated data). It must be safe for concurrent use.
type KMS interface {
	// Current names the key that seals from now on.
	Current() (keyID string)
	// Seal encrypts and authenticates under the named key.
	Seal(ctx context.Context, keyID string, plain, bound []byte) (sealed []byte, err error)
	// Open undoes Seal. It returns an error for a missing key and for bytes that were changed.
	Open(ctx context.Context, keyID string, sealed, bound []byte) (plain []byte, err error)
}

// FileKMS is a KMS with its keys in a file: the first seals, all open. It is immutable.
type FileKMS struct {
	current string
	keys    map[string]cipher.AEAD
}

// A line of the file is one AES-256 key.
const kekPrefix = "deputy-kek:"

// CreateKEK makes a key-encryption key in a new file with mode 0600, and returns its id. It never
// replaces a file.
func CreateKEK(path string) (keyID string, err error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(kekPrefix + base64.StdEncoding.EncodeToString(key) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(path))
	}
	return kekID(key), nil
}

// OpenFileKMS reads the keys of a file: one per line, with empty lines and comment lines that begin
// with # between them. Errors name a line and never hold its content.
func OpenFileKMS(path string) (*FileKMS, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	k := &FileKMS{keys: make(map[string]cipher.AEAD)}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		encoded, isKey := strings.CutPrefix(line, kekPrefix)
		key, err := base64.StdEncoding.Strict().DecodeString(encoded)
		if !isKey || err != nil || len(key) != 32 {
			return nil, fmt.Errorf(`line %d is no key-encryption key: make one with "deputyd keys create --kek"`, n)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		id := kekID(key)
		if k.keys[id], err = cipher.NewGCM(block); err != nil {
			return nil, err
		}
		if k.current == "" {
			k.current = id
		}
	}
	if err := lines.Err(); err != nil {
		return nil, errors.New("a line is too long for a key-encryption key")
	}
	if k.current == "" {
		return nil, errors.New(`must hold a key-encryption key; make one with "deputyd keys create --kek"`)
	}
	return k, nil
}

// kekID names a key without revealing it: only the key gives this id.
func kekID(key []byte) string {
	sum := sha256.Sum256(append([]byte("deputy key-encryption key id\n"), key...))
	return hex.EncodeToString(sum[:8])
}

// Current is the id of the file's first key.
func (k *FileKMS) Current() string { return k.current }

// Seal is AES-256-GCM with a random nonce, which precedes the ciphertext.
func (k *FileKMS) Seal(_ context.Context, keyID string, plain, bound []byte) ([]byte, error) {
	aead, err := k.key(keyID)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+len(plain)+aead.Overhead())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return aead.Seal(nonce, nonce, plain, bound), nil
}

// Open returns no detail about bytes that do not open.
func (k *FileKMS) Open(_ context.Context, keyID string, sealed, bound []byte) ([]byte, error) {
	aead, err := k.key(keyID)
	if err != nil {
		return nil, err
	}
	if len(sealed) < aead.NonceSize() {
		return nil, errSealed
	}
	plain, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], bound)
	if err != nil {
		return nil, errSealed
	}
	return plain, nil
}

var errSealed = errors.New("it was changed, moved from another row, or sealed for another purpose")

func (k *FileKMS) key(id string) (cipher.AEAD, error) {
	aead := k.keys[id]
	if aead == nil {
		return nil, fmt.Errorf("the key-encryption key %s is not in the file of key_encryption", id)
	}
	return aead, nil
}
