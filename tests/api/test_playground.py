"""The playground's files over HTTP."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sophserve.api.playground import page as playground

TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", "/": "text/html"}


class Links(HTMLParser):
    """What a page loads, and what it runs or styles by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.inline: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.found |= {value for name, value in attributes if name in ("src", "href") and value and value[0] != "#"}
        self.inline |= {name for name in given if name.startswith("on") or name == "style"}
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.add(tag)


async def test_files_have_their_types_and_a_strict_policy(app: Any) -> None:
    assert len(playground.PATHS) > 10
    for path in playground.PATHS:
        async with app.http.get(path) as response:
            assert response.status == 200
            suffix = Path(path).suffix or path
            assert response.headers["Content-Type"] == f"{TYPES[suffix]}; charset=utf-8"
            policy = response.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; ") and "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy and "require-trusted-types-for 'script'" in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            tag = response.headers["ETag"]
        async with app.http.get(path, headers={"If-None-Match": tag}) as response:
            assert response.status == 304 and await response.read() == b""


async def test_the_page_consists_of_its_own_files(app: Any) -> None:
    async with app.http.get("/") as response:
        links = Links(await response.text())
    assert links.inline == set()
    assert {f"/{name}" for name in links.found} <= playground.PATHS
    reached = {f"/{name}" for name in links.found} | {"/"}
    todo = list(reached)
    while todo:
        async with app.http.get(todo.pop()) as response:
            text = await response.text()
        found = {f"/playground/{name}" for name in re.findall(r'from "\./([\w.]+)"', text)} - reached
        reached |= found
        todo += found
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    assert reached == playground.PATHS


async def test_the_page_answers_without_a_key_and_while_the_model_loads(start_app: Any) -> None:
    app = await start_app(ready=False, api_key=["secret"], root_path="/llm")
    for path in playground.PATHS:
        for prefix in ("", "/llm"):
            async with app.http.get(prefix + path) as response:
                assert response.status == 200
    await app.engine.start(app.tokenizer)
    for path in ("/playground/", "/playground/index.html", "/playground/../playground.py", "/v1/models"):
        async with app.http.get(path) as response:
            assert response.status == 401
    async with app.http.get("/llm/playground/nothing.js", headers={"x-api-key": "secret"}) as response:
        assert response.status == 404
    async with app.http.post("/", headers={"x-api-key": "secret"}) as response:
        assert response.status == 405


async def test_no_ui(start_app: Any) -> None:
    app = await start_app(ui=False)
    for path in playground.PATHS:
        async with app.http.get(path) as response:
            assert response.status == 404
            assert "does not exist" in (await response.json())["error"]["message"]
