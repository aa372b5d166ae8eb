package exchange_test

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/json"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/ledger"
)

// readList is a status list as a reader of the draft sees it.
type readList struct {
	Iss, Sub      string
	Iat, Exp, TTL int64
	List          struct {
		Bits int
		Lst  string
	} `json:"status_list"`
	bits []byte
}

func (l readList) dead(idx uint64) bool { return l.bits[idx/8]>>(idx%8)&1 == 1 }

func readStatusList(t *testing.T, list exchange.StatusList) readList {
	t.Helper()
	parts := strings.Split(list.Token, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var l readList
	if err := json.Unmarshal(payload, &l); err != nil {
		t.Fatal(err)
	}
	packed, err := base64.RawURLEncoding.DecodeString(l.List.Lst)
	if err != nil {
		t.Fatal(err)
	}
	r, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	if l.bits, err = io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	return l
}

func statusList(t *testing.T, w *exchangetest.World) (exchange.StatusList, readList) {
	t.Helper()
	list, err := w.Engine.StatusList(t.Context(), "default", 0)
	if err != nil {
		t.Fatal(err)
	}
	return list, readStatusList(t, list)
}

// TestStatusList follows a chain from its grants to the revocation of its middle.
func TestStatusList(t *testing.T) {
	keys := &keyClock{}
	w, n, chain := hospitalOf(t, exchangetest.Config{KeysNow: keys.now})
	list, read := statusList(t, w)
	if read.Sub != n.Issuer+"/oauth2/statuslist/0" || read.Iss != n.Issuer || read.TTL != 5 || read.Exp != read.Iat+60 || read.List.Bits != 1 ||
		len(read.bits) != ledger.StatusListSize/8 || list.MaxAge < 4*time.Second || list.MaxAge > 5*time.Second {
		t.Errorf("%+v for %v", read, list.MaxAge)
	}
	for i, g := range chain {
		signed, err := n.Trust.Own(g.AccessToken)
		if err != nil {
			t.Fatal(err)
		}
		if s := signed.Status; s == nil || s.URI != read.Sub || s.Index != g.Entry || *g.Claims.Status != *s || read.dead(s.Index) {
			t.Errorf("grant %d: %+v, answered %+v", i, s, g.Claims.Status)
		}
	}
	if _, err := take(w, t, planner, delegation.Target{Kind: delegation.BanToken, ID: chain[1].Claims.ID}); err != nil {
		t.Fatal(err)
	}
	if again, _ := statusList(t, w); again.Token != list.Token {
		t.Error("within its time a list is made twice")
	}
	w.Clock().Advance(2 * time.Second)
	_, read = statusList(t, w)
	for i, g := range chain {
		if read.dead(g.Claims.Status.Index) != (i > 0) {
			t.Errorf("grant %d: dead %t", i, !(i > 0))
		}
	}
	grant, refusal := w.One(t.Context(), n.Call(t, chain[0].AccessToken, planner, researcher))
	if refusal != nil {
		t.Fatal(refusal)
	}
	if read.dead(grant.Claims.Status.Index) {
		t.Error("a list that is older than a token calls it revoked")
	}
	keys.failSigning(true, func() {})
	if _, refusal := w.One(t.Context(), n.Call(t, chain[0].AccessToken, planner, researcher)); refusal == nil || refusal.Reason != delegation.Internal {
		t.Fatal("signed, or refused before it was recorded:", refusal)
	}
	keys.mend()
	w.Clock().Advance(2 * time.Second)
	_, read = statusList(t, w)
	if seq := grant.Claims.Status.Index; read.dead(seq) || !read.dead(seq+1) || read.dead(seq+2) {
		t.Errorf("alive, voided, void: %t %t %t", read.dead(seq), read.dead(seq+1), read.dead(seq+2))
	}
}

func TestStatusListIsRefused(t *testing.T) {
	w, _, _ := hospital(t)
	for _, c := range []struct {
		tenant string
		number uint64
	}{{"default", 1}, {"default", 1 << 40}, {"other", 0}, {"", 0}} {
		_, err := w.Engine.StatusList(t.Context(), c.tenant, c.number)
		if refusal := delegation.AsError(err); refusal == nil || refusal.Reason != delegation.NotFound {
			t.Errorf("list %d of %q: %v", c.number, c.tenant, err)
		}
	}
	for _, age := range []time.Duration{-time.Second, time.Second, 3 * time.Second, 5 * time.Second, time.Minute} {
		now := w.Clock().Now()
		left, err := exchange.StatusMaxAge(now.Add(-age), now)
		old := age >= 5*time.Second
		if refusal := delegation.AsError(err); old != (refusal != nil) || old && refusal.Reason != delegation.DependencyDown || !old && left > 5*time.Second-age {
			t.Errorf("a list that is %v old: %v, %v", age, left, err)
		}
	}
	if err := w.Ledger.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Engine.StatusList(t.Context(), "default", 0); delegation.AsError(err) == nil || !delegation.AsError(err).Temporary() {
		t.Errorf("without a ledger: %v", err)
	}
}

// TestStatusListIsSignedOnce: all readers get the same bytes.
func TestStatusListIsSignedOnce(t *testing.T) {
	w, _, _ := hospital(t)
	var mu sync.Mutex
	seen := map[string]int{}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			list, err := w.Engine.StatusList(t.Context(), "default", 0)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			seen[list.Token]++
		})
	}
	all.Wait()
	if len(seen) != 1 {
		t.Errorf("%d lists", len(seen))
	}
}
