package guard

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
)

const (
	claimFor = 3 * time.Second // how long a rebuilder that died holds others up
	stageFor = time.Minute     // how long what it wrote remains
)

//go:embed publish.lua
var publishSource string

//go:embed claim.lua
var claimSource string

//go:embed switch.lua
var switchSource string

var (
	publish    = redis.NewScript(publishSource)
	claim      = redis.NewScript(claimSource)
	switchOver = redis.NewScript(switchSource)
)

// listKeys are the names of a tenant's keys, all in one slot of a Redis cluster. docs/revocation.md
// states what other services may rely on.
type listKeys struct{ list, events, rebuilding, wake string }

func listsOf(tenant string) listKeys {
	return listKeys{
		list: key(tenant, "revoked", "list"), events: key(tenant, "revoked", "events"),
		rebuilding: key(tenant, "revoked", "rebuilding"), wake: key(tenant, "revoked", "wake"),
	}
}

// publish also appends the revocation to the stream of events.
func (s *redisStore) publish(ctx context.Context, tenant string, r delegation.Revocation, incarnation uint64) error {
	at, resumed := r.Target, ""
	if at.Kind == delegation.Resume {
		at, resumed = suspensionOf(at), field(agentOf(at))
	}
	n := listsOf(tenant)
	answer, err := publish.Run(ctx, s.client, []string{n.list, n.events, n.rebuilding, witnessKey(tenant)},
		r.Seq, r.Prev, field(at), milliseconds(r.Until), resumed, n.wake, incarnation,
		"seq", r.Seq, "prev", r.Prev, "kind", string(r.Target.Kind), "id", r.Target.ID, "subject", string(r.Target.Subject),
		"at", r.At.UnixMilli(), "until", milliseconds(r.Until)).Int64()
	switch {
	case err != nil:
		return err
	case answer == 0, answer == 1:
		return nil
	case answer == -1:
		return ErrGap
	case answer == -2:
		return ErrRebuilding
	case answer == -4:
		return ErrSuperseded
	}
	return fmt.Errorf("the result of publishing is %d", answer)
}

// replace writes the new lists under another key, and renames it.
func (s *redisStore) replace(ctx context.Context, tenant string, list marks, last, incarnation uint64) error {
	n, token := listsOf(tenant), rand.Text()
	next := key(tenant, "revoked", "next:"+token)
	fields, pairs := 0, make([]any, 0, 2*chunk)
	flush := func() error {
		err := s.stage(ctx, n.rebuilding, next, token, pairs)
		pairs = pairs[:0]
		return err
	}
	for name, m := range list {
		fields, pairs = fields+1, append(pairs, name, m.String())
		if len(pairs) == cap(pairs) {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	pairs = append(pairs, headField, last)
	if err := flush(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	answer, err := switchOver.Run(ctx, s.client, []string{n.list, n.events, n.rebuilding, next, witnessKey(tenant)}, token, last, fields+1, n.wake, incarnation).Int64()
	switch {
	case err != nil:
		return err
	case answer == 1:
		return nil
	case answer == -1:
		return errors.New("the new list lost something while it was written: Redis may have too little memory")
	case answer == -3:
		return ErrAhead
	case answer == -4:
		return ErrSuperseded
	}
	return fmt.Errorf("the result of the switch is %d", answer)
}

// stage writes some fields of a new list and renews the claim.
func (s *redisStore) stage(ctx context.Context, rebuilding, next, token string, pairs []any) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	claimed, err := claim.Run(ctx, s.client, []string{rebuilding}, token, claimFor.Milliseconds()).Int64()
	switch {
	case err != nil:
		return err
	case claimed != 1:
		return ErrRebuilding
	}
	pipe := s.client.Pipeline()
	pipe.HSet(ctx, next, pairs...)
	pipe.PExpire(ctx, next, stageFor) // also if this instance dies
	_, err = pipe.Exec(ctx)
	return err
}

func (s *redisStore) discard(ctx context.Context, tenant string) error {
	n := listsOf(tenant)
	return s.client.Unlink(ctx, n.list, n.events, witnessKey(tenant)).Err()
}

func (s *redisStore) head(ctx context.Context, tenant string) (head, error) {
	n := listsOf(tenant)
	pipe := s.client.Pipeline()
	seq, events := pipe.HGet(ctx, n.list, headField), pipe.Type(ctx, n.events)
	_, _ = pipe.Exec(ctx) // each command has its own error
	found := head{sound: typed(events.Val())}
	switch err := seq.Err(); {
	case wrongType(err):
		return head{}, fmt.Errorf("%w: %w", ErrGap, err)
	case err != nil && !errors.Is(err, redis.Nil):
		return head{}, err
	case events.Err() != nil:
		return head{}, events.Err()
	case err == nil:
		if found.seq, err = strconv.ParseUint(seq.Val(), 10, 64); err != nil {
			return head{}, fmt.Errorf("%w: the head is no number", ErrGap)
		}
		found.there = true
	}
	return found, nil
}

// typed returns whether a stream of events may be of this type.
func typed(events string) bool { return events == "stream" || events == "none" }

// look sends three short commands for a tenant, in one round trip for all of them.
func (s *redisStore) look(ctx context.Context, tenants []string) ([]Peek, error) {
	pipe := s.client.Pipeline()
	lists, events := make([]*redis.ScanCmd, len(tenants)), make([]*redis.StatusCmd, len(tenants))
	witnesses := make([]*redis.MapStringStringCmd, len(tenants))
	for i, tenant := range tenants {
		n := listsOf(tenant)
		lists[i], events[i] = pipe.HScan(ctx, n.list, 0, "", chunk), pipe.Type(ctx, n.events)
		witnesses[i] = pipe.HGetAll(ctx, witnessKey(tenant))
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	peeks := make([]Peek, len(tenants))
	for i := range tenants {
		p := Peek{typed: !wrongType(lists[i].Err())}
		if p.typed {
			if err := errors.Join(lists[i].Err(), events[i].Err()); err != nil {
				return nil, err
			}
			var cursor uint64
			p.fields, cursor = lists[i].Val()
			p.whole = cursor == 0
			p.typed = typed(events[i].Val())
		}
		var err error
		if p.Witness, err = readWitness(witnesses[i]); err != nil {
			return nil, err
		}
		peeks[i] = p
	}
	return peeks, nil
}

func (s *redisStore) fields(ctx context.Context, tenant string, cursor uint64) ([]string, uint64, error) {
	name := listsOf(tenant).list
	pairs, next, err := s.client.HScan(ctx, name, cursor, "", chunk).Result()
	switch {
	case wrongType(err):
		return nil, 0, fmt.Errorf("%w: %w", ErrGap, err)
	case err != nil:
		return nil, 0, fmt.Errorf("%s: %w", name, err)
	}
	return pairs, next, nil
}

// wake holds one connection, however many tenants there are.
func (s *redisStore) wake(ctx context.Context, tenants []string) <-chan []string {
	woken := make(chan []string)
	byChannel, channels := make(map[string]string, len(tenants)), make([]string, len(tenants))
	for i, tenant := range tenants {
		channels[i] = listsOf(tenant).wake
		byChannel[channels[i]] = tenant
	}
	go func() {
		sub := s.client.Subscribe(ctx, channels...)
		defer func() { _ = sub.Close() }()
		// A subscription that answers no ping for two seconds is made again.
		messages := sub.ChannelWithSubscriptions(redis.WithChannelHealthCheckInterval(time.Second))
		var names []string // in the order in which they came, each once
		for {
			var out chan []string
			if len(names) > 0 {
				out = woken
			}
			channel := ""
			select {
			case <-ctx.Done():
				return
			case out <- names:
				names = nil
				continue
			case message, open := <-messages:
				if !open { // the client was closed
					return
				}
				switch m := message.(type) {
				case *redis.Message:
					channel = m.Channel
				case *redis.Subscription: // one for each channel, each time that the connection is made
					channel = m.Channel
				}
			}
			if tenant, known := byChannel[channel]; known && !slices.Contains(names, tenant) {
				names = append(names, tenant)
			}
		}
	}()
	return woken
}
