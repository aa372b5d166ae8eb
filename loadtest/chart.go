package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// The chart has two pictures: latency percentiles of each scenario, and the CPU time of an exchange
// stacked by process, with the floor beside it.
const (
	chartWidth = 1080
	rowHeight  = 26
	barLeft    = 330
	barWidth   = 640
	chartTop   = 64
)

// Colors that color-blind people can distinguish (Okabe and Ito).
var colors = []string{"#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999"}

// chart draws the report as SVG, by hand.
func (r *report) chart() []byte {
	groups := slices.Concat(grouped(r.Runs), grouped(r.Open))
	height := 2*(chartTop+20) + 2*rowHeight*len(groups) + 40
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n",
		chartWidth, height, chartWidth, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	r.latencies(&b, groups, 10)
	r.costs(&b, groups, 10+chartTop+rowHeight*len(groups)+30)
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// latencies are lines from p50 to p99.9 on a logarithmic scale.
func (r *report) latencies(b *bytes.Buffer, groups [][]run, top int) {
	heading(b, top, "Latency, ms", []string{"p50", "p90", "p99", "p99.9"}, colors)
	const lowest, decades = 0.1, 4.0 // 0.1 ms to 1 s
	x := func(v float64) float64 {
		return barLeft + barWidth*math.Log10(min(max(v, lowest), lowest*math.Pow(10, decades))/lowest)/decades
	}
	bottom := top + chartTop + rowHeight*len(groups)
	for v := lowest; v <= 1000; v *= 10 {
		axis(b, x(v), top+chartTop-12, bottom, fmt.Sprintf("%g", math.Round(v*10)/10))
	}
	for i, group := range groups {
		y := top + chartTop + rowHeight*i + rowHeight/2
		label(b, y, group[0])
		points := []float64{
			medianOf(group, func(m run) float64 { return m.Latency.P50 }), medianOf(group, func(m run) float64 { return m.Latency.P90 }),
			medianOf(group, func(m run) float64 { return m.Latency.P99 }), medianOf(group, func(m run) float64 { return m.Latency.P999 }),
		}
		fmt.Fprintf(b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#bbb" stroke-width="2"/>`+"\n", x(points[0]), y, x(points[3]), y)
		for p, v := range points {
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%d" r="5" fill="%s"><title>%.2f ms</title></circle>`+"\n", x(v), y, colors[p], v)
		}
	}
}

// costs are bars: the processes of the target one after the other, and a mark for the floor.
func (r *report) costs(b *bytes.Buffer, groups [][]run, top int) {
	var names []string
	most := 0.0
	for _, group := range groups {
		names = append(names, slices.Collect(maps.Keys(group[0].CPU))...)
		most = max(most, medianOf(group, run.total))
	}
	slices.Sort(names)
	names = slices.Compact(names)
	heading(b, top, "CPU per exchange, ms (line: the floor)", names, colors)
	if most == 0 {
		return
	}
	scale := barWidth / most
	bottom := top + chartTop + rowHeight*len(groups)
	for i := range 5 {
		v := most * float64(i) / 4
		axis(b, barLeft+v*scale, top+chartTop-12, bottom, fmt.Sprintf("%.2f", v))
	}
	for i, group := range groups {
		y := top + chartTop + rowHeight*i
		label(b, y+rowHeight/2, group[0])
		x := float64(barLeft)
		for n, name := range names {
			v := medianOf(group, func(m run) float64 { return m.CPU[name] })
			fmt.Fprintf(b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"><title>%s %.3f ms</title></rect>`+"\n",
				x, y+4, v*scale, rowHeight-8, colors[n%len(colors)], escaped(name), v)
			x += v * scale
		}
		fmt.Fprintf(b, `<text x="%.1f" y="%d">%.2f ×</text>`+"\n", x+6, y+rowHeight/2+5, medianOf(group, run.ratio))
		unit := barLeft + medianOf(group, func(m run) float64 { return m.Floor })*scale
		fmt.Fprintf(b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="black" stroke-width="2"/>`+"\n", unit, y+1, unit, y+rowHeight-1)
	}
}

func heading(b *bytes.Buffer, top int, title string, legend, colors []string) {
	fmt.Fprintf(b, `<text x="10" y="%d" font-size="16" font-weight="bold">%s</text>`+"\n", top+16, escaped(title))
	x := barLeft
	for i, name := range legend {
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="12" height="12" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			x, top+5, colors[i%len(colors)], x+16, top+16, escaped(name))
		x += 40 + 8*len(name)
	}
}

func axis(b *bytes.Buffer, x float64, top, bottom int, text string) {
	fmt.Fprintf(b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle" fill="#666">%s</text>`+"\n",
		x, top+4, x, bottom, x, top, text)
}

func label(b *bytes.Buffer, y int, m run) {
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", barLeft-10, y+5, escaped(m.Setup+": "+m.Scenario))
}

func escaped(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a Builder takes everything
	return b.String()
}
