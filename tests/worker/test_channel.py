"""The ring of bytes between two processes."""

from __future__ import annotations

import asyncio
import os
import random
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sophserve.worker.channel import Reader, Ring, Writer

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
        "import sys; from sophserve.worker.channel import Ring, Writer\n"
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
