package rpc

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"math"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// pages identifies one question. A page token holds the position and this identifier. With another
// question the position would have another meaning, so it is refused. A page token is no secret and
// protects nothing: a caller that makes one up reads only what it may read, from another position.
type pages [16]byte

// pagesOf identifies a question by its method and all its filters.
func pagesOf(method string, filters ...string) pages {
	h := sha256.New()
	for _, field := range append([]string{method}, filters...) {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(field)))
		h.Write(size[:])
		h.Write([]byte(field))
	}
	return pages(h.Sum(nil)[:16])
}

// pagesOfSearch identifies a search by its filters. The size of a page is no filter.
func pagesOfSearch(r *deputyv1.SearchEntriesRequest) pages {
	return pagesOf("SearchEntries", r.GetSubject(), r.GetActor(), r.GetCaller(), r.GetAudience(), r.GetScope(),
		r.GetKind().String(), r.GetOutcome().String(), r.GetReason(), r.GetTraceId(), moment(r.GetFrom()), moment(r.GetUntil()),
		r.GetJti(), r.GetTxn(), r.GetKey(), r.GetPeer())
}

func moment(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Format(time.RFC3339Nano)
}

// token returns the page token of the position; "" at the end.
func (p pages) token(position uint64) string {
	if position == 0 {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64(p[:], position))
}

// position returns the position of the token; 0 without one.
func (p pages) position(token string) (uint64, error) {
	if token == "" {
		return 0, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(raw) != len(p)+8 || subtle.ConstantTimeCompare(raw[:len(p)], p[:]) != 1 {
		return 0, delegation.Refuse(delegation.ParameterInvalid, "page_token", "is not one that this question was answered with: repeat the question as it was")
	}
	position := binary.BigEndian.Uint64(raw[len(p):])
	if position == 0 || position > math.MaxInt64 {
		return 0, delegation.Refuse(delegation.ParameterInvalid, "page_token", "is damaged")
	}
	return position, nil
}

func pageSize(asked uint32, normal, most int) (int, error) {
	switch {
	case asked == 0:
		return normal, nil
	case asked > uint32(most):
		return 0, delegation.Refuse(delegation.ParameterInvalid, "page_size", "at most %s", strconv.Itoa(most))
	}
	return int(asked), nil
}
