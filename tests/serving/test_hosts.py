"""One model over several hosts: the answers of one, whatever happens to a rank, a host or what connects them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.hosts import Hosts, check, of_one_process


@pytest.fixture
def start_hosts(server_class: type[Any]) -> Iterator[Callable[..., Hosts]]:
    """`start_hosts(directory, *options, count=2)`: hosts that are ready, killed after the test."""
    started: list[Hosts] = []

    def start(directory: Path, *options: str, count: int = 2) -> Hosts:
        started.append(Hosts(server_class, directory, *options, count=count))
        started[-1].server.wait_until_ready()
        return started[-1]

    yield start
    for hosts in started:
        hosts.kill()


def test_two_hosts(make_checkpoint: Callable[..., Path], start_hosts: Callable[..., Hosts]) -> None:
    """They answer as one process, again and again with the same bits, also when a rank of the other host is killed; and
    when one is told to stop, all do."""
    directory = make_checkpoint("qwen2")
    hosts = start_hosts(directory)
    answers = hosts.ask()
    check(answers, of_one_process(directory))
    (lost,) = hosts.leader.workers
    assert hosts.ask(lost.kill) == answers
    assert lost not in hosts.leader.workers
    everyone = hosts.processes
    assert len(everyone) == 4
    hosts.leader.process.send_signal(signal.SIGTERM)
    assert hosts.leader.process.wait(30) == 0
    assert hosts.server.process.wait(30) == 0
    assert not psutil.wait_procs(everyone, timeout=5)[1]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "ranks", "stages"), [(2, 1, 2), (2, 1, 4), (2, 2, 2), (4, 2, 2)])
def test_stages_on_hosts(
    count: int, ranks: int, stages: int, make_checkpoint: Callable[..., Path], start_hosts: Callable[..., Hosts]
) -> None:
    """A stage to a host, several of them, one of several ranks, and one over two hosts: the bits of one stage."""
    directory = make_checkpoint("qwen2", num_hidden_layers=4, tie_word_embeddings=True)
    hosts = start_hosts(directory, "-pp", str(stages), "-tp", str(ranks), count=count)
    answers = hosts.ask()
    assert answers == of_one_process(directory, tensor_parallel_size=ranks)
    assert hosts.ask(hosts.leaders[-1].workers[-1].kill) == answers
    assert hosts.ask(hosts.server.workers[0].kill) == answers


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_host_is_waited_for(
    with_signal: int, make_checkpoint: Callable[..., Path], start_hosts: Callable[..., Hosts]
) -> None:
    """Streams go on once it has been started again. A stopped leader is seen by its silence."""
    hosts = start_hosts(make_checkpoint("qwen2"), "--step-timeout", "2")
    answers = hosts.ask()
    lost = hosts.leader.process

    def lose() -> None:
        lost.send_signal(with_signal)
        hosts.leader.start()

    workers = hosts.leader.workers
    assert hosts.ask(lose) == answers
    lost.kill()
    lost.wait()
    assert not psutil.wait_procs(workers, timeout=5)[1]


@pytest.mark.slow
def test_a_host_that_never_comes_back_ends_the_server(
    make_checkpoint: Callable[..., Path], start_hosts: Callable[..., Hosts]
) -> None:
    hosts = start_hosts(make_checkpoint("qwen2"), "--step-timeout", "2", "--load-timeout", "6")
    everyone = hosts.processes
    hosts.leader.process.kill()
    hosts.leader.process.wait()
    assert hosts.server.process.wait(40) == 1
    assert "only 1 of 2 ranks were there after 6 s (--load-timeout)" in "".join(hosts.server.log)
    assert not psutil.wait_procs(everyone, timeout=5)[1]


@pytest.mark.slow
def test_a_server_that_never_comes_back_ends_the_hosts(
    make_checkpoint: Callable[..., Path], start_hosts: Callable[..., Hosts]
) -> None:
    hosts = start_hosts(make_checkpoint("qwen2"), "--step-timeout", "2", "--load-timeout", "5")
    everyone = hosts.processes
    started = time.monotonic()
    hosts.server.process.kill()
    assert hosts.leader.process.wait(40) == 1
    assert time.monotonic() - started > 4
    assert not psutil.wait_procs(everyone, timeout=5)[1]
