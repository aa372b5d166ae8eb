package redisd

import (
	"crypto/sha1"
	"encoding/hex"
	"strconv"
	"strings"
	"time"
)

// script is one of guard's scripts in Go. It must do the same as the Lua in guard; guard's
// conformance suite runs on both.
type script func(s *Server, c *connection, keys, args []string) error

// scripts are keyed by the digest of their Lua. If the Lua changes, change the function here first
// and then the digest: a test compares them, and until then the script is refused.
var scripts = map[string]script{
	"3f592e7c07d276476fa41ef124a14257ae8212c5": admit,
	"245cc479b72eda6cd2250c8a9bc460d7be7a7d53": nonces,
	"c1f34b83105758004722ecdd1d12e5632b81b401": publish,
	"fb332303aa47d0127e956ec366a4c6c2e1ff12e7": claim,
	"b0025db5296f8f18b0c2ee2afd8fdcdfd27c8685": switchOver,
	"3f4388dcaaa59e0309dc41af14cdfbc00fbcd5e9": testify,
}

func evalSHA(s *Server, c *connection, args []string) error {
	run := scripts[strings.ToLower(args[0])]
	if run == nil {
		return failed("NOSCRIPT No matching script. Please use EVAL.")
	}
	n, err := strconv.Atoi(args[1])
	if err != nil || n < 0 || n > len(args)-2 {
		return failed("ERR Number of keys can't be greater than number of args")
	}
	return run(s, c, args[2:2+n], args[2+n:])
}

// eval refuses every script but those, and so nothing runs that was not meant.
func eval(s *Server, c *connection, args []string) error {
	sum := sha1.Sum([]byte(args[0]))
	digest := hex.EncodeToString(sum[:])
	if scripts[digest] == nil {
		return failed("ERR the embedded Redis does not know this script: " + digest)
	}
	return evalSHA(s, c, append([]string{digest}, args[1:]...))
}

// scriptCommand has nothing to load and nothing to flush.
func scriptCommand(_ *Server, c *connection, args []string) error {
	if !strings.EqualFold(args[0], "flush") {
		return syntax
	}
	c.out.status("OK")
	return nil
}

// numbers reads arguments as Lua's tonumber does where the text is a whole number, which all of
// guard's are.
func numbers(args ...string) ([]int64, error) {
	list := make([]int64, len(args))
	for i, a := range args {
		n, err := strconv.ParseInt(a, 10, 64)
		if err != nil || n > 1<<53 || n < -1<<53 {
			return nil, noInteger
		}
		list[i] = n
	}
	return list, nil
}

const badScript = failed("ERR wrong number of keys or arguments for this script")

// admit is admit.lua.
func admit(s *Server, c *connection, keys, args []string) error {
	if len(keys) == 0 || len(args) != len(keys)+2 {
		return badScript
	}
	n, err := numbers(args...)
	if err != nil {
		return err
	}
	rate, burst, cost := n[0], n[1], n[2]
	if rate < 1 || burst < 1 || cost < 1 {
		return noInteger
	}
	replayed := int64(0)
	for i, key := range keys[1:] {
		life := n[3+i]
		switch {
		case life < 1:
			return failed("ERR invalid expire time in 'set' command")
		case s.db.get(key) == nil:
			s.db.set(key, "1", time.Duration(life)*time.Millisecond)
		case replayed == 0:
			replayed = -int64(i + 1)
		}
	}
	if replayed < 0 {
		c.out.integer(replayed)
		return nil
	}
	now := s.db.now().UnixMicro()
	interval := (1_000_000 + rate - 1) / rate
	if burst > 1<<53/interval {
		return noInteger // beyond what the Lua could count
	}
	full := burst * interval
	v, err := s.db.of(keys[0], text)
	if err != nil {
		return err
	}
	tat := now
	if v != nil {
		if tat, err = strconv.ParseInt(v.text, 10, 64); err != nil {
			return noInteger
		}
	}
	tat = min(max(tat, now), now+full)
	next := tat + cost*interval
	if wait := next - full - now; wait > 0 {
		c.out.integer(wait)
		return nil
	}
	s.db.set(keys[0], strconv.FormatInt(next, 10), time.Duration((next-now+999)/1000)*time.Millisecond)
	c.out.integer(0)
	return nil
}

// nonces is nonces.lua.
func nonces(s *Server, c *connection, keys, args []string) error {
	if len(keys) != 2 || len(args) != 2 {
		return badScript
	}
	n, err := numbers(args[1])
	if err != nil || n[0] < 1 {
		return noInteger
	}
	if s.db.get(keys[0]) == nil {
		s.db.set(keys[0], args[0], time.Duration(n[0])*time.Millisecond)
	}
	var known []string
	for _, key := range keys {
		v, err := s.db.of(key, text)
		if err != nil {
			return err
		}
		if v != nil {
			known = append(known, v.text)
		}
	}
	c.out.list(known)
	return nil
}

// publish is publish.lua.
func publish(s *Server, c *connection, keys, args []string) error {
	if len(keys) != 4 || len(args) < 9 || len(args)%2 == 0 {
		return badScript
	}
	n, err := numbers(args[0], args[1], args[3], args[6])
	if err != nil {
		return err
	}
	result, err := s.publishNext(c, keys, args, n[0], n[1], n[2])
	if err != nil {
		return err
	}
	c.out.integer(result)
	return nil
}

func (s *Server) publishNext(c *connection, keys, args []string, seq, prev, ends int64) (int64, error) {
	list, events := s.db.kindOf(keys[0]), s.db.kindOf(keys[1])
	if list != hashes && list != none || events != stream && events != none {
		return -1, nil
	}
	if own, err := numbers(args[6]); err != nil || s.superseded(keys[3], own[0]) {
		return -4, err
	}
	head, err := s.head(keys[0])
	switch {
	case err != nil:
		return -1, nil
	case head >= seq:
		return 0, nil
	case head != prev:
		return -1, nil
	case s.db.get(keys[2]) != nil:
		return -2, nil
	}
	field, suspended := args[2], ""
	if resumed := args[4]; resumed != "" {
		suspended, field = field, resumed
		var ok bool
		if seq, _, ok = s.mark(keys[0], suspended); !ok {
			return -1, nil
		}
	}
	number, end, ok := s.mark(keys[0], field)
	if !ok {
		return -1, nil
	}
	v, err := s.db.make(keys[0], hashes)
	if err != nil {
		return 0, err
	}
	log, err := s.db.make(keys[1], stream)
	if err != nil {
		return 0, err
	}
	if suspended != "" {
		v.hash.delete(suspended)
	}
	if seq > 0 {
		if number > 0 {
			seq = max(number, seq)
			if end == 0 || ends == 0 {
				ends = 0
			} else {
				ends = max(end, ends)
			}
		}
		v.hash.set(field, strconv.FormatInt(seq, 10)+":"+strconv.FormatInt(ends, 10))
	}
	v.hash.set("head", args[0])
	log.append(s.db.now(), append([]string(nil), args[7:]...))
	s.publish(c, args[5], args[0])
	return 1, nil
}

// superseded says whether the witness is of a later incarnation.
func (s *Server) superseded(witness string, own int64) bool {
	if s.db.kindOf(witness) != hashes {
		return false
	}
	text, _, _ := s.db.field(witness, "number")
	n, err := numbers(text)
	return err == nil && n[0] > own
}

// testify is witness.lua.
func testify(s *Server, c *connection, keys, args []string) error {
	if len(keys) != 1 || len(args) != 4 {
		return badScript
	}
	own, err := numbers(args[0], args[2])
	if err != nil {
		return err
	}
	v, err := s.db.make(keys[0], hashes)
	if err != nil {
		return err
	}
	number, _ := v.hash.get("number")
	id, _ := v.hash.get("id")
	seq, _ := v.hash.get("seq")
	if known, err := numbers(number, seq); err == nil {
		if known[0] > own[0] || known[0] == own[0] && (id != args[1] || known[1] > own[1]) {
			c.out.integer(0)
			return nil
		}
	}
	for i, field := range []string{"number", "id", "seq", "leaf"} {
		v.hash.set(field, args[i])
	}
	c.out.integer(1)
	return nil
}

// head is the number up to which a list is complete, 0 where there is none.
func (s *Server) head(list string) (int64, error) {
	text, there, err := s.db.field(list, "head")
	if err != nil || !there {
		return 0, err
	}
	n, err := numbers(text)
	if err != nil {
		return 0, err
	}
	return n[0], nil
}

// mark returns number and end that a field has, 0 if it is not there; not ok if it is no mark of
// guard's.
func (s *Server) mark(list, field string) (number, end int64, ok bool) {
	text, there, err := s.db.field(list, field)
	if err != nil || !there {
		return 0, 0, err == nil
	}
	first, second, two := strings.Cut(text, ":")
	if !two || strings.Trim(first+second, "0123456789") != "" {
		return 0, 0, false
	}
	n, err := numbers(first, second)
	if err != nil {
		return 0, 0, false
	}
	return n[0], n[1], true
}

// claim is claim.lua.
func claim(s *Server, c *connection, keys, args []string) error {
	if len(keys) != 1 || len(args) != 2 {
		return badScript
	}
	n, err := numbers(args[1])
	if err != nil || n[0] < 1 {
		return noInteger
	}
	most := n[0]
	if v := s.db.get(keys[0]); v != nil && v.kind == text && v.text != args[0] {
		if left := s.db.left(keys[0]); left > 0 && left <= most {
			c.out.integer(0)
			return nil
		}
	}
	s.db.set(keys[0], args[0], time.Duration(most)*time.Millisecond)
	c.out.integer(1)
	return nil
}

// switchOver is switch.lua.
func switchOver(s *Server, c *connection, keys, args []string) error {
	if len(keys) != 5 || len(args) != 5 {
		return badScript
	}
	n, err := numbers(args[1], args[2], args[4])
	if err != nil {
		return err
	}
	list, events, rebuilding, next := keys[0], keys[1], keys[2], keys[3]
	fresh, err := s.db.of(next, hashes)
	if err != nil {
		return err
	}
	result := int64(1)
	if fresh == nil || int64(len(fresh.hash.pairs)) != n[1] {
		result = -1
	}
	if s.db.kindOf(list) == hashes {
		if head, err := s.head(list); err == nil && head > n[0] {
			result = -3
		}
	}
	if s.superseded(keys[4], n[2]) {
		result = -4
	}
	delete(s.db.keys, next)
	if result == 1 {
		s.db.keys[list] = fresh
		fresh.expires = time.Time{}
		if k := s.db.kindOf(events); k != stream && k != none {
			delete(s.db.keys, events)
		}
	}
	if v := s.db.get(rebuilding); v != nil && v.kind == text && v.text == args[0] {
		delete(s.db.keys, rebuilding)
	}
	if result == 1 {
		s.publish(c, args[3], args[1])
	}
	c.out.integer(result)
	return nil
}

// parseID takes an event's id apart.
func parseID(id string) (ms int64, n int) {
	first, second, _ := strings.Cut(id, "-")
	ms, _ = strconv.ParseInt(first, 10, 64)
	n, _ = strconv.Atoi(second)
	return ms, n
}
