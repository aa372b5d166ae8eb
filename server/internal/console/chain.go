package console

import (
	"net/http"
	"strconv"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

// descendantsPage is how many derived grants a chain's page shows at a time.
const descendantsPage = 200

// chainPage shows the chain of one token, and what was derived from the token.
type chainPage struct {
	Subject delegation.Principal
	Leaf    exchange.Recorded
	Picture picture
	Hops    []hop
	Below   []exchange.Descendant
	After   uint64
	More    string

	MayToken, MayChain bool // the person may revoke the token, the chain
}

// hop is a grant of the chain. Dropped is what the grant before it held and this one does not.
type hop struct {
	exchange.Recorded
	Number  int
	Dropped []string
}

func (h *console) chain(c *call) error {
	q := c.inquiry()
	if q.ID = c.r.URL.Query().Get("jti"); q.ID == "" {
		return delegation.Refuse(delegation.ParameterMissing, "jti", "name the token by its jti")
	}
	after, err := readNumber("after", c.r.URL.Query().Get("after"))
	if err != nil {
		return err
	}
	grants, err := h.Engine.Chain(c.r.Context(), q)
	if err != nil {
		return err
	}
	if len(grants) == 0 {
		return errNotThere
	}
	below, next, err := h.Engine.Descendants(c.r.Context(), q, after, descendantsPage)
	if err != nil {
		return err
	}
	leaf := grants[len(grants)-1]
	p := chainPage{Subject: leaf.Subject, Leaf: leaf, Hops: hopsOf(grants), Below: below, After: after}
	p.Picture = c.draw(p.Hops)
	may := h.may(c, delegation.Target{Kind: delegation.BanToken, ID: leaf.ID}, delegation.Target{Kind: delegation.BanChain, ID: leaf.Txn})
	p.MayToken, p.MayChain = may[0], may[1]
	if next > 0 {
		p.More = c.link("chain", "jti", q.ID, "after", strconv.FormatUint(next, 10))
	}
	return c.show(http.StatusOK, "chain", page{Title: "Chain of " + nameOf(leaf.Subject), Body: p})
}

func hopsOf(grants []exchange.Recorded) []hop {
	hops := make([]hop, len(grants))
	for i, g := range grants {
		hops[i] = hop{Recorded: g, Number: i + 1}
		if i == 0 {
			continue
		}
		before := grants[i-1]
		hops[i].Dropped = append(hops[i].Dropped, before.Scopes.Without(g.Scopes)...)
		hops[i].Dropped = append(hops[i].Dropped, delegation.Scopes(before.Audiences).Without(g.Audiences)...)
	}
	return hops
}
