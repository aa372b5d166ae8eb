package client

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"deputy.example/deputy/client/delegation"
)

type wycheproofGroup struct {
	Comment string          `json:"comment"`
	Public  json.RawMessage `json:"public"`
	Private json.RawMessage `json:"private"`
	Tests   []struct {
		ID      int    `json:"tcId"`
		Comment string `json:"comment"`
		JWS     string `json:"jws"`
		Result  string `json:"result"`
	} `json:"tests"`
}

// TestWycheproof presents Project Wycheproof's JWS vectors in two ways: unchanged to Verify, and
// re-shaped, because none is a token (their payloads are not claims). Re-shaped, they pass every
// check of header, key and signature and no check of claims: the invalid ones are refused, and the
// valid ones, as the negative control, are accepted.
func TestWycheproof(t *testing.T) {
	document, err := os.ReadFile("delegation/testdata/wycheproof/json_web_signature_test.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []wycheproofGroup `json:"testGroups"`
	}
	if err := json.Unmarshal(document, &file); err != nil {
		t.Fatal(err)
	}
	s := startDeputy(t)
	v := fixedVerifier(t, s)
	invalid, accepted := 0, 0
	for _, group := range file.Groups {
		keys, kid := vectorKeys(t, group)
		for _, test := range group.Tests {
			if _, err := v.Verify(t.Context(), test.JWS); err == nil {
				t.Errorf("%d %s: accepted as a token", test.ID, test.Comment)
			}
			err := verifyVector(keys, kid, test.JWS)
			switch {
			case test.Result == "invalid":
				if invalid++; err == nil {
					t.Errorf("%d %s (%s): accepted", test.ID, test.Comment, group.Comment)
				}
			case err == nil:
				accepted++
			case len(keys) > 0 && !errors.Is(err, errOtherAlgorithm):
				t.Errorf("%d %s (%s): valid, and refused: %v", test.ID, test.Comment, group.Comment, err)
			}
		}
	}
	if invalid != 355 || accepted < 10 {
		t.Errorf("%d invalid vectors, %d valid ones accepted", invalid, accepted)
	}
}

// vectorKeys returns the keys that the SDK would read from a group's key: none, if it does not
// support the key.
func vectorKeys(t *testing.T, group wycheproofGroup) (map[string]*verificationKey, string) {
	t.Helper()
	raw := group.Public
	if raw == nil {
		raw = group.Private
	}
	var named struct {
		KeyID string `json:"kid"`
	}
	if err := json.Unmarshal(raw, &named); err != nil {
		t.Fatal(err)
	}
	keys, err := parseKeys(bytes.Join([][]byte{[]byte(`{"keys":[`), raw, []byte(`]}`)}, nil))
	if err != nil {
		return nil, ""
	}
	return keys, named.KeyID
}

var errOtherAlgorithm = errors.New("the header's algorithm is not the key's")

// verifyVector is Verifier.authenticate for a payload that is not claims.
func verifyVector(keys map[string]*verificationKey, kid, token string) error {
	head, rest, _ := strings.Cut(token, ".")
	body, signature, _ := strings.Cut(rest, ".")
	u, err := delegation.Parse(head + ".e30." + signature)
	if err != nil {
		return err
	}
	if _, err := base64.RawURLEncoding.Strict().DecodeString(body); err != nil || strings.ContainsAny(body, "\r\n") {
		return errors.New("the payload is not strict base64url")
	}
	key, known := keys[kid]
	switch {
	case !known:
		return errUnknownKey
	case u.Header.Algorithm != key.algorithm:
		return errOtherAlgorithm
	}
	if !key.verifies(head+"."+body, u.Signature) {
		return errors.New("the signature is wrong")
	}
	return nil
}
