package exchange

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/token"
)

// PathStatusLists is where a tenant's status lists are, below its issuer; a list's number follows.
const PathStatusLists = "/oauth2/statuslist/"

// How old a status list may be. Who counts its ttl from its iat hears of every revocation within
// statusTTL; who counts from when it came, within statusTTL and statusFresh.
const (
	statusTTL   = 5 * time.Second
	statusFresh = 2 * time.Second  // a list that is older is not sent, but made anew
	statusLife  = 60 * time.Second // exp is for verifiers that know no ttl
)

// StatusList is a Token Status List of one tenant as it goes out
// (draft-ietf-oauth-status-list §5.1): signed, and for anyone to read.
type StatusList struct {
	Token  string        // of media type application/statuslist+jwt
	MaxAge time.Duration // how long it may be kept from now on; whole seconds
}

// statusURI is the address of the tenant's status list with the given number.
func (t *Tenant) statusURI(list uint64) string {
	return strings.TrimSuffix(t.Issuer, "/") + PathStatusLists + strconv.FormatUint(list, 10)
}

// status is what a token says about where its status is.
func (t *Tenant) status(seq uint64) *delegation.Status {
	list, bit := ledger.StatusPlace(seq)
	return &delegation.Status{Index: uint64(bit), URI: t.statusURI(list)}
}

// StatusList returns one of the tenant's status lists, which says of each live token whether it was
// revoked or voided. It holds every revocation that was acknowledged more than two seconds ago. A list that
// was not begun yet, or whose tokens have all ended, is NotFound; where a list cannot be made in time,
// there is none.
func (e *Engine) StatusList(ctx context.Context, tenantName string, number uint64) (StatusList, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	nothing := delegation.Refuse(delegation.NotFound, "", "there is nothing at this address")
	tenant := e.tenants[tenantName]
	if tenant == nil {
		return StatusList{}, nothing
	}
	if err := e.trusted(); err != nil {
		return StatusList{}, err
	}
	list, err := e.statuses(ctx, tenant.Name, number, statusFresh)
	if errors.Is(err, ledger.ErrNotFound) {
		return StatusList{}, nothing
	}
	if err != nil {
		return StatusList{}, delegation.AsError(err)
	}
	left := list.At.Truncate(time.Second).Add(statusTTL).Sub(e.config.Now()).Truncate(time.Second)
	if left < time.Second { // it took too long to make: the next one takes less
		return StatusList{}, delegation.Unavailable("ledger", errors.New("the status list was too old when it was made"))
	}
	signed, err := e.lists.signed(tenant, number, list)
	if err != nil {
		return StatusList{}, delegation.Refuse(delegation.Internal, "", "internal error: there is no status list").WithCause(err)
	}
	return StatusList{Token: signed, MaxAge: left}, nil
}

// signedLists are the newest signed lists, so that however many ask, each is signed once.
type signedLists struct {
	mu sync.Mutex
	by map[listName]signedList
}

type listName struct {
	tenant string
	number uint64
}

type signedList struct {
	of    *ledger.Statuses
	token string
}

// mostSignedLists bounds the memory; a signed list has at most 30 KB.
const mostSignedLists = 256

// signed signs while it holds the lock: who asks for the same list then needs not sign it again.
func (s *signedLists) signed(t *Tenant, number uint64, list *ledger.Statuses) (string, error) {
	name := listName{t.Name, number}
	s.mu.Lock()
	defer s.mu.Unlock()
	if have, there := s.by[name]; there && have.of == list {
		return have.token, nil
	}
	signed, err := signStatusList(t.Keys, t.Issuer, t.statusURI(number), list)
	if err != nil {
		return "", err
	}
	if s.by == nil || len(s.by) >= mostSignedLists {
		s.by = make(map[listName]signedList)
	}
	s.by[name] = signedList{list, signed}
	return signed, nil
}

// statusListClaims are those of draft-ietf-oauth-status-list §5.1.
type statusListClaims struct {
	Issuer  string      `json:"iss"`
	Subject string      `json:"sub"` // the list's own address
	Iat     int64       `json:"iat"`
	Exp     int64       `json:"exp"`
	TTL     int64       `json:"ttl"` // seconds
	List    statusBytes `json:"status_list"`
}

type statusBytes struct {
	Bits int    `json:"bits"` // per token
	List string `json:"lst"`
}

func signStatusList(keys *token.Keyset, issuer, uri string, list *ledger.Statuses) (string, error) {
	var packed bytes.Buffer
	w, err := zlib.NewWriterLevel(&packed, zlib.BestCompression)
	if err != nil {
		return "", err
	}
	if _, err := w.Write(list.Bits); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	claims, err := json.Marshal(statusListClaims{
		Issuer: issuer, Subject: uri,
		Iat: list.At.Unix(), Exp: list.At.Add(statusLife).Unix(), TTL: int64(statusTTL / time.Second),
		List: statusBytes{Bits: 1, List: base64.RawURLEncoding.EncodeToString(packed.Bytes())},
	})
	if err != nil {
		return "", err
	}
	return keys.SignStatusList(claims)
}
