"""Chat templates against transformers' apply_chat_template, character for character."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sophserve.errors import CheckpointError, ConfigError, RequestError
from sophserve.text.chat_template import ChatTemplate
from sophserve.text.tokenizer import Tokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Wetter für eine Stadt: <b>heute</b> & morgen, 天气",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Köln", "北京"]}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


def call(name: str, arguments: str, number: int = 1) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "You are a pirate.\nBe brief."}
USER = {"role": "user", "content": "Hello <|im_end|> & <b>you</b>, 你好! 🙂"}
ANSWER = {"role": "assistant", "content": "Arr.\n"}
CALLS = {
    "role": "assistant",
    "content": "Let me look.",
    "tool_calls": [call("get_weather", '{"days": 2, "city": "K\\u00f6ln", "x": [1.0, null]}'), call("now", "", 2)],
}
RESULTS = [
    {"role": "tool", "tool_call_id": "call_1", "content": '{"sunny": true}'},
    {"role": "tool", "tool_call_id": "call_2", "content": "12:00"},
]
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIndeed.", "reasoning_content": "hm"}

CONVERSATIONS = {
    "user": ([USER], None),
    "system": ([SYSTEM, USER], None),
    "turns": ([SYSTEM, USER, ANSWER, USER, THOUGHT, USER], None),
    "tools": ([USER], [WEATHER, TIME]),
    "system and tools": ([SYSTEM, USER], [WEATHER]),
    "results": ([SYSTEM, USER, CALLS, *RESULTS], [WEATHER, TIME]),
    "after results": ([USER, CALLS, *RESULTS, ANSWER, USER], [WEATHER]),
    "one result": ([USER, CALLS | {"content": ""}, RESULTS[0], USER], [WEATHER]),
    "late system": ([USER, ANSWER, SYSTEM, USER], None),
    "whitespace": ([USER | {"content": "  \n spaced \n "}, ANSWER | {"content": "\n\n"}, USER], None),
}


def parsed(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as one gives them to transformers: arguments as objects."""
    messages = [copy.deepcopy(message) for message in messages]
    for message in messages:
        for tool_call in message.get("tool_calls", ()):
            function = tool_call["function"]
            function["arguments"] = json.loads(function["arguments"] or "{}")
    return messages


class Pair:
    """Our template and transformers' tokenizer from the same directory."""

    def __init__(self, directory: Path) -> None:
        self.ours = ChatTemplate.from_directory(directory, Tokenizer.from_directory(directory))
        self._theirs = AutoTokenizer.from_pretrained(directory)

    def theirs(self, messages: list[dict[str, Any]], **options: Any) -> str:
        return self._theirs.apply_chat_template(parsed(messages), tokenize=False, **options)

    def assert_equal(self, messages: list[dict[str, Any]], **options: Any) -> str:
        before = copy.deepcopy(messages)
        text = self.ours.render(messages, **options)
        assert text == self.theirs(messages, **options)
        assert messages == before
        return text


@pytest.fixture(scope="module")
def pair_of() -> Callable[[Path], Pair]:
    pairs: dict[Path, Pair] = {}

    def get(directory: Path) -> Pair:
        if directory not in pairs:
            pairs[directory] = Pair(directory)
        return pairs[directory]

    return get


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_real_templates(qwen_directory: Path, pair_of: Callable[[Path], Pair], name: str) -> None:
    messages, tools = CONVERSATIONS[name]
    pair = pair_of(qwen_directory)
    prompt = pair.assert_equal(messages, tools=tools, add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n" if "qwq" in qwen_directory.name else "assistant\n")
    closed = pair.assert_equal(messages, tools=tools, add_generation_prompt=False)
    assert closed != prompt
    if messages[-1]["role"] in ("user", "assistant"):
        open_end = pair.assert_equal(messages, tools=tools, add_generation_prompt=False, continue_final_message=True)
        assert open_end.endswith(messages[-1]["content"])


def test_real_templates_continue_an_answer(qwen_directory: Path, pair_of: Callable[[Path], Pair]) -> None:
    pair = pair_of(qwen_directory)
    for content in ("Arr", "Arr ", "Arr.\n\n", ""):
        messages = [USER, ANSWER | {"content": content}]
        text = pair.assert_equal(messages, add_generation_prompt=False, continue_final_message=True)
        assert text.endswith("<|im_start|>assistant\n" + content)


def test_qwq_refuses_to_continue_what_it_leaves_out(qwen_directory: Path, pair_of: Callable[[Path], Pair]) -> None:
    pair, options = pair_of(qwen_directory), {"add_generation_prompt": False, "continue_final_message": True}
    if "qwq" in qwen_directory.name:  # it drops what stands before </think>
        with pytest.raises(RequestError, match="does not print the last message"):
            pair.ours.render([USER, THOUGHT], **options)
    else:
        pair.assert_equal([USER, THOUGHT], **options)


def test_content_null_and_missing(qwen_directory: Path, pair_of: Callable[[Path], Pair]) -> None:
    pair = pair_of(qwen_directory)
    expected = pair.theirs([USER, CALLS | {"content": ""}, *RESULTS])
    missing = {key: value for key, value in CALLS.items() if key != "content"}
    for message in (missing, CALLS | {"content": None, "refusal": None, "function_call": None}):
        assert pair.ours.render([USER, message, *RESULTS], add_generation_prompt=False) == expected


def test_lists_become_texts_where_the_template_needs_them(
    qwen_directory: Path, pair_of: Callable[[Path], Pair]
) -> None:
    pair = pair_of(qwen_directory)
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert pair.ours.render([SYSTEM, {"role": "user", "content": parts}]) == pair.ours.render(
        [SYSTEM, {"role": "user", "content": "one\ntwo"}]
    )
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    with pytest.raises(RequestError, match=r"messages\[1\]\.content has a part of type image_url"):
        pair.ours.render([SYSTEM, {"role": "user", "content": [*parts, image]}])


def test_template_of_an_image_model(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to(shared_data / "qwen2.5" / "tokenizer.json")
    for name in ("tokenizer_config.json", "chat_template.json", "config.json"):
        (tmp_path / name).symlink_to(shared_data / "qwen2.5-vl" / name)
    template = ChatTemplate.from_directory(tmp_path, Tokenizer.from_directory(tmp_path))
    parts = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    user = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is this?<|im_end|>\n"
    assert user in template.render([{"role": "user", "content": parts}])
    assert "# Tools" in template.render([USER], tools=[WEATHER])  # only the tokenizer's template has tools


# --- templates written here ----------------------------------------------------------------------------------------

LLAMA = """\
{{ bos_token }}{% for message in messages %}
    {% if message.role not in ['user', 'assistant', 'system', 'tool'] %}
        {{ raise_exception('unknown role ' + message.role) }}
    {% endif %}
    {% if message.role == 'tool' %}{% continue %}{% endif %}
    {{- '<' + message['role'] + '>' }}{{ message['content'] | trim }}{{ eos_token }}
{% endfor %}
{%- if tools %}{{ tools | tojson(indent=2) }} {{ tools[0] | tojson }}{% endif %}
{%- for document in documents or [] %}[{{ document.title }}: {{ document.text }}]{% endfor %}
{%- if add_generation_prompt %}<assistant>{{ 'think' if enable_thinking else '' }}{% endif %}
"""

GENERATION = """\
{% set mark = 'out' %}
{% for message in messages %}
{% if message.role == 'assistant' %}
{% generation %}
{% set mark = 'in' %}
{{ message.content }}{{ mark }}
{% endgeneration %}
{{ mark }}
{% else %}{{ message.content }}{{ mark }}
{% endif %}
{% if loop.index > 3 %}{% break %}{% endif %}
{% endfor %}{{ mark }}"""

PARTS = """\
{% macro show(content) %}{% if content is string %}{{ content }}{% else %}
{%- for part in content %}{% if part.type == 'text' %}{{ part.text }}|{% else %}<{{ part.type }}>{% endif %}{% endfor %}
{%- endif %}{% endmacro %}
{% for message in messages %}[{{ show(message.content) }}]{% endfor %}"""

REASONING = """\
{% for message in messages %}
{{ message.role }}:{{ message.reasoning_content }}/{{ message.thinking }}/{{ message.content }}
{% endfor %}"""


@pytest.fixture
def template_of(write_tokenizer: Callable[..., Path]) -> Callable[..., Pair]:
    """A pair with the given chat_template in tokenizer_config.json."""

    def build(chat_template: Any, **files: str) -> Pair:
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        directory = write_tokenizer(config | {"chat_template": chat_template})
        for name, text in files.items():
            path = directory / name.replace("__", "/").replace("_jinja", ".jinja")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return Pair(directory)

    return build


@pytest.mark.parametrize("source", [LLAMA, GENERATION, PARTS], ids=["llama", "generation", "parts"])
def test_own_templates(template_of: Callable[..., Pair], source: str) -> None:
    pair = template_of(source)
    for messages, tools in CONVERSATIONS.values():
        pair.assert_equal(messages, tools=tools, add_generation_prompt=True)
        pair.assert_equal(messages, tools=tools, add_generation_prompt=False)


def test_variables(template_of: Callable[..., Pair]) -> None:
    pair = template_of(LLAMA)
    documents = [{"title": "T", "text": "Füße & <b>"}]
    text = pair.assert_equal([USER], documents=documents, add_generation_prompt=True, enable_thinking=True)
    assert "[T: Füße & <b>]<assistant>think" in text
    assert text.startswith("<s>")
    overridden = pair.assert_equal([USER], add_generation_prompt=False, bos_token="<other>")
    assert overridden.startswith("<other>")
    # Whatever a client adds, the messages are those of the request.
    assert pair.ours.render([USER], messages=[], self=1) == pair.ours.render([USER])


def test_reasoning_goes_by_several_names(template_of: Callable[..., Pair]) -> None:
    pair = template_of(REASONING)
    for name in ("reasoning_content", "reasoning", "thinking"):
        message = {"role": "assistant", "content": "c", name: "because"}
        assert pair.ours.render([message], add_generation_prompt=False) == "assistant:because/because/c\n"


def test_continue_where_the_template_strips(template_of: Callable[..., Pair]) -> None:
    pair = template_of(LLAMA)
    for content in ("Arr", "  Arr, \n", "Arr <s> Arr"):
        messages = [USER, ANSWER | {"content": content}]
        text = pair.assert_equal(messages, add_generation_prompt=False, continue_final_message=True)
        assert text.endswith("<assistant>" + content.strip())
    parts = template_of(PARTS)
    message = {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}
    text = parts.assert_equal([message], add_generation_prompt=False, continue_final_message=True)
    assert text == "[one|two"
    with pytest.raises(RequestError, match="set add_generation_prompt to false"):
        parts.ours.render([message], continue_final_message=True)
    with pytest.raises(RequestError, match="needs a last message with text"):
        parts.ours.render([{"role": "user"}], add_generation_prompt=False, continue_final_message=True)


def test_lists_are_kept_where_the_template_takes_them(template_of: Callable[..., Pair]) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert template_of(PARTS).assert_equal([message], add_generation_prompt=False) == "[a|b|]"
    # A template that prints whatever it gets, or dumps it, does not take lists.
    assert template_of("{{ messages[0].content }}").ours.render([message]) == "a\nb"
    assert template_of("{{ messages[0].content | tojson }}").ours.render([message]) == '"a\\nb"'
    assert template_of("{{ messages[0]['content'][0]['text'] }}").ours.render([message]) == "a\nb"


def test_named_templates(template_of: Callable[..., Pair]) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with {{ tools | length }}"}]
    pair = template_of(named)
    assert pair.assert_equal([USER]) == "plain"
    assert pair.assert_equal([USER], tools=[WEATHER]) == "with 1"
    assert pair.ours.render([USER], tools=[]) == "plain"
    only_tools = template_of(named[1:])
    assert only_tools.assert_equal([USER], tools=[WEATHER]) == "with 1"
    with pytest.raises(RequestError, match="no chat template named default, only tool_use"):
        only_tools.ours.render([USER])


def test_files_go_before_the_config(template_of: Callable[..., Pair]) -> None:
    pair = template_of("config", chat_template_jinja="file {{ eos_token }}")
    assert pair.assert_equal([USER]) == "file </s>"
    pair = template_of(
        "config", chat_template_jinja="file", additional_chat_templates__tool_use_jinja="tools {{ tools | length }}"
    )
    assert pair.assert_equal([USER]) == "file"
    assert pair.assert_equal([USER], tools=[WEATHER, TIME]) == "tools 2"


def test_override(write_tokenizer: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = write_tokenizer({"chat_template": "config", "eos_token": "</s>"})
    tokenizer = Tokenizer.from_directory(directory)
    path = tmp_path_factory.mktemp("override") / "mine.jinja"
    path.write_text("mine {{ eos_token }}")
    assert ChatTemplate.from_directory(directory, tokenizer, path).render([USER]) == "mine </s>"
    assert ChatTemplate.from_directory(directory, tokenizer, str(path)).render([USER]) == "mine </s>"
    with pytest.raises(ConfigError, match=r"absent\.jinja \(--chat-template\)"):
        ChatTemplate.from_directory(directory, tokenizer, path.with_name("absent.jinja"))


def test_strftime_now(template_of: Callable[..., Pair]) -> None:
    pair = template_of("{{ strftime_now('%Y-%m %B') }}")
    assert pair.assert_equal([USER])[:2] == "20"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refused the messages: roles must alternate"),
        ("{{ messages[0].content.nothing.more }}", "has no attribute 'nothing'"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[5].content.split() }}", "refused the messages"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ messages.append(1) }}", "refused the messages"),
        ("{{ ''.__class__.__mro__ }}", "refused the messages"),
        ("{% include 'other' %}", "refused|cannot render"),
    ],
)
def test_whatever_goes_wrong_is_a_request_error(template_of: Callable[..., Pair], source: str, expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        template_of(source).ours.render([USER])


def test_no_template(template_of: Callable[..., Pair]) -> None:
    with pytest.raises(RequestError, match="has no chat template; start the server with --chat-template FILE"):
        template_of(None).ours.render([USER])


def test_odd_messages_are_no_traceback(template_of: Callable[..., Pair]) -> None:
    pair = template_of(LLAMA)
    with pytest.raises(RequestError, match="at least one message"):
        pair.ours.render([])
    for calls in (["text"], [{}], [{"function": "f"}], [{"function": {"arguments": {"a": 1}}}], "text"):
        assert "<user>" in pair.ours.render([USER | {"tool_calls": calls}])
    for content in ([1], ["a"], [{"type": "text"}], [{"type": "text", "text": None}]):
        with pytest.raises(RequestError, match="messages"):
            pair.ours.render([{"role": "user", "content": content}])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"chat_template": "{% for %}"}, r"the default chat template does not compile: .* \(line 1\)"),
        ({"chat_template": "{% generation %}"}, "does not compile"),
        ({"chat_template": "a\n{{ b | nofilter }}"}, r"nofilter.*\(line 2\)"),
        ({"chat_template": 7}, "must be a text, or a list"),
        ({"chat_template": [{"name": "default"}]}, "must be a text, or a list"),
        ({"chat_template": [{"name": "default", "template": 7}]}, "must be a text, or a list"),
        ({"chat_template": ["default"]}, "must be a text, or a list"),
    ],
)
def test_templates_that_cannot_be_used(
    write_tokenizer: Callable[..., Path], config: dict[str, Any], expected: str
) -> None:
    directory = write_tokenizer(config)
    with pytest.raises(CheckpointError, match=expected):
        ChatTemplate.from_directory(directory, Tokenizer.from_directory(directory))


def test_damaged_chat_template_files(write_tokenizer: Callable[..., Path]) -> None:
    directory = write_tokenizer({})
    tokenizer = Tokenizer.from_directory(directory)
    (directory / "chat_template.json").write_text('{"chat_template": 1}')
    with pytest.raises(CheckpointError, match=r"chat_template\.json must be a text, or a list"):
        ChatTemplate.from_directory(directory, tokenizer)
    (directory / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="cannot read a chat template"):
        ChatTemplate.from_directory(directory, tokenizer)


def test_chat_template_files_may_hold_several(write_tokenizer: Callable[..., Path]) -> None:
    directory = write_tokenizer({"chat_template": "of the tokenizer"})
    tokenizer = Tokenizer.from_directory(directory)
    for named, with_tools in (({"default": "a"}, "of the tokenizer"), ({"default": "a", "tool_use": "b"}, "b")):
        listed = [{"name": name, "template": template} for name, template in named.items()]
        (directory / "chat_template.json").write_text(json.dumps({"chat_template": listed}))
        template = ChatTemplate.from_directory(directory, tokenizer)
        assert (template.source(), template.source(with_tools=True)) == ("a", with_tools)


CALLED = [USER, CALLS, *RESULTS]


def test_the_name_of_a_call_comes_first() -> None:
    template = ChatTemplate(
        {"default": "{% for c in messages[0].tool_calls %}{{ c.function | tojson }}{% endfor %}"}, {}
    )
    function = {"arguments": '{"days": 2}', "name": "f"}
    message = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]}
    assert template.render([message]) == '{"name": "f", "arguments": {"days": 2}}'


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}", '{"days": 2,'),
        ("{% for m in messages %}{% for c in m.tool_calls %}{{ '>' + c.function.arguments }}", '>{"days": 2,'),
        ("{% for m in messages %}{% for c in m.tool_calls %}{{ '>' ~ c.function.arguments }}", '>{"days": 2,'),
        (
            "{% for m in messages %}{% for c in m.tool_calls %}{% for k, v in c.function.arguments|items %}{{ k }}=",
            "days=",
        ),
    ],
)
def test_arguments_as_the_template_wants_them(source: str, text: str) -> None:
    source += "{% endfor %}" * source.count("{% for")
    assert ChatTemplate({"default": source}, {}).render(CALLED).startswith(text)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in s %}{% for b in s %}{% for c in s %}{% for d in s %}{{ loop.last }}{% endfor %}{% endfor %}"
        "{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% for x in [[[]] * 3] recursive %}{{ loop([[1] * 999] * 999) if loop.depth < 60 }}{% endfor %}",
    ],
)
def test_templates_that_run_for_long_are_ended(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sophserve.text.chat_template.MOST_SECONDS", 0.05)
    template = ChatTemplate({"default": source}, {})
    with pytest.raises(RequestError, match="took longer than"):
        template.render([{"role": "user", "content": "Hi"}], s="x" * 999)
