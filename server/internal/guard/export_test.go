package guard

// Scripts for tests that change them.
var (
	PublishScript = publishSource
	ClaimScript   = claimSource
	SwitchScript  = switchSource
)

// Waiting is how many questions are in no round yet.
func (g *Guard) Waiting() int {
	admits := &g.store.(*redisStore).admits
	admits.mu.Lock()
	defer admits.mu.Unlock()
	return len(admits.next)
}

// MostAlone is how many callers of a tenant are limited without Redis.
const MostAlone = mostAlone

// Held is how many rates, uses, nonces and receipts of a tenant a Memory holds.
func Held(m *Memory, tenant string) [4]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, _ := m.of(tenant)
	return [4]int{len(s.rates.values), len(s.uses.values), len(s.given.values), len(s.seen.values)}
}
