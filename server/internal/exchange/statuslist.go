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

// PathStatusLists is the path of a tenant's status lists, below its issuer. A list's number
// follows.
const PathStatusLists = "/oauth2/statuslist/"

// The age of status lists. A verifier that counts ttl from iat applies each revocation within
// statusTTL. One that counts it from the receipt applies it within statusTTL and statusFresh.
const (
	statusTTL   = 5 * time.Second
	statusFresh = 2 * time.Second  // an older list is not sent, but rebuilt
	statusLife  = 60 * time.Second // exp is for verifiers that do not support ttl
)

// StatusList is a signed Token Status List of one tenant (draft-ietf-oauth-status-list §5.1). Its
// readers need no authentication.
type StatusList struct {
	Token  string        // of media type application/statuslist+jwt
	MaxAge time.Duration // how long it may be cached from now on; whole seconds
}

// statusURI is the address of the tenant's status list with the given number.
func (t *Tenant) statusURI(list uint64) string {
	return strings.TrimSuffix(t.Issuer, "/") + PathStatusLists + strconv.FormatUint(list, 10)
}

// status is the claim of a token that names the place of its status.
func (t *Tenant) status(seq uint64) *delegation.Status {
	list, bit := ledger.StatusPlace(seq)
	return &delegation.Status{Index: uint64(bit), URI: t.statusURI(list)}
}

// StatusList returns one of the tenant's status lists, which holds for each live token whether it
// was revoked or voided. It includes each revocation that was acknowledged more than two seconds
// ago. The error is NotFound for a list that has not begun, or whose tokens have all expired. It is
// DependencyDown if a list cannot be made in time.
func (e *Engine) StatusList(ctx context.Context, tenantName string, number uint64) (StatusList, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	nothing := delegation.Refuse(delegation.NotFound, "", "there is nothing at this address")
	tenant := e.tenants[tenantName]
	if tenant == nil {
		return StatusList{}, nothing
	}
	if err := e.serving(ctx, tenant.Name); err != nil {
		return StatusList{}, err
	}
	list, err := e.config.Ledger.Statuses(ctx, tenant.Name, number, statusFresh)
	if errors.Is(err, ledger.ErrNotFound) {
		return StatusList{}, nothing
	}
	if err != nil {
		return StatusList{}, delegation.AsError(err)
	}
	left, err := statusMaxAge(list.At, e.config.Now())
	if err != nil {
		return StatusList{}, err
	}
	signed, err := e.lists.signed(tenant, number, list)
	if err != nil {
		return StatusList{}, delegation.Refuse(delegation.Internal, "", "internal error: there is no status list").WithCause(err)
	}
	return StatusList{Token: signed, MaxAge: left}, nil
}

// statusMaxAge returns how long a status list of time at may still be kept. A list that took too long
// to make is an error: the next one takes less.
func statusMaxAge(at, now time.Time) (time.Duration, error) {
	left := at.Truncate(time.Second).Add(statusTTL).Sub(now).Truncate(time.Second)
	if left < time.Second {
		return 0, delegation.Unavailable("ledger", errors.New("the status list was too old when it was made"))
	}
	return left, nil
}

// signedLists are the newest signed lists, so that each list is signed once for any number of
// readers.
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

// mostSignedLists bounds the memory: a signed list has at most 30 KB.
const mostSignedLists = 256

// signed signs while it holds the lock, so that concurrent readers of a list share one signature.
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

// statusListClaims are the claims of draft-ietf-oauth-status-list §5.1.
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
