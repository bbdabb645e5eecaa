"""From the requests of a batch to the parameters of the device's one `sample` call, and from its result to
messages."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from device.interface import SampleParams, SampleResult
from sophserve.engine.grammar import as_mask, bits
from sophserve.engine.output import TokenLogprob
from sophserve.worker.batch import RequestState, as_tensor
from sophserve.worker.messages import SampledToken

_NOTHING: Mapping[int, Any] = MappingProxyType({})


def sampled_tokens(
    result: SampleResult, states: list[RequestState], errors: Mapping[int, str] = _NOTHING
) -> list[SampledToken]:
    """The result's rows as messages, with as many logprobs as each request asks for. errors: of rows that failed."""
    sampled = []
    for row, (state, token_id) in enumerate(zip(states, result.token_ids.tolist(), strict=True)):
        count = state.params.logprobs
        logprobs = None if count is None else _row_logprobs(result, row, token_id, count)
        sampled.append(SampledToken(state.id, token_id, logprobs, errors.get(row)))
    return sampled


def sample_params(states: list[RequestState], vocab_size: int, masks: Mapping[int, bytes] = _NOTHING) -> SampleParams:
    """The requests' parameters as tensors, one row each. masks: of rows with a grammar, all that may be chosen."""
    params = [state.params for state in states]

    def floats(name: str) -> Tensor:
        return as_tensor(array("f", [getattr(each, name) for each in params]))

    penalties = _penalties(states)
    bias = _bias(states, masks)
    return SampleParams(
        temperature=floats("temperature"),
        top_k=as_tensor(array("i", [each.top_k for each in params])),
        top_p=floats("top_p"),
        min_p=floats("min_p"),
        seeds=as_tensor(array("q", [state.seed for state in states])),
        positions=as_tensor(array("q", [len(state.tokens) for state in states])),
        repetition=floats("repetition_penalty") if penalties else None,
        presence=floats("presence_penalty") if penalties else None,
        frequency=floats("frequency_penalty") if penalties else None,
        penalty_rows=penalties[0] if penalties else None,
        penalty_ids=penalties[1] if penalties else None,
        output_counts=penalties[2] if penalties else None,
        bias_rows=bias[0] if bias else None,
        bias_ids=bias[1] if bias else None,
        bias_values=bias[2] if bias else None,
        mask=_mask(states, vocab_size, masks),
        num_logprobs=max(-1 if each.logprobs is None else each.logprobs for each in params),
    )


def prompt_logprobs(logits: Tensor, targets: list[int], count: int) -> list[list[TokenLogprob]]:
    """For each row of logits `[rows, vocab]` the target token's logprob, then the `count` most probable ones."""
    logprobs = logits.float().log_softmax(-1)
    ids = torch.tensor(targets, device=logits.device)
    chosen = logprobs.gather(1, ids[:, None])
    ranks = (logprobs > chosen).sum(1) + 1
    top_logprobs, top_ids = logprobs.topk(count, dim=1)
    result = SampleResult(ids, chosen[:, 0], ranks, top_ids, top_logprobs)
    return [_row_logprobs(result, row, target, count) for row, target in enumerate(targets)]


def _row_logprobs(result: SampleResult, row: int, token_id: int, count: int) -> list[TokenLogprob]:
    assert result.logprobs is not None and result.ranks is not None
    assert result.top_ids is not None and result.top_logprobs is not None
    entries = [TokenLogprob(token_id, result.logprobs[row].item(), int(result.ranks[row]))]
    ids = result.top_ids[row, :count].tolist()
    values = result.top_logprobs[row, :count].tolist()
    entries += [TokenLogprob(*entry) for entry in zip(ids, values, range(1, count + 1), strict=True)]
    return entries


def _penalties(states: list[RequestState]) -> tuple[Tensor, Tensor, Tensor] | None:
    entries = [(row, *state.penalties.entries()) for row, state in enumerate(states) if state.penalties]
    if not entries:
        return None
    rows = torch.cat([torch.full_like(ids, row) for row, ids, _ in entries])
    return rows, torch.cat([ids for _, ids, _ in entries]), torch.cat([counts for _, _, counts in entries])


def _bias(states: list[RequestState], masks: Mapping[int, bytes]) -> tuple[Tensor, Tensor, Tensor] | None:
    rows, ids, values = array("q"), array("q"), array("f")
    for row, state in enumerate(states):
        banned = [] if row in masks else state.banned_token_ids()
        if not banned and not state.params.logit_bias:
            continue
        biases = state.params.logit_bias | dict.fromkeys(banned, float("-inf"))
        rows.extend([row] * len(biases))
        ids.extend(biases.keys())
        values.extend(biases.values())
    if not rows:
        return None
    return as_tensor(rows), as_tensor(ids), as_tensor(values)


def _mask(states: list[RequestState], vocab_size: int, masks: Mapping[int, bytes]) -> Tensor | None:
    allowed = [state.params.allowed_token_ids for state in states]
    if not masks and not any(allowed):
        return None
    everything = as_mask((1 << vocab_size) - 1, vocab_size)
    rows = [
        masks.get(row) or (everything if ids is None else as_mask(bits(ids), vocab_size))
        for row, ids in enumerate(allowed)
    ]
    return torch.frombuffer(bytearray().join(rows), dtype=torch.int32).view(len(rows), -1)
