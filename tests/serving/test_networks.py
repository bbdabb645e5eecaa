"""One model over hosts with a network between them: the answers of one process, however slow or lossy it is, and
whatever is killed, cut off or told to stop."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from benchmarks.networks import Network
from tests.hosts import Answers, Hosts, check, left, of_one_process, streams
from tests.test_documentation import fences

pytestmark = pytest.mark.slow

# Each of four ranks has whole groups of 128 codes.
WIDE = {"hidden_size": 512, "intermediate_size": 512}
# Of a network between machines that stand side by side.
NEAR = {"delay": 1e-4, "rate": 1e10}


@pytest.fixture
def make_network() -> Iterator[Callable[[int], Network]]:
    """`make_network(hosts)`. Nothing may run on its hosts when a test is done, or soon after."""
    made: list[Network] = []

    def make(hosts: int) -> Network:
        try:
            made.append(Network(hosts))
        except OSError as error:
            pytest.skip(f"no network can be made: {error}")
        made[-1].be(**NEAR)
        return made[-1]

    yield make
    for network in made:
        remaining = left(network, 10)
        commands = [psutil.Process(pid).cmdline() for pid in remaining]
        for pid in remaining:
            os.kill(pid, signal.SIGKILL)
        network.close()
        assert not commands


@pytest.fixture
def start_hosts(server_class: type[Any], make_network: Callable[[int], Network]) -> Iterator[Callable[..., Hosts]]:
    """`start_hosts(directory, *options, count=2)`: hosts that are ready."""
    started: list[Hosts] = []

    def start(directory: Path, *options: str, count: int = 2) -> Hosts:
        started.append(Hosts(server_class, directory, *options, count=count, network=make_network(count)))
        started[-1].server.wait_until_ready()
        return started[-1]

    yield start
    for hosts in started:
        hosts.kill()


def in_three_seconds(do: Callable[[], None]) -> None:
    threading.Timer(3, do).start()


@pytest.mark.parametrize(("count", "stages"), [(2, 1), (4, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize(
    ("kind", "shape", "options"),
    [
        ("qwen2", {}, {}),
        ("qwen2", WIDE, {"quantization": "gptq"}),
        ("qwen2_moe", {}, {}),
        ("deepseek_v3", {}, {}),
    ],
    ids=["dense", "quantized", "experts", "latent"],
)
def test_hosts_answer_as_one_process(
    kind: str,
    shape: dict[str, int],
    options: dict[str, str],
    count: int,
    stages: int,
    make_checkpoint: Callable[..., Path],
    start_hosts: Callable[..., Hosts],
) -> None:
    """The same tokens, and to the last bit what one host with as many ranks for each layer answers, time and again."""
    directory = make_checkpoint(kind, **shape)
    written = [word for name, value in options.items() for word in (f"--{name}", value)]
    hosts = start_hosts(directory, *written, "-pp", str(stages), count=count)
    answers = hosts.ask()
    check(answers, of_one_process(directory, **options))
    assert answers == of_one_process(directory, **options, tensor_parallel_size=count // stages)
    assert hosts.ask() == answers
    hosts.leaders[-1].process.send_signal(signal.SIGTERM)
    assert [process.wait(30) for process in (hosts.server.process, *(each.process for each in hosts.leaders))] == (
        [0] * count
    )


@pytest.mark.parametrize("host", [0, 1])
def test_a_killed_rank(host: int, make_checkpoint: Callable[..., Path], start_hosts: Callable[..., Hosts]) -> None:
    hosts = start_hosts(make_checkpoint("qwen2"))
    answers = hosts.ask()
    (lost,) = hosts.server.workers if host == 0 else hosts.leader.workers
    assert hosts.ask(lost.kill) == answers


@pytest.mark.parametrize("step_timeout", ["1.5", "20"])
def test_a_rank_that_stands_still(
    step_timeout: str, make_checkpoint: Callable[..., Path], start_hosts: Callable[..., Hosts]
) -> None:
    """For longer than --step-timeout, or not as long: it is waited for."""
    hosts = start_hosts(make_checkpoint("qwen2"), "--step-timeout", step_timeout)
    answers = hosts.ask()
    (slow,) = hosts.leader.workers

    def resume() -> None:
        with suppress(psutil.NoSuchProcess):
            slow.resume()

    def stand_still() -> None:
        slow.suspend()
        in_three_seconds(resume)

    assert hosts.ask(stand_still) == answers
    assert (slow in hosts.leader.workers) == (step_timeout == "20")


def test_a_killed_host_is_started_again(
    make_checkpoint: Callable[..., Path], start_hosts: Callable[..., Hosts]
) -> None:
    """With all its processes. Every stream goes on."""
    hosts = start_hosts(make_checkpoint("qwen2"))
    answers = hosts.ask()

    def lose() -> None:
        assert hosts.network
        for pid in hosts.network.processes(1):
            os.kill(pid, signal.SIGKILL)
        hosts.leader.process.wait()
        in_three_seconds(hosts.leader.start)

    lost = hosts.leader.process
    assert hosts.ask(lose) == answers
    assert hosts.leader.process != lost


@pytest.mark.parametrize("step_timeout", ["1.5", "20"])
def test_a_link_that_is_cut_for_a_while(
    step_timeout: str, make_checkpoint: Callable[..., Path], start_hosts: Callable[..., Hosts]
) -> None:
    """For longer than --step-timeout, so that all ranks are started anew, or not as long."""
    hosts = start_hosts(make_checkpoint("qwen2"), "--step-timeout", step_timeout)
    answers = hosts.ask()
    before = hosts.leader.workers
    network = hosts.network
    assert network

    healed = threading.Event()

    def heal() -> None:
        network.be(**NEAR)
        healed.set()

    def cut() -> None:
        network.cut()
        in_three_seconds(heal)

    assert hosts.ask(cut) == answers
    assert healed.is_set()
    assert (hosts.leader.workers == before) == (step_timeout == "20")


def test_a_link_that_is_cut_for_ever(make_checkpoint: Callable[..., Path], start_hosts: Callable[..., Hosts]) -> None:
    """Both sides end with the reason, and so do the streams."""
    hosts = start_hosts(make_checkpoint("qwen2"), "--step-timeout", "2", "--load-timeout", "6")
    assert hosts.network
    with pytest.raises(openai.APIError):
        hosts.ask(hosts.network.cut)
    assert hosts.server.process.wait(20) == 1
    assert hosts.leader.process.wait(20) == 1
    assert "only 1 of 2 ranks were there after 6 s (--load-timeout)" in "".join(hosts.server.log)


def test_one_packet_in_a_hundred_is_lost(
    make_checkpoint: Callable[..., Path], start_hosts: Callable[..., Hosts]
) -> None:
    hosts = start_hosts(make_checkpoint("qwen2"))
    before = hosts.ask()
    assert hosts.network
    hosts.network.be(**NEAR, loss=0.01)
    assert [hosts.ask() for _ in range(3)] == [before] * 3


class Launched:
    """What the documented commands of a launcher start on two hosts, with another model."""

    def __init__(self, network: Network, launcher: str, directory: Path, folder: Path, *options: str) -> None:
        self.network = network
        self.directory = directory
        # Instead of ssh, and of a user who is not root.
        environment = os.environ | {
            "OMPI_MCA_plm_rsh_agent": str(shell_on_hosts(network, folder / "agent")),
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }
        self.processes = []
        for number, command in enumerate(documented(launcher)):
            command = command.replace("/data/Qwen2-72B", str(directory))
            command = " ".join(["exec env", command.partition(" ")[0], *options, command.partition(" ")[2]])
            with network.on(number):
                # A session of its own, as of somebody who logged in there.
                self.processes.append(subprocess.Popen(["sh", "-c", command], env=environment, start_new_session=True))

    def wait_until_ready(self) -> None:
        end = time.monotonic() + 90
        with self.network.on(0):
            while time.monotonic() < end and all(process.poll() is None for process in self.processes):
                with suppress(OSError), urllib.request.urlopen("http://localhost:8000/health"):
                    return
                time.sleep(0.2)
        pytest.fail("the server was not ready")

    def ask(self, disturb: Callable[[], None] | None = None) -> Answers:
        with self.network.on(0):
            return asyncio.run(streams("http://localhost:8000", disturb, str(self.directory)))

    def started_by(self, number: int) -> psutil.Process:
        """The process that the launcher on a host has there, after those that end at once."""
        found = [psutil.Process(pid) for pid in self.network.processes(number)]
        (process,) = [each for each in found if each.ppid() == self.processes[number].pid]
        return process

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def shell_on_hosts(network: Network, file: Path) -> Path:
    """A program that runs a command on the host with an address, as ssh does."""
    cases = "".join(
        f"{address}) host={name};; " for address, name in zip(network.addresses, network.namespaces, strict=True)
    )
    file.write_text(f'#!/bin/sh\ncase $1 in {cases}esac\nshift\nexec ip netns exec $host sh -c "$*"\n')
    file.chmod(0o755)
    return file


def documented(launcher: str) -> list[str]:
    """The commands of the fence that begins so, in the order of their hosts."""
    shells = [fence.code for fence in fences("docs/several-hosts.md") if fence.info == "bash"]
    (code,) = [code for code in shells if code.startswith(launcher)]
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture
def launch(
    make_checkpoint: Callable[..., Path], make_network: Callable[[int], Network], tmp_path: Path
) -> Iterator[Callable[..., Launched]]:
    """`launch("torchrun", *options)`: a server that is ready."""
    started: list[Launched] = []

    def start(launcher: str, *options: str) -> Launched:
        if launcher != "RANK" and not shutil.which(launcher):
            pytest.skip(f"there is no {launcher}")
        started.append(Launched(make_network(2), launcher, make_checkpoint("qwen2"), tmp_path, *options))
        started[-1].wait_until_ready()
        return started[-1]

    yield start
    for launched in started:
        launched.kill()


@pytest.mark.parametrize("launcher", ["torchrun", "mpirun", "RANK"])
def test_launchers(launcher: str, launch: Callable[..., Launched]) -> None:
    """They answer as one process, and when they are told to stop they finish what they have."""
    launched = launch(launcher)
    assert len(launched.processes) == (1 if launcher == "mpirun" else 2)
    answers = launched.ask()
    check(answers, of_one_process(launched.directory))
    assert answers == of_one_process(launched.directory, tensor_parallel_size=4)
    # mpirun kills its processes a second after it has told them.
    stop = launched.stop if launcher != "mpirun" else launched.started_by(0).terminate
    assert launched.ask(stop) == answers
    assert not left(launched.network, 30)


def test_mpirun_leaves_nothing_behind(launch: Callable[..., Launched]) -> None:
    launched = launch("mpirun")
    launched.stop()
    assert not left(launched.network, 30)


def test_torchrun_starts_a_host_again(launch: Callable[..., Launched]) -> None:
    launched = launch("torchrun", "--max-restarts", "3")
    answers = launched.ask()

    lost = launched.started_by(1)
    assert launched.ask(lost.kill) == answers
    assert launched.started_by(1) != lost
    launched.stop()
    assert not left(launched.network, 30)
