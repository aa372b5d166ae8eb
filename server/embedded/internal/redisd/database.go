package redisd

import (
	"strconv"
	"time"
)

// database is the keys. Its methods are called with the server's lock held.
type database struct {
	now      func() time.Time
	keys     map[string]*value
	expiring map[int64][]string // by the second in which they do, at the earliest
	swept    int64              // the second up to which that was looked at
}

type kind string

const (
	none   kind = "none"
	text   kind = "string"
	hashes kind = "hash"
	series kind = "list"
	stream kind = "stream"
)

// value is what a key holds: what belongs to its kind, and nothing else.
type value struct {
	kind    kind
	text    string
	hash    hash
	list    []string
	events  []event
	expires time.Time // zero: never
	listed  int64     // the last second in expiring that holds the key
}

// get returns what a key holds, or nil.
func (d *database) get(key string) *value {
	v := d.keys[key]
	if v != nil && !v.expires.IsZero() && !d.now().Before(v.expires) {
		delete(d.keys, key)
		return nil
	}
	return v
}

func (d *database) kindOf(key string) kind {
	if v := d.get(key); v != nil {
		return v.kind
	}
	return none
}

// wrongType is Redis's error for a command that does not fit the key's value.
type wrongType struct{}

func (wrongType) Error() string {
	return "WRONGTYPE Operation against a key holding the wrong kind of value"
}

// of returns what a key holds if it is of that kind, nil if there is none.
func (d *database) of(key string, k kind) (*value, error) {
	v := d.get(key)
	if v != nil && v.kind != k {
		return nil, wrongType{}
	}
	return v, nil
}

// make is of, and makes an empty one that never expires.
func (d *database) make(key string, k kind) (*value, error) {
	v, err := d.of(key, k)
	if v == nil && err == nil {
		v = &value{kind: k}
		d.keys[key] = v
	}
	return v, err
}

// set puts a text in the place of whatever is there. A life of 0 has no end.
func (d *database) set(key, s string, life time.Duration) {
	v := d.keys[key]
	if v == nil || v.kind != text {
		v = &value{kind: text}
		d.keys[key] = v
	}
	v.text = s
	d.expire(key, v, life)
}

// expire sets the life of a key, or none. A read checks it; a sweep removes keys that are not read.
func (d *database) expire(key string, v *value, life time.Duration) {
	if life <= 0 {
		v.expires = time.Time{}
		return
	}
	now := d.now()
	v.expires = now.Add(life)
	d.sweep(now)
	if second := v.expires.Unix() + 1; v.listed != second {
		v.listed = second
		d.expiring[second] = append(d.expiring[second], key)
	}
}

// sweep deletes what has expired, once in a second.
func (d *database) sweep(now time.Time) {
	if d.swept == now.Unix() {
		return
	}
	d.swept = now.Unix()
	for second, keys := range d.expiring {
		if second > d.swept {
			continue
		}
		delete(d.expiring, second)
		for _, key := range keys {
			d.get(key) // which deletes it, unless it lives longer by now
		}
	}
}

// left is the result of PTTL: milliseconds, -1 without end, -2 for a missing key.
func (d *database) left(key string) int64 {
	v := d.get(key)
	switch {
	case v == nil:
		return -2
	case v.expires.IsZero():
		return -1
	}
	return max(v.expires.Sub(d.now()).Milliseconds(), 1)
}

// field returns a field of a hash, and whether it is there.
func (d *database) field(key, name string) (string, bool, error) {
	v, err := d.of(key, hashes)
	if v == nil || err != nil {
		return "", false, err
	}
	s, there := v.hash.get(name)
	return s, there, nil
}

// hash is fields in an order that lets [hash.scan] go through them while they change.
type hash struct {
	at    map[string]int
	pairs []pair
}

type pair struct{ name, value string }

func (h *hash) get(name string) (string, bool) {
	i, there := h.at[name]
	if !there {
		return "", false
	}
	return h.pairs[i].value, true
}

// set returns whether the field is new.
func (h *hash) set(name, value string) bool {
	if i, there := h.at[name]; there {
		h.pairs[i].value = value
		return false
	}
	if h.at == nil {
		h.at = make(map[string]int)
	}
	h.at[name] = len(h.pairs)
	h.pairs = append(h.pairs, pair{name, value})
	return true
}

// delete puts the last field in the place of the deleted one.
func (h *hash) delete(name string) bool {
	i, there := h.at[name]
	if !there {
		return false
	}
	last := len(h.pairs) - 1
	h.pairs[i] = h.pairs[last]
	h.at[h.pairs[i].name] = i
	delete(h.at, name)
	h.pairs[last] = pair{}
	h.pairs = h.pairs[:last]
	return true
}

// scan returns some fields and where to go on, 0 at the end. It goes from the last to the first:
// what moves to the place of something deleted comes from behind, where it was seen, or stays
// before the cursor. So no field is missed that was there all the time.
func (h *hash) scan(cursor, count int) ([]pair, int) {
	end := len(h.pairs)
	if cursor > 0 {
		end = min(cursor, end)
	}
	from := max(end-count, 0)
	return h.pairs[from:end], from
}

// event is an entry of a stream: its id, then names and values.
type event struct {
	id     string
	fields []string
}

// streamLength is how many events a stream keeps. It is cut when it holds twice as many, as Redis
// does with ~.
const streamLength, streamSlack = 10_000, 100

// append gives an event the next id, which never goes back.
func (v *value) append(now time.Time, fields []string) {
	ms, n := now.UnixMilli(), 0
	if len(v.events) > 0 {
		var lastMs int64
		var lastN int
		lastMs, lastN = parseID(v.events[len(v.events)-1].id)
		if ms <= lastMs {
			ms, n = lastMs, lastN+1
		}
	}
	v.events = append(v.events, event{strconv.FormatInt(ms, 10) + "-" + strconv.Itoa(n), fields})
	if len(v.events) > streamLength+streamSlack {
		v.events = append([]event(nil), v.events[len(v.events)-streamLength:]...)
	}
}
