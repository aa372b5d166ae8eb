package sim

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"reflect"
	"strings"
	"time"
)

//go:embed costs.json
var defaultCosts []byte

// Cost is what one step takes, and where the figure comes from.
type Cost struct {
	Value    float64 `json:"value"`
	Unit     string  `json:"unit"`     // ms CPU: of one processor; ms: waiting, which keeps no processor busy; bytes
	Measured bool    `json:"measured"` // false: an assumption
	Source   string  `json:"source"`
}

func (c Cost) time() time.Duration { return time.Duration(c.Value * float64(time.Millisecond)) }

// Costs are the inputs of both the model and the simulation. The file costs.json has what each of
// them is, and which are measured.
type Costs struct {
	Front       Cost `json:"front"`        // steps 1 to 4 of an exchange
	PolicyCall  Cost `json:"policy_call"`  // step 5, here
	RowInstance Cost `json:"row_instance"` // step 6, here, while the head is locked
	Mint        Cost `json:"mint"`         // step 7
	BatchChild  Cost `json:"batch_child"`  // a child of a batch, here, instead of all of the above

	RowDatabase Cost `json:"row_database"`
	Transaction Cost `json:"transaction"`
	Read        Cost `json:"read"`
	ReadCall    Cost `json:"read_call"`
	Flush       Cost `json:"flush"`
	HandOver    Cost `json:"hand_over"`
	RoundTrip   Cost `json:"round_trip"`

	RedisCommand Cost `json:"redis_command"`
	RedisCall    Cost `json:"redis_call"`
	Check        Cost `json:"check"`
	Changes      Cost `json:"changes"`

	Event       Cost `json:"event"`
	Echo        Cost `json:"echo"`
	OpenStream  Cost `json:"open_stream"`
	SnapshotRow Cost `json:"snapshot_row"`

	EventBytes       Cost `json:"event_bytes"`
	MarkBytes        Cost `json:"mark_bytes"`
	RowBytes         Cost `json:"row_bytes"`
	RevocationMemory Cost `json:"revocation_memory"`
}

// DefaultCosts are those of costs.json.
func DefaultCosts() Costs {
	c, err := ReadCosts(bytes.NewReader(defaultCosts))
	if err != nil {
		panic("sim: costs.json: " + err.Error()) // it is compiled in, and a test reads it
	}
	return c
}

// ReadCosts reads a file like costs.json. A missing or unknown cost, one that is not above zero,
// and one without a source are errors.
func ReadCosts(r io.Reader) (Costs, error) {
	var c Costs
	decoder := json.NewDecoder(r)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return Costs{}, err
	}
	for name, cost := range c.all() {
		switch {
		case !(cost.Value > 0):
			return Costs{}, fmt.Errorf("%s: must be present, with a value above zero", name)
		case cost.Unit != unitOf(name):
			return Costs{}, fmt.Errorf("%s: unit must be %q", name, unitOf(name))
		case cost.Source == "":
			return Costs{}, fmt.Errorf("%s: must have a source", name)
		}
	}
	return c, nil
}

func unitOf(name string) string {
	switch {
	case strings.HasSuffix(name, "_bytes"), strings.HasSuffix(name, "_memory"):
		return "bytes"
	case name == "flush", name == "hand_over", name == "round_trip":
		return "ms"
	}
	return "ms CPU"
}

// all goes through the costs with their names, in the order of the struct.
func (c Costs) all() iter.Seq2[string, Cost] {
	return func(yield func(string, Cost) bool) {
		v := reflect.ValueOf(c)
		for i := range v.NumField() {
			if !yield(v.Type().Field(i).Tag.Get("json"), v.Field(i).Interface().(Cost)) {
				return
			}
		}
	}
}
