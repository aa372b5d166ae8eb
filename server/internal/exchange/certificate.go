package exchange

import (
	"context"
	"crypto/x509"
	"errors"

	"deputy.example/deputy/client/delegation"
)

// identifyCertificate authenticates the caller by the certificate of its connection, if a tenant
// knows the certificate. known is false if no tenant knows it or if the connection has none. Such a
// certificate authenticates no caller and is no error, because a token may still be bound to it.
//
// RFC 8705 §2 requires client_id in every such HTTP request, so that a certificate that a client's
// machine sends to every server does not authenticate a request by accident. Over gRPC the
// certificate is sufficient.
func (e *Engine) identifyCertificate(ctx context.Context, addressed string, c Credentials) (a arrival, known bool, err error) {
	a.tenant, err = e.knowing(addressed, c.Certificates)
	switch {
	case err != nil:
		return arrival{}, false, err
	case a.tenant == nil && c.ClientID != "":
		return arrival{}, false, unauthenticated(errors.New("no tenant has a client with the certificate that comes with client_id"))
	case a.tenant == nil:
		return arrival{}, false, nil
	}
	a.caller, err = a.tenant.Trust.Certificate(ctx, c.Certificates, c.ClientID)
	if err == nil && addressed != "" && c.ClientID == "" {
		err = delegation.Refuse(delegation.ParameterMissing, "client_id", "is required where a certificate authenticates (RFC 8705 section 2)")
	}
	if err != nil {
		return arrival{}, false, e.asUnknown(ctx, a, err)
	}
	return a, true, nil
}

// knowing returns the tenant that knows a certificate: that of the endpoint, or else the only one.
// Nothing of the certificate is verified before; that tenant verifies it afterwards.
func (e *Engine) knowing(addressed string, chain []*x509.Certificate) (*Tenant, error) {
	if len(chain) == 0 {
		return nil, nil
	}
	var found *Tenant
	for i := range e.config.Tenants {
		t := &e.config.Tenants[i]
		if addressed != "" && t.Name != addressed || !t.Trust.Knows(chain) {
			continue
		}
		if found != nil {
			return nil, unauthenticated(errors.New("several tenants have a client with the certificate, and the request names none of them"))
		}
		found = t
	}
	return found, nil
}
