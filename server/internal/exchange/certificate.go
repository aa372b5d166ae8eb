package exchange

import (
	"context"
	"crypto/x509"
	"errors"

	"deputy.example/deputy/client/delegation"
)

// identifyCertificate takes the certificate of the caller's connection for what it says, where a tenant
// knows it. known is false where nobody does: that is a stranger's certificate, or none, which
// authenticates nobody and stands in nobody's way; a token may still be bound to it.
//
// RFC 8705 §2 asks for client_id in every such request, so that a certificate which a client's machine
// shows to everybody speaks for no request by accident. Over gRPC the certificate may stand alone.
func (e *Engine) identifyCertificate(ctx context.Context, door string, c Credentials) (a arrival, known bool, err error) {
	a.tenant, err = e.knowing(door, c.Certificates)
	switch {
	case err != nil:
		return arrival{}, false, err
	case a.tenant == nil && c.ClientID != "":
		return arrival{}, false, unauthenticated(errors.New("nobody knows the certificate that comes with client_id"))
	case a.tenant == nil:
		return arrival{}, false, nil
	}
	a.caller, err = a.tenant.Trust.Certificate(ctx, c.Certificates, c.ClientID)
	if err == nil && door != "" && c.ClientID == "" {
		err = delegation.Refuse(delegation.ParameterMissing, "client_id", "is required where a certificate authenticates (RFC 8705 section 2)")
	}
	if err != nil {
		return arrival{}, false, e.asStranger(ctx, a, err)
	}
	return a, true, nil
}

// knowing finds the tenant that a certificate belongs to: the door's, or else the only one that knows it.
// It is looked up before anything of it is verified, which that tenant then does.
func (e *Engine) knowing(door string, chain []*x509.Certificate) (*Tenant, error) {
	if len(chain) == 0 {
		return nil, nil
	}
	var found *Tenant
	for i := range e.config.Tenants {
		t := &e.config.Tenants[i]
		if door != "" && t.Name != door || !t.Trust.Knows(chain) {
			continue
		}
		if found != nil {
			return nil, unauthenticated(errors.New("several tenants know the certificate, and nothing says which is meant"))
		}
		found = t
	}
	return found, nil
}
