package console

import (
	"context"

	"deputy.example/deputy/server/internal/exchange"
)

// For returns the real engine as an Engine.
func For(e *exchange.Engine) Engine { return engine{e} }

type engine struct{ *exchange.Engine }

func (e engine) Tail(ctx context.Context, q exchange.Inquiry) (Tail, error) {
	return e.Engine.Tail(ctx, q)
}

// SignIn returns only what a session keeps of the person. Restore makes the person again for every
// request.
func (e engine) SignIn(ctx context.Context, call exchange.SignInCall) (exchange.Session, error) {
	p, err := e.Engine.SignIn(ctx, call)
	return exchange.Session{Principal: p.Principal(), Issuer: p.Issuer(), SignedIn: p.SignedIn()}, err
}
