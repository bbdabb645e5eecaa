"""What benchmarks/soak.py compares and counts as growth; a minute of it on request."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import soak, soak_jobs

SCRIPT = Path(soak.__file__)


def record(memory: list[float]) -> soak.Record:
    samples = [soak.Sample(60.0 * at, value, 20, 5, 100, 0) for at, value in enumerate(memory)]
    return soak.Record(samples=samples)


def test_growth_is_from_the_second_third_to_the_last() -> None:
    assert record([10.0] * 10 + [100.0] * 20).faults() == []
    assert record([100.0] * 20 + [115.0] * 10).faults() == []
    [fault] = record([100.0] * 20 + [117.0] * 10).faults()
    assert fault == "memory grew from 100 to 117"
    found = record([100.0] * 30)
    found.wrong.append("lost")
    assert found.faults() == ["lost"] and "lost" in soak.report(found)
    assert "nothing lost" in soak.report(record([1.0] * 3))


def test_an_answer_is_compared_without_its_names_and_times() -> None:
    one = '{"id": "a", "created": 1, "choices": [{"text": "x", "id": 2}], "usage": {"completion_tokens": 3}}'
    assert soak_jobs.whole(one) == {"choices": [{"text": "x"}], "usage": {"completion_tokens": 3}}


def event(choice: str) -> str:
    return f'data: {{"id": "a", "choices": [{choice}]}}\n\n'


def test_a_stream_is_compared_as_a_whole_however_it_is_cut() -> None:
    call = '{"index": 0, "id": "c", "function": {"name": "f", "arguments": "%s"}}'
    pieces = [
        '{"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": null}',
        '{"index": 0, "delta": {"content": "bc"}, "finish_reason": null}',
        f'{{"index": 0, "delta": {{"tool_calls": [{call % "12"}]}}, "finish_reason": null}}',
        '{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "3"}}]}, "finish_reason": null}',
        '{"index": 0, "delta": {}, "finish_reason": "tool_calls"}',
    ]
    found = soak_jobs.chunks("".join(map(event, pieces)) + "data: [DONE]\n\n")
    assert found == {
        "0 content": "abc",
        "0 tool_calls 0 function name": "f",
        "0 tool_calls 0 function arguments": "123",
        "0 end": "tool_calls",
    }
    with pytest.raises(ValueError, match="the stream ends"):
        soak_jobs.chunks("".join(map(event, pieces)))


def test_jobs_have_names_of_their_own() -> None:
    names = [job.name for job in soak_jobs.make_jobs()]
    assert len(set(names)) == len(names)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_a_minute_of_everything_at_once(ranks: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--minutes", "1", "--kill-every", "10", "--tensor-parallel-size", ranks]
    run = subprocess.run([*command, "--log", str(tmp_path / "log")], capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stdout + run.stderr
