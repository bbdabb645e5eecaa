"""Whose grammars are tried out when, and what is remembered of the outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGALRM, SIGKILL, SIGPROF, SIGSEGV

import msgspec
import psutil
import pytest

from sophserve.errors import RequestError, ServerBusy
from sophserve.forks import Done
from sophserve.grammar import check as grammar_check
from sophserve.grammar.check import MAX_CHARACTERS, GrammarCheck
from sophserve.grammar.trial import Try
from sophserve.sampling import StructuredOutput


def regex(value: str) -> StructuredOutput:
    return StructuredOutput("regex", value)


async def soon(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


class FakeProcess:
    """Answers tries when the test does."""

    started = True

    def __init__(self) -> None:
        self.begun: list[tuple[str, bool]] = []
        self.cancelled: list[int] = []
        self._replies: dict[str, asyncio.Future[Done | None]] = {}
        self._numbers: dict[int, str] = {}

    def number(self) -> int:
        return len(self.begun)

    async def attempt(self, number: int, content: bytes) -> Done | None:
        order = msgspec.msgpack.decode(content, type=Try)
        value = order.structured.value
        self.begun.append((value, order.quick))
        self._numbers[number] = value
        self._replies[value] = asyncio.get_running_loop().create_future()
        return await self._replies[value]

    async def answer(self, value: str, problem: str = "", signal: int = 0, lost: bool = False) -> None:
        """End the try of this grammar."""
        await soon(lambda: value in self._replies)
        self._replies.pop(value).set_result(None if lost else Done(0, problem.encode(), signal))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)
        self._replies.pop(self._numbers[number]).set_result(Done(number, signal=SIGKILL))

    async def close(self) -> None:
        pass


class Asker:
    """A check whose process is a fake, and what has been asked of it."""

    def __init__(self, directory: Path) -> None:
        self.process = FakeProcess()
        self.check = GrammarCheck(directory, 512)
        self.check._process = self.process  # type: ignore[assignment]

    async def ask(self, value: str, owner: str = "") -> asyncio.Task[None]:
        task = asyncio.create_task(self.check.check(regex(value), owner))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return task


@pytest.fixture
async def asker(tmp_path: Path) -> AsyncIterator[Asker]:
    asker = Asker(tmp_path)
    yield asker
    await asker.check.close()


async def test_owners_take_turns(asker: Asker) -> None:
    for number in range(8):
        await asker.ask(f"a{number}", "hostile")
    honest = await asker.ask("b", "honest")
    await asker.ask("c", "third")
    await asker.process.answer("a0")
    await asker.process.answer("a1")
    assert [value for value, _ in asker.process.begun] == ["a0", "a1", "a2", "b"]
    await asker.process.answer("b")
    await honest
    assert asker.process.begun[-1] == ("c", True)


async def test_what_takes_long_is_tried_again_beside_others_of_its_kind(asker: Asker) -> None:
    for number in range(4):
        await asker.ask(f"a{number}", "hostile")
        await asker.process.answer(f"a{number}", signal=SIGPROF)
    # One at a time of the same owner; the first tries go on beside it.
    assert [value for value, quick in asker.process.begun if not quick] == ["a0"]
    mine = await asker.ask("b", "honest")
    await asker.process.answer("b", signal=SIGPROF)
    assert asker.process.begun[-1] == ("b", False)
    await asker.process.answer("b")
    await mine
    refused = await asker.ask("a0", "honest")
    await asker.process.answer("a0", signal=SIGPROF)
    with pytest.raises(RequestError, match="too complex"):
        await refused
    assert asker.process.begun[-1] == ("a1", False)


async def test_those_who_left_are_skipped_and_ended(asker: Asker) -> None:
    tasks = [await asker.ask(f"a{number}") for number in range(6)]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert asker.process.cancelled == [0, 1]
    honest = await asker.ask("b")
    await asker.process.answer("b")
    await honest
    assert [value for value, _ in asker.process.begun] == ["a0", "a1", "b"]
    # Nothing was learned of the others.
    again = await asker.ask("a0")
    await asker.process.answer("a0")
    await again


async def test_equal_grammars_are_tried_once(asker: Asker) -> None:
    tasks = [await asker.ask("a", f"owner {number}") for number in range(5)]
    tasks[0].cancel()  # the others wait for it all the same
    await asyncio.wait(tasks[:1])
    await asker.process.answer("a", problem="it is wrong")
    for result in await asyncio.gather(*tasks[1:], return_exceptions=True):
        assert isinstance(result, RequestError) and "it is wrong" in str(result)
    with pytest.raises(RequestError, match="it is wrong"):
        await asker.check.check(regex("a"))
    assert asker.process.begun == [("a", True)]


@pytest.mark.parametrize("how", [{"signal": SIGKILL}, {"lost": True}])
async def test_only_verdicts_are_kept(asker: Asker, how: dict[str, int]) -> None:
    for again in range(2):
        task = await asker.ask("a")
        await asker.process.answer("a", **how)  # type: ignore[arg-type]
        assert not task.done() and len(asker.process.begun) == 2 * again + 2
        await asker.process.answer("a", **how)  # type: ignore[arg-type]
        with pytest.raises(ServerBusy, match="try again later") as caught:
            await task
        assert not caught.value.mine
    task = await asker.ask("a")
    await asker.process.answer("a", signal=SIGALRM)  # by the clock: this machine's fault
    with pytest.raises(ServerBusy, match="busy"):
        await task
    task = await asker.ask("a")
    await asker.process.answer("a")
    await task
    task = await asker.ask("b")
    await asker.process.answer("b", signal=SIGSEGV)
    with pytest.raises(RequestError, match="too complex"):
        await task


async def test_nobody_fills_the_queue_for_others(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_check, "QUEUE_SIZE", 4)
    hostile = [await asker.ask(f"a{number}", "hostile") for number in range(7)]
    with pytest.raises(ServerBusy) as caught:
        await hostile[6]
    assert caught.value.mine and not any(task.done() for task in hostile[:6])
    honest = await asker.ask("b", "honest")
    with pytest.raises(ServerBusy):
        await hostile[5]
    await asker.process.answer("a0")
    await asker.process.answer("a1")
    await asker.process.answer("b")
    await honest


@pytest.fixture
async def check(make_checkpoint: Callable[..., Path]) -> AsyncIterator[GrammarCheck]:
    check = GrammarCheck(make_checkpoint("qwen2"), 512)
    yield check
    await check.close()


def trial_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any("sophserve.grammar" in part for part in process.cmdline()):
                found.append(process)
    return found


async def test_a_long_grammar_is_refused_unseen(check: GrammarCheck) -> None:
    for kind in ("regex", "lark", "choice", "json_schema"):
        with pytest.raises(RequestError, match=f"has {MAX_CHARACTERS + 1} characters; at most {MAX_CHARACTERS} are"):
            await check.check(StructuredOutput(kind, "a" * (MAX_CHARACTERS + 1)))  # type: ignore[arg-type]
    assert not trial_processes()


async def test_little_is_kept_of_what_was_refused(check: GrammarCheck) -> None:
    for number in range(3):
        with pytest.raises(RequestError):
            await check.check(regex(f"({number}" + "a" * 200_000))
    assert 3 <= sum(len(key) + len(words) for key, words in check._verdicts.items()) < 10_000


async def test_hostile_grammars_hold_nobody_up(check: GrammarCheck) -> None:
    await check.check(regex("a"))
    hostile = [asyncio.create_task(check.check(regex(f"a{{{90_000 + number}}}"), "hostile")) for number in range(12)]
    await soon(lambda: len(trial_processes()) > 1)
    await check.check(regex("[xyz]{3}"), "honest")
    assert sum(task.done() for task in hostile) < 6
    for task in hostile:
        task.cancel()
    await asyncio.wait(hostile)
    begin = time.monotonic()
    await check.check(regex("[xyz]{4}"), "hostile")
    assert time.monotonic() - begin < 5  # twelve would take more
    # Memory is given back with the processes.
    await soon(lambda: len(trial_processes()) == 1)
    assert trial_processes()[0].memory_info().rss < 150 * 2**20


async def test_a_trial_that_something_kills_is_made_again(check: GrammarCheck) -> None:
    await check.check(regex("a"))
    for victim in (-1, 0):  # the try itself, the process that forks them
        task = asyncio.create_task(check.check(regex(f"a{{{80_000 + victim}}}")))
        await soon(lambda: len(trial_processes()) > 1)
        trial_processes()[victim].kill()
        await task
    await check.close()
    await soon(lambda: not trial_processes())
