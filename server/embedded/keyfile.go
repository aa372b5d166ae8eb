package embedded

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// KeyFile is an ES256 key pair in a file of mode 0600, for development.
type KeyFile struct {
	private *ecdsa.PrivateKey
	id      string
	public  jwk
}

// ID is the key's kid, which is its RFC 7638 thumbprint.
func (k *KeyFile) ID() string { return k.id }

// jwk is a P-256 public key in RFC 7517's form.
type jwk struct {
	KeyType   string `json:"kty"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	Y         string `json:"y"`
	ID        string `json:"kid"`
	Algorithm string `json:"alg"`
	Use       string `json:"use"`
}

// OpenKeyFile reads the key, and creates it first if the file is missing.
func OpenKeyFile(path string) (*KeyFile, error) {
	if err := createKeyFile(path); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s: must hold a PEM block", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: must hold a PKCS#8 private key", path)
	}
	private, isECDSA := parsed.(*ecdsa.PrivateKey)
	if !isECDSA || private.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s: must hold a P-256 key", path)
	}
	return newKeyFile(private)
}

func newKeyFile(private *ecdsa.PrivateKey) (*KeyFile, error) {
	point, err := private.PublicKey.Bytes() // 0x04, X, Y
	if err != nil {
		return nil, err
	}
	x, y := base64.RawURLEncoding.EncodeToString(point[1:33]), base64.RawURLEncoding.EncodeToString(point[33:])
	sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, x, y))
	id := base64.RawURLEncoding.EncodeToString(sum[:])
	return &KeyFile{private: private, id: id, public: jwk{
		KeyType: "EC", Curve: "P-256", X: x, Y: y, ID: id, Algorithm: "ES256", Use: "sig",
	}}, nil
}

// createKeyFile links a complete file to its name, so that neither a crash nor two concurrent
// processes leave a partial key. It never replaces one.
func createKeyFile(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(path), ".key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	defer temp.Close()
	if err := pem.Encode(temp, &pem.Block{Type: "PRIVATE KEY", Bytes: der}); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	if err := os.Link(temp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// JWKS is the public half as a JWK Set (RFC 7517 §5).
func (k *KeyFile) JWKS() ([]byte, error) { return json.Marshal(map[string][]jwk{"keys": {k.public}}) }

// Sign returns a compact JWS (RFC 7515 §3.1) of the claims.
func (k *KeyFile) Sign(typ string, claims map[string]any) (string, error) {
	header, err := json.Marshal(map[string]string{"alg": "ES256", "kid": k.id, "typ": typ})
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	input := encode(header) + "." + encode(payload)
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, k.private, digest[:])
	if err != nil {
		return "", err
	}
	var signature [64]byte // RFC 7518 §3.4: R and S, 32 bytes each
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return input + "." + encode(signature[:]), nil
}
