"""The worker's process: `python -m sophserve.worker.process LIFELINE PULSE LISTENER PLANS... RESULTS... GROUPS...`, all
file descriptors, and -1 for no listener and for the memory of groups that it is not in.

The server starts it; see sophserve.link.workers.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from device.cpus import share_cores
from sophserve.errors import SophserveError
from sophserve.link.channel import Reader, Ring, Writer
from sophserve.link.messages import (
    CompileGrammar,
    LoadFailed,
    LoadModel,
    Profiled,
    Progress,
    StartProfile,
    StepPlan,
    StopProfile,
    ToWorker,
    decode_to_worker,
    encode,
)
from sophserve.link.pulse import Pulse
from sophserve.logs import configure
from sophserve.plugins import plugins_of

if TYPE_CHECKING:
    from sophserve.worker.model_runner import ModelRunner
    from sophserve.worker.profile_writer import Profile

log = logging.getLogger("sophserve.worker")


def main(arguments: list[str]) -> None:
    """Load what the first message says, then run step plans until the server is gone."""
    lifeline, pulse, listener, *descriptors = map(int, arguments)
    threading.Thread(target=_exit_with_server, args=(lifeline,), daemon=True).start()
    first, second, collectives = tuple(descriptors[:3]), tuple(descriptors[3:6]), descriptors[6:]
    messages = _messages(Reader(Ring.attach(first)))  # type: ignore[arg-type]
    results = Writer(Ring.attach(second))  # type: ignore[arg-type]
    heart = Pulse(pulse)
    load = next(messages)
    assert isinstance(load, LoadModel)
    configure(load.log_level, load.log_json, "worker")
    if len(load.ranks_here) > 1:
        share_cores(load.local_rank, len(load.ranks_here))
    runner = _load(load, results, heart, collectives, listener)
    if runner is None:
        return
    results.send(encode(runner.info))
    profile: Profile | None = None
    for message in messages:
        match message:
            case CompileGrammar():
                runner.compile_grammar(message.structured)
            case StartProfile() | StopProfile():
                profile, answer = _start_profile(runner, load, message, profile)
                results.send(encode(answer))
            case StepPlan():
                heart.beat()  # here, not in the model, whose operators may be replayed without it
                result = (profile or runner).execute(message)
                heart.beat()
                if load.rank == load.answering:
                    results.send(encode(result))


def _load(load: LoadModel, results: Writer, pulse: Pulse, collectives: list[int], listener: int) -> ModelRunner | None:
    def report(progress: Progress) -> None:
        pulse.beat()
        results.send(encode(progress))

    try:
        report(Progress("importing torch"))
        # torch says so once where NumPy, which nothing here needs, is not installed.
        warnings.filterwarnings("ignore", "Failed to initialize NumPy")
        # Collections while modules are made find nothing and take a sixth of the time, and later ones would hold up a
        # step to walk through all of them.
        gc.disable()
        from sophserve.worker.links import open_links
        from sophserve.worker.model_runner import ModelRunner

        plugins_of()
        gc.freeze()
        gc.enable()
        report(Progress("connecting the hosts" if load.places else "opening the device"))
        return ModelRunner(load, collectives, pulse.beat, report, open_links(load, listener))
    except SophserveError as error:
        results.send(encode(LoadFailed(str(error))))
    except MemoryError:
        results.send(encode(LoadFailed("the model does not fit in memory; use a smaller one or a smaller --dtype")))
    return None


def _start_profile(
    runner: ModelRunner, load: LoadModel, message: StartProfile | StopProfile, running: Profile | None
) -> tuple[Profile | None, Profiled]:
    problem = ""
    if running is not None:
        running.close()
        problem = running.problem
    if isinstance(message, StopProfile):
        return None, Profiled(error=problem)
    from sophserve.worker.profile_writer import Profile

    try:
        profile = Profile(runner, load, message)
    except OSError as error:
        where = error.filename or message.directory
        return None, Profiled(error=f"cannot write a profile to {where}: {error.strerror}")
    return profile, Profiled(str(profile.folder))


def _messages(reader: Reader) -> Iterator[ToWorker]:
    poll = select.poll()
    poll.register(reader.descriptor, select.POLLIN)
    while True:
        poll.poll()
        for message in reader.receive():
            yield decode_to_worker(message)


def _exit_with_server(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns when the server's end is closed, by its exit or its death
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
