package guard

// Scripts for tests that change them.
var (
	PublishScript = publishSource
	ClaimScript   = claimSource
	SwitchScript  = switchSource
)
