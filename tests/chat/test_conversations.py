"""The conversations of the chat: branches, what is kept, and the files that the playground reads, too."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from sophserve.chat.client import ChatError, Client, Piece
from sophserve.chat.commands import run
from sophserve.chat.conversation import Conversation, FormatError, Message, read, write
from sophserve.chat.session import Session
from sophserve.chat.store import Store, StoreError


class Echo(Client):
    """Says what it was asked, and how often it was; or fails."""

    def __init__(self) -> None:
        super().__init__("http://nowhere", model="echo")
        self.asked: list[list[dict[str, Any]]] = []
        self.fails = False

    async def stream(self, messages: list[dict[str, Any]], parameters: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        self.asked.append(messages)
        if self.fails:
            raise ChatError("broken")
        yield Piece(f"{messages[-1]['content']} {len(self.asked)}")
        yield Piece(finish_reason="stop", prompt_tokens=3, output_tokens=2, cached_tokens=1)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(Echo(), io.StringIO(), False, store=Store(tmp_path / "chats"))


def shown(session: Session) -> list[str]:
    return [message.content for message in session.conversation.path()]


async def test_branches(session: Session) -> None:
    client: Any = session.client
    await session.ask("a")
    await session.ask("b")
    await session.ask_again()
    assert shown(session) == ["a", "a 1", "b", "b 3"]
    assert client.asked[-1] == client.asked[-2]
    await session.ask_instead("c")
    assert shown(session) == ["a", "a 1", "c", "c 4"]
    assert [message["content"] for message in client.asked[-1]] == ["a", "a 1", "c"]
    assert run(session, "/branch").splitlines() == ["   1  b → b 2", "   2  b → b 3", "*  3  c → c 4"]
    run(session, "/branch 1")
    assert shown(session) == ["a", "a 1", "b", "b 2"]
    run(session, "/undo")
    run(session, "/undo")
    assert shown(session) == [] and len(session.conversation.messages) == 7
    run(session, "/branch 3")
    assert shown(session)[-1] == "c 4"
    for wrong in ("/branch 4", "/branch 0", "/branch x"):
        with pytest.raises(ChatError, match="from 1 to 3"):
            run(session, wrong)


async def test_what_fails_changes_nothing(session: Session) -> None:
    client: Any = session.client
    await session.ask("a")
    client.fails = True
    before = write([session.conversation])
    for attempt in (session.ask("b"), session.ask_again(), session.ask_instead("c")):
        with pytest.raises(ChatError, match="broken"):
            await attempt
        kept = json.loads(write([session.conversation]))
        kept["conversations"][0]["updated"] = json.loads(before)["conversations"][0]["updated"]
        assert kept == json.loads(before)
    run(session, "/clear")
    with pytest.raises(ChatError, match="no question"):
        await session.ask_instead("c")


async def test_what_is_kept(session: Session) -> None:
    assert session.store
    await session.ask("Why is the sea salty?\nTell me")
    session.keep()
    run(session, "/clear")
    assert shown(session) == []
    await session.ask("And the sky?")
    session.keep()
    rows = run(session, "/list").splitlines()
    assert [row[16:] for row in rows] == ["  And the sky?", "  Why is the sea salty?"] and rows[0].startswith("*  1")
    assert run(session, "/list SEA tell").endswith("  Why is the sea salty?") and "nothing" in run(session, "/list x y")
    assert run(session, "/open 2").splitlines()[1] == "> Why is the sea salty? Tell me"
    assert run(session, "/rename Salt") == "called Salt" and "Salt" in run(session, "/list")
    assert run(session, "/rename") == "called Why is the sea salty?"
    assert "deleted Why is the sea" in run(session, "/delete 2")
    assert shown(session) == [] and len(session.store.all()) == 1
    assert "Why is the sea" in run(session, "/restore") and len(session.store.all()) == 2
    with pytest.raises(StoreError, match="nothing was deleted"):
        run(session, "/restore")


async def test_two_chats_at_once(session: Session) -> None:
    assert session.store
    await session.ask("a")
    session.keep()
    other = Session(session.client, io.StringIO(), False, session.store.all()[0], session.store)
    await other.ask("b")
    other.keep()
    await session.ask("c")
    session.keep()
    [kept] = session.store.all()
    assert [message.content for message in kept.messages if message.role == "user"] == ["a", "c", "b"]
    assert len(kept.ends()) == 2 and [each.content for each in kept.path()][2] == "c"


async def test_what_cannot_be_kept_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    session = Session(Echo(), io.StringIO(), False, store=Store(tmp_path / "file" / "chats"))
    await session.ask("a")
    with pytest.raises(StoreError, match=r"conversations are not kept: cannot use .*: Not a directory"):
        session.keep()
    session.keep()


def test_files_from_elsewhere(session: Session, tmp_path: Path) -> None:
    assert session.store
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    (tmp_path / "old").write_text(json.dumps({"parameters": {"seed": 1, "no": 2}, "messages": messages}))
    assert run(session, f"/load {tmp_path}/old") == "loaded 2 messages"
    assert session.conversation.system == "system" and session.conversation.parameters == {"seed": 1}
    outside = Conversation(id="../../outside", messages=[Message(role="user", content="x")])
    (tmp_path / "two").write_text(write([outside, session.conversation]))
    run(session, f"/load {tmp_path}/two")
    assert len(session.store.all()) == 3 and not list(tmp_path.rglob("outside*"))
    assert run(session, f"/save-all {tmp_path}/all") == "saved 3 conversations"
    assert len(read((tmp_path / "all").read_bytes())) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "malformed|truncated"),
        ("\xff", "malformed|invalid"),
        ("[]", "Expected `object`"),
        ('{"format": "other"}', "Invalid enum value 'other'"),
        ('{"format": "sophserve.conversations", "version": 2}', "Invalid enum value 2"),
        ('{"messages": [{"role": "tool", "content": ""}]}', r"Invalid enum value 'tool' - at `\$.messages\[0\].role`"),
        ('{"messages": [{"role": "user", "content": 1}]}', r"got `int` - at `\$.messages\[0\].content`"),
        ('{"messages": [{"role": "user", "content": "", "parent": "x"}]}', r"parent of messages\[0\]"),
        ('{"messages": [{"role": "user", "content": "", "id": "a", "parent": "a"}]}', r"parent of messages\[0\]"),
        ('{"messages": [{"role": "user", "content": ""}, {"role": "system", "content": ""}]}', "not the first"),
        ('{"leaf": "x", "messages": [{"role": "user", "content": ""}]}', "leaf"),
    ],
)
def test_wrong_files(session: Session, tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        read(text.encode("latin-1"))
    (tmp_path / "wrong").write_bytes(text.encode("latin-1"))
    with pytest.raises(ChatError, match="holds no conversations: "):
        run(session, f"/load {tmp_path}/wrong")
    assert session.conversation.messages == []
