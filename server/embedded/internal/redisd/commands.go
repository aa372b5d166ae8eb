package redisd

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// command runs with the arguments after its name, and returns the error of Redis.
type command struct {
	least int // arguments
	run   func(s *Server, c *connection, args []string) error
}

// failed is an error in Redis's words.
type failed string

func (f failed) Error() string { return string(f) }

const (
	syntax    = failed("ERR syntax error")
	noInteger = failed("ERR value is not an integer or out of range")
)

var commands = map[string]command{
	"ping":         {0, ping},
	"get":          {1, get},
	"set":          {2, set},
	"del":          {1, del},
	"unlink":       {1, del},
	"type":         {1, typeOf},
	"pttl":         {1, pttl},
	"pexpire":      {2, pexpire},
	"keys":         {1, keys},
	"flushall":     {0, flushAll},
	"hget":         {2, hget},
	"hmget":        {2, hmget},
	"hgetall":      {1, hgetAll},
	"hset":         {3, hset},
	"hdel":         {2, hdel},
	"hlen":         {1, hlen},
	"hscan":        {2, hscan},
	"lpush":        {2, lpush},
	"xrange":       {3, xrange},
	"script":       {1, scriptCommand},
	"evalsha":      {2, evalSHA},
	"eval":         {2, eval},
	"subscribe":    {1, subscribe},
	"unsubscribe":  {0, unsubscribe},
	"psubscribe":   {1, unknown}, // guard has no patterns
	"punsubscribe": {0, unknown},
}

// run answers one command into the connection's replies. Both locks are held.
func (s *Server) run(c *connection, args []string) {
	if len(args) == 0 {
		return
	}
	name := strings.ToLower(args[0])
	known, there := commands[name]
	before := len(c.out)
	var err error
	switch {
	case !there:
		err = failed("ERR unknown command '" + name + "'")
	case len(args)-1 < known.least:
		err = failed("ERR wrong number of arguments for '" + name + "' command")
	default:
		err = known.run(s, c, args[1:])
	}
	if err != nil {
		c.out = c.out[:before]
		c.out.failure(err.Error())
	}
}

func unknown(*Server, *connection, []string) error { return failed("ERR unknown command") }

// ping answers a subscriber in the form of its messages.
func ping(s *Server, c *connection, _ []string) error {
	for _, listeners := range s.channels {
		if listeners[c] {
			c.out.array(2)
			c.out.bulk("pong")
			c.out.bulk("")
			return nil
		}
	}
	c.out.status("PONG")
	return nil
}

func get(s *Server, c *connection, args []string) error {
	v, err := s.db.of(args[0], text)
	switch {
	case err != nil:
		return err
	case v == nil:
		c.out.none()
	default:
		c.out.bulk(v.text)
	}
	return nil
}

func set(s *Server, c *connection, args []string) error {
	var life time.Duration
	if len(args) > 2 {
		units := map[string]time.Duration{"ex": time.Second, "px": time.Millisecond}
		unit, known := units[strings.ToLower(args[2])]
		if !known || len(args) != 4 {
			return syntax
		}
		n, err := strconv.ParseInt(args[3], 10, 64)
		if err != nil || n < 1 {
			return noInteger
		}
		life = time.Duration(n) * unit
	}
	s.db.set(args[0], args[1], life)
	c.out.status("OK")
	return nil
}

func del(s *Server, c *connection, args []string) error {
	n := int64(0)
	for _, key := range args {
		if s.db.get(key) != nil {
			delete(s.db.keys, key)
			n++
		}
	}
	c.out.integer(n)
	return nil
}

func typeOf(s *Server, c *connection, args []string) error {
	c.out.status(string(s.db.kindOf(args[0])))
	return nil
}

func pttl(s *Server, c *connection, args []string) error {
	c.out.integer(s.db.left(args[0]))
	return nil
}

func pexpire(s *Server, c *connection, args []string) error {
	ms, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return noInteger
	}
	v := s.db.get(args[0])
	switch {
	case v == nil:
		c.out.integer(0)
		return nil
	case ms < 1:
		delete(s.db.keys, args[0])
	default:
		s.db.expire(args[0], v, time.Duration(ms)*time.Millisecond)
	}
	c.out.integer(1)
	return nil
}

// keys takes a name, or the beginning of one and a star.
func keys(s *Server, c *connection, args []string) error {
	prefix, any := strings.CutSuffix(args[0], "*")
	if strings.ContainsAny(prefix, `*?[\`) {
		return syntax
	}
	var found []string
	for key := range s.db.keys {
		if s.db.get(key) != nil && (key == prefix || any && strings.HasPrefix(key, prefix)) {
			found = append(found, key)
		}
	}
	c.out.list(found)
	return nil
}

func flushAll(s *Server, c *connection, _ []string) error {
	clear(s.db.keys)
	clear(s.db.expiring)
	c.out.status("OK")
	return nil
}

func hget(s *Server, c *connection, args []string) error {
	v, there, err := s.db.field(args[0], args[1])
	switch {
	case err != nil:
		return err
	case there:
		c.out.bulk(v)
	default:
		c.out.none()
	}
	return nil
}

func hmget(s *Server, c *connection, args []string) error {
	c.out.array(len(args) - 1)
	for _, name := range args[1:] {
		if err := hget(s, c, []string{args[0], name}); err != nil {
			return err
		}
	}
	return nil
}

func hgetAll(s *Server, c *connection, args []string) error {
	v, err := s.db.of(args[0], hashes)
	if err != nil {
		return err
	}
	if v == nil {
		v = &value{}
	}
	c.out.pairs(v.hash.pairs)
	return nil
}

func hset(s *Server, c *connection, args []string) error {
	if len(args)%2 == 0 {
		return failed("ERR wrong number of arguments for 'hset' command")
	}
	v, err := s.db.make(args[0], hashes)
	if err != nil {
		return err
	}
	n := int64(0)
	for pair := range slices.Chunk(args[1:], 2) {
		if v.hash.set(pair[0], pair[1]) {
			n++
		}
	}
	c.out.integer(n)
	return nil
}

func hdel(s *Server, c *connection, args []string) error {
	v, err := s.db.of(args[0], hashes)
	if err != nil {
		return err
	}
	n := int64(0)
	for _, name := range args[1:] {
		if v != nil && v.hash.delete(name) {
			n++
		}
	}
	if v != nil && len(v.hash.pairs) == 0 {
		delete(s.db.keys, args[0])
	}
	c.out.integer(n)
	return nil
}

func hlen(s *Server, c *connection, args []string) error {
	v, err := s.db.of(args[0], hashes)
	if err != nil {
		return err
	}
	n := 0
	if v != nil {
		n = len(v.hash.pairs)
	}
	c.out.integer(int64(n))
	return nil
}

// hscan takes a COUNT and no pattern.
func hscan(s *Server, c *connection, args []string) error {
	cursor, err := strconv.Atoi(args[1])
	if err != nil || cursor < 0 {
		return failed("ERR invalid cursor")
	}
	count := 10
	if len(args) > 2 {
		if len(args) != 4 || !strings.EqualFold(args[2], "count") {
			return syntax
		}
		if count, err = strconv.Atoi(args[3]); err != nil || count < 1 {
			return noInteger
		}
	}
	v, err := s.db.of(args[0], hashes)
	if err != nil {
		return err
	}
	if v == nil {
		v = &value{}
	}
	some, next := v.hash.scan(cursor, count)
	c.out.array(2)
	c.out.bulk(strconv.Itoa(next))
	c.out.pairs(some)
	return nil
}

func lpush(s *Server, c *connection, args []string) error {
	v, err := s.db.make(args[0], series)
	if err != nil {
		return err
	}
	for _, item := range args[1:] {
		v.list = slices.Insert(v.list, 0, item)
	}
	c.out.integer(int64(len(v.list)))
	return nil
}

// xrange returns the whole stream, the only form in use.
func xrange(s *Server, c *connection, args []string) error {
	if args[1] != "-" || args[2] != "+" || len(args) > 3 {
		return syntax
	}
	v, err := s.db.of(args[0], stream)
	if err != nil {
		return err
	}
	if v == nil {
		v = &value{}
	}
	c.out.array(len(v.events))
	for _, e := range v.events {
		c.out.array(2)
		c.out.bulk(e.id)
		c.out.list(e.fields)
	}
	return nil
}

func (r *reply) list(items []string) {
	r.array(len(items))
	for _, item := range items {
		r.bulk(item)
	}
}

func (r *reply) pairs(some []pair) {
	r.array(2 * len(some))
	for _, p := range some {
		r.bulk(p.name)
		r.bulk(p.value)
	}
}

func subscribe(s *Server, c *connection, channels []string) error {
	for _, name := range channels {
		if s.channels[name] == nil {
			s.channels[name] = make(map[*connection]bool)
		}
		s.channels[name][c] = true
		s.subscribed(c, "subscribe", name)
	}
	return nil
}

func unsubscribe(s *Server, c *connection, channels []string) error {
	if len(channels) == 0 {
		for name, listeners := range s.channels {
			if listeners[c] {
				channels = append(channels, name)
			}
		}
	}
	for _, name := range channels {
		s.unsubscribe(c, name)
		s.subscribed(c, "unsubscribe", name)
	}
	return nil
}

func (s *Server) unsubscribe(c *connection, name string) {
	delete(s.channels[name], c)
	if len(s.channels[name]) == 0 {
		delete(s.channels, name)
	}
}

// subscribed returns how many channels the connection subscribes to now.
func (s *Server) subscribed(c *connection, what, name string) {
	n := int64(0)
	for _, listeners := range s.channels {
		if listeners[c] {
			n++
		}
	}
	c.out.array(3)
	c.out.bulk(what)
	c.out.bulk(name)
	c.out.integer(n)
}

// publish is for the scripts: no client publishes.
func (s *Server) publish(from *connection, channel, message string) {
	for listener := range s.channels[channel] {
		if listener != from { // a subscriber sends no commands, and its lock is held
			listener.push(channel, message)
		}
	}
}
