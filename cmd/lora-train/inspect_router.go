package main

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"loratrain/checkpoints"
	"loratrain/model"
	"loratrain/model/tokenizer"
	"loratrain/router"
)

// routerReport is whom the experts of an adapter serve, by its routing table.
type routerReport struct {
	Kind    string         `json:"kind"`
	Path    string         `json:"path"`
	Vocab   int            `json:"vocab"`
	Experts []expertReport `json:"experts"`

	noTokens error // why tokens are not spelled
}

type expertReport struct {
	Expert int     `json:"expert"`
	First  float64 `json:"first"`  // share of the vocabulary that has this expert first
	Either float64 `json:"top2"`   // … first or second
	Weight float64 `json:"weight"` // mean gate of these
	// Examples are the tokens with the largest gates, those that this expert serves most alone.
	Examples []tokenExample `json:"examples"`
}

type tokenExample struct {
	ID     int32   `json:"id"`
	Token  string  `json:"token,omitempty"` // its text
	Weight float32 `json:"weight"`
}

// examples is how many tokens show what an expert is about.
const examples = 12

func inspectRouter(path, modelPath string) (report, error) {
	dir, run, err := findExport(path)
	if err != nil {
		return nil, err
	}
	e, err := checkpoints.OpenServing(dir)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	if g := e.Config.Granularity; g != checkpoints.PerToken {
		return nil, failf("only an adapter of granularity token decides by the token alone", "%s: granularity %s has no routing table", dir, g)
	}
	r := routerReport{Kind: "router", Path: dir, Vocab: e.Config.Base.Vocabulary}
	tokens, closeBase, err := spelling(e, run, modelPath)
	if err != nil {
		if modelPath != "" {
			return nil, err
		}
		r.noTokens = err
	} else {
		defer closeBase()
	}
	r.count(e, tokens)
	return r, nil
}

// spelling is the tokenizer of an adapter's base.
func spelling(e *checkpoints.Serving, run, modelPath string) (*tokenizer.Tokenizer, func() error, error) {
	base, err := baseOf(e, run, modelPath)
	if err != nil {
		return nil, nil, err
	}
	err = e.CheckBase(base.Name, base.Digest(), model.DimsOf(base.Arch))
	tokens, missing := base.NeedTokenizer()
	if err = errors.Join(err, missing); err != nil {
		return nil, nil, errors.Join(err, base.Close())
	}
	return tokens, base.Close, nil
}

// count goes through the routing table. tokens may be nil.
func (r *routerReport) count(e *checkpoints.Serving, tokens *tokenizer.Tokenizer) {
	ids, _ := e.Tensor(checkpoints.TableIDs)
	weights, _ := e.Tensor(checkpoints.TableWeights)
	served := make([][]tokenExample, e.Config.Experts)
	r.Experts = make([]expertReport, e.Config.Experts)
	for place := range router.Top * r.Vocab {
		expert := binary.LittleEndian.Uint32(ids.Data[4*place:])
		weight := math.Float32frombits(binary.LittleEndian.Uint32(weights.Data[4*place:]))
		if place%router.Top == 0 {
			r.Experts[expert].First++
		}
		r.Experts[expert].Weight += float64(weight)
		served[expert] = append(served[expert], tokenExample{ID: int32(place / router.Top), Weight: weight})
	}
	for i := range r.Experts {
		x, list := &r.Experts[i], served[i]
		x.Expert = i
		x.First /= float64(r.Vocab)
		x.Either = float64(len(list)) / float64(r.Vocab)
		x.Weight /= float64(max(1, len(list)))
		slices.SortStableFunc(list, func(a, b tokenExample) int { return cmp.Compare(b.Weight, a.Weight) })
		x.Examples = slices.Clone(list[:min(examples, len(list))])
		for k := range x.Examples {
			if tokens != nil {
				x.Examples[k].Token = tokens.Decode([]int32{x.Examples[k].ID}, false)
			}
		}
	}
}

func (r routerReport) print(w io.Writer, _ bool) {
	fmt.Fprintf(w, "%s: whom its %d experts serve, of %s\n\n", r.Path, len(r.Experts), plural(r.Vocab, "token"))
	rows := [][]string{{"expert", "\tfirst", "\ttop 2", "\tmean gate", "largest gates"}}
	for _, x := range r.Experts {
		var list []string
		for _, e := range x.Examples {
			text := "#" + strconv.Itoa(int(e.ID))
			if e.Token != "" {
				text = strconv.Quote(e.Token)
			}
			list = append(list, text)
		}
		rows = append(rows, []string{
			"\t" + strconv.Itoa(x.Expert), fmt.Sprintf("\t%.1f%%", 100*x.First), fmt.Sprintf("\t%.1f%%", 100*x.Either),
			fmt.Sprintf("\t%.2f", x.Weight), strings.Join(list, " "),
		})
	}
	printTable(w, rows)
	if r.noTokens != nil {
		first, _, _ := strings.Cut(r.noTokens.Error(), "\n")
		fmt.Fprintf(w, "\ntokens are shown by id: %s\n", first)
	}
}
