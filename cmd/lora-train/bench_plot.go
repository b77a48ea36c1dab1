package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// The sizes of a drawing, in pixels.
const (
	plotLabels, plotWidth, plotValues = 390, 480, 190 // the columns
	plotRow, plotBar                  = 22, 14
	plotTop, plotBottom               = 92, 34
)

// plotColors are those of the modes.
var plotColors = map[string]string{backbone: "#777777", "fused": "#1b6ca8", "merged": "#c4622d", "layerwise": "#6a994e"}

// plot draws the figures as SVG: for each row a bar as long as its median, a line from the least to the most, and a mark where what it moves
// would end at the rate of copying.
func (o *decodeBench) plot() []byte {
	rows := slices.DeleteFunc(slices.Clone(o.Rows), func(r decodeRow) bool { return r.err != nil })
	longest := 0.0
	for _, r := range rows {
		longest = max(longest, r.MS.Max, r.LimitMS)
	}
	step := roundStep(longest / 8)
	x := func(ms float64) float64 { return plotLabels + plotWidth*ms/max(longest, step) }
	bottom := plotTop + plotRow*len(rows)

	var text strings.Builder
	draw := func(format string, args ...any) { fmt.Fprintf(&text, format+"\n", args...) }
	label := func(x float64, y int, anchor, what string) {
		draw(`<text x="%.1f" y="%d" text-anchor="%s">%s</text>`, x, y, anchor, html.EscapeString(what))
	}
	width, height := plotLabels+plotWidth+plotValues, bottom+plotBottom
	draw(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`,
		width, height, width, height)
	draw(`<rect width="%d" height="%d" fill="#ffffff"/>`, width, height)
	draw(`<g fill="#222222">`)
	for i, what := range []string{
		fmt.Sprintf("%s: milliseconds of a decoding step", o.Model),
		o.Backend,
		fmt.Sprintf("bar: median of %s; line: least to most; mark: what a step moves at the rate of copying, %s", plural(o.Rounds, "round"), copyRate(o.Copy)),
	} {
		label(12, 24+18*i, "start", what)
	}
	for ms := 0.0; ms <= longest*(1+1e-9); ms += step {
		draw(`<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#dddddd"/>`, x(ms), plotTop-6, x(ms), bottom)
		label(x(ms), bottom+18, "middle", fmt.Sprintf("%.4g", ms))
	}
	for i, r := range rows {
		top := plotTop + plotRow*i
		middle, base := top+plotBar/2, top+plotBar-3
		label(plotLabels-10, base, "end", r.decodeCase.String())
		draw(`<rect class="bar" x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`,
			x(0), top, x(r.MS.Median)-x(0), plotBar, plotColors[r.Mode])
		draw(`<line class="range" x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#000000"/>`, x(r.MS.Min), middle, x(r.MS.Max), middle)
		draw(`<line class="limit" x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#d00000" stroke-width="2"/>`,
			x(r.LimitMS), top-2, x(r.LimitMS), top+plotBar+2)
		label(max(x(r.MS.Max), x(r.LimitMS))+8, base, "start", fmt.Sprintf("%.3f ms, %.1f %% of copy", r.MS.Median, 100*r.Share))
	}
	draw("</g>\n</svg>")
	return []byte(text.String())
}

// roundStep is the least of 1, 2 and 5 times a power of ten that is not below x.
func roundStep(x float64) float64 {
	if !(x > 0) {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(x)))
	for _, digit := range []float64{1, 2, 5} {
		if digit*power >= x*(1-1e-9) {
			return digit * power
		}
	}
	return 10 * power
}
