"""Errors that are meant for the user: one sentence that says what to change, shown without a traceback."""

TROUBLESHOOTING = "docs/troubleshooting.md"


def see(anchor: str) -> str:
    """What points to a place of the page about errors, in brackets."""
    return f"(see {TROUBLESHOOTING}#{anchor})"


class SophserveError(Exception):
    """Base of every error whose message is for the user. help: where in docs/troubleshooting.md there is more, which
    the message then ends with."""

    def __init__(self, message: str = "", *, help: str | None = None) -> None:
        super().__init__(message if help is None else f"{message} {see(help)}")


class ConfigError(SophserveError):
    """An option, or a combination of options, cannot work."""


class CheckpointError(SophserveError):
    """A model directory is missing something, or holds something that cannot be served."""


class RequestError(SophserveError):
    """A request cannot be served as it stands (HTTP 400). `param` names the field at fault, where there is one."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ServerBusy(SophserveError):
    """What a request needs is not to be had now; it may be sent again (HTTP 503, or 429 where its own client has it:
    `mine`)."""

    def __init__(self, message: str, mine: bool = False) -> None:
        super().__init__(message)
        self.mine = mine


class EngineDeadError(SophserveError):
    """The worker died and the engine cannot go on."""


class RequestAborted(SophserveError):
    """The engine ended a request before its answer was complete. `code` says why: cancelled or queue_timeout."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code
