package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/server/internal/testservers"
)

const (
	staleAfter  = 3 * time.Second  // the verifiers' own bound here
	revokedIn   = 10 * time.Second // the guarantee at a cut-off verifier; only this is asserted
	howManyHear = 50
)

// following returns verifiers that follow revocations, alternately at the instances.
func (d *deployment) following(n int, instances ...*instance) []*client.Verifier {
	d.t.Helper()
	var clients []*client.Client
	for _, i := range instances {
		clients = append(clients, d.as(i, planner))
	}
	all := make([]*client.Verifier, n)
	for k := range all {
		v, err := client.NewVerifier(client.VerifierConfig{
			Issuer: d.issuer, Audience: calendarAudience, JWKS: d.jwks(instances[0]),
			Client: clients[k%len(clients)], MaxStaleness: staleAfter,
		})
		check(d.t, err)
		d.t.Cleanup(func() { check(d.t, v.Close()) })
		all[k] = v
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), 30*time.Second)
	defer cancel()
	for _, v := range all {
		check(d.t, v.Ready(ctx))
	}
	return all
}

// access returns the code of a verifier's refusal.
func access(err error) client.AccessCode {
	var refusal *client.AccessError
	if !errors.As(err, &refusal) {
		return ""
	}
	return refusal.Code
}

// TestRevocationReachesVerifiers measures how long after its acknowledgement fifty verifiers at two
// instances have applied a revocation. Then it cuts the instances off from their ledger.
func TestRevocationReachesVerifiers(t *testing.T) {
	redis, postgres := testservers.NewRedis(t), testservers.NewPostgres(t)
	d := deploy(t, plan{redis: redis.Addr, database: postgres.DSN, prompt: true})
	one, two := d.start(), d.start()
	asPlanner := d.as(one, planner)
	verifiers := d.following(howManyHear, one, two)

	var mu sync.Mutex
	var all []time.Duration
	rounds := testservers.Campaign(200, 8)
	for range rounds {
		token, err := asPlanner.Exchange(t.Context(), stepIn(d.root()))
		check(t, err)
		for _, v := range verifiers {
			_, err := v.Verify(t.Context(), token.AccessToken.Reveal())
			check(t, err)
		}
		_, err = asPlanner.Revoke(t.Context(), client.RevokeRequest{Target: client.RevokeToken(token.AccessToken), Reason: "measured"})
		acknowledged := time.Now()
		check(t, err)
		var hearing sync.WaitGroup
		for _, v := range verifiers {
			hearing.Go(func() {
				for time.Since(acknowledged) < revokedIn {
					_, err := v.Verify(t.Context(), token.AccessToken.Reveal())
					if err == nil {
						<-time.After(time.Millisecond)
						continue
					}
					if code := access(err); code != client.AccessInvalidToken {
						t.Errorf("refused for another reason: %v", err)
					}
					mu.Lock()
					all = append(all, time.Since(acknowledged))
					mu.Unlock()
					return
				}
				t.Errorf("accepted %v after the acknowledgement", revokedIn)
			})
		}
		hearing.Wait()
		// The control: a verifier that follows no revocations still accepts the token.
		_, err = d.verifier(one).Verify(t.Context(), token.AccessToken.Reveal())
		check(t, err)
	}
	for k, v := range verifiers {
		if s := v.Status(); s.Clock != nil || s.Offset.Abs() > 5*time.Second {
			t.Errorf("verifier %d: offset %v from the ledger's time: %v", k, s.Offset, s.Clock)
		}
	}
	slices.Sort(all)
	if len(all) == 0 {
		t.Fatal("nothing was measured")
	}
	t.Logf("%d revocations at %d verifiers: acknowledged to refused p50 %v, p99 %v, max %v",
		rounds, len(verifiers), all[len(all)/2], all[len(all)*99/100], all[len(all)-1])

	token, err := asPlanner.Exchange(t.Context(), stepIn(d.root()))
	check(t, err)
	postgres.Pause()
	cut := time.Now()
	eventually(t, revokedIn, func() error {
		for k, v := range verifiers {
			_, err := v.Verify(t.Context(), token.AccessToken.Reveal())
			if err == nil || access(err) != client.AccessUnavailable || v.Status().Healthy {
				return fmt.Errorf("verifier %d, its instance cut off from the ledger: %w, healthy %t", k, err, v.Status().Healthy)
			}
		}
		return nil
	})
	t.Logf("cut off from the ledger: all refuse after %v", time.Since(cut).Round(time.Millisecond))
	postgres.Resume()
	back := time.Now()
	eventually(t, revokedIn, func() error {
		for k, v := range verifiers {
			if _, err := v.Verify(t.Context(), token.AccessToken.Reveal()); err != nil {
				return fmt.Errorf("verifier %d, its instance's ledger back: %w", k, err)
			}
		}
		return nil
	})
	t.Logf("and accept again %v after it is back", time.Since(back).Round(time.Millisecond))
}
