"""The playground in a browser: the conversation, the settings, the charts, its states."""

from __future__ import annotations

from typing import Any

import pytest

from sophserve.link.messages import Progress

ANSWER = """<think>A table, and some code.</think>## Two protocols

Both run on **IP**; see [RFC 9293](https://www.rfc-editor.org/rfc/rfc9293) or <b onclick="fail()">this</b>.

| | TCP | UDP |
|---|:-:|--:|
| order | kept | *not* kept |

1. `connect()` first
   - then ~~wait~~ send
2. close

```python
def send(data: bytes) -> int:
    # to whom?
    return socket.sendto(data, ("::1", 53))
```

![a picture](https://example.com/x.png) and [no](javascript:fail())"""


@pytest.fixture
def said(served: Any) -> Any:
    """The application, with ANSWER to everything."""
    served.engine.text = ANSWER
    return served


async def test_a_conversation(said: Any, open_page: Any) -> None:
    page = await open_page(said)
    await page.until("document.querySelector('#state').className === 'state ready'")
    assert "What shall we talk about" in await page.text("#empty")
    await page.shot("empty")
    await page.type("Compare TCP", "\ue008\ue007\ue000", "and UDP", "\ue007")
    await page.until("document.querySelector('.answer .numbers')?.textContent")
    assert await page.text(".user > .text") == "Compare TCP\nand UDP"
    await assert_rendered(page)
    await page.shot("light")
    await page.assert_readable()
    await page.look("dark", 1360)
    await page.shot("dark")
    await page.assert_readable()
    await page.look("light", 390)
    await page.until("!document.querySelector('#panel').checkVisibility()")
    await page.shot("narrow")
    assert await page.run("return document.documentElement.scrollWidth") == 390
    await page.click("#panel-toggle")
    await page.shot("narrow-panel")
    await page.assert_readable()
    await page.look("light", 1360)
    await page.run("location.reload()")
    await page.until("document.querySelector('.answer h4')")
    await page.click("#new")
    await page.until("!document.querySelector('.message')")


async def assert_rendered(page: Any) -> None:
    """ANSWER is Markdown, and nothing but that."""
    assert await page.text(".answer > .text h4") == "Two protocols"
    assert await page.text(".answer > .text strong") == "IP"
    assert '<b onclick="fail()">this</b>' in await page.text(".answer > .text p")
    assert (await page.text(".answer table")).split() == ["TCP", "UDP", "order", "kept", "not", "kept"]
    assert await page.text(".answer ol > li > ul > li") == "then wait send"
    assert await page.text(".code .bar span") == "python"
    assert (await page.text(".code pre")).startswith("def send(data: bytes) -> int:\n    # to whom?\n")
    assert await page.text(".code-comment") == "# to whom?"
    links = await page.run("return [...document.querySelectorAll('.answer a')].map(a => [a.href, a.rel])")
    rel = "noopener noreferrer"
    assert links == [["https://www.rfc-editor.org/rfc/rfc9293", rel], ["https://example.com/x.png", rel]]
    assert "[no](javascript:fail())" in await page.text(".answer > .text > p:last-child")
    assert not await page.run("return document.querySelector('.answer img, .answer b')")
    reasoning = "document.querySelector('.reasoning')"
    assert await page.run(f"return !{reasoning}.open && {reasoning}.textContent") == "ReasoningA table, and some code."


async def test_what_is_sent(said: Any, open_page: Any) -> None:
    page = await open_page(said)
    fields = {"system": "Be brief.", "temperature": "0.5", "top_p": "0.9", "top_k": "7", "max_tokens": "9", "seed": "3"}
    for name, value in fields.items():
        await page.click(f"#{name}")
        await page.type(value)
    assert await page.run("return document.querySelector('[data-for=top_p]').value") == "0.9"
    await page.until("document.querySelector('#state').className === 'state ready'")
    await page.click("#examples button")
    await page.until("document.querySelector('.answer .numbers')?.textContent")
    params = said.engine.params[-1]
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens, params.seed) == (0.5, 0.9, 7, 9, 3)
    assert params.logprobs == 5
    assert "Be brief." in said.tokenizer.decode(said.engine.prompts[-1])
    assert "9 tokens" in await page.text(".answer .numbers") and "cut" in await page.text(".answer .numbers")
    await page.click("#logprobs")
    await page.run("document.querySelector('#temperature').value = '3'")
    await page.click(".answer .buttons button:nth-child(2)")
    assert len(said.engine.params) == 1 and await page.run("return document.activeElement.id") == "temperature"
    await page.click("#reset")
    await page.click("#logprobs")
    await page.click(".answer .buttons button:nth-child(2)")
    await page.until("document.querySelectorAll('.answer').length === 1 && document.querySelector('.answer h4')")
    params = said.engine.params[-1]
    assert (params.temperature, params.top_k, params.seed, params.logprobs) == (1.0, 0, None, None)
    assert said.engine.prompts[-1] == said.tokenizer.encode(
        said.serving.chat_template.render([{"role": "user", "content": "Tell me a story about a cat and a boat."}]),
        add_special_tokens=False,
    )


async def test_probabilities(said: Any, open_page: Any) -> None:
    page = await open_page(said)
    await page.until("document.querySelector('#examples button')?.checkVisibility()")
    await page.click("#examples button")
    await page.until("document.querySelector('.answer .numbers')?.textContent")
    await page.click(".answer .buttons button:nth-child(3)")
    assert ANSWER[:40].split() == (await page.text(".answer .tokens"))[:40].split()
    levels = await page.run("return [...new Set([...document.querySelectorAll('.token')].map(t => t.className))]")
    assert len(levels) > 1
    await page.run("document.querySelector('.token').focus()")
    await page.type("\ue014", "\ue014")
    rows = (await page.text("#tip")).splitlines()
    assert (
        await page.run("return [...document.activeElement.parentElement.children].indexOf(document.activeElement)") == 2
    )
    assert (
        len(rows) == 12 and rows[1].endswith(" %") and await page.run("return document.querySelector('#tip .chosen')")
    )
    await page.shot("probabilities")
    await page.assert_readable()
    await page.click(".answer .buttons button:nth-child(3)")
    await page.until("document.querySelector('.answer h4') && document.querySelector('#tip').hidden")


async def test_stop_and_errors(served: Any, open_page: Any) -> None:
    page = await open_page(served)
    await page.until("document.querySelector('#state').className === 'state ready'")
    for stop in ("key", "button"):
        served.engine.gate.clear()
        await page.click("#input")
        await page.type("Hello", "\ue007")
        await page.until("document.querySelector('#stop').checkVisibility()")
        await served.until_running(1)
        if stop == "key":
            await page.type("\ue00c")
        else:
            await page.click("#stop")
        await served.until_running(0)
        await page.until("document.querySelector('#send').checkVisibility()")
        assert await page.text(".answer:last-child .numbers") == "stopped"
    assert "assistant" not in served.tokenizer.decode(served.engine.prompts[-1])[:-20]
    served.engine.gate.set()
    await page.click("#input")
    await page.type("Hello again")
    served.engine.failure = RuntimeError("broken")
    await page.type("\ue007")
    await page.until("document.querySelector('.answer .error')")
    assert "its log says why" in await page.text(".answer .error")


async def test_charts(served: Any, open_page: Any) -> None:
    metrics = served.engine.metrics
    page = await open_page(served)
    await page.until("document.querySelector('#chart-generation output')?.textContent === '0'")
    metrics.counts.generation_tokens += 100_000
    await page.until("document.querySelector('#chart-generation output').textContent.length > 4")
    await page.until("document.querySelectorAll('#charts .line[d]').length === 5")
    assert " ".join((await page.text("#chart-requests")).split()) == "Requests 3running, 1 waiting"
    assert "25 %" in await page.text("#chart-kv") and "75 %" in await page.text("#chart-hits")
    metrics._scheduler.waiting = []  # type: ignore[misc]
    await page.until("document.querySelector('#chart-requests').innerText.includes('0 waiting')")


async def test_chinese_and_keyboard(served: Any, open_page: Any) -> None:
    page = await open_page(served, language="zh-CN")
    await page.until("document.querySelector('#state').innerText === '就绪'")
    assert "想聊点什么" in await page.text("#empty")
    assert await page.run("return document.documentElement.lang") == "zh-CN"
    await page.shot("chinese")
    reached = set()
    for _ in range(24):
        await page.type("\ue004")
        reached.add(
            await page.run(
                "const at = document.activeElement;"
                "return at.dataset.for ? 'slider-' + at.dataset.for : at.id || at.parentElement.id || at.className"
            )
        )
        # The field's frame shows its focus.
        assert await page.run(
            "const at = document.activeElement;"
            "return at.id === 'input' || at === document.body || getComputedStyle(at).outlineStyle !== 'none'"
        )
    controls = {"new", "language", "panel-toggle", "examples", "input", "system", "temperature", "top_p", "top_k"}
    assert controls | {"slider-top_p", "max_tokens", "seed", "logprobs", "reset", "skip"} <= reached
    await page.click("#language")
    assert await page.text("#new") == "New chat" and await page.text("#language") == ""
    await page.run("location.reload()")
    await page.until("document.querySelector('#new')?.innerText === 'New chat'")


async def test_a_key_is_asked_for(start_counted: Any, open_page: Any) -> None:
    app = await start_counted(api_key=["secret"])
    page = await open_page(app)
    await page.until("document.querySelector('#key').open")
    await page.shot("key")
    await page.type("wrong", "\ue007")
    await page.until("document.querySelector('#key-wrong').checkVisibility()")
    await page.type("secret", "\ue007")
    await page.until("document.querySelector('#state').className === 'state ready'")
    assert await page.run("return [...document.querySelectorAll('#model option')].map(o => o.value)") == [
        "tiny",
        "org/tiny",
    ]
    assert await page.run("return [JSON.stringify(localStorage).includes('secret'), sessionStorage.length]") == [
        False,
        1,
    ]
    await page.run("document.querySelector('#model').value = 'org/tiny'")
    await page.type("Hi", "\ue007")
    await page.until("document.querySelector('.answer .numbers')?.textContent")


async def test_loading(start_counted: Any, open_page: Any) -> None:
    app = await start_counted(ready=False)
    app.engine.workers.progress = Progress("loading weights", 50, 200)
    page = await open_page(app)
    await page.until("document.querySelector('#stage').innerText === 'loading weights · 25 %'")
    assert await page.run("return document.querySelector('#progress').value") == 0.25
    await page.shot("loading")
    await app.engine.start(app.tokenizer)
    await page.until("document.querySelector('#empty').checkVisibility()")
