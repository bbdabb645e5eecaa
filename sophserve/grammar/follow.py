"""The masks of a batch's structured requests, computed by threads beside the model's step."""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llguidance import LLMatcher

from sophserve.errors import RequestError
from sophserve.grammar.compiler import AnswerGrammar, GrammarCompiler
from sophserve.sampling import SamplingParams, StructuredOutput

# Compiled grammars that are kept.
CACHE_SIZE = 64
# Seconds that a step waits for masks when the model is done, with other rows in it and without.
PATIENCE = 0.02
PATIENCE_ALONE = 0.05
# Masks that take longer are computed behind each other, not before those of others.
_SLOW_SECONDS = 0.005
# Compiling gives way to the model's threads.
_NICE = 10


class Restrictions(Protocol):
    """Which tokens other parameters rule out. allowed: as in SampleParams.mask, None for all."""

    allowed: bytes | None

    def banned(self) -> array[int]:
        """Tokens, int64, that may not be chosen next."""

    def following(self, token_id: int) -> Restrictions:
        """Those behind one more token."""

    def narrowed(self, mask: bytes, form: str = "") -> bytes:
        """A mask without what is ruled out. form: what gave it. Raises RequestError where nothing is left."""


class FollowedRequest(Protocol):
    """What is to be known of a request, whose tokens are its prompt and its answer; and what follows the answer: its
    grammar, the masks that are being computed, whether that takes long."""

    params: SamplingParams
    end_token_ids: list[int]
    prompt_length: int
    tokens: array[int]
    grammar: AnswerGrammar | None
    mask: Future[list[bytes]] | None
    slow_masks: bool

    @property
    def rules(self) -> Restrictions:
        """Those of its other parameters."""


Followed = Sequence[tuple[FollowedRequest, Sequence[int]]]
"""Requests, and what is guessed to follow their tokens."""


@dataclass(frozen=True)
class _Compiled:
    matcher: LLMatcher
    slow: bool


class GrammarMasks:
    """The grammars of rank 0. A request's grammar follows its tokens, so that one that comes back after a preemption,
    or on a new worker, goes on where it was. One that takes long to compile or to follow holds up its own row alone."""

    def __init__(self, directory: Path, vocab_size: int) -> None:
        self._directory = directory
        self._vocab_size = vocab_size
        self._compiler: Future[GrammarCompiler] | None = None
        self._compiled: OrderedDict[StructuredOutput, Future[_Compiled]] = OrderedDict()
        self._compiling = ThreadPoolExecutor(2, "compile", initializer=_give_way)
        self._masking = {slow: ThreadPoolExecutor(1, "slow-mask" if slow else "mask") for slow in (False, True)}

    def compile_ahead(self, structured: StructuredOutput) -> Future[_Compiled]:
        """Begin to compile a grammar that will be needed, unless it is at hand."""
        if self._compiler is None:
            self._compiler = self._compiling.submit(GrammarCompiler.from_directory, self._directory, self._vocab_size)
        compiled = self._compiled.get(structured)
        if compiled is None:
            compiled = self._compiled[structured] = self._compiling.submit(_compile, self._compiler, structured)
            if len(self._compiled) > CACHE_SIZE:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(structured)
        return compiled

    def begin(self, requests: Followed) -> dict[int, Future[list[bytes]]]:
        """Begin to compute the masks of the requests that need them, by their places: of the next token, and behind
        each of its guesses as long as they fit. No token may be appended to such a request before they are there."""
        begun = {}
        for place, (state, guesses) in enumerate(requests):
            if state.params.structured:
                state.mask = state.mask or self._begin(state, guesses, state.params.structured)
                begun[place] = state.mask
        return begun

    def collect(
        self, requests: Followed, begun: Mapping[int, Future[list[bytes]]]
    ) -> dict[int, list[bytes] | RequestError]:
        """What there is of begun masks after a little patience, or why there are none, by the places of requests. The
        others can be asked for again, with begin."""
        if begun:
            wait(begun.values(), timeout=PATIENCE if len(begun) < len(requests) else PATIENCE_ALONE)
        found: dict[int, list[bytes] | RequestError] = {}
        for place, masks in begun.items():
            if masks.done():
                requests[place][0].mask = None
                try:
                    found[place] = masks.result()
                except RequestError as error:
                    found[place] = error
        return found

    def fitting(self, state: FollowedRequest, guesses: Sequence[int]) -> int:
        """How many guesses the grammar may allow, as far as it can tell at once; none if it is not ready."""
        if not state.params.structured:
            return len(guesses)
        if state.grammar is None or state.mask is not None or state.slow_masks:
            return 0
        return state.grammar.fitting(state.tokens[state.prompt_length :], guesses)

    def _begin(
        self, state: FollowedRequest, guesses: Sequence[int], structured: StructuredOutput
    ) -> Future[list[bytes]]:
        masks: Future[list[bytes]] = Future()
        if state.grammar is None:
            compiled = self.compile_ahead(structured)
            compiled.add_done_callback(lambda _: self._submit(masks, state, guesses, compiled))
        else:
            self._submit(masks, state, guesses, None)
        return masks

    def _submit(
        self,
        masks: Future[list[bytes]],
        state: FollowedRequest,
        guesses: Sequence[int],
        compiled: Future[_Compiled] | None,
    ) -> None:
        """Have masks computed; of a request's first one it is known what compiling it said."""
        if compiled is not None and compiled.exception() is None:
            state.slow_masks = compiled.result().slow
        self._masking[state.slow_masks].submit(self._compute, masks, state, guesses, compiled)

    def _compute(
        self,
        masks: Future[list[bytes]],
        state: FollowedRequest,
        guesses: Sequence[int],
        compiled: Future[_Compiled] | None,
    ) -> None:
        begin = time.monotonic()
        try:
            if compiled is not None:
                params, ends = state.params, state.end_token_ids
                assert self._compiler is not None and params.structured is not None
                compiler, matcher = self._compiler.result(), compiled.result().matcher.deep_copy()
                state.grammar = AnswerGrammar(compiler, params.structured, ends, params.thought, matcher)
            found = _masks(state, guesses)
            state.slow_masks = time.monotonic() - begin > _SLOW_SECONDS * len(found)
            masks.set_result(found)
        except BaseException as error:
            masks.set_exception(error)


def _masks(state: FollowedRequest, guesses: Sequence[int]) -> list[bytes]:
    """Of the next token, and behind each guess as long as they fit. Raises RequestError if there is not even one."""
    assert state.grammar is not None and state.params.structured is not None
    form = f"the form of the answer ({state.params.structured.kind})"
    rules, found = state.rules, list[bytes]()
    try:
        for mask in state.grammar.masks(state.tokens[state.prompt_length :], guesses):
            rules = rules.following(guesses[len(found) - 1]) if found else rules
            found.append(rules.narrowed(mask, form))
    except RequestError:
        if not found:
            raise
    return found


def _compile(compiler: Future[GrammarCompiler], structured: StructuredOutput) -> _Compiled:
    matcher = compiler.result().compile(structured)
    begin = time.monotonic()
    matcher.deep_copy().compute_bitmask()
    return _Compiled(matcher, time.monotonic() - begin > _SLOW_SECONDS)


def _give_way() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
