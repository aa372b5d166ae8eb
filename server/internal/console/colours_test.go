package console

import (
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var colour = regexp.MustCompile(`--([a-z-]+): #([0-9a-f]{6});`)

// themes reads the colors of the style sheet: light first, then dark, which replaces them.
func themes(t *testing.T) map[string]map[string]string {
	t.Helper()
	sheet, err := files.ReadFile("assets/console.css")
	if err != nil {
		t.Fatal(err)
	}
	light, dark, found := strings.Cut(string(sheet), "@media (prefers-color-scheme: dark)")
	if !found {
		t.Fatal("the style sheet has no dark theme")
	}
	read := func(text string) map[string]string {
		colours := map[string]string{}
		for _, m := range colour.FindAllStringSubmatch(text, -1) {
			colours[m[1]] = m[2]
		}
		return colours
	}
	all := map[string]map[string]string{"light": read(light), "dark": read(dark)}
	if len(all["light"]) != len(all["dark"]) || len(all["light"]) < 15 {
		t.Fatalf("%d light colours, %d dark ones", len(all["light"]), len(all["dark"]))
	}
	return all
}

// luminance and contrast are defined by WCAG 2.1.
func luminance(hex string) float64 {
	channel := func(i int) float64 {
		n, _ := strconv.ParseUint(hex[i:i+2], 16, 8)
		c := float64(n) / 255
		if c <= 0.04045 {
			return c / 12.92
		}
		return math.Pow((c+0.055)/1.055, 2.4)
	}
	return 0.2126*channel(0) + 0.7152*channel(2) + 0.0722*channel(4)
}

func contrast(a, b string) float64 {
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

// TestEverythingCanBeRead requires a contrast of 4.5 to 1 for every text on every background that
// it has, in both themes.
func TestEverythingCanBeRead(t *testing.T) {
	pairs := [][2]string{
		{"on-accent", "accent"}, {"on-danger", "danger"}, {"live", "live-wash"}, {"expired", "expired-wash"}, {"revoked", "revoked-wash"}, {"voided", "voided-wash"},
		{"ink", "live-wash"}, {"ink", "expired-wash"}, {"ink", "revoked-wash"}, {"ink", "voided-wash"},
	}
	for _, text := range []string{"ink", "muted", "accent", "live", "expired", "revoked", "voided", "danger"} {
		for _, ground := range []string{"ground", "surface", "raised"} {
			pairs = append(pairs, [2]string{text, ground})
		}
	}
	for name, theme := range themes(t) {
		for _, p := range pairs {
			if got := contrast(theme[p[0]], theme[p[1]]); got < 4.5 {
				t.Errorf("%s: %s on %s is %.2f to 1", name, p[0], p[1], got)
			}
		}
	}
	if contrast("ffffff", "000000") < 20.9 || contrast("777777", "ffffff") > 4.5 {
		t.Error("the control: contrast is measured wrongly")
	}
}
