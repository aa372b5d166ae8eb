package guard

// Scripts for tests that change them.
var (
	PublishScript = publishSource
	ClaimScript   = claimSource
	SwitchScript  = switchSource
)

// Waiting is how many questions are in no round yet.
func (g *Guard) Waiting() int {
	g.admits.mu.Lock()
	defer g.admits.mu.Unlock()
	return len(g.admits.next)
}

// MostAlone is how many callers of a tenant are limited without Redis.
const MostAlone = mostAlone
