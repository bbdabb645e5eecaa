"""lm-evaluation-harness measures the same over HTTP as with the model in its own process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def directory(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with the tokenizer of Qwen2.5, which transformers has a class for."""
    data = (Path(__file__).parents[3] / "../shared/data/qwen2.5").resolve()
    if not data.is_dir():
        pytest.skip("the files of real checkpoints (../shared/data) are not here")
    copy = Path(shutil.copytree(make_checkpoint("qwen2", vocab_size=151936), tmp_path_factory.mktemp("m") / "model"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(data / name, copy / name)
    return copy


def tasks(folder: Path) -> list[dict[str, Any]]:
    """A choice among continuations, and a continuation."""
    rows = [
        {"question": f"The quick brown fox number {n}", "choices": [" jumps over", " sleeps", f" {n}"], "answer": n % 3}
        for n in range(8)
    ]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}}}
    common = {**data, "test_split": "test", "doc_to_text": "{{question}}", "target_delimiter": ""}
    choice = {"task": "choice", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}"}
    until = {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False, "temperature": 0}
    text = {"task": "text", "output_type": "generate_until", "doc_to_target": "x", "generation_kwargs": until}
    return [
        {**common, **choice, "doc_to_target": "{{answer}}", "metric_list": [{"metric": "acc"}]},
        {**common, **text, "metric_list": [{"metric": "exact_match"}]},
    ]


def evaluated(model: str, arguments: str, tasks: list[dict[str, Any]], **options: Any) -> dict[str, list[Any]]:
    """What the model says, a task a list, in the order of the data."""
    import lm_eval

    found = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=tasks, log_samples=True, bootstrap_iters=0, **options
    )
    ordered = {task: sorted(rows, key=lambda row: row["doc_id"]) for task, rows in found["samples"].items()}
    return {task: [row["resps"] for row in rows] for task, rows in ordered.items()}


def test_the_same_numbers(
    directory: Path, start_server: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    choice, text = tasks(tmp_path)
    server = start_server(directory)
    local: dict[str, Any] = {"device": "cpu", "batch_size": 1}
    own = f"pretrained={directory},dtype=float32"
    oracle = evaluated("hf", own, [choice, text], **local)
    for ids in (True, False):
        arguments = f"model=tiny,base_url={server.url}/v1/completions,tokenizer={directory},tokenized_requests={ids}"
        ours = evaluated("local-completions", f"{arguments},num_concurrent=4", [choice, text])
        assert ours["text"] == oracle["text"]
        for expected, got in zip(oracle["choice"], ours["choice"], strict=True):
            assert [greedy for [(_, greedy)] in got] == [greedy for [(_, greedy)] in expected]
            assert [value for [(value, _)] in got] == pytest.approx([value for [(value, _)] in expected], abs=1e-4)
    chat = f"model=tiny,base_url={server.url}/v1/chat/completions,num_concurrent=4"
    ours = evaluated("local-chat-completions", chat, [text], apply_chat_template=True)
    assert ours == evaluated("hf", own, [text], apply_chat_template=True, **local)
