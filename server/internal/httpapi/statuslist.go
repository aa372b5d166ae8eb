package httpapi

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

const mediaTypeStatusList = "application/statuslist+jwt"

// statusListEndpoint serves the tenant's Token Status Lists to any client
// (draft-ietf-oauth-status-list §8). The lists show, by number alone, which tokens are revoked.
func statusListEndpoint(e Engine, t *Tenant) *endpoint {
	return &endpoint{
		methods: []string{http.MethodGet, http.MethodHead},
		serve: func(w http.ResponseWriter, r *http.Request) error {
			number, err := listNumber(r.URL.EscapedPath())
			if err != nil {
				return err
			}
			// §8.4: the answer would be taken for that of another time.
			if r.URL.Query().Has("time") {
				return delegation.Refuse(delegation.ParameterUnsupported, "time", "there is only the present list")
			}
			list, err := e.StatusList(r.Context(), t.Name, number)
			if err != nil {
				return err
			}
			header := w.Header()
			header.Set("Content-Type", mediaTypeStatusList)
			header.Set("Cache-Control", "public, max-age="+strconv.FormatInt(int64(list.MaxAge/time.Second), 10))
			header.Set("Content-Length", strconv.Itoa(len(list.Token)))
			_, _ = w.Write([]byte(list.Token)) // on an error the client has left
			return nil
		},
	}
}

// listNumber parses the last part of the path. A list has one address, so a number in another
// spelling is refused.
func listNumber(path string) (uint64, error) {
	digits := path[strings.LastIndexByte(path, '/')+1:]
	number, err := strconv.ParseUint(digits, 10, 46) // times 2¹⁷ it is still a number of the ledger
	if err != nil || strconv.FormatUint(number, 10) != digits {
		return 0, notThere(nil, nil)
	}
	return number, nil
}

// find returns the endpoint of a path. The number of a status list is the only part of a path that
// varies.
func (h *handler) find(path string) (*endpoint, bool) {
	if ep, found := h.endpoints[path]; found {
		return ep, true
	}
	if end := strings.LastIndexByte(path, '/') + 1; strings.HasSuffix(path[:end], exchange.PathStatusLists) {
		ep, found := h.endpoints[path[:end]+anyNumber]
		return ep, found
	}
	return nil, false
}

// anyNumber replaces the number in the table of endpoints. No request can contain it, because an
// escaped path holds no braces.
const anyNumber = "{number}"
