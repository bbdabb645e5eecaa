"""What is counted in a JSON text before it is decoded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sophserve import json_size
from sophserve.json_size import JsonTooLarge, check_json

TREES = st.recursive(
    st.integers(0, 9) | st.text('a"\\,[{é中\n', max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('k"\\:[', max_size=4), inner, max_size=3),
)


def parts(value: Any) -> int:
    """Texts, names among them, arrays and objects."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(parts, value.values()))
    return 1 + sum(map(parts, value)) if isinstance(value, list) else int(isinstance(value, str))


@settings(max_examples=500, deadline=None)
@given(tree=TREES, size=st.integers(2, 9), ascii_only=st.booleans())
def test_parts_are_counted_wherever_slices_end(tree: Any, size: int, ascii_only: bool) -> None:
    data, count = json.dumps(tree, ensure_ascii=ascii_only).encode(), parts(tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_size, "_SLICE", size)
        patch.setattr(json_size, "MOST_PARTS", count)
        check_json(data)
        if count:
            patch.setattr(json_size, "MOST_PARTS", count - 1)
            with pytest.raises(JsonTooLarge, match="texts, arrays and objects"):
                check_json(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" + b"1," * json_size.MOST_VALUES + b"1, 1]", "values"),
        (b'"' + b"\\n" * (json_size.MOST_ESCAPES + 1) + b'"', "escapes"),
        (b"[" + b"7" * 100 + b"]", "100 digits"),
        ('"' + "中" * (1 << 22) + 'a中"', "beyond ASCII"),
    ],
)
def test_what_takes_too_long_to_decode(data: bytes | str, words: str) -> None:
    with pytest.raises(JsonTooLarge, match=words):
        check_json(data.encode() if isinstance(data, str) else data)


def test_what_must_be_taken() -> None:
    check_json(json.dumps({"prompt": list(range(131_072))}).encode())
    check_json(json.dumps({"input": ["a" * 1000] * 2048}).encode())
    check_json(json.dumps({"image": "A" * 20_000_000}).encode())
    check_json(json.dumps({"text": "中" * 500_000}).encode())


def test_the_place_of_a_byte_that_is_not_utf8() -> None:
    with pytest.raises(UnicodeDecodeError) as caught:
        check_json(b'"' + "é".encode() * 200_000 + b'\xff"')
    assert caught.value.start == 400_001
