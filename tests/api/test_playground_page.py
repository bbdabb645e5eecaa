"""The playground in a browser. Screenshots of its states go to pytest's temporary folder."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sophserve.engine.metrics import EngineMetrics
from sophserve.worker.messages import Progress

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="needs chromium and chromedriver")

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

CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const pixel = (...colors) => {
  canvas.clearRect(0, 0, 1, 1);
  for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
  return canvas.getImageData(0, 0, 1, 1).data;
};
const light = ([...rgb]) => rgb.slice(0, 3).map((c) => c / 255)
  .map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const found = {};
for (const element of document.querySelectorAll("body *")) {
  const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!(text || element.placeholder) || element.disabled) continue;
  if (!element.checkVisibility({ opacityProperty: true })) continue;
  const backs = [];
  for (let at = element; at; at = at.parentElement) backs.unshift(getComputedStyle(at).backgroundColor);
  const colors = [getComputedStyle(element).color];
  if (element.placeholder) colors.push(getComputedStyle(element, "::placeholder").color);
  for (const color of colors) {
    const [a, b] = [light(pixel(...backs)), light(pixel(...backs, color))].sort((x, y) => y - x);
    const name = `${element.tagName} ${element.className} ${element.id} ${color}`;
    found[name] = Math.min(found[name] ?? 99, (a + .05) / (b + .05));
  }
}
return found;
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    quiet = ("background-networking", "component-update", "sync", "quic", "gpu", "dev-shm-usage")
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "headless",
        "no-sandbox",
        "no-first-run",
        "window-size=1360,900",
        f"user-data-dir={profile}",
        *(f"disable-{what}" for what in quiet),
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page of an application, in a browser that runs in a thread."""

    def __init__(self, driver: Any, url: str, folder: Path) -> None:
        self.driver, self.url, self.folder = driver, url, folder

    async def open(self, language: str = "en-US", colors: str = "light", width: int = 1360) -> None:
        await self._command("Network.enable", {})
        agent = await self.run("return navigator.userAgent")
        await self._command("Network.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": language})
        await self.look(colors, width)
        await asyncio.to_thread(self.driver.get, self.url)

    async def look(self, colors: str, width: int) -> None:
        features = [
            {"name": "prefers-color-scheme", "value": colors},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        await self._command("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await self._command("Emulation.setDeviceMetricsOverride", size)

    async def _command(self, name: str, fields: dict[str, Any]) -> None:
        await asyncio.to_thread(self.driver.execute_cdp_cmd, name, fields)

    async def run(self, script: str, *arguments: Any) -> Any:
        return await asyncio.to_thread(self.driver.execute_script, script, *arguments)

    async def text(self, selector: str) -> str:
        """What can be read of the first such element."""
        return str(await self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    async def until(self, condition: str) -> None:
        """Wait until an expression is true."""
        async with asyncio.timeout(8):
            while not await self.run(f"return Boolean({condition})"):
                await asyncio.sleep(0.02)

    async def click(self, selector: str) -> None:
        find = self.driver.find_element
        await asyncio.to_thread(lambda: find("css selector", selector).click())

    async def type(self, *keys: str) -> None:
        """Press keys, in whatever has the focus."""
        await asyncio.to_thread(lambda: self.driver.switch_to.active_element.send_keys(*keys))

    async def shot(self, name: str) -> None:
        await asyncio.to_thread(self.driver.save_screenshot, str(self.folder / f"{name}.png"))

    async def assert_readable(self) -> None:
        """Every text has a contrast of at least 4.5."""
        contrasts = await self.run(CONTRAST)
        assert len(contrasts) > 10
        assert {name: value for name, value in contrasts.items() if value < 4.5} == {}


@pytest.fixture
async def open_page(driver: Any, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Page]]]:
    """`await open_page(app, ...)`. The page must fetch nothing from elsewhere and write nothing to the console."""
    pages: list[Page] = []
    for kind in ("browser", "performance"):
        driver.get_log(kind)

    async def open_it(app: Any, **look: Any) -> Page:
        pages.append(Page(driver, app.url, tmp_path))
        await pages[-1].open(**look)
        return pages[-1]

    yield open_it
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    for request in sent:
        if not request["documentURL"].startswith("chrome"):  # the browser's own first page
            assert request["request"]["url"].startswith((*(page.url for page in pages), "about:", "data:")), request
    messages = [entry["message"] for entry in driver.get_log("browser")]
    # A request that fails - not ready, no key, an error - is shown there, and no page can prevent it.
    assert [text for text in messages if not re.search(r"status of (401|500|503)", text)] == []
    await asyncio.to_thread(driver.get, "about:blank")


def count(app: Any) -> EngineMetrics:
    """Metrics that a test can move."""
    stats = SimpleNamespace(prefix_hits=30, prefix_queries=40, preemptions=0)
    pool = SimpleNamespace(used=250, num_blocks=1000, evictions=0)
    scheduler: Any = SimpleNamespace(running=[1, 2, 3], waiting=[1], stats=stats, pool=pool)
    app.engine.metrics = EngineMetrics(scheduler, "tiny", 256)
    return app.engine.metrics


@pytest.fixture
async def served(start_app: Any) -> Any:
    """An application with reasoning, metrics and a long context."""
    app = await start_app(ready=False, reasoning_parser="qwen3")
    app.engine.context = 4096
    await app.engine.start(app.tokenizer)
    app.engine.text = ANSWER
    count(app)
    return app


async def test_a_conversation(served: Any, open_page: Any) -> None:
    page = await open_page(served)
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


async def assert_rendered(page: Page) -> None:
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


async def test_what_is_sent(served: Any, open_page: Any) -> None:
    page = await open_page(served)
    fields = {"system": "Be brief.", "temperature": "0.5", "top_p": "0.9", "top_k": "7", "max_tokens": "9", "seed": "3"}
    for name, value in fields.items():
        await page.click(f"#{name}")
        await page.type(value)
    assert await page.run("return document.querySelector('[data-for=top_p]').value") == "0.9"
    await page.until("document.querySelector('#state').className === 'state ready'")
    await page.click("#examples button")
    await page.until("document.querySelector('.answer .numbers')?.textContent")
    params = served.engine.params[-1]
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens, params.seed) == (0.5, 0.9, 7, 9, 3)
    assert params.logprobs == 5
    assert "Be brief." in served.tokenizer.decode(served.engine.prompts[-1])
    assert "9 tokens" in await page.text(".answer .numbers") and "cut" in await page.text(".answer .numbers")
    await page.click("#logprobs")
    await page.run("document.querySelector('#temperature').value = '3'")
    await page.click(".answer .buttons button:nth-child(2)")
    assert len(served.engine.params) == 1 and await page.run("return document.activeElement.id") == "temperature"
    await page.click("#reset")
    await page.click("#logprobs")
    await page.click(".answer .buttons button:nth-child(2)")
    await page.until("document.querySelectorAll('.answer').length === 1 && document.querySelector('.answer h4')")
    params = served.engine.params[-1]
    assert (params.temperature, params.top_k, params.seed, params.logprobs) == (1.0, 0, None, None)
    assert served.engine.prompts[-1] == served.tokenizer.encode(
        served.serving.chat_template.render([{"role": "user", "content": "Tell me a story about a cat and a boat."}]),
        add_special_tokens=False,
    )


async def test_probabilities(served: Any, open_page: Any) -> None:
    page = await open_page(served)
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


async def test_stop_and_edit(served: Any, open_page: Any) -> None:
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
    await page.click(".user .buttons button:nth-child(2)")
    assert await page.run("return [document.activeElement.value, document.querySelectorAll('.message').length]") == [
        "Hello",
        0,
    ]
    served.engine.failure = RuntimeError("broken")
    await page.type("\ue007")
    await page.until("document.querySelector('.answer .error')")
    assert "its log says why" in await page.text(".answer .error")


async def test_charts(served: Any, open_page: Any) -> None:
    metrics = served.engine.metrics
    page = await open_page(served)
    await page.until("document.querySelector('#chart-generation output').textContent === '0'")
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


async def test_a_key_is_asked_for(start_app: Any, open_page: Any) -> None:
    app = await start_app(api_key=["secret"])
    count(app)
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


async def test_loading(start_app: Any, open_page: Any) -> None:
    app = await start_app(ready=False)
    count(app)
    app.engine.progress = Progress("loading weights", 50, 200)
    page = await open_page(app)
    await page.until("document.querySelector('#stage').innerText === 'loading weights · 25 %'")
    assert await page.run("return document.querySelector('#progress').value") == 0.25
    await page.shot("loading")
    await app.engine.start(app.tokenizer)
    await page.until("document.querySelector('#empty').checkVisibility()")
