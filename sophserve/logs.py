"""The lines of the log: plain text, or JSON objects for programs that collect them."""

from __future__ import annotations

import json
import logging
import sys
import time


class JsonFormatter(logging.Formatter):
    """One JSON object a line. What a message was logged with as `extra={"fields": {...}}` stands beside it."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
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


def configure(level: int | str, as_json: bool, process: str = "server") -> None:
    """Log to standard error from this level on."""
    handler = logging.StreamHandler(sys.stderr)
    prefix = "" if process == "server" else f"{process}: "
    plain = logging.Formatter(f"%(asctime)s %(levelname)s {prefix}%(message)s")
    handler.setFormatter(JsonFormatter(process) if as_json else plain)
    logging.basicConfig(level=level, handlers=[handler])


def in_json() -> bool:
    """Whether this process logs JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)
