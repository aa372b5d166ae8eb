package console

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
)

// picture is a chain as lines and boxes. From left to right it shows which principal hands
// authority to which. Below the arrows it has one line for each scope and audience, which ends
// where it was not handed down. Boxes are as high as what they hold, so that narrowing is visible
// before anything is read.
type picture struct {
	Width, Height int
	Title         string
	Nodes         []node
	Edges         []edge
	Lanes         []lane
}

type node struct {
	State                             state
	X, Y, W, H                        int
	TextX, TypeY, NameY, MarkY, FineY int
	Type, Name, Full, Fine, Href      string
}

type edge struct {
	X1, X2, Y, MidX, TextY int
	Tip, Text, Href        string
}

type lane struct {
	Class        string
	X1, X2, Y    int
	TextX, TextY int
	Text, Full   string
	End          bool
	EndX, EndY   int
}

// Measures of a picture, in CSS pixels.
const (
	nodeWidth  = 164
	gapWidth   = 168
	headHeight = 92
	lanePitch  = 25
	margin     = 4
	arrowY     = 34
	stubWidth  = 104
)

// authority is a scope or an audience that the chain hands down.
type authority struct {
	name     string
	audience bool
	last     int // the last hop that holds it
}

func (c *call) draw(hops []hop) picture {
	lanes := authorities(hops)
	height := func(hop int) int { // the height of a box with what the hop holds
		held := 0
		for row, a := range lanes {
			if a.last >= hop {
				held = row + 1
			}
		}
		return headHeight + held*lanePitch + 6
	}
	column := func(n int) int { return margin + n*(nodeWidth+gapWidth) }
	p := picture{
		Width: column(len(hops)) + nodeWidth + margin, Height: height(0) + 2*margin,
		Title: pictureTitle(hops),
	}
	subject := hops[0].Subject
	p.Nodes = append(p.Nodes, c.node(0, column(0), height(0), subject, state{}, "holds the root token"))
	for i, hop := range hops {
		at := stateOf(hop.Recorded)
		fine := "until " + hop.Expiry.UTC().Format("15:04:05")
		if hop.Expiry.Sub(hop.Time) > 20*time.Hour {
			fine = "until " + hop.Expiry.UTC().Format("2 Jan 15:04")
		}
		p.Nodes = append(p.Nodes, c.node(i+1, column(i+1), height(i), hop.Actor, at, fine))
		p.Edges = append(p.Edges, c.edge(hop, column(i)+nodeWidth, column(i+1)))
	}
	for row, a := range lanes {
		p.Lanes = append(p.Lanes, lanesOf(a, margin+headHeight+row*lanePitch+10, hops, column)...)
	}
	return p
}

// authorities returns everything that the first grant gave, audiences first, and within each kind
// what lasts longest first.
func authorities(hops []hop) []authority {
	last := map[authority]int{}
	for i, h := range hops {
		for _, name := range h.Audiences {
			last[authority{name: name, audience: true}] = i
		}
		for _, name := range h.Scopes {
			last[authority{name: name}] = i
		}
	}
	var list []authority
	for a, i := range last {
		a.last = i
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b authority) int {
		if a.audience != b.audience {
			if a.audience {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.last, a.last), strings.Compare(a.name, b.name))
	})
	return list
}

func (c *call) node(number, x, height int, who delegation.Principal, at state, fine string) node {
	typ := who.Type()
	if number > 0 {
		typ = fmt.Sprintf("%d · %s", number, typ)
	}
	return node{
		State: at, X: x, Y: margin, W: nodeWidth, H: height,
		TextX: x + 12, TypeY: margin + 20, NameY: margin + 38, MarkY: margin + 58, FineY: margin + 76,
		Type: typ, Name: shorten(readable(who.ID()), 17), Full: string(who), Fine: fine, Href: c.whoLink(who),
	}
}

func (c *call) edge(h hop, from, to int) edge {
	y := margin + arrowY
	return edge{
		X1: from, X2: to - 8, Y: y, MidX: (from + to) / 2, TextY: y - 9,
		Tip:  fmt.Sprintf("M%d %d l-9 -5 v10 z", to-1, y),
		Text: fmt.Sprintf("entry %d", h.Seq), Href: c.link("entry", "entry", h.Seq),
	}
}

// lanesOf draws one authority up to its last hop, and its end.
func lanesOf(a authority, y int, hops []hop, column func(int) int) []lane {
	class := ""
	if a.audience {
		class = "audience"
	}
	var list []lane
	for i := range hops {
		gap, box := column(i)+nodeWidth, column(i+1)
		if i <= a.last {
			alive := class
			if s := stateOf(hops[i].Recorded); s.Class != "live" {
				alive += " dead"
			}
			list = append(list,
				lane{Class: alive, X1: gap, X2: box, Y: y, TextX: gap + 8, TextY: y - 5, Text: shorten(a.name, 24), Full: a.name},
				lane{Class: alive + " inside", X1: box + 1, X2: box + nodeWidth - 1, Y: y})
			continue
		}
		list = append(list, lane{
			Class: "gone", X1: gap, X2: gap + stubWidth, Y: y, TextX: gap + 8, TextY: y - 5, Text: shorten(a.name, 14), Full: a.name + ", not handed on",
			End: true, EndX: gap + stubWidth + 3, EndY: y + 5,
		})
		break
	}
	return list
}

// shorten keeps beginning and end, which distinguish names. The title has the whole name.
func shorten(s string, most int) string {
	runes := []rune(s)
	if len(runes) <= most {
		return s
	}
	head := (most - 1 + 1) / 2
	return string(runes[:head]) + "…" + string(runes[len(runes)-(most-1-head):])
}

// pictureTitle describes the picture in words, for people who cannot see it.
func pictureTitle(hops []hop) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s hands authority down: ", nameOf(hops[0].Subject))
	for i, h := range hops {
		if i > 0 {
			b.WriteString("; then ")
		}
		fmt.Fprintf(&b, "to %s: %s at %s, %s", nameOf(h.Actor), h.Scopes, strings.Join(h.Audiences, ", "), stateOf(h.Recorded).Word)
	}
	return b.String()
}
