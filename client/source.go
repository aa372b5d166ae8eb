package client

import (
	"context"
	"crypto"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
)

// Credential returns the JWT that authenticates the caller. It is called for every attempt of every
// call and may be called concurrently. It can be used as gRPC per-RPC credentials by itself: then
// it requires TLS and sends every credential as a Bearer token.
type Credential func(context.Context) (string, error)

var _ credentials.PerRPCCredentials = Credential(nil)

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (c Credential) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, err := c.token(ctx)
	if err != nil {
		return nil, err
	}
	return map[string]string{metadataAuthorization: schemeBearer + " " + token}, nil
}

func (c Credential) token(ctx context.Context) (string, error) {
	token, err := c(ctx)
	if err == nil && token == "" {
		err = errors.New("the credential is empty")
	}
	if err != nil {
		return "", delegation.Refuse(delegation.ClientUnauthenticated, "", "no credential to call with: %v", err).WithCause(err)
	}
	return token, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (Credential) RequireTransportSecurity() bool { return true }

// Key is a private signing key, held locally or, as a crypto.Signer, in a KMS or an HSM.
type Key struct {
	signer    crypto.Signer
	algorithm string
	id        string
}

// NewKey wraps a P-256, Ed25519 or RSA key (2048 bits or more) for ES256, EdDSA or RS256. id is the
// kid that the key is registered under; "" means its thumbprint.
func NewKey(signer crypto.Signer, id string) (*Key, error) {
	if signer == nil {
		return nil, errors.New("deputy client: the key is missing")
	}
	algorithm, err := algorithmOf(signer.Public())
	if err != nil {
		return nil, fmt.Errorf("deputy client: %w", err)
	}
	key := &Key{signer: signer, algorithm: algorithm, id: id}
	if key.id == "" {
		key.id, err = thumbprint(signer.Public())
	}
	return key, err
}

// LoadKey reads a private key from a file: one JWK, or PEM (PKCS #8, PKCS #1, SEC 1).
func LoadKey(path string) (*Key, error) {
	document, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("deputy client: %w", err)
	}
	signer, id, err := parsePrivateKey(document)
	if err != nil {
		return nil, fmt.Errorf("deputy client: %s: %w", path, err)
	}
	key, err := NewKey(signer, id)
	if err != nil {
		return nil, fmt.Errorf("deputy client: %s: %w", path, err)
	}
	return key, nil
}

// ID returns the kid of the key.
func (k *Key) ID() string { return k.id }

// Thumbprint returns the RFC 7638 SHA-256 thumbprint, in the form of Child.Confirmation.
func (k *Key) Thumbprint() string {
	sum, err := thumbprint(k.signer.Public())
	if err != nil {
		panic("deputy client: a key that NewKey accepted has no thumbprint: " + err.Error())
	}
	return sum
}

// ProofKey returns the same key as one that makes DPoP proofs, for Config.ProofKey and
// PresenterConfig.ProofKey. The thumbprint stays the same. RSA keys of more than 4096 bits make no
// proofs.
func (k *Key) ProofKey() (*dpop.Key, error) {
	key, err := dpop.NewKey(k.signer)
	if err != nil {
		return nil, fmt.Errorf("deputy client: key %s: %w", k.id, err)
	}
	return key, nil
}

// Format implements fmt.Formatter: a key prints as its kid.
func (k *Key) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "key %s", k.id) }

// AssertionConfig describes private_key_jwt assertions (RFC 7523 §3).
type AssertionConfig struct {
	// Issuer of the Deputy tenant: the exact audience of the assertion. Required.
	Issuer string
	// ClientID names the caller: issuer and subject of the assertion. Required.
	ClientID string
	// Key signs the assertion. Required.
	Key *Key
	// Lifetime of one assertion: at most 60 s. Default: 30 s.
	Lifetime time.Duration
	// Now is the clock. Default: time.Now.
	Now func() time.Time
	// Rand is the source of random bytes for each jti. Default: crypto/rand.Reader.
	Rand io.Reader
}

const maxAssertionLifetime = time.Minute

// NewAssertion makes a Credential that signs a new assertion, with its own jti, for each call.
func NewAssertion(cfg AssertionConfig) (Credential, error) {
	switch {
	case cfg.Issuer == "":
		return nil, errors.New("deputy client: assertion: Issuer is missing")
	case cfg.ClientID == "":
		return nil, errors.New("deputy client: assertion: ClientID is missing")
	case cfg.Key == nil:
		return nil, errors.New("deputy client: assertion: Key is missing")
	case cfg.Lifetime < 0 || cfg.Lifetime > maxAssertionLifetime || cfg.Lifetime%time.Second != 0:
		return nil, fmt.Errorf("deputy client: assertion: Lifetime must be whole seconds up to %v", maxAssertionLifetime)
	}
	if cfg.Lifetime == 0 {
		cfg.Lifetime = 30 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	return func(context.Context) (string, error) { return cfg.assertion() }, nil
}

func (cfg AssertionConfig) assertion() (string, error) {
	id, err := newKey(cfg.Rand)
	if err != nil {
		return "", err
	}
	now := cfg.Now()
	return cfg.Key.signJWT(struct {
		Issuer    string `json:"iss"`
		Subject   string `json:"sub"`
		Audience  string `json:"aud"`
		IssuedAt  int64  `json:"iat"`
		ExpiresAt int64  `json:"exp"`
		ID        string `json:"jti"`
	}{cfg.ClientID, cfg.ClientID, cfg.Issuer, now.Unix(), now.Add(cfg.Lifetime).Unix(), id})
}

func (k *Key) signJWT(claims any) (string, error) {
	header, err := json.Marshal(struct {
		Algorithm string `json:"alg"`
		Type      string `json:"typ"`
		KeyID     string `json:"kid"`
	}{k.algorithm, "JWT", k.id})
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	input := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(payload)
	signature, err := sign(k.algorithm, k.signer, input)
	if err != nil {
		return "", fmt.Errorf("signing with key %s: %w", k.id, err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// WorkloadFile makes a Credential from a file that holds a workload JWT of caller audience, such as
// a projected Kubernetes service account token. The file is read each time, so a rotation needs no
// signal. A text without the form of a token is refused before it is sent.
func WorkloadFile(path string) Credential {
	return func(context.Context) (string, error) {
		content, err := readBounded(path)
		if err != nil {
			return "", err
		}
		token := strings.TrimSpace(string(content))
		if _, err := delegation.Parse(token); err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		return token, nil
	}
}

// readBounded reads a small file: keys and tokens are at most as long as a token may be, plus white
// space and PEM armor.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const most = 2 * delegation.MaxTokenBytes
	content, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if len(content) > most {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, most)
	}
	return content, nil
}

// TokenSource keeps one derived token in memory and replaces it shortly before it expires.
// Concurrent callers share one exchange. It is safe for concurrent use.
type TokenSource struct {
	client  *Client
	request func(context.Context) (ExchangeRequest, error)

	mu      sync.Mutex
	token   *Token        // the newest grant, or nil
	renewAt time.Duration // age of the token at which it is replaced
	renewal flight[*Token]
}

// TokenSource makes a source of tokens for one purpose. request is called before each exchange,
// because the subject token has to be renewed too. Its context does not end with the context of a
// caller, so it must return by itself. It should leave IdempotencyKey empty.
func (c *Client) TokenSource(request func(context.Context) (ExchangeRequest, error)) *TokenSource {
	return &TokenSource{client: c, request: request}
}

// Token returns a token that has not expired. Within the last fifth of its life, or its last
// minute, a token is replaced. If the replacement fails for another reason than a refusal, the old
// token is returned until it expires, by the wall clock or by the monotonic clock, whichever is
// first. A refusal ends the use of the old token at once: it may have been revoked.
func (s *TokenSource) Token(ctx context.Context) (*Token, error) {
	token, fresh := s.held()
	if fresh {
		return token, nil
	}
	renewed, err := s.renewal.do(ctx, s.renew)
	if err == nil {
		return renewed, nil
	}
	if refused(err) {
		s.forget(token)
		return nil, err
	}
	if token != nil && s.client.clock.now().since(token.asked) < token.life {
		return token, nil
	}
	return nil, err
}

// held returns the token in memory, and whether it is too young to be replaced.
func (s *TokenSource) held() (token *Token, fresh bool) {
	now := s.client.clock.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token, s.token != nil && now.since(s.token.asked) < s.renewAt
}

func (s *TokenSource) renew(ctx context.Context) (*Token, error) {
	// A caller that looked just before an earlier renewal ended finds its token here.
	if token, fresh := s.held(); fresh {
		return token, nil
	}
	request, err := s.request(ctx)
	if err != nil {
		return nil, err
	}
	token, err := s.client.Exchange(ctx, request)
	if err != nil {
		return nil, err
	}
	left := token.life - s.client.clock.now().since(token.asked)
	if left <= 0 {
		return nil, delegation.Unavailable("a token that outlives its own exchange", nil)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token, s.renewAt = token, token.life-renewalMargin(left)
	return token, nil
}

// refused distinguishes Deputy's refusals from all other failures.
func refused(err error) bool {
	var e *delegation.Error
	return errors.As(err, &e) && !e.Temporary() && e.Reason != delegation.Internal
}

// forget drops a token whose renewal was refused, unless another token replaced it meanwhile.
func (s *TokenSource) forget(token *Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token == token {
		s.token = nil
	}
}

// renewalMargin is how long before its expiry a token is replaced: a fifth of its remaining life,
// at most a minute, and up to half as much again. The random part keeps a fleet that started
// together from renewing together.
func renewalMargin(left time.Duration) time.Duration {
	margin := min(left/5, time.Minute)
	return margin + mathrand.N(margin/2+1)
}
