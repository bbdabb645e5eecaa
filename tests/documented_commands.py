"""Runs the commands of the pages as they stand, but for paths, ports, sizes, and one that would do the same once more;
docs/commands.md has the others."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import pytest
from PIL import Image

from sophserve import plugins
from tests.conftest import Server
from tests.test_documentation import PAGES, ROOT, fences

TABLE = "docs/commands.md"
# The other README has the same commands; test_documentation sees to that.
TRIED = [page for page in PAGES if not page.endswith(".zh-CN.md")]
# Text is no command. Anything else is a file, whose name stands behind the language.
LANGUAGES = ("bash", "python", "text")

# Where pages say that models are. `tiny-checkpoint` is one in the working directory.
MODEL = re.compile(r"(?:/data/|/tmp/|\bQwen/)([\w.-]+)|\b(tiny-checkpoint)\b")
SHORTER = {
    "--duration 60": "--duration 2",
    "--num-requests 200": "--num-requests 20",
    "--output-length 128": "--output-length 16",
    # What the device reaches is measured by tests of the command, and where nothing but the package is.
    "--max-new-tokens 128": "--max-new-tokens 8 --skip-limits",
    "batch=1,2,4,8 input-length=128,1024": "batch=1,2 input-length=32,64",
    # What a second run says is compared by tests of the same bits.
    "python benchmarks/same_answers.py record after": "cp before.jsonl after",
    "--batch 8 --input-length 4096": "--batch 2 --input-length 64",
    "--input-length 4096": "--input-length 256",
    "benchmarks/kernels.py": "benchmarks/kernels.py --seconds 0.01 --dtypes bfloat16",
    '"0.5b gate_up,0.5b down" --rows 1,8,64': '"0.5b qkv" --rows 1',
}
# Of models that see.
IMAGES = "docs/images.md"
# What may be missing where the tests run, and how to see it in a command.
NEEDED = {
    "curl": (r"^curl ", lambda: shutil.which("curl")),
    "matplotlib": (r"--save-png|compare\.py", lambda: importlib.util.find_spec("matplotlib")),
}


def blocks(page: str) -> Iterator[tuple[str, list[str]]]:
    """The language of each fence that is not a file, and its commands. A Python fence is one command."""
    for fence in fences(page):
        if fence.info == "python":
            yield fence.info, [fence.code]
        elif fence.info == "bash":
            yield fence.info, list(shell_commands(fence.code))


def shell_commands(code: str) -> Iterator[str]:
    """Lines, whole ones where a quote or a backslash goes on in the next, and the parts of those with `&&`."""
    line = ""
    for each in code.splitlines():
        line += each
        open_quote = not re.fullmatch(r"""(?:[^'"]|'[^']*'|"[^"]*")*""", line)
        if line.endswith("\\") or open_quote:
            line += "\n"
        elif line := line.strip():
            yield from line.split(" && ")
            line = ""
    assert not line, f"this does not end: {line}"


def exceptions() -> list[tuple[str, str]]:
    """Of the table: the page, and how a command begins that is not run."""
    rows = re.findall(r"^\| \[.*?\]\((.*?)\) \| (.*?) \| .+ \|$", (ROOT / TABLE).read_text(encoding="utf-8"), re.M)
    return [
        (os.path.normpath(f"docs/{page}"), words) for page, cell in rows for words in re.findall(r"`([^`]+)`", cell)
    ]


def is_exception(page: str, command: str) -> bool:
    return any(where == page and f"{command} ".startswith(f"{words} ") for where, words in exceptions())


class Reader:
    """Does what a page says, in a directory of its own: `data` holds the models, `site` what the page installs."""

    def __init__(self, page: str, directory: Path, checkpoint: Callable[..., Path], write_page: Callable[..., None]):
        self.page, self.directory, self.checkpoint, self.write_page = page, directory, checkpoint, write_page
        paths = {"PATH": Path(sys.executable).parent, "PYTHONPATH": directory / "site"}
        self.environment = {
            name: os.pathsep.join(filter(None, [str(path), os.environ.get(name)])) for name, path in paths.items()
        } | {"HOME": str(directory), "HF_HUB_OFFLINE": "1"}
        # That of the page, and one that a fence starts for its further commands.
        self.shared: Server | None = None
        self.own: Server | None = None
        shutil.copytree(ROOT / "benchmarks", directory / "benchmarks")
        Image.new("RGB", (64, 48), "orange").save(directory / "cat.png")
        (directory / "prompts.jsonl").write_text('{"prompt": "Hello", "max_tokens": 4}\n' * 3)

    @property
    def url(self) -> str:
        if self.own is None and self.shared is None:
            self.shared = self.start("--model", str(self._model("VL")) if self.page == IMAGES else "demo")
        return (self.own or self.shared).url

    def start(self, *options: str, **environment: str) -> Server:
        """A server that is ready and has answered."""
        server = Server(*options, environment=self.environment | environment, cwd=self.directory)
        try:
            server.wait_until_ready()
            question = [{"role": "user", "content": "Hello"}]
            server.client().chat.completions.create(model="tiny", messages=question, max_tokens=4)
        except BaseException:
            server.process.kill()
            raise
        return server

    @contextmanager
    def fence(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._stop_own()

    def _stop_own(self) -> None:
        server, self.own = self.own, None
        assert server is None or server.stop() == 0

    def close(self) -> None:
        assert self.shared is None or self.shared.stop() == 0

    def python(self, code: str) -> None:
        script = self.directory / "script.py"
        script.write_text(self._in_place(code))
        self._run(sys.executable, str(script))

    def bash(self, command: str) -> None:
        words = shlex.split(self._in_place(command), comments=True)
        settings = dict(each.split("=", 1) for each in takewhile(lambda word: re.match(r"\w+=", word), words))
        words = words[len(settings) :]
        if words[:2] == ["pip", "install"]:
            self._install(words[-1])
        elif words[0] == "sophserve" and words[1].startswith("--"):
            self._stop_own()
            self.own = self.start(*words[1:], **settings)
        else:
            self._run("bash", "-euo", "pipefail", "-c", self._in_place(command))

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=os.environ | self.environment,
            input="Hello\n",
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"

    def _install(self, what: str) -> None:
        """A folder that the page shows. sophserve itself is installed already, or no test would run."""
        if not what.startswith("./"):
            [extra] = re.fullmatch(r"(?:\.|sophserve)(?:\[(\w+)\])?", what).groups()
            assert extra is None or extra in importlib.metadata.metadata("sophserve").get_all("Provides-Extra"), what
            return
        if not importlib.util.find_spec("pip"):
            pytest.skip("needs pip")
        folder = self.directory / what
        folder.mkdir()
        self.write_page(self.page, folder)
        options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", "site"]
        self._run(sys.executable, "-m", "pip", "install", *options, what)

    def _in_place(self, command: str) -> str:
        """With the models, the port and the sizes of the test."""
        command = MODEL.sub(self._path, command)
        # The default is port 8000.
        command = re.sub(
            r"\bsophserve (chat|load)\b(?!.* --(?:url|model) )", lambda m: f"{m[0]} --url {self.url}", command
        )
        command = re.sub(r"http://(?:localhost|other):8000", lambda _: self.url, command)
        command = re.sub(r"^curl ", "curl -sSf ", command)
        for long, short in SHORTER.items():
            command = command.replace(long, short)
        return command

    def _path(self, match: re.Match[str]) -> str:
        name = match[1] or match[2]
        to_be_written = re.search(r"\bquantize \S+ $", match.string[: match.start()])
        return str(self.directory / "data" / name if to_be_written else self._model(name))

    def _model(self, name: str) -> Path:
        """A copy, since some is kept beside it. Those of documented names are as their names say."""
        path = self.directory / "data" / name
        if not path.exists():
            kind = "qwen2_5_vl" if "VL" in name else "arcee" if "AFM" in name or name == "tiny-checkpoint" else "qwen2"
            source = self.checkpoint(kind, max_position_embeddings=8192)
            if "GPTQ" in name:
                plugins.quantizations()["gptq"].value.convert(source, path, lambda done, total: None)
            else:
                shutil.copytree(source, path)
            generation = path / "generation_config.json"
            # Random weights find no end.
            generation.write_text(json.dumps(json.loads(generation.read_text()) | {"max_new_tokens": 16}))
        return path


def follow(
    page: str, make_checkpoint: Callable[..., Path], write_page: Callable[..., None], directory: Path
) -> list[str]:
    """Run the commands of a page, but those of the table. What the ones need that were left out is returned."""
    reader, missing, problems = Reader(page, directory, make_checkpoint, write_page), [], []
    try:
        for language, commands in blocks(page):
            with reader.fence():
                for command in commands:
                    if is_exception(page, command):
                        continue
                    if lacking := [
                        name for name, (sign, found) in NEEDED.items() if re.search(sign, command) and not found()
                    ]:
                        missing += lacking
                        continue
                    try:
                        getattr(reader, language)(command)
                    except Exception as error:
                        problems.append(f"{command}\n{error}")
    finally:
        reader.close()
    assert not problems, f"{page}:\n" + "\n\n".join(problems)
    return sorted(set(missing))
