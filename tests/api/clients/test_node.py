"""The libraries of JavaScript."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.clients
FOLDER = Path(__file__).parent / "node"
REPLY = "Sunny in Köln."


@pytest.mark.parametrize("library", ["openai", "ai-openai", "ai-openai-chat", "ai-compatible", "ai-anthropic"])
async def test_a_tool_helps(app: Any, library: str) -> None:
    async def weather(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        app.engine.text = REPLY
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(weather, "127.0.0.1", 0) as tool:
        port = tool.sockets[0].getsockname()[1]
        command = ("node", "turns.mjs", library, app.url, f"http://127.0.0.1:{port}")
        process = await asyncio.create_subprocess_exec(*command, cwd=FOLDER, stdout=PIPE, stderr=PIPE)
        out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    result = json.loads(out)
    assert result["calls"] == [{"city": "Köln", "days": 2}]
    assert (result["text"], result["finish"]) == (REPLY, "stop")
