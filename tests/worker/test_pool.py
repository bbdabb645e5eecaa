"""Groups of worker processes that cannot all be started."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sophserve.config import EngineConfig
from sophserve.link.workers import WorkerGroup


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("name", ["memfd_create", "eventfd", "pipe", "pidfd_open"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_nothing_is_left_of_a_group_that_cannot_be_started(
    name: str, number: int, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call of that number fails for want of descriptors."""
    directory = make_checkpoint("qwen2")
    config = EngineConfig(model=str(directory), tensor_parallel_size=3)
    before, children = descriptors(), set(psutil.Process().children())
    real, calls = getattr(os, name), []

    def make(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > number:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(*arguments)

    monkeypatch.setattr(os, name, make)
    with pytest.raises(OSError, match="Too many"):
        WorkerGroup(directory, config)
    monkeypatch.undo()
    assert descriptors() == before
    assert set(psutil.Process().children()) <= children


def test_nothing_is_left_where_no_process_can_be_made(
    make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    directory = make_checkpoint("qwen2")
    with pytest.raises(OSError, match="allocate"):
        WorkerGroup(directory, EngineConfig(model=str(directory)))
    monkeypatch.undo()
    assert descriptors() == before
