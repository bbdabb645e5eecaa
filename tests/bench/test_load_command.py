"""`sophserve load` from the command line: wrong options, and every kind of load on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sophserve.bench import load
from sophserve.cli import main
from sophserve.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--url ftp://localhost:8000", "--url must look like http://localhost:8000"),
        ("--dataset file", "--dataset file needs --dataset-path FILE"),
        ("--dataset-path x", "--dataset-path has no meaning with --dataset random"),
        ("--dataset file --dataset-path x --input-length 3", "--input-length has no meaning with --dataset file"),
        ("--prefix-length 3", "--prefix-length has no meaning with --dataset random"),
        ("--image-size 8x8", "--image-size has no meaning with --dataset random"),
        ("--dataset random-image --endpoint completions", "--dataset random-image needs --endpoint chat"),
        ("--scenario four-users --image-size 8x8", "--image-size has no meaning with --scenario"),
        ("--scenario four-users --rate 3", "--rate has no meaning with --scenario"),
        ("--burstiness 2", "--burstiness needs --rate"),
        ("--slo ttft", "cannot read --slo ttft: give ttft, tpot, e2el as NAME:MILLISECONDS"),
        ("--slo tpot:5 itl:3", "cannot read --slo itl:3"),
        ("--slo ttft:-1", "cannot read --slo ttft:-1"),
        ("--no-stream --slo ttft:9", "without --stream only --slo e2el"),
        ("--no-stream --scenario four-users", "and no --scenario"),
        ("--save-json /nowhere/a.json", "cannot write /nowhere/a.json: there is no such directory"),
    ],
)
def test_options_that_do_not_go_together(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", *arguments.split()]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("sophserve: error: ") and words in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--concurency 3", "unknown option --concurency; did you mean --concurrency?"),
        ("--concurrency 0", "argument --concurrency/--max-concurrency: expected a whole number, above 0"),
        ("--num-requests 1.5", "expected a whole number, above 0"),
        ("--image-size 8", "expected WIDTHxHEIGHT in pixels, such as 672x336"),
        ("--image-size 0x8", "expected WIDTHxHEIGHT in pixels, such as 672x336"),
        ("--rate inf", "expected a number, above 0"),
        ("--temperature -1", "expected a number, 0 or more"),
        ("--extra-body [1]", "expected a JSON object"),
        ("--scenario five-users", "invalid choice: 'five-users'"),
        ("--stream maybe", "expected true or false, got 'maybe'"),
    ],
)
def test_values_that_cannot_work(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["load", *arguments.split()])
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and errors.startswith("sophserve load: error: ") and words in errors


def test_pictures_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sophserve.bench.load.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--save-png needs matplotlib: pip install 'sophserve\[plot\]'"):
        load.parse(["--save-png", "a.png"])


def test_every_load_of_a_tiny_model(
    make_checkpoint: Callable[..., Path],
    start_server: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = make_checkpoint("qwen2", max_position_embeddings=8192)
    server = start_server(checkpoint, "--max-num-batched-tokens", "100", "--api-key", "secret")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOPHSERVE_API_KEY", "secret")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello"}\n{"prompt": "The sea", "max_tokens": 3}\n')

    def run(arguments: str) -> tuple[str, dict[str, Any]]:
        code = main(["load", "--url", server.url, "--save-json", "a.json", *arguments.split()])
        output = capsys.readouterr()
        assert code == 0, output
        return output.out, json.loads((tmp_path / "a.json").read_text())

    _, saved = run("--num-requests 12 --input-length 50 --output-length 10 --concurrency 4 --endpoint completions")
    assert (saved["completed"], saved["prompt_tokens"], saved["output_tokens"]) == (12, 600, 120)
    assert saved["usage_reported"] and saved["cached_tokens"] == 0
    _, saved = run("--num-requests 6 --output-length 5 --no-stream --rate 100")
    assert (saved["completed"], saved["output_tokens"]) == (6, 30) and 600 < saved["prompt_tokens"] < 1100
    options = "--dataset shared-prefix --prefix-length 64 --input-length 20 --num-requests 8 --output-length 4"
    _, saved = run(f"{options} --endpoint completions --concurrency 1")
    assert (saved["prompt_tokens"], saved["cached_tokens"]) == (8 * 84, 7 * 64)
    _, saved = run("--dataset file --dataset-path prompts.jsonl --ignore-eos --output-length 8 --seed 3")
    assert [request["output_tokens"] for request in saved["requests"]] == [8, 3]
    output, _ = run("--scenario four-users --ignore-eos")
    assert "PASS: all 4 users were being answered at the same time" in output
    output, saved = run("--scenario prefix-caching --output-length 4")
    assert "PASS: later questions found 9" in output
    cached = [request["cached_tokens"] for request in saved["requests"]]
    assert cached[0] == 0 and min(cached[1:]) > 0.9 * saved["requests"][1]["prompt_tokens"]
    output, _ = run("--scenario prefill-chunking")
    assert "PASS: the first answer got" in output
    logs = sorted(file.name for file in tmp_path.glob("run_*.log"))
    assert len(logs) == 13 and logs[0] == "run_four-users_1.log"
    log = (tmp_path / "run_four-users_1.log").read_text()
    assert log.startswith("Explain in at least a hundred words why the sky is blue")
    assert "=== answer ===" in log and "failed" not in log
    monkeypatch.delenv("SOPHSERVE_API_KEY")
    assert main(["load", "--url", server.url]) == 1
    assert "wants a key: give --api-key" in capsys.readouterr().err


def test_names_that_scripts_for_others_have() -> None:
    given = load.parse(
        ["--url", "localhost:8350/v1", "--max-concurrency", "3", "--num-prompts", "5", "--request-rate", "2"]
    )
    assert (given.url, given.concurrency, given.num_requests, given.rate) == ("http://localhost:8350", 3, 5, 2)
