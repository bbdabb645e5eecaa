"""Inputs of batches line by line, and what is kept of their answers, without a server."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from sophserve.api.batches import lines
from sophserve.api.batches.lines import Line, LineReader, count_lines
from sophserve.api.batches.outputs import Outputs, Place
from sophserve.errors import ConfigError

CHAT = "/v1/chat/completions"


def good(custom_id: Any = "a", **changes: Any) -> bytes:
    line = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {"messages": []}} | changes
    return json.dumps({name: value for name, value in line.items() if value is not ...}).encode()


def read(path: Path, content: bytes) -> list[Line]:
    path.write_bytes(content)
    with path.open("rb") as file:
        reader = LineReader(file, [CHAT, "/v1/embeddings"])
        return list(iter(reader.next, None))


@pytest.mark.parametrize(
    ("line", "code", "words", "custom_id"),
    [
        (b"{", "invalid_json_line", "not JSON", None),
        (b"[1]", "invalid_json_line", "must be a JSON object", None),
        (b'{"custom_id": "\xff"}', "invalid_json_line", "not UTF-8: invalid start byte at byte 15", None),
        (b'{"custom_id": "\\ud800", "body": {}}', "invalid_json_line", "not JSON", None),
        (b'{"custom_id": "a", "x": ' + b"[" * 100_000, "invalid_json_line", "not JSON|nested", None),
        (b'{"x": ' + b"9" * 200 + b"}", "invalid_json_line", "number of more than 100 digits", None),
        (b'{"x": [' + b"0," * 600_000 + b"0]}", "invalid_json_line", "more than 524288 values", None),
        (good(...), "invalid_custom_id", "custom_id is missing", None),
        (good(7), "invalid_custom_id", "custom_id must be a text", None),
        (good(""), "invalid_custom_id", "1 to 512 characters, got 0", None),
        (good("x" * 513), "invalid_custom_id", "1 to 512 characters, got 513", None),
        (good("first"), "duplicate_custom_id", "give each line one of its own", None),
        (good(url=...), "invalid_url", "url is missing", "a"),
        (good(url="/v1/messages"), "invalid_url", f"must be {CHAT} or /v1/embeddings, got '/v1/messages'", "a"),
        (good(url="../../etc"), "invalid_url", "url must be", "a"),
        (good(method="GET"), "invalid_method", "must be POST, got 'GET'", "a"),
        (good(body=...), "invalid_body", "must be the JSON object", "a"),
        (good(body="x"), "invalid_body", "must be the JSON object", "a"),
        (b"\0\0\0", "invalid_json_line", "not JSON", None),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: bytes, code: str, words: str, custom_id: str | None) -> None:
    first, wrong, last = read(tmp_path / "in", good("first") + b"\n" + line + b"\n" + good("last"))
    assert (first.custom_id, last.custom_id, first.wrong, last.wrong) == ("first", "last", None, None)
    assert wrong.wrong and wrong.wrong.code == code and (wrong.number, wrong.custom_id) == (2, custom_id)
    assert any(each in wrong.wrong.message for each in words.split("|")), wrong.wrong.message


def test_blank_lines_carriage_returns_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + good("a") + b"\r\n\r\n  \n" + good("b") + b"\n\n" + good("c")
    found = read(tmp_path / "in", content)
    assert [(line.number, line.custom_id, line.wrong) for line in found] == [
        (1, "a", None),
        (4, "b", None),
        (6, "c", None),
    ]
    assert json.loads(found[0].body) == {"messages": []}
    assert count_lines(tmp_path / "in") == 3


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\t\r\n", b"x", b"x\n", b"x\n\ny", b"\n" * 50 + b"x" * 50 + b"\n"])
@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_lines_are_counted_as_they_are_read(
    tmp_path: Path, content: bytes, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_CHUNK", chunk)
    assert len(read(tmp_path / "in", content)) == count_lines(tmp_path / "in")


def test_a_line_without_end_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 1 << 20)
    with (tmp_path / "in").open("wb") as file:
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b"\n" + good("next") + b"\n")
    with (tmp_path / "in").open("rb") as file:
        reader = LineReader(file, [CHAT])
        tracemalloc.start()
        try:
            long, after = reader.next(), reader.next()
            count = count_lines(tmp_path / "in")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert long and long.wrong and long.wrong.code == "line_too_long" and "longer than 1 MiB" in long.wrong.message
    assert after == Line(2, "next", CHAT, b'{"messages": []}') and count == 2
    assert peak < 8 << 20


def test_a_line_of_the_greatest_length_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = good("a")
    monkeypatch.setattr(lines, "LONGEST_LINE", len(line))
    assert [found.wrong for found in read(tmp_path / "in", line + b"\n" + line[:-1] + b"!}")] != [None, None]
    [found] = read(tmp_path / "in", line + b"\n")
    assert found.wrong is None
    [found] = read(tmp_path / "in", line)
    assert found.wrong is None


REST = b'"response":{"status_code":200,"body":{"usage":{"prompt_tokens":3,"completion_tokens":2}}},"error":null'


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_an_answer_is_written_once_and_a_torn_one_is_dropped(tmp_path: Path) -> None:
    good_file, bad_file = tmp_path / "good", tmp_path / "bad"
    outputs = Outputs(good_file, bad_file)
    outputs.add(Place("b_1", 1, "eins"), True, REST)
    outputs.add(Place("b_3", 3, "drei"), False, b'"response":null,"error":{"code":"x","message":"y"}')
    outputs.add(Place("b_1", 1, "eins"), False, REST)
    outputs.close()
    with good_file.open("ab") as file:
        file.write(b'{"id":"b_2","custom_id":"zwei","respon')
    outputs = Outputs(good_file, bad_file)
    assert outputs.done == {1: hash("eins"), 3: hash("drei")}
    assert (outputs.completed, outputs.failed) == (1, 1)
    assert (outputs.usage.input_tokens, outputs.usage.output_tokens, outputs.usage.total_tokens) == (3, 2, 5)
    outputs.add(Place("b_2", 2, "zwei"), True, REST)
    outputs.close()
    assert [each["custom_id"] for each in answers(good_file)] == ["eins", "zwei"]
    assert [each["id"] for each in answers(bad_file)] == ["b_3"]


def test_a_full_disk_leaves_no_half_of_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = Outputs(tmp_path / "good", tmp_path / "bad")
    outputs.add(Place("b_1", 1, "a"), True, REST)
    write = os.write
    left = [20]

    def fill(descriptor: int, data: Any) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] = 0
        return write(descriptor, bytes(data[:20]))

    monkeypatch.setattr(os, "write", fill)
    with pytest.raises(OSError, match="No space left"):
        outputs.add(Place("b_2", 2, "b"), True, REST)
    monkeypatch.undo()
    outputs.add(Place("b_2", 2, "b"), True, REST)
    outputs.close()
    assert [each["id"] for each in answers(tmp_path / "good")] == ["b_1", "b_2"]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("my notes\nmore of them\n")
    with pytest.raises(ConfigError, match="holds something other than answers"):
        Outputs(tmp_path / "notes", tmp_path / "bad")
    assert (tmp_path / "notes").read_text() == "my notes\nmore of them\n"
    outputs = Outputs(tmp_path / "good", tmp_path / "bad")
    with pytest.raises(ConfigError, match="another process writes"):
        Outputs(tmp_path / "good", tmp_path / "bad")
    outputs.close()
    Outputs(tmp_path / "good", tmp_path / "bad").close()
