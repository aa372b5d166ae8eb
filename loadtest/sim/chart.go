package sim

import (
	"fmt"
	"io"
	"math"
	"strings"
)

// Colors that color-blind people can distinguish (Okabe and Ito).
var colors = [...]string{"#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00"}

const (
	chartWidth  = 960
	panelHeight = 170
	panelGap    = 56
	chartLeft   = 64
	chartRight  = 24
)

// line is one curve of a panel.
type line struct {
	name  string
	value func(Sample) float64
}

// Chart draws what happened over time, as SVG: utilization, latencies, verifiers.
func (r *Result) Chart(w io.Writer) error {
	var demands []line
	for _, name := range resourceNames {
		demands = append(demands, line{name, func(s Sample) float64 { return 100 * s.Demand[name] }})
	}
	panels := []struct {
		title string
		lines []line
		log   bool
		top   float64
	}{
		{"utilization, %", demands, false, 100},
		{"calls, ms; revocations until verifiers know, ms (logarithmic)", []line{
			{"p50", func(s Sample) float64 { return s.P50 }}, {"p99", func(s Sample) float64 { return s.P99 }},
			{"revocations p99", func(s Sample) float64 { return s.News }}}, true, 10_000},
		{"verifiers that accept, and calls that end unavailable, %", []line{
			{"accept", func(s Sample) float64 { return 100 * s.Accepting }},
			{"unavailable", func(s Sample) float64 { return 100 * float64(s.Unavailable) / float64(max(1, s.Calls+s.Unavailable)) }}}, false, 100},
	}
	var b strings.Builder
	height := len(panels)*(panelHeight+panelGap) + 40
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", chartWidth, height, chartWidth, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n"+`<text x="%d" y="20" font-size="15">%s, seed %d</text>`+"\n", chartLeft, r.Scenario, r.Plan.Seed)
	last := 1.0
	if n := len(r.Series); n > 0 {
		last = r.Series[n-1].At
	}
	x := func(at float64) float64 { return chartLeft + (chartWidth-chartLeft-chartRight)*at/last }
	for i, p := range panels {
		top := float64(60 + i*(panelHeight+panelGap))
		y := func(v float64) float64 {
			v = min(max(v, 0), p.top)
			if p.log {
				v = p.top * max(0, math.Log10(max(v, 0.1)/0.1)) / math.Log10(p.top/0.1)
			}
			return top + panelHeight*(1-v/p.top)
		}
		fmt.Fprintf(&b, `<text x="%d" y="%.0f">%s</text>`+"\n", chartLeft, top-24, p.title)
		marks := []float64{0, 25, 50, 75, 100}
		if p.log {
			marks = []float64{0.1, 1, 10, 100, 1000, 10_000}
		}
		for _, v := range marks {
			fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n",
				chartLeft, chartWidth-chartRight, y(v), y(v), chartLeft-6, y(v)+4, v)
		}
		for at, n := warmUp.Seconds(), 0; n < len(r.Rows) && len(r.Rows) <= 8; n++ { // a ramp has more, and needs no names
			fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%.0f" y2="%.0f" stroke="#bbb" stroke-dasharray="3"/>`+"\n", x(at), x(at), top, top+panelHeight)
			if i == 0 {
				fmt.Fprintf(&b, `<text x="%.1f" y="%.0f" fill="#666">%s</text>`+"\n", x(at)+3, top+panelHeight-6, r.Rows[n].Phase)
			}
			at += r.Rows[n].Seconds
		}
		for n, l := range p.lines {
			fmt.Fprintf(&b, `<text x="%d" y="%.0f" fill="%s">%s</text>`+"\n", chartLeft+n*150, top-8, colors[n], l.name)
			var points strings.Builder
			for _, s := range r.Series {
				fmt.Fprintf(&points, "%.1f,%.1f ", x(s.At), y(l.value(s)))
			}
			fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="1.5" points="%s"/>`+"\n", colors[n], strings.TrimSpace(points.String()))
		}
	}
	step := math.Max(1, math.Ceil(last/12))
	for at := 0.0; at <= last; at += step {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%.0f s</text>`+"\n", x(at), height-panelGap+34, at)
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}
