"""The lines of the log: plain text, or JSON objects for programs that collect them."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections import deque
from contextlib import suppress

# Bytes that may wait to be written.
MOST_WAITING = 4 << 20
# Seconds that the end of the process waits for them.
LAST_CHANCE = 1.0


class JsonFormatter(logging.Formatter):
    """One JSON object a line. What a message was logged with as `extra={"fields": {...}}` stands beside it."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class PatientHandler(logging.Handler):
    """Writes to a file descriptor in a thread, so that nobody waits for who reads the log, or reads it no more. Lines
    beyond MOST_WAITING bytes are left out and counted."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._waiting = 0  # bytes of them
        self._left_out = 0
        self._changed = threading.Condition()
        # A daemon, for the process has to be able to end while it waits.
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line."""
        try:
            line = self._line(record)
        except Exception:  # as any handler, which must not raise
            self.handleError(record)
            return
        with self._changed:
            if self._lines and self._waiting + len(line) > MOST_WAITING:
                self._left_out += 1
            else:
                self._queue(line)

    def flush(self) -> None:
        """Wait until all lines are written, but not for long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines, LAST_CHANCE)

    def _queue(self, line: bytes) -> None:
        self._lines.append(line)
        self._waiting += len(line)
        self._changed.notify_all()

    def _line(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode(errors="backslashreplace")

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                line = self._lines[0]  # it counts as waiting until it is written
            self._write(line)
            with self._changed:
                self._waiting -= len(self._lines.popleft())
                if self._left_out and not self._lines:
                    self._queue(self._line(_left_out(self._left_out)))
                    self._left_out = 0
                self._changed.notify_all()

    def _write(self, line: bytes) -> None:
        with suppress(OSError):  # the reader has gone, or the disk is full
            while line:
                line = line[os.write(self._descriptor, line) :]


def _left_out(count: int) -> logging.LogRecord:
    text = "%d lines of the log were left out, since it was read too slowly"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (count,), None)


def configure(level: int | str, as_json: bool, process: str = "server") -> None:
    """Log to standard error from this level on. The server does not wait until it is written; a worker does, whose
    last words would be lost where it is aborted."""
    handler = PatientHandler(2) if process == "server" else logging.StreamHandler(sys.stderr)
    prefix = "" if process == "server" else f"{process}: "
    plain = logging.Formatter(f"%(asctime)s %(levelname)s {prefix}%(message)s")
    handler.setFormatter(JsonFormatter(process) if as_json else plain)
    logging.basicConfig(level=level, handlers=[handler])


def in_json() -> bool:
    """Whether this process logs JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)
