"""Calls of a history as chat templates take them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from sophserve.text.chat_template import ChatTemplate

USER = {"role": "user", "content": "Hello"}


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize("arguments", ["{", "[1]", '"text"', "no JSON", '{"a": NaN}', "[" * 9999, f"[{'9' * 200}]"])
def test_arguments_that_are_no_object(arguments: str) -> None:
    """vLLM#43995: they are shown as they are, or as an empty object to a template that only takes objects."""
    history = [USER, {"role": "assistant", "tool_calls": [call("f", arguments)]}]
    loop = "{% for m in messages %}{% for c in m.tool_calls %}CALL{% endfor %}{% endfor %}"
    for shown, expected in (
        ("{{ c.function.arguments }}", arguments),
        ("{{ '>' + c.function.arguments }}", f">{arguments}"),
        ("{{ c.function | tojson }}", json.dumps({"name": "f", "arguments": arguments})),
        ("{% for k, v in c.function.arguments.items() %}{{ k }}{% endfor %}.", "."),
        ("{% for k in c.function.arguments %}{{ k }}={{ c.function.arguments[k] }}{% endfor %}.", "."),
    ):
        assert ChatTemplate({"default": loop.replace("CALL", shown)}, {}).render(history) == expected
    assert ChatTemplate({"default": "{{ messages | length }}"}, {}).render(history) == "2"


def test_numbers_are_shown_as_they_are_written() -> None:
    """RFC 8259, section 6: Python's float has not all of them."""
    written = '{"a": 1e400, "b": [-0, 1.50, 1E5], "c": 0.1234567890123456789, "d": 2}'
    loop = "{% for m in messages %}{% for c in m.tool_calls %}CALL{% endfor %}{% endfor %}"
    history = [USER, {"role": "assistant", "tool_calls": [call("f", written)]}]
    for shown, expected in (
        ("{{ c.function.arguments | tojson }}", written),
        ("{{ '>' + c.function.arguments }}", f">{written}"),
        ("{{ c.function.arguments | tojson(indent=1) }}", json.dumps(json.loads(written), indent=1)),
        ("{{ c.function.arguments.a }} {{ c.function.arguments.a is number }}", "1e400 True"),
    ):
        for old, new in (("Infinity", "1e400"), ("-0", "-0"), ("1.5,", "1.50,"), ("100000.0", "1E5")):
            expected = expected.replace(old, new)
        expected = expected.replace("0.12345678901234568", "0.1234567890123456789").replace("\n  0,", "\n  -0,")
        assert ChatTemplate({"default": loop.replace("CALL", shown)}, {}).render(history) == expected


STRICT_IDS = """\
{% for m in messages %}{% if m.role == 'tool' %}({{ m.tool_call_id }}){% endif %}{% for c in m.tool_calls %}
{%- if c.id | length != 9 %}{{ raise_exception('Tool call IDs have length 9') }}{% endif %}
{{- c.id }} {% endfor %}{% endfor %}"""


def test_ids_that_the_template_takes() -> None:
    """langchain PR#24668: the same for a call and its result, different ones for different calls, and those that fit
    as they are."""
    template = ChatTemplate({"default": STRICT_IDS}, {})
    ids = ["call_1", "call_2", "abcdefghi", "toolu_01", "call_1"]
    calls = [call("f", "{}") | {"id": identity} for identity in ids]
    results = [{"role": "tool", "content": "", "tool_call_id": identity} for identity in reversed(ids)]
    history = [USER, {"role": "assistant", "tool_calls": calls}, *results]
    shown, _, answered = template.render(history).partition("(")
    new = shown.split()
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", identity) for identity in new) and len(set(new)) == 4
    assert new[0] == new[4] and new[2] == "abcdefghi"
    assert answered == ")(".join(reversed(new)) + ")"
    assert template.render(history[:2]).split() == new
    # An id that is there already is not given again.
    clash = [call("f", "{}") | {"id": identity} for identity in ("call_1", new[0])]
    first, second = template.render([USER, {"role": "assistant", "tool_calls": clash}]).split()
    assert second == new[0] != first
