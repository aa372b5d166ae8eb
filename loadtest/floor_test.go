package main

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestTheFloorVerifiesAndSigns(t *testing.T) {
	key, err := newSigner()
	if err != nil {
		t.Fatal(err)
	}
	other, err := newSigner()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(by *signer, change map[string]any) string {
		t.Helper()
		claims := floorClaims(time.Now())
		maps.Copy(claims, change)
		token, err := by.sign("at+jwt", claims)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	good := sign(key, nil)
	for name, c := range map[string]struct {
		token string
		want  int
	}{
		"good":              {good, http.StatusOK},
		"of another key":    {sign(other, nil), http.StatusUnauthorized},
		"expired":           {sign(key, map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}), http.StatusUnauthorized},
		"without exp":       {sign(key, map[string]any{"exp": nil}), http.StatusUnauthorized},
		"changed":           {good[:strings.IndexByte(good, '.')] + ".e30" + good[strings.LastIndexByte(good, '.'):], http.StatusUnauthorized},
		"without signature": {good[:strings.LastIndexByte(good, '.')+1], http.StatusUnauthorized},
		"nothing":           {"", http.StatusUnauthorized},
		"no dots":           {"abc", http.StatusUnauthorized},
	} {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set("Authorization", "Bearer "+c.token)
		floor{key}.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s: %d, want %d", name, w.Code, c.want)
		}
		if w.Code != http.StatusOK {
			continue
		}
		if claims, err := verifyES256(&key.key.PublicKey, w.Body.String()); err != nil || claims["sub"] != "user:u0" || w.Body.String() == good {
			t.Errorf("%s: what it signed: %v, %v", name, claims, err)
		}
	}
}

func TestTheWorldHasItsSize(t *testing.T) {
	if n := len(tuplesOfAgents()) + len(tuplesOfUsers(0, 60)); n < 900 || n > 1100 {
		t.Errorf("sixty users make %d relationships: the flags say about a thousand", n)
	}
	seen := make(map[tuple]bool)
	for _, each := range append(tuplesOfAgents(), tuplesOfUsers(0, 3)...) {
		if seen[each] {
			t.Errorf("%v comes twice: OpenFGA would refuse it", each)
		}
		seen[each] = true
	}
}
