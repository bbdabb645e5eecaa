"""From the requests of a batch to the parameters of the device's one `sample` call, and from its result to
messages."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from itertools import chain, count, islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from device.interface import Ops
from device.sample_params import SampleParams, SampleResult
from sophserve.grammar.masks import as_mask
from sophserve.link.messages import SampledTokens, TokenLogprob
from sophserve.worker.batch import RequestState, as_tensor

_NOTHING: Mapping[int, Any] = MappingProxyType({})
_NONE = array("q")
_BANNED = array("f", (float("-inf"),))


def sampled_tokens(
    result: SampleResult, states: list[RequestState], errors: Mapping[int, str] = _NOTHING
) -> list[SampledTokens]:
    """The result's rows as messages, with as many logprobs as each request asks for. errors: of rows that failed."""
    sampled = []
    rows = _logprobs(result)
    for row, (state, token_id) in enumerate(zip(states, result.token_ids.tolist(), strict=True)):
        most = state.params.logprobs
        logprobs = None if most is None else [list(islice(rows[row], most + 1))]
        sampled.append(SampledTokens(state.id, [token_id], logprobs, errors.get(row)))
    return sampled


def sample_params(states: list[RequestState], vocab_size: int, masks: Mapping[int, bytes] = _NOTHING) -> SampleParams:
    """The requests' parameters as tensors, one row each. masks: of rows with a grammar, all that may be chosen."""
    most = max(-1 if state.params.logprobs is None else state.params.logprobs for state in states)
    return SampleParams(
        temperature=_floats(states, "temperature"),
        top_k=as_tensor(array("i", [state.params.top_k for state in states])),
        top_p=_floats(states, "top_p"),
        min_p=_floats(states, "min_p"),
        seeds=as_tensor(array("q", [state.seed for state in states])),
        positions=as_tensor(array("q", [len(state.tokens) for state in states])),
        mask=_mask(states, vocab_size, masks),
        num_logprobs=min(vocab_size, most),
        **_penalties(states),
        **_bias(states, masks),
    )


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


def _penalties(states: list[RequestState]) -> dict[str, Any]:
    entries = [(row, *state.penalties.entries()) for row, state in enumerate(states) if state.penalties]
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


def _bias(states: list[RequestState], masks: Mapping[int, bytes]) -> dict[str, Any]:
    rows, ids, values = array("q"), array("q"), array("f")
    for row, state in enumerate(states):
        rules = state.rules
        banned = _NONE if row in masks else rules.banned()
        if banned or rules.bias_ids:
            ids += rules.bias_ids + banned
            values += rules.bias_values + _BANNED * len(banned)
            rows += array("q", (row,)) * (len(ids) - len(rows))
    if not rows:
        return {}
    return {"bias_rows": as_tensor(rows), "bias_ids": as_tensor(ids), "bias_values": as_tensor(values)}


def _mask(states: list[RequestState], vocab_size: int, masks: Mapping[int, bytes]) -> Tensor | None:
    if not masks and all(state.rules.allowed is None for state in states):
        return None
    everything = as_mask((1 << vocab_size) - 1, vocab_size)
    rows = [masks.get(row) or state.rules.allowed or everything for row, state in enumerate(states)]
    return torch.frombuffer(bytearray().join(rows), dtype=torch.int32).view(len(rows), -1)
