"""`sophserve profile`: draws the records of a profile, as a page and as a trace for Perfetto."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sophserve.bench.profile_records import RankProfile, read_profile
from sophserve.errors import ConfigError
from sophserve.options import CommandParser
from sophserve.profile_format import Step

PAGE, TRACE = "profile.html", "trace.json"
TEMPLATE = Path(__file__).with_name("profile.html")


def main(argv: Sequence[str]) -> int:
    """Draw a profile, and print where its time went."""
    parser = CommandParser("profile", "Draw what a profile recorded, as a web page and as a trace for Perfetto.")
    parser.add_argument("directory", metavar="DIR", help="a folder cdm_profile_data_dev*, or where they are")
    parser.add_argument("out", metavar="OUT", nargs="?", default=None, help="directory to write to (default: DIR)")
    given = parser.parse_args(argv)
    directory = Path(given.directory)
    out = directory if given.out is None else Path(given.out)
    profiles = read_profile(directory)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / PAGE).write_text(page(profiles), encoding="utf-8")
        with (out / TRACE).open("wb") as file:
            file.writelines(trace(profiles))
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}; give another OUT") from None
    for profile in profiles:
        print(*_summary(profile), sep="\n")
    print(f"{out / PAGE}: the page\n{out / TRACE}: for https://ui.perfetto.dev")
    return 0


def page(profiles: list[RankProfile]) -> str:
    """The profile as a web page that needs nothing else."""
    # In a script element only `<` could end the data, and JSON has it nowhere but in strings.
    data = msgspec.json.encode([_rank_data(profile) for profile in profiles]).decode().replace("<", "\\u003c")
    before, title, rest = TEMPLATE.read_text(encoding="utf-8").partition("$title")
    middle, place, after = rest.partition("$data")
    assert title and place
    return before + html.escape(f"{profiles[0].header.model}: profile") + middle + data + after


def trace(profiles: list[RankProfile]) -> Iterator[bytes]:
    """The profile in the Trace Event Format of Chrome, one event a line."""
    encode = msgspec.json.encode
    lead = b'{"displayTimeUnit": "ns", "traceEvents": [\n'
    for profile in profiles:
        for event in _events(profile):
            yield lead + encode(event)
            lead = b",\n"
    yield b"\n]}\n"


def _events(profile: RankProfile) -> Iterator[dict[str, Any]]:
    header = profile.header
    process = {"pid": header.rank}
    yield process | {"ph": "M", "name": "process_name", "args": {"name": f"rank {header.rank}: {header.device}"}}
    for number, name in enumerate(("steps", "commands")):
        yield process | {"ph": "M", "name": "thread_name", "tid": number, "args": {"name": name}}
    for step in profile.steps:
        args: dict[str, Any] = {"sequences": step.sequences, "tokens": step.tokens}
        yield process | _slice(f"step {step.step}", step.start, step.duration) | {"tid": 0, "args": args}
        for command in step.commands or []:
            args = {"bytes": command.bytes, "operations": command.operations, "step": step.step}
            if command.detail:
                args["detail"] = command.detail
            yield process | _slice(command.operator, command.start, command.duration) | {"tid": 1, "args": args}
        if step.memory:
            args = {"bytes": step.memory[0]}
            yield process | {"ph": "C", "name": "memory in use", "ts": step.start / 1000, "args": args}


def _slice(name: str, start: int, duration: int) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": start / 1000, "dur": duration / 1000}


def _rank_data(profile: RankProfile) -> dict[str, Any]:
    """What the page's script reads of one rank: commands in columns, their start counted from that of their step."""
    header = profile.header
    operators: dict[str, int] = {}
    details: dict[str, int] = {}
    commands = [(step.start, command) for step in profile.steps for command in step.commands or []]
    columns = {name: [getattr(each, name) for _, each in commands] for name in ("duration", "bytes", "operations")}
    columns["operator"] = [operators.setdefault(each.operator, len(operators)) for _, each in commands]
    columns["start"] = [each.start - start for start, each in commands]
    if header.mode == 2:
        columns["detail"] = [details.setdefault(each.detail, len(details)) for _, each in commands]
    limits = header.bytes_per_second and header.operations_per_second
    return {
        "model": header.model,
        "device": header.device,
        "deviceId": header.device_id,
        "rank": header.rank,
        "mode": header.mode,
        "maxRecordNum": header.max_record_num,
        "started": header.started + (profile.steps[0].start - header.start) / 1e9,
        "limits": [header.bytes_per_second, header.operations_per_second] if limits else None,
        "torn": profile.torn,
        "steps": [_step_data(step, operators) for step in profile.steps],
        "memory": [[step.start, *step.memory] for step in profile.steps if step.memory],
        "operators": list(operators),
        "details": list(details) if header.mode == 2 else None,
        **columns,
    }


def _step_data(step: Step, operators: dict[str, int]) -> dict[str, Any]:
    data: dict[str, Any] = {name: getattr(step, name) for name in ("step", "start", "duration", "sequences", "tokens")}
    data["commands"] = None if step.commands is None else len(step.commands)
    if step.sums is not None:
        data["sums"] = [
            [operators.setdefault(operator, len(operators)), sums.count, sums.duration, sums.bytes, sums.operations]
            for operator, sums in step.sums.items()
        ]
    return data


def _summary(profile: RankProfile) -> Iterator[str]:
    header, steps = profile.header, profile.steps
    sums = sorted(profile.sums().items(), key=lambda item: -item[1].duration)
    busy = sum(step.duration for step in steps if step.commands or step.sums)
    in_steps = sum(step.duration for step in steps)
    yield f"rank {header.rank}, {header.device}: {len(steps)} steps, {in_steps / 1e6:.1f} ms"
    if profile.torn:
        yield "  its worker was killed within the last step, which is left out"
    if any(step.commands is None and step.sums is None for step in steps):
        yield f"  not all commands were recorded: {header.max_record_num} are all that max_record_num allows"
    width = max((len(operator) for operator, _ in sums), default=0)
    for operator, total in sums:
        share = total.duration / (busy or 1)
        yield f"  {operator:<{width}}  {total.count:>8} calls  {total.duration / 1e6:>10.2f} ms  {100 * share:>5.1f} %"
