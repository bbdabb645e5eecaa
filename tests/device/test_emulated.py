"""The kernels' tests again, with the instruction sets that this machine lacks, on an emulated CPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from device.cmodel import kernels
from tests.device.emulated_cpu import PACKAGE

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
PRODUCTS = ("int8_kernels", "quantized_kernels", "expert_kernels", "native_ops")
"""Where instruction sets differ. Attention takes an hour there."""
# What links functions when they are first called saves registers as the machine's own CPU does; and while malloc asks
# for pages on the emulated CPU, what brings these must not come to malloc.
FORESIGHT = {"LD_BIND_NOW": "1", "MALLOC_TOP_PAD_": str(1 << 29), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
CROSS_COMPILER, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"


def run_tests(isa: str, **environment: str) -> None:
    """The kernels' tests of an instruction set, in a process with more in its environment."""
    tests = [FOLDER / f"test_{name}.py" for name in PRODUCTS]
    command = [sys.executable, "-m", "pytest", "-n0", "-x", "-k", isa, *map(str, tests)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | FORESIGHT | environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert " passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["amx", "avx512bf16", "avx512vnni", "avxvnni"])
def test_kernels_on_an_emulated_cpu(isa: str) -> None:
    if importlib.util.find_spec("bochscpu") is None:
        pytest.skip(f"needs an emulated CPU: pip install {PACKAGE}")
    if not hasattr(kernels.native_library(), f"cmodel_linear_{isa}"):
        pytest.skip(f"this build has no {isa} kernels")
    run_tests(isa, EMULATED_ISAS=isa)


@pytest.fixture(scope="session")
def arm_kernels(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A command that runs kernels that are compiled for 64-bit Arm."""
    if not all(map(shutil.which, ("cmake", CROSS_COMPILER, QEMU))):
        pytest.skip(f"needs cmake, {CROSS_COMPILER} and {QEMU}: Debian's g++-aarch64-linux-gnu and qemu-user")
    build = tmp_path_factory.mktemp("aarch64")
    system = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={CROSS_COMPILER}"]
    # As for a wheel: the library stays where it is built.
    subprocess.run(["cmake", "-S", ROOT, "-B", build, "-DSKBUILD=ON", *system], check=True)
    subprocess.run(["cmake", "--build", build, "-j", str(os.cpu_count())], check=True)
    program = build / "remote_kernels"
    subprocess.run([CROSS_COMPILER, "-O2", FOLDER / "remote_kernels.cpp", "-o", program], check=True)
    return f"{QEMU} -L /usr/aarch64-linux-gnu {program} {build / 'libcmodel.so'}"


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["dotprod", "portable"])
def test_kernels_on_arm(isa: str, arm_kernels: str) -> None:
    run_tests("dotprod", EMULATED_ISAS="dotprod", REMOTE_KERNELS=arm_kernels, REMOTE_ISA=isa)
