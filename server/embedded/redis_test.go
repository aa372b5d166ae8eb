package embedded

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/guard/guardtest"
)

func TestRedisServesTheGuard(t *testing.T) {
	guardtest.Run(t, func(t *testing.T) redis.UniversalClient {
		r := startRedis(t)
		client, err := guard.Dial("redis://:" + r.Password() + "@" + r.server.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		return client
	})
}

func TestRedisAsksForItsPassword(t *testing.T) {
	r := startRedis(t)
	client, err := guard.Dial(r.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.Get(t.Context(), "anything").Err(); err == nil || err == redis.Nil {
		t.Errorf("a stranger is answered: %v", err)
	}
}

func startRedis(t *testing.T) *Redis {
	t.Helper()
	r, err := NewRedis()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func TestRedisLetsKeysExpire(t *testing.T) {
	r := startRedis(t)
	if err := r.server.Set("short", "lived"); err != nil {
		t.Fatal(err)
	}
	r.server.SetTTL("short", expiryInterval/2)
	if err := r.server.Set("long", "lived"); err != nil {
		t.Fatal(err)
	}
	r.server.SetTTL("long", time.Hour)
	for deadline := time.Now().Add(10 * expiryInterval); r.server.Exists("short"); {
		if time.Now().After(deadline) {
			t.Fatal("a key does not expire")
		}
		<-time.After(expiryInterval / 20)
	}
	if ttl := r.server.TTL("long"); ttl >= time.Hour || ttl < time.Hour-10*expiryInterval {
		t.Errorf("an hour has become %v", ttl)
	}
}
