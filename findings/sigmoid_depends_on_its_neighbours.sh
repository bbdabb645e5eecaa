#!/usr/bin/env bash
# torch 2.13.0 on x86-64 with AVX2: the sigmoid of a number depends on how many numbers stand beside it.
#
# An elementwise function of float32 looks as if it could not depend on the batch, and exp and tanh do not. But sigmoid and
# silu take whole vectors by one way and what is left over by another, which differ in the last bit for a few numbers in a
# hundred: a router that scores experts by sigmoid may choose others for the same token once it stands in another batch.
#
# Output seen:
#     of 1000 numbers alone and together differ: exp 0, tanh 0, sigmoid 39, silu 42
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import torch
from torch.nn.functional import silu

x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
differ = {}
for function in (torch.exp, torch.tanh, torch.sigmoid, silu):
    alone = torch.cat([function(number) for number in x.split(1)])
    differ[function.__name__] = int((alone != function(x)).sum())
print("of 1000 numbers alone and together differ:", ", ".join(f"{name} {count}" for name, count in differ.items()))
assert differ["exp"] == differ["tanh"] == 0 and differ["sigmoid"] and differ["silu"]
PYTHON
