"""The masks of a batch's structured requests, computed by a thread beside the model's step."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from sophserve.engine.grammar import AnswerGrammar, GrammarCompiler, as_mask, bits
from sophserve.errors import RequestError
from sophserve.sampling import StructuredOutput
from sophserve.worker.batch import RequestState


@dataclass(frozen=True)
class RowMasks:
    """By row of the batch: which tokens may be chosen, as in SampleParams.mask, or why that cannot be told."""

    masks: dict[int, bytes] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)


class GrammarMasks:
    """The grammars of rank 0. A request's grammar follows its tokens, so that one that comes back after a preemption,
    or on a new worker, goes on where it was."""

    def __init__(self, directory: Path, vocab_size: int) -> None:
        self._directory = directory
        self._vocab_size = vocab_size
        self._compiler: GrammarCompiler | None = None
        self._lock = Lock()  # of the compiler
        self._compiling = ThreadPoolExecutor(1, "compile")
        self._masking = ThreadPoolExecutor(1, "mask")

    def compile_ahead(self, structured: StructuredOutput) -> None:
        """Begin to compile a grammar that will be needed."""
        self._compiling.submit(self._grammar, structured, [])

    def begin(self, states: list[RequestState]) -> Future[RowMasks] | None:
        """Begin to compute the masks of the rows that need one; None where none does. No token may be appended to the
        states until the result is there."""
        rows = {row: state for row, state in enumerate(states) if state.params.structured}
        return self._masking.submit(self._compute, rows) if rows else None

    def _compute(self, rows: dict[int, RequestState]) -> RowMasks:
        result = RowMasks()
        for row, state in rows.items():
            try:
                assert state.params.structured is not None
                if state.grammar is None:
                    state.grammar = self._grammar(state.params.structured, state.end_token_ids)
                mask = state.grammar.mask(state.tokens[state.prompt_length :])
                result.masks[row] = self._restricted(mask, state)
            except RequestError as error:
                result.errors[row] = str(error)
        return result

    def _grammar(self, structured: StructuredOutput, ends: list[int]) -> AnswerGrammar:
        with self._lock:
            if self._compiler is None:
                self._compiler = GrammarCompiler.from_directory(self._directory, self._vocab_size)
            return AnswerGrammar(self._compiler, structured, ends)

    def _restricted(self, mask: bytes, state: RequestState) -> bytes:
        """Without what the request rules out besides, as far as that leaves a choice: the grammar wins."""
        banned, allowed = state.rules.banned(), state.rules.allowed
        if not banned and allowed is None:
            return mask
        wanted = int.from_bytes(mask, "little") & ~bits(banned)
        if allowed is not None:
            wanted &= int.from_bytes(allowed, "little")
        return as_mask(wanted, self._vocab_size) if wanted else mask
