package policy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	openfga "github.com/openfga/go-sdk"
)

// maxResponse bounds how much of one response is read, in bytes. Fifty results with an error text
// each are far below it, and so is the largest model that OpenFGA stores (256 KiB) as JSON.
const maxResponse = 1 << 20

// verdict is OpenFGA's answer to one check. The zero value is "none", so a result that was never
// filled in refuses.
type verdict uint8

const (
	unanswered verdict = iota
	missing
	held
)

// result is a verdict; cause is why there is none.
type result struct {
	verdict verdict
	cause   error
}

// batchRequest is the body of BatchCheck. The SDK's own types for it encode through a map for every
// check.
type batchRequest struct {
	Checks      []batchItem `json:"checks"`
	ModelID     string      `json:"authorization_model_id"`
	Consistency string      `json:"consistency"`
}

type batchItem struct {
	Tuple         tupleKey `json:"tuple_key"`
	CorrelationID string   `json:"correlation_id"`
}

type tupleKey struct {
	User     string `json:"user"`
	Relation string `json:"relation"`
	Object   string `json:"object"`
}

type batchResponse struct {
	Result map[string]batchResult `json:"result"`
}

// batchResult is the outcome of one check. Exactly one of the two members is present.
type batchResult struct {
	Allowed *bool          `json:"allowed"`
	Error   jsontext.Value `json:"error"`
}

// batchCheck asks for all relations in one request and fills in one result for each. A response is
// used as a whole or not at all, except for errors of single checks, which leave only their own
// result unanswered.
func (c *Checker) batchCheck(ctx context.Context, relations []Relation, results []result) {
	if len(relations) == 0 {
		return
	}
	began := time.Now()
	body, err := c.post(ctx, relations)
	if err == nil {
		err = decodeBatch(body, results)
	}
	if err != nil {
		for i := range results {
			results[i] = result{cause: err}
		}
	}
	c.metrics.observe(len(relations), time.Since(began), err)
}

func (c *Checker) post(ctx context.Context, relations []Relation) ([]byte, error) {
	request := batchRequest{
		Checks:      make([]batchItem, len(relations)),
		ModelID:     c.model,
		Consistency: string(openfga.CONSISTENCYPREFERENCE_HIGHER_CONSISTENCY),
	}
	for i, r := range relations {
		request.Checks[i] = batchItem{tupleKey(r), strconv.Itoa(i)}
	}
	return c.execute(ctx, "/batch-check", request)
}

// execute puts one question to the store and returns the raw response.
func (c *Checker) execute(ctx context.Context, path string, question any) ([]byte, error) {
	body, err := json.Marshal(question)
	if err != nil {
		return nil, err
	}
	_, answer, err := c.send(ctx, http.MethodPost, path, body)
	return answer, err
}

// send makes one request to the store's part of the API, once, and accepts only status 200. The
// SDK's path makes half as many allocations again, and its typed decoder accepts duplicate keys,
// and keys in any case.
func (c *Checker) send(ctx context.Context, method, path string, body []byte) (http.Header, []byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.stores+path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	request.Header = c.headers.Clone()
	response, err := c.client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return nil, nil, err
	case response.StatusCode != http.StatusOK:
		return nil, nil, fmt.Errorf("OpenFGA: HTTP status %d: %.500s", response.StatusCode, answer)
	}
	return response.Header, answer, nil
}

// decodeBatch reads the answer to len(results) checks strictly: one JSON object without duplicate
// keys, exactly the correlation ids that were sent, and an explicit answer to each.
func decodeBatch(body []byte, results []result) error {
	var response batchResponse
	if err := json.Unmarshal(body, &response); err != nil {
		return fmt.Errorf("OpenFGA: malformed BatchCheck response: %w", err)
	}
	if len(response.Result) != len(results) {
		return fmt.Errorf("OpenFGA: %d answers to %d checks", len(response.Result), len(results))
	}
	for i := range results {
		r, there := response.Result[strconv.Itoa(i)]
		switch {
		case !there:
			return fmt.Errorf("OpenFGA: check %d has no answer, and a check that was not sent has one", i)
		case r.Error != nil:
			results[i] = result{cause: fmt.Errorf("OpenFGA: check %d failed: %.500s", i, r.Error)}
		case r.Allowed == nil:
			results[i] = result{cause: fmt.Errorf("OpenFGA: check %d has neither an answer nor an error", i)}
		case *r.Allowed:
			results[i] = result{verdict: held}
		default:
			results[i] = result{verdict: missing}
		}
	}
	return nil
}

// boundedTransport limits how much of a response is read, before the SDK reads all of it.
type boundedTransport struct{ next http.RoundTripper }

func (t boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := t.next.RoundTrip(r)
	if err != nil || response == nil || response.Body == nil {
		return response, err // http.Client turns a nil response into an error
	}
	response.Body = &boundedBody{ReadCloser: response.Body, left: maxResponse}
	return response, nil
}

type boundedBody struct {
	io.ReadCloser
	left int
}

var errTooLong = fmt.Errorf("OpenFGA: the answer is longer than %d bytes", maxResponse)

// Read fails at the bound instead of returning EOF: a truncated response must not look complete.
func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLong
	}
	if len(p) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= n
	return n, err
}
