package main

import (
	"encoding/xml"
	"math"
	"strings"
	"testing"

	"loratrain/model"
)

// drawing is what a test looks at in an SVG.
type drawing struct {
	Height int `xml:"height,attr"`
	Group  struct {
		Texts []string `xml:"text"`
		Bars  []struct {
			Class string  `xml:"class,attr"`
			X     float64 `xml:"x,attr"`
			Y     float64 `xml:"y,attr"`
			Width float64 `xml:"width,attr"`
			Fill  string  `xml:"fill,attr"`
		} `xml:"rect"`
		Lines []struct {
			Class string  `xml:"class,attr"`
			X1    float64 `xml:"x1,attr"`
			X2    float64 `xml:"x2,attr"`
		} `xml:"line"`
	} `xml:"g"`
}

// TestPlot measures the drawing: lengths are in proportion, rows without figures are left out, and names cannot break it.
func TestPlot(t *testing.T) {
	o := decodeBench{Model: `a<b>&"c"`, Backend: "a card", Rounds: 1, Copy: 1e12}
	one := decodeCase{Mode: backbone, Batch: 1, Context: 128}
	for i, ms := range []spread{{4, 3, 5}, {8, 8, 8}, {}} {
		r := decodeRow{decodeCase: one, MS: ms, LimitMS: float64(2 + i)}
		if i > 0 {
			r.decodeCase = one.with(model.Fused, 8, 8)
		}
		if ms.Median == 0 {
			r.err = errDevice
		}
		o.Rows = append(o.Rows, r)
	}
	var d drawing
	if err := xml.Unmarshal(o.plot(), &d); err != nil {
		t.Fatal(err)
	}
	bars := d.Group.Bars
	if len(bars) != 2 || math.Abs(bars[1].Width-2*bars[0].Width) > 0.11 || bars[0].X != bars[1].X || bars[0].Y >= bars[1].Y || bars[0].Fill == bars[1].Fill {
		t.Fatalf("bars %+v", bars)
	}
	at := func(ms float64) float64 { return bars[0].X + ms/4*bars[0].Width }
	want := map[string][][2]float64{"range": {{at(3), at(5)}, {at(8), at(8)}}, "limit": {{at(2), at(2)}, {at(3), at(3)}}}
	for _, l := range d.Group.Lines {
		list := want[l.Class]
		if l.Class == "" {
			continue
		}
		if len(list) == 0 || math.Abs(l.X1-list[0][0]) > 0.2 || math.Abs(l.X2-list[0][1]) > 0.2 {
			t.Errorf("a line of %s from %v to %v, want %v", l.Class, l.X1, l.X2, list)
			continue
		}
		want[l.Class] = list[1:]
	}
	if len(want["range"])+len(want["limit"]) > 0 {
		t.Errorf("%v are not drawn", want)
	}
	text := strings.Join(d.Group.Texts, "\n")
	for _, s := range []string{
		`a<b>&"c": milliseconds of a decoding step`, "a card", "bar: median of 1 round;", "backbone, batch 1, context 128",
		"fused, 8 experts of rank 8, batch 1, context 128", "8.000 ms,",
	} {
		if !strings.Contains(text, s) {
			t.Errorf("%q is not in\n%s", s, text)
		}
	}
	// Nothing to draw is no reason to divide by zero.
	var empty drawing
	if err := xml.Unmarshal((&decodeBench{}).plot(), &empty); err != nil || len(empty.Group.Bars) > 0 || empty.Height < plotTop {
		t.Errorf("nothing: %+v, %v", empty, err)
	}
}

func TestRoundStep(t *testing.T) {
	for x, want := range map[float64]float64{0: 1, 0.3: 0.5, 1: 1, 1.01: 2, 2: 2, 4.9: 5, 5.1: 10, 70: 100, 0.002: 0.002, math.NaN(): 1} {
		if got := roundStep(x); math.Abs(got-want) > 1e-12 {
			t.Errorf("%v: got %v, want %v", x, got, want)
		}
	}
}
