package policy

import (
	"strings"

	openfga "github.com/openfga/go-sdk"
)

// class names a relation of the model: all relationships of one relation on objects of one type.
type class struct{ typ, relation string }

func classOf(r Relation) class { return class{typeOf(r.Object), r.Relation} }

// influence is the set of decisions that a changed tuple of one class can change.
type influence struct {
	// same are the relations that the model computes from this one on the same object, this one
	// included.
	same map[string]bool
	// far are the relations that read this one on another object: through a userset such as
	// group#member, or through "viewer from parent".
	far map[class]bool
	// parent: the tuple's user is an object whose own relations count ("from" reads this relation).
	// Such a tuple affects decisions about any user.
	parent bool
}

// change is one row of OpenFGA's changelog, as ReadChanges returns it. It is comparable, and equal
// rows are counted.
type change struct {
	Relation
	deleted bool
	at      string // when the database took it, verbatim
}

// ofEverybody returns whether the change can affect decisions about users other than its own. No
// check about another user reads a tuple of one principal, unless that principal is a parent.
func (i influence) ofEverybody(ch change) bool {
	return i.parent || strings.Contains(ch.User, "#") || strings.HasSuffix(ch.User, ":*")
}

// touches returns whether the change can affect the decision about a relation, whatever its user.
func (i influence) touches(ch change, r Relation) bool {
	return i.far[classOf(r)] || r.Object == ch.Object && i.same[r.Relation]
}

// influences is the model in reverse: from what is written to what follows from it.
type influences struct {
	of map[class]influence
	// never are the classes that depend on a condition. The result of a condition can change
	// without a write of any tuple, so none of their decisions is remembered.
	never map[class]bool
	// opaque: the model has an element that is not understood here. Nothing is remembered.
	opaque bool
}

// remembers returns whether decisions about the relation may be kept.
func (i *influences) remembers(r Relation) bool {
	c := classOf(r)
	_, known := i.of[c]
	return known && !i.opaque && !i.never[c]
}

// link is one step from a relation to one that is computed from it.
type link struct {
	to  class
	far bool
}

// newInfluences reads every rewrite of the model: the relation that each of its leaves reads is
// linked to the relation that is being defined.
func newInfluences(fetched openfga.AuthorizationModel) *influences {
	b := influenceBuilder{links: make(map[class][]link), parents: make(map[class]bool), conditional: make(map[class]bool)}
	direct := make(map[class][]openfga.RelationReference)
	for _, t := range fetched.TypeDefinitions {
		metadata := t.GetMetadata()
		for relation, m := range metadata.GetRelations() {
			direct[class{t.Type, relation}] = m.GetDirectlyRelatedUserTypes()
		}
	}
	b.direct = direct
	known := make([]class, 0, len(direct))
	for _, t := range fetched.TypeDefinitions {
		for relation, rewrite := range t.GetRelations() {
			c := class{t.Type, relation}
			known = append(known, c)
			b.read(c, rewrite)
		}
	}
	result := &influences{of: make(map[class]influence, len(known)), never: make(map[class]bool), opaque: b.opaque}
	for _, c := range known {
		i := b.follow(c)
		result.of[c] = i
		if b.conditional[c] {
			for relation := range i.same {
				result.never[class{c.typ, relation}] = true
			}
			for other := range i.far {
				result.never[other] = true
			}
		}
	}
	return result
}

type influenceBuilder struct {
	direct      map[class][]openfga.RelationReference
	links       map[class][]link
	parents     map[class]bool
	conditional map[class]bool
	opaque      bool
}

// read links what one rewrite of c reads to c.
func (b *influenceBuilder) read(c class, rewrite openfga.Userset) {
	parts := 0
	if rewrite.This != nil {
		parts++
		if len(b.direct[c]) == 0 {
			b.opaque = true // tuples of any kind
		}
		for _, user := range b.direct[c] {
			b.conditional[c] = b.conditional[c] || user.GetCondition() != ""
			if relation := user.GetRelation(); relation != "" {
				b.link(class{user.GetType(), relation}, c, true)
			}
		}
	}
	if computed := rewrite.ComputedUserset; computed != nil {
		parts++
		b.link(class{c.typ, computed.GetRelation()}, c, false)
	}
	if from := rewrite.TupleToUserset; from != nil {
		parts++
		parent := class{c.typ, from.Tupleset.GetRelation()}
		b.parents[parent] = true
		b.link(parent, c, false)
		if len(b.direct[parent]) == 0 {
			b.opaque = true
		}
		for _, user := range b.direct[parent] {
			b.link(class{user.GetType(), from.ComputedUserset.GetRelation()}, c, true)
		}
	}
	for _, several := range []*openfga.Usersets{rewrite.Union, rewrite.Intersection} {
		if several != nil {
			parts++
			for _, child := range several.Child {
				b.read(c, child)
			}
		}
	}
	if difference := rewrite.Difference; difference != nil {
		parts++
		b.read(c, difference.Base)
		b.read(c, difference.Subtract)
	}
	if parts != 1 {
		b.opaque = true
	}
}

func (b *influenceBuilder) link(from, to class, far bool) {
	b.links[from] = append(b.links[from], link{to, far})
}

// follow collects all that is computed from c, over however many steps.
func (b *influenceBuilder) follow(c class) influence {
	i := influence{same: map[string]bool{c.relation: true}, far: make(map[class]bool), parent: b.parents[c]}
	open := []link{{c, false}}
	for len(open) > 0 {
		at := open[len(open)-1]
		open = open[:len(open)-1]
		for _, next := range b.links[at.to] {
			next.far = next.far || at.far
			switch {
			case next.far && !i.far[next.to]:
				i.far[next.to] = true
			case !next.far && !i.same[next.to.relation]:
				i.same[next.to.relation] = true
			default:
				continue
			}
			open = append(open, next)
		}
	}
	return i
}
