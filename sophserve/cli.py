"""The command line: `sophserve --model X` serves, `sophserve COMMAND` does the rest. Imports stay light until then."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Sequence

from sophserve.errors import SophserveError
from sophserve.launch import forget_defaults, ranks_here, read_launch
from sophserve.logs import configure
from sophserve.options import parse
from sophserve.plugins import commands, load_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the process's exit code."""
    argv = sys.argv[1:] if argv is None else argv
    # torch says so once where NumPy, which nothing here needs, is not installed.
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")
    try:
        if argv and not argv[0].startswith("-") and argv[0] in commands():
            return load_command(argv[0])(argv[1:])
        # As others have it, `serve MODEL`.
        return _serve(argv[1:] if argv and argv[0] == "serve" else argv)
    except SophserveError as error:
        print(f"sophserve: error: {error}", file=sys.stderr)
        return 1


def _serve(argv: Sequence[str]) -> int:
    started = time.monotonic()
    engine_config, server_config = parse(argv)
    configure(server_config.log_level.upper(), server_config.log_format == "json")
    from sophserve.checkpoint import resolve_model
    from sophserve.preflight import check
    from sophserve.text.parsers import check_parsers

    check_parsers(server_config)
    launch = read_launch(os.environ)
    here = None
    if launch:
        forget_defaults()
        here = ranks_here(launch, engine_config)
        if launch.local_rank > 0:
            return 0  # the first process of the host starts one for each rank
    directory = resolve_model(engine_config.model)
    check(engine_config, directory, here)
    hosts = None
    if launch and here and not launch.within_one_host:
        if launch.rank > 0:
            from sophserve.link.leader import lead

            lead(launch, here, engine_config, directory, server_config.drain_timeout)
            return 0
        from sophserve.link.hosts import Hosts

        hosts = Hosts(launch, here, engine_config, directory)
    from sophserve.engine.engine import Engine

    engine = Engine(engine_config, directory, hosts)
    engine.start_worker()
    # The worker takes seconds to start; what the server needs is imported meanwhile.
    from sophserve.api.startup import run

    run(engine, server_config, started)
    return 0
