"""The process of a replica's server: the ordinary command, which ends with the process that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run `sophserve` with the arguments behind the first, which is the id of the process above."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv.pop(1)):
        return 1  # it was gone before
    from sophserve.__main__ import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
