package policy

import (
	"errors"
	"fmt"
	"strings"

	"deputy.example/deputy/client/delegation"
)

// Relation is one relationship of OpenFGA: does User have Relation on Object? It is comparable, and two equal relations are
// one check.
type Relation struct {
	User     string // user:alice
	Relation string // holder
	Object   string // scope:calendar.read
}

// String is OpenFGA's own notation, object#relation@user.
func (r Relation) String() string { return r.Object + "#" + r.Relation + "@" + r.User }

// check refuses what OpenFGA would refuse, or would read as something else: a wildcard asks about everyone, a userset about
// a group. One bad relation would otherwise spoil the whole request that it shares with others.
func (r Relation) check() error {
	userType, userID, _ := strings.Cut(r.User, ":")
	objectType, objectID, _ := strings.Cut(r.Object, ":")
	switch {
	case !isName(userType) || !isID(userID) || len(r.User) > maxUserLength:
		return errors.New("the user is not a principal that OpenFGA can name")
	case !isName(r.Relation):
		return errors.New("the relation is not a name")
	case !isName(objectType) || !isID(objectID) || len(r.Object) > maxObjectLength:
		return fmt.Errorf("the object is not one that OpenFGA can name within %d characters", maxObjectLength)
	}
	return nil
}

// Edge is one step of a delegation chain: From handed authority to To.
type Edge struct {
	From, To delegation.Principal
}

// Question is everything that one exchange needs OpenFGA's yes for.
type Question struct {
	// Edges lead from Subject to Actor without a gap: the first starts at Subject, each starts where the one before ended,
	// the last ends at Actor. There are none only where Subject and Actor are the same principal.
	Edges          []Edge
	Subject, Actor delegation.Principal // both must hold all that is asked for
	Scopes         delegation.Scopes    // of the child; may be empty
	Audiences      []string             // of the child; never empty
	Details        []delegation.Detail  // of the child; may be empty
}

// Party says whose relationship a check is about.
type Party string

// The parties of a question.
const (
	PartyEdge    Party = "edge"    // someone in the chain, towards the next one
	PartySubject Party = "subject" // on whose behalf all happens
	PartyActor   Party = "actor"   // who would act now
)

// Decision is OpenFGA's answer to a Question.
type Decision struct {
	Allowed bool     // every check was answered yes
	ModelID string   // the pinned model that answered
	Checks  int      // how many different relations were asked about
	Missing *Missing // the first relation that is not there; nil if and only if Allowed
}

// Missing is a relation that would have been needed, and what for. When several are missing it is the first one in the order
// of the question: edges from the subject on, scopes, audiences, details; of each the subject's before the actor's.
type Missing struct {
	Relation
	Party Party
	// Reason says in which dimension it is missing: EdgeNotPermitted, ScopeNotPermitted, AudienceNotPermitted or
	// DetailsNotPermitted.
	Reason delegation.Reason
	// Value is what was asked for in that dimension: the scope, the audience, the detail's type and action; the actor that
	// an edge leads to.
	Value string
	// Audience is where a scope is missing, in a question with several audiences; otherwise "".
	Audience string
}

// expansion collects the checks of one question, each relation once and with the first purpose it serves.
type expansion struct {
	most   int
	checks []Missing // what to report if OpenFGA says no
	err    *delegation.Error
}

// expand turns a question into checks, in the order in which Missing is determined. It refuses a question that it cannot put
// in full: there is no partial question.
func (r *rules) expand(q Question, most int) ([]Missing, *delegation.Error) {
	if err := q.check(); err != nil {
		return nil, delegation.Refuse(delegation.Internal, "", "internal error: nothing was issued").WithCause(err)
	}
	if len(q.Audiences) == 0 {
		return nil, delegation.Refuse(delegation.AudienceMissing, "audience", "at least one audience is needed")
	}
	x := expansion{most: most, checks: make([]Missing, 0, len(q.Edges)+2*(len(q.Scopes)+len(q.Audiences)+len(q.Details)))}
	for _, e := range q.Edges {
		x.add(Missing{
			Relation: Relation{string(e.From), r.delegator, string(e.To)},
			Party:    PartyEdge, Reason: delegation.EdgeNotPermitted, Value: string(e.To),
		})
	}
	for _, scope := range q.Scopes {
		r.expandScope(&x, q, scope)
	}
	for _, audience := range q.Audiences {
		x.both(q, Missing{
			Relation: Relation{Relation: r.resource.Relation, Object: r.resource.Type + ":" + delegation.EncodeID(audience)},
			Reason:   delegation.AudienceNotPermitted, Value: audience,
		})
	}
	for _, detail := range q.Details {
		r.expandDetail(&x, q, detail)
	}
	if x.err != nil {
		return nil, x.err
	}
	return x.checks, nil
}

// expandScope asks for the scope as such and, where a token would be good at several audiences, at each of them: RFC 8693
// §2.1.1 makes every scope valid at every target. The pair's object id cannot be taken for a scope's or for another pair's,
// because EncodeID never leaves a '|' as it is.
func (r *rules) expandScope(x *expansion, q Question, scope string) {
	ask := func(object, relation, audience string) {
		x.both(q, Missing{Relation: Relation{Relation: relation, Object: object},
			Reason: delegation.ScopeNotPermitted, Value: scope, Audience: audience})
	}
	several := len(q.Audiences) > 1
	own, mapped := r.scopes[scope]
	if mapped && own.object.field == "" {
		if several {
			x.refuse(delegation.AudienceNotSingle, "audience", "scope %s is mapped to one object for all audiences: ask for one audience", scope)
			return
		}
		ask(own.object.fill(""), own.relation, "")
		return
	}
	if !mapped && r.scope == (ObjectRule{}) {
		x.refuse(delegation.ScopeNotPermitted, "scope", "scope %.64s is not mapped to a relation", scope)
		return
	}
	object := r.scope.Type + ":" + delegation.EncodeID(scope)
	if !mapped {
		ask(object, r.scope.Relation, "")
	}
	for _, audience := range q.Audiences {
		at := ""
		if several {
			at = audience
		}
		switch {
		case mapped:
			ask(own.object.fill(audience), own.relation, at)
		case several:
			ask(object+"|"+delegation.EncodeID(audience), r.scope.Relation, at)
		}
	}
}

// expandDetail asks for every action of one authorization_details element. An element that the mapping does not describe in
// full is refused (RFC 9396 §5): a field that nobody asked OpenFGA about would be granted unchecked.
func (r *rules) expandDetail(x *expansion, q Question, d delegation.Detail) {
	const field = "authorization_details"
	rule, known := r.details[d.Type()]
	if !known {
		x.refuse(delegation.DetailsUnknownType, field, "type %.64s is not mapped to a relation", d.Type())
		return
	}
	for _, name := range d.Fields() {
		if !rule.known[name] {
			x.refuse(delegation.DetailsUnknownType, field, "type %s has no field %.64s that could be checked", d.Type(), name)
			return
		}
	}
	value, present := "", true
	if rule.object.field != "" {
		value, present = d.Text(rule.object.field)
	}
	if !present || rule.object.field != "" && value == "" {
		x.refuse(delegation.DetailsUnknownType, field, "type %s needs the text field %s", d.Type(), rule.object.field)
		return
	}
	actions := d.List("actions")
	if len(actions) == 0 {
		x.refuse(delegation.DetailsUnknownType, field, "type %s needs actions: none named does not mean all", d.Type())
		return
	}
	for _, action := range actions {
		relation, mapped := rule.relations[action]
		if !mapped {
			x.refuse(delegation.DetailsUnknownType, field, "type %s has no action %.64s", d.Type(), action)
			return
		}
		x.both(q, Missing{Relation: Relation{Relation: relation, Object: rule.object.fill(value)},
			Reason: delegation.DetailsNotPermitted, Value: d.Type() + " " + action})
	}
}

// check says whether the question is one that the exchange may put. A gap between the edges would be a hop that nobody
// consented to.
func (q Question) check() error {
	at := q.Subject
	for _, p := range []delegation.Principal{q.Subject, q.Actor} {
		if _, err := delegation.ParsePrincipal(string(p)); err != nil {
			return err
		}
	}
	for i, e := range q.Edges {
		if _, err := delegation.ParsePrincipal(string(e.To)); err != nil {
			return err
		}
		if e.From != at {
			return fmt.Errorf("edge %d starts at %s, not at %s", i, e.From, at)
		}
		at = e.To
	}
	if at != q.Actor {
		return fmt.Errorf("the edges end at %s, not at the actor %s", at, q.Actor)
	}
	return nil
}

// both asks the same of the subject and of the actor.
func (x *expansion) both(q Question, m Missing) {
	m.User, m.Party = string(q.Subject), PartySubject
	x.add(m)
	m.User, m.Party = string(q.Actor), PartyActor
	x.add(m)
}

func (x *expansion) add(m Missing) {
	if x.err != nil {
		return
	}
	// A handful of comparisons is cheaper than a map for what at most fits into one request.
	for i := range x.checks {
		if x.checks[i].Relation == m.Relation {
			return
		}
	}
	if err := m.Relation.check(); err != nil {
		x.refuse(m.Reason, "", "%.64s cannot be asked for: %v", m.Value, err)
		return
	}
	if len(x.checks) == x.most {
		x.refuse(delegation.TooManyChecks, "", "this needs more than %d relationship checks: ask for fewer scopes, audiences or details", x.most)
		return
	}
	x.checks = append(x.checks, m)
}

// refuse keeps the first refusal.
func (x *expansion) refuse(reason delegation.Reason, field, format string, args ...any) {
	if x.err == nil {
		x.err = delegation.Refuse(reason, field, format, args...)
	}
}
