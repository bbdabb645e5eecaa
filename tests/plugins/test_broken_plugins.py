"""Plugins that break are named and left out, unless they are what is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables of a process that has a package with entry points of every kind installed."""
    site = tmp_path_factory.mktemp("site")
    modules = {
        "absent_import": "import a_module_that_is_not_there\n",
        "wrong_hook": "from sophserve.plugins import hookimpl\n\n\n@hookimpl\ndef register_moods(register): ...\n",
        "failing_hook": "from sophserve.plugins import hookimpl\n\n\n@hookimpl\ndef register_devices(register):\n"
        "    register('odd', object)\n    raise RuntimeError('no card')\n",
        "by_name": "from sophserve.plugins import hookimpl\n\n\n@hookimpl\ndef register_devices(register):\n"
        "    register(name='named', value=object)\n",
        "greeting": "def greet(argv):\n    print('hello', *argv)\n    return 7\n",
    }
    for name, text in modules.items():
        (site / f"{name}.py").write_text(text)
    info = site / "odd_plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-plugins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[sophserve]\nabsent = absent_import\nwrong = wrong_hook\nfailing = failing_hook\nnames = by_name\n"
        "[sophserve.commands]\ngreet = greeting:greet\nsulk = absent_import:sulk\nbench = greeting:greet\n"
    )
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])}


def sophserve(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sophserve", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_they_are_named_and_left_out(environment: dict[str, str]) -> None:
    listed = sophserve(environment, "plugins")
    assert listed.returncode == 0
    assert "LlamaForCausalLM" in listed.stdout and "cmodel" in listed.stdout and "odd " not in listed.stdout
    assert re.search(r"named +from odd-plugins", listed.stdout)
    for name, error in (
        ("absent", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("wrong", "PluginValidationError: unknown hook 'register_moods'"),
        ("failing", "RuntimeError: no card"),
    ):
        [line] = [line for line in listed.stderr.splitlines() if f"the plugin {name} of odd-plugins" in line]
        assert error in line and "left out" in line


def test_what_is_needed_says_who_may_have_it(
    environment: dict[str, str], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_checkpoint()
    config = json.loads((model / "config.json").read_text()) | {"architectures": ["OddForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused = sophserve(environment, "plan", str(tmp_path))
    assert refused.returncode == 1 and "OddForCausalLM is not a supported architecture" in refused.stderr
    assert "left out, since they failed to load: absent of odd-plugins (ModuleNotFoundError" in refused.stderr


def test_commands(environment: dict[str, str]) -> None:
    greeted = sophserve(environment, "greet", "you")
    assert (greeted.returncode, greeted.stdout) == (7, "hello you\n")
    sulking = sophserve(environment, "sulk")
    assert sulking.returncode == 1 and len(sulking.stderr.splitlines()) == 1
    assert "the command sulk of odd-plugins failed to load: ModuleNotFoundError" in sulking.stderr
    assert "greet" in sophserve(environment, "--help").stdout
    assert re.search(r"greet +from odd-plugins", sophserve(environment, "plugins").stdout)
    assert "hello" not in sophserve(environment, "bench", "--help").stdout  # what comes with sophserve keeps its names
