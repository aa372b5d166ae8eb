package fill_test

import (
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/fill"
	"deputy.example/deputy/server/internal/ledger"
)

func TestRevocationsAreInForce(t *testing.T) {
	for _, kind := range []string{"sqlite", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			dsn := database(t, kind)
			told := 0
			if err := fill.Revoke(t.Context(), dsn, "acme", 1201, func(written int) { told = written }); err != nil {
				t.Fatal(err)
			}
			l, err := ledger.Open(t.Context(), dsn, ledger.Config{Timeout: 20 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			bans := 0
			for _, e := range entries(t, l) {
				if e.Kind == ledger.KindRevocation && e.Revocation.Target.Kind == delegation.BanToken && time.Until(e.Revocation.Until) > time.Hour {
					bans++
				}
			}
			if bans != 1201 || told != 1201 {
				t.Errorf("%d bans are in force, %d were told of", bans, told)
			}
		})
	}
}
