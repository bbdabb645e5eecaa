"""From the requests of a batch to the parameters of the device's one `sample` call, and from its result to
messages."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice, takewhile
from typing import Any

import torch
from torch import Tensor

from device.interface import Ops
from device.sample_params import SampleParams, SampleResult
from sophserve.errors import RequestError
from sophserve.grammar.masks import as_mask
from sophserve.link.messages import SampledTokens, TokenLogprob
from sophserve.worker.arrays import as_tensor
from sophserve.worker.batch import RequestState, Sampled
from sophserve.worker.token_rules import TokenRules

DEFERRED = -1
"""Stands for a token that is chosen in a later step."""
_NONE = array("q")
_BANNED = array("f", (float("-inf"),))


@dataclass(slots=True)
class Row:
    """One token to choose: that behind a request's tokens and `ahead`. rules: its request's there. mask: of structured
    output, all that may be chosen. error: why nothing can be, in which case what is chosen is not used."""

    state: RequestState
    rules: TokenRules
    ahead: Sequence[int] = ()
    mask: bytes | None = None
    error: str | None = None


def rows_of(sampled: Sampled, masks: list[bytes] | RequestError | None = None) -> Iterator[Row]:
    """The rows of a request, those behind its drafts as long as something can be chosen there. masks: of structured
    output, as GrammarMasks.collect has them; None where there is none."""
    state, drafts = sampled
    if isinstance(masks, RequestError):
        yield Row(state, state.rules, error=str(masks))
        return
    rules = state.rules
    for place in range(len(drafts) + 1):
        if masks is not None and place == len(masks):
            return
        rules = rules.following(drafts[place - 1]) if place else rules
        row = Row(state, rules, drafts[:place], masks[place] if masks else None)
        if masks is None and rules.allowed is not None and rules.banned():
            try:
                row.mask = rules.narrowed(rules.allowed)
            except RequestError as error:
                if not place:
                    yield Row(state, rules, error=str(error))
                return
        yield row


def sampled_tokens(result: SampleResult, rows: Sequence[Row]) -> list[SampledTokens]:
    """What was chosen in each row, with as many logprobs as its request asks for."""
    sampled = []
    entries = _logprobs(result)
    for index, (row, token_id) in enumerate(zip(rows, result.token_ids.tolist(), strict=True)):
        most = row.state.params.logprobs
        logprobs = None if most is None else [list(islice(entries[index], most + 1))]
        sampled.append(SampledTokens(row.state.id, [token_id], logprobs, row.error))
    return sampled


def sample_params(rows: Sequence[Row], vocab_size: int) -> SampleParams:
    """The rows' parameters as tensors."""
    states = [row.state for row in rows]
    most = max(-1 if state.params.logprobs is None else state.params.logprobs for state in states)
    return SampleParams(
        temperature=_floats(states, "temperature"),
        top_k=as_tensor(array("i", [state.params.top_k for state in states])),
        top_p=_floats(states, "top_p"),
        min_p=_floats(states, "min_p"),
        seeds=as_tensor(array("q", [state.seed for state in states])),
        positions=as_tensor(array("q", [len(row.state.tokens) + len(row.ahead) for row in rows])),
        mask=_mask(rows, vocab_size),
        num_logprobs=min(vocab_size, most),
        **_penalties(rows, states),
        **_bias(rows),
    )


def holding(chosen: Sequence[int], drafts: Sequence[int]) -> list[int]:
    """The tokens that a request is given, of those chosen behind its last one and each of its drafts: as long as the
    drafts before them are what was chosen, and it is known what was."""
    known = takewhile(lambda token_id: token_id != DEFERRED, chosen)
    held = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(drafts, chosen, strict=False)))
    return list(islice(known, held + 1))


def joined(identity: int, each: Sequence[SampledTokens]) -> SampledTokens:
    """The tokens of one request in one message."""
    if len(each) == 1:
        return each[0]
    wanted = [entries for one in each for entries in one.logprobs or []]
    return SampledTokens(identity, [token_id for one in each for token_id in one.tokens], wanted or None)


def prompt_logprobs(ops: Ops, logits: Tensor, targets: list[int], most: int) -> tuple[bytes, bytes, bytes]:
    """For each row of logits `[rows, vocab]` the target token, then the `most` most probable ones: token_ids, logprobs
    and the target's rank as in PromptLogprobs. They are what the device reports of a token that is sampled; the mask
    leaves it no other."""
    rows, vocab = logits.shape
    ids = torch.tensor(targets)
    mask = torch.zeros(rows, -(-vocab // 32), dtype=torch.int32)
    mask[torch.arange(rows), ids >> 5] = torch.tensor(1, dtype=torch.int32) << (ids & 31).int()
    zeros, none = torch.zeros(rows), torch.zeros(rows, dtype=torch.int64)
    params = SampleParams(zeros, none.int(), zeros + 1, zeros, none, none, mask=mask, num_logprobs=most)
    result = ops.sample(logits, params)
    assert result.logprobs is not None and result.ranks is not None
    assert result.top_ids is not None and result.top_logprobs is not None
    token_ids = torch.cat([result.token_ids[:, None], result.top_ids], 1)
    logprobs = torch.cat([result.logprobs[:, None], result.top_logprobs], 1)
    return _packed("i", token_ids), _packed("f", logprobs), _packed("i", result.ranks)


def _packed(code: str, values: Tensor) -> bytes:
    return array(code, values.flatten().tolist()).tobytes()


def _logprobs(result: SampleResult) -> list[Iterator[TokenLogprob]]:
    """Of each row the chosen token, then the most probable ones; nothing where none were asked for."""
    if result.logprobs is None:
        return []
    assert result.ranks is not None and result.top_ids is not None and result.top_logprobs is not None
    chosen = map(TokenLogprob, result.token_ids.tolist(), result.logprobs.tolist(), result.ranks.tolist())
    tops = zip(result.top_ids.tolist(), result.top_logprobs.tolist(), strict=True)
    return [
        chain((first,), map(TokenLogprob, ids, values, count(1)))
        for first, (ids, values) in zip(chosen, tops, strict=True)
    ]


def _floats(states: list[RequestState], name: str) -> Tensor:
    return as_tensor(array("f", [getattr(state.params, name) for state in states]))


def _penalties(rows: Sequence[Row], states: list[RequestState]) -> dict[str, Any]:
    entries = [
        (index, *row.state.penalties.entries(row.ahead)) for index, row in enumerate(rows) if row.state.penalties
    ]
    if not entries:
        return {}
    return {
        "repetition": _floats(states, "repetition_penalty"),
        "presence": _floats(states, "presence_penalty"),
        "frequency": _floats(states, "frequency_penalty"),
        "penalty_rows": torch.cat([torch.full_like(ids, row) for row, ids, _ in entries]),
        "penalty_ids": torch.cat([ids for _, ids, _ in entries]),
        "output_counts": torch.cat([counts for _, _, counts in entries]),
    }


def _bias(rows: Sequence[Row]) -> dict[str, Any]:
    places, ids, values = array("q"), array("q"), array("f")
    for place, row in enumerate(rows):
        rules = row.rules
        banned = _NONE if row.mask or row.error else rules.banned()
        if banned or rules.bias_ids:
            ids += rules.bias_ids + banned
            values += rules.bias_values + _BANNED * len(banned)
            places += array("q", (place,)) * (len(ids) - len(places))
    if not places:
        return {}
    return {"bias_rows": as_tensor(places), "bias_ids": as_tensor(ids), "bias_values": as_tensor(values)}


def _mask(rows: Sequence[Row], vocab_size: int) -> Tensor | None:
    if all(row.mask is None and row.rules.allowed is None for row in rows):
        return None
    everything = as_mask((1 << vocab_size) - 1, vocab_size)
    masks = [everything if row.error else row.mask or row.rules.allowed or everything for row in rows]
    return torch.frombuffer(bytearray().join(masks), dtype=torch.int32).view(len(masks), -1)
