"""The kernels' tests again, on a library built with the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

from device.cmodel.kernels import ISAS, native_library, usable_isas

ROOT = Path(__file__).parents[2]
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"


@pytest.mark.slow
def test_kernels_under_sanitizers(tmp_path: Path) -> None:
    if not shutil.which("cmake") or not shutil.which("g++"):
        pytest.skip("needs cmake and g++")
    shutil.copytree(ROOT / "device", tmp_path / "device", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "tests" / "device", tmp_path / "tests" / "device")
    for name in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    build = [f"-DCMAKE_CXX_FLAGS={SANITIZERS}", "-DCMAKE_CXX_COMPILER=g++"]
    if usual := native_library():  # kernels that cannot run here take as long to compile, and say nothing
        build += [f"-DCMODEL_BUILDS_{isa.upper()}=OFF" for isa in ISAS if isa not in usable_isas(usual)]
    subprocess.run(["cmake", "-S", tmp_path, "-B", tmp_path / "build", *build], check=True)
    subprocess.run(["cmake", "--build", tmp_path / "build", "-j", str(os.cpu_count())], check=True)
    library = tmp_path / "device" / "cmodel" / "libcmodel.so"
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True)
    # Without site: an editable install would find the modules in the source tree.
    python = [sys.executable, "-S"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *site.getsitepackages()]),
        "LD_PRELOAD": runtime.stdout.strip(),
        # Python's own memory lives until the process ends.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    loaded = "from device.cmodel.kernels import native_library; print(native_library()._name)"
    done = subprocess.run([*python, "-c", loaded], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(library)
    tests = sorted(str(path) for path in (tmp_path / "tests" / "device").glob("test_*kernels.py"))
    names = ("native_ops", "random_shapes", "sampling", "capture")
    tests += [str(tmp_path / "tests" / "device" / f"test_{name}.py") for name in names]
    command = [*python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
