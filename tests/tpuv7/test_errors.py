"""What is missing or wrong on a machine is said in one sentence, with what to do."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from device.tpuv7 import errors, location, scratch
from device.tpuv7.available import available
from device.tpuv7.errors import Tpuv7Error
from device.tpuv7.location import find_runtime, package_directory
from device.tpuv7.runtime import emulated_memory


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a TPUV7_HOME with such libraries, on a machine without driver and emulator."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TPUV7_HOME", raising=False)
    monkeypatch.setattr(location, "DEFAULT_HOME", tmp_path / "opt")
    monkeypatch.setattr(location, "DRIVER", tmp_path / "proc")

    def make(*libraries: str) -> Path:
        (tmp_path / "home" / "lib").mkdir(parents=True)
        for name in libraries:
            (tmp_path / "home" / "lib" / name).write_bytes(b"not a library")
        monkeypatch.setenv("TPUV7_HOME", str(tmp_path / "home"))
        return tmp_path / "home"

    return make


def test_no_runtime(home: Callable[..., Path]) -> None:
    with pytest.raises(Tpuv7Error, match=r"no tpuv7 runtime in .*opt; .*TPUV7_HOME.*`sophserve tpuv7 setup`"):
        find_runtime()
    assert available() == []


def test_a_home_without_a_runtime(home: Callable[..., Path]) -> None:
    path = home()
    with pytest.raises(Tpuv7Error, match=f"TPUV7_HOME is {path}, but there is no lib/libtpuv7_rt.so in it"):
        find_runtime()
    with pytest.raises(Tpuv7Error, match="TPUV7_HOME"):
        available()


def test_a_runtime_without_emulator_or_driver(home: Callable[..., Path]) -> None:
    home("libtpuv7_rt.so")
    with pytest.raises(
        Tpuv7Error, match=f"is for a chip, but no driver is loaded .* TPUV7_HOME to {package_directory()}"
    ):
        find_runtime()


def test_half_an_emulator(home: Callable[..., Path]) -> None:
    home("libtpuv7_rt.so", "libcdm_daemon_emulator.so", "libtpuv7_emulator.so")
    with pytest.raises(Tpuv7Error, match=r"libtpuv7_scalar_emulator.so is missing beside it"):
        find_runtime()


def test_a_runtime_for_another_machine(home: Callable[..., Path]) -> None:
    path = home("libtpuv7_rt.so", "libcdm_daemon_emulator.so", "libtpuv7_emulator.so", "libtpuv7_scalar_emulator.so")
    done = subprocess.run(
        [sys.executable, "-m", "device.tpuv7.check"], capture_output=True, text=True, env={**os.environ}
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"the runtime {path}/lib/libtpuv7_rt.so cannot be used: " in done.stderr
    assert done.stderr.rstrip().endswith("or set up the emulator with `sophserve tpuv7 setup`")


@pytest.mark.parametrize("size", ["0", "-1", "4GiB", str(1 << 60)])
def test_a_size_that_ends_the_emulator(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator ends its process by std::bad_alloc."""
    monkeypatch.setenv("CMODEL_GLOBAL_MEM_SIZE", size)
    with pytest.raises(Tpuv7Error, match=f"CMODEL_GLOBAL_MEM_SIZE is {size}; it must be the bytes"):
        emulated_memory()


def test_another_user_s_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator waits for ever where it cannot open it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(scratch, "WAKEUP_PIPE", pipe)
    scratch.check_wakeup_pipe()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(Tpuv7Error, match=f"{pipe}, .* belongs to another user"):
        scratch.check_wakeup_pipe()


def test_every_status_has_its_name_and_a_way_on() -> None:
    for status, name in errors.STATUS.items():
        text = str(errors.failed("tpuRtMalloc", status))
        assert text.startswith(f"tpuRtMalloc failed with {name} ({status}); ") and not text.endswith("; ")
    assert "an unknown status (77)" in str(errors.failed("tpuRtInit", 77))


def in_own_process(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)


RUNTIME = """
import logging, os, sys
logging.basicConfig(level=os.environ["LEVEL"], format="%(levelname)s %(message)s")
from pathlib import Path
from device.tpuv7.build import build_kernels
from device.tpuv7.runtime import Runtime
print("before", flush=True)
runtime = Runtime()
kernels = runtime.load(build_kernels(sources=Path(os.environ["SOURCES"])))
os.write(1, b"raw\\n")
print("after", flush=True)
"""


@pytest.fixture
def failing(tmp_path: Path) -> Path:
    (tmp_path / "failing.c").write_text(
        '#include "tpu_kernel.h"\n'
        "void failing(const void *raw) { (void)raw; TPUKERNEL_ASSERT(tpu_npu_num() == 3); }\n"
        "TPUKERNEL_FUNC_REGISTER(failing)\n"
        "void talking(const void *raw) { (void)raw;\n"
        '    for (int i = 0; i < 500; ++i) printf("word %d\\n", i); tpu_poll(); }\n'
        "TPUKERNEL_FUNC_REGISTER(talking)\n"
    )
    return tmp_path


@pytest.mark.usefixtures("emulator")
def test_a_failing_kernel_ends_its_process_with_its_last_words(failing: Path) -> None:
    """So the worker is restarted, and the log says why."""
    script = RUNTIME + 'runtime.launch(kernels, "failing", b"")\nruntime.synchronize()\nprint("not reached")'
    done = in_own_process(script, LEVEL="INFO", SOURCES=str(failing))
    assert (done.returncode, done.stdout) == (233, "before\nraw\nafter\n")
    assert 'Assertion "tpu_npu_num() == 3" failed' in done.stderr
    assert {line.partition(" ")[0] for line in done.stderr.splitlines()} == {"ERROR"}


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_what_is_printed_goes_to_the_log_alone(failing: Path, level: int) -> None:
    script = RUNTIME + 'runtime.launch(kernels, "talking", b"")\nruntime.synchronize()\nprint("end")'
    done = in_own_process(script, LEVEL=logging.getLevelName(level), SOURCES=str(failing))
    assert (done.returncode, done.stdout) == (0, "before\nraw\nafter\nend\n")
    words = done.stderr.count("DEBUG word ")
    assert words == (8 * 500 if level == logging.DEBUG else 0) and (level == logging.DEBUG) == bool(done.stderr)


@pytest.mark.usefixtures("emulator")
def test_a_killed_process_s_folder_goes_with_the_next(failing: Path) -> None:
    """The emulator leaves sockets and copies of the kernels behind, however it ends."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="s-") as short:  # a socket's path has to be
        root = Path(short) / f"sophserve-tpuv7-{os.getuid()}"
        environment = {"LEVEL": "INFO", "SOURCES": str(failing), "TMPDIR": short}
        assert in_own_process(RUNTIME + "os.kill(os.getpid(), 9)", **environment).returncode == -9
        assert len(list(root.iterdir())) == 1
        assert in_own_process(RUNTIME, **environment).returncode == 0
        assert not any(root.iterdir())
