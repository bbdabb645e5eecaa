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

from sophserve.config import EngineConfig
from sophserve.errors import SophserveError
from sophserve.measure.footprint import Footprint, FootprintRequest
from sophserve.measure.footprint_process import footprint
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
whole context (devices come in powers of two, as far as the heads divide). Written by `benchmarks/models_page.py` from
`benchmarks/models.toml`.

| model | weights | takes | a token | context | x 64 GiB | x 128 GiB | state |
|---|---|---|---|---|---|---|---|
"""


def measured(directory: Path, dtype: str) -> Footprint:
    """On cmodel, whatever else is installed."""
    config = EngineConfig(model="x", device="cmodel", dtype=dtype)  # type: ignore[arg-type]
    return footprint(
        FootprintRequest(directory=str(directory), config=config, memory=min(MEMORIES) * 2**30, search=True)
    )


def row(model: dict[str, Any], configs: dict[str, dict[str, Any]]) -> str:
    """One line of the table."""
    config = configs[model["config"]] | model.get("change", {})
    name = config["architectures"][0]
    cells = [model["name"], model["weights"]]
    if name not in architectures():
        return " | ".join([*cells, "", "", "", "", "", f"architecture missing: `{name}`"])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        try:
            found = measured(Path(folder), model.get("dtype", "auto"))
        except SophserveError as error:
            return " | ".join([*cells, "", "", "", "", "", f"not served: {error}"])
    cells += [size(found.weight_bytes), size(found.kv_token_bytes), str(found.context_length)]
    cells += [str(found.devices_needed(memory * 2**30) or "-") for memory in MEMORIES]
    return " | ".join([*cells, "served"])


def page() -> str:
    """The whole page."""
    with MODELS.open("rb") as file:
        known = tomllib.load(file)
    return HEAD + "".join(f"| {row(model, known['configs'])} |\n" for model in known["models"])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
