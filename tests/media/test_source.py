"""The forms in which a request names an image."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Callable
from urllib.parse import quote

import pytest

from sophserve.errors import RequestError
from sophserve.media import source
from sophserve.media.source import ImageSource, image_source

DATA = bytes(range(256)) + b"\xfb\xef\xff?"
TEXT = base64.b64encode(DATA).decode()
PATH = "messages[0].content[1].image_url"


@pytest.mark.parametrize(
    "given",
    [
        f"data:image/png;base64,{TEXT}",
        f"data:image;base64,{TEXT}",  # Qwen3-VL#946
        f"data:;base64,{TEXT}",
        f" DATA:image/jpeg;charset=x;BASE64,{TEXT}\n",
        f"data:image/png;base64,{quote(TEXT)}",
        f"data:image/png;base64,{base64.urlsafe_b64encode(DATA).decode()}",
        f"data:image/png;base64,{TEXT.rstrip('=')}",
        TEXT,
        TEXT.rstrip("="),
        "\n".join(textwrap.wrap(TEXT, 76)),
    ],
)
def test_base64_in_any_form(given: str) -> None:
    assert image_source(given, PATH) == ImageSource(PATH, "auto", DATA, None)


@pytest.mark.parametrize(
    "escape", [str, lambda text: quote(text, safe=""), lambda text: "\n".join(textwrap.wrap(text, 7))]
)
def test_base64_in_slices(monkeypatch: pytest.MonkeyPatch, escape: Callable[[str], str]) -> None:
    """Wherever they end: in an escape, in padding, in a line."""
    for length in range(1, 40):
        text = escape(base64.b64encode(DATA[:length] + b"\xfb").decode())
        for size in range(4, 20):
            monkeypatch.setattr(source, "_SLICE", size)
            assert image_source(f"data:;base64,{text}", PATH).data == DATA[:length] + b"\xfb"
    for wrong in ("aaa=aaaaaaaaaaaaaaaa", "aa==" * 8, "aaaaaaaaaaaaa", "aaaaaaaa!aaaaaaaaaaa"):
        for size in range(4, 24):
            monkeypatch.setattr(source, "_SLICE", size)
            with pytest.raises(RequestError, match="not valid base64"):
                image_source(wrong, PATH)


def test_urls_are_kept_for_later() -> None:
    for url in ("https://example.org/a.png?b=c", "HTTP://example.org/"):
        assert image_source(f" {url}\n", PATH, "low") == ImageSource(PATH, "low", None, url)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "is empty"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64", "must look like data:image/png;base64"),
        ("data:image/png,%89PNG", "must look like data:image/png;base64"),
        ("data:image/png;base64,a", "not valid base64"),
        ("data:image/png;base64,aä==", "not valid base64"),
        ("data:image/png;base64,aa=a", "not valid base64"),
        ("a picture, of a cat", "not valid base64"),
        ("\ud800aaa", "not valid base64"),
        ("file:///etc/passwd", "not with file:"),
        ("ftp://example.org/a.png", "not with ftp:"),
    ],
)
def test_what_is_none(given: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        image_source(given, PATH)
    assert caught.value.param == PATH and str(caught.value).startswith(PATH)


@pytest.mark.parametrize(("detail", "level"), [(None, "auto"), ("auto", "auto"), ("low", "low"), ("original", "high")])
def test_details(detail: str | None, level: str) -> None:
    assert image_source(TEXT, PATH, detail).detail == level


def test_an_unknown_detail() -> None:
    with pytest.raises(RequestError, match="detail must be auto, low or high, got 'medium'"):
        image_source(TEXT, PATH, "medium")
