package audit_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
)

var start = time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC)

// book is a log in the making.
type book struct {
	records []audit.Record
	now     time.Time
	signer  note.Signer
	key     note.Verifier
}

func newBook(t testing.TB) *book {
	b := &book{now: start}
	b.signer, b.key = signer(t, "deputy.example")
	return b
}

// add numbers and seals the record.
func (b *book) add(r audit.Record) audit.Record {
	b.now = b.now.Add(time.Second)
	r.Tenant, r.Seq, r.Time = "acme", uint64(len(b.records))+1, b.now
	b.records = append(b.records, seal(r))
	return r
}

// seal salts and digests the values, and hashes the whole.
func seal(r audit.Record) audit.Record {
	for f := range r.Personal {
		if p := &r.Personal[f]; p.Value != "" {
			p.Salt = make([]byte, 32)
			if _, err := rand.Read(p.Salt); err != nil {
				panic(err)
			}
			digest := audit.Digest(p.Salt, p.Value)
			p.Digest = digest[:]
		}
	}
	r.LeafHash = r.Leaf()
	return r
}

func personal(values map[audit.Field]string) (list [audit.Fields]audit.Personal) {
	for f, v := range values {
		list[f].Value = v
	}
	return list
}

// grant drafts a grant with its claims; a child's hops continue its parent's.
func (b *book) grant(parent *audit.Record, actors ...string) audit.Record {
	r := audit.Record{
		Kind: "grant", Outcome: "granted", ID: rand.Text(), Txn: rand.Text(), Root: "root", Scopes: []string{"a.read", "b.read"},
		Audiences: []string{"https://a.example", "https://b.example"}, Expiry: start.Add(time.Hour),
		Personal: personal(map[audit.Field]string{
			audit.FieldSubject: "user:alice", audit.FieldCaller: actors[0], audit.FieldActor: actors[len(actors)-1],
			audit.FieldActors: strings.Join(actors, "|"), audit.FieldDetails: `[{"actions":["read","write"],"type":"doc"}]`,
		}),
	}
	depth, hops := 8, []delegation.Hop{}
	if parent != nil {
		p, err := delegation.DecodeClaims([]byte(parent.Personal[audit.FieldClaims].Value))
		if err != nil {
			panic(err)
		}
		r.Parent, r.Txn, hops, depth = parent.ID, parent.Txn, p.Delegation.Hops, p.Delegation.DepthLeft-1
	}
	c := delegation.Claims{
		Issuer: "https://deputy.example", Subject: "user:alice", Audience: r.Audiences, Scope: r.Scopes, IssuedAt: start.Unix(),
		NotBefore: start.Unix(), ExpiresAt: r.Expiry.Unix(), ID: r.ID, Txn: r.Txn, Delegation: delegation.Delegation{Root: r.Root, DepthLeft: depth,
			Hops: append(slices.Clone(hops), delegation.Hop{ID: r.ID, Seq: uint64(len(b.records)) + 1, Actor: len(actors) - 1})},
	}
	for _, actor := range actors {
		c.Act = append(c.Act, delegation.Principal(actor))
	}
	c.ClientID = c.Act.Current()
	var err error
	if c.Details, err = delegation.ParseDetails([]byte(r.Personal[audit.FieldDetails].Value)); err != nil {
		panic(err)
	}
	raw, err := c.MarshalJSON()
	if err != nil {
		panic(err)
	}
	r.Personal[audit.FieldClaims].Value = string(raw)
	return r
}

// prune takes the claims away, as when the grant has expired; the other fields are checked alone then.
func prune(r audit.Record) audit.Record {
	r.Personal[audit.FieldClaims] = audit.Personal{}
	return r
}

func revocation(prev uint64, kind, target string) audit.Record {
	return audit.Record{Kind: "revocation", Outcome: "done", Prev: prev, TargetKind: kind, TargetID: target,
		Personal: personal(map[audit.Field]string{audit.FieldCaller: "user:responder"})}
}

func refusal() audit.Record {
	return audit.Record{Kind: "refusal", Outcome: "refused", Reason: "scope_not_permitted",
		Personal: personal(map[audit.Field]string{audit.FieldCaller: "agent:planner"})}
}

func (b *book) head(n int) string {
	var edge audit.Edge
	for _, r := range b.records[:n] {
		edge.Add(r.LeafHash, nil)
	}
	text, err := audit.Checkpoint{Origin: "deputy.example", Size: uint64(n), Root: edge.Root(), Time: start}.Sign(b.signer)
	if err != nil {
		panic(err)
	}
	return text
}

func (b *book) lines() []byte {
	var out bytes.Buffer
	for _, r := range b.records {
		line, err := r.MarshalJSON()
		if err != nil {
			panic(err)
		}
		out.Write(append(line, '\n'))
	}
	return out.Bytes()
}

func (b *book) verify() (audit.Report, error) {
	return audit.VerifyLog(context.Background(), bytes.NewReader(b.lines()), audit.Options{Key: b.key, Checkpoint: b.head(len(b.records))})
}

// chain begins a log with a refusal and a chain of three.
func chain(t testing.TB) (b *book, parent, child audit.Record) {
	b = newBook(t)
	b.add(refusal())
	parent = b.add(b.grant(nil, "agent:planner"))
	child = b.add(b.grant(&parent, "agent:planner", "agent:researcher"))
	b.add(b.grant(&child, "agent:planner", "agent:researcher")) // self-narrowing
	return b, parent, child
}

func TestSoundLogs(t *testing.T) {
	b, parent, _ := chain(t)
	taken := b.add(b.grant(&parent, "agent:planner", "agent:writer"))
	b.add(audit.Record{Kind: "void", Outcome: "done", Voids: taken.Seq})
	b.add(revocation(0, "chain", parent.Txn))
	b.add(revocation(7, "token", "other"))
	b.records[2].Personal[audit.FieldSubject] = audit.Personal{Digest: b.records[2].Personal[audit.FieldSubject].Digest}
	b.records[2].Personal[audit.FieldActors] = audit.Personal{Digest: b.records[2].Personal[audit.FieldActors].Digest}
	b.records[2].Personal[audit.FieldClaims].Value = "" // expired
	r, err := b.verify()
	if err != nil || r.Tenant != "acme" || r.First != 1 || r.Last != 8 || r.Grants != 4 || r.Erased != 2 || r.Orphans != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestRulesOfTheChain breaks one rule at a time in an entry whose leaf is sound: the server itself would
// have to be at fault. Every case has its control: without the change the log verifies.
func TestRulesOfTheChain(t *testing.T) {
	key := func(r *audit.Record, f audit.Field, v string) { r.Personal[f].Value = v }
	for name, test := range map[string]struct {
		rule  string
		spoil func(b *book, parent, r *audit.Record)
	}{
		"wider scope":        {"I1", func(_ *book, _, r *audit.Record) { r.Scopes = []string{"a.read", "c.read"} }},
		"scopes not sorted":  {"I1", func(_ *book, _, r *audit.Record) { r.Scopes = []string{"b.read", "a.read"} }},
		"wider audience":     {"I2", func(_ *book, _, r *audit.Record) { r.Audiences = []string{"https://c.example"} }},
		"no audience":        {"I2", func(_ *book, _, r *audit.Record) { r.Audiences = nil }},
		"later expiry":       {"I3", func(_ *book, p, r *audit.Record) { r.Expiry = p.Expiry.Add(time.Second) }},
		"no expiry":          {"grant", func(_ *book, _, r *audit.Record) { r.Expiry = time.Time{} }},
		"another chain":      {"I4", func(_ *book, _, r *audit.Record) { r.Txn = "another" }},
		"another root":       {"I4", func(_ *book, _, r *audit.Record) { r.Root = "another" }},
		"another subject":    {"I4", func(_ *book, _, r *audit.Record) { key(r, audit.FieldSubject, "user:bob") }},
		"no subject":         {"I4", func(_ *book, _, r *audit.Record) { key(r, audit.FieldSubject, "") }},
		"a shorter chain":    {"I4", func(_ *book, _, r *audit.Record) { key(r, audit.FieldActors, "agent:tool") }},
		"two actors more":    {"I4", func(_ *book, _, r *audit.Record) { key(r, audit.FieldActors, "agent:planner|agent:a|agent:b") }},
		"a changed ancestor": {"I4", func(_ *book, _, r *audit.Record) { key(r, audit.FieldActors, "agent:other|agent:researcher") }},
		"wider details":      {"I5", func(_ *book, _, r *audit.Record) { key(r, audit.FieldDetails, `[{"actions":["delete"],"type":"doc"}]`) }},
		"unknown details":    {"I5", func(_ *book, _, r *audit.Record) { key(r, audit.FieldDetails, `[{"type":"payment"}]`) }},
		"no such parent":     {"parent", func(_ *book, _, r *audit.Record) { r.Parent = "nobody" }},
		"jti again":          {"jti", func(_ *book, p, r *audit.Record) { r.ID = p.ID }},
		"a voided parent":    {"parent", func(b *book, p, _ *audit.Record) { b.add(audit.Record{Kind: "void", Outcome: "done", Voids: p.Seq}) }},
		"a revoked chain":    {"revoked", func(b *book, p, _ *audit.Record) { b.add(revocation(0, "chain", p.Txn)) }},
		"a revoked parent":   {"revoked", func(b *book, p, _ *audit.Record) { b.add(revocation(0, "token", p.ID)) }},
		"a suspended actor":  {"revoked", func(b *book, _, _ *audit.Record) { b.add(suspension("agent:researcher")) }},
		"an unknown kind":    {"kind", func(_ *book, _, r *audit.Record) { r.Kind = "gift" }},
		"a void of what is to come": {"void", func(b *book, _, r *audit.Record) {
			*r = audit.Record{Kind: "void", Outcome: "done", Voids: uint64(len(b.records)) + 1}
		}},
		"a grant that voids":    {"void", func(_ *book, p, r *audit.Record) { r.Voids = p.Seq }},
		"a grant with a target": {"revocation", func(_ *book, p, r *audit.Record) { r.TargetKind = "chain" }},
		"a gap of revocations":  {"prev", func(b *book, p, r *audit.Record) { *r = revocation(1, "chain", "x") }},
		"a target of nothing":   {"revocation", func(b *book, p, r *audit.Record) { *r = revocation(0, "moon", "x") }},
	} {
		t.Run(name, func(t *testing.T) {
			for _, spoiled := range []bool{false, true} {
				b := newBook(t)
				parent := b.add(b.grant(nil, "agent:planner"))
				child := prune(b.grant(&parent, "agent:planner", "agent:researcher"))
				if spoiled {
					test.spoil(b, &parent, &child)
				}
				b.add(child)
				_, err := b.verify()
				var bad *audit.BadEntry
				if !spoiled && err != nil {
					t.Fatalf("the control: %v", err)
				}
				if last := uint64(len(b.records)); spoiled && (!errors.As(err, &bad) || bad.Rule != test.rule || bad.Entry != last || bad.Through != last) {
					t.Errorf("found %v, want entry %d: %s", err, last, test.rule)
				}
			}
		})
	}
}

func suspension(agent string) audit.Record {
	r := revocation(0, "suspend", "")
	r.Personal[audit.FieldTarget].Value = agent
	return r
}

// TestClaimsAreTheEntry changes an entry so that only its claims tell.
func TestClaimsAreTheEntry(t *testing.T) {
	for name, spoil := range map[string]func(r *audit.Record, claims *delegation.Claims){
		"none":     func(*audit.Record, *delegation.Claims) {},
		"jti":      func(r *audit.Record, _ *delegation.Claims) { r.ID = "another" },
		"key":      func(r *audit.Record, _ *delegation.Claims) { r.HolderKey = "mine" },
		"scope":    func(r *audit.Record, _ *delegation.Claims) { r.Scopes = r.Scopes[:1] },
		"audience": func(r *audit.Record, _ *delegation.Claims) { r.Audiences = r.Audiences[:1] },
		"expiry":   func(r *audit.Record, _ *delegation.Claims) { r.Expiry = r.Expiry.Add(-time.Second) },
		"details":  func(r *audit.Record, _ *delegation.Claims) { r.Personal[audit.FieldDetails].Value = "" },
		"actors": func(r *audit.Record, _ *delegation.Claims) {
			r.Personal[audit.FieldActors].Value = "agent:planner|agent:other"
		},
		"number":         func(_ *audit.Record, c *delegation.Claims) { c.Delegation.Hops[1].Seq++ },
		"parent's hop":   func(_ *audit.Record, c *delegation.Claims) { c.Delegation.Hops[0].Key = "another" },
		"another parent": func(_ *audit.Record, c *delegation.Claims) { c.Delegation.Hops[0].ID = "another" },
		"depth":          func(_ *audit.Record, c *delegation.Claims) { c.Delegation.DepthLeft++ },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBook(t)
			parent := b.add(b.grant(nil, "agent:planner"))
			child := b.grant(&parent, "agent:planner", "agent:researcher")
			c, err := delegation.DecodeClaims([]byte(child.Personal[audit.FieldClaims].Value))
			if err != nil {
				t.Fatal(err)
			}
			spoil(&child, &c)
			raw, err := c.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			child.Personal[audit.FieldClaims].Value = string(raw)
			b.add(child)
			_, err = b.verify()
			var bad *audit.BadEntry
			if found := errors.As(err, &bad) && bad.Rule == "claims" && bad.Entry == 2; found != (name != "none") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestBadLines(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(lines []string) []string
		entry uint64
		rule  string
	}{
		"none":            {func(l []string) []string { return l }, 0, ""},
		"cut in a line":   {func(l []string) []string { l[3] = l[3][:50]; return l }, 4, "form"},
		"an empty line":   {func(l []string) []string { return slices.Insert(l, 1, "") }, 2, "form"},
		"a line again":    {func(l []string) []string { return slices.Insert(l, 1, l[0]) }, 2, "order"},
		"a line too few":  {func(l []string) []string { return slices.Delete(l, 1, 2) }, 2, "order"},
		"no last line":    {func(l []string) []string { return l[:3] }, 4, "missing"},
		"nothing":         {func([]string) []string { return nil }, 1, "missing"},
		"another tenant":  {func(l []string) []string { l[2] = strings.Replace(l[2], "acme", "evil", 1); return l }, 3, "tenant"},
		"an earlier time": {func(l []string) []string { l[2] = strings.Replace(l[2], `"time":"2026`, `"time":"2025`, 1); return l }, 3, "time"},
		"an endless line": {func(l []string) []string { l[2] = strings.Repeat(" ", audit.MaxLine+1); return l }, 3, "form"},
		"dropped later": {func(l []string) []string {
			l[2] = `{"dropped":{"through":1,"hashes":["` + strings.Repeat("A", 43) + `="]}}`
			return l
		}, 3, "form"},
	} {
		b, _, _ := chain(t)
		lines := strings.Split(strings.TrimSuffix(string(b.lines()), "\n"), "\n")
		o := audit.Options{Key: b.key, Checkpoint: b.head(len(b.records))}
		text := strings.Join(test.spoil(lines), "\n")
		_, err := audit.VerifyLog(t.Context(), strings.NewReader(text), o)
		var bad *audit.BadEntry
		if test.rule == "" && err != nil || test.rule != "" && (!errors.As(err, &bad) || bad.Rule != test.rule || bad.Entry != test.entry) {
			t.Errorf("%s: found %v, want entry %d: %s", name, err, test.entry, test.rule)
		}
	}
}

// TestWhatIsBelieved is about the checkpoints: a log is held to all of them.
func TestWhatIsBelieved(t *testing.T) {
	b, _, _ := chain(t)
	stranger := newBook(t)
	stranger.records = b.records
	verify := func(o audit.Options) error {
		_, err := audit.VerifyLog(t.Context(), bytes.NewReader(b.lines()), o)
		return err
	}
	if err := verify(audit.Options{Key: b.key, Checkpoint: b.head(3), Kept: []string{b.head(1), b.head(3), b.head(4)}}); err != nil {
		t.Error(err)
	}
	other := newBook(t)
	other.signer = b.signer
	for range 4 {
		other.add(refusal())
	}
	for name, o := range map[string]audit.Options{
		"no key":            {Checkpoint: b.head(4)},
		"no checkpoint":     {Key: b.key, Kept: []string{b.head(4)}},
		"a stranger's":      {Key: b.key, Checkpoint: stranger.head(4)},
		"a stranger's kept": {Key: b.key, Checkpoint: b.head(4), Kept: []string{stranger.head(2)}},
		"another log":       {Key: b.key, Checkpoint: other.head(4)},
		"another kept log":  {Key: b.key, Checkpoint: b.head(4), Kept: []string{other.head(2)}},
		"two logs":          {Key: b.key, Checkpoint: b.head(2), Kept: []string{other.head(2)}},
		"a longer log":      {Key: b.key, Checkpoint: b.head(2), Kept: []string{longer(b).head(5)}},
	} {
		if verify(o) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	r, err := audit.VerifyLog(t.Context(), bytes.NewReader(b.lines()), audit.Options{Key: b.key, Checkpoint: b.head(3)})
	if err != nil || r.Uncovered != 1 || r.Last != 4 {
		t.Errorf("with one entry behind the checkpoint: %+v, %v", r, err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := audit.VerifyLog(gone, bytes.NewReader(b.lines()), audit.Options{Key: b.key, Checkpoint: b.head(4)}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func longer(b *book) *book {
	more := *b
	more.records = slices.Clone(b.records)
	more.add(refusal())
	return &more
}

// TestDroppedPrefix verifies what is left after retention.
func TestDroppedPrefix(t *testing.T) {
	b, _, _ := chain(t)
	b.add(revocation(0, "token", "x"))
	b.add(revocation(5, "token", "y"))
	for through := 1; through <= 5; through++ {
		var edge audit.Edge
		for _, r := range b.records[:through] {
			edge.Add(r.LeafHash, nil)
		}
		line, err := audit.Dropped{Through: uint64(through), Hashes: edge.Hashes}.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		rest := append(append(line, '\n'), bytes.Join(bytes.SplitAfter(b.lines(), []byte("\n"))[through:], nil)...)
		o := audit.Options{Key: b.key, Checkpoint: b.head(6), Kept: []string{b.head(through), b.head(5)}}
		r, err := audit.VerifyLog(t.Context(), bytes.NewReader(rest), o)
		if err != nil || r.First != uint64(through)+1 || r.Last != 6 {
			t.Errorf("without the first %d: %+v, %v", through, r, err)
		}
		if orphans := map[int]uint64{2: 1, 3: 1}[through]; r.Orphans != orphans {
			t.Errorf("without the first %d: %d orphans, want %d", through, r.Orphans, orphans)
		}
		within := audit.Options{Key: b.key, Checkpoint: b.head(6), Kept: []string{b.head(through - 1)}}
		covered := audit.Options{Key: b.key, Checkpoint: b.head(through - 1)}
		for _, o := range []audit.Options{within, covered} {
			if _, err := audit.VerifyLog(t.Context(), bytes.NewReader(rest), o); err == nil && through > 1 {
				t.Errorf("without the first %d, a checkpoint within them was passed over", through)
			}
		}
		forged := edge.Hashes[0]
		forged[0] ^= 1
		line, err = audit.Dropped{Through: uint64(through), Hashes: append([]tlog.Hash{forged}, edge.Hashes[1:]...)}.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		rest = append(append(line, '\n'), bytes.Join(bytes.SplitAfter(b.lines(), []byte("\n"))[through:], nil)...)
		if _, err := audit.VerifyLog(t.Context(), bytes.NewReader(rest), o); err == nil {
			t.Errorf("without the first %d, and another prefix: accepted", through)
		}
	}
}

// TestNothingIsLeft: a log that claims that everything was dropped is not verified, though its hashes
// give the root.
func TestNothingIsLeft(t *testing.T) {
	b, _, _ := chain(t)
	var edge audit.Edge
	for _, r := range b.records {
		edge.Add(r.LeafHash, nil)
	}
	line, err := audit.Dropped{Through: edge.Size, Hashes: edge.Hashes}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	o := audit.Options{Key: b.key, Checkpoint: b.head(len(b.records))}
	_, err = audit.VerifyLog(t.Context(), bytes.NewReader(append(line, '\n')), o)
	if bad, _ := errors.AsType[*audit.BadEntry](err); bad == nil || bad.Rule != "dropped" || bad.Entry != 1 || bad.Through != edge.Size {
		t.Errorf("%v", err)
	}
}

// TestLongLogs sees that memory is bounded: grants that ended long ago are forgotten, and can be told from
// those that live.
func TestLongLogs(t *testing.T) {
	b := newBook(t)
	parent := b.add(prune(b.grant(nil, "agent:planner")))
	for i := range 3000 {
		g := prune(b.grant(nil, "agent:planner"))
		g.Expiry = b.now.Add(time.Minute)
		b.add(g)
		if i == 2900 {
			b.now = b.now.Add(4 * time.Hour)
		}
	}
	done := uint64(0)
	o := audit.Options{Key: b.key, Checkpoint: b.head(len(b.records)), Progress: func(n uint64) { done = n }}
	if _, err := audit.VerifyLog(t.Context(), bytes.NewReader(b.lines()), o); err != nil || done != uint64(len(b.records)) {
		t.Errorf("%v after %d", err, done)
	}
	late := prune(b.grant(nil, "agent:planner", "agent:late"))
	late.Parent, late.Txn, late.Expiry = parent.ID, parent.Txn, parent.Expiry
	for range 2000 { // makes it look again at what has ended
		b.add(prune(b.grant(nil, "agent:planner")))
	}
	b.add(late)
	var bad *audit.BadEntry
	if _, err := b.verify(); !errors.As(err, &bad) || bad.Rule != "parent" {
		t.Errorf("a child hours after its parent's end: %v", err)
	}
}

func BenchmarkVerifyLog(b *testing.B) {
	log := newBook(b)
	for range 1000 {
		parent := log.add(log.grant(nil, "agent:planner"))
		log.add(log.grant(&parent, "agent:planner", "agent:researcher"))
	}
	lines, o := log.lines(), audit.Options{Key: log.key, Checkpoint: log.head(len(log.records))}
	b.SetBytes(int64(len(lines)))
	for b.Loop() {
		if _, err := audit.VerifyLog(b.Context(), bytes.NewReader(lines), o); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(log.records)*b.N)/b.Elapsed().Seconds(), "entries/s")
	b.ReportMetric(float64(len(lines)/len(log.records)), "B/entry")
}

func ExampleBadEntry() {
	fmt.Println(&audit.BadEntry{Entry: 14, Through: 14, Rule: "leaf", Detail: "its fields do not give its leaf hash"})
	// Output: entry 14: leaf: its fields do not give its leaf hash
}
