"""A browser for the tests of the playground. Screenshots of its states go to pytest's temporary folder."""

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

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

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


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    if not CHROMIUM or not DRIVER:
        pytest.skip("needs chromium and chromedriver")
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
    own = (*(page.url for page in pages), "about:", "data:", "blob:")
    for request in sent:
        if not request["documentURL"].startswith("chrome"):  # the browser's own first page
            assert request["request"]["url"].startswith(own), request
    messages = [entry["message"] for entry in driver.get_log("browser")]
    # A request that fails - not ready, no key, an error - is shown there, and no page can prevent it.
    assert [text for text in messages if not re.search(r"status of (401|500|503)", text)] == []
    origin = {"origin": pages[0].url, "storageTypes": "all"}
    driver.execute_cdp_cmd("Storage.clearDataForOrigin", origin)
    await asyncio.to_thread(driver.get, "about:blank")


def count(app: Any) -> None:
    """Give an application metrics that a test can move."""
    stats = SimpleNamespace(prefix_hits=30, prefix_queries=40, preemptions=0, evictions=0)
    pool = SimpleNamespace(used=250, num_blocks=1000)
    images = SimpleNamespace(queries=0, hits=0)
    scheduler: Any = SimpleNamespace(running=[1, 2, 3], waiting=[1], stats=stats, pool=pool, images=images)
    app.engine.metrics = EngineMetrics(scheduler, "tiny", 256)


@pytest.fixture
def start_counted(start_app: Any) -> Callable[..., Awaitable[Any]]:
    """start_app, with metrics."""

    async def start(**options: Any) -> Any:
        app = await start_app(**options)
        count(app)
        return app

    return start


@pytest.fixture
async def served(start_counted: Any) -> Any:
    """An application with reasoning, metrics and a long context, and an answer to everything."""
    app = await start_counted(ready=False, reasoning_parser="qwen3")
    app.engine.context = 4096
    await app.engine.start(app.tokenizer)
    app.engine.text = "Yes, of course."
    return app
