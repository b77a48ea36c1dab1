#!/usr/bin/env python3
"""random_model.py SHAPE FOLDER: a Hugging Face folder of that shape with random bf16 weights, to measure loading.

Shapes: llama2-7b (13.5 GB), smollm2-135m. The tokenizer is that of the embedded model, whose ids are all below these
vocabularies, so that `lora-train run --set model.path=FOLDER --set data.tasks=toy` works. Needs nothing but Python.
"""
import json
import os
import shutil
import struct
import sys

SHAPES = {
    "llama2-7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
                      num_key_value_heads=32, vocab_size=32000, max_position_embeddings=4096, rope_theta=10000.0,
                      tie_word_embeddings=False),
    "smollm2-135m": dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                         num_key_value_heads=3, vocab_size=49152, max_position_embeddings=8192, rope_theta=100000.0,
                         tie_word_embeddings=True),
}
BLOCK = 32 << 20  # bytes of random numbers, which repeat


def tensors(c):
    """Names and shapes, in the order of the file."""
    d, f = c["hidden_size"], c["intermediate_size"]
    kv = d // c["num_attention_heads"] * c["num_key_value_heads"]
    yield "model.embed_tokens.weight", [c["vocab_size"], d]
    yield "model.norm.weight", [d]
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", [c["vocab_size"], d]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", [d]
        yield p + "post_attention_layernorm.weight", [d]
        for name, out, width in [("self_attn.q_proj", d, d), ("self_attn.k_proj", kv, d), ("self_attn.v_proj", kv, d),
                                 ("self_attn.o_proj", d, d), ("mlp.gate_proj", f, d), ("mlp.up_proj", f, d), ("mlp.down_proj", d, f)]:
            yield p + name + ".weight", [out, width]


def random_block():
    """bf16 numbers between 0.008 and 0.031 of either sign: the upper byte is 0x3c or 0xbc, the lower one is random."""
    block = bytearray(BLOCK)
    block[0::2] = os.urandom(BLOCK // 2)
    block[1::2] = os.urandom(BLOCK // 2).translate(bytes(0x3C | b & 0x80 for b in range(256)))
    return memoryview(bytes(block))


def main(shape, folder):
    c = dict(SHAPES[shape], architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", rms_norm_eps=1e-5,
             bos_token_id=0, eos_token_id=0, dtype="bfloat16")
    os.makedirs(folder)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(c, f, indent=1)
    here = os.path.dirname(os.path.abspath(__file__))
    shutil.copy(os.path.join(here, "..", "..", "model", "tiny", "tokenizer.json"), folder)
    header, at = {}, 0
    for name, dims in tensors(c):
        size = 2
        for n in dims:
            size *= n
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = random_block()
    ones = b"\x80\x3f" * c["hidden_size"]
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, t in header.items():
            left = t["data_offsets"][1] - t["data_offsets"][0]
            if name.endswith("norm.weight"):
                f.write(ones)
                left = 0
            while left > 0:
                left -= f.write(block[: min(left, BLOCK)])


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sys.exit(f"usage: random_model.py {'|'.join(SHAPES)} FOLDER")
    main(*sys.argv[1:])
