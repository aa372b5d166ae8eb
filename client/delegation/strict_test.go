package delegation_test

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
)

const ownClaims = `{"iss":"i","sub":"user:a","client_id":"agent:b","aud":["x"],"iat":1,"nbf":1,"exp":5,"jti":"j","txn":"t",` +
	`"act":{"sub":"agent:b"},"delegation":{"root":"r","hops":[["j",1,0,""]],"depth_left":2}}`

func ours(header, claims string) string {
	e := base64.RawURLEncoding.EncodeToString
	return e([]byte(header)) + "." + e([]byte(claims)) + "." + e([]byte("signature"))
}

// A token of Deputy's has exactly the header that Deputy writes, and holds every claim that narrows
// it.
func TestOwnClaimsAreExact(t *testing.T) {
	const header = `{"alg":"ES256","typ":"at+jwt","kid":"k"}`
	for _, c := range []struct {
		name, header, from, to string
		good                   bool
	}{
		{name: "as it is", header: header, good: true},
		{name: "a fourth header member", header: `{"alg":"ES256","typ":"at+jwt","kid":"k","nonce":"n"}`},
		{name: "no kid", header: `{"alg":"ES256","typ":"at+jwt"}`},
		{name: "no typ", header: `{"alg":"ES256","kid":"k"}`},
		{name: "uses null", header: header, from: `"depth_left":2`, to: `"depth_left":2,"uses":null`},
		{name: "depth_left null", header: header, from: `"depth_left":2`, to: `"depth_left":null`},
		{name: "no depth_left", header: header, from: `,"depth_left":2`},
		{name: "an unknown restriction", header: header, from: `"depth_left":2`, to: `"depth_left":2,"weekdays":[1]`},
	} {
		unverified, err := delegation.Parse(ours(c.header, strings.Replace(ownClaims, c.from, c.to, 1)))
		if err == nil {
			_, err = unverified.Claims()
		}
		if (err == nil) != c.good {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestHoldsToken(t *testing.T) {
	token := ours(`{"alg":"none"}`, `{}`)
	for text, want := range map[string]bool{
		token: true, "Bearer " + token: true, "calendar.read " + token: true, "https://x.example/?t=" + token: true,
		"eyJ": false, "eyJ.": false, "calendar.read": false, "https://eyJ.example": false, "": false, "eyJhbGci": false,
		"eyJeyJ" + token: true,
	} {
		if got := delegation.HoldsToken(text); got != want {
			t.Errorf("HoldsToken(%.30q) = %t", text, got)
		}
	}
}

// The codes of a proxy or of gRPC itself keep their meaning. A reason of a newer server stays a
// refusal.
func TestErrorsOfOthersKeepTheirMeaning(t *testing.T) {
	for code, want := range map[codes.Code]delegation.Reason{
		codes.Unavailable: delegation.DependencyDown, codes.Unauthenticated: delegation.ClientUnauthenticated,
		codes.PermissionDenied: delegation.AccessDenied, codes.DataLoss: delegation.Internal,
	} {
		if got := delegation.FromStatus(status.Error(code, "x\x1b[31m")); got.Reason != want || strings.Contains(got.Description, "\x1b") {
			t.Errorf("%s: %+v", code, got)
		}
	}
	newer := &delegation.Error{Reason: "reason_of_tomorrow", Description: "no"}
	if got := delegation.FromStatus(newer.GRPCStatus().Err()); got.Reason != delegation.Internal {
		t.Errorf("an unknown reason: %+v", got)
	}
	mine := delegation.Refuse(delegation.ScopeExceedsParent, "scope", "no").WithMetadata("scope", "a").WithCause(errors.New("secret"))
	got := delegation.FromStatus(mine.GRPCStatus().Err())
	if got.Reason != mine.Reason || got.Field != "scope" || got.Metadata["scope"] != "a" || strings.Contains(got.Error(), "secret") {
		t.Errorf("there and back: %+v", got)
	}
}

func TestStringAt(t *testing.T) {
	u, err := delegation.Parse(compact(goodHeader, `{"a":{"b":{"c":"x"},"l":["x",{"c":"x"}],"n":null},"c":"top","0":"zero","":{"":"empty"},"a\u002fb":"slash"}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		path []string
		want string // "" means refused
	}{
		{[]string{"a", "b", "c"}, "x"}, {[]string{"c"}, "top"}, {[]string{"", ""}, "empty"}, {[]string{"a/b"}, "slash"},
		{nil, ""}, {[]string{"a"}, ""}, {[]string{"a", "b"}, ""}, {[]string{"a", "n"}, ""}, {[]string{"a", "l"}, ""}, {[]string{"a", "l", "0"}, ""},
		{[]string{"a", "l", "c"}, ""}, {[]string{"a", "b", "c", "d"}, ""}, {[]string{"A", "b", "c"}, ""}, {[]string{"a", "c"}, ""}, {[]string{"x", "y"}, ""},
	} {
		if got, err := u.StringAt(row.path...); got != row.want || (err == nil) != (row.want != "") {
			t.Errorf("%q: %q, %v", row.path, got, err)
		}
	}
}
