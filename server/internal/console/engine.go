package console

import (
	"context"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

// Engine is what the console needs of exchange.Engine. Every method but SignIn and Restore answers
// only what the person in the inquiry may read. It is an interface so that tests can script the
// answers.
type Engine interface {
	SignIn(context.Context, exchange.SignInCall) (exchange.Session, error)
	Restore(ctx context.Context, tenant string, s exchange.Session) (exchange.Person, error)
	Role(context.Context, exchange.Inquiry) (exchange.Role, error)

	Search(context.Context, exchange.Inquiry, ledger.Query) (page []exchange.Recorded, before uint64, err error)
	Entry(context.Context, exchange.Inquiry) (exchange.Recorded, error)
	Chain(context.Context, exchange.Inquiry) ([]exchange.Recorded, error)
	Descendants(ctx context.Context, q exchange.Inquiry, after uint64, limit int) (page []exchange.Descendant, next uint64, err error)
	Reach(ctx context.Context, q exchange.Inquiry, agent delegation.Principal, depth int) (exchange.Reach, error)
	Agents(context.Context, exchange.Inquiry) (ledger.Window, error)
	Suspensions(ctx context.Context, q exchange.Inquiry, before uint64) (page []exchange.Suspension, next uint64, err error)
	Tail(context.Context, exchange.Inquiry) (Tail, error)
	Checkpoint(context.Context, exchange.Inquiry) (exchange.Checkpoint, error)

	MayRevoke(ctx context.Context, q exchange.Inquiry, targets ...delegation.Target) ([]bool, error)
	Revoke(context.Context, exchange.RevokeCall) (exchange.Revoked, error)
	Receipts(ctx context.Context, q exchange.Inquiry, entry uint64) (exchange.Receipts, error)
}

// Tail is the interface of exchange.Tail. Next returns the entries after a number. If there are
// none yet it waits for some, but not for long. Close frees the instance's place that the tail
// holds.
type Tail interface {
	Close()
	Next(ctx context.Context, after uint64) ([]exchange.Recorded, error)
}

// Sessions is what the console needs of ledger.Ledger. Keys are digests: the database never holds
// the secret of a browser.
type Sessions interface {
	StartSession(ctx context.Context, tenant string, key [32]byte, s ledger.Session) error
	Session(ctx context.Context, tenant string, key [32]byte) (ledger.Session, error)
	EndSession(ctx context.Context, tenant string, key [32]byte) error
}
