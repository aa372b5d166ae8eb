package console

import (
	"encoding/hex"
	"errors"
	"net/http"
	"strings"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

// ledgerPage shows the state of the log that proves that no entry was altered.
type ledgerPage struct {
	Checkpoint       *exchange.Checkpoint
	Root             string
	Key, KeyArgument string
	NewestKnown      bool
	Newest, Unsigned uint64
	Problem          string
}

func (h *console) ledger(c *call) error {
	var p ledgerPage
	checkpoint, err := h.Engine.Checkpoint(c.r.Context(), c.inquiry())
	if err != nil {
		refusal, typed := errors.AsType[*delegation.Error](err)
		if !typed || refusal.Reason == delegation.ClientUnauthenticated || refusal.Reason == delegation.Internal {
			return err
		}
		p.Problem = "There is no checkpoint to show: " + refusal.Description + "."
		return c.show(http.StatusOK, "ledger", page{Title: "Ledger", Body: p})
	}
	p.Checkpoint, p.Root = &checkpoint, hex.EncodeToString(checkpoint.Root[:])
	p.Key, p.KeyArgument = checkpoint.VerifierKey, "'"+strings.ReplaceAll(checkpoint.VerifierKey, "'", "")+"'"
	if c.role.Audits {
		newest, _, err := h.Engine.Search(c.r.Context(), c.inquiry(), ledger.Query{Limit: 1})
		if err != nil {
			return err
		}
		if len(newest) > 0 {
			p.NewestKnown, p.Newest = true, newest[0].Seq
			p.Unsigned = p.Newest - min(p.Newest, checkpoint.Size)
		}
	}
	return c.show(http.StatusOK, "ledger", page{Title: "Ledger", Body: p})
}
