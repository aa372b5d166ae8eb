package console

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"deputy.example/deputy/client/delegation"
)

// nameOf returns a principal in readable form.
func nameOf(p delegation.Principal) string {
	if id := p.ID(); id != "" {
		return p.Type() + ":" + readable(id)
	}
	return string(p)
}

// readable decodes the id of a principal for display. A character that is invisible, reverses the
// direction of writing or is a percent sign stays encoded, so that two ids never look the same.
func readable(id string) string {
	var b strings.Builder
	var before rune
	for i := 0; i < len(id); {
		r, size := decodedRune(id[i:])
		if size > 1 && !shows(r, before, id[i+size:]) {
			b.WriteString(id[i : i+size])
		} else {
			b.WriteRune(r)
		}
		before, i = r, i+size
	}
	return b.String()
}

// decodedRune returns the first character of an encoded id and the number of bytes that it takes
// there: 3 for each encoded byte.
func decodedRune(id string) (r rune, size int) {
	encoded := id[:min(len(id), 3*utf8.UTFMax)]
	text := ""
	for len(encoded) >= 3 && encoded[0] == '%' {
		decoded := delegation.DecodeID(encoded[:3])
		if len(decoded) != 1 {
			break
		}
		text, encoded = text+decoded, encoded[3:]
	}
	if text == "" {
		r, size = utf8.DecodeRuneInString(id)
		return r, size
	}
	r, size = utf8.DecodeRuneInString(text)
	return r, 3 * size
}

// shows reports whether a character of an id is visible and looks like no other. A space is visible
// between two characters that are no spaces.
func shows(r, before rune, rest string) bool {
	switch {
	case r == utf8.RuneError, r == '%', unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector), r == blankBraille:
		return false
	case r == ' ':
		return before != 0 && before != ' ' && rest != "" && !strings.HasPrefix(rest, "%20")
	case unicode.IsMark(r): // a mark belongs to a letter
		return unicode.IsLetter(before)
	}
	return unicode.In(r, unicode.L, unicode.N, unicode.P, unicode.S)
}

// blankBraille is a symbol without visible dots.
const blankBraille = '\u2800'

// readPrincipal reads a name as a token has it, or as a page shows it. The error is
// ParameterInvalid and names the field.
func readPrincipal(field, value string) (delegation.Principal, error) {
	p, err := delegation.ParsePrincipal(value)
	if err == nil {
		return p, nil
	}
	typ, id, _ := strings.Cut(value, ":")
	if !strings.Contains(id, "%") {
		p, err = delegation.NewPrincipal(typ, id)
	}
	if err != nil {
		return "", delegation.Refuse(delegation.ParameterInvalid, field, "must be type:id, such as user:alice or agent:planner")
	}
	return p, nil
}
