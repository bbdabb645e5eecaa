"""Convert a checkpoint to GGUF, or list a GGUF's tensors; runs in llama.cpp's own environment.

`python -m benchmarks.peers.gguf_files convert SOURCE MODEL KIND TARGET`, SOURCE being llama.cpp's folder and KIND what
its convert_hf_to_gguf.py calls `--outtype`. `... tensors FILE` prints a JSON object: sizes and bytes by name.
"""

from __future__ import annotations

import json
import runpy
import sys
from typing import Any


def convert(source: str, model: str, kind: str, target: str) -> None:
    """As convert_hf_to_gguf.py does, but a tokenizer that it does not know, and refuses, is called `default`."""
    sys.path.insert(0, source)
    from conversion.base import TextModel  # type: ignore[import-not-found, unused-ignore]

    known = TextModel.get_vocab_base_pre

    def tokenizer_name(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            return "default"

    TextModel.get_vocab_base_pre = tokenizer_name
    script = f"{source}/convert_hf_to_gguf.py"
    sys.argv = [script, model, "--outtype", kind, "--outfile", target]
    runpy.run_path(script, run_name="__main__")


def tensors(file: str) -> None:
    """Print them."""
    from gguf import GGUFReader  # type: ignore[import-not-found, unused-ignore]

    found = GGUFReader(file).tensors
    print(json.dumps({each.name: (each.shape.tolist(), int(each.n_bytes)) for each in found}))


if __name__ == "__main__":
    {"convert": convert, "tensors": tensors}[sys.argv[1]](*sys.argv[2:])
