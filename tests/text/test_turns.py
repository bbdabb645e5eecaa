"""Roles, orders of turns and forms of content that chat templates do not take are changed to those that they do."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sophserve.errors import RequestError
from sophserve.text.chat_template import ChatTemplate
from sophserve.text.tokenizer import Tokenizer

# As Mistral's: one system at the beginning, then user and assistant in turn, apart from calls and results.
STRICT = """\
{%- if messages[0].role == 'system' %}{% set system = messages[0].content ~ '|' %}{% set rest = messages[1:] %}
{%- else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{%- set ns = namespace(index=0) %}
{%- for m in rest %}
    {%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
        {%- if (m.role == 'user') != (ns.index % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
    {%- if m.role == 'user' %}{{ '[U]' ~ (system if loop.first else '') ~ m.content }}
    {%- elif m.role == 'tool' %}
        {%- if m.tool_call_id | length != 9 %}{{ raise_exception('nine characters') }}{% endif %}{{ '[R]' ~ m.content }}
    {%- elif m.tool_calls %}{{ '[C]' ~ (m.tool_calls | map(attribute='function') | list | tojson) }}
    {%- elif m.role == 'assistant' %}{{ '[A]' ~ m.content | trim }}
    {%- else %}{{ raise_exception('only user, assistant and tool') }}{% endif %}
{%- endfor %}"""
# As Devstral's: an answer without text is refused as well.
STRICTER = STRICT.replace(
    "{%- elif m.role == 'assistant' %}",
    "{%- elif m.role == 'assistant' and not m.content %}{{ raise_exception('no content') }}"
    "{%- elif m.role == 'assistant' %}",
)
# As Gemma 3's: neither system nor tool has a place of its own; of a list only the first part's text, for the system.
GEMMA = """\
{%- if messages[0].role == 'system' %}
    {%- set system = (messages[0].content if messages[0].content is string else messages[0].content[0].text) ~ '|' %}
    {%- set rest = messages[1:] %}
{%- else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{%- for m in rest %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {{- '<' ~ m.role ~ '>' ~ (system if loop.first else '') }}
    {%- if m.content is string %}{{ m.content | trim }}
    {%- else %}{% for part in m.content if part.type == 'text' %}{{ part.text | trim }}{% endfor %}{% endif %}
{%- endfor %}"""
# As Gemma 2's and Mistral 7B's first ones: no system at all.
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + GEMMA
# As the one of DeepSeek V3: of several systems only the last one is printed.
LAST_SYSTEM = """\
{%- set ns = namespace(system='') %}
{%- for m in messages if m.role == 'system' %}{% set ns.system = m.content %}{% endfor %}{{ ns.system }}
{%- for m in messages %}
    {%- if m.role != 'system' %}{{ '<' ~ m.role ~ '>' ~ m.content }}{% endif %}
    {%- if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}
{%- endfor %}"""
# As Llama 3.1's: one call in a message.
ONE_CALL = """\
{%- for m in messages %}
    {%- if m.tool_calls %}
        {%- if m.tool_calls | length != 1 %}{{ raise_exception('only single tool-calls') }}{% endif %}
        {{- '<call>' ~ m.tool_calls[0].function | tojson }}
    {%- elif m.role == 'tool' %}{{ '<tool>' ~ m.content | tojson }}
    {%- else %}{{ '<' ~ m.role ~ '>' ~ m.content }}{% endif %}
{%- endfor %}"""
TEMPLATES = {
    "strict": STRICT,
    "stricter": STRICTER,
    "gemma": GEMMA,
    "no system": NO_SYSTEM,
    "last system": LAST_SYSTEM,
    "one call": ONE_CALL,
}


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {})


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def calls(*names: str) -> dict[str, Any]:
    called = [
        {"id": f"{name:c>9}", "type": "function", "function": {"name": name, "arguments": '{"a": 1}'}} for name in names
    ]
    return turn("assistant", None, tool_calls=called)


def result(name: str, content: Any) -> dict[str, Any]:
    return turn("tool", content, tool_call_id=f"{name:c>9}")


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


# --- roles ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ChatTemplate]:
    """The template of a real checkpoint by its name."""

    def load(name: str) -> ChatTemplate:
        directory = tmp_path_factory.mktemp("real")
        (directory / "tokenizer.json").symlink_to(shared_data / "qwen2.5" / "tokenizer.json")
        for file in ("tokenizer_config.json", "chat_template.json"):
            if (shared_data / name / file).exists():
                (directory / file).symlink_to(shared_data / name / file)
        return ChatTemplate.from_directory(directory, Tokenizer.from_directory(directory))

    return load


@pytest.mark.parametrize("name", ["qwen2.5", "qwq-32b", "qwen2.5-vl"])
def test_developers_are_heard_by_real_templates(real: Callable[[str], ChatTemplate], name: str) -> None:
    """llama.cpp PR#20215, SGLang#40082."""
    found = real(name)
    said = [turn("developer", "Say BANANA."), turn("user", "hi")]
    assert found.render(said) == found.render([turn("system", "Say BANANA."), turn("user", "hi")])
    assert "BANANA" in found.render(said) and "You are" not in found.render(said)


def test_developers_have_their_role_where_the_template_knows_it() -> None:
    named = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    said = [turn("developer", "d"), turn("user", "u")]
    assert template(named).render(said) == "<system>d<user>u"
    assert template(named + "{# 'developer' #}").render(said) == "<developer>d<user>u"


def test_roles_that_a_template_leaves_out_are_refused() -> None:
    silent = "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.content }}{% endfor %}"
    with pytest.raises(RequestError, match=r"messages\[1\]\.role: the chat template leaves out what the role 'critic'"):
        template(silent).render([turn("user", "u"), turn("critic", "c")])
    loud = (
        "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no ' ~ m.role) }}{% endif %}{% endfor %}"
    )
    with pytest.raises(RequestError, match="refused the messages: no critic"):
        template(loud).render([turn("user", "u"), turn("critic", "c")])
    any_role = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert template(any_role).render([turn("user", "u"), turn("critic", "c")]) == "<user>u<critic>c"
    with pytest.raises(RequestError, match=r"messages\[0\]\.role: is missing"):
        template(any_role).render([{"content": "u"}])


@pytest.mark.parametrize("name", ["qwen2.5", "qwq-32b"])
def test_older_fields_mean_what_the_newer_ones_do(real: Callable[[str], ChatTemplate], name: str) -> None:
    """OpenAI's schema has them still: function_call, the role function, refusal, calls of custom tools."""
    found = real(name)
    newer = found.render([turn("user", "q"), calls("f"), result("f", "42"), turn("assistant", "no"), turn("user", "u")])
    function = {"name": "f", "arguments": '{"a": 1}'}
    older = [
        turn("user", "q"),
        turn("assistant", None, function_call=function),
        turn("function", "42", name="f"),
        turn("assistant", None, refusal="no"),
        turn("user", "u"),
    ]
    assert found.render(older) == newer and '"f"' in newer and "42" in newer
    custom = {"id": "c", "type": "custom", "custom": {"name": "patch", "input": '*** "Begin"'}}
    told = found.render([turn("user", "q"), turn("assistant", None, tool_calls=[custom]), result("c", "ok")])
    assert '{"name": "patch", "arguments": {"input": "*** \\"Begin\\""}}' in told


def test_ids_of_older_calls_fit_strict_templates() -> None:
    older = [
        turn("user", "q"),
        turn("assistant", None, function_call={"name": "f", "arguments": "{}"}),
        turn("function", "42", name="f"),
        turn("function", "43", name="unknown"),
    ]
    assert template(STRICT).render(older).endswith("[R]42[R]43")


# --- orders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([turn("user", "hi"), turn("user", "again")], "[U]hi\n\nagain"),
        ([turn("system", "s"), turn("system", "t"), turn("user", "c")], "[U]s\n\nt|c"),
        ([turn("developer", "s"), turn("system", "t"), turn("user", "c")], "[U]s\n\nt|c"),
        ([turn("user", "a"), turn("assistant", "b"), turn("assistant", "c"), turn("user", "d")], "[U]a[A]b\n\nc[U]d"),
        ([turn("user", "a"), turn("assistant", "b"), turn("system", "s"), turn("user", "c")], "[U]a[A]b[U]s\n\nc"),
        ([turn("user", "a"), turn("system", "s"), turn("assistant", "b")], "[U]a\n\ns[A]b"),
        ([turn("system", "s")], "[U]s"),
        ([turn("assistant", "a"), turn("user", "b")], "[U][A]a[U]b"),
        ([turn("user", parts("a", "b")), turn("user", "c")], "[U]a\nb\n\nc"),
        ([turn("user", "a"), turn("assistant", ""), turn("user", "b")], "[U]a[A][U]b"),
    ],
)
def test_orders_that_strict_templates_refuse(messages: list[Any], expected: str) -> None:
    """vLLM#6862, vLLM#44000, llama.cpp#27367; Anthropic's documentation: consecutive turns are combined."""
    assert template(STRICT).render(messages) == expected


def test_what_the_user_says_beside_results() -> None:
    """Claude Code sends texts with the results of tools."""
    said = [turn("user", "a"), calls("f"), result("f", "1"), turn("user", "b"), turn("user", "c")]
    called = '[C][{"name": "f", "arguments": {"a": 1}}]'
    assert template(STRICT).render(said) == f"[U]a{called}[R]1[A][U]b\n\nc"
    assert template(STRICTER).render(said) == f"[U]a{called}[R]1\n\nb\n\nc"
    answered = [*said[:3], turn("assistant", "b"), turn("user", "c")]
    assert template(STRICT).render(answered) == f"[U]a{called}[R]1[A]b[U]c"


def test_calls_one_at_a_time() -> None:
    said = [turn("user", "a"), calls("f", "g"), result("g", "2"), result("f", "1"), turn("user", "b")]
    f, g = ('{"name": "%s", "arguments": {"a": 1}}' % name for name in "fg")  # noqa: UP031
    assert template(ONE_CALL).render(said) == f'<user>a<call>{f}<tool>"1"<call>{g}<tool>"2"<user>b'
    lost = [turn("user", "a"), calls("f", "g"), result("h", "3")]
    assert template(ONE_CALL).render(lost) == f'<user>a<call>{f}<call>{g}<tool>"3"'


def test_histories_of_tools_where_the_template_knows_none() -> None:
    said = [turn("user", "a"), calls("f", "g"), result("f", "1"), result("g", "2"), turn("user", "b")]
    f, g = ('{"name": "%s", "arguments": {"a": 1}}' % name for name in "fg")  # noqa: UP031
    assert template(GEMMA).render(said) == f"<user>a<assistant>{f}\n{g}<user>1\n\n2\n\nb"


def test_thoughts_are_merged_with_their_turns() -> None:
    source = STRICT.replace("'[A]'", "'[A]' ~ (m.reasoning_content or '') ~ '/'")
    said = [turn("user", "a"), turn("assistant", "b", reasoning="x"), turn("assistant", "c", thinking="y")]
    assert template(source).render(said) == "[U]a[A]x\n\ny/b\n\nc"


def test_orders_that_are_taken_are_left(real: Callable[[str], ChatTemplate]) -> None:
    said = [turn("system", "s"), turn("system", "t"), turn("user", "a"), turn("user", "b"), turn("system", "c")]
    assert real("qwen2.5").render(said, add_generation_prompt=False) == "".join(
        f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in said
    )


def conversations() -> list[list[dict[str, Any]]]:
    """Random ones, each message with words of its own, calls followed by their results."""
    randomness = random.Random(7)
    made = []
    for _ in range(150):
        messages: list[dict[str, Any]] = []
        for number in range(randomness.randint(1, 7)):
            role = randomness.choice(["system", "developer", "user", "user", "assistant", "assistant", "call"])
            word = f"word{number}"
            if role == "call":
                names = [f"f{number}x", f"f{number}y"][: randomness.randint(1, 2)]
                messages += [calls(*names), *(result(name, f"of {name};") for name in names)]
            else:
                content = randomness.choice([word, parts(word, f"{word}b")])
                messages.append(turn(role, content))
        made.append(messages)
    return made


def words_of(messages: list[dict[str, Any]]) -> list[str]:
    return re.findall(r"(?:of )?\b(?:word|f)\d[bxy]?\b", json.dumps(messages))


@pytest.mark.parametrize("name", TEMPLATES)
def test_nothing_is_refused_or_lost_in_any_order(name: str) -> None:
    found = template(TEMPLATES[name])
    for messages in conversations():
        prompt = found.render(messages)
        lost = [word for word in words_of(messages) if word not in prompt]
        # The strict ones have no place for a text beside calls.
        told = found.rendered(messages).left_out == ["messages.content beside tool_calls"]
        assert not lost or (told and STRICT[:40] in TEMPLATES[name]), (messages, prompt)
        assert "'text'" not in prompt


@pytest.mark.parametrize("name", ["qwen2.5", "qwq-32b"])
def test_real_templates_lose_nothing(real: Callable[[str], ChatTemplate], name: str) -> None:
    found = real(name)
    for messages in conversations():
        prompt = found.render(messages)
        assert not [word for word in words_of(messages) if word not in prompt], (messages, prompt)
        assert "'text'" not in prompt and "developer" not in prompt


def test_many_turns_take_no_longer_for_each() -> None:
    """What is merged is merged at once: pairwise, this would copy a gigabyte."""
    said = [turn("user", "x" * 1000)] * 20_000
    assert len(template(STRICT).render(said)) == len("[U]") + 20_000 * 1002 - 2


# --- content ----------------------------------------------------------------------------------------------------------

TOOL_AS_IT_IS = """\
{%- for m in messages %}
    {%- if m.role == 'tool' %}<tool_response>{{ '\\n' ~ m.content ~ '\\n' }}</tool_response>
    {%- elif m.content is string %}{{ m.content }}
    {%- else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}
{%- endfor %}"""
ONLY_PARTS = "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
FIRST_PART = "{% for m in messages %}<{{ m.role }}>{{ m.content[0]['text'] }}{% endfor %}"
ADDS = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"


def test_parts_of_a_result_where_only_others_may_have_some() -> None:
    """vLLM PR#39899, #39614, PR#54987."""
    said = [turn("user", parts("a", "b")), calls("f"), result("f", parts("CCC", "DDD"))]
    assert template(TOOL_AS_IT_IS).render(said) == "ab<tool_response>\nCCCDDD\n</tool_response>"
    assert template(TOOL_AS_IT_IS).render([*said[:2], result("f", "C")]).endswith("\nC\n</tool_response>")


def test_texts_where_the_template_takes_only_parts() -> None:
    """vLLM#9294: Llama Guard 3 1B."""
    found = template(ONLY_PARTS)
    assert found.render([turn("user", "What is the capital of France?")]) == "<user>What is the capital of France?"
    said = [turn("system", "s"), turn("user", "u"), turn("assistant", "a"), turn("user", parts("b", "c"))]
    assert found.render(said) == "<system>s<user>u<assistant>a<user>bc"


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_every_role_keeps_all_its_parts(role: str) -> None:
    """As a text, one part and two, whatever a template takes."""
    before = [turn("user", "u"), calls("f")] if role == "tool" else [turn("user", "u")] * (role == "assistant")
    joined = "xy" if role == "tool" else "x\ny"
    for source, two in (
        (ONLY_PARTS, "xy"),
        (FIRST_PART, joined),
        (ADDS, joined),
        (TOOL_AS_IT_IS, "xy"),
        (ONLY_PARTS.replace("p.text", "p.text | tojson"), '"x""y"'),
        (ADDS.replace("+ m.content", "~ m.content | tojson"), json.dumps(joined)),
    ):
        found = template(source)
        one = found.render([*before, turn(role, "x")])
        assert one == found.render([*before, turn(role, parts("x"))]) and "x" in one
        assert two in found.render([*before, turn(role, parts("x", "y"))]), source


def test_the_system_of_gemma_keeps_its_second_part() -> None:
    said = [turn("system", parts("s", "t")), turn("user", parts("a", "b"))]
    assert template(GEMMA).render(said) == "<user>s\nt|ab"


def test_pictures_are_refused_where_only_texts_are_taken() -> None:
    picture = [*parts("a"), {"type": "image"}]
    for source in (ADDS, FIRST_PART):
        with pytest.raises(RequestError, match=r"messages\[0\]\.content has a part of type image"):
            template(source).render([turn("user", picture)])
    with pytest.raises(RequestError, match=r"messages\[2\]\.content has a part of type image"):
        template(TOOL_AS_IT_IS).render([turn("user", picture), calls("f"), result("f", picture)])


# --- what a template has no place for ---------------------------------------------------------------------------------


def test_fields_that_are_left_out_are_named(real: Callable[[str], ChatTemplate]) -> None:
    said = [turn("user", "a", name="Ann"), calls("f"), turn("tool", "1", name="f")]
    assert real("qwen2.5").rendered(said).left_out == ["messages.name"]
    assert real("qwen2.5-vl").rendered(said).left_out == ["messages.name", "messages.tool_calls"]
    assert real("qwen2.5").rendered(said[1:]).left_out == []
    assert (
        template("{% for m in messages %}{{ m.name }}: {{ m.content }}{% endfor %}").rendered(said[:1]).left_out == []
    )
    assert template(GEMMA).rendered(said[1:]).left_out == []
    beside = [turn("user", "a"), calls("f") | {"content": "Let me look."}, result("f", "1")]
    assert real("qwen2.5").rendered(beside).left_out == [] and "Let me look." in real("qwen2.5").render(beside)
    assert template(STRICT).rendered(beside).left_out == ["messages.content beside tool_calls"]


# --- an answer that is continued --------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "  \n", parts("")])
def test_nothing_is_cut_off_where_nothing_is_said_yet(content: Any) -> None:
    source = """\
{%- for m in messages %}{{ '<' + m.role + '>\\n\\n' + m.content | trim + '<end>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant>\\n\\n' }}{% endif %}"""
    said = [turn("user", "q"), turn("assistant", content)]
    prompt = template(source).render(said, add_generation_prompt=False, continue_final_message=True)
    assert prompt == template(source).render(said[:1]) == "<user>\n\nq<end><assistant>\n\n"
