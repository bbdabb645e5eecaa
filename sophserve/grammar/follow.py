"""The masks of a batch's structured requests, computed by threads beside the model's step."""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from llguidance import LLMatcher

from sophserve.errors import RequestError
from sophserve.grammar.compiler import AnswerGrammar, GrammarCompiler
from sophserve.grammar.masks import as_mask
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

    def narrowed(self, mask: bytes, form: str = "") -> bytes:
        """A mask without what is ruled out. form: what gave it. Raises RequestError where nothing is left."""


class FollowedRequest(Protocol):
    """What is to be known of a request, whose tokens are its prompt and its answer; and what follows the answer: its
    grammar, the mask that is being computed, whether that takes long."""

    params: SamplingParams
    end_token_ids: list[int]
    prompt_length: int
    tokens: array[int]
    grammar: AnswerGrammar | None
    mask: Future[bytes] | None
    slow_masks: bool

    @property
    def rules(self) -> Restrictions:
        """Those of its other parameters."""


@dataclass(frozen=True)
class RowMasks:
    """By row of the batch: which tokens may be chosen, as in SampleParams.mask, or why that cannot be told; and the
    rows for which it is not known yet."""

    masks: dict[int, bytes] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)


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

    def begin(self, states: Sequence[FollowedRequest]) -> dict[int, Future[bytes]]:
        """Begin to compute the masks of the rows that need one. No token may be appended to such a state before its
        mask is there."""
        rows = {}
        for row, state in enumerate(states):
            if state.params.structured:
                state.mask = state.mask or self._begin(state, state.params.structured)
                rows[row] = state.mask
        return rows

    def collect(self, states: Sequence[FollowedRequest], rows: Mapping[int, Future[bytes]]) -> RowMasks:
        """What there is of begun masks after a little patience; the others can be asked for again, with begin."""
        result = RowMasks()
        if rows:
            wait(rows.values(), timeout=PATIENCE if len(rows) < len(states) else PATIENCE_ALONE)
        for row, mask in rows.items():
            if not mask.done():
                result.missing.add(row)
                continue
            states[row].mask = None
            self._note(result, row, mask.result)
        for row, state in enumerate(states):
            rules = state.rules
            if row not in rows and rules.allowed is not None and rules.banned():
                self._note(result, row, partial(rules.narrowed, rules.allowed))
        return result

    def _note(self, result: RowMasks, row: int, mask: Callable[[], bytes]) -> None:
        try:
            result.masks[row] = mask()
        except RequestError as error:
            result.errors[row] = str(error)
            result.masks[row] = as_mask((1 << self._vocab_size) - 1, self._vocab_size)  # what is chosen is not used

    def _begin(self, state: FollowedRequest, structured: StructuredOutput) -> Future[bytes]:
        mask: Future[bytes] = Future()
        if state.grammar is None:
            compiled = self.compile_ahead(structured)
            compiled.add_done_callback(lambda _: self._submit(mask, state, compiled))
        else:
            self._submit(mask, state, None)
        return mask

    def _submit(self, mask: Future[bytes], state: FollowedRequest, compiled: Future[_Compiled] | None) -> None:
        """Have a mask computed; of a request's first one it is known what compiling it said."""
        if compiled is not None and compiled.exception() is None:
            state.slow_masks = compiled.result().slow
        self._masking[state.slow_masks].submit(self._compute, mask, state, compiled)

    def _compute(self, mask: Future[bytes], state: FollowedRequest, compiled: Future[_Compiled] | None) -> None:
        begin = time.monotonic()
        try:
            if compiled is not None:
                params, ends = state.params, state.end_token_ids
                assert self._compiler is not None and params.structured is not None
                compiler, matcher = self._compiler.result(), compiled.result().matcher.deep_copy()
                state.grammar = AnswerGrammar(compiler, params.structured, ends, params.thought, matcher)
            assert state.grammar is not None
            fitting = state.grammar.mask(state.tokens[state.prompt_length :])
            assert state.params.structured is not None
            found = state.rules.narrowed(fitting, f"the form of the answer ({state.params.structured.kind})")
            state.slow_masks = time.monotonic() - begin > _SLOW_SECONDS
            mask.set_result(found)
        except BaseException as error:
            mask.set_exception(error)


def _compile(compiler: Future[GrammarCompiler], structured: StructuredOutput) -> _Compiled:
    matcher = compiler.result().compile(structured)
    begin = time.monotonic()
    matcher.deep_copy().compute_bitmask()
    return _Compiled(matcher, time.monotonic() - begin > _SLOW_SECONDS)


def _give_way() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
