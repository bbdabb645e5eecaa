"""Pictures in the playground: chosen, pasted and dropped; what is sent, kept, exported and refused."""

from __future__ import annotations

import asyncio
import io
import json
from base64 import b64decode, b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sophserve.chat.conversation import read
from sophserve.link.images import ImageShape, SharedPixels
from sophserve.link.messages import EncoderInfo
from sophserve.media.loader import Picture
from sophserve.media.source import ImageSource
from sophserve.text.chat_template import ChatTemplate
from tests.api.images import PLACEHOLDER, TEMPLATE, Loader
from tests.api.page.test_conversations import OPEN, answered, ask, import_file, ready, reload, titles

ENTER, TAB = "\ue007", "\ue004"
# What the page asks is noted.
RECORD = """
window.asked = [];
const real = window.fetch;
window.fetch = (path, options) => {
  if (path === "v1/chat/completions") window.asked.push(JSON.parse(options.body).messages);
  return real(path, options);
};
"""
# Lets go of files over the page, or pastes them: [name, type, base64].
GIVE = """
const [kind, files, texts] = arguments;
const data = new DataTransfer();
for (const [name, type, text] of files) {
  data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name, { type }));
}
for (const type of texts) data.setData(type, "a text");
const options = { bubbles: true, cancelable: true };
const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: data, ...options })
  : new DragEvent(kind, { dataTransfer: data, ...options });
document.activeElement.dispatchEvent(event);
return [event.defaultPrevented, document.querySelector("#composer").className];
"""


class AnyPicture(Loader):
    """Takes every file for a picture of three tokens."""

    def _picture(self, source: ImageSource) -> Picture:
        assert source.data is not None
        return Picture(sha256(source.data).digest(), ImageShape(3, (1, 1, 3), (1,)), SharedPixels(3))


@pytest.fixture
def seeing(served: Any) -> Any:
    """An application whose model takes pictures."""
    served.engine.info.encoder = EncoderInfo(pieces=1, cost=1.0, cache_tokens=4096)
    served.serving.images = AnyPicture()
    served.serving.chat_template = ChatTemplate({"default": TEMPLATE}, served.tokenizer.special_tokens, PLACEHOLDER)
    return served


@pytest.fixture
async def page(seeing: Any, open_page: Any) -> Any:
    page = await ready(await open_page(seeing))
    await page.run(RECORD)
    return page


def draw(kind: str = "PNG", size: tuple[int, int] = (60, 40), color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, kind)
    return file.getvalue()


def noise(side: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 100).save(file, "BMP")
    return file.getvalue()


async def choose(page: Any, *files: Path) -> None:
    field = await asyncio.to_thread(page.driver.find_element, "css selector", "#picture")
    await asyncio.to_thread(field.send_keys, "\n".join(str(file) for file in files))


async def give(page: Any, kind: str, *files: tuple[str, str, bytes], texts: tuple[str, ...] = ()) -> list[Any]:
    """Whether the page took it, and how the composer looks then."""
    given = [(name, type_, b64encode(content).decode()) for name, type_, content in files]
    return list(await page.run(GIVE, kind, given, texts))


async def until_attached(page: Any, count: int) -> None:
    await page.until(f"document.querySelectorAll('#pictures li').length === {count}")


async def until_told(page: Any, *words: str) -> None:
    for word in words:
        await page.until(f"document.querySelector('#notice .error')?.innerText.includes({json.dumps(word)})")


async def asked(page: Any) -> list[Any]:
    """The messages of the last request; images as (type, file)."""

    def plain(part: dict[str, Any]) -> Any:
        if part["type"] == "text":
            return part["text"]
        kind, _, data = part["image_url"]["url"].partition(";base64,")
        return kind, b64decode(data, validate=True)

    messages = json.loads(await page.run("return JSON.stringify(window.asked.at(-1))"))
    return [
        each["content"] if isinstance(each["content"], str) else [*map(plain, each["content"])] for each in messages
    ]


async def colors(page: Any, selector: str) -> list[list[int]]:
    """The middle of each picture that is shown."""
    await page.until(f"[...document.querySelectorAll('{selector} canvas')].every(c => c.width > 1)")
    script = """return [...document.querySelectorAll(arguments[0] + " canvas")].map((c) =>
      [...c.getContext("2d").getImageData(c.width >> 1, c.height >> 1, 1, 1).data.slice(0, 3)]);"""
    return list(await page.run(script, selector))


async def test_pictures_are_sent_as_they_are_in_every_turn(seeing: Any, page: Any, tmp_path: Path) -> None:
    red, blue = draw(), draw("JPEG", (3000, 2000), "blue")
    (tmp_path / "a cat.png").write_bytes(red)
    (tmp_path / "dog.jpg").write_bytes(blue)
    assert await page.run("return document.querySelector('#send').disabled")
    await choose(page, tmp_path / "a cat.png", tmp_path / "dog.jpg")
    await until_attached(page, 2)
    assert not await page.run("return document.querySelector('#send').disabled")
    assert [color[0] > 200 for color in await colors(page, "#pictures")] == [True, False]
    labels = (
        "return [...document.querySelectorAll('#pictures canvas')].map(c => [c.getAttribute('aria-label'), c.title])"
    )
    assert await page.run(labels) == [["a cat.png", "a cat.png · 60 × 40"], ["dog.jpg", "dog.jpg · 3000 × 2000"]]
    await page.shot("pictures-written")
    await page.assert_readable()
    await ask(page, "Which is red?")
    first = [("data:image/png", red), ("data:image/jpeg", blue), "Which is red?"]
    assert await asked(page) == [first]
    await until_attached(page, 0)
    assert [color[0] > 200 for color in await colors(page, ".user")] == [True, False]
    await page.shot("pictures")
    await page.look("dark", 390)
    await page.shot("pictures-narrow")
    assert await page.run("return document.documentElement.scrollWidth") == 390
    await page.look("light", 1360)
    await ask(page, "And now?")
    assert await asked(page) == [first, "Yes, of course.", "And now?"]
    assert [item.digest for item in seeing.engine.items[-1]] == [sha256(content).digest() for content in (red, blue)]
    # An edit is about the same pictures.
    await page.click(".user .do-edit")
    await page.type("\ue003" * 20, ENTER)
    await answered(page, 2)
    assert await asked(page) == [first[:2]]
    # What the browser keeps is what was there.
    await reload(page)
    await page.run(RECORD)
    await page.until("document.querySelectorAll('.user canvas').length === 2")
    await page.click(".answer .do-again")
    await page.until(
        "document.querySelector('.answer .branches')?.innerText.includes('2/2') && window.asked.length === 1"
    )
    assert await asked(page) == [first[:2]]


async def test_pasted_and_dropped(page: Any) -> None:
    red = draw()
    await page.click("#input")
    await page.type("Half a ques")
    assert (await give(page, "paste", ("image.png", "image/png", red), texts=("text/html",)))[0]
    await until_attached(page, 1)
    # A text from a document comes with a picture of it, and nothing is taken from who writes elsewhere.
    assert not (await give(page, "paste", ("image.png", "image/png", red), texts=("text/html", "text/plain")))[0]
    assert not (await give(page, "paste", texts=("text/plain",)))[0]
    await page.click("#search")
    assert not (await give(page, "paste", ("image.png", "image/png", red)))[0]
    assert await give(page, "dragover", ("x.png", "image/png", red)) == [True, "dropping"]
    await page.shot("dropping")
    assert await give(page, "drop", ("x.png", "image/png", red), ("y.webp", "image/webp", draw("WEBP"))) == [True, ""]
    await until_attached(page, 3)
    assert not (await give(page, "dragover", texts=("text/plain",)))[0]
    await page.click("#input")
    await page.type("tion", ENTER)
    await answered(page, 2)
    assert [part[0] for part in (await asked(page))[0][:3]] == ["data:image/png"] * 2 + ["data:image/webp"]
    assert (await asked(page))[0][3] == "Half a question"


async def test_with_the_keyboard(page: Any) -> None:
    await give(page, "drop", *((f"{name}.png", "image/png", draw()) for name in "abc"))
    await until_attached(page, 3)
    assert await page.text("#said") == "c.png was added."
    assert await page.run("return document.querySelector('#pictures').getAttribute('aria-label')") == "Pictures"
    await page.run("document.querySelector('#pictures button').focus()")
    await page.type(TAB)
    label = "return document.activeElement.getAttribute('aria-label')"
    assert await page.run(label) == "Remove b.png"
    await page.type(ENTER)
    assert await page.run(label) == "Remove c.png" and await page.text("#said") == "b.png was removed."
    await page.type(" ")
    assert await page.run(label) == "Remove a.png"
    await page.click("#language")
    await page.run("document.querySelector('#pictures button').focus()")
    assert await page.run(label) == "移除 a.png" and await page.text("#attach") == "添加图片"
    await page.type(ENTER)
    assert await page.run("return document.activeElement.id") == "input"
    assert not await page.run("return document.querySelector('#pictures').checkVisibility()")
    await page.click("#language")
    await page.run("document.querySelector('#input').focus()")
    await page.type(TAB)
    assert await page.run("return document.activeElement.id") == "attach"


async def test_a_draft_has_its_own_pictures(page: Any) -> None:
    await ask(page, "One?")
    await give(page, "drop", ("a.png", "image/png", draw()))
    await until_attached(page, 1)
    await page.click("#new")
    await until_attached(page, 0)
    await give(page, "drop", ("b.png", "image/png", draw(color="blue")))
    await until_attached(page, 1)
    await page.type(ENTER)
    await answered(page, 2)
    # A message may be nothing but a picture, and the conversation is called after it.
    assert await asked(page) == [[("data:image/png", draw(color="blue"))]]
    assert await titles(page) == ["b.png", "One?"]
    await page.click("#conversations li:last-child .open")
    await until_attached(page, 1)
    assert [color[0] > 200 for color in await colors(page, "#pictures")] == [True]


async def test_what_is_refused(seeing: Any, page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind, content, words in (
        ("a.pdf", "application/pdf", b"%PDF", ("a.pdf was not added", "no PNG, JPEG")),
        ("b.svg", "image/svg+xml", b"<svg/>", ("b.svg was not added", "no PNG, JPEG")),
        ("c.png", "image/png", b"none", ("c.png cannot be read as a picture",)),
        ("d.png", "image/png", draw()[:40], ("d.png cannot be read as a picture",)),
    ):
        await give(page, "drop", (name, kind, content))
        await until_told(page, *words)
    await page.shot("picture-refused")
    await page.assert_readable()
    # As much as the server takes, told with both numbers.
    seeing.serving.config.max_image_bytes = "1MB"
    seeing.engine.config.limit_mm_per_prompt = {"image": 2}
    monkeypatch.setattr("sophserve.api.operations.server_info.MAX_BODY_BYTES", 300_000)
    await reload(page)
    await page.run(RECORD)
    await give(page, "drop", ("e.bmp", "image/bmp", noise(400)))
    await until_attached(page, 1)
    await ask(page, "What?")
    await give(page, "drop", ("f.bmp", "image/bmp", noise(300)))
    await until_told(page, "f.bmp was not added", "have 0.34 MB", "up to 0.30 MB")
    await until_attached(page, 0)
    await give(page, "drop", ("g.bmp", "image/bmp", noise(1200)))
    await until_told(page, "g.bmp was not added", "has 1.44 MB", "up to 1.00 MB")
    await page.click("#new")
    await give(page, "drop", ("f.bmp", "image/bmp", noise(300)), *[("h.png", "image/png", draw())] * 2)
    await until_told(page, "h.png was not added", "has 3 pictures", "up to 2 in a request")
    await until_attached(page, 2)


async def test_only_for_a_model_that_sees(served: Any, open_page: Any) -> None:
    page = await ready(await open_page(served))
    assert not await page.run("return document.querySelector('#attach').checkVisibility()")
    await page.click("#input")
    assert (await give(page, "paste", ("a.png", "image/png", draw())))[0]
    await until_told(page, "The model tiny takes no pictures.")
    assert await give(page, "dragover", ("a.png", "image/png", draw())) == [True, ""]
    await until_attached(page, 0)


async def test_files_with_pictures(page: Any, tmp_path: Path) -> None:
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    await asyncio.to_thread(page.driver.execute_cdp_cmd, "Browser.setDownloadBehavior", behaviour)
    await give(page, "drop", ("a.png", "image/png", draw()))
    await until_attached(page, 1)
    await ask(page, "Red?")
    await page.click(f"{OPEN} .do-save")
    file = tmp_path / "Red.json"
    async with asyncio.timeout(8):
        while not file.exists():
            await asyncio.sleep(0.02)
    # The chat in the terminal reads and writes the same files.
    [known] = read(file.read_bytes())
    [picture] = known.messages[0].images
    assert picture.name == "a.png" and b64decode(picture.url.partition(",")[2]) == draw()
    await import_file(page, tmp_path / "again.json", file.read_text())
    await page.until("document.querySelectorAll('#conversations li').length === 2")
    assert [color[0] > 200 for color in await colors(page, ".user")] == [True]
    await ask(page, "Really?")
    assert (await asked(page))[0] == [("data:image/png", draw()), "Red?"]
    kept = json.loads(file.read_text())
    for number, (images, words) in enumerate(
        (
            ([7], "messages[0].images[0]"),
            ([{"url": "https://example.com/x.png"}], "messages[0].images[0].url"),
            ([{"url": "data:image/png;base64,A"}], "messages[0].images[0].url"),
            ([{"url": "data:text/html;base64,AAAA"}], "messages[0].images[0].url"),
            ([{"name": 7, "url": picture.url}], "messages[0].images[0].name"),
            ({"length": 1}, "messages[0].images"),
        )
    ):
        kept["conversations"][0]["messages"][0]["images"] = images
        await import_file(page, tmp_path / f"wrong{number}.json", kept)
        await until_told(page, f"wrong{number}.json", words)
    # One that is no picture is shown by its name.
    broken = {"name": "broken.png", "url": "data:image/png;base64,AAAA"}
    kept["conversations"][0]["messages"][0]["images"] = [broken]
    await import_file(page, tmp_path / "broken.json", kept)
    await page.until("document.querySelector('.user .pictures')?.innerText === 'broken.png'")
