package exchange

import (
	"context"
	"errors"
	"fmt"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/token"
)

// MaxSession is the longest time from a person's sign-in to the end of the session, whatever limits
// the console has.
const MaxSession = 24 * time.Hour

// Person is a person who signed in to a tenant. Only Engine.SignIn and Engine.Restore return one
// that the engine accepts.
type Person struct {
	tenant  string
	session Session
}

// Session is what the console stores of a Person, where only the console itself can write.
type Session struct {
	Principal delegation.Principal
	Issuer    string // that named the principal
	SignedIn  time.Time
}

// Principal is the principal who signed in.
func (p Person) Principal() delegation.Principal { return p.session.Principal }

// Issuer is the issuer that named the principal.
func (p Person) Issuer() string { return p.session.Issuer }

// SignedIn is the time of the sign-in, by the clock of the instance.
func (p Person) SignedIn() time.Time { return p.session.SignedIn }

// SignInCall is the response of an OpenID provider to a sign-in that the console requested.
type SignInCall struct {
	Tenant   string
	IDToken  string
	Issuer   string // the provider; one of the tenant's trusted issuers
	ClientID string // of the console at that issuer
	Nonce    string // of this sign-in
}

// SignIn verifies the ID token by the tenant's rules. The error is DependencyDown if a dependency
// did not respond. Any other error means only that the sign-in failed.
func (e *Engine) SignIn(ctx context.Context, call SignInCall) (Person, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	tenant := e.tenants[call.Tenant]
	if tenant == nil {
		return Person{}, e.turnAway(ctx, unauthenticated(fmt.Errorf("no tenant %q", call.Tenant)))
	}
	now := e.config.Now()
	who, err := tenant.Trust.SignIn(ctx, token.SignIn{IDToken: call.IDToken, Issuer: call.Issuer, ClientID: call.ClientID, Nonce: call.Nonce})
	if err != nil {
		if refusal := delegation.AsError(err); refusal.Temporary() {
			return Person{}, e.turnAway(ctx, refusal)
		}
		return Person{}, e.turnAway(ctx, unauthenticated(err))
	}
	return e.Restore(ctx, tenant.Name, Session{Principal: who, Issuer: call.Issuer, SignedIn: now})
}

// Restore returns the Person of a stored session. It trusts the session's values. The error is
// ClientUnauthenticated if the session is over: it is too old, its issuer does not name that
// principal any more, or a revocation covers it.
func (e *Engine) Restore(ctx context.Context, tenant string, s Session) (Person, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	p := Person{tenant: tenant, session: s}
	if _, err := e.inquirer(ctx, Inquiry{Credentials: Credentials{Person: &p}}, e.person, e.spend); err != nil {
		return Person{}, e.turnAway(ctx, err)
	}
	return p, nil
}

// lineage is what a revocation can name of a session. The comparison grants root tokens the skew of
// clocks. lineage cancels that for a session, because SignedIn is by the instance's own clock.
func (p Person) lineage(skew time.Duration) delegation.Lineage {
	return delegation.Lineage{Root: "session", RootIssuedAt: p.session.SignedIn.Add(skew), Subject: p.session.Principal}
}

// person determines the caller of a call by a signed-in person. It checks the session at each call.
func (e *Engine) person(ctx context.Context, q Inquiry) (arrival, error) {
	c, p := q.Credentials, q.Credentials.Person
	if c.AssertionType+c.Assertion+c.ClientID+c.Bearer+c.DPoP != "" || c.Proof != nil || c.Certificates != nil {
		return arrival{}, delegation.Refuse(delegation.ParameterConflict, "client_assertion", "a person has signed in: send nothing else that authenticates")
	}
	tenant := e.tenants[p.tenant]
	if tenant == nil || q.Tenant != "" && q.Tenant != p.tenant {
		return arrival{}, unauthenticated(errors.New("the person signed in to another tenant"))
	}
	now, s := e.config.Now(), p.session
	switch {
	case s.SignedIn.After(now) || !s.SignedIn.After(now.Add(-MaxSession)):
		return arrival{}, unauthenticated(errors.New("the session is over"))
	case !tenant.Trust.Names(s.Issuer, s.Principal):
		return arrival{}, unauthenticated(errors.New("the issuer does not name that principal any more"))
	}
	noteAuthenticated(ctx)
	return arrival{tenant: tenant, caller: token.Caller{Principal: s.Principal, Method: token.MethodSignIn}}, nil
}

// Role is what Deputy's own access control permits a caller. It decides nothing: the console uses
// it to choose what it offers.
type Role struct {
	Principal        delegation.Principal
	Audits, Responds bool
}

// Role returns the caller and its role.
func (e *Engine) Role(ctx context.Context, q Inquiry) (Role, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, err := e.admitReader(ctx, q)
	if err != nil {
		return Role{}, err
	}
	who := string(by.caller.Principal)
	has, err := by.tenant.Policy.HasEach(ctx, []policy.Relation{
		{User: who, Relation: "auditor", Object: system}, {User: who, Relation: "responder", Object: system},
	})
	if e.inEmergency(ctx, by.tenant, by.caller.Principal, err) {
		return Role{Principal: by.caller.Principal, Audits: true, Responds: true}, nil
	}
	if err != nil {
		return Role{}, delegation.AsError(err)
	}
	return Role{Principal: by.caller.Principal, Audits: has[0], Responds: has[1]}, nil
}
