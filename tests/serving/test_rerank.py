"""Scores are transformers' probabilities of yes against no, as the card of Qwen3-Reranker computes them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
import transformers

BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
BEHIND = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
QUERY = "Where do the dogs sleep?"
DOCUMENTS = ["In the barn.", "Dogs are animals. " * 20, "狗睡在谷仓里。", "", "Numbers: 1, 2, 3."]


@pytest.fixture(scope="module")
def directory(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of Qwen3-Reranker: a Qwen3 model, its tokenizer, and nothing that says what it is for."""
    data = (Path(__file__).parents[2] / "../shared/data/qwen2.5").resolve()
    if not data.is_dir():
        pytest.skip("the files of real checkpoints (../shared/data) are not here")
    made = make_checkpoint("qwen3", head_dim=16, vocab_size=151936, tie_word_embeddings=True)
    copy = tmp_path_factory.mktemp("reranker") / "model"
    shutil.copytree(made, copy)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(data / name, copy / name)
    return copy


def expected(directory: Path, pairs: list[tuple[str, str]], instruction: str = WEB_SEARCH) -> list[float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    scores = []
    for query, document in pairs:
        text = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        ids = [tokenizer.encode(part, add_special_tokens=False) for part in (BEFORE, text, BEHIND)]
        with torch.inference_mode():
            logits = model(torch.tensor([[*chain(*ids)]])).logits[0, -1]
        scores.append(logits[[no, yes]].softmax(0)[1].item())
    return scores


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 2])
def server(request: pytest.FixtureRequest, directory: Path, server_class: Callable[..., Any]) -> Iterator[Any]:
    ranks = ("--tensor-parallel-size", str(request.param))
    server = server_class("--model", str(directory), *ranks, "--max-num-batched-tokens", "64")
    server.wait_until_ready()
    yield server
    server.stop()


def test_scores_equal_transformers(directory: Path, server: Any) -> None:
    def post(path: str, **body: Any) -> Any:
        response = requests.post(server.url + path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    oracle = expected(directory, [(QUERY, document) for document in DOCUMENTS])
    assert max(oracle) - min(oracle) > 0.01
    answer = post("/v1/rerank", query=QUERY, documents=DOCUMENTS)
    ranked = answer["results"]
    assert [each["index"] for each in ranked] == sorted(range(len(oracle)), key=lambda index: -oracle[index])
    for each in ranked:
        assert each["relevance_score"] == pytest.approx(oracle[each["index"]], abs=1e-4)
        assert each["document"] == {"text": DOCUMENTS[each["index"]]}
    best = post(
        "/rerank", query=QUERY, documents=[{"text": text} for text in DOCUMENTS], top_n=2, return_documents=False
    )
    assert best["results"] == [{k: v for k, v in each.items() if k != "document"} for each in ranked[:2]]
    scored = post("/v1/score", text_1=QUERY, text_2=DOCUMENTS)
    assert [each["score"] for each in sorted(scored["data"], key=lambda each: each["index"])] == [
        each["relevance_score"] for each in sorted(ranked, key=lambda each: each["index"])
    ]
    assert scored["usage"] == answer["usage"]
    pair = post("/score", queries=["a", "b"], documents=["c", "d"], instruction="Find songs.")
    assert [each["score"] for each in pair["data"]] == pytest.approx(
        expected(directory, [("a", "c"), ("b", "d")], "Find songs."), abs=1e-4
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    fixed = sum(len(tokenizer.encode(part)) for part in (BEFORE, BEHIND))
    cut = post("/v1/score", text_1=QUERY, text_2=["word " * 5000], truncate_prompt_tokens=-1)
    assert cut["usage"]["total_tokens"] == 256 > fixed


def test_requests_that_cannot_be_scored(
    server: Any, make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    for path, body, words in (
        ("/v1/rerank", {"query": "q", "documents": []}, "documents is empty"),
        ("/v1/rerank", {"query": "q", "documents": ["word " * 500]}, "256"),
        ("/v1/rerank", {"query": "q", "documents": ["d"], "top_n": -1}, "top_n"),
        ("/v1/rerank", {"query": "q", "documents": ["d"], "truncate_prompt_tokens": 10}, "at least"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "2 queries for 3 documents"),
        ("/v1/score", {"text_1": "a"}, "either text_2 or documents"),
    ):
        response = requests.post(server.url + path, json=body)
        assert response.status_code == 400 and words in response.json()["error"]["message"], response.text
    other = start_server(make_checkpoint("qwen2"))
    response = requests.post(other.url + "/v1/rerank", json={"query": "q", "documents": ["d"]})
    assert response.status_code == 400 and "yes and no" in response.json()["error"]["message"]
