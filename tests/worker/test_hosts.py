"""Hosts that find each other, or are told why not. No worker is started."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sophserve.config import EngineConfig
from sophserve.errors import ConfigError, EngineDeadError
from sophserve.launch import Launch
from sophserve.link import hosts as server_side
from sophserve.link.hosts import Hosts
from sophserve.link.leader import Leader
from sophserve.link.messages import LoadModel, Places, Progress


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(rank: int = 0, key: bytes = b"key", port: int = 0, size: int = 2) -> Launch:
    return Launch(rank, size, 0, 1, "127.0.0.1", port, key)


def config(directory: Path, **options: Any) -> EngineConfig:
    return EngineConfig(model=str(directory), **{"tensor_parallel_size": 2, "load_timeout": 5.0, **options})


async def meet(
    directory: Path, *leaders: Leader, size: int = 2, port: int = 0, reports: list[str] | None = None, **options: Any
) -> Places:
    """What the server has of its hosts, once these leaders are there. Leaders end then, or are cancelled."""
    given = config(directory, tensor_parallel_size=size, **options)
    hosts = Hosts(launch(port=port, size=size), 1, given, directory)
    running = [asyncio.create_task(leader.run()) for leader in leaders]
    try:
        await hosts.gather(given.load_timeout, lambda progress: (reports or []).append(progress.stage))
        return hosts.places()
    finally:
        await hosts.close("over")
        if running:
            await asyncio.wait(running, timeout=10)
        for task in running:
            task.cancel()
        meet.ends = await asyncio.gather(*running, return_exceptions=True)  # type: ignore[attr-defined]


@pytest.fixture
def directory(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("qwen2")


def test_hosts_are_numbered_by_rank_whoever_comes_first(directory: Path) -> None:
    port = free_port()

    async def run() -> Places:
        leaders = [
            Leader(launch(rank, port=port, size=4), ranks, config(directory, tensor_parallel_size=4), directory, 1.0)
            for rank, ranks in ((3, 1), (1, 2))
        ]
        return await meet(directory, *leaders, size=4, port=port)

    places = asyncio.run(run())
    assert places.counts == [1, 2, 1]
    assert [places.host_of(rank) for rank in range(4)] == [0, 1, 1, 2]
    assert [list(places.ranks(host)) for host in range(3)] == [[0], [1, 2], [3]]
    assert [str(end) for end in meet.ends] == ["rank 0 has ended: over"] * 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_model_len": 128}, "--max-model-len is 128 there and None at rank 0; start all with the same options"),
        ({"seed": 3}, "--seed is 3 there"),
    ],
)
def test_other_options_are_refused(options: dict[str, Any], message: str, directory: Path) -> None:
    port = free_port()
    leader = Leader(launch(1, port=port), 1, config(directory, **options), directory, 1.0)
    with pytest.raises(ConfigError, match=message):
        asyncio.run(meet(directory, leader, port=port))
    (end,) = meet.ends  # type: ignore[attr-defined]
    assert isinstance(end, ConfigError)
    assert message in str(end)


def test_another_checkpoint_is_refused(directory: Path, make_checkpoint: Callable[..., Path]) -> None:
    """Of the same shape: only the last bytes of the weights tell them apart."""
    import shutil

    other = directory.with_name("other")
    shutil.copytree(directory, other, dirs_exist_ok=True)
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    port = free_port()
    with pytest.raises(ConfigError, match="its copy of the checkpoint differs from that of rank 0"):
        asyncio.run(meet(directory, Leader(launch(1, port=port), 1, config(other), other, 1.0), port=port))


def test_another_version_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(server_side, "VERSION", "0.0.1")
    with pytest.raises(ConfigError, match=r"runs sophserve .*, rank 0 runs 0\.0\.1; install one version on all hosts"):
        asyncio.run(meet(directory, Leader(launch(1, port=port), 1, config(directory), directory, 1.0), port=port))


def test_who_does_not_know_the_secret_stays_outside(directory: Path) -> None:
    """And does not stop the others."""
    port = free_port()
    stranger = Leader(launch(1, b"another", port=port), 1, config(directory), directory, 1.0)
    with pytest.raises(EngineDeadError, match="only 1 of 2 ranks were there after 1 s"):
        asyncio.run(meet(directory, stranger, port=port, load_timeout=1.0))
    (end,) = meet.ends  # type: ignore[attr-defined]
    assert "another launch, or has another SOPHSERVE_GROUP_SECRET" in str(end)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, (5).to_bytes(8, "little") + b"hello"])
def test_strangers_are_hung_up_on(sent: bytes, directory: Path) -> None:
    port = free_port()

    async def run() -> Places:
        leader = Leader(launch(1, port=port), 1, config(directory), directory, 1.0)

        async def disturb() -> None:
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except OSError:
                    await asyncio.sleep(0.01)
            writer.write(sent)
            writer.close()

        disturbing = asyncio.create_task(disturb())
        places = await meet(directory, leader, port=port)
        await disturbing
        return places

    assert asyncio.run(run()).counts == [1, 1]


def test_rank_0_is_not_waited_for_for_ever(directory: Path) -> None:
    leader = Leader(launch(1, port=free_port()), 1, config(directory, load_timeout=0.5), directory, 1.0)
    with pytest.raises(EngineDeadError, match=r"was not to be reached in 0\.5 s \(--load-timeout\)"):
        asyncio.run(leader.run())


def test_a_port_in_use_is_named(directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}, on which .* in use; choose another MASTER_PORT"):
            Hosts(launch(port=port), 1, config(directory), directory)


def test_ranks_know_their_place() -> None:
    places = Places([2, 1], [("", 1), ("b", 2)], b"")
    load = LoadModel("x", EngineConfig(model="x"), 2, 3, 20, places=places)
    assert (load.local_rank, list(load.ranks_here)) == (0, [2])
    load = msgspec.structs.replace(load, rank=1)
    assert (load.local_rank, list(load.ranks_here)) == (1, [0, 1])
    assert list(msgspec.structs.replace(load, places=None).ranks_here) == [0, 1, 2]


def test_what_is_shown_while_hosts_are_missing(directory: Path) -> None:
    reports = [Progress("before").stage]
    with pytest.raises(EngineDeadError):
        asyncio.run(meet(directory, port=free_port(), load_timeout=0.2, reports=reports))
    assert reports[-1] == "waiting for other hosts: 1 of 2 ranks are there"
