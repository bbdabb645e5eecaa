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
from device.tpuv7.location import cache_directory, emulator_libraries, firmware, headers

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


def build_kernels(target: Target = "emulator") -> Path:
    """The shared object with all kernels. It is compiled where no earlier one has these sources, headers and compiler;
    without a compiler, one that another compiler made of them will do. Raises Tpuv7Error."""
    include = headers()
    libraries = _libraries(target)
    content = _digest([*FLAGS[target]], _files(SOURCES), _files(include), libraries if target == "card" else [])
    folder = cache_directory() / "kernels"
    compiler = _compiler(target)
    if compiler is None:
        return _built_before(folder, target, content)
    version = _run([*compiler, "--version"]).stdout
    built = folder / f"{target}-{content}-{_digest([version])[:8]}.so"
    if not built.is_file():
        _compile([*compiler, *FLAGS[target]], include, libraries, target, built)
    return built


def _compile(command: list[str], include: Path, libraries: list[Path], target: Target, built: Path) -> None:
    built.parent.mkdir(parents=True, exist_ok=True)
    sources = sorted(SOURCES.glob("*.c"))
    if target == "card":
        linked = ["-Wl,-s", *(f"-Wl,--whole-archive,{path},--no-whole-archive" for path in libraries), "-ldl", "-lm"]
    else:
        # The emulator's own libraries are found when it runs.
        linked = [*map(str, libraries), "-Wl,--allow-shlib-undefined", "-lm"]
    # Two workers may build at once, and either may be interrupted.
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        made = Path(folder) / built.name
        ended = _run([*command, f"-I{include}", f"-I{SOURCES}", *map(str, sources), "-o", str(made), *linked])
        if ended.returncode:
            raise Tpuv7Error(
                f"{command[0]} cannot compile the kernels for the {target}; its own words:\n{ended.stderr.strip()}"
            )
        made.replace(built)


def _libraries(target: Target) -> list[Path]:
    """What the kernels are linked to."""
    if target == "emulator":
        return [emulator_libraries() / "libtpuv7_emulator.so"]
    found = firmware()
    return [found] if found else []


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


def _digest(texts: Iterable[str], *files: Iterable[Path]) -> str:
    digest = hashlib.sha256("\0".join(texts).encode())
    for path in (path for some in files for path in some):
        digest.update(f"\0{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]
