"""The ring of bytes between two processes."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import itertools
import os
import random
import resource
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sophserve.link.channel import Reader, Ring, Writer

SIZES = [0, 1, 7, 8, 100, 4087, 4088, 4089, 4096, 10_000, 50_000]


def messages(count: int, seed: int) -> list[bytes]:
    generator = random.Random(seed)
    return [generator.randbytes(generator.choice(SIZES)) for _ in range(count)]


def receive(reader: Reader, count: int) -> list[bytes]:
    received: list[bytes] = []
    while len(received) < count:
        assert select.select([reader.descriptor], [], [], 10)[0]
        received += reader.receive()
    return received


@pytest.mark.parametrize("capacity", [64, 4096, 1 << 20])
def test_blocking_writer(capacity: int) -> None:
    ring = Ring.create(capacity)
    sent = messages(300, capacity)
    writer, reader = Writer(ring), Reader(Ring.attach(tuple(os.dup(fd) for fd in ring.descriptors)))  # type: ignore[arg-type]
    thread = threading.Thread(target=lambda: [writer.send(message) for message in sent])
    thread.start()
    assert receive(reader, len(sent)) == sent
    thread.join()


async def test_writer_in_the_event_loop_never_blocks() -> None:
    ring = Ring.create(4096)
    writer, reader = Writer(ring), Reader(ring)
    sent = messages(300, 1)
    loop = asyncio.get_running_loop()
    for message in sent:
        writer.send_soon(message, loop)  # far more than fits
    received: list[bytes] = []
    while len(received) < len(sent):
        received += reader.receive()
        await asyncio.sleep(0)
    assert received == sent
    assert not loop.remove_reader(ring.freed), "the loop still watches for room"


def test_other_process() -> None:
    ring = Ring.create(4096)
    code = (
        "import sys; from sophserve.link.channel import Ring, Writer\n"
        "writer = Writer(Ring.attach(tuple(map(int, sys.argv[1:]))))\n"
        "for n in range(200): writer.send(n.to_bytes(2, 'big') * n * 10)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, ring.descriptors)], pass_fds=ring.descriptors)
    assert receive(Reader(ring), 200) == [n.to_bytes(2, "big") * n * 10 for n in range(200)]
    assert process.wait() == 0


def test_close_releases_everything() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    Ring.create(4096).close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_descriptors_above_1023() -> None:
    """select cannot wait for them."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0]),) * 2)
    ring = Ring.create(4096)
    high = tuple(fcntl.fcntl(descriptor, fcntl.F_DUPFD, 2000 + descriptor) for descriptor in ring.descriptors)
    writer, reader = Writer(Ring.attach(high)), Reader(ring)  # type: ignore[arg-type]
    message = bytes(3 * 4096)
    thread = threading.Thread(target=writer.send, args=(message,), daemon=True)
    thread.start()
    received: list[bytes] = []
    poll = select.poll()
    poll.register(reader.descriptor, select.POLLIN)
    while not received:
        assert poll.poll(10_000)
        received += reader.receive()
    thread.join(10)
    assert received == [message] and not thread.is_alive()


@pytest.mark.parametrize("number", range(3))
def test_a_ring_that_cannot_be_made_leaves_nothing(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    made = itertools.count()
    real = {"memfd_create": os.memfd_create, "eventfd": os.eventfd}

    def failing(name: str) -> Callable[..., int]:
        def make(*arguments: Any) -> int:
            if next(made) == number:
                raise OSError(errno.EMFILE, "Too many open files")
            return real[name](*arguments)

        return make

    for name in real:
        monkeypatch.setattr(os, name, failing(name))
    with pytest.raises(OSError, match="Too many"):
        Ring.create()
    monkeypatch.undo()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
