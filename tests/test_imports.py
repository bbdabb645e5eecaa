"""The layers of the project: who may import whom, and that the server does without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sophserve", "model_plugins", "device")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# What each package may import of the project; "sophserve" stands for all of it.
ALLOWED = {
    "device": ("device",),
    "model_plugins": (
        *("model_plugins", "device"),
        *("sophserve.model", "sophserve.media", "sophserve.plugins", "sophserve.errors", "sophserve.config_rules"),
        *("sophserve.checkpoint", "sophserve.link.images"),
    ),
    "sophserve": ("sophserve", "device"),
}
# The rooms of sophserve, each with those that it may import. The files beside them belong to no room.
ROOMS: dict[str, tuple[str, ...]] = {
    "api": ("engine", "link", "media", "text"),
    "bench": ("engine", "link", "measure", "media", "text"),
    "chat": ("api", "engine"),
    "engine": ("grammar", "link", "text"),
    "grammar": ("text",),
    "link": (),
    "media": ("link",),
    "measure": ("model",),
    "model": (),
    "ray": ("api", "route", "text"),
    "route": ("api",),
    "text": (),
    "worker": ("grammar", "link", "measure", "model"),
}
# What runs beside a device, with torch. All else runs in the server, without torch, and so without devices.
WORKER = (
    "sophserve.model",
    "sophserve.worker",
    "sophserve.measure.devices_process",
    "sophserve.measure.doctor_process",
    "sophserve.measure.footprint_process",
    "sophserve.measure.layouts",
    "sophserve.measure.limits_process",
    "sophserve.measure.trial_process",
)
ONLY_IN_WORKERS = ("torch", "safetensors", "numpy", "device")

MOST_LINES = 420
MOST_FUNCTION_LINES = 60


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str | None:
    """The room of sophserve that a module is in."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "sophserve" and rest.partition(".")[0] in ROOMS else None


def wrong_imports(module: str, imported: set[str]) -> list[str]:
    """Those of a module's imports that break a rule."""
    own = [name for name in imported if within(name, PACKAGES)]
    wrong = {name for name in own if not within(name, ALLOWED[module.partition(".")[0]])}
    if (room := room_of(module)) is not None:
        wrong |= {name for name in own if room_of(name) not in (None, room, *ROOMS[room])}
    if within(module, ("sophserve",)) and not within(module, WORKER):
        wrong |= {name for name in imported if within(name, ONLY_IN_WORKERS + WORKER)}
    return sorted(wrong)


def import_graph() -> dict[str, set[str]]:
    """By module, those of the project that it imports."""
    modules = {name_of(path) for path in FILES}
    graph = {}
    for path in FILES:
        imported = {name if name in modules else name.rpartition(".")[0] for name in imports_of(path)}
        graph[name_of(path)] = imported & modules
    return graph


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    assert wrong_imports(name_of(path), imports_of(path)) == []


def test_there_is_no_circle() -> None:
    graph = import_graph()
    TopologicalSorter(graph).prepare()  # raises CycleError with the files

    rooms: dict[str, set[str]] = {}
    for module, imported in graph.items():
        room = module if room_of(module) is None else f"sophserve.{room_of(module)}"
        others = {name if room_of(name) is None else f"sophserve.{room_of(name)}" for name in imported}
        rooms.setdefault(room, set()).update(others - {room})
    TopologicalSorter(rooms).prepare()


def test_http_knows_nothing_of_models() -> None:
    shared = ("config", "errors", "json_size", "keys")
    allowed = ("sophserve.api.http", *(f"sophserve.{name}" for name in shared))
    for module, imported in import_graph().items():
        if within(module, ("sophserve.api.http",)):
            assert [name for name in imported if not within(name, allowed)] == [], module


def test_the_apis_share_one_way_to_generate() -> None:
    for module, imported in import_graph().items():
        for room in ("generation", "openai", "anthropic"):
            if within(module, (f"sophserve.api.{room}",)):
                allowed = tuple(f"sophserve.api.{name}" for name in ("http", "generation", room))
                own = [name for name in imported if within(name, ("sophserve.api",))]
                assert [name for name in own if not within(name, allowed)] == [], module


def test_server_and_workers_share_messages_and_grammars_alone() -> None:
    def reached(*rooms: str) -> set[str]:
        return set(rooms).union(*(reached(*ROOMS[room]) for room in rooms))

    assert reached("api") & reached("worker") == {"link", "grammar", *reached("grammar")}


def test_the_rules_catch_what_they_forbid() -> None:
    for module, imported in (
        ("device.cmodel.ops", "sophserve.errors"),
        ("device.interface", "model_plugins"),
        ("model_plugins.architectures.llama", "sophserve.engine.engine"),
        ("sophserve.plugins", "model_plugins.architectures.llama"),
        ("sophserve.model.layers", "model_plugins.architectures"),
        ("sophserve.cli", "torch"),
        ("sophserve.engine.scheduler", "device.interface"),
        ("sophserve.api.application", "sophserve.worker.process.main"),
        ("sophserve.link.workers", "torch.nn"),
        ("sophserve.link.messages", "sophserve.engine.output"),
        ("sophserve.text.tokenizer", "sophserve.api.http.body"),
        ("sophserve.worker.sampler", "sophserve.engine.output"),
    ):
        assert wrong_imports(module, {imported}) == [imported]
    assert wrong_imports("sophserve.worker.runner", {"torch", "device.interface", "sophserve.model.layers"}) == []
    assert wrong_imports("sophserve.engine.engine", {"sophserve.link.workers.WorkerGroup", "asyncio"}) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MOST_FUNCTION_LINES, f"{node.name} is too long"


def test_the_server_does_not_load_torch() -> None:
    modules = [name_of(path) for path in FILES if name_of(path).startswith("sophserve")]
    server = [name for name in modules if name != "sophserve.__main__" and not within(name, WORKER)]
    assert "sophserve.api.startup" in server and "sophserve.engine.engine" in server and "sophserve.llm" in server
    script = "\n".join([*(f"import {name}" for name in server), "import sys", "print(*sorted(sys.modules))"])
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "sophserve.api.startup" in loaded
    assert not {"torch", "numpy", "safetensors", "device", "model_plugins"} & set(loaded)
    script = "import sys, sophserve.api.startup, sophserve.media.loader\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "PIL" not in done.stdout.split(), "only the process that decodes images needs Pillow"


def test_the_command_line_answers_without_heavy_imports() -> None:
    script = "import sys, sophserve.cli\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"asyncio", "aiohttp", "tokenizers", "jinja2", "tqdm", "torch"} & set(done.stdout.split())
