"""`sophserve chat` in pipes and in a pseudo terminal, with a server and with a model of its own."""

from __future__ import annotations

import codecs
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from sophserve.chat.conversation import read
from sophserve.options import parse as parse_server

COMMAND = [sys.executable, "-m", "sophserve", "chat"]
GREEDY = ("--temperature", "0", "--max-tokens", "12")


@pytest.fixture(scope="module")
def server(make_checkpoint: Callable[..., Path], server_class: Any) -> Iterator[Any]:
    server = server_class("--model", str(make_checkpoint("qwen2")))
    server.wait_until_ready()
    yield server
    server.process.kill()
    server.process.wait()


def piped(text: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *options],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def expected(server: Any, *messages: dict[str, str]) -> str:
    answer = server.client().chat.completions.create(
        model="tiny", messages=list(messages), temperature=0, max_tokens=12
    )
    return str(answer.choices[0].message.content)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_questions_from_a_pipe(server: Any) -> None:
    first = expected(server, user("Hi"))
    second = expected(server, user("Hi"), {"role": "assistant", "content": first}, user("a\nb"))
    done = piped("Hi\n\na\\\nb\n", "--url", f"{server.url}/v1/", *GREEDY)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{first}\n{second}\n"


def test_another_question_instead(server: Any) -> None:
    done = piped("Hi\n/edit What?\n/branch\n", "--url", server.url, *GREEDY)
    assert done.stdout.splitlines()[-1] == expected(server, user("What?")).splitlines()[-1] and done.returncode == 0
    assert [line[:9] for line in done.stderr.splitlines()] == ["   1  Hi ", "*  2  Wha"]


def test_commands(server: Any, tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    system = {"role": "system", "content": "Be brief."}
    text = f'/set max_tokens 12\n/system Be brief.\n"""Hi\nyou"""\n/retry\nWhat?\n/undo\n/stats\n/save {path}\n'
    done = piped(text + "/set temperature default\n/set\n/exit\nnever\n", "--url", server.url, "--temperature", "0")
    answer = expected(server, system, user("Hi\nyou"))
    turn = expected(server, system, user("Hi\nyou"), {"role": "assistant", "content": answer}, user("What?"))
    assert done.stdout == f"{answer}\n{answer}\n{turn}\n" and done.returncode == 0
    [kept] = read(path.read_bytes())
    assert [(each.role, each.content) for each in kept.path()] == [("user", "Hi\nyou"), ("assistant", answer)]
    assert [each.content for each in kept.messages] == ["Hi\nyou", answer, answer, "What?", turn]
    assert kept.messages[1].stats["tokens"] == 12 and kept.messages[1].finish == "length"
    assert kept.system == "Be brief." and kept.parameters == {"temperature": 0.0, "max_tokens": 12}
    assert "answer 12 tokens" in done.stderr and "3 answers, 36 tokens in all" in done.stderr
    assert done.stderr.endswith("temperature = default\nmax_tokens = 12\n")
    done = piped(f"/load {path}\nWhat?\n/clear\n/help\n", "--url", server.url)
    assert done.stdout == f"{turn}\n" and "/retry" in done.stderr and "loaded 2 messages" in done.stderr


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("/sett x 1", (), "did you mean /set?"),
        ("/set temprature 1", (), "did you mean temperature?"),
        ("/set temperature hot", (), "hot is no value"),
        ("/load /nowhere", (), "cannot read /nowhere"),
        ("/save", (), "name a file"),
        ("/undo", (), "no question"),
        ("/edit", (), "wants the question"),
        ("/branch", (), "nothing was asked"),
        ("/list", (), "nothing is kept here"),
        ("Hi", ("--temperature", "-1"), "temperature must be between 0 and 100"),
        ("Hi", ("--model", "other"), "no model 'other'; it has tiny"),
        ("Hi", ("--url", "http://127.0.0.1:1"), "nothing answers at http://127.0.0.1:1"),
        ("Hi", ("--url", "ftp://localhost:8000"), "--url must look like http://localhost:8000"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(server: Any, text: str, options: tuple[str, ...], words: str) -> None:
    done = piped(f"{text}\n", "--url", server.url, *options)
    assert done.returncode == 1 and done.stdout.strip() == ""
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_model_of_its_own(server: Any, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("localhost", parse_server(["--model", "x"])[1].port)) == 0:
            pytest.skip("a server runs at the default address")
    directory = str(make_checkpoint("qwen2"))
    before = set(Path("/tmp").glob("sophserve-*"))
    done = piped("Hi\n", "--model", directory, *GREEDY, SOPHSERVE_API_KEY="of another server")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected(server, user("Hi")) + "\n"
    assert set(Path("/tmp").glob("sophserve-*")) <= before
    done = piped("Hi\n", "--model", str(tmp_path), *GREEDY)
    assert done.returncode == 1 and "config.json" in done.stderr
    done = piped("Hi\n")
    assert done.returncode == 1 and "--model DIR" in done.stderr


class Terminal:
    """The command in a pseudo terminal."""

    def __init__(self, *options: str, state: Path) -> None:
        pid, self._file = pty.fork()
        if pid == 0:
            os.environ |= {"TERM": "xterm", "XDG_STATE_HOME": str(state)}
            os.execv(COMMAND[0], [*COMMAND, *options])
        termios.tcsetwinsize(self._file, (50, 500))  # a line that is longer would be broken
        self.pid = pid
        self.seen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def until(self, pattern: str, typed: str = "") -> str:
        """Read until a pattern comes; what came before it, with it. typed: is typed, and again while nothing comes."""
        end = time.monotonic() + 30
        again = 0.0
        while not (match := re.search(pattern, self.seen, re.DOTALL)):
            assert time.monotonic() < end, self.seen
            if typed and time.monotonic() > again:
                self.send(typed)
                again = time.monotonic() + 2
            if select.select([self._file], [], [], 0.1)[0]:
                try:
                    self.seen += self._decoder.decode(os.read(self._file, 65536))
                except OSError:
                    raise AssertionError(f"ended: {self.seen}") from None
        found, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return found

    def send(self, text: str) -> None:
        os.write(self._file, text.encode())

    def status(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._file)
        return code


PROMPT = r"> (\x1b\[0m)?"


def test_a_terminal(server: Any, tmp_path: Path) -> None:
    terminal = Terminal("--url", server.url, "--temperature", "0", state=tmp_path)
    assert "tiny" in terminal.until(PROMPT)
    terminal.send("/set max_tokens 12\r")
    terminal.until("max_tokens = 12.*" + PROMPT)
    terminal.send("Hi\r")
    answer = re.escape(re.sub(r"\W+", " ", expected(server, user("Hi"))).split()[0])
    terminal.until(rf"{answer}.*12 tokens · [\d.]+ tokens/s · first after [\d.]+ s.*{PROMPT}")
    terminal.send("/nothing\r")
    terminal.until("there is no command /nothing.*" + PROMPT)
    terminal.send("\x1b[A\x1b[A\r")  # two lines up in the history
    terminal.until(r"Hi[^\n]*\n[^\n]+\n.*" + PROMPT)
    terminal.send("half a line")
    terminal.until("half a line")  # the editor has it: an interrupt before would be none of its
    # Python's readline overlooks an interrupt that comes between a key and its wait for the next one.
    terminal.until(PROMPT, typed="\x03")
    terminal.send("\x04")
    assert terminal.status() == 0
    history = (tmp_path / "sophserve/chat_history").read_text().splitlines()
    assert [line for line in history if line[0] != "_"] == ["/set max_tokens 12", "Hi", "/nothing", "Hi"]
    [file] = (tmp_path / "sophserve/chats").glob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    [kept] = read(file.read_bytes())
    assert [each.content for each in kept.messages if each.role == "user"] == ["Hi", "Hi"]


class Seeing(BaseHTTPRequestHandler):
    """An OpenAI server with a model that sees and one that does not; it keeps what it is asked, and answers at once."""

    asked: ClassVar[list[Any]] = []

    def do_GET(self) -> None:
        reads = {"sees": ["text", "image"], "reads": ["text"]}
        self._answer({"data": [{"id": name, "architecture": {"input_modalities": reads[name]}} for name in reads]})

    def do_POST(self) -> None:
        Seeing.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"])
        self._answer({"choices": [{"message": {"content": "A cat."}, "finish_reason": "stop"}]})

    def _answer(self, content: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def seeing() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Seeing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_pictures_of_any_server(seeing: str, tmp_path: Path) -> None:
    file = tmp_path / "a cat.png"
    Image.new("RGB", (5, 3), "red").save(file)
    terminal = Terminal("--url", seeing, state=tmp_path)
    terminal.until("sees.*" + PROMPT)
    terminal.send(f"/image {tmp_path}/a c\t")
    terminal.until("a cat.png")  # completed, whatever else it is a part of
    terminal.send("\r")
    terminal.until("a cat.png, 5 x 3, .*goes with the next question.*" + PROMPT)
    terminal.send("What is this?\r")
    terminal.until("A cat.*" + PROMPT)
    url = f"data:image/png;base64,{b64encode(file.read_bytes()).decode()}"
    image, text = {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}
    assert Seeing.asked[-1] == [{"role": "user", "content": [image, text]}]
    terminal.send("\x04")
    assert terminal.status() == 0
    done = piped(f"/image {file}\n", "--url", seeing, "--model", "reads")
    assert done.returncode == 1 and "error: the model reads takes no pictures" in done.stderr


class Hanging(BaseHTTPRequestHandler):
    """An OpenAI server of few words: it loads first, thinks, begins to answer, and waits until the client is gone."""

    loading = 1
    gone = threading.Event()

    def do_GET(self) -> None:
        status = 503 if Hanging.loading else 200
        Hanging.loading = 0
        self._begin(status)
        answer = {"error": {"message": "still loading"}} if status == 503 else {"data": [{"id": "slow"}]}
        self.wfile.write(json.dumps(answer).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._begin(200)
        for delta in ({"reasoning_content": "Well"}, {"content": "One, **two**"}):
            self.wfile.write(b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n")
        self.rfile.read(1)
        Hanging.gone.set()

    def _begin(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_ctrl_c_stops_an_answer(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hanging)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    terminal = Terminal("--url", f"http://127.0.0.1:{server.server_port}", state=tmp_path)
    terminal.until("still loading.*slow.*" + PROMPT)
    terminal.send("Count. \\\r")
    terminal.until(r"\. (\x1b\[0m)?")
    terminal.send("/set is no command here\r")
    terminal.until(r"Well.*One, \x1b\[1m\*\*two")
    assert not Hanging.gone.is_set()
    os.kill(terminal.pid, signal.SIGINT)
    terminal.until(PROMPT)
    assert Hanging.gone.wait(5)
    terminal.send("/stats\r")
    terminal.until("ended by you.*" + PROMPT)
    terminal.send(f"/save {tmp_path}/kept\r")
    terminal.until("saved 2 messages.*" + PROMPT)
    [kept] = read((tmp_path / "kept").read_bytes())
    assert [each.content for each in kept.messages] == ["Count. \n/set is no command here", "One, **two**"]
    assert kept.messages[1].reasoning == "Well" and kept.messages[1].stopped
    terminal.send("/list\r")
    terminal.until(r"\* +1  [-\d]+  Count\..*" + PROMPT)
    terminal.send("/exit\r")
    assert terminal.status() == 0
    server.shutdown()
    server.server_close()
