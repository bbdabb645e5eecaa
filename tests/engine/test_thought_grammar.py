"""Grammars that hold behind a thought, over a vocabulary with tokens that reach over its marks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from sophserve.grammar.compiler import AnswerGrammar, GrammarCompiler
from sophserve.plugins import tool_parsers
from sophserve.sampling import StructuredOutput, Thought
from sophserve.text.tokenizer import Tokenizer
from sophserve.text.tool_grammar import ToolGrammar

END = 2
SCHEMA = {
    "type": "object",
    "properties": {"c": {"type": "integer"}, "d": {"type": "string"}},
    "required": ["c", "d"],
    "additionalProperties": False,
}
JSON = '{"c": 3, "d": "x"}'
CALL = '<tool_call>\n{"name": "f", "arguments": ' + JSON + "}\n</tool_call>"
OPENED, MAYBE = Thought("<think>", "</think>", inside=True), Thought("<think>", "</think>")


def added(directory: Path, *texts: str, special: bool = False) -> Tokenizer:
    """The tokenizer of a checkpoint with these tokens more."""
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    tokens = [AddedToken(text, normalized=False, special=special) for text in texts]
    backend.add_special_tokens(tokens) if special else backend.add_tokens(tokens)
    return Tokenizer(backend, {}, {})


@pytest.fixture(scope="module")
def directory(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("qwen2")


@pytest.fixture(scope="module")
def compiler(directory: Path) -> GrammarCompiler:
    """With a token that ends the mark and begins an object, one that ends it and says something else, and one that is
    longer than the mark."""
    tokenizer = added(directory, '>\n\n{"', ">.", "</think>{")
    return GrammarCompiler(tokenizer, tokenizer.vocab_size, [END])


def tools(directory: Path) -> ToolGrammar:
    tokenizer = Tokenizer.from_directory(directory)
    return ToolGrammar(tool_parsers()["hermes"].value, "", tokenizer, {"f": SCHEMA})


FORMS: list[tuple[str, Any, str]] = [
    ("json_schema", json.dumps(SCHEMA), JSON),
    ("json_object", "", JSON),
    ("regex", r'\{"c": \d, "d": "x"\}', JSON),
    ("choice", json.dumps([JSON, "no"]), JSON),
    ("lark", f"start: {json.dumps(JSON)}", JSON),
    ("lark", ToolGrammar.demanded, CALL),
    ("lark", ToolGrammar.free, f"Well.\n{CALL}"),
    ("lark", lambda writer, several: writer.or_json(several, SCHEMA), JSON),
    ("lark", lambda writer, several: writer.or_json(several, SCHEMA), CALL),
]


def allowed(mask: bytes) -> list[int]:
    number = int.from_bytes(mask, "little")
    return [index for index in range(len(mask) * 8) if number >> index & 1]


def refused(grammar: AnswerGrammar, ids: list[int]) -> list[int]:
    """What is left of an answer when it comes to a token that it may not go on with."""
    for count, token_id in enumerate([*ids, END]):
        if token_id not in allowed(grammar.mask(ids[:count])):
            return ids[count:] or [END]
    return []


@pytest.mark.parametrize(
    ("thought", "text"),
    [
        (OPENED, 'Thinking {"x": 9} hard</think>\n\n'),
        (OPENED, "Hm.</think>"),
        (MAYBE, "<think>\nLet me see.</think>\n\n"),
        (MAYBE, "<think></think>"),
        (MAYBE, ""),
        (Thought("[THINK]", "[/THINK]"), "[THINK]</think>[/THINK]\n"),
        (Thought("◁think▷", "◁/think▷"), "◁think▷é◁/think▷"),
    ],
)
@pytest.mark.parametrize(("kind", "value", "answer"), FORMS)
def test_a_form_holds_behind_the_thought(
    compiler: GrammarCompiler, directory: Path, kind: Any, value: Any, answer: str, thought: Thought, text: str
) -> None:
    """vLLM#47027: a model that thinks by itself may do so before every form of answer."""
    form = StructuredOutput(kind, value if isinstance(value, str) else value(tools(directory), True))
    tokenizer = Tokenizer.from_directory(directory)
    ids = tokenizer.encode(text + answer, add_special_tokens=False)
    assert not refused(AnswerGrammar(compiler, form, [END], thought), ids)
    # Nor does the answer escape its form, behind a thought or without one.
    wrong = tokenizer.encode(text + "<tool_call>\n{]", add_special_tokens=False)
    assert refused(AnswerGrammar(compiler, form, [END], thought), wrong)
    unclosed = tokenizer.encode("<think>Hm.", add_special_tokens=False)
    assert refused(AnswerGrammar(compiler, form, [END], MAYBE), unclosed) == [END]


@pytest.mark.parametrize("thought", [OPENED, MAYBE])
def test_a_token_that_ends_the_thought_and_begins_the_answer(compiler: GrammarCompiler, thought: Thought) -> None:
    """vLLM#48228: the rest of such a token is said already, so the grammar goes on behind it."""
    tokenizer = compiler.vocabulary._tokenizer
    opening = "" if thought.inside else "<think>"
    text = opening + 'Thinking {"x": 9} hard about JSON</think>\n\n' + JSON
    ids = tokenizer.encode(text, add_special_tokens=False)
    [token] = tokenizer.encode('>\n\n{"', add_special_tokens=False)
    assert token in ids
    for kind, value, answer in FORMS:
        if isinstance(value, str):
            grammar = AnswerGrammar(compiler, StructuredOutput(kind, value), [END], thought)
            assert answer == JSON and not refused(grammar, ids)


def test_tokens_whose_rest_does_not_fit_are_no_end_of_a_thought(compiler: GrammarCompiler) -> None:
    tokenizer = compiler.vocabulary._tokenizer
    [over, wrong, whole] = (
        tokenizer.encode(text, add_special_tokens=False)[0] for text in ('>\n\n{"', ">.", "</think>{")
    )
    [plain] = tokenizer.encode(">", add_special_tokens=False)
    begun = tokenizer.encode("Hm</think", add_special_tokens=False)
    for value, fitting in (("[a-z]+", set()), (r"\{a", {whole}), (r'\{"a', {over, whole}), (r"\..*", {wrong})):
        form = StructuredOutput("regex", value)
        at_mark = set(allowed(AnswerGrammar(compiler, form, [END], OPENED).mask(begun)))
        assert at_mark & {over, wrong, plain} == fitting - {whole} | {plain}
        before = set(allowed(AnswerGrammar(compiler, form, [END], OPENED).mask(begun[:1])))
        # Elsewhere they are no end of the mark.
        assert before & {over, wrong, whole} == {over, wrong} | fitting & {whole}


def test_what_begins_as_the_mark_and_as_the_answer(compiler: GrammarCompiler, directory: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory)
    form = StructuredOutput("choice", '["<this>", "no"]')
    for text in ("<this>", "no", "<think>hm</think><this>", "<think>hm</think>no"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert not refused(AnswerGrammar(compiler, form, [END], MAYBE), ids), text
    for text in ("<thin>", "<think>hm</think><think>", "\n\nno", "<think>hm</think>\n\n\n\n\n\nno"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert refused(AnswerGrammar(compiler, form, [END], MAYBE), ids), text


def test_marks_that_are_special_tokens(directory: Path) -> None:
    tokenizer = added(directory, "<think>", "</think>", special=True)
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, [END])
    opening, closing = tokenizer.special_id("<think>"), tokenizer.special_id("</think>")
    assert opening is not None and closing is not None
    said = tokenizer.encode("Hm.", add_special_tokens=False)
    answer = tokenizer.encode("fox", add_special_tokens=False)
    form = StructuredOutput("choice", '["fox"]')
    assert not refused(AnswerGrammar(compiler, form, [END], MAYBE), [opening, *said, closing, *answer])
    assert not refused(AnswerGrammar(compiler, form, [END], OPENED), [*said, closing, *answer])
    # Where there is no thought to come, its marks are no text.
    assert refused(AnswerGrammar(compiler, form, [END]), [opening]) == [opening]
