"""Writes what Python's tokenizers makes of strange texts. usage: python make_oracle.py DIR

For every NAME.json in DIR, and for small tokenizers of many kinds that it makes there itself, it writes NAME.jsonl.gz: a
line has text, ids, with_special (special tokens added), decoded (of ids) and skipped (of with_special, special tokens
skipped); a line without a text has random ids, which need not be UTF-8. oracle.sh runs it; TestOracle reads it.
"""
import glob, gzip, json, os, random, sys

from tokenizers import AddedToken, Regex, Tokenizer, __version__, decoders, models, normalizers, pre_tokenizers, processors, trainers

assert __version__ == "0.23.2", __version__
folder = sys.argv[1]
SPACES = " \t\n\r\u0085\u00a0\u2003\u2028\u3000"


def strange(R, special):
    odd = ["'s", "'LL", "'\u017f", "don't", "I'VE", " the", "ing", "123", "1234567", "\u2003", "\u0085", "\u200d", "\u3000", "\u017f",
           "\u212a", "\u00bd", "\u00b2", "\0", "\ufffd", "  ", "\n\n", " \n ", "1st", "3.14", "\r\n", "   x", "e\u0301", "\u1100\u1161\u11a8",
           "a" + "\u0316\u0301" * 20] + special
    pools = [lambda: chr(32 + R.randrange(95)), lambda: R.choice(" \n\t\r"), lambda: chr(97 + R.randrange(26)),
             lambda: chr(0xA0 + R.randrange(0x500)), lambda: chr(0x300 + R.randrange(0x70)), lambda: chr(0x4E00 + R.randrange(500)),
             lambda: chr(0x1F600 + R.randrange(80)), lambda: R.choice(odd), lambda: R.choice(SPACES) + R.choice(odd) + R.choice(SPACES),
             lambda: chr(R.choice([0x1D7CE + R.randrange(50), 0xAC00 + R.randrange(300), 0x900 + R.randrange(120),
                                   0x600 + R.randrange(100), 0xE000 + R.randrange(10), 0x10FFFF - R.randrange(3)]))]
    return "".join(R.choice(pools if R.random() < 0.33 else pools[:3])() for _ in range(1 + R.randrange(50)))


def every_character():
    """Each character between a letter, a digit and a space, sixty-four to a text."""
    points = [c for c in range(0x32400) if not 0xD800 <= c < 0xE000]
    for i in range(0, len(points), 64):
        yield "".join(f"a{chr(c)}1{chr(c)} {chr(c)}" for c in points[i:i + 64])


def write(name, texts, R):
    tok = Tokenizer.from_file(f"{folder}/{name}.json")
    size = max(tok.get_vocab().values()) + 1
    with gzip.open(f"{folder}/{name}.jsonl.gz", "wt", compresslevel=5) as f:
        def line(text, ids, with_special):
            f.write(json.dumps(dict(text=text, ids=ids, with_special=with_special, decoded=tok.decode(ids, skip_special_tokens=False),
                                    skipped=tok.decode(with_special, skip_special_tokens=True))) + "\n")
        for t in texts:
            line(t, tok.encode(t, add_special_tokens=False).ids, tok.encode(t).ids)
        for _ in range(500):
            ids = [R.randrange(size + 3) if R.random() < 0.5 else R.randrange(min(size, 300)) for _ in range(R.randrange(12))]
            line(None, ids, ids)


def small():
    """Tokenizers of a few hundred tokens that have the parts which the published ones lack."""
    corpus = ["the cat sat on the mat; it's 1234 o'clock, they've said they'll be there in 2024 or 42 \u00e9t\u00e9 na\u00efve"] * 3
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())

    def bpe(pre=None, normalizer=None, alphabet=(), special=(), **options):
        tok = Tokenizer(models.BPE(**options))
        tok.pre_tokenizer = pre_tokenizers.Sequence([pre, pre_tokenizers.ByteLevel(add_prefix_space=False)]) if pre else None
        if normalizer:
            tok.normalizer = normalizer
        tok.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=len(alphabet) + len(special) + 120, initial_alphabet=list(alphabet),
                                                           special_tokens=list(special), show_progress=False))
        tok.decoder = decoders.ByteLevel()
        return tok

    template = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tok = bpe(pre_tokenizers.Digits(individual_digits=False), alphabet=alphabet, special=["<s>", "</s>"])
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=True)])
    tok.normalizer = normalizers.NFC()
    tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    tok.add_tokens([AddedToken("<l>", lstrip=True), AddedToken("<r>", rstrip=True), AddedToken("<lr>", lstrip=True, rstrip=True),
                    AddedToken("word", single_word=True), AddedToken("<n>", normalized=False), AddedToken("<n><n>", normalized=False),
                    AddedToken("\u00e9\u0301", normalized=True), AddedToken("  ", normalized=False), AddedToken("a b", special=True)])
    yield "small-added", tok, ["<l>", "<r>", "<lr>", "word", "words", " word", "<n>", "<n><n>", "\u00e9\u0301", "a b", "<s>", "</s>", "  "]

    for i, (behavior, invert, expr) in enumerate([("removed", False, Regex(r"\s+")), ("merged_with_previous", False, Regex(r"\s")),
                                                  ("merged_with_next", False, Regex(r"[\s\p{P}]")), ("contiguous", False, Regex(r"\p{N}|\p{P}")),
                                                  ("removed", True, Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{M}{1,2}")),
                                                  ("isolated", False, "th"), ("merged_with_next", True, Regex(r"\S+(?=\s)|(?i:t|h)e?"))]):
        tok = bpe(pre_tokenizers.Split(expr, behavior, invert), alphabet=alphabet)
        yield f"small-split-{i}", tok, []

    llama2 = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    tok = bpe(normalizer=llama2, special=["<unk>", "<s>", "</s>"] + bytes_, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    state = json.loads(tok.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["id"] < 3]  # byte tokens are not to be found in a text
    tok = Tokenizer.from_str(json.dumps(state))
    tok.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    yield "small-fallback", tok, ["<s>", "</s>", "<unk>", "<0x41>"]

    for fuse in (False, True):
        tok = bpe(special=["<unk>"] + bytes_[:200], unk_token="<unk>", fuse_unk=fuse, byte_fallback=fuse)
        state = json.loads(tok.to_str())
        state["added_tokens"] = []
        state["decoder"] = None
        yield f"small-unk-{fuse}", Tokenizer.from_str(json.dumps(state)), []


published = sorted(os.path.basename(p)[:-5] for p in glob.glob(f"{folder}/*.json") if "/small-" not in p)
for i, name in enumerate(published):
    R = random.Random(i)
    special = [t["content"] for t in json.load(open(f"{folder}/{name}.json"))["added_tokens"]][:12]
    write(name, [""] + [strange(R, special) for _ in range(2000)] + list(every_character()), R)
for i, (name, tok, special) in enumerate(small()):
    R = random.Random(100 + i)
    tok.save(f"{folder}/{name}.json")
    write(name, [""] + [strange(R, special) for _ in range(1500)], R)
