"""What a worker does before it is ready, and what not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# In a process of its own, so that memory and modules are its alone.
_LOAD = """
import json, sys
from pathlib import Path
import torch
from sophserve.config import EngineConfig
from sophserve.link.messages import LoadModel
from sophserve.worker.model_runner import ModelRunner

def resident():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

torch.set_num_threads(3)
stages = {}
def note(progress):
    stages.setdefault(progress.stage, resident())

sizes = {"kv_cache_memory": "1GiB", "max_num_seqs": 9000, "max_num_batched_tokens": 9000}
config = EngineConfig(model=sys.argv[1], dtype="bfloat16", **sizes)
runner = ModelRunner(LoadModel(sys.argv[1], config, 0, 1, 20), [-1], lambda: None, note)
compiler, threads = "torch._dynamo" in sys.modules, torch.get_num_threads()
print(json.dumps([stages, resident(), runner.info.kv_cache_bytes, compiler, threads]))
"""


def test_a_start_touches_no_kv_cache_and_imports_no_compiler(make_checkpoint: Callable[..., Path]) -> None:
    command = [sys.executable, "-c", _LOAD, str(make_checkpoint("qwen2"))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    stages, resident, cache, compiler, threads = json.loads(run.stdout)
    assert list(stages) == ["loading weights", "allocating the KV cache", "recording a decode step"]
    assert cache > 2**29
    assert resident - stages["allocating the KV cache"] < cache / 8
    assert not compiler
    assert threads == 1  # of torch, beside those that compute
