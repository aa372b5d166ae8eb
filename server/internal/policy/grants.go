package policy

import (
	"context"
	"encoding/binary"
	"math"
	"time"
)

// grant is a whole question that was answered yes: every relation that it needs was remembered as
// held at that position. It adds no authority to those decisions. It saves determining the
// relations and looking up each.
type grant struct {
	checks int
	at     uint64        // no reading up to this position has forgotten any of the decisions
	until  time.Duration // when the first of the decisions expires, since the memory began
}

// entriesPerQuestion is the number of decisions that may be remembered per whole question.
const entriesPerQuestion = 16

// recollect answers questions that were all granted before, after a reading that showed no change
// since: then each decision behind them is still valid. It returns nil if the decisions must be
// looked up one by one.
func (c *Checker) recollect(ctx context.Context, keys []string) []Answer {
	model, m := c.known.Load(), c.memory
	if model == nil || len(keys) == 0 || !m.grants(keys, nil) {
		return nil
	}
	if err := c.join(model.influences).wait(ctx); err != nil {
		return nil
	}
	answers := make([]Answer, len(keys))
	if !m.grants(keys, answers) {
		return nil
	}
	checks := 0
	for i := range answers {
		answers[i].Decision.ModelID = c.model
		checks += answers[i].Decision.Checks
	}
	c.metrics.remembered.Add(float64(checks))
	return answers
}

// grants returns whether all questions are known to be granted, and answers them.
func (m *memory) grants(keys []string, answers []Answer) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Since(m.began)
	for i, key := range keys {
		g, there := m.granted[key]
		if !there || m.distrust || m.changed > g.at || now > g.until {
			return false
		}
		if answers != nil {
			answers[i].Decision = Decision{Allowed: true, Checks: g.checks}
		}
	}
	return true
}

// grant remembers a whole question if every relation that it needs is remembered as held.
func (m *memory) grant(key string, checks []Missing) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := grant{checks: len(checks), at: m.position, until: math.MaxInt64}
	for i := range checks {
		d, ok := m.valid(checks[i].Relation)
		if !ok || d.verdict != held {
			return
		}
		g.until = min(g.until, d.until)
	}
	if m.granted == nil || len(m.granted) >= max(1, 2*m.decisions.most/entriesPerQuestion) {
		m.granted = make(map[string]grant)
	}
	m.granted[key] = g
}

// keysOf returns one key for each question; nil if one has details, which are not part of a key.
// Length prefixes keep different questions from having the same key.
func keysOf(questions []Question) []string {
	keys := make([]string, len(questions))
	var b []byte
	text := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	for i, q := range questions {
		if len(q.Details) > 0 {
			return nil
		}
		b = b[:0]
		text(string(q.Subject))
		text(string(q.Actor))
		b = binary.AppendUvarint(b, uint64(len(q.Edges)))
		for _, e := range q.Edges {
			text(string(e.From))
			text(string(e.To))
		}
		b = binary.AppendUvarint(b, uint64(len(q.Scopes)))
		for _, scope := range q.Scopes {
			text(scope)
		}
		for _, audience := range q.Audiences {
			text(audience)
		}
		keys[i] = string(b)
	}
	return keys
}
