"""The emulator of the chip, where it can be had."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from device.tpuv7 import build, setup
from device.tpuv7.device import Tpuv7Device
from device.tpuv7.errors import Tpuv7Error
from tests.tpuv7.chip import Chip


@pytest.fixture(scope="session")
def emulator() -> Path:
    """The folder with emulator and headers, which are fetched once into the user's cache."""
    try:
        return setup.install()
    except Tpuv7Error as error:
        pytest.skip(f"the emulator cannot be had: {error}")


@pytest.fixture(scope="session")
def tpuv7(emulator: Path) -> Tpuv7Device:
    """A chip with its operators."""
    return Tpuv7Device()


@pytest.fixture(scope="session")
def self_test_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one kernel, which compiles fast."""
    folder = tmp_path_factory.mktemp("kernels")
    shutil.copy(build.SOURCES / "self_test.c", folder)
    return folder


@pytest.fixture(scope="session")
def loaded_chip(emulator: Path) -> Chip:
    return Chip()


@pytest.fixture
def chip(loaded_chip: Chip) -> Iterator[Chip]:
    """A chip whose memory is free again after each test."""
    yield loaded_chip
    loaded_chip.clear()
