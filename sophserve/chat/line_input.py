"""Reads what is asked: from a terminal with a history, or line by line from a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

_QUOTES = '"""'
_HISTORY_LENGTH = 1000


def read_question(line: Callable[[bool], str]) -> str:
    """One question. line(more) reads a line; more says that it goes on: behind a backslash at the end, or between
    three quotation marks. Raises EOFError."""
    text = line(False)
    if text.lstrip().startswith(_QUOTES):
        text = text.lstrip().removeprefix(_QUOTES)
        while not text.rstrip().endswith(_QUOTES):
            text += "\n" + line(True)
        return text.rstrip().removesuffix(_QUOTES).strip("\n")
    while text.endswith("\\"):
        text = text[:-1] + "\n" + line(True)
    return text


def piped_line(more: bool) -> str:
    """The next line of standard input. Raises EOFError."""
    text = sys.stdin.readline()
    if not text:
        raise EOFError
    return text.rstrip("\r\n")


def terminal_line(more: bool) -> str:
    """A line that is typed. Raises EOFError, and KeyboardInterrupt for Ctrl-C."""
    # The marks tell readline what of the prompt takes no room.
    return input("\001\x1b[2m\002. \001\x1b[0m\002" if more else "\001\x1b[1;32m\002> \001\x1b[0m\002")


def complete_file(beginning: str) -> list[str]:
    """The files and folders whose paths begin so, hidden ones only if their dot is written."""
    folder, _, start = beginning.rpartition("/")
    try:
        found = sorted(Path(f"{folder}/" if "/" in beginning else ".").expanduser().iterdir())
    except (OSError, RuntimeError):  # no such folder, or none of such a user
        return []
    shown = [each for each in found if each.name.startswith(start) and (start or each.name[0] != ".")]
    return [f"{beginning[: len(beginning) - len(start)]}{each.name}{'/' * each.is_dir()}" for each in shown]


def keep_history(path: Path, commands: Sequence[str], files: Sequence[str]) -> None:
    """Let the terminal's lines be edited, remembered in a file, and completed to commands, or behind those of `files`
    to paths."""
    try:
        import atexit
        import readline
    except ImportError:  # Python can be built without it
        return

    def write() -> None:
        with suppress(OSError):  # no place for it: the next chat begins without one
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)

    def complete(text: str, number: int) -> str | None:
        command, space, path = readline.get_line_buffer()[: readline.get_endidx()].partition(" ")
        if space and command in files:
            # What is completed begins behind the last space, which may be one of the path.
            found = [name[len(path) - len(text) :] for name in complete_file(path)]
        else:
            found = [name for name in commands if text and name.startswith(text)]
        return found[number] if number < len(found) else None

    with suppress(OSError):  # the first time there is none
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LENGTH)
    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
    atexit.register(write)
