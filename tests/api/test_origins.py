"""Which web pages may have a browser call a server that has no key."""

from __future__ import annotations

from typing import Any

import pytest

TEXT = "/v1/completions"
BODY = {"prompt": "Hi", "max_tokens": 1}
CHANGING = [("POST", TEXT), ("POST", "/reset_prefix_cache"), ("POST", "/start_profile"), ("POST", "/requests/x/cancel")]
CHANGING += [("POST", "/v1/messages"), ("POST", "/tokenize"), ("DELETE", "/requests/x"), ("DELETE", "/v1/responses/x")]


async def status(app: Any, method: str = "POST", path: str = TEXT, **headers: str) -> int:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with app.http.request(method, path, json=BODY, headers=names) as response:
        return response.status


@pytest.mark.parametrize(("method", "path"), CHANGING)
async def test_pages_of_others_change_nothing(app: Any, method: str, path: str) -> None:
    for origin in ("http://evil.example", "https://evil.example", "null", f"http://127.0.0.1:{app.port + 1}"):
        assert await status(app, method, path, Origin=origin) == 403
        assert await status(app, method, path, Origin=origin, Sec_Fetch_Site="cross-site") == 403
    # A form needs no permission to send a body that is JSON.
    assert await status(app, method, path, Origin="http://evil.example", Content_Type="text/plain") == 403
    # A page whose own name means 127.0.0.1 from one moment to the next.
    port = f"evil.example:{app.port}"
    assert await status(app, method, path, Origin=f"http://{port}", Host=port, Sec_Fetch_Site="same-origin") == 403


async def test_others_are_not_concerned(app: Any) -> None:
    own = f"127.0.0.1:{app.port}"
    for headers in (
        {},
        {"Content_Type": "application/x-www-form-urlencoded"},  # as curl sends it
        {"Host": "anything.example"},
        {"Origin": f"http://{own}"},
        {"Origin": f"http://localhost:{app.port}", "Host": f"localhost:{app.port}"},
        {"Origin": "http://my-host:8000", "Host": "my-host:8000"},
        {"Origin": "http://[::1]:8000", "Host": "[::1]:8000"},
        {"Origin": "https://llm.example.com", "Host": "llm.example.com"},  # behind a proxy with a certificate
        {"Origin": "https://llm.example.com", "X_Forwarded_Host": "llm.example.com"},
        {"Origin": "https://llm.example.com", "Sec_Fetch_Site": "same-origin"},
        {"Origin": "chrome-extension://abcdef"},
        {"Origin": "app://obsidian.md"},
    ):
        assert await status(app, **headers) == 200, headers
    assert await status(app, "GET", "/v1/models", Origin="http://evil.example") == 200


async def test_servers_for_others(start_app: Any) -> None:
    app = await start_app(host="0.0.0.0")
    assert await status(app, Origin="http://llm.example:8000", Host="llm.example:8000") == 200
    assert await status(app, Origin="http://evil.example", Host="llm.example:8000") == 403
    app = await start_app(allowed_origins=["https://chat.example"])
    assert await status(app, Origin="https://chat.example") == 200
    assert await status(app, Origin="https://evil.example") == 403
    app = await start_app(allowed_origins=["*"])
    assert await status(app, Origin="https://evil.example") == 200
    app = await start_app(api_key=["secret"])  # which no page of others knows
    assert await status(app, Origin="https://evil.example", x_api_key="secret") == 200
    assert await status(app, Origin="https://evil.example") == 401
