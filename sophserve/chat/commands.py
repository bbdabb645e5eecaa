"""The commands of the chat: lines that begin with /."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sophserve.chat.client import ChatError
from sophserve.chat.conversation import Conversation, FormatError, read, write
from sophserve.chat.pictures import MOST_BYTES, megabytes, read_picture
from sophserve.chat.session import Session
from sophserve.chat.store import Store
from sophserve.options import did_you_mean

PARAMETERS = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "stop", "presence_penalty", "frequency_penalty",
    "repetition_penalty",
)  # fmt: skip
T = TypeVar("T")
Done = str | Coroutine[Any, Any, None]
_SHOWN = 60  # characters of a message in a list


def run(session: Session, line: str) -> Done:
    """Do what a /command says; returns what to tell, or the work of one that asks. Raises ChatError, and EOFError to
    end."""
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        raise ChatError(f"there is no command {name}{did_you_mean(name, list(COMMANDS)) or '; see /help'}")
    return COMMANDS[name].run(session, argument.strip())


def _clear(session: Session, _: str) -> str:
    before = session.conversation
    session.conversation = Conversation(system=before.system, parameters=dict(before.parameters))
    return "a new conversation"


def _system(session: Session, text: str) -> str:
    if text:
        session.conversation.system = "" if text == "none" else text
        session.keep()
    return f"system prompt: {session.conversation.system or 'none'}"


def _set(session: Session, argument: str) -> str:
    parameters = session.conversation.parameters
    name, _, text = argument.partition(" ")
    if name and name not in PARAMETERS:
        raise ChatError(f"there is no parameter {name}{did_you_mean(name, PARAMETERS) or ': ' + ', '.join(PARAMETERS)}")
    if text.strip() == "default":
        parameters.pop(name, None)
    elif text:
        try:
            parameters[name] = json.loads(text)
        except ValueError:
            raise ChatError(f'{text} is no value; write a number, a "text" or a list [...]') from None
    shown = {name: parameters.get(name, "default")} if name else parameters
    return "\n".join(f"{key} = {value}" for key, value in shown.items()) or "all as the server has them"


def _image(session: Session, argument: str) -> str:
    if argument == "none":
        session.images = []
    elif argument:
        return _add_images(session, _files(argument))
    return "\n".join(each.name for each in session.images) or "no pictures go with the next question"


def _add_images(session: Session, files: list[Path]) -> str:
    if session.client.blind:
        raise ChatError(f"the model {session.client.model} takes no pictures")
    found = [read_picture(file) for file in files]
    before = [image for message in session.conversation.path() for image in message.images]
    size = sum(each.size for each in [*before, *session.images, *(picture for picture, _ in found)])
    if size > MOST_BYTES:
        raise ChatError(
            f"the pictures of this conversation would have {megabytes(size)}, and {megabytes(MOST_BYTES)} fit into a "
            "request; take smaller ones, or /clear"
        )
    session.images += [picture for picture, _ in found]
    return "\n".join(f"{told}: goes with the next question" for _, told in found)


def _files(argument: str) -> list[Path]:
    """One file, as it is written, or several as a shell takes them. Raises ChatError."""
    with suppress(OSError):
        (file := _file(argument)).stat()
        return [file]
    try:
        return [_file(each) for each in shlex.split(argument)]
    except ValueError as error:
        raise ChatError(f"cannot tell the files of {argument}: {str(error).lower()}") from None


def _edit(session: Session, question: str) -> Done:
    if not question:
        raise ChatError("/edit wants the question that is to be asked instead")
    return session.ask_instead(question)


def _undo(session: Session, _: str) -> str:
    session.conversation.leaf = session.last_question().parent or None
    session.keep()
    return f"{len(session.conversation.path())} messages are left; /branch goes back"


def _branch(session: Session, number: str) -> str:
    conversation = session.conversation
    ends = conversation.ends()
    if not ends:
        raise ChatError("nothing was asked yet")
    if number:
        conversation.leaf = _numbered(ends, number, "/branch").id
        session.keep()
        return _last(conversation)
    rows = []
    for index, end in enumerate(ends, 1):
        path = Conversation(leaf=end.id, messages=conversation.messages).path()
        said = " → ".join(message.short(_SHOWN) for message in path[-2:])
        rows.append(f"{'*' if end.id == conversation.leaf else ' '}{index:>3}  {said}")
    return "\n".join(rows)


def _list(session: Session, words: str) -> str:
    rows = [
        f"{'*' if each.id == session.conversation.id else ' '}{index:>3}  {each.updated:%Y-%m-%d}  {each.name()}"
        for index, each in enumerate(_store(session).all(), 1)
        if each.holds(words.split())
    ]
    return "\n".join(rows) or ("nothing was found" if words else "nothing was kept yet")


def _open(session: Session, number: str) -> str:
    store = _store(session)
    session.conversation = store.complete(_numbered(store.all(), number, "/open"))
    return _last(session.conversation)


def _rename(session: Session, title: str) -> str:
    session.conversation.title = title
    session.keep()
    return f"called {session.conversation.name()}"


def _delete(session: Session, number: str) -> str:
    store = _store(session)
    conversation = _numbered(store.all(), number, "/delete")
    store.delete(conversation)
    if conversation.id == session.conversation.id:
        _clear(session, "")
    return f"deleted {conversation.name()}; /restore brings it back"


def _restore(session: Session, _: str) -> str:
    return f"restored {_store(session).restore().name()}"


def _save(session: Session, path: str) -> str:
    _write(path, [session.conversation])
    return f"saved {len(session.conversation.messages)} messages"


def _save_all(session: Session, path: str) -> str:
    store = _store(session)
    conversations = [store.complete(each) for each in store.all()]
    _write(path, conversations)
    return f"saved {len(conversations)} conversations"


def _load(session: Session, path: str) -> str:
    try:
        found = read(_file(path).read_bytes())
    except OSError as error:
        raise ChatError(f"cannot read {path}: {error.strerror}") from None
    except FormatError as error:
        raise ChatError(f"{path} holds no conversations: {error}") from None
    if not found:
        raise ChatError(f"{path} holds no conversation")
    for each in found:
        each.parameters = {name: value for name, value in each.parameters.items() if name in PARAMETERS}
    if session.store:
        session.store.add(found)
    session.conversation = max(found, key=lambda each: each.updated)
    count = f", of the last of {len(found)} conversations" if len(found) > 1 else ""
    return f"loaded {len(session.conversation.path())} messages{count}"


def _stats(session: Session, argument: str) -> str:
    if argument in ("on", "off"):
        session.shows_stats = argument == "on"
        return f"shown below each answer: {argument}"
    if not session.stats:
        return "nothing was asked yet"
    tokens = sum(each.output_tokens for each in session.stats)
    return f"{session.stats[-1]}\n{len(session.stats)} answers, {tokens} tokens in all"


def _help(session: Session, _: str) -> str:
    rows = [f"{f'{name} {command.argument}':<20}{command.help}" for name, command in COMMANDS.items()]
    keys = 'A line that ends with \\ goes on in the next; """ begins and ends several lines.\n'
    return "\n".join(rows) + f"\n{keys}Ctrl-C stops an answer, Ctrl-D ends the chat."


def _end(session: Session, _: str) -> str:
    raise EOFError


def _store(session: Session) -> Store:
    if not session.store:
        raise ChatError("nothing is kept here, only where questions are typed; see /save and /load")
    return session.store


def _numbered(things: list[T], number: str, command: str) -> T:
    if not number.isdecimal() or not 1 <= int(number) <= len(things):
        raise ChatError(f"{command} wants a number from 1 to {len(things)}" if things else "there is none yet")
    return things[int(number) - 1]


def _last(conversation: Conversation) -> str:
    """Where a conversation stands."""
    last = conversation.path()[-2:]
    said = [f"{'>' if message.role == 'user' else ' '} {message.short(_SHOWN)}" for message in last]
    return "\n".join([conversation.name(), *said])


def _write(path: str, conversations: list[Conversation]) -> None:
    try:
        _file(path).write_text(write(conversations), encoding="utf-8")
    except OSError as error:
        raise ChatError(f"cannot write {path}: {error.strerror}") from None


def _file(path: str) -> Path:
    if not path:
        raise ChatError("name a file")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ChatError(f"{path} begins with the name of no user") from None


@dataclass(frozen=True)
class Command:
    """What one /command does with its argument; see run()."""

    argument: str
    help: str
    run: Callable[[Session, str], Done]


FILE_COMMANDS = ("/image", "/load", "/save", "/save-all")
COMMANDS = {
    "/help": Command("", "this list", _help),
    "/clear": Command("", "begin a new conversation; the old one is kept", _clear),
    "/system": Command("[TEXT]", "set the system prompt, none for none, or show it", _system),
    "/set": Command("[NAME VALUE]", "set a sampling parameter, default to reset it; or show all", _set),
    "/image": Command("[FILE]", "ask the next question about a picture, or several; none for none", _image),
    "/retry": Command("", "have the last question answered again", lambda session, _: session.ask_again()),
    "/edit": Command("TEXT", "ask this in place of the last question", _edit),
    "/undo": Command("", "go back to before the last question", _undo),
    "/branch": Command("[N]", "go to another answer or question that was tried, or list them", _branch),
    "/list": Command("[WORDS]", "the conversations that are kept, or those that hold the words", _list),
    "/open": Command("N", "go on with one of them", _open),
    "/rename": Command("[TITLE]", "call this conversation so, or as it begins", _rename),
    "/delete": Command("N", "delete one of the list", _delete),
    "/restore": Command("", "bring back what was deleted last", _restore),
    "/save": Command("FILE", "write the conversation as JSON, as the playground exports it", _save),
    "/save-all": Command("FILE", "write all that are kept", _save_all),
    "/load": Command("FILE", "go on with what /save or the playground wrote", _load),
    "/stats": Command("[on|off]", "tokens and times; or whether they are shown below each answer", _stats),
    "/exit": Command("", "end the chat", _end),
}
