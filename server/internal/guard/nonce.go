package guard

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/base64"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
)

// noncePeriod is how long a nonce is the one that is given out; it is accepted for as long again.
const noncePeriod = 2 * time.Minute

// nonces keeps one nonce for each period, whichever instance asks first.
//
//go:embed nonces.lua
var noncesSource string

var nonces = redis.NewScript(noncesSource)

// Nonces are what a DPoP proof may hold now (RFC 9449 section 8): the nonce of this period, which is the
// one to give out, and where somebody asked for it that of the period before. All instances give and take
// the same ones. They are made of 128 random bits each, tell nothing, and may be known to everybody; after
// a loss of Redis new ones are made, and clients are told. The error is unavailable.
func (g *Guard) Nonces(ctx context.Context, tenant string) (_ []string, err error) {
	defer g.observe("nonces", time.Now(), &err)
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	fresh := make([]byte, 16)
	if _, err := rand.Read(fresh); err != nil {
		return nil, delegation.Unavailable("randomness", err)
	}
	period := g.now().UnixNano() / int64(noncePeriod)
	keys := []string{key(tenant, "nonce", strconv.FormatInt(period, 10)), key(tenant, "nonce", strconv.FormatInt(period-1, 10))}
	known, err := nonces.Run(ctx, g.client, keys, base64.RawURLEncoding.EncodeToString(fresh), (2 * noncePeriod).Milliseconds()).StringSlice()
	if err != nil {
		return nil, delegation.Unavailable(dependency, err)
	}
	if len(known) == 0 || len(known) > len(keys) || known[0] == "" {
		return nil, delegation.Unavailable(dependency, fmt.Errorf("%d nonces were answered", len(known)))
	}
	return known, nil
}
