package ledger_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
)

// faults records the points at which statements could fail, and has them fail at chosen ones.
type faults struct {
	mu     sync.Mutex
	points []string
	fail   func(point string) bool
}

var errInjected = errors.New("injected")

func (f *faults) at(point string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Contains(f.points, point) {
		f.points = append(f.points, point)
	}
	if f.fail != nil && f.fail(point) {
		return fmt.Errorf("%w at %q", errInjected, point)
	}
	return nil
}

func (f *faults) set(fail func(point string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

// reached returns the points that are reached while do runs.
func (f *faults) reached(do func()) []string {
	f.mu.Lock()
	f.points = nil
	f.mu.Unlock()
	do()
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.points)
}

// once fails the first time that a point is reached which begins so.
func once(at string) func(string) bool {
	done := false
	return func(point string) bool {
		if done || !strings.HasPrefix(point, at) {
			return false
		}
		done = true
		return true
	}
}

// needed fails the test unless one of the points begins with each of these.
func needed(t *testing.T, points []string, list ...string) {
	t.Helper()
	for _, must := range list {
		if !slices.ContainsFunc(points, func(point string) bool { return strings.HasPrefix(point, must) }) {
			t.Fatalf("no fault can be injected %s; only at %q", must, points)
		}
	}
}

// everything is a draft that reaches every statement a grant can reach.
func everything() *ledger.Draft {
	now := time.Now()
	d := ledgertest.Grant(now, "user:alice", "agent:planner")
	d.Idempotency = &ledger.Idempotency{Key: d.ID, Fingerprint: [32]byte{1}, Until: now.Add(time.Hour)}
	d.Uses = []ledger.SingleUse{{Issuer: "https://idp.example", Key: "k", ID: d.ID, Made: now.Add(time.Minute), Until: now.Add(time.Minute)}}
	return d
}

const newHead = "insert into heads"

// TestNewTenantsHeadFails makes the statement fail that only the first transaction of a tenant has.
func TestNewTenantsHeadFails(t *testing.T) {
	for _, point := range []string{"before " + newHead, "after " + newHead} {
		f := &faults{}
		l := openedWith(t, databases["sqlite"](t), patient, f.at)
		f.set(once(point))
		if _, err := l.Append(t.Context(), tenant, everything()); reason(err) != delegation.DependencyDown {
			t.Errorf("%s: %v", point, err)
		}
		f.set(nil)
		if _, err := l.Append(t.Context(), tenant, everything()); err != nil {
			t.Errorf("after a fault %s: %v", point, err)
		}
		checked(t, l)
	}
}

// TestEveryStatementFails makes each statement of a transaction fail, once before it was executed
// and once after: failed, and failed but persisted. Whatever Append answers must be what is
// recorded.
func TestEveryStatementFails(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		f := &faults{}
		config, passed := patient, time.Duration(0)
		config.Now = func() time.Time { return time.Now().Add(passed) }
		l, other := openedWith(t, dsn, config, f.at), opened(t, dsn, patient)
		// news has the next transaction read what another instance has revoked, and prune.
		news := func() {
			t.Helper()
			if _, err := other.Append(t.Context(), tenant, ledgertest.Revocation(delegation.BanChain, "nobody's")); err != nil {
				t.Fatal(err)
			}
			passed += ledger.PruneEvery
		}
		if _, err := l.Append(t.Context(), tenant, everything()); err != nil {
			t.Fatal(err)
		}
		news()
		points := f.reached(func() {
			if _, err := l.Append(t.Context(), tenant, everything()); err != nil {
				t.Fatal(err)
			}
		})
		needed(t, points, "before commit", "after commit", "before update heads set seq = $2", "after insert into entries",
			"after insert into claims", "after insert into single_uses", "after insert into idempotency_keys", "before delete from",
			"before begin", map[bool]string{true: "after select 0, 0", false: "after select case when pg_is"}[dsn[0] == 's'])
		for _, point := range points {
			t.Run(point, func(t *testing.T) {
				news()
				d := everything()
				f.set(once(point))
				r, err := l.Append(t.Context(), tenant, d)
				f.set(nil)
				e, readErr := l.Entry(t.Context(), tenant, d.ID)
				switch {
				case err == nil && (readErr != nil || e.Seq != r.Seq || !e.MatchesClaims(r.Claims)):
					t.Fatalf("acknowledged, but not recorded: %v", readErr)
				case err != nil && reason(err) != delegation.DependencyDown:
					t.Fatalf("answer %v, want unavailable", err)
				case err != nil && !errors.Is(readErr, ledger.ErrNotFound):
					t.Fatalf("answered %v, but recorded (%v)", err, readErr)
				case point == "after commit" && err != nil:
					t.Fatalf("the commit was found neither done nor undone: %v", err)
				case point != "after commit" && err == nil:
					t.Fatal("the fault was not noticed")
				}
				checked(t, l)

				// A retry with the same key gets the one grant, whatever happened.
				retry := everything()
				retry.Idempotency = d.Idempotency
				again, err := l.Append(t.Context(), tenant, retry)
				if err != nil || again.Existing != (readErr == nil) {
					t.Fatalf("retry: %+v, %v", again, err)
				}
				checked(t, l)
			})
		}
	})
}

// TestUnresolvedCommit loses the answer of a commit, and of every attempt to find out about it.
func TestUnresolvedCommit(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		f := &faults{}
		l := openedWith(t, dsn, ledger.Config{Timeout: 300 * time.Millisecond}, f.at)
		for _, lost := range []string{"before commit", "after commit"} {
			d := everything()
			down := false
			f.set(func(point string) bool {
				down = down || point == lost
				return down && (point == lost || strings.HasPrefix(point, "before begin"))
			})
			start := time.Now()
			_, err := l.Append(t.Context(), tenant, d)
			if reason(err) != delegation.DependencyDown {
				t.Fatalf("%s lost: %v, want unavailable", lost, err)
			}
			if took := time.Since(start); took > 600*time.Millisecond {
				t.Errorf("answered after %v", took)
			}
			f.set(nil)
			retry := everything()
			retry.Idempotency = d.Idempotency
			r, err := l.Append(t.Context(), tenant, retry)
			if err != nil || r.Existing != (lost == "after commit") {
				t.Errorf("%s lost, retry: %+v, %v", lost, r, err)
			}
			checked(t, l)
		}
	})
}

// TestLostCommitOfSpend has no entry to recognise its transaction by.
func TestLostCommitOfSpend(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		f := &faults{}
		l := openedWith(t, dsn, patient, f.at)
		uses := everything().Uses
		f.set(once("after commit"))
		if err := l.Spend(t.Context(), tenant, uses); err != nil {
			t.Errorf("a commit whose answer was lost: %v", err)
		}
		if err := l.Spend(t.Context(), tenant, uses); reason(err) != delegation.AssertionReplayed {
			t.Errorf("the second time: %v", err)
		}
		f.set(once("before commit"))
		uses = everything().Uses
		if err := l.Spend(t.Context(), tenant, uses); reason(err) != delegation.DependencyDown {
			t.Errorf("a commit that did not happen: %v", err)
		}
		f.set(nil)
		if err := l.Spend(t.Context(), tenant, uses); err != nil {
			t.Errorf("after a commit that did not happen: %v", err)
		}
	})
}

// TestLostCommitAmongOthers lets another instance append between the commit and the question about
// it.
func TestLostCommitAmongOthers(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		other := opened(t, dsn, patient)
		f := &faults{}
		l := openedWith(t, dsn, patient, f.at)
		for _, lost := range []string{"before commit", "after commit"} {
			d := everything()
			fired := false
			f.set(func(point string) bool {
				if point == lost && !fired {
					fired = true
					return true
				}
				if fired && strings.HasPrefix(point, "before begin") {
					fired = false
					if _, err := other.Append(t.Context(), tenant, everything()); err != nil {
						t.Error(err)
					}
					f.fail = nil
				}
				return false
			})
			_, err := l.Append(t.Context(), tenant, d)
			if (err == nil) != (lost == "after commit") {
				t.Errorf("%s lost: %v", lost, err)
			}
			checked(t, l)
		}
	})
}

// TestRevocationNotCommitted must not be in force: the set in memory moves after the commit.
func TestRevocationNotCommitted(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		f := &faults{}
		l := openedWith(t, dsn, patient, f.at)
		parent, err := l.Append(t.Context(), tenant, everything())
		if err != nil {
			t.Fatal(err)
		}
		chain := ledgertest.Decode(parent.Claims).Txn
		f.set(once("before commit"))
		if _, err := l.Append(t.Context(), tenant, ledgertest.Revocation(delegation.BanChain, chain)); err == nil {
			t.Fatal("the fault was not noticed")
		}
		if _, err := l.Append(t.Context(), tenant, ledgertest.Child(time.Now(), parent.Claims, "agent:b")); err != nil {
			t.Errorf("a revocation that was not recorded hits: %v", err)
		}
		f.set(once("after commit"))
		if _, err := l.Append(t.Context(), tenant, ledgertest.Revocation(delegation.BanChain, chain)); err != nil {
			t.Error(err)
		}
		if _, err := l.Append(t.Context(), tenant, ledgertest.Child(time.Now(), parent.Claims, "agent:b")); reason(err) != delegation.TokenRevoked {
			t.Errorf("a revocation that was recorded does not hit: %v", err)
		}
		checked(t, l)
	})
}

// TestCheckFinds is the negative control of the checker: each kind of damage must be found.
func TestCheckFinds(t *testing.T) {
	damage := map[string]string{
		"deleted entry":        `DELETE FROM entries WHERE seq = 2`,
		"truncated tail":       `DELETE FROM entries WHERE seq = 4`,
		"edited scope":         `UPDATE entries SET scopes = 'admin' WHERE seq = 1`,
		"edited subject":       `UPDATE entries SET subject = 'user:mallory' WHERE seq = 1`,
		"edited claims":        `UPDATE claims SET value = claims2.value FROM (SELECT value FROM claims WHERE seq = 2) AS claims2 WHERE seq = 1`,
		"other tenant's entry": `UPDATE entries SET tenant = 'other' WHERE seq = 4`,
		"erased without salt":  `UPDATE entries SET subject = '' WHERE seq = 1`,
		"broken prev":          `UPDATE entries SET prev = 1 WHERE seq = 4`,
		"edited head":          `UPDATE heads SET seq = 7, tree_size = 7`,
		"key of no grant":      `UPDATE idempotency_keys SET seq = 3 WHERE seq = 1`,
		"two keys, one grant":  `UPDATE idempotency_keys SET seq = 1`,
		"claims of no grant":   `UPDATE claims SET seq = 3 WHERE seq = 1`,
	}
	for name, statement := range damage {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, dsn string) {
				l := opened(t, dsn, patient)
				for _, d := range []*ledger.Draft{everything(), everything(),
					ledgertest.Revocation(delegation.BanChain, "x"), ledgertest.Revocation(delegation.BanSuspend, "agent:x")} {
					if _, err := l.Append(t.Context(), tenant, d); err != nil {
						t.Fatal(err)
					}
				}
				checked(t, l)
				execute(t, dsn, statement)
				if err := ledgertest.Check(t.Context(), l, tenant); err == nil {
					t.Error("not found")
				}
			})
		})
	}
}

// TestWentBack restores an older state beneath a running process.
func TestWentBack(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		l := opened(t, dsn, patient)
		if _, err := l.Append(t.Context(), tenant, everything()); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Append(t.Context(), tenant, ledgertest.Revocation(delegation.BanChain, "x")); err != nil {
			t.Fatal(err)
		}
		execute(t, dsn, `DELETE FROM entries WHERE seq = 2`)
		execute(t, dsn, `UPDATE heads SET revocation = 0`)
		moveHead(t, dsn, 1)
		if _, err := l.Append(t.Context(), tenant, everything()); reason(err) != delegation.DependencyDown {
			t.Errorf("Append: %v, want unavailable", err)
		}
		if _, err := l.Revocations(t.Context(), tenant, true); reason(err) != delegation.DependencyDown {
			t.Errorf("Revocations: %v, want unavailable", err)
		}
	})
}

// TestErasure erases personal fields: leaf and proofs stay, and what is left still verifies.
func TestErasure(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		l := opened(t, dsn, patient)
		d := everything()
		d.Detail = "about alice"
		if _, err := l.Append(t.Context(), tenant, d); err != nil {
			t.Fatal(err)
		}
		before, err := l.Entry(t.Context(), tenant, d.ID)
		if err != nil {
			t.Fatal(err)
		}
		literal := map[bool]string{true: `x'0000'`, false: `'\x0000'::bytea`}[strings.HasPrefix(dsn, "sqlite")]
		execute(t, dsn, `UPDATE entries SET subject = '', actor = '', caller = '', actors = '', peer = '', detail = '',
			details = '', actor_proof = '', salts = `+literal)
		execute(t, dsn, `DELETE FROM claims`)
		after, err := l.Entry(t.Context(), tenant, d.ID)
		if err != nil {
			t.Fatal(err)
		}
		if after.Leaf != before.Leaf || string(after.Canonical()) != string(before.Canonical()) || after.Subject != "" {
			t.Errorf("erasure changed the leaf, or nothing: %+v", after)
		}
		if want := "subject actor caller actors peer detail claims actor_proof"; strings.Join(after.Erased(), " ") != want {
			t.Errorf("Erased() = %v, want %s", after.Erased(), want)
		}
		checked(t, l)
		retry := everything()
		retry.Idempotency = d.Idempotency
		if _, err := l.Append(t.Context(), tenant, retry); reason(err) != delegation.GrantGone {
			t.Errorf("retry of an erased grant: %v", err)
		}

		// A live revocation without its target would revive what it hit: everything stops instead.
		if _, err := l.Append(t.Context(), tenant, ledgertest.Revocation(delegation.BanSuspend, "agent:x")); err != nil {
			t.Fatal(err)
		}
		execute(t, dsn, `UPDATE entries SET target_principal = '' WHERE kind = 'revocation'`)
		if _, err := opened(t, dsn, patient).Revocations(t.Context(), tenant, true); reason(err) != delegation.DependencyDown {
			t.Errorf("a revocation without target: %v, want unavailable", err)
		}
	})
}

// TestNothingPersonalIsPlain looks for personal values of the draft in everything that stays.
func TestNothingPersonalIsPlain(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		l := opened(t, dsn, patient)
		d := ledgertest.Grant(time.Now(), "user:personal", "agent:personal")
		d.Detail, d.Peer, d.ActorProof = "personal", "personal", "personal"
		if _, err := l.Append(t.Context(), tenant, d); err != nil {
			t.Fatal(err)
		}
		for _, kind := range []delegation.TargetKind{delegation.BanSuspend, delegation.CutSubject, delegation.CutAgent} {
			if _, err := l.Append(t.Context(), tenant, ledgertest.Revocation(kind, "user:personal")); err != nil {
				t.Fatal(err)
			}
		}
		list, err := l.Entries(t.Context(), tenant, 0, 10)
		if err != nil || len(list) != 4 {
			t.Fatal(len(list), err)
		}
		for _, e := range list {
			if strings.Contains(string(e.Canonical()), "personal") {
				t.Errorf("entry %d: its canonical form holds a personal value", e.Seq)
			}
		}
	})
}
