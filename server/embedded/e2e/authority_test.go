package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority is the certificate authority of one run of the tests.
var authority struct {
	file        string // its certificate, in PEM
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// newAuthority makes the authority, and makes this process and the programs that it starts use it
// in place of the system's authorities. It returns the directory to remove at the end.
func newAuthority() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "deputy-e2e-ca-"); err != nil {
		return "", err
	}
	if authority.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return dir, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Deputy's end-to-end tests"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, authority.key.Public(), authority.key)
	if err != nil {
		return dir, err
	}
	if authority.certificate, err = x509.ParseCertificate(der); err != nil {
		return dir, err
	}
	authority.file = filepath.Join(dir, "ca.pem")
	if err := writePEM(authority.file, "CERTIFICATE", der); err != nil {
		return dir, err
	}
	for _, variable := range []string{"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"} {
		if err := os.Setenv(variable, authority.file); err != nil {
			return dir, err
		}
	}
	return dir, nil
}

// certificate makes a server's certificate for this machine's loopback address.
func certificate(t testing.TB) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "127.0.0.1"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, authority.certificate, key.Public(), authority.key)
	check(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	check(t, writePEM(certFile, "CERTIFICATE", der))
	check(t, writePEM(keyFile, "PRIVATE KEY", pkcs8))
	return certFile, keyFile
}

func writePEM(file, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
