package ledgertest

import (
	"bytes"
	"fmt"
	"sync"
	"time"

	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/vault"
)

// keepsKeys verifies the table of managed keys against the contract of vault.Store.
func keepsKeys(b *bench) {
	here, there := b.open(), b.open()
	began := b.Now().UTC().Truncate(time.Microsecond)
	key := func(tenant string, use vault.Use, number uint64, from time.Duration) vault.Row {
		return vault.Row{
			Tenant: tenant, Use: use, Number: number, ID: fmt.Sprintf("%s-%s-%d", tenant, use, number), Algorithm: "ES256",
			Published: began, SignsFrom: began.Add(from), Lifetime: 15 * time.Minute,
			Sealed: []byte{0, 1, byte(number)}, SealedBy: "kek",
		}
	}
	did := func(what string, want bool) func(bool, error) {
		return func(got bool, err error) {
			b.Helper()
			if got != want || err != nil {
				b.Errorf("%s: %v, %v, want %v", what, got, err, want)
			}
		}
	}
	list := func(l *ledger.Ledger) []vault.Row {
		b.Helper()
		rows, err := l.SealedKeys(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		return rows
	}
	if rows := list(here); len(rows) != 0 {
		b.Errorf("%d keys in an empty table", len(rows))
	}
	first, second, third := key("acme", vault.Tokens, 1, 0), key("acme", vault.Tokens, 2, time.Hour), key("acme", vault.Tokens, 3, 2*time.Hour)
	for _, r := range []vault.Row{second, first, key("acme", vault.Checkpoints, 1, 0), key("globex", vault.Tokens, 1, 0)} {
		did("a new key", true)(here.AddSealedKey(b.Context(), r))
	}
	again := first
	again.ID = "another"
	did("a number that was given", false)(there.AddSealedKey(b.Context(), again))
	rows := list(there)
	var order string
	for _, r := range rows {
		order += r.ID + " "
	}
	if want := "acme-checkpoints-1 acme-tokens-1 acme-tokens-2 globex-tokens-1 "; order != want {
		b.Fatalf("keys %s, want %s", order, want)
	}
	if got, want := fmt.Sprintf("%+v", rows[1]), fmt.Sprintf("%+v", first); got != want {
		b.Errorf("read\n%s\nwant\n%s", got, want)
	}

	amended := first
	amended.Lifetime, amended.Sealed, amended.SealedBy = time.Hour, []byte("other"), "kek2"
	did("amend", true)(there.AmendSealedKey(b.Context(), first, amended))
	did("amend what is not so any more", false)(here.AmendSealedKey(b.Context(), first, amended))
	if got := list(here)[1]; got.Lifetime != time.Hour || !bytes.Equal(got.Sealed, amended.Sealed) || got.SealedBy != "kek2" {
		b.Errorf("amended to %+v", got)
	}

	at := began.Add(30 * time.Minute)
	did("retire the only one that signs", false)(here.RetireSealedKey(b.Context(), amended, at))
	did("retire what does not sign yet", true)(here.RetireSealedKey(b.Context(), second, at))
	did("retire it again", false)(there.RetireSealedKey(b.Context(), second, at))
	did("amend what was retired", false)(there.AmendSealedKey(b.Context(), second, amended))
	did("retire the only one: the later one is retired", false)(here.RetireSealedKey(b.Context(), amended, began.Add(3*time.Hour)))
	did("a third key", true)(there.AddSealedKey(b.Context(), third))
	did("retire before the third signs", false)(here.RetireSealedKey(b.Context(), amended, at))
	did("retire when the third signs", true)(here.RetireSealedKey(b.Context(), amended, third.SignsFrom))
	if got := list(here)[1]; !got.Retired.Equal(third.SignsFrom) || len(got.Sealed) > 0 {
		b.Errorf("retired to %+v", got)
	}

	// All instances add the next one: it is there once.
	var added [8]bool
	var racing sync.WaitGroup
	for i := range added {
		racing.Go(func() {
			r := key("globex", vault.Tokens, 2, time.Hour)
			r.ID = fmt.Sprintf("of-%d", i)
			var err error
			if added[i], err = []*ledger.Ledger{here, there}[i%2].AddSealedKey(b.Context(), r); err != nil {
				b.Error(err)
			}
		})
	}
	racing.Wait()
	winners, rows := 0, list(here)
	for i, yes := range added {
		if yes {
			winners++
			if got := rows[len(rows)-1].ID; got != fmt.Sprintf("of-%d", i) {
				b.Errorf("instance %d was answered that its key counts, but %s does", i, got)
			}
		}
	}
	if winners != 1 {
		b.Errorf("%d instances added the next key", winners)
	}
	b.check(here)
}
