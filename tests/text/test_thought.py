"""A thought at the beginning of an answer, however the answer is cut into parts."""

from __future__ import annotations

import pytest

from sophserve.text.answer_events import AnswerParser, ParsedAnswer
from sophserve.text.reasoning import ReasoningParser
from sophserve.text.thought import ThoughtSplitter

# Whether the answer begins within the thought, the thought, what is said.
ANSWERS = [
    (False, "<think>\nHm.\n</think>\n\n", "Yes. </think>"),
    (False, " \n<think></think>", "Yes."),
    (False, "<think>never </thi", ""),
    (False, "<think>a</think> \n", ""),
    (False, "", " Yes <think>no</think>"),
    (False, "", "<thin"),
    (False, "", "  "),
    (False, "", ""),
    (True, "<think>Hm <</</think>", "Yes."),
    (True, "Hm.</think>\n\n", "STOP\n\n"),
    (True, "Hm.", ""),
]


@pytest.mark.parametrize(("inside", "thought", "said"), ANSWERS)
def test_every_cut_gives_the_same(inside: bool, thought: str, said: str) -> None:
    text = thought + said
    for size in range(1, len(text) + 2):
        splitter = ThoughtSplitter("<think>", "</think>", inside)
        parts = [splitter.push(text[start : start + size]) for start in range(0, len(text), size)]
        assert "".join(part for part, _ in parts) == thought
        assert "".join(part for _, part in parts) + splitter.finish() == said


@pytest.mark.parametrize(("inside", "thought", "said"), ANSWERS)
def test_bytes_are_split_as_texts_are(inside: bool, thought: str, said: str) -> None:
    splitter = ThoughtSplitter(b"<think>", b"</think>", inside)
    parts = [splitter.push(bytes([byte])) for byte in (thought + said).encode()]
    assert b"".join(part for part, _ in parts).decode() == thought


@pytest.mark.parametrize(("inside", "thought", "said"), ANSWERS)
def test_the_parser_of_reasoning_finds_the_same(inside: bool, thought: str, said: str) -> None:
    parser, answer = AnswerParser(ReasoningParser(inside), None), ParsedAnswer()
    answer.add([*parser.feed(thought + said), *parser.finish()])
    assert answer.content == said
    assert answer.reasoning == thought.strip().removeprefix("<think>").removesuffix("</think>").strip()


def test_reasoning_that_the_prompt_has_begun_goes_on_as_it_stands() -> None:
    for parts in ([" so <think> on\n</think>\n\nYes."], list(" so <think> on\n</think>\n\nYes.")):
        parser, answer = AnswerParser(ReasoningParser(True, begun=True), None), ParsedAnswer()
        for part in parts:
            answer.add(parser.feed(part))
        answer.add(parser.finish())
        assert (answer.reasoning, answer.content) == (" so <think> on", "Yes.")
