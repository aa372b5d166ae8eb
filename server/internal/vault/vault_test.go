package vault

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// table is a Store in memory, with the rules that the databases have.
type table struct {
	mu         sync.Mutex
	rows       []Row
	down       error
	unnumbered bool // control: AddSealedKey gives the next free number, whatever its caller has read
}

func (s *table) SealedKeys(context.Context) ([]Row, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.rows), s.down
}

func (s *table) find(r Row) int {
	return slices.IndexFunc(s.rows, func(o Row) bool { return o.Tenant == r.Tenant && o.Use == r.Use && o.Number == r.Number })
}

func (s *table) AddSealedKey(_ context.Context, r Row) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.unnumbered && s.find(r) >= 0 {
		r.Number++
	}
	if s.down != nil || s.find(r) >= 0 {
		return false, s.down
	}
	s.rows = append(s.rows, r)
	return true, nil
}

func (s *table) AmendSealedKey(_ context.Context, before, after Row) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.find(before)
	if s.down != nil || n < 0 || !same(s.rows[n], before) {
		return false, s.down
	}
	s.rows[n] = after
	return true, nil
}

func (s *table) RetireSealedKey(_ context.Context, r Row, at time.Time) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.find(r)
	later := slices.ContainsFunc(s.rows, func(o Row) bool {
		return o.Tenant == r.Tenant && o.Use == r.Use && o.Number > r.Number && o.Retired.IsZero() && !o.SignsFrom.After(at)
	})
	if s.down != nil || n < 0 || !s.rows[n].Retired.IsZero() || !r.SignsFrom.After(at) && !later {
		return false, s.down
	}
	s.rows[n].Retired, s.rows[n].Sealed = at, nil
	return true, nil
}

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Unix(1_800_000_000, 0)} }

func (c *clock) now() time.Time { return c.add(0) }

func (c *clock) add(d time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
	return c.at
}

// plain makes keys whose text is their private part.
var plain = Maker[string]{
	Make: func(string) ([]byte, error) { return []byte("private " + rand.Text()), nil },
	Open: func(private []byte, _ string) (string, string, error) {
		sum := sha256.Sum256(private)
		return string(private), hex.EncodeToString(sum[:6]), nil
	},
}

var quarterly = Plan{
	Tenant: "acme", Use: Tokens, Algorithm: "ES256",
	Rotate: 90 * 24 * time.Hour, Ahead: time.Hour, Lifetime: 15 * time.Minute,
}

// newKMS makes a file with so many keys.
func newKMS(t testing.TB, n int) (*FileKMS, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "all")
	var all []byte
	for range n {
		one := filepath.Join(t.TempDir(), "kek")
		if _, err := CreateKEK(one); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(one)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text...)
	}
	if err := os.WriteFile(path, all, 0o600); err != nil {
		t.Fatal(err)
	}
	return openKMS(t, path), path
}

func openKMS(t testing.TB, path string) *FileKMS {
	t.Helper()
	kms, err := OpenFileKMS(path)
	if err != nil {
		t.Fatal(err)
	}
	return kms
}

// instance is one process.
type instance struct {
	*Vault
	series *Series[string]
}

func open(t testing.TB, store Store, kms KMS, now func() time.Time, plan Plan) (instance, error) {
	s := NewSeries(plan, plain, now)
	v, err := Open(t.Context(), Config{Store: store, KMS: kms, Now: now}, s)
	return instance{v, s}, err
}

func begin(t testing.TB, store Store, kms KMS, now func() time.Time, plan Plan) instance {
	t.Helper()
	i, err := open(t, store, kms, now, plan)
	if err == nil {
		err = i.Begin(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func (i instance) round(t testing.TB) {
	t.Helper()
	if err := i.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// held returns the keys in force, by phase.
func (i instance) held(t testing.TB) map[Phase][]string {
	t.Helper()
	set, err := i.series.Now()
	if err != nil {
		t.Fatal(err)
	}
	by := make(map[Phase][]string)
	for _, k := range set.Keys {
		by[k.Phase] = append(by[k.Phase], k.ID)
	}
	return by
}

func (i instance) signs(t testing.TB) string {
	t.Helper()
	by := i.held(t)
	if len(by[Signing]) != 1 {
		t.Fatalf("%v sign", by[Signing])
	}
	return by[Signing][0]
}

// careless is a KMS that binds nothing: the control of the bound bytes.
type careless struct{ KMS }

func (k careless) Seal(ctx context.Context, id string, plain, _ []byte) ([]byte, error) {
	return k.KMS.Seal(ctx, id, plain, nil)
}

func (k careless) Open(ctx context.Context, id string, sealed, _ []byte) ([]byte, error) {
	return k.KMS.Open(ctx, id, sealed, nil)
}

func TestARowOpensOnlyAsItWasSealed(t *testing.T) {
	kms, _ := newKMS(t, 2)
	other := kms.Current()
	for id := range maps.Keys(kms.keys) {
		if id != kms.Current() {
			other = id
		}
	}
	for name, test := range map[string]struct {
		edit  func(rows []Row) Row // makes the first row another
		bound bool                 // only the bound bytes reveal the edit
	}{
		"as it was":           {func(r []Row) Row { return r[0] }, false},
		"another tenant's":    {func(r []Row) Row { r[2].Number = 1; r[2].Tenant = "acme"; return r[2] }, true},
		"another use":         {func(r []Row) Row { r[3].Number = 1; r[3].Use = Tokens; return r[3] }, true},
		"another place":       {func(r []Row) Row { r[1].Number = 1; return r[1] }, true},
		"signs earlier":       {func(r []Row) Row { r[0].SignsFrom = r[0].SignsFrom.Add(-time.Hour); return r[0] }, true},
		"published earlier":   {func(r []Row) Row { r[0].Published = r[0].Published.Add(-time.Hour); return r[0] }, true},
		"another algorithm":   {func(r []Row) Row { r[0].Algorithm = "RS256"; return r[0] }, true},
		"another kid":         {func(r []Row) Row { r[0].ID = "mine"; return r[0] }, false},
		"another's bytes":     {func(r []Row) Row { r[0].Sealed = r[1].Sealed; return r[0] }, false},
		"a changed bit":       {func(r []Row) Row { r[0].Sealed = bytes.Clone(r[0].Sealed); r[0].Sealed[20] ^= 1; return r[0] }, false},
		"cut short":           {func(r []Row) Row { r[0].Sealed = r[0].Sealed[:5]; return r[0] }, false},
		"nothing":             {func(r []Row) Row { r[0].Sealed = nil; return r[0] }, false},
		"another sealer's":    {func(r []Row) Row { r[0].SealedBy = other; return r[0] }, false},
		"an unknown sealer's": {func(r []Row) Row { r[0].SealedBy = "0123456789abcdef"; return r[0] }, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, k := range []KMS{kms, careless{kms}} {
				store, time := &table{}, newClock()
				mine := begin(t, store, k, time.now, quarterly)
				if _, err := mine.Rotate(t.Context(), "acme", Tokens, false); err != nil {
					t.Fatal(err)
				}
				foreign, checkpoints := quarterly, quarterly
				foreign.Tenant, checkpoints.Use = "globex", Checkpoints
				begin(t, store, k, time.now, foreign)
				begin(t, store, k, time.now, checkpoints)
				edited := test.edit(slices.Clone(store.rows))
				store.rows[0] = edited
				_, err := open(t, store, k, time.now, quarterly)
				_, bindsNothing := k.(careless)
				if want := name == "as it was" || test.bound && bindsNothing; (err == nil) != want {
					t.Errorf("binds nothing: %v: opens: %v, %v", bindsNothing, err == nil, err)
				}
				if err != nil && strings.Contains(err.Error(), "private ") {
					t.Errorf("the error repeats the key: %v", err)
				}
			}
		})
	}
}

func TestNoFreshKeyInPlaceOfOneThatDoesNotOpen(t *testing.T) {
	store, time := &table{}, newClock()
	kms, _ := newKMS(t, 1)
	first := begin(t, store, kms, time.now, quarterly).signs(t)
	wrong, _ := newKMS(t, 1)
	if _, err := open(t, store, wrong, time.now, quarterly); err == nil || !strings.Contains(err.Error(), kms.Current()) || !strings.Contains(err.Error(), first) {
		t.Errorf("another key-encryption key: %v", err)
	}
	if len(store.rows) != 1 {
		t.Errorf("%d keys", len(store.rows))
	}
	running := begin(t, store, kms, time.now, quarterly)
	store.rows = nil
	if err := running.Round(t.Context()); err == nil || len(store.rows) > 0 || running.signs(t) != first {
		t.Errorf("the table was emptied: %v, %d keys", err, len(store.rows))
	}
}

func TestKeyEncryptionKeysRotate(t *testing.T) {
	store, time := &table{}, newClock()
	old, oldPath := newKMS(t, 1)
	begin(t, store, old, time.now, quarterly)
	oldText, err := os.ReadFile(oldPath)
	if err != nil {
		t.Fatal(err)
	}
	next, nextPath := newKMS(t, 1)
	nextText, err := os.ReadFile(nextPath)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "both")
	write := func(parts ...[]byte) KMS {
		if err := os.WriteFile(file, bytes.Join(parts, []byte("\n# a comment\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		return openKMS(t, file)
	}
	begin(t, store, write(oldText, nextText), time.now, quarterly).round(t)
	if store.rows[0].SealedBy != old.Current() {
		t.Error("the second key seals")
	}
	begin(t, store, write(nextText, oldText), time.now, quarterly).round(t)
	if store.rows[0].SealedBy != next.Current() {
		t.Error("what the former key sealed was not sealed again")
	}
	if _, err := open(t, store, next, time.now, quarterly); err != nil {
		t.Errorf("the former key is still needed: %v", err)
	}
	if _, err := open(t, store, old, time.now, quarterly); err == nil {
		t.Error("the former key still opens")
	}
}

func TestKEKFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek")
	id, err := CreateKEK(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	text, err := os.ReadFile(path)
	if err != nil || openKMS(t, path).Current() != id {
		t.Errorf("another id, %v", err)
	}
	if _, err := CreateKEK(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("replaced: %v", err)
	}
	secret := string(text[len(kekPrefix)+4 : len(text)-6])
	for name, content := range map[string]string{
		"nothing": "", "only a comment": "# deputy-kek:", "no prefix": string(text[len(kekPrefix):]), "a PEM": "-----BEGIN PRIVATE KEY-----",
		"cut short": string(text[:len(text)-8]), "too long": strings.TrimSpace(string(text)) + "AAAA", "two on a line": strings.TrimSpace(string(text)) + " " + string(text),
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenFileKMS(path); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := OpenFileKMS(path + ".none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// TestScheduleOfAYear moves through a year in steps of an hour and holds every key to its plan.
func TestScheduleOfAYear(t *testing.T) {
	store, clock := &table{}, newClock()
	kms, _ := newKMS(t, 1)
	i := begin(t, store, kms, clock.now, quarterly)
	seen := make(map[string]time.Time) // since when a key was published
	signed := []string{i.signs(t)}
	for range 366 * 24 * 4 {
		now := clock.add(15 * time.Minute)
		i.round(t)
		by := i.held(t)
		for _, list := range by {
			for _, id := range list {
				if seen[id].IsZero() {
					seen[id] = now
				}
			}
		}
		if signs := i.signs(t); signs != signed[len(signed)-1] {
			if ahead := now.Sub(seen[signs]); ahead < quarterly.Ahead-15*time.Minute {
				t.Errorf("%s signs after it was published for %v", signs, ahead)
			}
			if former := signed[len(signed)-1]; !slices.Contains(by[Verifying], former) {
				t.Errorf("%s does not verify although it just signed", former)
			}
			signed = append(signed, signs)
		}
		if n := len(by[Signing]) + len(by[Verifying]) + len(by[Published]); n > 2 {
			t.Fatalf("%d keys in force: %v", n, by)
		}
	}
	if len(signed) != 5 {
		t.Errorf("%d keys signed in a year, want 5", len(signed))
	}
	for _, row := range store.rows[:3] {
		if row.Retired.IsZero() || len(row.Sealed) > 0 {
			t.Errorf("the private part of %s is still there although its time is over", row.ID)
		}
	}
	for n, row := range store.rows[1:] {
		if late := row.Published.Sub(store.rows[n].SignsFrom.Add(quarterly.Rotate - quarterly.Ahead)); late < 0 || late > 15*time.Minute {
			t.Errorf("%s was made %v after it was due", row.ID, late)
		}
	}
}

func TestInstancesThatRaceMakeOneSuccessor(t *testing.T) {
	kms, _ := newKMS(t, 1)
	for _, unnumbered := range []bool{false, true} {
		store, clock := &table{unnumbered: unnumbered}, newClock()
		begin(t, store, kms, clock.now, quarterly)
		var fleet []instance
		for range 8 {
			fleet = append(fleet, begin(t, store, kms, clock.now, quarterly))
		}
		clock.add(quarterly.Rotate)
		held := make([]map[Member][]Row, len(fleet))
		for n, i := range fleet { // all have read before one writes: the worst case
			var err error
			if held[n], err = i.read(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		var racing sync.WaitGroup
		for n, i := range fleet {
			racing.Go(func() {
				if err := i.maintain(t.Context(), i.series, held[n][i.series]); err != nil {
					t.Error(err)
				}
			})
		}
		racing.Wait()
		if made := len(store.rows) - 1; (made == 1) == unnumbered {
			t.Errorf("numbers are given once: %v; %d successors", !unnumbered, made)
		}
		if unnumbered {
			continue
		}
		for _, i := range fleet {
			i.round(t)
			if by := i.held(t); !slices.Equal(by[Published], []string{store.rows[1].ID}) || i.signs(t) != store.rows[0].ID {
				t.Errorf("an instance holds %v", by)
			}
		}
	}
}

func TestBeginsOnce(t *testing.T) {
	kms, _ := newKMS(t, 1)
	store, clock := &table{}, newClock()
	var racing sync.WaitGroup
	fleet := make([]instance, 8)
	for n := range fleet {
		racing.Go(func() { fleet[n] = begin(t, store, kms, clock.now, quarterly) })
	}
	racing.Wait()
	for _, i := range fleet {
		if len(store.rows) != 1 || i.signs(t) != store.rows[0].ID {
			t.Errorf("%d keys", len(store.rows))
		}
	}
}

func TestWithoutTheTable(t *testing.T) {
	kms, _ := newKMS(t, 1)
	store, clock := &table{}, newClock()
	i, plan := instance{}, quarterly
	if _, err := NewSeries(plan, plain, clock.now).Now(); err == nil {
		t.Error("a series that was not read has keys")
	}
	i = begin(t, store, kms, clock.now, plan)
	signs := i.signs(t)
	store.down = errors.New("the database is gone")
	for range 5 {
		if err := i.Round(t.Context()); err == nil {
			t.Error("a round without the table is fine")
		}
		if i.signs(t) != signs {
			t.Error("the last good keys do not serve")
		}
		clock.add(time.Minute)
	}
	i.signs(t)
	clock.add(time.Second)
	if _, err := i.series.Now(); err == nil {
		t.Error("keys are used without a bound")
	}
	store.down = nil
	i.round(t)
	if i.signs(t) != signs {
		t.Error("it did not come back")
	}
}

func TestRetire(t *testing.T) {
	kms, _ := newKMS(t, 1)
	store, clock := &table{}, newClock()
	here, there := begin(t, store, kms, clock.now, quarterly), begin(t, store, kms, clock.now, quarterly)
	stolen := here.signs(t)
	if _, err := here.Retire(t.Context(), "acme", stolen); err == nil || !strings.Contains(err.Error(), "--immediately") {
		t.Errorf("the only key was retired: %v", err)
	}
	pending, err := here.Rotate(t.Context(), "acme", Tokens, false)
	if err != nil || pending.Phase != Published {
		t.Fatal(pending, err)
	}
	if _, err := here.Rotate(t.Context(), "acme", Tokens, false); err == nil {
		t.Error("a second successor while the first waits")
	}
	if _, err := here.Retire(t.Context(), "acme", stolen); err == nil {
		t.Error("retired although its successor does not sign yet")
	}
	next, err := here.Rotate(t.Context(), "acme", Tokens, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := here.Retire(t.Context(), "acme", stolen); err == nil || !strings.Contains(err.Error(), "wait until") {
		t.Errorf("retired although its successor does not sign yet: %v", err)
	}
	sealed := store.rows[0].Sealed
	clock.add(Soon)
	there.round(t)
	if there.signs(t) != next.ID {
		t.Error("the other instance does not sign with the new key")
	}
	if s, err := here.Retire(t.Context(), "acme", stolen); err != nil || s.Phase != Retired {
		t.Fatal(s, err)
	}
	there.round(t)
	for phase, ids := range there.held(t) {
		if slices.Contains(ids, stolen) {
			t.Errorf("a retired key is %s", phase)
		}
	}
	if len(store.rows[0].Sealed) > 0 {
		t.Error("the private part of a retired key was kept")
	}
	for _, id := range []string{stolen, "unknown"} {
		if _, err := here.Retire(t.Context(), "acme", id); err == nil {
			t.Errorf("%s was retired", id)
		}
	}
	if _, err := here.Retire(t.Context(), "globex", next.ID); err == nil {
		t.Error("another tenant's key was retired")
	}

	// A writer of the table cannot restore a retired key, unless it kept the sealed bytes.
	store.rows[0].Retired = time.Time{}
	if err := there.Round(t.Context()); err == nil {
		t.Error("a key came back")
	}
	store.rows[0].Sealed = sealed
	if err := there.Round(t.Context()); err != nil || !slices.Contains(there.held(t)[Verifying], stolen) {
		t.Errorf("the control: %v", err)
	}
}

// TestLongerLivesAreRemembered lowers the lifetime of tokens again after a while: what was issued
// meanwhile keeps its key.
func TestLongerLivesAreRemembered(t *testing.T) {
	kms, _ := newKMS(t, 1)
	store, clock := &table{}, newClock()
	begin(t, store, kms, clock.now, quarterly)
	long := quarterly
	long.Lifetime = 24 * time.Hour
	begin(t, store, kms, clock.now, long).round(t)
	i := begin(t, store, kms, clock.now, quarterly)
	first := i.signs(t)
	if _, err := i.Rotate(t.Context(), "acme", Tokens, false); err != nil {
		t.Fatal(err)
	}
	i.round(t) // must not lower the life that it has read
	clock.add(quarterly.Ahead + 24*time.Hour)
	i.round(t)
	if !slices.Contains(i.held(t)[Verifying], first) {
		t.Error("a key is gone while what it signed is in force")
	}
	clock.add(margin)
	i.round(t)
	if slices.Contains(i.held(t)[Verifying], first) {
		t.Error("a key stays for ever")
	}
}

// TestTogether is about keys that all sign until they are retired.
func TestTogether(t *testing.T) {
	kms, _ := newKMS(t, 1)
	store, clock := &table{}, newClock()
	plan := Plan{Tenant: "acme", Use: Checkpoints, Algorithm: "Ed25519", Together: true}
	i := begin(t, store, kms, clock.now, plan)
	first := i.signs(t)
	next, err := i.Rotate(t.Context(), "acme", Checkpoints, false)
	if err != nil {
		t.Fatal(err)
	}
	clock.add(10 * 365 * 24 * time.Hour)
	i.round(t)
	if by := i.held(t); !slices.Equal(by[Signing], []string{first, next.ID}) {
		t.Errorf("%v", by)
	}
	if _, err := i.Retire(t.Context(), "acme", first); err != nil {
		t.Error(err)
	}
	if i.round(t); i.signs(t) != next.ID {
		t.Error("a retired key signs")
	}
}

func TestRunReadsUntilCanceled(t *testing.T) {
	kms, _ := newKMS(t, 1)
	synctest.Test(t, func(t *testing.T) {
		store := &table{}
		here, there := begin(t, store, kms, time.Now, quarterly), begin(t, store, kms, time.Now, quarterly)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- there.Run(ctx) }()
		next, err := here.Rotate(t.Context(), "acme", Tokens, false)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(Every)
		synctest.Wait()
		if by := there.held(t); !slices.Contains(by[Published], next.ID) {
			t.Errorf("a second after the rotation the other instance holds %v", by)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestRetiredBeforeItSigned: a key that never signed takes over from none.
func TestRetiredBeforeItSigned(t *testing.T) {
	kms, _ := newKMS(t, 1)
	store, clock := &table{}, newClock()
	i := begin(t, store, kms, clock.now, quarterly)
	first := i.signs(t)
	next, err := i.Rotate(t.Context(), "acme", Tokens, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Retire(t.Context(), "acme", next.ID); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if i.round(t); i.signs(t) != first {
			t.Error("the first key signs no more")
		}
		clock.add(quarterly.Ahead)
	}
	clock.add(quarterly.Rotate)
	i.round(t)
	clock.add(quarterly.Ahead)
	if i.round(t); i.signs(t) != store.rows[2].ID {
		t.Error("after it nothing follows")
	}
}
