"""Refuses grammars that a worker could not follow, and lets no client wait for the grammars of another."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from sophserve.errors import GrammarTooLarge, RequestError, ServerBusy
from sophserve.forks import Done
from sophserve.forks_process import ATTEMPTS, OWN_FAULT, ForksProcess
from sophserve.grammar.trial import WALL_SECONDS, Try
from sophserve.sampling import StructuredOutput

# Of a grammar as text.
MAX_CHARACTERS = 1 << 18
# Grammars whose outcome is remembered, and those that may wait to be tried out.
CACHE_SIZE = 1024
QUEUE_SIZE = 128
_TOO_LARGE = "is too complex to be compiled; simplify it"
# Tries at once: first ones, which are short, and second ones, which few grammars need.
QUICK_TRIES = 2
LONG_TRIES = 2


class Trial:
    """A grammar that is to be tried out, for as many as ask for it. owner: whose turn it takes."""

    def __init__(self, structured: StructuredOutput, key: bytes, owner: str) -> None:
        self.structured = structured
        self.key = key
        self.owner = owner
        self.quick = True
        self.askers = 0
        self.lost = 0  # tries that ended for no fault of the grammar
        self.number: int | None = None  # of the try under way
        self.verdict: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def settle(self, verdict: str | ServerBusy) -> None:
        """Tell those who ask."""
        if self.verdict.done():
            return
        if isinstance(verdict, str):
            self.verdict.set_result(verdict)
        else:
            self.verdict.set_exception(verdict)
            self.verdict.exception()  # nobody may ask any more


class Turns:
    """Trials that wait. Owners take turns, so that nobody waits for all that another one has there."""

    def __init__(self) -> None:
        self._queues: dict[str, list[Trial]] = {}

    @property
    def counts(self) -> Counter[str]:
        """How many each owner has here."""
        return Counter({owner: len(queue) for owner, queue in self._queues.items()})

    def add(self, trial: Trial) -> None:
        """Behind the others of its owner."""
        self._queues.setdefault(trial.owner, []).append(trial)

    def remove(self, trial: Trial) -> None:
        """Forget one, if it is here."""
        queue = self._queues.get(trial.owner, [])
        if trial in queue:
            queue.remove(trial)
        if not queue:
            self._queues.pop(trial.owner, None)

    def next(self, without: Collection[str]) -> Trial | None:
        """Take the first trial of the owner whose turn it is, but not of those."""
        owner = next((owner for owner in self._queues if owner not in without), None)
        if owner is None:
            return None
        trial, *rest = self._queues.pop(owner)
        if rest:
            self._queues[owner] = rest
        return trial

    def last(self, owner: str) -> Trial | None:
        """The last one of an owner."""
        return self._queues[owner][-1] if owner in self._queues else None


class GrammarCheck:
    """Decides which grammars are tried out when, and remembers the outcome.

    announce: told of every grammar that is good, and of a simple one at the first question, that the worker may compile
    them, and read its tokenizer, ahead of the request.
    """

    def __init__(
        self, directory: Path, vocab_size: int, announce: Callable[[StructuredOutput], None] = lambda _: None
    ) -> None:
        self._announce = announce
        arguments = [str(directory), str(vocab_size)]
        self._process = ForksProcess("sophserve.grammar.trial", arguments, WALL_SECONDS, "grammars cannot be tried out")
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()  # by digest: what is wrong, empty for nothing
        self._latest: StructuredOutput | None = None  # that was good: the answers to one request ask for the same one
        self._trials: dict[bytes, Trial] = {}
        self._waiting = {True: Turns(), False: Turns()}  # by whether they are quick
        self._running: dict[bool, set[Trial]] = {True: set(), False: set()}
        self._tasks: set[asyncio.Task[None]] = set()

    async def check(self, structured: StructuredOutput, owner: str = "") -> None:
        """Raise RequestError for a grammar that cannot be applied, ServerBusy when that cannot be told now. Those that
        were checked lately take no time. owner: who asks; the grammars of different owners do not wait for each other.
        """
        if structured is self._latest:
            return
        size = len(structured.value)
        if size > MAX_CHARACTERS:
            raise GrammarTooLarge(f"the {structured.kind} has {size} characters; at most {MAX_CHARACTERS} are possible")
        key = hashlib.sha256(f"{structured.kind}:{structured.value}".encode(errors="surrogatepass")).digest()
        problem = self._verdicts.get(key)
        if problem is None:
            problem = await self._ask(structured, key, owner)
        elif key in self._verdicts:
            self._verdicts.move_to_end(key)
        if problem:
            raise (GrammarTooLarge if problem.endswith(_TOO_LARGE) else RequestError)(problem)
        self._latest = structured

    async def close(self) -> None:
        """End the processes."""
        await self._process.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for trial in self._trials.values():
            trial.settle(ServerBusy("the server stops before the grammar was tried out"))

    async def _ask(self, structured: StructuredOutput, key: bytes, owner: str) -> str:
        trial = self._trials.get(key)
        if trial is None:
            if not self._process.started:
                self._announce(StructuredOutput("json_object"))
            self._make_room(owner)
            trial = self._trials[key] = Trial(structured, key, owner)
            self._waiting[True].add(trial)
            self._start()
        trial.askers += 1
        try:
            return await asyncio.shield(trial.verdict)
        finally:
            trial.askers -= 1
            if trial.askers == 0 and not trial.verdict.done():
                self._forget(trial)

    def _make_room(self, owner: str) -> None:
        """Where the queue is full, the one who has the most in it gives way. Raises ServerBusy if that is the owner."""
        counts = self._waiting[True].counts + self._waiting[False].counts
        if counts.total() < QUEUE_SIZE:
            return
        busy = ServerBusy(f"{QUEUE_SIZE} grammars wait to be tried out, most of them yours; try again later", mine=True)
        [(most, count)] = counts.most_common(1)
        if counts[owner] + 1 >= count:
            raise busy
        victim = self._waiting[False].last(most) or self._waiting[True].last(most)
        assert victim is not None
        victim.settle(busy)
        self._forget(victim)

    def _forget(self, trial: Trial) -> None:
        """It needs no verdict any more."""
        self._trials.pop(trial.key, None)
        self._waiting[trial.quick].remove(trial)
        if trial.number is not None:
            self._process.cancel(trial.number)

    def _start(self) -> None:
        """Begin the tries for which there is room."""
        for quick, waiting in self._waiting.items():
            running = self._running[quick]
            while len(running) < (QUICK_TRIES if quick else LONG_TRIES):
                # Of the long ones nobody has all.
                without = () if quick else {trial.owner for trial in running}
                trial = waiting.next(without)
                if trial is None:
                    break
                running.add(trial)
                task = asyncio.create_task(self._try(trial))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _try(self, trial: Trial) -> None:
        quick = trial.quick
        try:
            trial.number = self._process.number()
            order = msgspec.msgpack.encode(Try(quick, trial.structured))
            tried = await self._process.attempt(trial.number, order)
        finally:
            trial.number = None
            self._running[quick].discard(trial)
        if self._trials.get(trial.key) is trial:
            self._judge(trial, tried)
        self._start()

    def _judge(self, trial: Trial, tried: Done | None) -> None:
        """What a try means; None is one that was lost with its process."""
        if tried is not None and tried.signal == 0:
            self._settle(trial, tried.answer.decode(errors="replace"))
        elif tried is not None and tried.signal == signal.SIGPROF and trial.quick:
            trial.quick = False
            self._waiting[False].add(trial)
        elif tried is not None and tried.signal in OWN_FAULT:
            self._settle(trial, f"the {trial.structured.kind} {_TOO_LARGE}")
        elif tried is not None and tried.signal == signal.SIGALRM:
            self._give_up(trial, "this machine is too busy to try the grammar out; try again later")
        else:
            trial.lost += 1
            if trial.lost < ATTEMPTS:
                self._waiting[trial.quick].add(trial)
            else:
                self._give_up(trial, "the process that tries grammars out was killed; try again later")

    def _settle(self, trial: Trial, verdict: str) -> None:
        """Remember it."""
        self._verdicts[trial.key] = verdict
        if len(self._verdicts) > CACHE_SIZE:
            self._verdicts.popitem(last=False)
        if not verdict:
            self._announce(trial.structured)
        del self._trials[trial.key]
        trial.settle(verdict)

    def _give_up(self, trial: Trial, reason: str) -> None:
        del self._trials[trial.key]
        trial.settle(ServerBusy(reason))
