package token

import (
	"strings"
	"testing"
)

// TestKeySetsAreReadInOneWay: a set in which a member occurs twice at any place is refused as a
// whole.
func TestKeySetsAreReadInOneWay(t *testing.T) {
	good := jwks(t, newTestKey(t, "ES256", "one"))
	list := strings.TrimSuffix(strings.TrimPrefix(good, `{"keys":`), "}")
	if ring, ignored, err := parseJWKS([]byte(good), knownAlgorithms()); err != nil || len(ring.byID) != 1 || len(ignored) > 0 {
		t.Fatalf("%+v, %v, %v", ring, ignored, err)
	}
	for name, set := range map[string]string{
		"keys twice":             `{"keys":[],"keys":` + list + `}`,
		"keys twice, good first": `{"keys":` + list + `,"keys":[]}`,
		"keys, escaped":          `{"keys":` + list + `,"\u006beys":` + list + `}`,
		"kid twice":              strings.Replace(good, `"kid":"one"`, `"kid":"two","kid":"one"`, 1),
		"another member twice":   `{"x":1,"x":2,"keys":` + list + `}`,
		"keys in another case":   `{"Keys":` + list + `}`,
		"more after it":          good + good,
	} {
		if ring, _, err := parseJWKS([]byte(set), knownAlgorithms()); err == nil {
			t.Errorf("%s: %+v", name, ring)
		}
	}
}
