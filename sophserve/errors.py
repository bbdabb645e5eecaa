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
    """A request cannot be served as it stands (HTTP 400). `param` names the field at fault, where there is one. The
    message is for the client, and may quote what it sent; `cause` is what the log says of it, and must not."""

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, cause: str | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.cause = cause


class GrammarTooLarge(RequestError):
    """A form of the answer is more than can be compiled, whatever it says."""


class ServerBusy(SophserveError):
    """What a request needs is not to be had now; it may be sent again (HTTP 503, or 429 where its own client has it:
    `mine`)."""

    def __init__(self, message: str, mine: bool = False) -> None:
        super().__init__(message)
        self.mine = mine


class ContextLengthError(RequestError):
    """A prompt, alone or with its answer, has no room in the context. Clients know this case by the words of OpenAI's
    message, and go on with a shorter prompt or another model.

    context: of the model. problem: what is too long, and what to change. tokens: of the prompt, at least. most: how
    many it may have.
    """

    def __init__(self, context: int, problem: str, param: str, tokens: int, most: int) -> None:
        message = f"This model's maximum context length is {context} tokens. However, {problem}"
        super().__init__(message, param, "context_length_exceeded")
        self.tokens = tokens
        self.most = most


class EngineDeadError(SophserveError):
    """The worker died and the engine cannot go on."""


class RequestAborted(SophserveError):
    """The engine ended a request before its answer was complete. `code` says why: cancelled or queue_timeout."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code
