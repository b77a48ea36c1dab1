package train

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"loratrain/datasets"
	"loratrain/model"
)

// runData is what a run trains on and is measured by.
type runData struct {
	encoder   datasets.Encoder
	seqs      []datasets.Sequence
	truncated int // sequences that lost the beginning of their prompt
	tests     []datasets.Task
	digests   map[string]string // of what is trained on and of what is measured by: "train toy", "test toy", "data.file", …
}

// loadData reads and encodes what cfg names.
func loadData(cfg Config, base *model.Base, catalog datasets.Catalog) (*runData, error) {
	d := &runData{digests: map[string]string{}}
	var err error
	if d.encoder, err = NewEncoder(base, cfg.Data.Template, cfg.Data.MaxLength, cfg.LearnEOS()); err != nil {
		return nil, err
	}
	tasks, err := d.load(catalog, cfg.Data.Tasks, userFile{"data.file", cfg.Data.File}, datasets.Train, cfg.Data.Limit)
	if err != nil {
		return nil, err
	}
	if d.tests, err = d.load(catalog, cfg.Eval.Tasks, userFile{"data.eval_file", cfg.Data.EvalFile}, datasets.Test, cfg.Eval.Limit); err != nil {
		return nil, err
	}
	d.seqs, d.truncated, err = d.encoder.Sequences(tasks...)
	return d, err
}

// userFile is a user's own file, and the setting that names it.
type userFile struct{ key, path string }

// spec names the file for a catalog, whatever characters its path has.
func (f userFile) spec() string {
	name := strings.TrimSuffix(filepath.Base(f.path), filepath.Ext(f.path))
	return strings.ReplaceAll(safeName(name), "+", "-") + "=" + f.path
}

// load reads tasks, and a user's own file as one more, and notes their digests; each keeps its first limit items unless limit is 0.
func (d *runData) load(catalog datasets.Catalog, specs []string, own userFile, split datasets.Split, limit int) ([]datasets.Task, error) {
	keys := make([]string, len(specs))
	if own.path != "" {
		specs, keys = append(slices.Clone(specs), own.spec()), append(keys, own.key)
	}
	tasks, err := catalog.LoadAll(specs, split)
	for i := range tasks {
		tasks[i] = tasks[i].First(limit)
		key := keys[i]
		if key == "" {
			key = fmt.Sprintf("%s %s", split, tasks[i].Name)
		}
		d.digests[key] = tasks[i].Digest()
	}
	return tasks, err
}

// NewEncoder turns text into ids for a base; learnEOS puts its end-of-sequence token after the answers of pairs.
func NewEncoder(base *model.Base, template string, maxLength int, learnEOS bool) (datasets.Encoder, error) {
	e := datasets.Encoder{Special: true, EOS: -1, MaxLength: min(maxLength, base.Arch.Context)}
	var err error
	if e.Template, err = datasets.ParseTemplate(template); err != nil {
		return e, err
	}
	tok, err := base.NeedTokenizer()
	if err != nil {
		return e, err
	}
	e.Tokenizer = tok
	if !learnEOS {
		return e, nil
	}
	ends := append(slices.Clone(base.EOS), tok.EOS()...)
	if len(ends) == 0 {
		return e, fmt.Errorf("%s: names no end-of-sequence token, so none can be learned\nset data.eos to false", base.Name)
	}
	e.EOS = ends[0]
	return e, nil
}

// batches is the items of one step, packed.
func (d *runData) batches(items []int, microTokens int) ([]datasets.Batch, error) {
	seqs := make([]datasets.Sequence, len(items))
	for i, k := range items {
		seqs[i] = d.seqs[k]
	}
	return datasets.Pack(seqs, microTokens, datasets.Sizes(microTokens))
}

// sources are the places of the items of a step, for messages.
func (d *runData) sources(items []int) []string {
	list := make([]string, len(items))
	for i, k := range items {
		list[i] = d.seqs[k].Source
	}
	return list
}

// verifyPrompts is how many prompts an export is verified on.
const verifyPrompts = 4

// prompts are some of the training sequences', from all over the data.
func (d *runData) prompts() [][]int32 {
	var list [][]int32
	n := min(verifyPrompts, len(d.seqs))
	for i := range n {
		s := d.seqs[i*len(d.seqs)/n]
		list = append(list, s.IDs[:s.Prompt])
	}
	return list
}
