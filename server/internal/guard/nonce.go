package guard

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"sync"
	"time"

	"deputy.example/deputy/client/delegation"
)

// noncePeriod is how long a nonce is the one that is given out; it is accepted for as long again.
const noncePeriod = 2 * time.Minute

// Nonces returns what a DPoP proof may hold now (RFC 9449 section 8): the nonce of this period, which
// is the one to give out, and that of the period before if an instance gave it out. All instances give
// out and accept the same ones. They are 128 random bits each and no secret. After a loss of Redis new
// ones are made, and clients receive them. The error is unavailable.
func (g *Guard) Nonces(ctx context.Context, tenant string) (_ []string, err error) {
	defer g.observe("nonces", time.Now(), &err)
	ctx, cancel := g.within(ctx)
	defer cancel()
	fresh, err := newNonce()
	if err != nil {
		return nil, err
	}
	period := g.period()
	known, err := g.store.nonces(ctx, tenant, period, fresh)
	if err != nil {
		return nil, unavailable(err)
	}
	g.own.keep(tenant, period, known)
	return known, nil
}

// NoncesOrOwn returns Nonces. While Redis does not answer, or takes more than half of Timeout, it
// returns those that this instance has, with one of its own for each new period: a proof with one of
// them was made for this server a short time ago, as one with a shared nonce is. The error is
// unavailable: there is no randomness.
func (g *Guard) NoncesOrOwn(ctx context.Context, tenant string) ([]string, error) {
	asked, cancel := context.WithTimeout(ctx, g.timeout/2)
	defer cancel()
	if known, err := g.Nonces(asked, tenant); err == nil {
		return known, nil
	}
	fresh, err := newNonce()
	if err != nil {
		return nil, err
	}
	return g.own.of(tenant, g.period(), fresh), nil
}

func (g *Guard) period() int64 { return g.now().UnixNano() / int64(noncePeriod) }

func newNonce() (string, error) {
	fresh := make([]byte, 16)
	if _, err := rand.Read(fresh); err != nil {
		return "", delegation.Unavailable("randomness", err)
	}
	return base64.RawURLEncoding.EncodeToString(fresh), nil
}

// ownNonces are what an instance accepts while Redis does not answer: for each tenant those of one period.
type ownNonces struct {
	mu      sync.Mutex
	tenants map[string]periodNonces
}

type periodNonces struct {
	period int64
	known  []string // as Nonces returns them
}

func (n *ownNonces) keep(tenant string, period int64, known []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.put(tenant, period, known)
}

func (n *ownNonces) put(tenant string, period int64, known []string) {
	if n.tenants == nil {
		n.tenants = make(map[string]periodNonces)
	}
	n.tenants[tenant] = periodNonces{period, known}
}

// of returns the tenant's nonces of a period, which begins with the fresh one if it is new.
func (n *ownNonces) of(tenant string, period int64, fresh string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	last, there := n.tenants[tenant]
	known := []string{fresh}
	switch {
	case there && last.period == period:
		return last.known
	case there && last.period == period-1:
		known = append(known, last.known[0])
	}
	n.put(tenant, period, known)
	return known
}
