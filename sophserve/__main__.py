"""Where the command starts: `sophserve`, or `python -m sophserve`."""

import signal
import sys


def run() -> int:
    """Run the command line and return the process's exit code."""
    # Until the server handles signals, Ctrl-C ends the process at once and silently, while it imports as well.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sophserve.standard_streams import open_standard_streams

    open_standard_streams()
    from sophserve.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
