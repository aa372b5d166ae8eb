package embedded

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// narrator prints the story. It keeps the first error of its writer and prints nothing after that.
type narrator struct {
	w      io.Writer
	now    func() time.Time
	scenes int
	err    error
}

func (n *narrator) line(format string, args ...any) {
	if n.err == nil {
		_, n.err = fmt.Fprintf(n.w, format+"\n", args...)
	}
}

func (n *narrator) scene(title, about string) {
	n.scenes++
	n.line("")
	n.line("%d. %s", n.scenes, title)
	for paragraph := range strings.Lines(about) {
		n.line("   %s", strings.TrimSuffix(paragraph, "\n"))
	}
	n.line("")
}

func (n *narrator) good(format string, args ...any) { n.line("  ✓ "+format, args...) }
func (n *narrator) bad(format string, args ...any)  { n.line("  ✗ "+format, args...) }

// claims prints all claims of a token, one per line: who and what first, unknown names last.
func (n *narrator) claims(token string) error {
	unverified, err := delegation.Parse(token)
	if err != nil {
		return err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(unverified.Payload, &members); err != nil {
		return err
	}
	order := []string{"sub", "act", "scope", "targets", "aud", "iss", "exp", "iat", "nbf", "client_id", "jti", "txn", "delegation"}
	for name := range members {
		if !slices.Contains(order, name) {
			order = append(order, name)
		}
	}
	for _, name := range order {
		value, present := members[name]
		if !present {
			continue
		}
		n.line("     %-10s %s", name, n.value(name, value))
	}
	return nil
}

func (n *narrator) value(name string, raw json.RawMessage) string {
	var text string
	var list []string
	var seconds int64
	switch {
	case json.Unmarshal(raw, &text) == nil:
		return text
	case json.Unmarshal(raw, &list) == nil:
		return strings.Join(list, " ")
	case slices.Contains([]string{"exp", "iat", "nbf"}, name) && json.Unmarshal(raw, &seconds) == nil:
		at := time.Unix(seconds, 0)
		if left := at.Sub(n.now()).Round(time.Minute); left > 0 {
			return fmt.Sprintf("%d  (in %d minutes)", seconds, left/time.Minute)
		}
		return fmt.Sprintf("%d  (now)", seconds)
	}
	return string(raw)
}

// chain draws the grants of a chain.
func (n *narrator) chain(record *client.ChainRecord) {
	n.line("     %s", record.Subject)
	indent := ""
	for i, grant := range record.Grants {
		n.line("     %s└─ %s   entry %d, %s", indent, grant.Actor, grant.Seq, grant.JTI)
		indent += "   "
		rail := indent + "│  "
		if i == len(record.Grants)-1 {
			rail = indent + "   "
		}
		n.line("     %smay %s at %s", rail, grant.Scope, strings.Join(grant.Audience, ", "))
		if i > 0 {
			if dropped := record.Grants[i-1].Scope.Without(grant.Scope); len(dropped) > 0 {
				n.line("     %sno longer %s", rail, dropped)
			}
		}
		n.line("     %suntil %s", rail, grant.Expiry.Local().Format(time.TimeOnly))
	}
}
