package rpc

import (
	"context"

	"deputy.example/deputy/server/internal/exchange"
)

// For returns the real engine as an Engine.
func For(e *exchange.Engine) Engine { return engine{e} }

type engine struct{ *exchange.Engine }

func (e engine) Watch(ctx context.Context, q exchange.Inquiry) (Feed, error) {
	opened, err := e.Engine.Watch(ctx, q)
	if err != nil {
		return nil, err
	}
	return opened, nil
}

func (e engine) Tail(ctx context.Context, q exchange.Inquiry) (Tail, error) {
	opened, err := e.Engine.Tail(ctx, q)
	if err != nil {
		return nil, err
	}
	return opened, nil
}
