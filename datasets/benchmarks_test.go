package datasets

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"flag"
	"os"
	"testing"
)

var goldenDir = flag.String("golden", "../testdata/golden", "folder of the golden files")

// TestBenchmarks reads the published files: sizes as published, and right options as the golden file has them.
func TestBenchmarks(t *testing.T) {
	c := Catalog{Dir: os.Getenv("LORA_BENCHMARKS")}
	if c.Dir == "" {
		t.Skip("LORA_BENCHMARKS does not name the folder that holds ARC-Easy, ARC-Challenge, openbookqa and boolq; .ci/run sets it where they lie beside the project")
	}
	for _, want := range []struct {
		task     string
		split    Split
		items    int
		chance   float64
		majority float64
	}{
		{"arc_easy", Train, 2251, 0.25013, 588. / 2251},
		{"arc_easy", Test, 2376, 0.25016, 633. / 2376},
		{"arc_challenge", Train, 1119, 0.25003, 296. / 1119},
		{"openbookqa", Train, 4957, 0.25, 1378. / 4957},
		{"openbookqa", Test, 500, 0.25, 138. / 500},
		{"boolq", Train, 9427, 0.5, 5874. / 9427},
		{"boolq", Test, 3270, 0.5, 2033. / 3270},
	} {
		task, err := c.Load(want.task, want.split)
		if err != nil {
			t.Errorf("%s %s: %v", want.task, want.split, err)
			continue
		}
		if len(task.Items) != want.items {
			t.Errorf("%s %s: %d items, want %d", want.task, want.split, len(task.Items), want.items)
		}
		if got := Chance(task.Items); got < want.chance-1e-5 || got > want.chance+1e-5 {
			t.Errorf("%s %s: chance %.6f, want %.5f", want.task, want.split, got, want.chance)
		}
		if got := Majority(task.Items); got != want.majority {
			t.Errorf("%s %s: majority %v, want %v", want.task, want.split, got, want.majority)
		}
		if want.task == "arc_easy" && want.split == Test {
			compareGolden(t, task.Items, *goldenDir+"/smol-arc-easy.jsonl.gz")
		}
	}
}

func compareGolden(t *testing.T, items []Item, path string) {
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(unzipped)
	n := 0
	for ; lines.Scan(); n++ {
		var golden struct {
			Gold          int
			LogLikelihood []float64
		}
		if err := json.Unmarshal(lines.Bytes(), &golden); err != nil {
			t.Fatal(err)
		}
		if n >= len(items) || items[n].Gold != golden.Gold || len(items[n].Options) != len(golden.LogLikelihood) {
			t.Fatalf("item %d: got %+v, want gold %d of %d options", n, items[n:min(n+1, len(items))], golden.Gold, len(golden.LogLikelihood))
		}
	}
	if lines.Err() != nil || n != len(items) {
		t.Errorf("golden file has %d items, want %d (%v)", n, len(items), lines.Err())
	}
}
