"""`sophserve batch`: a file of requests answered by a model of its own, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from sophserve.config import EngineConfig, ServerConfig
from sophserve.errors import ConfigError
from sophserve.options import CommandParser, add_engine_options, add_server_options, engine_config, server_config

# All but what concerns clients that wait.
_ENGINE = [
    name for name in EngineConfig.__struct_fields__ if name not in ("model", "scheduling_policy", "max_queue_time")
]
_SERVER = (
    "served_model_name",
    "pooling",
    "tool_call_parser",
    "reasoning_parser",
    "trust_request_chat_template",
    "reject_unknown_fields",
    "log_level",
)


def batch(argv: Sequence[str]) -> int:
    """Answer the lines of a file; 0 if each of them succeeded, 1 if some failed."""
    values = vars(_parser().parse_args(argv))
    source = Path(values.pop("file"))
    output = Path(values.pop("output", source.with_name(f"{source.stem}.output.jsonl")))
    server = {"log_level": "warning"} | {name: values.pop(name) for name in _SERVER if name in values}
    engine, options = engine_config(values), server_config(server)
    options.api_key = []  # one in the environment is for servers
    errors = output.with_name(f"{output.stem.removesuffix('.output')}.errors.jsonl")
    _check_files(source, output, errors)
    from sophserve.logs import configure
    from sophserve.text.parsers import check_parsers

    check_parsers(options)
    configure(options.log_level.upper(), False)
    return asyncio.run(_answer(engine, options, source, output, errors))


def _parser() -> CommandParser:
    parser = CommandParser(
        "batch",
        "Answer a file of requests, as OpenAI's Batch API has them: one a line, with custom_id, method, url and body. "
        "When it is run again it goes on where it was ended.",
    )
    parser.add_argument("file", metavar="FILE", help="the requests (JSONL)")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="a directory with a checkpoint, a Hub id, or demo"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="where the answers go (default: FILE.output.jsonl); lines that fail go to OUT.errors.jsonl",
    )
    add_engine_options(parser, _ENGINE)
    add_server_options(parser, _SERVER)
    return parser


def _check_files(source: Path, output: Path, errors: Path) -> None:
    try:
        with source.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror}") from None
    if not output.parent.is_dir():
        raise ConfigError(f"there is no directory {output.parent} for the answers; make it, or choose another -o")
    for path in (output, errors):
        if path.exists() and path.samefile(source):
            raise ConfigError(f"{path} is the input itself; choose another -o")


async def _answer(engine: EngineConfig, options: ServerConfig, source: Path, output: Path, errors: Path) -> int:
    from tqdm import tqdm

    from sophserve.api.batches.job import Job, Slots, endpoints
    from sophserve.api.batches.lines import count_lines
    from sophserve.api.batches.outputs import Outputs
    from sophserve.api.embedded import embedded

    total = count_lines(source)
    if not total:
        raise ConfigError(f"{source} has no lines; give each request one")
    outputs = Outputs(output, errors)
    try:
        if len(outputs.done) < total:
            async with embedded(engine, options) as runner:
                with tqdm(total=total, initial=len(outputs.done), unit="line") as bar:
                    slots, urls = Slots(engine.max_num_seqs), endpoints(runner.app)
                    job = Job(runner.app, source, outputs, "batch_req", urls, slots, on_answer=bar.update)
                    await job.run()
    finally:
        outputs.close()
        for path in (output, errors):
            if not path.stat().st_size:
                path.unlink()
    print(f"{outputs.completed} of {total} lines answered: {output}")
    if outputs.failed:
        print(f"{outputs.failed} failed: {errors}")
    return 1 if outputs.failed else 0
