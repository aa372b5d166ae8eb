package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"

	"deputy.example/deputy/client"
)

// thumbprintOf returns the thumbprint of the key or the certificate in a file, and the member of
// cnf that holds it.
func thumbprintOf(path string) (kind, thumbprint string, err error) {
	document, err := os.ReadFile(path)
	if err != nil {
		return "", "", err
	}
	if block, _ := pem.Decode(document); block != nil && block.Type == "CERTIFICATE" {
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "", "", fmt.Errorf("%s: %w", path, err)
		}
		sum := sha256.Sum256(block.Bytes)
		return "x5t#S256", base64.RawURLEncoding.EncodeToString(sum[:]), nil
	}
	key, err := client.LoadKey(path)
	if err != nil {
		return "", "", err
	}
	return "jkt", key.Thumbprint(), nil
}

// tlsConfig is the TLS configuration of the flags; nil if none is set. The certificate is read again
// for every connection, so that a renewed one is used.
func (f serverFlags) tlsConfig() (*tls.Config, error) {
	if f.CAFile == "" && f.TLSCert == "" && f.TLSKey == "" {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CAFile != "" {
		pem, err := os.ReadFile(f.CAFile)
		if err != nil {
			return nil, usage("--ca-file: %v", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usage("--ca-file: %s holds no certificate in PEM", f.CAFile)
		}
	}
	if f.TLSCert == "" && f.TLSKey == "" {
		return config, nil
	}
	if f.TLSCert == "" || f.TLSKey == "" {
		return nil, usage("a client certificate needs both --tls-cert and --tls-key")
	}
	if _, err := tls.LoadX509KeyPair(f.TLSCert, f.TLSKey); err != nil {
		return nil, usage("--tls-cert, --tls-key: %v", err)
	}
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		certificate, err := tls.LoadX509KeyPair(f.TLSCert, f.TLSKey)
		return &certificate, err
	}
	return config, nil
}
