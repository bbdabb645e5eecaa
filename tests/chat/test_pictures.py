"""Pictures in the chat: /image, what is asked, and what is kept of them."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import zlib
from base64 import b64decode
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sophserve.chat.client import ChatError, Client, Piece
from sophserve.chat.commands import run
from sophserve.chat.conversation import Conversation, FormatError, read
from sophserve.chat.line_input import complete_file
from sophserve.chat.pictures import MOST_BYTES, PictureError
from sophserve.chat.session import Session
from sophserve.chat.store import Store
from sophserve.errors import SophserveError


class Recorder(Client):
    """Says yes, and keeps what it was asked; or fails."""

    def __init__(self) -> None:
        super().__init__("http://nowhere", model="seer")
        self.asked: list[list[dict[str, Any]]] = []
        self.fails = False

    async def stream(self, messages: list[dict[str, Any]], parameters: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        self.asked.append(messages)
        if self.fails:
            raise ChatError("broken")
        yield Piece("yes", finish_reason="stop")


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(Recorder(), io.StringIO(), False, store=Store(tmp_path / "chats"))


def draw(path: Path, kind: str = "PNG", size: tuple[int, int] = (5, 3), color: str = "red") -> bytes:
    Image.new("RGB", size, color).save(path, kind)
    return path.read_bytes()


def contents(part: dict[str, Any]) -> tuple[str, bytes]:
    """Media type and file of an image part."""
    assert part["type"] == "image_url"
    kind, _, data = part["image_url"]["url"].partition(";base64,")
    return kind, b64decode(data, validate=True)


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("MPO", "jpeg")],
)
async def test_a_file_is_sent_as_it_is(session: Session, tmp_path: Path, kind: str, media_type: str) -> None:
    """Under its own type, whatever its name says; what phones write (MPO) begins as a JPEG does."""
    file = tmp_path / "a cat.dat"
    frames = {"save_all": True, "append_images": [Image.new("RGB", (5, 3))]} if kind == "MPO" else {}
    Image.new("RGB", (5, 3), "red").save(file, kind, **frames)
    assert "a cat.dat, 5 x 3, " in run(session, f"/image {file}")
    await session.ask("What is this?")
    client: Any = session.client
    [message] = client.asked[-1]
    [image, text] = message["content"]
    assert contents(image) == (f"data:image/{media_type}", file.read_bytes())
    assert text == {"type": "text", "text": "What is this?"}


async def test_pictures_go_with_the_next_question(session: Session, tmp_path: Path) -> None:
    client: Any = session.client
    one, two = draw(tmp_path / "one.png"), draw(tmp_path / "two.png", color="blue")
    assert run(session, "/image") == "no pictures go with the next question"
    told = run(session, f"/image {tmp_path}/one.png '{tmp_path}/two.png'").splitlines()
    assert [line.split(",")[0] for line in told] == ["one.png", "two.png"]
    assert run(session, "/image") == "one.png\ntwo.png"
    client.fails = True
    with pytest.raises(ChatError, match="broken"):
        await session.ask("Which?")
    assert run(session, "/image") == "one.png\ntwo.png" and not session.conversation.messages
    client.fails = False
    await session.ask("Which?")
    assert [contents(part)[1] for part in client.asked[-1][0]["content"][:2]] == [one, two]
    assert run(session, "/image").startswith("no pictures")
    first = client.asked[-1][0]
    await session.ask("And now?")
    assert client.asked[-1] == [first, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "And now?"}]
    run(session, "/undo")
    await session.ask_again()
    assert client.asked[-1] == [first]
    await session.ask_instead("Who?")  # about the same pictures
    assert client.asked[-1][0]["content"] == [*first["content"][:2], {"type": "text", "text": "Who?"}]
    run(session, f"/image {tmp_path}/one.png")
    assert run(session, "/image none").startswith("no pictures")
    assert "[one.png] [two.png] Who?" in run(session, "/branch")


def test_what_is_no_picture_is_said(session: Session, tmp_path: Path) -> None:
    draw(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:12])
    (tmp_path / "page.tiff").write_bytes(b"")
    draw(tmp_path / "page.tiff", "TIFF")
    header = struct.pack(">II5B", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "vast.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    for name, words in (
        ("nothing.png", "cannot read .*: No such file"),
        ("", "cannot read .*: Is a directory"),
        ("text.png", "text.png is no PNG, JPEG"),
        ("cut.png", "cut.png is no PNG, JPEG"),
        ("page.tiff", "page.tiff is no PNG, JPEG"),
        ("vast.png", "vast.png is too large: .* exceeds limit"),
        ("huge.png", r"huge.png has 25\.17 MB, and 25\.17 MB fit"),
        ("good.png ' x", "no closing quotation"),
        ("x" * 300, "cannot read .*: File name too long"),
    ):
        with pytest.raises(SophserveError, match=words):
            run(session, f"/image {tmp_path}/{name}")
    with pytest.raises(PictureError, match="cannot read"):  # all or none
        run(session, f"/image {tmp_path}/good.png {tmp_path}/nothing.png")
    with pytest.raises(ChatError, match="no user"):
        run(session, "/image ~nobody-of-this-name/x")
    assert session.images == []
    session.client.blind = True
    with pytest.raises(ChatError, match="the model seer takes no pictures"):
        run(session, f"/image {tmp_path}/good.png")


async def test_a_conversation_has_only_so_many_pictures(session: Session, tmp_path: Path) -> None:
    Image.effect_noise((3000, 3000), 100).save(tmp_path / "noise.bmp")  # 9 MB
    run(session, f"/image {tmp_path}/noise.bmp")
    await session.ask("One?")
    run(session, f"/image {tmp_path}/noise.bmp")
    with pytest.raises(ChatError, match=r"would have 27\.\d\d MB, and 25\.17 MB fit into a request"):
        run(session, f"/image {tmp_path}/noise.bmp")
    run(session, "/clear")
    run(session, f"/image {tmp_path}/noise.bmp")


async def test_pictures_are_kept_once_and_as_long_as_their_conversation(session: Session, tmp_path: Path) -> None:
    store = session.store
    assert store
    draw(tmp_path / "cat.png")
    for _ in range(2):
        run(session, f"/image {tmp_path}/cat.png")
        await session.ask("Who?")
        session.keep()
    pictures = tmp_path / "chats" / "pictures"
    [kept] = pictures.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600 and pictures.stat().st_mode & 0o777 == 0o700
    [file] = (tmp_path / "chats").glob("*.json")
    assert "base64" not in file.read_text() and "cat.png" in file.read_text()
    sent = session.conversation.messages[0].images
    run(session, "/clear")
    assert "> [cat.png] Who?" in run(session, "/open 1")
    assert session.conversation.messages[0].images == sent and sent[0].url.startswith("data:image/png;base64,")
    # Another chat adds to the conversation: both have its picture then.
    other = Session(session.client, io.StringIO(), False, store.complete(store.all()[0]), store)
    draw(tmp_path / "dog.png", color="blue")
    run(other, f"/image {tmp_path}/dog.png")
    await other.ask("And this?")
    other.keep()
    session.keep()
    assert other.conversation.messages[-2].images == session.conversation.messages[-2].images != []
    assert len(list(pictures.iterdir())) == 2
    # What is deleted can be brought back, and its pictures go when it cannot.
    run(session, "/delete 1")
    run(session, "/restore")
    assert run(session, "/open 1") and session.conversation.messages[0].images == sent
    run(session, "/delete 1")
    long_ago = time.time() - 40 * 86400
    for old in [*(tmp_path / "chats/deleted").iterdir(), *pictures.iterdir()]:
        os.utime(old, (long_ago, long_ago))
    await session.ask("Without")
    session.keep()
    run(session, "/delete 1")
    assert list(pictures.iterdir()) == []


async def test_files_hold_pictures(session: Session, tmp_path: Path) -> None:
    draw(tmp_path / "cat.png")
    run(session, f"/image {tmp_path}/cat.png")
    await session.ask("")
    sent = session.conversation.messages[0].images
    assert session.conversation.name() == "cat.png"
    run(session, f"/save {tmp_path}/saved")
    run(session, f"/load {tmp_path}/saved")
    assert session.conversation.messages[0].images == sent
    run(session, f"/save-all {tmp_path}/all")
    [kept] = read((tmp_path / "all").read_bytes())
    assert kept.messages[0].images == sent


@pytest.mark.parametrize(
    "url", ["https://example.com/x.png", "data:text/html;base64,eA==", "data:image/png,x", "0" * 64]
)
def test_files_with_other_urls_are_refused(url: str) -> None:
    message = {"role": "user", "content": "x", "images": [{"name": "x", "url": url}]}
    with pytest.raises(FormatError, match=r"image of messages\[0\] is not data:image"):
        read(json.dumps({"messages": [message]}))


def test_paths_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a cat.png", "a dog.png", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "album").mkdir()
    monkeypatch.chdir(tmp_path)
    assert complete_file("a") == ["a cat.png", "a dog.png", "album/"]
    assert complete_file("a c") == ["a cat.png"] and complete_file(".h") == [".hidden"]
    assert complete_file("./al") == ["./album/"] and complete_file("") == ["a cat.png", "a dog.png", "album/"]
    assert complete_file(f"{tmp_path}/a d") == [f"{tmp_path}/a dog.png"]
    assert complete_file("nowhere/") == complete_file("~nobody-of-this-name/") == []
    monkeypatch.setenv("HOME", str(tmp_path))
    assert complete_file("~/a d") == ["~/a dog.png"]


def test_an_empty_conversation_has_a_name() -> None:
    assert Conversation().name() == "…"
