"""Loads every adapter of PEFT exports with peft and compares what it adds to each weight with the serving folder,
read as FORMAT.md says. Arguments: serving folder, PEFT folder, serving folder, …"""
import json
import sys
import warnings

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("error", UserWarning)  # peft warns of missing adapter keys


class Export:
    def __init__(self, serving, peft):
        self.peft = peft
        self.config = json.load(open(f"{serving}/adapter_config.json"))
        self.switch = json.load(open(f"{peft}/switch.json"))
        self.tensors = load_file(f"{serving}/adapter_model.safetensors")
        part = {n: "mlp" if n in ("gate_proj", "up_proj", "down_proj") else "self_attn" for n in self.config["targets"]}
        layers = range(self.config["base"]["layers"])
        self.modules = [f"model.layers.{l}.{part[n]}.{n}" for l in layers for n in self.config["targets"]]

    def added(self, folder):
        """name -> what the adapter in folder adds to that weight, (out, in)"""
        b = self.config["base"]
        base = LlamaForCausalLM(LlamaConfig(
            vocab_size=b["vocab"], hidden_size=b["hidden_width"], intermediate_size=b["mlp_width"], head_dim=b["head_dim"],
            num_hidden_layers=b["layers"], num_attention_heads=b["heads"], num_key_value_heads=b["kv_heads"]))
        model = PeftModel.from_pretrained(base, f"{self.peft}/{folder}")
        layers = dict(model.base_model.model.named_modules())
        count = sum("lora_A" in n for n, _ in model.named_parameters())
        assert count == len(self.modules), f"{folder}: {count} adapted layers, want {len(self.modules)}"
        return {m: layers[m].get_delta_weight("default") for m in self.modules}

    def want(self, module, expert=None):
        kind = "shared" if expert is None else "lora"
        A, B = (self.tensors[f"{module}.{kind}_{x}"].float() for x in "AB")
        if expert is not None:
            A, B = A[expert], B[expert]
        return self.config["scale"] * B.T @ A

    def compare(self, folder, expert=None):
        got = self.added(folder)
        for m in self.modules:
            w = self.want(m, expert)
            if self.config["granularity"] == "none" and self.config["shared_rank"]:
                w = w + self.want(m)
            off = (got[m] - w).abs().max().item()
            assert off < 1e-5, f"{folder} {m}: off by {off}"

    def check(self):
        for e, folder in enumerate(self.switch["experts"]):
            self.compare(folder, e)
        if self.switch["shared"]:
            self.compare(self.switch["shared"])
        if self.switch["router"]:
            for n, x in load_file(f"{self.peft}/{self.switch['router']}").items():
                assert n.startswith("__padding__.") or torch.equal(x, self.tensors[n]), n
        print(self.config["granularity"], len(self.switch["experts"]), "experts,", len(self.modules), "layers agree")


for serving, peft in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    Export(serving, peft).check()
