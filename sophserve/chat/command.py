"""The command: where the model is, and the loop of question and answer."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, closing, suppress
from typing import Any

from sophserve.background import Background
from sophserve.chat.client import ChatError, Client, NotListening
from sophserve.chat.commands import COMMANDS, FILE_COMMANDS, PARAMETERS, run
from sophserve.chat.conversation import Conversation
from sophserve.chat.line_input import keep_history, piped_line, read_question, terminal_line
from sophserve.chat.markup import DIM, RED, RESET, printable
from sophserve.chat.session import Session
from sophserve.chat.store import Store
from sophserve.errors import SophserveError
from sophserve.http_client import server_address
from sophserve.options import CommandParser, add_engine_options, engine_config
from sophserve.state_folder import state_folder

DEFAULT_URL = "http://localhost:8000"
ENGINE_OPTIONS = (
    "device", "dtype", "quantization", "activation_bits", "head_bits", "tensor_parallel_size", "max_model_len",
    "kv_cache_memory",
    "chat_template",
)  # fmt: skip


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """The options that a command line gives."""
    parser = CommandParser("chat", "Chat with a server in the terminal, or, where none runs, with a model of its own.")
    group = parser.add_argument_group("server")
    group.add_argument("--url", metavar="TEXT", help=f"an OpenAI-compatible server (default: {DEFAULT_URL})")
    text = "the server's name of it (default: its first); a directory, Hub id or demo is loaded where no server runs"
    group.add_argument("--model", metavar="TEXT", help=text)
    group.add_argument("--api-key", metavar="TEXT", help="default: SOPHSERVE_API_KEY")
    group = parser.add_argument_group("conversation")
    group.add_argument("--system", metavar="TEXT", help="the system prompt")
    for name, kind in (("temperature", float), ("top_p", float), ("top_k", int), ("max_tokens", int), ("seed", int)):
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help="default: as the server has it")
    add_engine_options(parser, ENGINE_OPTIONS)
    given = vars(parser.parse_args(argv))
    return given | {"url": server_address(given["url"])} if "url" in given else given


def chat(argv: Sequence[str]) -> int:
    """Chat until the input ends; 1 if a question that was not typed could not be answered."""
    given = parse(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    styled = sys.stdout.isatty()
    stack = AsyncExitStack()
    try:
        with closing(Background("chat")) as background:
            try:
                client = background.run(_connect(stack, given))
                parameters = {name: given[name] for name in PARAMETERS if name in given}
                conversation = Conversation(system=given.get("system", ""), parameters=parameters)
                session = Session(client, sys.stdout, styled, conversation)
                return _typed(background, session) if sys.stdin.isatty() else _piped(background, session)
            finally:
                background.run(stack.aclose())
    except KeyboardInterrupt:
        return 130


async def _connect(stack: AsyncExitStack, given: dict[str, Any]) -> Client:
    """A client of the server that the options mean, or of a model that is loaded for it. Raises SophserveError."""
    key = given.get("api_key") or os.environ.get("SOPHSERVE_API_KEY")
    name = given.get("model")
    client = await stack.enter_async_context(Client(given.get("url", DEFAULT_URL), key, name))
    try:
        models = await client.models(_waiting)
        _waiting("")
    except NotListening:
        if "url" in given:
            raise
        if not name:
            raise ChatError(
                f"no server runs at {DEFAULT_URL}; give --url, or --model DIR or --model demo to load a model"
            ) from None
        return await _load(stack, given)
    known = {model.id: model for model in models}
    if name and name not in known:
        if "url" not in given:
            return await _load(stack, given)
        raise ChatError(f"the server has no model {name!r}; it has {', '.join(known)}")
    if not models:
        raise ChatError(f"{client.url} serves no model")
    client.choose(known[name] if name else models[0])
    return client


async def _load(stack: AsyncExitStack, given: dict[str, Any]) -> Client:
    from sophserve.chat.local import local_model

    options = {name: given[name] for name in ("model", *ENGINE_OPTIONS) if name in given}
    socket = await stack.enter_async_context(local_model(engine_config(options)))
    client = await stack.enter_async_context(Client("http://localhost", socket=socket))
    [model] = await client.models(_waiting)
    client.choose(model)
    return client


def _waiting(reason: str) -> None:
    """Show why there is nothing to see yet, in place of the last reason."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{reason}")
        sys.stderr.flush()


def _typed(background: Background, session: Session) -> int:
    keep_history(state_folder() / "chat_history", list(COMMANDS), FILE_COMMANDS)
    session.store = Store(state_folder() / "chats")
    if session.styled:
        print(f"\r\x1b[K{DIM}{session.client.model} · /help lists the commands{RESET}")
    while True:
        try:
            _turn(background, session, terminal_line)
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
        except SophserveError as error:
            print(f"{RED}{error}{RESET}" if session.styled else error, file=sys.stderr)


def _piped(background: Background, session: Session) -> int:
    with suppress(EOFError):
        while True:
            _turn(background, session, piped_line)
    return 0


def _turn(background: Background, session: Session, line: Callable[[bool], str]) -> None:
    """Read a question or a command, and do what it says. Raises EOFError."""
    question = read_question(line).strip()
    if not question:
        return
    done = run(session, question) if question.startswith("/") else session.ask(question)
    if isinstance(done, str):
        told = printable(done)
        print(f"{DIM}{told}{RESET}" if session.styled else told, file=sys.stderr)
        return
    try:
        background.run(done)
    finally:
        session.keep()
