package delegation_test

import (
	"fmt"
	"strings"
	"testing"

	"deputy.example/deputy/client/delegation"
)

// TestGateBoundsNames: names that are kept long after a token, and lists that are walked for each
// token, have bounds of their own below the bound of the token. A name at its bound is accepted. A
// name one above its bound is refused, and the error names it.
func TestGateBoundsNames(t *testing.T) {
	audiences := func(n int) string { return `"a"` + strings.Repeat(`,"a"`, n-1) }
	for name, token := range map[string]func(over int) string{
		"kid": func(over int) string {
			return compact(fmt.Sprintf(`{"alg":"ES256","typ":"at+jwt","kid":%q}`, strings.Repeat("k", 256+over)), `{"iss":"x","exp":1}`)
		},
		"jti": func(over int) string {
			return compact(goodHeader, fmt.Sprintf(`{"iss":"x","exp":1,"jti":%q}`, strings.Repeat("j", 256+over)))
		},
		"aud": func(over int) string {
			return compact(goodHeader, `{"iss":"x","exp":1,"aud":[`+audiences(64+over)+`]}`)
		},
	} {
		for over := range 2 {
			u, err := delegation.Parse(token(over))
			if err == nil {
				_, err = u.Registered()
			}
			if (err != nil) != (over > 0) || err != nil && !strings.Contains(err.Error(), name) {
				t.Errorf("%s, %d beyond its bound: %v", name, over, err)
			}
		}
	}
}
