#!/usr/bin/env bash
# torch 2.13.0: the first operator under a TorchDispatchMode imports torch's compiler.
#
# One would expect such a mode, which only watches operators, to cost a function call each. But a class that derives from
# it has its __torch_dispatch__ wrapped so that torch.compile leaves it alone, and the wrapper imports torch._dynamo with
# sympy and the distributed tensors when it is first called: hundreds of modules, a second or more, some 70 MB, in programs
# that compile nothing. A class that overrides _should_skip_dynamo to return False is not wrapped.
#
# Output seen:
#     TorchDispatchMode: compiler imported: True, more than 500 new modules: True
#     with _should_skip_dynamo False: compiler imported: False, more than 500 new modules: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
cat > "$folder/watch.py" <<'PYTHON'
import sys
import warnings

warnings.filterwarnings("ignore")
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Bare(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls):
        return False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


wrapped = sys.argv[1] == "wrapped"
before = len(sys.modules)
assert "torch._dynamo" not in sys.modules
with Watch() if wrapped else Bare():
    torch.empty(1)
compiler, many = "torch._dynamo" in sys.modules, len(sys.modules) - before > 500
name = "TorchDispatchMode" if wrapped else "with _should_skip_dynamo False"
print(f"{name}: compiler imported: {compiler}, more than 500 new modules: {many}")
assert compiler == many == wrapped
PYTHON
"$folder/venv/bin/python" "$folder/watch.py" wrapped
"$folder/venv/bin/python" "$folder/watch.py" bare
