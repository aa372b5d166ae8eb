package policy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	// changesPage is the number of changes per request: OpenFGA's own default limit.
	changesPage = 100
	// maxChangesPages bounds one reading, which then costs about as much as two BatchChecks. A
	// store with more writes within the overlap is asked directly.
	maxChangesPages = 4
	// maxSkew is how far OpenFGA's clock may differ from this process's. Beyond it the changelog is
	// not used: a window that begins at a wrong time may lack changes.
	maxSkew = 2 * time.Second
)

type changesResponse struct {
	Changes *[]tupleChange `json:"changes"`
	Token   string         `json:"continuation_token"`
}

type tupleChange struct {
	Tuple struct {
		tupleKey  `json:",inline"`
		Condition jsontext.Value `json:"condition"`
	} `json:"tuple_key"`
	Operation string `json:"operation"`
	Timestamp string `json:"timestamp"`
}

// readChanges returns all rows of OpenFGA's changelog from a time on, in its order. It reads until
// a page is empty, which is the only end that the API promises. sent is when the reading began. Any
// doubt is an error, and then nothing is concluded.
func (c *Checker) readChanges(ctx context.Context, sent, since time.Time) ([]change, error) {
	var all []change
	query := url.Values{"page_size": {strconv.Itoa(changesPage)}, "start_time": {since.UTC().Format(time.RFC3339Nano)}}
	for range maxChangesPages + 1 {
		page, token, err := c.changesPage(ctx, sent, query)
		switch {
		case err != nil:
			return nil, err
		case len(page) == 0:
			return all, nil
		case token == "" || token == query.Get("continuation_token"):
			return nil, errors.New("OpenFGA: the changelog has no token for its next page")
		}
		all = append(all, page...)
		query.Del("start_time")
		query.Set("continuation_token", token)
	}
	return nil, errTooManyChanges
}

var errTooManyChanges = fmt.Errorf("OpenFGA: more than %d changes within the overlap", maxChangesPages*changesPage)

func (c *Checker) changesPage(ctx context.Context, sent time.Time, query url.Values) (page []change, token string, err error) {
	began := time.Now()
	defer func() { c.metrics.observe(0, time.Since(began), err) }()
	header, body, err := c.send(ctx, http.MethodGet, "/changes?"+query.Encode(), nil)
	if err != nil {
		return nil, "", err
	}
	if err := sameTime(header.Get("Date"), sent, began, time.Now()); err != nil {
		return nil, "", err
	}
	return decodeChanges(body)
}

// sameTime compares the server's clock with the local one, which may have been set in between. The
// server's Date header is the second in which it answered: after each of the first times and before
// the last one.
func sameTime(date string, reading, sent, received time.Time) error {
	at, err := http.ParseTime(date)
	switch {
	case err != nil:
		return errors.New("OpenFGA: the changelog has no Date header")
	case at.Add(time.Second + maxSkew).Before(sent), at.Add(-maxSkew).After(received):
		return fmt.Errorf("OpenFGA: its clock and the local clock differ by more than %v", maxSkew)
	}
	return nil
}

func decodeChanges(body []byte) ([]change, string, error) {
	var response changesResponse
	if err := json.Unmarshal(body, &response); err != nil {
		return nil, "", fmt.Errorf("OpenFGA: malformed ReadChanges response: %w", err)
	}
	if response.Changes == nil {
		return nil, "", errors.New("OpenFGA: malformed ReadChanges response")
	}
	page := make([]change, len(*response.Changes))
	for i, ch := range *response.Changes {
		page[i] = change{Relation(ch.Tuple.tupleKey), ch.Operation == "TUPLE_OPERATION_DELETE", ch.Timestamp}
		if ch.Tuple.User == "" || ch.Tuple.Relation == "" || ch.Tuple.Object == "" || ch.Timestamp == "" ||
			ch.Operation != "TUPLE_OPERATION_DELETE" && ch.Operation != "TUPLE_OPERATION_WRITE" {
			return nil, "", fmt.Errorf("OpenFGA: change %d of the changelog is malformed", i)
		}
	}
	return page, response.Token, nil
}
