// Package tokenizer turns text into token ids and back by byte-level BPE, as
// GPT-2, Llama 3, Qwen and SmolLM2 use it, id for id like Hugging Face
// tokenizers.
//
// Start with Open for a model folder's tokenizer.json and with FromGGUF for
// the metadata of a GGUF file; then Encode, Decode, and Stream for text that
// is being generated.
//
// Caveats. A file is refused, by the name of the part, if anything in it that
// could change ids is not byte-level BPE's: SentencePiece and Unigram models,
// WordPiece, and regular expressions whose meaning differs between Oniguruma
// and .NET. Special tokens written in a text are recognised, so text from
// strangers can contain them. The parts of tokenizer_config.json and of chat
// templates are not this package's business, except which tokens begin and
// end a text.
package tokenizer

import (
	"maps"
	"slices"
)

// A Tokenizer is immutable but for a cache and safe for concurrent use.
type Tokenizer struct {
	raw        *matcher // added tokens, before normalization
	normalize  normalizer
	normalized *matcher // added tokens, after it
	pre        preTokenizer
	model      *bpe
	templates  []template
	decoder    *decoder

	ids     map[string]int32
	tokens  map[int32]string
	pieces  map[int32]string // tokens as they enter the decoder
	special map[int32]bool
	size    int
	bos     int32
	ends    []int32
}

// builder collects the parts of a Tokenizer.
type builder struct {
	normalize normalizer
	pre       preTokenizer
	model     *bpe
	added     []addedToken
	decoder   *decoder
}

func (b *builder) build() *Tokenizer {
	t := &Tokenizer{
		normalize: b.normalize,
		pre:       b.pre,
		model:     b.model,
		decoder:   b.decoder,
		ids:       b.model.vocab,
		tokens:    b.model.tokens,
		special:   map[int32]bool{},
		bos:       -1,
	}
	b.model.byteLevel = b.pre.byteLevel
	if len(b.added) > 0 {
		t.ids, t.tokens = maps.Clone(t.ids), maps.Clone(t.tokens)
	}
	t.pieces = maps.Clone(t.tokens)
	var raw, normalized []addedToken
	var rawKeys, normalizedKeys []string
	for _, a := range b.added {
		t.ids[a.Content], t.tokens[a.ID], t.pieces[a.ID] = a.ID, a.Content, a.Content
		t.special[a.ID] = a.Special
		if a.Normalized {
			// Its text in the decoder is the one that the normalizer makes, too.
			t.pieces[a.ID] = b.normalize(a.Content)
			normalized, normalizedKeys = append(normalized, a), append(normalizedKeys, t.pieces[a.ID])
		} else {
			raw, rawKeys = append(raw, a), append(rawKeys, a.Content)
		}
	}
	t.raw, t.normalized = newMatcher(raw, rawKeys), newMatcher(normalized, normalizedKeys)
	for id := range t.tokens {
		t.size = max(t.size, int(id)+1)
	}
	return t
}

// Encode returns the ids of text. special adds what the model expects around
// a text, such as Llama 3's <|begin_of_text|>. Added tokens written in the text
// become their ids either way. Invalid UTF-8 is read as U+FFFD. Characters
// that the vocabulary cannot spell are dropped, unless it has an unknown token.
func (t *Tokenizer) Encode(text string, special bool) []int32 {
	var ids []int32
	t.raw.split(validText(text), func(s segment) {
		if s.text == "" {
			ids = append(ids, s.id)
			return
		}
		t.normalized.split(t.normalize(s.text), func(s segment) {
			if s.text == "" {
				ids = append(ids, s.id)
				return
			}
			for _, word := range t.pre.split(s.text) {
				ids = t.model.encode(word, ids)
			}
		})
	})
	for _, tmpl := range t.templates {
		ids = tmpl.apply(ids, special)
	}
	return ids
}

// Decode returns the text of ids; skipSpecial leaves special tokens out. An
// id that no token has stands for nothing, and bytes that are not UTF-8 become
// U+FFFD.
func (t *Tokenizer) Decode(ids []int32, skipSpecial bool) string {
	s := t.Stream(skipSpecial)
	var out []byte
	for _, id := range ids {
		out = append(out, s.Write(id)...)
	}
	return string(append(out, s.Flush()...))
}

// VocabSize is one more than the largest id; a model has at least as many
// embedding rows. There may be ids below it that no token has.
func (t *Tokenizer) VocabSize() int { return t.size }

// ID returns the id of a token, given as the tokenizer's file spells it (" the"
// is "Ġthe" in a byte-level vocabulary).
func (t *Tokenizer) ID(token string) (id int32, ok bool) {
	id, ok = t.ids[token]
	return id, ok
}

// Token returns the token with an id as the tokenizer's file spells it, ""
// if there is none.
func (t *Tokenizer) Token(id int32) string { return t.tokens[id] }

// BOS is the token that begins a text, −1 if none is known.
func (t *Tokenizer) BOS() int32 { return t.bos }

// EOS returns the ids that end a text or a turn; generation stops at any of
// them. The first is the one that the model's files declare, if they do.
func (t *Tokenizer) EOS() []int32 { return slices.Clone(t.ends) }

// endTokens end a text or a chat turn in the models supported.
var endTokens = []string{
	"<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|endoftext|>", "<|end|>", "<end_of_turn>", "</s>",
}

// guessEnds finds the end tokens by name, and BOS at the head of the template.
func (t *Tokenizer) guessEnds() {
	t.setEOS(-1)
	for _, tmpl := range t.templates {
		if len(tmpl) > 0 && tmpl[0] != textPart && t.bos < 0 {
			t.bos = tmpl[0]
		}
	}
}

// setEOS puts the declared ids, where not negative, before those known by name.
func (t *Tokenizer) setEOS(declared ...int32) {
	t.ends = nil
	for _, name := range endTokens {
		if id, ok := t.ids[name]; ok && t.special[id] {
			declared = append(declared, id)
		}
	}
	for _, id := range declared {
		if id >= 0 && !slices.Contains(t.ends, id) {
			t.ends = append(t.ends, id)
		}
	}
}
