"""The commands of the guides do what they should, and each fence of all pages is known."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.documented_commands import LANGUAGES, TRIED, blocks, exceptions, follow
from tests.test_documentation import PAGES, READMES, ROOT, fences


@pytest.mark.parametrize("page", [page for page in TRIED if page not in READMES and any(blocks(page))])
def test_commands(
    page: str, make_checkpoint: Callable[..., Path], write_page: Callable[..., None], tmp_path: Path
) -> None:
    if missing := follow(page, make_checkpoint, write_page, tmp_path):
        pytest.skip(f"all but the commands that need {', '.join(missing)} did what they should")


@pytest.mark.parametrize("page", PAGES)
def test_every_fence_is_known(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(re.findall(r"```|~~~", text)) == 2 * len(fences(page)), "a fence is indented, or does not end"
    files = [fence.info for fence in fences(page) if fence.info not in LANGUAGES]
    assert all(" " in info for info in files), f"{files}: a fence is one of {LANGUAGES}, or has a file's name"
    if files:
        tests = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py")))
        assert f'write_page("{page}"' in tests, f"no test takes the files {files}"


def test_every_exception_is_there() -> None:
    commands = {page: [each for _, found in blocks(page) for each in found] for page in TRIED}
    for page, words in exceptions():
        assert any(f"{each} ".startswith(f"{words} ") for each in commands[page]), f"{page} has no {words}"
