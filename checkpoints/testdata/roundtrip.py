"""Reads a safetensors file with the official library, checks its bytes and writes it again with that library.

numpy has no bfloat16: tensors of that type are checked and not written.
"""
import sys

import numpy
from safetensors import deserialize
from safetensors.numpy import save_file

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}
kept = {}
for name, t in deserialize(open(sys.argv[1], "rb").read()):
    data = bytes(t["data"])
    if name.startswith("__padding__."):
        assert t["dtype"] == "U8" and not any(data), name
        continue
    want = (name.encode() * (len(data) // len(name.encode()) + 1))[: len(data)]
    assert data == want, f"{name}: {data!r}, want {want!r}"
    if t["dtype"] != "BF16":
        kept[name] = numpy.frombuffer(data, TYPES[t["dtype"]]).reshape(t["shape"])
save_file(kept, sys.argv[2], {"format": "pt"})
print(len(kept), "tensors")
