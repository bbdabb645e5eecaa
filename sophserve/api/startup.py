"""The server's life: listen at once, load, serve, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import uvloop

from sophserve.api.application import create_app
from sophserve.api.batches.runner import RUNNER
from sophserve.api.batches.store import BATCH_STORE
from sophserve.api.generation.served_model import ServedModel
from sophserve.api.http.budget import give_freed_memory_back
from sophserve.api.http.connections import Runner
from sophserve.api.http.listener import connection_limit, raise_descriptor_limit
from sophserve.api.http.serving import application_runner, listen, stop_on_signal
from sophserve.api.http.tls import renew, ssl_context
from sophserve.checkpoint import read_config, read_generation_config, read_pooling
from sophserve.config import ServerConfig
from sophserve.engine.engine import Engine
from sophserve.errors import CheckpointError, EngineDeadError
from sophserve.sampling import SamplingParams, sampling_defaults

log = logging.getLogger(__name__)

# For which a thread may keep the event loop from running, a fifth of Python's own.
_SWITCH_SECONDS = 0.001


def run(engine: Engine, config: ServerConfig, started: float) -> None:
    """Serve an engine whose worker has been started, until SIGINT or SIGTERM.

    started is the time.monotonic() at which the process began. Raises SophserveError if the server cannot listen, the
    model cannot be loaded or the worker is lost.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    raise_descriptor_limit()
    give_freed_memory_back()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(engine, config, started))
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the loop leaves Python's own, which ends in a traceback


def make_runner(served: ServedModel) -> Runner:
    """The application, and how aiohttp is to run it."""
    return application_runner(create_app(served), served.connections)


async def _serve(engine: Engine, config: ServerConfig, started: float) -> None:
    served = ServedModel(engine, config)
    stop = stop_on_signal()
    engine.workers.on_leaving(stop.set)
    runner = make_runner(served)
    if config.batch_dir:
        runner.app[BATCH_STORE].prepare()
    loading = asyncio.create_task(load(served))
    background: list[asyncio.Task[None]] = [loading]
    listener = None
    try:
        await runner.setup()
        context = ssl_context(config)
        most = connection_limit(config.max_connections, engine.config.tensor_parallel_size)
        listener, address = listen(runner, served.connections, most, context)
        if context:
            background.append(asyncio.create_task(renew(context, config)))
        log.info("listening on %s", address)
        if await _before(stop, loading):
            gc.freeze()  # or each full collection would stop the loop to walk through all modules
            _log_ready(served, address, time.monotonic() - started)
            batches = asyncio.create_task(runner.app[RUNNER].run())
            background.append(batches)
            if await _before(stop, asyncio.create_task(engine.died.wait())):
                await served.drain(1)  # for the errors to reach their clients
                raise EngineDeadError("the worker is lost; restart the server")
            log.info(
                "stopping: running requests have %g s to finish; interrupt again to exit at once", config.drain_timeout
            )
            listener.close()
            batches.cancel()  # the next server goes on with them
            await served.drain(config.drain_timeout)
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        if listener:
            listener.close()
        await runner.cleanup()
        await engine.close()
        await served.close()
        if config.uds and listener:
            Path(config.uds).unlink(missing_ok=True)


async def _before(stop: asyncio.Event, task: asyncio.Task[object]) -> bool:
    """Wait for the task; False if stop came first. Raises what the task raises."""
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
    if stop.is_set():
        task.cancel()
        return False
    await task
    return True


async def load(served: ServedModel) -> None:
    """Make the model ready, and show how far that is. Raises SophserveError."""
    # Reading a large tokenizer.json holds the interpreter's lock for a third of a second, and the worker takes longer
    # anyway: answer first who has been waiting for the port.
    await asyncio.sleep(0.3)
    with _progress_shown(served.engine):
        await asyncio.to_thread(_load_text, served)
        await served.engine.start(served.tokenizer, served.model_names[0])
        if served.images:
            await served.images.start()


def _load_text(served: ServedModel) -> None:
    from sophserve import plugins
    from sophserve.image_prompt import template_with_images
    from sophserve.media.limits import media_limits
    from sophserve.media.loader import image_loader
    from sophserve.text.bound import characters_per_token
    from sophserve.text.tokenizer import Tokenizer

    plugins.tool_parsers(), plugins.reasoning_parsers()  # one that does not load must not fail a request
    directory = served.engine.directory
    defaults = sampling_defaults(read_generation_config(directory))
    try:
        msgspec.convert(defaults, SamplingParams)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{directory / 'generation_config.json'}: {error}") from None
    served.sampling_defaults = defaults
    pooling = served.config.pooling
    served.pooling = "mean" if (read_pooling(directory) if pooling == "auto" else pooling) == "mean" else "last"
    served.tokenizer = Tokenizer.from_directory(directory)
    served.characters_per_token = characters_per_token(served.tokenizer)
    limits = media_limits(served.engine.config, served.config)
    served.images = image_loader(directory, read_config(directory), limits)
    processor = served.images.processor if served.images else None
    served.chat_template = template_with_images(
        directory, served.tokenizer, served.engine.config.chat_template, processor
    )


@contextmanager
def _progress_shown(engine: Engine) -> Iterator[None]:
    """Show how far loading is: a bar on a terminal, a log line for each stage otherwise."""
    from tqdm import tqdm

    bar = tqdm(unit="B", unit_scale=True, leave=False, dynamic_ncols=True, disable=not sys.stderr.isatty())
    stage = ""

    def show() -> None:
        nonlocal stage
        progress = engine.workers.progress
        bar.set_description_str(progress.stage, refresh=False)
        bar.total, bar.n = progress.total or None, progress.done
        bar.refresh()
        if bar.disable and progress.stage != stage:
            log.info("loading: %s", progress.stage)
        stage = progress.stage

    engine.workers.on_progress = show
    try:
        yield
    finally:
        engine.workers.on_progress = None
        bar.close()


def _log_ready(served: ServedModel, address: str, seconds: float) -> None:
    info = served.engine.info
    log.info(
        "memory: weights %s, KV cache %s, free %s of %s",
        *(f"{size / 2**20:.0f} MiB" for size in (info.weight_bytes, info.kv_cache_bytes)),
        *(f"{size / 2**30:.1f} GiB" for size in (info.free_memory, info.total_memory)),
    )
    log.info(
        "ready: %s/v1, model %s, context %d, KV cache %d tokens, in %.1f s",
        address,
        served.model_names[0],
        info.max_model_len,
        info.num_blocks * info.block_size,
        seconds,
    )
