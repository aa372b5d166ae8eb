package guard

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Dial makes a client from redis://, rediss:// or unix:// with the options that let every call fail
// within its context's deadline. It connects on first use. The caller closes it.
func Dial(address string) (redis.UniversalClient, error) {
	o, err := options(address)
	if err != nil {
		return nil, fmt.Errorf("the Redis URL %w", err)
	}
	redis.SetLogger(silent{})
	o.ContextTimeoutEnabled = true
	o.DialTimeout, o.DialerRetries = defaultTimeout, 1
	o.ReadTimeout, o.WriteTimeout = time.Second, time.Second // for calls without a deadline
	// A repeated SET NX would meet its own first try and report a replay that was none.
	o.MaxRetries = -1
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return redis.NewClient(o), nil
}

// CheckAddress refuses an address with parts that Dial would not honor. The error repeats nothing
// of the address, which may hold a password.
func CheckAddress(address string) error {
	_, err := options(address)
	return err
}

func options(address string) (*redis.Options, error) {
	o, err := redis.ParseURL(address)
	u, malformed := url.Parse(address)
	if err != nil || malformed != nil || strings.Contains(address, "#") || (u.Host == "") != (u.Scheme == "unix") {
		return nil, errors.New("must be redis://user@host:port/db, rediss:// for TLS, or unix:///path?db=0, without a fragment; " +
			"write # in a path as %23")
	}
	return o, nil
}

// silent takes what go-redis would write to standard error, past the configured logger. All of it
// is returned as an error too, and those are logged.
type silent struct{}

// Printf implements go-redis's logger.
func (silent) Printf(context.Context, string, ...any) {}

// redisStore is the store of a deployment of several instances.
type redisStore struct {
	client  redis.UniversalClient
	timeout time.Duration // of each step of replace
	admits  rounds
}

func newRedisStore(client redis.UniversalClient, timeout time.Duration) *redisStore {
	return &redisStore{client: client, timeout: timeout, admits: rounds{client: client, script: admit, timeout: timeout}}
}

// key makes all keys of a tenant fall into one slot of a Redis cluster.
func key(tenant, kind, name string) string { return "{" + tenant + "}:" + kind + ":" + name }

func wrongType(err error) bool { return err != nil && redis.HasErrorPrefix(err, "WRONGTYPE") }

// admit notes uses and is the generic cell rate algorithm. The rate's key holds the theoretical arrival time.
//
//go:embed admit.lua
var admitSource string

var admit = redis.NewScript(admitSource)

// admit shares a round trip with the calls that wait meanwhile.
func (s *redisStore) admit(ctx context.Context, a admission) (admitted, error) {
	keys, args := []string{key(a.tenant, "rate", string(a.caller))}, []any{a.limit.Rate, a.limit.Burst, a.cost}
	for _, u := range a.uses {
		keys, args = append(keys, key(a.tenant, "replay", u.digest)), append(args, u.life.Milliseconds())
	}
	wait, err := s.admits.run(ctx, keys, args)
	switch {
	case err != nil:
		return admitted{}, err
	case wait < -int64(len(a.uses)):
		return admitted{}, fmt.Errorf("the rate limit's result is %d", wait)
	case wait < 0:
		return admitted{replayed: int(-wait)}, nil
	}
	return admitted{wait: time.Duration(wait) * time.Microsecond}, nil
}

// noncesScript keeps one nonce for each period, that of the instance which asks first.
//
//go:embed nonces.lua
var noncesSource string

var noncesScript = redis.NewScript(noncesSource)

func (s *redisStore) nonces(ctx context.Context, tenant string, period int64, fresh string) ([]string, error) {
	keys := []string{key(tenant, "nonce", strconv.FormatInt(period, 10)), key(tenant, "nonce", strconv.FormatInt(period-1, 10))}
	known, err := noncesScript.Run(ctx, s.client, keys, fresh, (2 * noncePeriod).Milliseconds()).StringSlice()
	if err != nil {
		return nil, err
	}
	if len(known) == 0 || len(known) > len(keys) || known[0] == "" {
		return nil, fmt.Errorf("the result is %d nonces", len(known))
	}
	return known, nil
}

// probeFor is how long what ready writes remains.
const probeFor = time.Minute

// ready writes: a Redis that is out of memory, a replica, or cannot save still answers a ping.
func (s *redisStore) ready(ctx context.Context) error {
	return s.client.Set(ctx, "deputy:probe", "1", probeFor).Err()
}

func (s *redisStore) clock(ctx context.Context) (time.Time, error) {
	return s.client.Time(ctx).Result()
}
