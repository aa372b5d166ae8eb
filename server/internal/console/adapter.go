package console

import (
	"context"

	"deputy.example/deputy/server/internal/exchange"
)

// For makes the real engine an Engine.
func For(e *exchange.Engine) Engine { return engine{e} }

type engine struct{ *exchange.Engine }

func (e engine) Tail(ctx context.Context, q exchange.Inquiry) (Tail, error) {
	return e.Engine.Tail(ctx, q)
}

// SignIn keeps of the person what a session keeps: Restore makes it again for every request.
func (e engine) SignIn(ctx context.Context, call exchange.SignInCall) (exchange.Session, error) {
	p, err := e.Engine.SignIn(ctx, call)
	return exchange.Session{Principal: p.Principal(), Issuer: p.Issuer(), SignedIn: p.SignedIn()}, err
}
