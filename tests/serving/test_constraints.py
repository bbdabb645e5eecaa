"""Constraints that exclude each other: an error that names them, never an answer that keeps to one of them only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openai import APIError, BadRequestError, OpenAI

from sophserve.grammar.number_bound import MOST_DIGITS
from sophserve.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("qwen2", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def client(model: Path, server_class: Any) -> Iterator[OpenAI]:
    server = server_class("--model", str(model))
    server.wait_until_ready()
    yield server.client()
    assert server.stop() == 0


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.from_directory(model)


def ask(client: OpenAI, stream: bool = False, chat: bool = True, **fields: Any) -> str:
    options: dict[str, Any] = {"model": "tiny", "max_tokens": 40, "temperature": 1, "extra_body": fields}
    if not chat:
        return client.completions.create(prompt="Hi", **options).choices[0].text
    options["messages"] = [{"role": "user", "content": "Hi"}]
    if stream:
        chunks = client.chat.completions.create(stream=True, **options)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return client.chat.completions.create(**options).choices[0].message.content or ""


CHOICE = {"structured_outputs": {"choice": ["yes", "no"]}}
FORMS: list[tuple[dict[str, Any], str]] = [
    (CHOICE, "choice"),
    ({"structured_outputs": {"regex": "yes|no"}}, "regex"),
    ({"guided_grammar": 'start: "yes" | "no"'}, "lark"),
    ({"response_format": {"type": "json_object"}}, "json_object"),
    ({"guided_json": {"type": "integer"}}, "json_schema"),
]


def test_a_form_and_other_parameters(client: OpenAI, tokenizer: Tokenizer) -> None:
    words = tokenizer.encode("q", add_special_tokens=False)
    for form, kind in FORMS:
        for stream, chat in ((False, True), (True, True), (False, False)):
            with pytest.raises(APIError) as caught:
                ask(client, stream, chat, **form, allowed_token_ids=words)
            assert kind in str(caught.value) and "allowed_token_ids" in str(caught.value)
            assert isinstance(caught.value, BadRequestError)
    spelled = ["yes", "no", "y", "n", "ye", "o", "s", "es", "e"]
    with pytest.raises(BadRequestError, match=r"\(choice\) and bad_words exclude each other"):
        ask(client, **CHOICE, bad_words=spelled)
    with pytest.raises(BadRequestError, match=r"\(choice\) and min_tokens exclude each other"):
        ask(client, **CHOICE, min_tokens=20)


def test_parameters_without_a_form(client: OpenAI, tokenizer: Tokenizer) -> None:
    [token] = tokenizer.encode("q", add_special_tokens=False)
    for chat in (False, True):
        with pytest.raises(BadRequestError, match="allowed_token_ids and bad_words exclude each other"):
            ask(client, chat=chat, allowed_token_ids=[token], bad_words=["q"])
    with pytest.raises(BadRequestError, match="allowed_token_ids and min_tokens exclude each other"):
        ask(client, allowed_token_ids=[tokenizer.eos_id], min_tokens=2)


def test_what_does_not_exclude_each_other(client: OpenAI, tokenizer: Tokenizer) -> None:
    """A form that is complete ends the answer, whatever the end token is to other parameters."""
    letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "yesno"]
    assert ask(client, **CHOICE, allowed_token_ids=letters) in ("yes", "no")
    assert ask(client, **CHOICE, ignore_eos=True) in ("yes", "no")
    assert ask(client, **CHOICE, bad_words=["yes", "ye", "y"]) == "no"
    assert set(ask(client, allowed_token_ids=letters, bad_words=["y"], max_tokens=9)) <= set("esno")


def test_a_schema_whose_patterns_meet_its_members(client: OpenAI) -> None:
    """From llguidance#265: a third of these ended in an error in mid-answer."""
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    schema |= {"additionalProperties": False, "patternProperties": {"^a$": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    for seed in range(20):
        jsonschema.validate(json.loads(ask(client, seed % 2 == 0, response_format=form, seed=seed)), schema)


def test_numbers_end(client: OpenAI, tokenizer: Tokenizer) -> None:
    """From vLLM#52011, with a model that likes digits."""
    bias = {str(tokenizer.encode(digit, add_special_tokens=False)[0]): 60.0 for digit in "0123456789"}
    form = {"structured_outputs": {"json": {"type": "number"}}, "logit_bias": bias}
    for seed in range(4):
        answer = client.completions.create(model="tiny", prompt="Hi", max_tokens=200, seed=seed, extra_body=form)
        [choice] = answer.choices
        assert choice.finish_reason == "stop" and len(choice.text) >= MOST_DIGITS
        assert isinstance(json.loads(choice.text), int | float)
