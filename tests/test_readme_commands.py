"""The commands of README.md do what they should. They take long, and tests of one file wait for each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.documented_commands import follow
from tests.test_documentation import READMES


def test_commands(make_checkpoint: Callable[..., Path], write_page: Callable[..., None], tmp_path: Path) -> None:
    if missing := follow(READMES[0], make_checkpoint, write_page, tmp_path):
        pytest.skip(f"all but the commands that need {', '.join(missing)} did what they should")
