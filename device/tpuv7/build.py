"""Compiles the operators in `kernels/` for the emulator or for a chip, and keeps the result."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from device.tpuv7.errors import Tpuv7Error
from device.tpuv7.location import (
    DEFAULT_HOME,
    EMULATOR,
    FIRMWARE,
    cache_directory,
    emulator_libraries,
    firmware,
    headers,
)

Target = Literal["emulator", "card"]

SOURCES = Path(__file__).parent / "kernels"
COMMON = ("-shared", "-fPIC", "-std=gnu11", "-D__sg2260__")
FLAGS: dict[Target, tuple[str, ...]] = {
    "emulator": (*COMMON, "-O2", "-DUSING_CMODEL"),
    "card": (*COMMON, "-O3"),
}
COMPILERS: dict[Target, tuple[str, ...]] = {
    "emulator": ("CC", "cc", "gcc"),
    "card": ("TPUV7_CC", "riscv64-linux-gnu-gcc"),
}
"""An environment variable that names the compiler, and what is looked for where it is not set."""
_INSTALL = {"emulator": "gcc", "card": "gcc-riscv64-linux-gnu"}


def build_kernels(target: Target = "emulator", sources: Path = SOURCES, only_compile: bool = False) -> Path:
    """The shared object with all kernels in the folder `sources`. It is compiled where no earlier one has these
    sources, headers and compiler; without a compiler, one that another compiler made of them will do. only_compile: a
    chip's firmware may be missing, without which kernels cannot run on it. Raises Tpuv7Error."""
    include = headers()
    linked = _link_options(target, only_compile)
    # Where things lie does not count: an image copies them.
    library = [path] if target == "card" and (path := firmware()) else []
    content = _digest(FLAGS[target], [*_files(sources), *_files(include), *library])
    folder = cache_directory() / "kernels"
    compiler = _compiler(target)
    if compiler is None:
        return _built_before(folder, target, content)
    version = _run([*compiler, "--version"]).stdout
    built = folder / f"{target}-{content}-{_digest([version])[:8]}.so"
    if not built.is_file():
        files = sorted(map(str, sources.glob("*.c")))
        _compile([*compiler, *FLAGS[target], f"-I{include}", f"-I{sources}", *files, *linked], target, built)
    return built


def _compile(command: list[str], target: Target, built: Path) -> None:
    built.parent.mkdir(parents=True, exist_ok=True)
    # Two workers may build at once, and either may be interrupted.
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        made = Path(folder) / built.name
        ended = _run([*command, "-o", str(made)])
        if ended.returncode:
            raise Tpuv7Error(
                f"{command[0]} cannot build the kernels for the {target}; its own words:\n{ended.stderr.strip()}"
            )
        made.replace(built)


def _link_options(target: Target, only_compile: bool) -> list[str]:
    # What is left open would end the process that loads it.
    complete = ["-Wl,--no-undefined", "-lm"]
    if target == "emulator":
        # The libraries that the emulator needs are found when it runs.
        return [str(emulator_libraries() / EMULATOR), "-Wl,--allow-shlib-undefined", *complete]
    library = firmware()
    if library:
        return [f"-Wl,--whole-archive,{library},--no-whole-archive", "-Wl,-s", "-ldl", *complete]
    if not only_compile:
        raise Tpuv7Error(
            f"{FIRMWARE}, which kernels for a chip are linked to, is neither in TPUV7_HOME/lib nor in "
            f"{DEFAULT_HOME}/lib; install the development package of the chip's runtime"
        )
    return []


def _compiler(target: Target) -> list[str] | None:
    variable, *usual = COMPILERS[target]
    named = os.environ.get(variable, "").split()
    if named:
        if shutil.which(named[0]) is None:
            raise Tpuv7Error(f"the environment variable {variable} is {' '.join(named)!r}, which cannot be found")
        return named
    return next(([name] for name in usual if shutil.which(name)), None)


def _built_before(folder: Path, target: Target, content: str) -> Path:
    usual = " or ".join(COMPILERS[target][1:])
    advice = f"install one, such as Debian's package {_INSTALL[target]}, or name it in {COMPILERS[target][0]}"
    found = sorted(folder.glob(f"{target}-*.so"), key=lambda path: path.stat().st_mtime)
    for path in reversed(found):
        if path.name.startswith(f"{target}-{content}-"):
            return path
    if found:
        raise Tpuv7Error(
            f"the kernels in {folder} were built from other sources or headers, and there is no compiler ({usual}) to "
            f"build them anew; {advice}"
        )
    raise Tpuv7Error(f"there is no compiler ({usual}) to build the kernels for the {target} with; {advice}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".c", ".h"))


def _digest(texts: Iterable[str], files: Iterable[Path] = ()) -> str:
    digest = hashlib.sha256("\0".join(texts).encode())
    for path in files:
        digest.update(f"\0{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]
