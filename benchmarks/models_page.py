"""Writes docs/models.md: what the models take that sophserve is made for, by benchmarks/models.toml.

Run `python benchmarks/models_page.py` after a change of an architecture, a format or a layout.
"""

from __future__ import annotations

import json
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec

from sophserve.config import EngineConfig
from sophserve.errors import SophserveError
from sophserve.measure.footprint import Footprint, FootprintRequest
from sophserve.measure.footprint_process import Loader, footprint
from sophserve.plugins import architectures
from sophserve.table import size

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "benchmarks" / "models.toml"
PAGE = ROOT / "docs" / "models.md"
MEMORIES = (64, 128)

HEAD = """\
# What models take

The models that sophserve is made for, as `sophserve plan` sees them: weights as the cmodel packs them, keys and values
of one token in all layers, and how many devices of 64 and of 128 GiB hold the weights and one sequence of the model's
whole context (devices come in powers of two, as far as the model divides). Active are the parameters that a token is
multiplied with: not the embedding, and of experts those that it goes through. The layer of DeepSeek-V3 that predicts
further tokens comes on top of it, unless `--speculation lookup` or `off` is given. Written by
`benchmarks/models_page.py` from `benchmarks/models.toml`.

| model | weights | parameters | active | takes | a token | context | x 64 GiB | x 128 GiB | state |
|---|---|---|---|---|---|---|---|---|---|
"""
PARTS = """
## On several devices

Of models with experts every device holds a slice of every expert: so many of its inner features. Latents (DeepSeek)
are kept whole on each. A step reads the experts that its rows are expected to go through, if each is as likely as any
other; keys and values come on top of it.

| model | weights | devices | each takes | bytes | of each expert | a token | a step of 1 reads | of 16 |
|---|---|---|---|---|---|---|---|---|
"""


def measured(loader: Loader, request: FootprintRequest, devices: int) -> Footprint:
    """With so many devices."""
    config = msgspec.structs.replace(request.config, tensor_parallel_size=devices)
    return footprint(msgspec.structs.replace(request, config=config, search=[]), loader)


def rows(model: dict[str, Any], configs: dict[str, dict[str, Any]]) -> tuple[str, list[str]]:
    """A model's line of the first table, and its lines of the second."""
    config = configs[model["config"]] | model.get("change", {})
    config = {key: None if value == "null" else value for key, value in config.items()}
    name = config["architectures"][0]
    cells = [model["name"], model["weights"]]
    if name not in architectures():
        return _line(*cells, *[""] * 7, f"architecture missing: `{name}`"), []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        # On cmodel, whatever else is installed.
        options = EngineConfig(model="x", device="cmodel", dtype=model.get("dtype", "auto"), speculation="lookup")
        memories = [memory * 2**30 for memory in MEMORIES]
        request = FootprintRequest(directory=folder, config=options, memory=memories[0], search=memories)
        try:
            loader = Loader(request)
            found = footprint(request, loader)
        except SophserveError as error:
            return _line(*cells, *[""] * 7, f"not served: {error}"), []
        parts = [measured(loader, request, devices) for devices in model.get("devices", [])]
    fewest = [str(found.fewest_devices.get(memory, "-")) for memory in memories]
    counts = [f"{found.parameters / 1e9:.2f}B", f"{found.active_parameters / 1e9:.2f}B" if found.experts else ""]
    takes = [size(found.weight_bytes), size(found.kv_token_bytes), str(found.context_length)]
    return _line(*cells, *counts, *takes, *fewest, "served"), [
        _line(*cells, str(devices), *_part(part)) for devices, part in zip(model.get("devices", []), parts, strict=True)
    ]


def _part(found: Footprint) -> list[str]:
    held = ", ".join(f"{each.held} of {each.intermediate_size}" for each in found.experts)
    read = [size(found.read_bytes(rows)) for rows in (1, 16)]
    return [size(found.weight_bytes), str(found.weight_bytes), held, size(found.kv_token_bytes), *read]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def page() -> str:
    """The whole page."""
    with MODELS.open("rb") as file:
        known = tomllib.load(file)
    found = [rows(model, known["configs"]) for model in known["models"]]
    return HEAD + "".join(line for line, _ in found) + PARTS + "".join(line for _, lines in found for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
