"""`sophserve tpuv7 setup`."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from device.tpuv7 import build, command, setup
from device.tpuv7.location import package_directory


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no other runtime."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TPUV7_HOME", raising=False)
    return tmp_path / "cache" / "sophserve" / "tpuv7"


@pytest.fixture
def wheel(emulator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with the files of the real one that are needed, and one that is not."""
    path = tmp_path / "tpu_mlir-1.30.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for folder, members in setup.FOLDERS.items():
            for member in members:
                archive.write(emulator / folder / Path(member).name, member)
        archive.writestr("tpu_mlir/lib/libother.so", b"")
    monkeypatch.setattr(setup, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_wheel_is_set_up_and_a_kernel_runs(
    wheel: Path,
    cache: Path,
    self_test_sources: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(build.build_kernels, "__defaults__", ("emulator", self_test_sources, False))
    for _ in range(2):
        assert command.main(["setup", "--wheel", str(wheel)]) == 0
        printed, errors = capfd.readouterr()
        assert f"emulator and headers: {cache}" in printed and f"kernels: {cache}/kernels/emulator-" in printed
        assert "A kernel ran on the emulator MT00 and computed what it should." in printed
        assert errors == "" and len(printed.splitlines()) == 3
    needed = {f"{folder}/{Path(each).name}" for folder, members in setup.FOLDERS.items() for each in members}
    assert files(package_directory()) == needed
    assert {path.name for path in cache.iterdir()} == {package_directory().name, "kernels", "setup.lock"}
    assert len(list((cache / "kernels").iterdir())) == 1


def test_an_interrupted_set_up_leaves_nothing(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(setup.FOLDERS, "share", ["not/in/the/wheel"])
    with pytest.raises(KeyError):
        setup.install(wheel)
    monkeypatch.setattr(setup, "_unpack", lambda *_: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
    (cache / "unfinished-by-a-killed-process").mkdir()
    assert command.main(["setup", "--wheel", str(wheel)]) == 1
    assert files(cache) == {"setup.lock"} and not list(cache.glob("unfinished*"))
    error = capsys.readouterr().err
    assert error.startswith("sophserve: error: cannot set up the emulator in ") and "No space left" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the wheel .*: No such file"),
        (b"PK", "other.whl is not the wheel of tpu_mlir 1.30.2: its sha256 is"),
    ],
)
def test_another_wheel_is_refused(tmp_path: Path, cache: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "other.whl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(setup.Tpuv7Error, match=message):
        setup.install(path)
    assert files(cache) == {"setup.lock"}


def test_what_pip_says_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(cache.parent)), ("PIP_CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(name, value)
    with pytest.raises(setup.Tpuv7Error, match=r"pip cannot fetch tpu_mlir 1.30.2: .*No matching.* --wheel FILE"):
        setup.install()
    assert files(cache) == {"setup.lock"}


def test_without_pip_the_way_out_is_said(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2; exit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(setup.Tpuv7Error, match=r"No module named pip; .* --wheel FILE"):
        setup.install()
