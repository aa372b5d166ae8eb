package embedded

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	openfgav1 "github.com/openfga/api/proto/openfga/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The two requests of an exchange, BatchCheck and ReadChanges, spend more time in the gateway than
// in OpenFGA. So they are decoded here and put to the server directly. A request that is not
// exactly what the policy checker sends, and an unexpected result of the server, go through the
// gateway as if nothing had been asked yet: neither request changes anything.

// batchCheck is the body of BatchCheck as the checker encodes it.
type batchCheck struct {
	Checks []struct {
		Tuple struct {
			User     string `json:"user"`
			Relation string `json:"relation"`
			Object   string `json:"object"`
		} `json:"tuple_key"`
		CorrelationID string `json:"correlation_id"`
	} `json:"checks"`
	ModelID     string `json:"authorization_model_id"`
	Consistency string `json:"consistency"`
}

// serveDirectly writes a response, or nothing. It returns the request for the gateway.
func (f *FGA) serveDirectly(w *responseBuffer, r *http.Request) (*http.Request, error) {
	store, method, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/stores/"), "/")
	switch {
	case r.Method == http.MethodGet && method == "changes":
		f.readChanges(w, r, store)
	case r.Method == http.MethodPost && method == "batch-check" && r.URL.RawQuery == "":
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		f.batchCheck(w, r, store, body)
		whole := *r
		whole.Body = io.NopCloser(bytes.NewReader(body))
		r = &whole
	}
	return r, nil
}

func (f *FGA) batchCheck(w *responseBuffer, r *http.Request, store string, body []byte) {
	var asked batchCheck
	if json.Unmarshal(body, &asked, json.RejectUnknownMembers(true)) != nil {
		return
	}
	consistency, known := openfgav1.ConsistencyPreference_value[asked.Consistency]
	if !known {
		return
	}
	request := &openfgav1.BatchCheckRequest{
		StoreId: store, AuthorizationModelId: asked.ModelID, Consistency: openfgav1.ConsistencyPreference(consistency),
		Checks: make([]*openfgav1.BatchCheckItem, len(asked.Checks)),
	}
	for i, c := range asked.Checks {
		request.Checks[i] = &openfgav1.BatchCheckItem{
			TupleKey:      &openfgav1.CheckRequestTupleKey{User: c.Tuple.User, Relation: c.Tuple.Relation, Object: c.Tuple.Object},
			CorrelationId: c.CorrelationID,
		}
	}
	response, err := f.server.BatchCheck(r.Context(), request)
	if err != nil {
		return
	}
	answer := []byte(`{"result":{`)
	for id, result := range response.GetResult() {
		allowed, is := result.GetCheckResult().(*openfgav1.BatchCheckSingleResult_Allowed)
		if !is {
			return
		}
		if answer[len(answer)-1] != '{' {
			answer = append(answer, ',')
		}
		answer = append(strconv.AppendQuote(answer, id), `:{"allowed":`...) // OpenFGA's ids are letters, digits and dashes
		answer = append(strconv.AppendBool(answer, allowed.Allowed), '}')
	}
	w.write(append(answer, "}}"...))
}

func (f *FGA) readChanges(w *responseBuffer, r *http.Request, store string) {
	request := &openfgav1.ReadChangesRequest{StoreId: store}
	for name, values := range r.URL.Query() {
		var err error
		switch {
		case len(values) != 1:
			return
		case name == "page_size":
			var n int64
			n, err = strconv.ParseInt(values[0], 10, 32)
			request.PageSize = wrapperspb.Int32(int32(n))
		case name == "start_time":
			var at time.Time
			at, err = time.Parse(time.RFC3339Nano, values[0])
			request.StartTime = timestamppb.New(at)
		case name == "continuation_token":
			request.ContinuationToken = values[0]
		default:
			return
		}
		if err != nil {
			return
		}
	}
	response, err := f.server.ReadChanges(r.Context(), request)
	if err != nil || len(response.GetChanges()) > 0 {
		return
	}
	token, err := json.Marshal(response.GetContinuationToken())
	if err != nil {
		return
	}
	w.write(append(append([]byte(`{"changes":[],"continuation_token":`), token...), '}'))
}

func (w *responseBuffer) write(json []byte) {
	w.header.Set("Content-Type", "application/json")
	w.body.Write(json)
}
