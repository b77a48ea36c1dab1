package tokenizer

import (
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"
)

// bpe is the model: it turns a word into ids by merging neighbours, the
// merge of lowest rank first and the leftmost of those first (Sennrich et
// al. 2016, as Hugging Face tokenizers do it).
type bpe struct {
	vocab  map[string]int32
	tokens map[int32]string
	merges map[[2]int32]merge

	// unk stands for a character that is not in vocab, −1 drops it; fuseUnk
	// makes one of several in a row.
	unk     int32
	fuseUnk bool
	// byteFallback spells an unknown character as <0xE2><0x82>….
	byteFallback bool
	// ignoreMerges takes a word that is in vocab whole, whatever the merges.
	ignoreMerges bool
	// byteLevel says that a word is to be spelled in the byte alphabet first.
	byteLevel bool

	cache wordCache
}

// merge is what a pair becomes, and how early.
type merge struct {
	rank int
	id   int32
}

// newBPE checks that token ids are distinct.
func newBPE(vocab map[string]int32) (*bpe, error) {
	m := &bpe{vocab: vocab, tokens: make(map[int32]string, len(vocab)), unk: -1}
	for t, id := range vocab {
		if other, taken := m.tokens[id]; taken {
			first, second := min(t, other), max(t, other)
			return nil, fmt.Errorf("tokens %q and %q have the same id %d", first, second, id)
		}
		m.tokens[id] = t
	}
	return m, nil
}

// addMerge adds the merge of rank rank; the last of several for a pair counts.
func (m *bpe) addMerge(rank int, left, right string) error {
	var ids [3]int32
	for i, t := range []string{left, right, left + right} {
		id, ok := m.vocab[t]
		if !ok {
			return fmt.Errorf("merge of %q and %q: %q is not in the vocabulary", left, right, t)
		}
		ids[i] = id
	}
	m.merges[[2]int32{ids[0], ids[1]}] = merge{rank, ids[2]}
	return nil
}

// encode appends the ids of word.
func (m *bpe) encode(word string, ids []int32) []int32 {
	if cached, ok := m.cache.get(word); ok {
		return append(ids, cached...)
	}
	start := len(ids)
	ids = m.encodeNew(word, ids)
	m.cache.put(word, ids[start:])
	return ids
}

func (m *bpe) encodeNew(word string, ids []int32) []int32 {
	if m.byteLevel {
		word = toByteAlphabet(word)
	}
	if m.ignoreMerges {
		if id, ok := m.vocab[word]; ok {
			return append(ids, id)
		}
	}
	return m.mergeAll(m.symbols(word), ids)
}

// symbols looks up the characters of word one by one.
func (m *bpe) symbols(word string) []symbol {
	out := make([]symbol, 0, len(word))
	unknown := false // the last symbol is an unknown token
	for i, r := range word {
		char := word[i : i+utf8.RuneLen(r)]
		if id, ok := m.vocab[char]; ok {
			out = append(out, symbol{id: id})
			unknown = false
			continue
		}
		if m.byteFallback {
			if spelled := m.spell(char); spelled != nil {
				// As in tokenizers, bytes do not end a run of unknown characters:
				// the pending unknown token follows them.
				if unknown {
					last := out[len(out)-1]
					out = append(append(out[:len(out)-1], spelled...), last)
				} else {
					out = append(out, spelled...)
				}
				continue
			}
		}
		if m.unk >= 0 && !(unknown && m.fuseUnk) {
			out = append(out, symbol{id: m.unk})
			unknown = true
		}
	}
	for i := range out {
		out[i].prev, out[i].next = i-1, i+1
	}
	return out
}

// spell returns the byte tokens of char, nil if one is missing.
func (m *bpe) spell(char string) []symbol {
	var out []symbol
	for i := range len(char) {
		id, ok := m.vocab[fmt.Sprintf("<0x%02X>", char[i])]
		if !ok {
			return nil
		}
		out = append(out, symbol{id: id})
	}
	return out
}

// A symbol is a piece of a word that is being merged: a doubly linked list
// in an array, which ends at its length. A piece merged into its left
// neighbour is gone.
type symbol struct {
	id         int32
	gone       bool
	prev, next int
}

// mergeAll merges in O(n log n) for n symbols and appends what remains.
func (m *bpe) mergeAll(syms []symbol, ids []int32) []int32 {
	var queue candidates
	consider := func(left, right int) {
		if left < 0 || right >= len(syms) {
			return
		}
		if to, ok := m.merges[[2]int32{syms[left].id, syms[right].id}]; ok {
			queue.push(candidate{to.rank, left, to.id})
		}
	}
	for i := 1; i < len(syms); i++ {
		consider(i-1, i)
	}
	for len(queue) > 0 {
		c := queue.pop()
		left := &syms[c.left]
		if left.gone || left.next >= len(syms) {
			continue
		}
		right := &syms[left.next]
		// A candidate is stale once either side has changed.
		if to, ok := m.merges[[2]int32{left.id, right.id}]; !ok || to.id != c.id {
			continue
		}
		left.id = c.id
		right.gone = true
		left.next = right.next
		if right.next < len(syms) {
			syms[right.next].prev = c.left
		}
		consider(left.prev, c.left)
		consider(c.left, left.next)
	}
	for i := range syms {
		if !syms[i].gone {
			ids = append(ids, syms[i].id)
		}
	}
	return ids
}

// A candidate is a pair that could be merged: its left symbol and what the
// pair becomes.
type candidate struct {
	rank, left int
	id         int32
}

func (c candidate) before(d candidate) bool {
	return c.rank < d.rank || c.rank == d.rank && c.left < d.left
}

// candidates is a binary heap; container/heap would allocate for each item.
type candidates []candidate

func (q *candidates) push(c candidate) {
	h := append(*q, c)
	i := len(h) - 1
	for i > 0 && h[i].before(h[(i-1)/2]) {
		h[i], h[(i-1)/2] = h[(i-1)/2], h[i]
		i = (i - 1) / 2
	}
	*q = h
}

func (q *candidates) pop() candidate {
	h := *q
	top := h[0]
	n := len(h) - 1
	h[0] = h[n]
	h = h[:n]
	for i := 0; ; {
		first := i
		for child := 2*i + 1; child <= 2*i+2 && child < n; child++ {
			if h[child].before(h[first]) {
				first = child
			}
		}
		if first == i {
			break
		}
		h[i], h[first] = h[first], h[i]
		i = first
	}
	*q = h
	return top
}

// wordCache remembers the ids of short words. It is safe for concurrent use.
type wordCache struct {
	mu  sync.RWMutex
	ids map[string][]int32
}

const (
	maxCached     = 1 << 15 // words
	maxCachedWord = 64      // bytes
)

func (c *wordCache) get(word string) ([]int32, bool) {
	if len(word) > maxCachedWord {
		return nil, false
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	ids, ok := c.ids[word]
	return ids, ok
}

// put forgets everything when full: the words in use come back at once.
func (c *wordCache) put(word string, ids []int32) {
	if len(word) > maxCachedWord {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ids == nil || len(c.ids) >= maxCached {
		c.ids = make(map[string][]int32)
	}
	// The clones keep neither the text that holds word nor the caller's ids.
	c.ids[strings.Clone(word)] = append([]int32(nil), ids...)
}
