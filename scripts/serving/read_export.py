#!/usr/bin/env python3
"""read_export.py --ids 5,17,3 --out logits.safetensors [--reference FOLDER] BASE EXPORT [BASE EXPORT ...]

Reads what `lora-train export` writes and computes logits with it. It proves that checkpoints/FORMAT.md is enough to use
an export from another language: it was written against that page, in its order and with its letters, and shares nothing
with lora-train. A BASE is a Hugging Face folder of a Llama, Mistral, Qwen2 or Qwen3. What the page says to refuse is
refused. Plain PyTorch in float64, to be read, not to be fast; needs torch, numpy and safetensors.

Writes a tensor (T, V) for each EXPORT under its path: the logits after each of the T ids. FOLDER is where the method's
reference.py lies: the same is computed with that, which knows no table, and must agree.
"""
import argparse
import hashlib
import json
import math
import struct
import sys
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32}
KEYS = ("format version base targets granularity gate top experts rank shared_rank alpha scale dtype").split()
BASE_KEYS = "name digest layers hidden_width mlp_width heads kv_heads head_dim vocab".split()
PADDING = "__padding__."


def need(holds, path, complaint):
    if not holds:
        sys.exit(f"{path}: {complaint}")


def module(layer, target):
    return f"model.layers.{layer}.{'self_attn' if target in ATTENTION else 'mlp'}.{target}"


# adapter_config.json

def read_config(path):
    def once(pairs):
        need(len(dict(pairs)) == len(pairs), path, "a key is there twice")
        return dict(pairs)

    c = json.loads(path.read_text("utf-8"), object_pairs_hook=once)
    what = c.get("format"), c.get("version")
    need(what == ("lora-switch", 1), path, "format %r version %r, this reads 'lora-switch' version 1" % what)
    need(sorted(c) == sorted(KEYS) and sorted(c["base"]) == sorted(BASE_KEYS), path, "keys are missing or unknown")
    gate = ("one", 1) if c["granularity"] == "none" else ("softmax-top2", 2)
    need(c["granularity"] in ("token", "block", "layer", "none"), path, "unknown granularity")
    need((c["gate"], c["top"]) == gate, path, "unknown gate")
    need(c["targets"] and c["targets"] == [t for t in ATTENTION + MLP if t in c["targets"]], path, "targets")
    need(c["experts"] >= c["top"] and (c["experts"] == 1 or c["top"] == 2), path, "experts")
    need(c["rank"] >= 1 and c["shared_rank"] >= 0 and c["dtype"] == "BF16", path, "rank or dtype")
    need(c["alpha"] > 0 and math.isclose(c["scale"], c["alpha"] / c["rank"], rel_tol=1e-9), path, "scale")
    return c


# adapter_model.safetensors

def read_file(path):
    """name -> (type, shape, bytes), as the official library gives them."""
    return {n: (t["dtype"], t["shape"], bytes(t["data"])) for n, t in safetensors.deserialize(path.read_bytes())}


def to_torch(kind, shape, data):
    return torch.frombuffer(bytearray(data), dtype=TYPES[kind]).reshape(shape)


def widths(base):
    """target -> (D_in, D_out)"""
    d, f, q, kv = base["hidden_width"], base["mlp_width"], base["heads"] * base["head_dim"], base["kv_heads"] * base["head_dim"]
    return dict(q_proj=(d, q), k_proj=(d, kv), v_proj=(d, kv), o_proj=(q, d), gate_proj=(d, f), up_proj=(d, f), down_proj=(f, d))


def expected(c):
    """name -> (type, shape)"""
    E, R, S, D, V = c["experts"], c["rank"], c["shared_rank"], c["base"]["hidden_width"], c["base"]["vocab"]
    want = {}
    for l in range(c["base"]["layers"]):
        for t in c["targets"]:
            P, (d_in, d_out) = module(l, t), widths(c["base"])[t]
            want |= {f"{P}.lora_A": ("BF16", [E, R, d_in]), f"{P}.lora_B": ("BF16", [E, R, d_out])}
            if S > 0:
                want |= {f"{P}.shared_A": ("BF16", [S, d_in]), f"{P}.shared_B": ("BF16", [S, d_out])}
            if c["granularity"] == "layer":
                want[f"{P}.router"] = ("F32", [E, d_in])
        if c["granularity"] == "block":
            want[f"model.layers.{l}.router"] = ("F32", [E, D])
    if c["granularity"] == "token":
        want |= {"model.router": ("F32", [E, D]), "model.table.ids": ("I32", [V, 2]), "model.table.weights": ("F32", [V, 2])}
    return want


def read_tensors(path, c):
    data = path.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    for name, t in json.loads(data[8 : 8 + n]).items():
        need(name == "__metadata__" or name.startswith(PADDING) or (8 + n + t["data_offsets"][0]) % 16 == 0, path, f"{name} is not aligned")
    found, want = read_file(path), expected(c)
    for name in [n for n in found if n.startswith(PADDING)]:
        kind, _, zeros = found.pop(name)
        need(kind == "U8" and len(zeros) < 16 and not any(zeros), path, f"{name} is no padding")
    for name in found.keys() | want.keys():
        got = found.get(name, (None, None))[:2]
        need(got == want.get(name), path, f"{name}: is {got}, want {want.get(name)}")
    tensors = {n: to_torch(*t) for n, t in found.items()}
    for name, x in tensors.items():
        need(x.isfinite().all(), path, f"{name}: NaN or infinite")
    if c["granularity"] == "token":
        ids, weights = tensors["model.table.ids"], tensors["model.table.weights"].double()
        need(((ids >= 0) & (ids < c["experts"])).all() and (ids[:, 0] != ids[:, 1]).all(), path, "model.table.ids")
        need((weights >= 0).all() and ((weights.sum(1) - 1).abs() <= 1e-5).all(), path, "model.table.weights")
    return {n: x if x.dtype == torch.int32 else x.double() for n, x in tensors.items()}


# The base, and its digest

class Base:
    def __init__(self, folder):
        c = json.loads((folder / "config.json").read_text())
        index = folder / "model.safetensors.index.json"
        files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
        self.tied = c.get("tie_word_embeddings", False)
        unread = [PADDING, "lm_head."] if self.tied else [PADDING]  # beside the caches that old files have
        self.raw = {n: t for f in files for n, t in read_file(folder / f).items()
                    if not n.startswith(tuple(unread)) and not n.endswith("rotary_emb.inv_freq")}
        self.w = {n: to_torch(*t).double() for n, t in self.raw.items()}
        self.kind, self.heads, self.eps = c["model_type"], c["num_attention_heads"], c.get("rms_norm_eps", 1e-6)
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.head_dim = c.get("head_dim") or c["hidden_size"] // self.heads
        need(self.kind in ("llama", "mistral", "qwen2", "qwen3") and not c.get("use_sliding_window"), folder, "unknown kind of model")
        self.window = c.get("sliding_window", 4096) or 0 if self.kind == "mistral" else 0
        rope = c.get("rope_parameters") or dict(c.get("rope_scaling") or {}, rope_theta=c.get("rope_theta", 10000.0))
        self.theta, self.scaling = rope["rope_theta"], rope if rope.get("rope_type", rope.get("type")) == "llama3" else {}
        self.sizes = dict(layers=c["num_hidden_layers"], hidden_width=c["hidden_size"], mlp_width=c["intermediate_size"],
                          heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim, vocab=c["vocab_size"])

    def digest(self):
        def u64(n):
            return struct.pack("<Q", n)

        def one(name, kind, shape, data):
            if kind == "F16":
                kind, data = "F32", to_torch(kind, shape, data).float().numpy().tobytes()
            parts = [u64(len(name.encode())), name.encode(), u64(len(kind)), kind.encode(), u64(len(shape)), *map(u64, shape), data]
            return hashlib.sha256(b"".join(parts)).digest()

        return "sha256:" + hashlib.sha256(b"".join(sorted(one(n, *t) for n, t in self.raw.items()))).hexdigest()

    def frequencies(self):
        f = self.theta ** (-torch.arange(0, self.head_dim, 2).double() / self.head_dim)
        if s := self.scaling:
            low, high = s["low_freq_factor"], s["high_freq_factor"]
            turns = s["original_max_position_embeddings"] * f / (2 * math.pi)
            keep = ((turns - low) / (high - low)).clamp(0, 1)
            f = keep * f + (1 - keep) * f / s["factor"]
        return f

    def norm(self, x, name):
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.w[name + ".weight"]

    def logits(self, ids, adapter):
        """Logits (T, V) of one sequence; adapter is told of each block's normed input and adapts each linear layer."""
        w, T = self.w, len(ids)
        angle = torch.arange(T).double()[:, None, None] * self.frequencies()
        back = torch.arange(T)[:, None] - torch.arange(T)
        seen = (back >= 0) & (back < (self.window or T))

        def turn(x):
            a, b = x.chunk(2, -1)
            return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

        def linear(x, l, t):
            P = module(l, t)
            return x @ w[P + ".weight"].T + w.get(P + ".bias", 0) + adapter.added(x, l, t)

        def heads(x, l, t, norm):
            x = linear(x, l, t).view(T, -1, self.head_dim)
            return turn(self.norm(x, f"model.layers.{l}.self_attn.{norm}") if self.kind == "qwen3" else x)

        x = w["model.embed_tokens.weight"][ids]
        for l in range(self.sizes["layers"]):
            h = self.norm(x, f"model.layers.{l}.input_layernorm")
            adapter.enter(h, l)
            q, k, v = heads(h, l, "q_proj", "q_norm"), heads(h, l, "k_proj", "k_norm"), linear(h, l, "v_proj").view(T, -1, self.head_dim)
            k, v = (y.repeat_interleave(self.heads // self.kv_heads, 1) for y in (k, v))
            score = torch.einsum("thd,shd->hts", q, k) / math.sqrt(self.head_dim)
            mixed = torch.einsum("hts,shd->thd", score.where(seen, -math.inf).softmax(-1), v).reshape(T, -1)
            x = x + linear(mixed, l, "o_proj")
            h = self.norm(x, f"model.layers.{l}.post_attention_layernorm")
            x = x + linear(torch.nn.functional.silu(linear(h, l, "gate_proj")) * linear(h, l, "up_proj"), l, "down_proj")
        return self.norm(x, "model.norm") @ w["model.embed_tokens.weight" if self.tied else "lm_head.weight"].T


# What it computes

class Adapter:
    def __init__(self, folder):
        self.config = read_config(folder / "adapter_config.json")
        self.tensors = read_tensors(folder / "adapter_model.safetensors", self.config)

    def gate(self, z):
        """(T, E) logits -> (T, E) gates. A stable sort keeps the lower index first where logits are equal."""
        top = z.sort(dim=-1, descending=True, stable=True).indices[:, :2]
        return torch.zeros_like(z).scatter(1, top, z.gather(1, top).softmax(-1))

    def begin(self, ids):
        c, t = self.config, self.tensors
        self.g = torch.zeros(len(ids), c["experts"]).double()
        if c["granularity"] == "none":
            self.g += 1
        elif c["granularity"] == "token":
            self.g.scatter_(1, t["model.table.ids"][ids].long(), t["model.table.weights"][ids])
        return self

    def enter(self, h, layer):
        if self.config["granularity"] == "block":
            self.g = self.gate(h @ self.tensors[f"model.layers.{layer}.router"].T)

    def added(self, x, layer, target):
        if target not in self.config["targets"]:
            return 0
        P, t = module(layer, target), self.tensors
        g = self.gate(x @ t[P + ".router"].T) if self.config["granularity"] == "layer" else self.g
        y = torch.einsum("tj,erj,te,ero->to", x, t[P + ".lora_A"], g, t[P + ".lora_B"])
        if self.config["shared_rank"]:
            y = y + torch.einsum("tj,rj,ro->to", x, t[P + ".shared_A"], t[P + ".shared_B"])
        return self.config["scale"] * y


def with_reference(reference, base, adapter, ids):
    """The same logits from reference.py, which has B as (D_out, R) and always computes the router."""
    c, s = adapter.config, base.sizes
    b = reference.Base(s["hidden_width"], s["mlp_width"], s["layers"], s["heads"], s["kv_heads"], s["vocab"], s["head_dim"],
                       base.theta, base.eps, base.tied, base.kind == "qwen3", base.window, base.scaling)
    a = reference.Adapter(c["granularity"], c["experts"], c["rank"], c["alpha"], tuple(c["targets"]), shared=c["shared_rank"])
    p = {n: x.mT if n.endswith("_B") else x for n, x in adapter.tensors.items()}
    return reference.forward(b, base.w, a, p, ids, torch.arange(len(ids)), torch.zeros(len(ids)))[0]


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--ids", required=True)
    args.add_argument("--out", required=True)
    args.add_argument("--reference")
    args.add_argument("pairs", nargs="+", metavar="BASE EXPORT")
    args = args.parse_args()
    torch.set_num_threads(1)  # everything is small
    ids, logits = torch.tensor([int(i) for i in args.ids.split(",")]), {}
    for folder, export in zip(args.pairs[::2], args.pairs[1::2], strict=True):
        base, adapter = Base(Path(folder)), Adapter(Path(export))
        made = adapter.config["base"]
        need(base.digest() == made["digest"], export, f"made for base {made['name']} ({made['digest']}), {folder} is {base.digest()}")
        need(base.sizes.items() <= made.items(), export, f"sizes are not those of {folder}")
        need(0 <= ids.min() and ids.max() < made["vocab"], folder, f"ids up to {ids.max()}, it has {made['vocab']}")
        logits[export] = base.logits(ids, adapter.begin(ids))
        if args.reference:
            sys.path.insert(0, args.reference)
            import reference
            off = (with_reference(reference, base, adapter, ids) - logits[export]).abs().max().item()
            need(off < 1e-5, export, f"reference.py's logits differ by up to {off}")  # the table's weights are rounded to F32
    save_file(logits, args.out)


if __name__ == "__main__":
    main()
