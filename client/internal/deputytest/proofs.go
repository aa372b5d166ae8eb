package deputytest

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
)

// proofs is what the server knows of the proofs that calls came with. It judges them as Deputy does.
type proofs struct {
	nonces []string
	good   []Proof
	used   map[[2]string]bool
}

// Proof is a DPoP proof that a call came with and that was good.
type Proof struct {
	dpop.Proof
	Method string // the full name of the method
}

// WantNonce makes the server take only proofs with this nonce from now on; "" takes any.
func (s *Server) WantNonce(nonce string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proofs.nonces = nil; nonce != "" {
		s.proofs.nonces = []string{nonce}
	}
}

// Proofs are the good ones that came, in their order.
func (s *Server) Proofs() []Proof {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.proofs.good)
}

// judge returns what the caller proves possession of, under the server's lock.
func (p *proofs) judge(ctx context.Context, scheme, credential string) (delegation.Confirmation, error) {
	values := metadata.ValueFromIncomingContext(ctx, "dpop")
	if len(values) == 0 {
		return held(ctx), nil
	}
	proof, err := verifyProof(ctx, scheme, credential, p.nonces)
	identity := [2]string{proof.Thumbprint, proof.ID}
	switch {
	case errors.Is(err, dpop.ErrNonce):
		return delegation.Confirmation{}, delegation.Refuse(delegation.ProofNonceNeeded, "dpop", "make a new proof with the nonce").
			WithMetadata(delegation.MetadataNonce, p.nonces[0])
	case err != nil:
		return delegation.Confirmation{}, delegation.Refuse(delegation.ProofInvalid, "dpop", "the DPoP proof is refused: %v", err)
	case p.used[identity]:
		return delegation.Confirmation{}, delegation.Refuse(delegation.ProofReplayed, "dpop", "the DPoP proof was used before")
	}
	if p.used == nil {
		p.used = make(map[[2]string]bool)
	}
	p.used[identity] = true
	method, _ := grpc.Method(ctx)
	p.good = append(p.good, Proof{proof, method})
	return delegation.Confirmation{JKT: proof.Thumbprint}, nil
}

func verifyProof(ctx context.Context, scheme, credential string, nonces []string) (dpop.Proof, error) {
	values, authority := metadata.ValueFromIncomingContext(ctx, "dpop"), metadata.ValueFromIncomingContext(ctx, ":authority")
	method, known := grpc.Method(ctx)
	if len(values) != 1 || len(authority) != 1 || !known {
		return dpop.Proof{}, errors.New("not one proof, or no address")
	}
	want := dpop.Expectation{
		Method: "POST", URI: dpop.CallURI(authority[0], method), Nonces: nonces, Now: time.Now(), Skew: 10 * time.Second,
	}
	if scheme == "DPoP" {
		want.AccessToken = credential
	}
	return dpop.Verify(values[0], want)
}

// held is what a call that was let in shows: the key of its proof, or else its certificate.
func held(ctx context.Context) delegation.Confirmation {
	if proof, err := verifyProof(ctx, "", "", nil); err == nil {
		return delegation.Confirmation{JKT: proof.Thumbprint}
	}
	caller, known := peer.FromContext(ctx)
	if !known {
		return delegation.Confirmation{}
	}
	info, ok := caller.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return delegation.Confirmation{}
	}
	sum := sha256.Sum256(info.State.PeerCertificates[0].Raw)
	return delegation.Confirmation{X5T: base64.RawURLEncoding.EncodeToString(sum[:])}
}
