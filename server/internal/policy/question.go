package policy

import (
	"errors"
	"fmt"
	"strings"

	"deputy.example/deputy/client/delegation"
)

// Relation is one relationship of OpenFGA: does User have Relation on Object? It is comparable, and
// two equal relations are one check.
type Relation struct {
	User     string // user:alice
	Relation string // holder
	Object   string // scope:calendar.read
}

// String is OpenFGA's own notation, object#relation@user.
func (r Relation) String() string { return r.Object + "#" + r.Relation + "@" + r.User }

// check refuses what OpenFGA would refuse or interpret differently: a wildcard asks about all
// users, a userset about a group. One bad relation would fail the whole request that it shares with
// others.
func (r Relation) check() error {
	userType, userID, _ := strings.Cut(r.User, ":")
	objectType, objectID, _ := strings.Cut(r.Object, ":")
	switch {
	case !isName(userType) || !isID(userID) || len(r.User) > maxUserLength:
		return errors.New("user: must be a principal that OpenFGA can name")
	case !isName(r.Relation):
		return errors.New("relation: must be a name")
	case !isName(objectType) || !isID(objectID) || len(r.Object) > maxObjectLength:
		return fmt.Errorf("object: must be an object that OpenFGA can name within %d characters", maxObjectLength)
	}
	return nil
}

// Edge is one step of a delegation chain: From handed authority to To.
type Edge struct {
	From, To delegation.Principal
}

// Question holds everything of one exchange that OpenFGA must permit.
type Question struct {
	// Edges lead from Subject to Actor without a gap: the first starts at Subject, each starts
	// where the one before ended, the last ends at Actor. Empty only if Subject and Actor are the
	// same principal.
	Edges          []Edge
	Subject, Actor delegation.Principal // both must hold all that is asked for
	Scopes         delegation.Scopes    // of the child; may be empty
	Audiences      []string             // of the child; never empty
	Details        []delegation.Detail  // of the child; may be empty
}

// Party is the principal that a check is about.
type Party string

// The parties of a question.
const (
	PartyEdge    Party = "edge"    // a principal in the chain, towards the next one
	PartySubject Party = "subject" // on whose behalf the actor acts
	PartyActor   Party = "actor"   // the new actor
)

// Decision is OpenFGA's answer to a Question.
type Decision struct {
	Allowed bool     // every check was answered yes
	ModelID string   // the pinned model that answered
	Checks  int      // how many different relations were asked about
	Missing *Missing // the first relation that is missing; nil if and only if Allowed
}

// Missing is a relation that is needed and missing, and its purpose. If several are missing it is
// the first one in the order of the question: edges from the subject on, scopes, audiences,
// details; of each the subject's before the actor's.
type Missing struct {
	Relation
	Party Party
	// Reason is the dimension: EdgeNotPermitted, ScopeNotPermitted, AudienceNotPermitted or
	// DetailsNotPermitted.
	Reason delegation.Reason
	// Value is the requested value: the scope, the audience, the detail's type and action; for an
	// edge the actor that it leads to.
	Value string
	// Audience is the audience at which a scope is missing, in a question with several audiences;
	// otherwise "".
	Audience string
}

// expansion collects the checks of one question, each relation once and with its first purpose.
type expansion struct {
	most   int
	checks []Missing // what to report if OpenFGA answers no
	err    *delegation.Error
}

// expand turns a question into checks, in the order in which Missing is determined. It refuses a
// question that it cannot put in full: there is no partial question.
func (r *rules) expand(q Question, most int) ([]Missing, *delegation.Error) {
	if err := q.check(); err != nil {
		return nil, delegation.Refuse(delegation.Internal, "", "internal error: nothing was issued").WithCause(err)
	}
	if len(q.Audiences) == 0 {
		return nil, delegation.Refuse(delegation.AudienceMissing, "audience", "must not be empty; name the service that the token is for")
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
	for i, detail := range q.Details {
		r.expandDetail(&x, q, i, detail)
	}
	if x.err != nil {
		return nil, x.err
	}
	return x.checks, nil
}

// expandScope asks for the scope as such and, if the token has several audiences, at each of them:
// RFC 8693 §2.1.1 makes every scope valid at every target. The object id of a pair differs from
// that of every scope and of every other pair, because EncodeID encodes '|'.
func (r *rules) expandScope(x *expansion, q Question, scope string) {
	ask := func(object, relation, audience string) {
		x.both(q, Missing{Relation: Relation{Relation: relation, Object: object},
			Reason: delegation.ScopeNotPermitted, Value: scope, Audience: audience})
	}
	several := len(q.Audiences) > 1
	own, mapped := r.scopes[scope]
	if mapped && own.object.field == "" {
		if several {
			x.refuse(delegation.AudienceNotSingle, "audience", "must be one audience; scope %s is mapped to one object for all audiences", scope)
			return
		}
		ask(own.object.fill(""), own.relation, "")
		return
	}
	if !mapped && r.scope == (ObjectRule{}) {
		x.refuse(delegation.ScopeNotPermitted, "scope", "must be mapped to a relation, and %.64s is not; ask for a mapped scope", scope)
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

// expandDetail asks for every action of one authorization_details element. An element that the
// mapping does not describe in full is refused (RFC 9396 §5): an unknown field would be granted
// without a check. Refusals name the element by its position, because its texts are the caller's.
func (r *rules) expandDetail(x *expansion, q Question, position int, d delegation.Detail) {
	const field = "authorization_details"
	rule, known := r.details[d.Type()]
	if !known {
		x.refuse(delegation.DetailsUnknownType, field, "element %d must have a type that is mapped to relations", position)
		return
	}
	for _, name := range d.Fields() {
		if !rule.known[name] {
			x.refuse(delegation.DetailsUnknownType, field, "element %d must hold only fields of type %s that are checked", position, d.Type())
			return
		}
	}
	value, present := "", true
	if rule.object.field != "" {
		value, present = d.Text(rule.object.field)
	}
	if !present || rule.object.field != "" && value == "" {
		x.refuse(delegation.DetailsUnknownType, field, "element %d must have the text field %s, as type %s needs it", position, rule.object.field, d.Type())
		return
	}
	actions := d.List("actions")
	if len(actions) == 0 {
		x.refuse(delegation.DetailsUnknownType, field, "element %d must name its actions; none does not mean all", position)
		return
	}
	for _, action := range actions {
		relation, mapped := rule.relations[action]
		if !mapped {
			x.refuse(delegation.DetailsUnknownType, field, "element %d must have only actions of type %s that are mapped", position, d.Type())
			return
		}
		x.both(q, Missing{Relation: Relation{Relation: relation, Object: rule.object.fill(value)},
			Reason: delegation.DetailsNotPermitted, Value: d.Type() + " " + action})
	}
}

// check returns an error if the exchange must not put this question. A gap between the edges would
// be a hop without consent.
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
	// A few comparisons cost less than a map, for what fits into one request.
	for i := range x.checks {
		if x.checks[i].Relation == m.Relation {
			return
		}
	}
	if err := m.Relation.check(); err != nil {
		x.refuse(m.Reason, "", "what is asked for cannot be asked of OpenFGA: %v", err)
		return
	}
	if len(x.checks) == x.most {
		x.refuse(delegation.TooManyChecks, "", "the request must need at most %d relationship checks; ask for fewer scopes, audiences or details", x.most)
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
