"""Standard input, output and error: there, wherever the process was started from."""

from __future__ import annotations

import os
import sys


def open_standard_streams() -> None:
    """Open those that are closed on /dev/null. Otherwise the next files and sockets would get their numbers, and what
    is printed would go into them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    # Python has None in their place.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
