"""Kernels are built once for what they are made of, and what is missing is said."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from device.tpuv7 import build
from device.tpuv7.build import build_kernels
from device.tpuv7.errors import Tpuv7Error
from device.tpuv7.location import package_directory

KERNEL = '#include "tpu_kernel.h"\nvoid %s(const void *raw) { (void)raw; tpu_poll(); }\nTPUKERNEL_FUNC_REGISTER(%s)\n'


@pytest.fixture
def cache(emulator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own cache with emulator and headers, and without kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("TPUV7_HOME", "CC", "TPUV7_CC"):
        monkeypatch.delenv(name, raising=False)
    package_directory().mkdir(parents=True)
    (package_directory() / "lib").symlink_to(emulator / "lib")
    shutil.copytree(emulator / "include", package_directory() / "include")
    return tmp_path / "cache" / "sophserve" / "tpuv7"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "nothing.c").write_text(KERNEL % ("nothing", "nothing"))
    return folder


def test_kernels_are_built_anew_when_anything_changes(
    cache: Path, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_kernels(sources=sources)
    assert first.parent == cache / "kernels" and build_kernels(sources=sources) == first
    made = first.stat().st_mtime_ns
    (sources / "more.h").write_text("/* more */\n")
    with_header = build_kernels(sources=sources)
    header = package_directory() / "include" / "tpu_defs.h"
    header.write_text(header.read_text() + "\n")
    with_other_headers = build_kernels(sources=sources)
    other = tmp_path / "other-compiler"
    other.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo 99; exit; }\nexec cc "$@"\n')
    other.chmod(0o755)
    monkeypatch.setenv("CC", str(other))
    built = {first, with_header, with_other_headers, build_kernels(sources=sources)}
    assert len(built) == 4 and all(path.is_file() for path in built)
    assert first.stat().st_mtime_ns == made and not [path for path in first.parent.iterdir() if path.is_dir()]


def test_two_processes_may_build_at_once(cache: Path, sources: Path) -> None:
    lines = [
        "import sys, pathlib, device.tpuv7.build as build",
        "build.build_kernels(sources=pathlib.Path(sys.argv[1]))",
    ]
    running = [subprocess.Popen([sys.executable, "-c", "\n".join(lines), str(sources)]) for _ in range(3)]
    assert [each.wait() for each in running] == [0, 0, 0]
    assert [path.suffix for path in (cache / "kernels").iterdir()] == [".so"]


def test_without_a_compiler_what_is_built_will_do(cache: Path, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cache))
    advice = "no compiler \\(cc or gcc\\).*install one, such as Debian's package gcc, or name it in CC"
    with pytest.raises(Tpuv7Error, match=advice):
        build_kernels(sources=sources)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent))
    built = build_kernels(sources=sources)
    monkeypatch.setenv("PATH", str(cache))
    assert build_kernels(sources=sources) == built
    moved = cache.parent.parent.rename(cache.parents[2] / "moved")
    monkeypatch.setenv("XDG_CACHE_HOME", str(moved))
    assert build_kernels(sources=sources) == moved / built.relative_to(cache.parent.parent)
    (sources / "nothing.c").write_text(KERNEL % ("other", "other"))
    with pytest.raises(Tpuv7Error, match="built from other sources or headers, and there is " + advice):
        build_kernels(sources=sources)


def test_what_the_compiler_says_is_said(cache: Path, sources: Path) -> None:
    (sources / "nothing.c").write_text("void nothing(void) { return 1 +; }\n")
    with pytest.raises(
        Tpuv7Error, match=r"(?s)^cc cannot build the kernels for the emulator; its own words:\n.*nothing.c:1"
    ):
        build_kernels(sources=sources)
    assert not any((cache / "kernels").iterdir())


def test_what_nobody_defines_is_found_at_once(cache: Path, sources: Path) -> None:
    """The emulator ends the process that loads a kernel with an open symbol."""
    (sources / "calls.c").write_text("void missing(void);\nvoid calls(void) { missing(); }\n")
    with pytest.raises(Tpuv7Error, match="undefined reference to `missing'"):
        build_kernels(sources=sources)


def test_a_compiler_that_is_not_there_is_named(cache: Path, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(Tpuv7Error, match="CC is 'no-such-compiler -m64', which cannot be found"):
        build_kernels(sources=sources)


def test_missing_headers_are_said(cache: Path, sources: Path) -> None:
    shutil.rmtree(package_directory() / "include")
    with pytest.raises(Tpuv7Error, match=r"headers are not in .*; fetch them with `sophserve tpuv7 setup`"):
        build_kernels(sources=sources)


def test_kernels_for_a_card_need_its_firmware(cache: Path, sources: Path) -> None:
    with pytest.raises(Tpuv7Error, match=r"libfirmware_core.a, .* is neither in"):
        build_kernels("card", sources)


@pytest.mark.skipif(not shutil.which("riscv64-linux-gnu-gcc"), reason="needs riscv64-linux-gnu-gcc")
def test_all_kernels_compile_for_a_card(cache: Path) -> None:
    built = build_kernels("card", only_compile=True).read_bytes()
    assert int.from_bytes(built[18:20], "little") == 243
    names = [path.name for path in build.SOURCES.glob("*.c")]
    assert b"tpu_kernel_register_self_test" in built and "self_test.c" in names


def test_all_kernels_build_for_the_emulator(cache: Path) -> None:
    assert b"tpu_kernel_register_self_test" in build_kernels().read_bytes()
