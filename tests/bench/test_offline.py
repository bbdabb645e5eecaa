"""`sophserve bench`: its arithmetic, its verdicts, and whole runs on a tiny model."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sophserve.bench import offline_report as report
from sophserve.bench.offline import bench
from sophserve.bench.offline_prompts import make_prompts, read_texts
from sophserve.bench.offline_result import Reckoning, Setting
from sophserve.bench.offline_run import Answer, Pass, phases, run_pass
from sophserve.bench.quality import agreement, distinct, judge, judge_answer, repetition, scripts_of
from sophserve.cli import main
from sophserve.errors import ConfigError, SophserveError
from sophserve.measure.footprint import Attention, ExpertLayers, Footprint
from sophserve.measure.footprint_process import footprint
from sophserve.measure.limits import DeviceLimits
from sophserve.text.chat_template import ChatTemplate
from sophserve.text.tokenizer import Tokenizer

GOOD = "the cat sat on a mat while rain fell over quiet roofs and nobody in town had seen it come at all"
WORDS = GOOD.split()

# --- times ---


def test_phases_of_rows_that_start_together() -> None:
    first, steps = phases([[2.0, 3.0, 5.0], [2.0, 3.0, 5.0]])
    assert (first, steps) == (2.0, [1.0, 2.0])


def test_only_steps_of_all_rows_count() -> None:
    # The second prompt is prefilled while the first answers already, and ends later.
    first, steps = phases([[1.0, 2.0, 3.0, 4.0, 5.0], [3.0, 4.0, 5.0, 5.5, 6.0]])
    assert (first, steps) == (3.0, [1.0, 1.0])
    assert phases([[1.0], [2.0]]) == (2.0, [])
    # Tokens of one step come one after the other.
    assert len(phases([[1.0, 2.0, 3.0], [1.01, 2.01, 3.01]])[1]) == 2
    assert len(phases([[1.0, 2.0, 3.0], [1.01, 1.99, 2.99, 4.0]])[1]) == 2


def test_results_follow_from_times_and_sizes() -> None:
    footprint = Footprint(
        architecture="A", dtype="bfloat16", quantization=None, layout="cmodel", context_length=99, max_model_len=99,
        parameters=900, active_parameters=500, weight_bytes=2000, step_bytes=1000, kv_token_bytes=10, kv_budget=0,
        num_blocks=0, product_flops=2000, head_flops=500, device_memory=0,
        attention=[Attention(window=None, token_bytes=10, pair_flops=4)],
        experts=[ExpertLayers(layers=2, count=4, top_k=1, intermediate_size=8, held=4, weight_bytes=800)],
    )  # fmt: skip
    times = [[4.0, 4.5, 5.0], [4.0, 4.5, 5.0]]
    run = Pass([Answer([1, 2, 3], row, "") for row in times], *phases(times))
    reckoning = Reckoning(footprint, 2, DeviceLimits(bandwidth=1e4, rate=1e5, shared=True))
    result = reckoning.result(Setting(2, 10, 3), [10, 10], (run, run), 7, None)
    assert (result.measured.ftl_ms, result.measured.tps, result.prefill_tps) == (4000, 4, 5)
    # At the middle of the decode phase a row holds 12 tokens; of four experts two rows are expected to go through 7/4.
    assert result.decode is not None and result.steps_ms is not None
    assert result.decode.gbs == pytest.approx(2 * (1350 + 2 * 12 * 10) / 0.5 / 1e9)
    assert result.decode.gflops == pytest.approx(2 * 2 * (2500 + 12 * 4) / 0.5 / 1e9)
    assert result.decode.bandwidth_share == pytest.approx(2 * 1590 / 0.5 / 1e4)
    assert result.prefill.gbs == pytest.approx(2 * round(1000 + 800 * (1 - 0.75**20)) / 4 / 1e9)
    assert result.prefill.gflops == pytest.approx(2 * 2 * (10 * 2000 + 500 + 55 * 4) / 4 / 1e9)
    assert result.prefill.rate_share == pytest.approx(result.prefill.gflops * 1e9 / 1e5)
    assert (result.steps_ms.p50, result.steps_ms.max) == (500, 500)
    apart = Reckoning(footprint, 2, DeviceLimits(bandwidth=1e4, rate=1e5, shared=False))
    other = apart.result(Setting(2, 10, 3), [10, 10], (run, run), 7, None)
    assert other.decode is not None and other.decode.bandwidth_share == pytest.approx(1590 / 0.5 / 1e4)
    short = Pass([Answer([1], [4.0], "")], 4.0, [])
    result = reckoning.result(Setting(1, 10, 1), [10], (short, short), 7, None)
    assert result.measured.tps is result.decode is result.steps_ms is None


# --- quality ---


def test_repetition_and_distinct() -> None:
    assert repetition([1, 2, 3, 4, 5, 6]) == 0
    assert repetition([9, 8, *[1, 2, 3] * 4]) == pytest.approx(12 / 14)
    assert repetition([5] * 10) == 1
    assert repetition([1, 2, 1, 2, 3]) == 0  # over before the end
    assert distinct([1, 1, 1, 1], 1) == 0.25
    assert distinct([1, 2, 1, 2, 1], 2) == 0.5
    assert distinct([1], 4) == 1


def test_scripts_and_agreement() -> None:
    assert scripts_of("abc 人工") == {"LATIN": 0.6, "CJK": 0.4}
    assert scripts_of("こんにちは、世界") == {"CJK": 1.0}
    assert scripts_of("12!?") == {}
    assert agreement([1, 2, 3, 4], [1, 2, 9, 4]) == 0.5
    assert agreement([1, 2, 3], [1, 2]) == 1
    assert agreement([], []) == 1


def judged(text: str, prompt: str = "What happened? 发生了什么？", **more: Any) -> list[str]:
    tokens = [hash(word) for word in text.split()]
    return judge([judge_answer(tokens, text, prompt, **more)]).reasons


def test_verdicts() -> None:
    good = GOOD
    assert judged(good, logprobs=[-0.5] * 20) == []
    assert judge([judge_answer([1, 2], good, good)]).verdict == "good"
    for reasons, words in (
        (judged(good, logprobs=[-5.0] * 20), "perplexity above 30"),
        (judged(good, logprobs=[math.nan] * 20), "perplexity above 30"),
        (judged("it was " * 20), "end in a loop"),
        (judged("it was " * 20), "repeat more than 70% of their runs"),
        (judged(good + "��� mid " + good), "have broken characters"),
        (judged("Она открыла дверь и ничего не увидела"), "use a script that their prompt does not"),
        (judged(good, golden=[1, 2, 3]), "differ early from the golden file"),
    ):
        assert any(words in reason for reason in reasons), words
    # Half a character at a cut is no sign, nor a script that the prompt has, nor the golden answer itself.
    assert judged(good + "�") == judged("今天的雨下得很大") == []
    assert judged(good, golden=[hash(word) for word in WORDS]) == []


def test_noise_is_suspicious() -> None:
    chosen = random.Random(0)
    noise = "".join(chr(chosen.choice([0x430, 0x3B1, 0x5D0, 0x61]) + chosen.randrange(20)) for _ in range(200))
    assert "1 of 1 use a script that their prompt does not" in judged(noise)


# --- prompts ---


def test_prompts_have_their_length(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint("qwen2")
    tokenizer = Tokenizer.from_directory(directory)
    whole = len(tokenizer.encode(read_texts()))
    prompts = make_prompts(tokenizer, None, 3, whole + 50, seed=1)
    assert [len(prompt) for prompt in prompts] == [whole + 50] * 3
    assert len({tuple(prompt[:20]) for prompt in prompts}) == 3
    assert prompts == make_prompts(tokenizer, None, 3, whole + 50, seed=1)
    assert prompts != make_prompts(tokenizer, None, 3, whole + 50, seed=2)
    template = ChatTemplate.from_directory(directory, tokenizer, None)
    start = tokenizer.encode("<|im_start|>user\n", add_special_tokens=False)
    for length in (40, 100, 200):
        for prompt in make_prompts(tokenizer, template, 4, length, seed=3):
            assert length - 8 <= len(prompt) <= length and prompt[: len(start)] == start
    with pytest.raises(ConfigError, match="the chat template alone takes"):
        make_prompts(tokenizer, template, 1, 5, seed=0)


def test_the_texts_are_some_pages() -> None:
    text = read_texts()
    shares = scripts_of(text)
    assert len(text) > 9000 and set(shares) == {"LATIN", "CJK"} and shares["CJK"] > 0.1


# --- whole runs ---


def test_a_run_and_its_files(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rows, whole = tmp_path / "rows.csv", tmp_path / "whole.json"
    command = ["bench", "--model-id", str(make_checkpoint("qwen2", dtype="bfloat16")), "--batch", "2", "--use-v1"]
    command += ["--input-length", "40", "--max-new-tokens", "12", "--save-results", str(rows)]
    assert main([*command, "--save-json", str(whole), "--quality-check"]) == 0
    out, err = capsys.readouterr()
    assert "--use-v1 is accepted without effect" in err
    for words in ("Qwen2ForCausalLM, bfloat16, cmodel", "warm-up", "measured", "of what the device reads", "quality "):
        assert words in out
    found = json.loads(whole.read_text())
    assert found["schema"] == 1 and found["meta"]["run"]["kv_token_bytes"] == 384
    assert found["limits"]["shared"] and found["limits"]["rate"] > found["limits"]["bandwidth"] / 100 > 0
    (only,) = found["benchmarks"]
    assert only["benchmark"] == {"batch": 2, "input_length": 40, "max_new_tokens": 12}
    performance, data = only["performance"], only["data"]
    assert data["prompt_tokens"] == [40, 40] and [len(answer["token_ids"]) for answer in data["answers"]] == [12, 12]
    assert len(data["steps_s"]) == 11
    assert performance["tps"] == pytest.approx(2 / (sum(data["steps_s"]) / 11))
    assert performance["prefill_tps"] == pytest.approx(80 / performance["ftl_ms"] * 1000)
    assert performance["peak_memory"] > 2**20
    assert len(only["quality"]["answers"]) == 2 and only["quality"]["answers"][0]["perplexity"] >= 1

    monkeypatch.setattr("sophserve.bench.offline.measure", footprint)
    assert main([*command, "--skip-limits", "--golden", str(whole), "--mode", "generate"]) == 0
    assert "differ early from the golden file" not in capsys.readouterr().out
    with rows.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["batch"] for row in table] == ["2", "2"] and float(table[0]["tps"]) == pytest.approx(performance["tps"])
    assert table[0]["quality"] in ("good", "suspicious")


def test_a_sweep(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sophserve.bench.offline.measure", footprint)
    picture = tmp_path / "picture.png"
    command = ["bench", "--model", str(make_checkpoint("qwen2")), "--max-new-tokens", "3", "--mode", "chat"]
    command += ["--sweep", "batch=1,3", "input-length=32,64", "--plot", str(picture), "--skip-limits"]
    assert main(command) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines if len(line) == 10] == [
        ["1", "32", "3"],
        ["3", "32", "3"],
        ["1", "64", "3"],
        ["3", "64", "3"],
    ]
    assert picture.exists() == (find_spec("matplotlib") is not None)
    if picture.exists():
        assert picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("sophserve.bench.offline_report.find_spec", lambda _: None)
    assert not report.save_plot(str(tmp_path / "other.png"), [])
    assert "pip install 'sophserve[plot]'" in capsys.readouterr().err and not (tmp_path / "other.png").exists()


@pytest.mark.parametrize("mode", ["generate", "chat"])
def test_a_run_with_images(
    make_seeing_checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, mode: str,
) -> None:  # fmt: skip
    """Every pass has images of its own, but for the one that is asked again."""
    monkeypatch.setattr("sophserve.bench.offline.measure", footprint)
    passes = []

    async def noted(llm: Any, prompts: Any, new_tokens: int, salt: str) -> Pass:
        images = llm.engine._scheduler.images
        before, hits = images.queries, images.hits
        passes.append([[item.digest for item in each.items] for each in prompts])
        found = await run_pass(llm, prompts, new_tokens, salt)
        passes[-1].append((images.queries - before, images.hits - hits))
        return found

    monkeypatch.setattr("sophserve.bench.offline.run_pass", noted)
    kind = {"generate": "qwen2_5_vl", "chat": "llava_next"}[mode]
    command = ["bench", "--model", str(make_seeing_checkpoint(kind)), "--mode", mode, "--skip-limits", "--batch", "2"]
    command += ["--input-length", "60", "--max-new-tokens", "3", "--image-size", "90x70", "--quality-check"]
    assert main([*command, "--save-json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    [only] = found["benchmarks"]
    times, (length, _) = only["performance"]["images"], only["data"]["prompt_tokens"]
    assert found["meta"]["run"]["image_size"] == "90x70"
    assert times["encode_ms"] == pytest.approx(only["performance"]["ftl_ms"] - times["text_ftl_ms"])
    assert times["again_ftl_ms"] > 0 and 52 <= length - times["tokens"] <= 60
    (*warmup, _), (*run, encoded), (*again, known), (*text, _) = passes
    assert len({digest for each in (*warmup, *run) for digest in each}) == 4 and again == run and text == [[], []]
    # What the cache holds of a prompt does not need its image at all.
    assert encoded == (2, 0) and known[0] == known[1]
    assert f"images       {times['tokens']} tokens each, encoded in" in capsys.readouterr().out


def test_bad_arguments(make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sophserve.bench.offline.measure", footprint)
    model = ["--model", str(make_checkpoint("qwen2"))]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "not.json").write_text("[]")
    for arguments, words in (
        (["--image-size", "336x336"], "--image-size needs a model with vision, which Qwen2ForCausalLM is not; leave"),
        (["--sweep", "size=1"], "--sweep has 'size=1'; it takes NAME=N,N,... for batch, input-length, max-new-tokens"),
        (["--sweep", "batch=1,0"], "--sweep has 'batch=1,0': expected a number of at least 1, got '0'"),
        (["--input-length", "250"], "are 1274 tokens, but the model's context is 256"),
        (["--save-json", str(tmp_path / "absent" / "x.json")], "there is no such directory"),
        (["--save-results", str(tmp_path / "other.csv")], "has other columns"),
        (["--golden", str(tmp_path / "not.json")], "is no file that --save-json wrote"),
        (["--golden", str(tmp_path / "absent.json")], "cannot read --golden"),
        (["--quantize", "bitnet", "--max-new-tokens", "9"], "--quantization bitnet cannot quantize"),
    ):
        with pytest.raises(SophserveError) as caught:
            bench([*model, *arguments])
        assert words in str(caught.value)
    with pytest.raises(SophserveError, match="there is no directory"):
        bench(["--model", str(tmp_path / "absent")])


def test_options_that_do_not_parse(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        ([], "required: --model"),
        (["--model", "x", "--batch", "0"], "expected a number of at least 1, got '0'"),
        (["--model", "x", "--image-size", "8"], "expected WIDTHxHEIGHT in pixels, such as 672x336"),
        (["--model", "x", "--bach", "1"], "unknown option --bach; did you mean --batch?"),
    ):
        with pytest.raises(SystemExit):
            bench(arguments)
        assert words in capsys.readouterr().err
